"""The evidence: runs of a study in one tidy CSV that grows piece by piece, and any run of it made again.

A row is one metric of one test set of one run: `COLUMNS`. The file is sorted, so that equal runs give equal bytes. It
names machines by a short hash; machines.csv beside it has their names.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dvpo_lib.common.durable_files import write_durably
from dvpo_lib.experiments.grids.cells import pretraining_of, run_of
from dvpo_lib.experiments.grids.planned_runs import RUN_COLUMNS, PlannedRun, planned_runs, run_identity
from dvpo_lib.experiments.grids.studies import STUDIES
from dvpo_lib.experiments.run_store import collect_run_tables, execute_once, execute_specs, machine_of, spec_key
from dvpo_lib.experiments.run_store.keys import machine_name
from dvpo_lib.reporting.names import TAIL_COLUMNS
from dvpo_lib.reporting.statistics.study_rows import in_display_order

TRAINING_METRICS = ("reward_true", "entropy", "kl", "explained_variance")
TAIL_WIDTHS = {column: column.removeprefix("critic/") for column in TAIL_COLUMNS}  # column of curves.csv: metric
MACHINES = "machines.csv"
PLAN = "planned.csv"
COLUMNS = [*RUN_COLUMNS, "suite", "role", "metric", "value", "diverged", "key", "plan", "machine"]
CRITIC_FILE = "critic.safetensors"  # in the result of a critic's pretraining


class EvidenceError(ValueError):
    """A run of the evidence cannot be made again, or a study cannot be extended; the message says why."""


def read_evidence(path: Path) -> pd.DataFrame:
    """The rows of a study's file; none if there is no file. Column `diverged` is the step at which a run diverged."""
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    table = pd.read_csv(path, keep_default_na=False, na_values={"value": [""], "diverged": [""]})
    return table.assign(machine=table["machine"].replace(_machine_names(path)))


def read_studies(folder: Path) -> dict[str, pd.DataFrame]:
    """{study: rows of its file in the order in which they are shown}, for all STUDIES; none for a file that is missing.

    Args:
        folder: The folder of the files.
    """
    return {study: in_display_order(read_evidence(folder / f"{study}.csv")) for study in STUDIES}


def read_plan(folder: Path) -> pd.DataFrame:
    """How many runs are planned: columns study, family and runs, as the evidence command writes them; none without it.

    Args:
        folder: The folder of the studies' files.
    """
    path = folder / PLAN
    return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["study", "family", "runs"])


def _machine_names(path: Path) -> dict[str, str]:
    """{short hash: name} of the machines known beside a study's file."""
    file = path.with_name(MACHINES)
    return dict(pd.read_csv(file).itertuples(index=False, name=None)) if file.is_file() else {}


