"""Pieces of a large comparison: one training each, with all that it needs, and its results as rows of a tidy table.

A piece is named METHOD/NOISE/SEED, or ROW/NOISE/SEED for a row of the ablation (`core/spikes/0`), or `base`, the test
of the policy before training. The run store keeps everything that a piece computes, under the keys that the notebooks'
runs have: a piece that was computed once is computed nowhere again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dvpo_lib.common.settings_tree import ConfigError, did_you_mean
from dvpo_lib.experiments.grids.ablation import ablation_rows
from dvpo_lib.experiments.grids.cells import Cell, pretraining_of, training_of
from dvpo_lib.experiments.grids.evidence import CRITIC_FILE, evidence_rows, read_evidence, write_evidence
from dvpo_lib.experiments.grids.planned_runs import RUN_COLUMNS, PlannedRun, plan_key
from dvpo_lib.experiments.run_store import execute_specs
from dvpo_lib.experiments.specs.base_policy import base_policy_spec
from dvpo_lib.experiments.specs.base_test import base_test_spec
from dvpo_lib.experiments.specs.reward_model import reward_model_spec
from dvpo_lib.noise.reward_model import WEIGHTS_FILE
from dvpo_lib.reporting.names import BASE, BY_KIND
from dvpo_lib.tasks.families import build_suites
from dvpo_lib.tasks.suites import save_suites


def all_pieces(params, study: str) -> dict[str, list[PlannedRun]]:
    """Every piece of a comparison by name, with a run for each family; after each seed all that has run is comparable.

    Args:
        params: All settings.
        study: Name of the comparison, in tables.
    """
    full = params.critics["quantile"]
    rows = ablation_rows(full, params.ablation.leave_one_out, params.ablation.ends_only)
    rows = {name.replace(" ", "_"): critic for name, critic in rows.items() if critic != full}
    pieces = {BASE: [PlannedRun(study, Cell(BASE, "none", family), params.seed) for family in params.families[:1]]}
    for number in range(max(params.seeds, params.ablation.seeds)):
        cells = []
        if number < params.seeds:
            cells += [(m, Cell(m, noise, "")) for noise in params.train_noises for m in params.methods]
        if number < params.ablation.seeds:
            noise = params.ablation.noise
            cells += [(row, Cell("dvpo", noise, "", row, critic=critic)) for row, critic in rows.items()]
        seed = params.seed + number
        for label, cell in cells:
            runs = [PlannedRun(study, replace(cell, family=family), seed) for family in params.families]
            pieces[f"{label}/{cell.noise}/{seed}"] = runs
    return pieces


def find_piece(params, study: str, name: str) -> list[PlannedRun]:
    """The runs of a piece.

    Raises:
        ConfigError: If the comparison has no such piece.
    """
    pieces = all_pieces(params, study)
    if name not in pieces:
        raise ConfigError(f"there is no piece {name}{did_you_mean(name, pieces)}")
    return pieces[name]


def missing_pieces(table: Path, pieces: dict[str, list[PlannedRun]]) -> list[str]:
    """Names of the pieces that have a run without rows in a table."""
    there = set(read_evidence(table)[RUN_COLUMNS].itertuples(index=False, name=None))
    return [name for name, runs in pieces.items() if not there.issuperset(tuple(run.labels.values()) for run in runs)]


def run_piece(params, run: PlannedRun, scratch: Path) -> pd.DataFrame:
    """Computes a run, and first what it needs: suites, base policy, proxies, critic.

    Args:
        params: All settings.
        run: The run.
        scratch: Folder for suites and proxies.

    Returns:
        Rows of `evidence.COLUMNS`: scores of `final_test`, and mean rewards of greedy answers by kind of question.
    """
    cell = run.cell
    [base] = execute_specs([base_policy_spec(params)], 1, "base policy")
    places: dict[str, str | None] = {"base": str(base / "base"), "suites": str(scratch / "suites")}
    save_suites(build_suites(params.tasks, params.real.dir, params.policy.name_or_path), places["suites"])
    pretraining = ""
    if cell.method == BASE:
        spec = planned = base_test_spec(params, cell.family, **places)
    else:
        places["proxies"] = _proxies(params, cell, places, scratch)
        fitting, file = pretraining_of(params, cell, run.seed), None
        if fitting is not None:
            [fitted] = execute_specs([replace(fitting, **places)], params.runtime, "critic pretraining")
            pretraining, file = fitted.name, fitted / CRITIC_FILE
        spec, planned = (replace(training_of(params, cell, run.seed, own), **places) for own in (file, None))
    [folder] = execute_specs([spec], params.runtime, "training")
    final, answers = (pd.read_csv(folder / f"{name}.csv") for name in ("final", "answers"))
    kinds = answers.groupby(["suite", "role", "kind"], sort=False)["reward"].mean().reset_index(name="value")
    kinds["metric"] = BY_KIND + kinds.pop("kind")
    table = pd.concat([final, kinds], ignore_index=True)
    return evidence_rows(table, run, folder, plan_key(planned, pretraining))


def _proxies(params, cell: Cell, places, scratch: Path) -> str | None:
    """A folder with the proxies that a cell's noise needs, as notebook 01 writes them; None if it needs none."""
    if not params.noises[cell.noise].proxies:
        return None
    folder = scratch / "noise" / cell.family
    folder.mkdir(parents=True, exist_ok=True)
    if "reward_model" in params.noises[cell.noise].proxies:
        [made] = execute_specs([reward_model_spec(params, cell.family, **places)], 1, "reward model")
        shutil.copy(made / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    return str(folder)


def add_rows(table: Path, rows: pd.DataFrame) -> None:
    """Puts the rows of runs into a table of the evidence, in place of older ones of the same runs."""
    known, runs = read_evidence(table), set(rows[RUN_COLUMNS].itertuples(index=False, name=None))
    other = [run not in runs for run in known[RUN_COLUMNS].itertuples(index=False, name=None)]
    write_evidence(table, pd.concat([known[other], rows], ignore_index=True) if any(other) else rows)
