"""The study of conversations: critics cross-validated by task and scored on held-out tasks.

Each task is held out in one fold and predicted by the critics of that fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from dvpo_lib.experiments.critic_scores import overall_distribution
from dvpo_lib.experiments.real.files import file_table
from dvpo_lib.experiments.real.score_tables import (
    Predictions,
    ScoreDesign,
    difference_table,
    estimate_metric,
    score_table,
)
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.real.trajectories.data import (
    assign_folds,
    find_trajectories,
    read_trajectories,
    tokenize_turns,
)
from dvpo_lib.experiments.real.trajectories.specs import trajectory_backbone_specs, trajectory_critic_specs
from dvpo_lib.experiments.run_store import SweepSettings, collect_run_tables, execute_specs
from dvpo_lib.experiments.specs.critic_test import POSITIONS, score_predictions
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import load_policy
from dvpo_lib.reporting.statistics import Estimate

# The AUC is the mean over folds. A fold's constant is low if its held-out tasks are good, so pooled over folds a
# constant would score below 0.5.
TRAJECTORY_DESIGN = ScoreDesign(
    keys=("critic", "at"),
    metrics=("auc_within", "brier", "crps", "cover50", "cover80", "cover90"),
    unit="task",
    group="fold",
)


@dataclass(frozen=True)
class TrajectoryStudy:
    """Results of the study for notebook 02.

    Attributes:
        file: Table of `file_table`, one row.
        table: Conversations, columns of `read_trajectories` and the fold that holds each one out.
        cut: Conversations longer than `max_tokens`, by the tokenizer of any fold.
        max_tokens: Tokens of a conversation at most.
        language_model: language_model.csv, one row per fold.
        quantiles: {critic: (seeds, n, 3, M)} predicted at the first, middle and last token.
        scores: Columns critic, at ("any" without a critic), metric, value, low, high, n (tasks).
        differences: Columns contrast, at, metric, value, low, high, n.
        siblings: AUC of knowing the outcomes of the task's other trials.
    """

    file: pd.DataFrame
    table: pd.DataFrame
    cut: int
    max_tokens: int
    language_model: pd.DataFrame
    quantiles: Mapping[str, np.ndarray]
    scores: pd.DataFrame
    differences: pd.DataFrame
    siblings: Estimate


def run_trajectory_study(
    cfg: RealSettings,
    critics: Mapping[str, CriticSettings],
    seed: int,
    workers: SweepSettings | int | None = None,
    progress: str | None = "critics on conversations",
    resamples: int = 1000,
) -> TrajectoryStudy | None:
    """Runs the study. Arguments as in `run_solution_study`.

    Returns:
        The results, or None if `real.dir` is not set or holds no conversations.

    Raises:
        ValueError: If the file is malformed or has too few tasks. The message names file and line.
    """
    path, own = find_trajectories(cfg.dir if cfg.studies else None), cfg.trajectories
    if path is None:
        return None
    table = read_trajectories(path)
    table["fold"] = assign_folds(table["task"], own.folds, seed)  # fails on too few tasks before anything is trained
    backbones = trajectory_backbone_specs(cfg, seed, path)
    bases = execute_specs(backbones, workers, progress and "language models of the folds")
    specs = trajectory_critic_specs(cfg, critics, seed, path, [base / "base" for base in bases])
    folders = dict(zip(specs, execute_specs(list(specs.values()), workers, progress), strict=True))
    quantiles = {
        name: np.stack([held_out_quantiles(table, folders, name, s) for s in range(seed, seed + own.seeds)])
        for name in critics
    }
    predictions = conversation_predictions(quantiles, table)
    cut = max(tokenize_turns(table, load_policy(str(base / "base"))[1], own.max_tokens)[1] for base in bases)
    name = f"{path.parent.name}/{path.name}"
    return TrajectoryStudy(
        file=file_table({name: path}, {name: len(table)}),
        table=table,
        cut=cut,
        max_tokens=own.max_tokens,
        language_model=collect_run_tables(bases, "language_model"),
        quantiles=quantiles,
        scores=score_table(TRAJECTORY_DESIGN, predictions, table, resamples),
        differences=difference_table(
            TRAJECTORY_DESIGN, trajectory_contrasts(predictions), predictions, table, resamples
        ),
        siblings=estimate_metric(TRAJECTORY_DESIGN, "auc_within", [sibling_success(table)], table, resamples),
    )


def held_out_quantiles(
    table: pd.DataFrame, folders: Mapping[tuple[str, int, int], Path], name: str, seed: int
) -> np.ndarray:
    """Predictions for every conversation by the critic of the fold that holds its task out.

    Args:
        table: Conversations with their fold.
        folders: Run folder by (critic, seed, fold).
        name: Critic.
        seed: Its seed.

    Returns:
        (n, 3, M) quantiles at the first, middle and last token.
    """
    parts = {
        fold: load_file(folders[name, seed, fold] / "held_out.safetensors")["quantiles"].numpy()
        for fold in np.unique(table["fold"])
    }
    found = np.empty((len(table), *parts[0].shape[1:]), dtype=np.float32)
    for fold, part in parts.items():
        found[table["fold"] == fold] = part  # both in the table's order
    return found


def constant_predictions(table: pd.DataFrame) -> list[np.ndarray]:
    """The baseline: the distribution of outcomes of the fold's training tasks, one array (1, M) per conversation."""
    rows = {f: overall_distribution(table.loc[table["fold"] != f, "correct"], 1)[0] for f in table["fold"].unique()}
    return [rows[f] for f in table["fold"]]


def sibling_success(table: pd.DataFrame) -> pd.DataFrame:
    """The share of successes among the *other* trials of a task as a prediction (column mean).

    It shows how much the task alone says about the outcome.
    """
    group = table.groupby("task")["correct"]
    others = group.transform("size") - 1
    return pd.DataFrame({"mean": (group.transform("sum") - table["correct"]) / others.clip(lower=1)})


def conversation_predictions(quantiles: Mapping[str, np.ndarray], table: pd.DataFrame) -> Predictions:
    """Scored predictions of the critics and of the constant.

    Args:
        quantiles: {critic: (seeds, n, 3, M)}.
        table: Conversations with their fold.

    Returns:
        {(critic, position): one frame of `score_predictions` per seed}. The position of the constant is "any".
    """
    found = {
        (name, at): [score_predictions(places, table["correct"], at) for places in seeds]
        for name, seeds in quantiles.items()
        for at in POSITIONS
    }
    return {**found, ("constant", "any"): [score_predictions(constant_predictions(table), table["correct"])]}


def trajectory_contrasts(predictions: Predictions) -> Iterator[tuple[tuple, str, tuple, tuple]]:
    """Contrasts for `difference_table`: "<critic>: last - first" (the gain from reading) and "<critic> - constant"."""
    for name in dict.fromkeys(name for name, at in predictions if at != "any"):
        for metric in ("auc_within", "brier"):
            yield (f"{name}: last - first", "last"), metric, (name, "last"), (name, "first")
        for at in POSITIONS:
            yield (f"{name} - constant", at), "brier", (name, at), ("constant", "any")
