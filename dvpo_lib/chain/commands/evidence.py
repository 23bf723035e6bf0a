"""The evidence command: runs of the studies, piece by piece, and any run of them made again.

    python -m dvpo_lib evidence                                   # how far each study is
    python -m dvpo_lib evidence comparison --minutes 60           # extends reports/evidence/comparison.csv
    python -m dvpo_lib evidence denoised --rerun 3f2a             # makes one run again, byte for byte

Base policy and proxies lie in reports/evidence/inputs/PROFILE, so that every machine starts from the same bytes; suites
are generated from the settings. Where a profile has no such folder, stage `data` makes it, in a copy of the project.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dvpo_lib.chain.exports import PIECES, findings_of, insert_findings
from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.chain.profiles import run_profile
from dvpo_lib.chain.stages import StageError, project_root
from dvpo_lib.common.durable_files import atomic_folder, folder_digests, locked_file, write_durably
from dvpo_lib.common.marked_text import insert_between_marks
from dvpo_lib.experiments.grids.evidence import PLAN, EvidenceError, extend_evidence, read_evidence, read_studies, rerun
from dvpo_lib.experiments.grids.planned_runs import RUN_COLUMNS, planned_runs
from dvpo_lib.experiments.grids.studies import NOISES, STUDIES
from dvpo_lib.experiments.run_store import code_hash
from dvpo_lib.reporting.figures import save_figure, scores_by_noise
from dvpo_lib.reporting.findings.verdict_page import verdict_page
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS
from dvpo_lib.reporting.statistics.study_rows import base_scores, claimed_runs
from dvpo_lib.reporting.tables import base_by_role
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.suites import save_suites

EVIDENCE_FOLDER = Path("reports/evidence")
PUBLISHED = Path("reports/real")  # runs on a published model
INPUTS = EVIDENCE_FOLDER / "inputs"
DRAWN_NOISES = 4  # of NOISES, in README's figure
VERDICT_MARKS = "<!-- verdict: written by `python -m dvpo_lib evidence STUDY` -->\n", "<!-- end of the verdict -->"


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
        StageError: If a run cannot be made again, or the study's file is of other code or settings.
    """
    root = project_root()
    if chosen.study is None:
        _print_progress(root, chosen.profile)
        return 0
    profile = chosen.profile or STUDIES[chosen.study].profile
    path, workdir = root / EVIDENCE_FOLDER / f"{chosen.study}.csv", root / "work" / "evidence" / profile
    params = _study_params(root, chosen.study, profile)
    if not (root / INPUTS / profile).is_dir() and (code := _make_inputs(root, profile)):
        return code
    place_inputs(params, root / INPUTS / profile, workdir)
    os.environ.setdefault("DVPO_STORE", str(root / ".runs"))
    os.chdir(workdir)  # specs name data/ as the chain's notebooks do
    if chosen.rerun:
        try:
            rerun(params, path, chosen.rerun)
        except EvidenceError as error:
            raise StageError(str(error)) from None
        print(f"run {chosen.rerun} of {chosen.study}: the same numbers")
        return 0
    try:
        with locked_file(workdir / f"{chosen.study}.lock", wait=False):
            for done, total, left in _extend(params, chosen.study, path, chosen.minutes):
                print(f"{chosen.study}: {done} of {total} runs; {left} minutes to the end", file=sys.stderr, flush=True)
                write_verdict(root)
            write_verdict(root)
            write_plan(root)
    except EvidenceError as error:
        raise StageError(str(error)) from None
    except BlockingIOError as owner:
        raise StageError(f"process {owner} extends {path} already") from None
    return 0


def _make_inputs(root: Path, profile: str) -> int:
    """Runs stage `data` of a profile and keeps what it makes; returns the exit code."""
    copy = root / "work" / profile
    if code := run_profile(argparse.Namespace(name=profile, targets=["data"], workdir=copy, set=[], export=None)):
        return code
    with atomic_folder(root / INPUTS / profile) as folder:
        for name in ("base", "noise"):
            shutil.copytree(copy / "data" / name, folder / name)
    return 0


def place_inputs(params: Params, inputs: Path, workdir: Path) -> None:
    """Puts base policy, proxies and suites where specs look for them; two processes may do so at once.

    Args:
        params: The settings.
        inputs: Folder with base/ and noise/.
        workdir: The folder that gets data/base, data/noise and data/suites.
    """
    made = {"inputs": folder_digests(inputs), "tasks": code_hash(tasks.__name__), "settings": repr(params.tasks)}
    record = workdir / "placed.json"
    with locked_file(workdir / "placed.lock"):
        if record.is_file() and json.loads(record.read_text("utf-8")) == made:
            return
        record.unlink(missing_ok=True)
        shutil.rmtree(workdir / "data", ignore_errors=True)
        for name in ("base", "noise"):
            shutil.copytree(inputs / name, workdir / "data" / name)
        save_suites(tasks.build_suites(params.tasks), workdir / "data" / "suites")
        write_durably(record, json.dumps(made))


def _extend(params: Params, study: str, path: Path, minutes: float) -> Iterator[tuple[int, int, int]]:
    began = time.monotonic()
    start = len(read_evidence(path)[RUN_COLUMNS].drop_duplicates())
    for done, total in extend_evidence(params, study, path, minutes):
        yield done, total, round((time.monotonic() - began) / max(1, done - start) * (total - done) / 60)


def write_verdict(root: Path) -> None:
    """Puts the verdict of all files into README.md, which has marks for it, and draws README's figure.

    README sets runs on a published model beside these: that passage is written anew as well.
    """
    evidence = read_studies(root / EVIDENCE_FOLDER)
    everything = evidence["comparison"]
    runs = claimed_runs(everything[everything["noise"].isin(NOISES[:DRAWN_NOISES])], FEWEST_SEEDS)
    with locked_file(root / "work" / "evidence" / "readme.lock"):
        insert_between_marks(root / "README.md", *VERDICT_MARKS, verdict_page(evidence))
        if len(runs):
            family = runs["family"].iloc[0]
            base = base_by_role(base_scores(everything), [family])["ID"]
            note = f"Trained and tested on {family}, at least {FEWEST_SEEDS} seeds each; axes differ."
            save_figure(scores_by_noise(runs, base=base, note=note), root / EVIDENCE_FOLDER / "comparison.png")
        if (root / PUBLISHED / PIECES).is_file():
            insert_findings(root / "README.md", findings_of(root / PUBLISHED), PUBLISHED.name)


def write_plan(root: Path) -> None:
    """Writes how many runs of each study and family are planned, for `read_plan` and the evidence page."""
    rows = []
    for name in STUDIES:
        families = Counter(run.cell.family for run in planned_runs(_study_params(root, name), name))
        rows += [(name, family, count) for family, count in families.items()]
    write_durably(
        root / EVIDENCE_FOLDER / PLAN, pd.DataFrame(rows, columns=["study", "family", "runs"]).to_csv(index=False)
    )


def _print_progress(root: Path, profile: str | None) -> None:
    for name, study in STUDIES.items():
        done = len(read_evidence(root / EVIDENCE_FOLDER / f"{name}.csv")[RUN_COLUMNS].drop_duplicates())
        total = sum(1 for _ in planned_runs(_study_params(root, name, profile), name))
        print(f"{name:16} {done:5} of {total:5} runs: {study.question}")


def _study_params(root: Path, study: str, profile: str | None = None) -> Params:
    return load_params(root / "params.yaml", overlaid=root / "profiles" / f"{profile or STUDIES[study].profile}.yaml")
