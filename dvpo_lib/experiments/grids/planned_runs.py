"""The runs of a study in order, and what makes a run of one study the same as a run of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from dvpo_lib.experiments.grids.cells import Cell, pretraining_of, run_of
from dvpo_lib.experiments.grids.studies import CLAIMED, SHOWN, STUDIES
from dvpo_lib.experiments.run_store import spec_key
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS

RUN_COLUMNS = ["study", *RUN_LABELS]
SHORT = 12  # characters of a plan's key


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    study: str
    cell: Cell
    seed: int

    @property
    def labels(self) -> dict:
        """The columns that identify the run."""
        return dict(study=self.study, **self.cell.labels, seed=self.seed)


def planned_runs(params, study: str) -> Iterator[PlannedRun]:
    """The runs of a study in the order in which they are computed.

    Cells that claims rest on come first, one noise after the other, so that an unfinished study decides something; then
    all others, seed by seed.

    Args:
        params: The settings, with all rows that the study's cells name.
        study: A key of STUDIES.
    """
    claimed: list[Cell] = []
    shown: list[Cell] = []
    for cell in STUDIES[study].cells(params):
        (claimed if STUDIES[study].decides(cell) and cell.family == params.families[0] else shown).append(cell)
    for noise in dict.fromkeys(cell.noise for cell in claimed):
        for seed in range(params.seed, params.seed + CLAIMED):
            yield from (PlannedRun(study, cell, seed) for cell in claimed if cell.noise == noise)
    for seed in range(params.seed, params.seed + SHOWN):
        yield from (PlannedRun(study, cell, seed) for cell in shown)


def run_identity(params, run: PlannedRun) -> str:
    """`plan_key` of a planned run: equal for the runs of two studies that are one and the same.

    Example:
        "M = 200" of the study of quantile counts is the run that other studies call by the default's name.
    """
    pretraining = pretraining_of(params, run.cell, run.seed)
    return plan_key(run_of(params, run.cell, run.seed, None), "" if pretraining is None else spec_key(pretraining))


def plan_key(spec, pretraining: str) -> str:
    """A short hash of all that is planned for a run, equal on every machine. Pretrained weights are not.

    Args:
        spec: The run's spec without the file of its critic.
        pretraining: The key of the critic's pretraining; "" for none.
    """
    return hashlib.sha256(f"{spec_key(spec)} {pretraining}".encode()).hexdigest()[:SHORT]
