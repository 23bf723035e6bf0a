"""The evidence command: runs of the studies, piece by piece, and any run of them made again.

    python -m dvpo_lib evidence                                   # how far each study is
    python -m dvpo_lib evidence comparison --minutes 60           # extends reports/evidence/comparison.csv
    python -m dvpo_lib evidence denoised --rerun 3f2a             # makes one run again, byte for byte

Data, base policy and proxies come from stage `data` of a profile, in a kept copy of the project under work/.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.chain.profiles import run_profile
from dvpo_lib.chain.stages import StageError, project_root
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.experiments.grids.evidence import (
    RUN_COLUMNS,
    EvidenceError,
    extend_evidence,
    planned_runs,
    read_evidence,
    rerun,
)
from dvpo_lib.experiments.grids.studies import STUDIES

EVIDENCE_FOLDER = Path("reports/evidence")


def add_evidence_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m dvpo_lib evidence` to a parser."""
    parser.add_argument("study", nargs="?", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--minutes", type=float, default=60, help="no run begins after this time (default: 60)")
    parser.add_argument("--rerun", metavar="KEY", help="make the run with this key again, and compare it with the file")
    parser.add_argument("--profile", metavar="NAME", help="settings of the study (default: its own, mostly full)")


def run_evidence(chosen: argparse.Namespace) -> int:
    """Extends a study, makes one of its runs again, or prints how far all studies are.

    Args:
        chosen: Arguments parsed by `add_evidence_arguments`.

    Returns:
        The exit code.

    Raises:
        StageError: If a run cannot be made again.
    """
    root = project_root()
    if chosen.study is None:
        _print_progress(root, chosen.profile)
        return 0
    profile = chosen.profile or STUDIES[chosen.study].profile
    path, workdir = root / EVIDENCE_FOLDER / f"{chosen.study}.csv", root / "work" / profile
    copy = argparse.Namespace(name=profile, targets=["data"], workdir=workdir, set=[], export=None)
    if code := run_profile(copy):
        return code
    os.environ.setdefault("DVPO_STORE", str(root / ".runs"))
    os.chdir(workdir)  # specs name data/ as the chain's notebooks do
    params = load_params(workdir / "params.yaml")
    if chosen.rerun:
        try:
            rerun(params, path, chosen.rerun)
        except EvidenceError as error:
            raise StageError(str(error)) from None
        print(f"run {chosen.rerun} of {chosen.study}: the same numbers")
        return 0
    try:
        with locked_file(workdir / "work" / f"{chosen.study}.lock", wait=False):
            _extend(params, chosen.study, path, chosen.minutes)
    except BlockingIOError as owner:
        raise StageError(f"process {owner} extends {path} already") from None
    return 0


def _extend(params: Params, study: str, path: Path, minutes: float) -> None:
    began = time.monotonic()
    start = len(read_evidence(path)[RUN_COLUMNS].drop_duplicates())
    for done, total in extend_evidence(params, study, path, minutes):
        left = (time.monotonic() - began) / max(1, done - start) * (total - done) / 60
        print(f"{study}: {done} of {total} runs; {left:.0f} minutes to the end", file=sys.stderr, flush=True)


def _print_progress(root: Path, profile: str | None) -> None:
    for name, study in STUDIES.items():
        file = root / "profiles" / f"{profile or study.profile}.yaml"
        params = load_params(root / "params.yaml", overlaid=file)
        done = len(read_evidence(root / EVIDENCE_FOLDER / f"{name}.csv")[RUN_COLUMNS].drop_duplicates())
        total = sum(1 for _ in planned_runs(params, name))
        print(f"{name:16} {done:5} of {total:5} runs: {study.question}")
