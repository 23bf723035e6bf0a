"""The tuning grid: the same number of points for each method, on development seeds and without noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from dvpo_lib.common.settings_tree import get_dotted, merge_trees, nest_dotted
from dvpo_lib.experiments.run_store import collect_run_tables, execute_specs
from dvpo_lib.experiments.specs.critic_pretraining import critic_pretraining_spec
from dvpo_lib.experiments.specs.training import training_spec
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.reporting.statistics import complete_mean
from dvpo_lib.tasks.evaluation import EvaluationSettings

LEARNING_RATES = (5e-5, 1e-4, 2e-4)
SENSITIVE_SETTINGS: dict[str, tuple[str, tuple]] = {  # {method: (setting of `training` or of its critic, values)}
    "dvpo": ("critic.loss.tail_calibration", (0.01, 0.03, 0.1)),  # one reading of the paper's "risk interval weight"
    "dvpo_winsorised": ("training.lam", (0.9, 0.95, 1.0)),
    "ppo": ("training.epsilon", (0.1, 0.2, 0.3)),  # Schulman et al. 2017, table 1
    "robust_ppo": ("training.lam", (0.9, 0.95, 1.0)),  # reach of the worst case
    "grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Shao et al. 2024 take 0.04
    "dr_grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Liu et al. 2025 take 0
    "reinforce_pp": ("training.beta", (0.0, 0.01, 0.04)),
    "cql": ("critic.q.conservatism", (0.03, 0.1, 0.3)),  # weight of the penalty, Kumar et al. 2020
    "rfqi": ("critic.q.radius", (0.05, 0.1, 0.2)),  # of the uncertainty set, Panaganti et al. 2022
    "ppo_clip_reward": ("training.epsilon", (0.1, 0.2, 0.3)),
    "grpo_clip_reward": ("training.beta", (0.0, 0.01, 0.04)),
}
FIRST_DEVELOPMENT_SEED = 1000  # development seeds start here, far from the seeds of any comparison
WINNING_MARGIN = 0.01  # of reward; a smaller lead does not replace the current point
TUNING_MINUTES = 25  # for all methods with one seed on two cores


def grid_points(method: str) -> list[dict[str, float]]:
    """The nine points of a method, {dotted setting: value} each."""
    setting, values = SENSITIVE_SETTINGS[method]
    return [
        {"training.learning_rate": rate, setting: value} for rate, value in itertools.product(LEARNING_RATES, values)
    ]


def current_point(params, method: str) -> dict[str, float]:
    """The point of a method in params.yaml, {dotted setting: value}."""
    row = params.methods[method]
    training = {**dataclasses.asdict(params.training), **row.training}
    tree = {"training": training, "critic": dataclasses.asdict(params.critics[row.critic] or CriticSettings())}
    return {dotted: get_dotted(tree, dotted) for dotted in grid_points(method)[0]}


def apply_point(params, method: str, point: Mapping[str, Any]):
    """Settings of a method at one point.

    Args:
        params: Settings of the chain.
        method: Name of the method.
        point: {dotted setting: value}.

    Returns:
        Overrides of `training`, and the critic's settings or None.
    """
    row = params.methods[method]
    critic, nested = params.critics[row.critic], nest_dotted(point)
    if critic is not None:
        tree = merge_trees(dataclasses.asdict(critic), nested.get("critic", {}))
        critic = TypeAdapter(CriticSettings).validate_python(tree)
    return {**row.training, **nested.get("training", {})}, critic


def late_training_reward(curves: pd.DataFrame) -> float:
    """Mean true reward over the last quarter of a run's iterations."""
    return float(curves["reward_true"].tail(max(1, len(curves) // 4)).mean(skipna=False))


def plan_grid(params, methods: Iterable[str], seeds: int) -> tuple[list, list]:
    """Runs of the grid.

    Args:
        params: Settings of the chain.
        methods: Names of the methods.
        seeds: Development seeds per point.

    Returns:
        Training runs as (method, point, seed, training overrides, critic), and specs of critic pretraining.
    """
    runs = [
        (m, point, FIRST_DEVELOPMENT_SEED + s, *apply_point(params, m, point))
        for m in methods
        for point in grid_points(m)
        for s in range(seeds)
    ]
    critics = [
        critic_pretraining_spec(params, critic, "none", params.families[0], seed)
        for _, _, seed, _, critic in runs
        if critic is not None
    ]
    return runs, critics


def describe_grid(params, methods: Iterable[str], seeds: int) -> str:
    """Announcement of `train_grid`: number of runs and expected time. Arguments as in `plan_grid`."""
    methods = list(methods)
    runs, critics = plan_grid(params, methods, seeds)
    points = len(grid_points(methods[0]))
    distinct = len({repr(spec) for spec in critics})
    minutes = TUNING_MINUTES * len(runs) / sum(len(grid_points(m)) for m in SENSITIVE_SETTINGS)
    return (
        f"Trains {len(runs)} runs ({len(methods)} method{'s' * (len(methods) > 1)}, {points} points each, {seeds} "
        f"development seed{'s' * (seeds > 1)} a point), pretrains {distinct} critic{'s' * (distinct != 1)} before, "
        f"without noise on {params.families[0]}: about {minutes:.0f} minutes on two cores, less what the run store "
        "has already. An interrupted run resumes."
    )


def train_grid(params, methods: Iterable[str], seeds: int) -> pd.DataFrame:
    """Trains the grid. Arguments as in `plan_grid`.

    Returns:
        One row per method, point and seed: method, family, learning_rate, setting, value, seed, rollouts (scored ones,
        critic pretraining included), score.
    """
    family = params.families[0]
    runs, critics = plan_grid(params, methods, seeds)
    folders = iter(execute_specs(critics, params.runtime, "critics of the grid"))
    specs = []
    for method, _, seed, training, critic in runs:
        file = next(folders) / "critic.safetensors" if critic is not None else None
        spec = training_spec(params, method, method, "none", family, seed, critic, file, training)
        specs.append(
            dataclasses.replace(spec, evaluation=EvaluationSettings(prompts=1, k=1))
        )  # the final test is not used
    rows = []
    trained = execute_specs(specs, params.runtime, "the grid")
    for (method, point, seed, *_), folder in zip(runs, trained, strict=True):
        curves, setting = collect_run_tables([folder], "curves"), SENSITIVE_SETTINGS[method][0]
        rows.append(
            {
                "method": method,
                "family": family,
                "learning_rate": point["training.learning_rate"],
                "setting": setting,
                "value": point[setting],
                "seed": seed,
                "rollouts": int(curves["rollouts"].max()),
                "score": late_training_reward(curves),
            }
        )
    return pd.DataFrame(rows)


def choose_winners(table: pd.DataFrame, previous: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The winner of each method. Of equal points, the first one of the grid wins.

    Args:
        table: Table of `train_grid`.
        previous: {method: its point in params.yaml}.

    Returns:
        Columns method, setting, learning_rate, value, score; stood_learning_rate, stood_value and stood (the point in
        params.yaml and its score, NaN if it is not on the grid); changed.
    """
    rows = []
    cells = table.groupby(["method", "setting", "learning_rate", "value"], sort=False)["score"]
    means = complete_mean(cells).reset_index()
    for method, own in means.groupby("method", sort=False):
        setting = own["setting"].iloc[0]
        rate, value = previous[method]["training.learning_rate"], previous[method][setting]
        here = own[(own["learning_rate"] == rate) & (own["value"] == value)]
        if own["score"].isna().all():
            raise ValueError(f"{method}: every point of the grid has a missing score")
        best = own.loc[own["score"].idxmax()]  # a point with a missing score cannot win
        previous_score = here["score"].iloc[0] if len(here) else float("nan")
        changed = not best["score"] - previous_score < WINNING_MARGIN
        winner = best if changed else here.iloc[0]
        rows.append(
            {
                **winner[["method", "setting", "learning_rate", "value", "score"]],
                "stood_learning_rate": rate,
                "stood_value": value,
                "stood": previous_score,
                "changed": changed,
            }
        )
    return pd.DataFrame(rows)