def write_evidence(path: Path, table: pd.DataFrame) -> None:
    """Writes the rows of a study in a fixed order; the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    numbers = {"value": float, "diverged": float}  # those of a column of objects would not be rounded
    table = table[COLUMNS].astype(numbers)
    hashes = {name: hashlib.sha256(name.encode()).hexdigest()[:6] for name in table["machine"].unique()}
    known = _machine_names(path) | {short: name for name, short in hashes.items()}
    names = pd.DataFrame(sorted(known.items()), columns=["machine", "name"])
    write_durably(path.with_name(MACHINES), names.to_csv(index=False))  # first: rows without names say nothing
    ordered = table.sort_values([*RUN_COLUMNS, "suite", "metric"], kind="stable")
    ordered.assign(machine=ordered["machine"].map(hashes)).to_csv(scratch, index=False, float_format="%.8g")
    os.replace(scratch, path)


def missing_runs(params, study: str, table: pd.DataFrame) -> list[PlannedRun]:
    """The runs of a study that its file does not have, in order."""
    there = set(table[RUN_COLUMNS].drop_duplicates().itertuples(index=False, name=None))
    return [run for run in planned_runs(params, study) if tuple(run.labels.values()) not in there]


def outdated_run(params, study: str, table: pd.DataFrame) -> str | None:
    """The key of a run that its study has no more, or that would have another plan today; None if there is none.

    Args:
        params: The settings.
        study: A key of STUDIES.
        table: Rows of its file.
    """
    planned = {tuple(run.labels.values()): run for run in planned_runs(params, study)}
    for *labels, key, plan in table[[*RUN_COLUMNS, "key", "plan"]].drop_duplicates().itertuples(index=False):
        run = planned.get(tuple(labels))
        if run is None or run_identity(params, run) != plan:
            return key
    return None


def rows_of_known_runs(params, runs: Sequence[PlannedRun], folder: Path) -> pd.DataFrame:
    """Rows of runs that the file of some study has: the same settings, code and inputs, there under other labels.

    Only runs of this kind of machine count: elsewhere sums round differently, and runs are compared in pairs.

    Args:
        params: The settings.
        runs: The runs.
        folder: The folder of the files.
    """
    wanted: dict[str, list[PlannedRun]] = {}
    for run in runs:
        wanted.setdefault(run_identity(params, run), []).append(run)
    found = [pd.DataFrame(columns=COLUMNS)]
    for study in STUDIES:
        table = read_evidence(folder / f"{study}.csv")
        known = table["plan"].isin(wanted) & (table["machine"] == machine_name())
        for plan, rows in table[known].groupby("plan"):
            once = rows[(rows[RUN_COLUMNS] == rows[RUN_COLUMNS].iloc[0]).all(axis=1)]  # some cells of a study are equal
            found += [once.assign(**run.labels) for run in wanted.pop(plan)]
    return pd.concat(found, ignore_index=True)


def critic_files(params, runs: Sequence[PlannedRun]) -> list[Path | None]:
    """Pretrained critics of runs, computed if the run store lacks them; None for methods without one."""
    specs = [pretraining_of(params, run.cell, run.seed) for run in runs]
    folders = iter(execute_specs([spec for spec in specs if spec is not None], params.runtime, "critic pretraining"))
    return [None if spec is None else next(folders) / CRITIC_FILE for spec in specs]


def compute_runs(params, runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """The rows of runs; those that the run store has are not trained again."""
    files = critic_files(params, runs)
    specs = [run_of(params, run.cell, run.seed, file) for run, file in zip(runs, files, strict=True)]
    folders = execute_specs(specs, params.runtime, "training")
    return pd.concat([_rows(params, run, f) for run, f in zip(runs, folders, strict=True)], ignore_index=True)


def _rows(params, run: PlannedRun, folder: Path) -> pd.DataFrame:
    table = collect_run_tables([folder], "final")
    if (folder / "curves.csv").is_file():
        table = pd.concat([table, training_rows(folder)], ignore_index=True)
    return evidence_rows(table, run, folder, run_identity(params, run))


def evidence_rows(scores: pd.DataFrame, run: PlannedRun, folder: Path, plan: str) -> pd.DataFrame:
    """Rows of COLUMNS of one run.

    Args:
        scores: Columns suite, role, metric, value, and diverged if the run did.
        run: The run.
        folder: Its result in the run store.
        plan: Its `plan_key`.
    """
    made = dict(key=folder.name, plan=plan, machine=machine_of(folder))
    diverged = scores["diverged"] if "diverged" in scores else np.nan
    return scores.assign(**run.labels, **made, diverged=diverged)[COLUMNS]


def training_rows(folder: Path) -> pd.DataFrame:
    """What a run's training says of it, in rows of role "training".

    Suite "training" has `TRAINING_METRICS` over the last quarter of the iterations, and `first_reward`, the true reward
    of the first iteration, which is the base policy's. Suites "quarter 1" to "quarter 4" have the widths of the tails
    that a critic with a distribution predicts in each quarter.
    """
    curves = pd.read_csv(folder / "curves.csv")
    quarters = enumerate(np.array_split(np.arange(len(curves)), 4), 1)
    quarters = [(f"quarter {number}", rows) for number, rows in quarters if len(rows)]  # a short run has fewer
    found = {("training", name): curves[name].tail(-(-len(curves) // 4)).mean() for name in TRAINING_METRICS}
    found["training", "first_reward"] = curves["reward_true"].iloc[0]
    for column in TAIL_WIDTHS.keys() & set(curves):
        for quarter, rows in quarters:
            found[quarter, TAIL_WIDTHS[column]] = curves[column].iloc[rows].mean()
    rows = [(suite, metric, value) for (suite, metric), value in found.items()]
    return pd.DataFrame(rows, columns=["suite", "metric", "value"]).assign(role="training")


def extend_evidence(params, study: str, path: Path, minutes: float, batch: int = 24) -> Iterator[tuple[int, int]]:
    """Computes missing runs of a study until the time is over, and writes its file after every few of them.

    A run that a file of the same folder has under other labels is copied from there.

    Args:
        params: The settings.
        study: A key of STUDIES.
        path: The study's file.
        minutes: No new batch begins after this time.
        batch: Runs between two writes; workers wait for each other at the end of each batch.

    Yields:
        (runs in the file, runs of the study) after every write.

    Raises:
        EvidenceError: If a run of the file is outdated: new runs could not be compared with it.
    """
    end, table = time.monotonic() + 60 * minutes, read_evidence(path)
    if (key := outdated_run(params, study, table)) is not None:
        raise EvidenceError(
            f"{path}: run {key} would be another one now, since settings, code, base policy or libraries have "
            "changed, or its study has it no more. Delete its rows to compute them anew, or go back to what made them"
        )
    total = sum(1 for _ in planned_runs(params, study))
    new_rows = _new_rows(params, missing_runs(params, study, table), path.parent, batch)
    while time.monotonic() < end and (rows := next(new_rows, None)) is not None:
        table = pd.concat([table, rows], ignore_index=True)
        write_evidence(path, table)
        yield len(table[RUN_COLUMNS].drop_duplicates()), total


def _new_rows(params, left: Sequence[PlannedRun], folder: Path, batch: int) -> Iterator[pd.DataFrame]:
    copied = rows_of_known_runs(params, left, folder)
    there = dict(list(copied.groupby(RUN_COLUMNS)))
    for start in range(0, len(left), batch):  # in order: all settings of a study have equally many seeds
        part = [(run, there.get(tuple(run.labels.values()))) for run in left[start : start + batch]]
        new = [run for run, rows in part if rows is None]
        known = [rows for _, rows in part if rows is not None]
        yield pd.concat([*known, compute_runs(params, new)] if new else known, ignore_index=True)


def rerun(params, path: Path, key: str) -> pd.DataFrame:
    """Makes a run of the evidence again, from its critic's pretraining on, and compares its numbers with the file.

    Args:
        params: The settings.
        path: A study's file.
        key: Of the run, or the first characters of it.

    Returns:
        The rows, equal to those of the file byte for byte.

    Raises:
        EvidenceError: If the file has no such run, code, settings or libraries are others than then, or a number is.
    """
    table = read_evidence(path)
    keys = [known for known in table["key"].unique() if known.startswith(key)]
    if len(keys) != 1:
        raise EvidenceError(f"{path}: {len(keys)} runs have a key that begins with {key!r}")
    stored = table[table["key"] == keys[0]]
    labels = stored[RUN_COLUMNS].iloc[0].to_dict()
    stored = stored[(stored[RUN_COLUMNS] == pd.Series(labels)).all(axis=1)]  # some cells of a study are equal
    found = [run for run in planned_runs(params, labels["study"]) if run.labels == labels]
    if not found:
        raise EvidenceError(f"{path}: study {labels['study']} has no such run any more: {labels}")
    [run] = found
    if (now := run_identity(params, run)) != stored["plan"].iloc[0]:
        raise EvidenceError(
            f"{path}: the plan of this run was {stored['plan'].iloc[0]} and is {now} now: settings, "
            "code, base policy or libraries are others than those that made it"
        )
    then = stored["machine"].iloc[0]
    where = "" if then == machine_name() else f" (then on {then}, now on {machine_name()}: sums round differently)"
    with tempfile.TemporaryDirectory() as folder:
        root, file = Path(folder), None
        if (pretraining := pretraining_of(params, run.cell, run.seed)) is not None:
            execute_once(pretraining, "critic", root)
            file = root / "critic" / CRITIC_FILE
        spec = run_of(params, run.cell, run.seed, file)
        if spec_key(spec) != keys[0]:
            raise EvidenceError(
                f"{path}: the critic's pretraining gave other weights than those of run {keys[0]}{where}"
            )
        execute_once(spec, keys[0], root)
        again = _rows(params, run, root / keys[0])
    with tempfile.TemporaryDirectory() as folder:
        texts = []
        for rows in (stored, again):
            write_evidence(Path(folder) / "rows.csv", rows.assign(machine="any"))
            texts.append((Path(folder) / "rows.csv").read_text(encoding="utf-8"))
    if texts[0] != texts[1]:
        raise EvidenceError(f"{path}: run {keys[0]} gave other numbers{where}:\n{texts[1]}")
    return again
