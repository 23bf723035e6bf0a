"""The study of solutions: trains critics under label noise and scores them on held-out problems with clean labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from dvpo_lib.experiments.critic_scores import overall_distribution
from dvpo_lib.experiments.real.files import GSM8K_FILES, SOLUTIONS_FILE, TEST_FILE, TRAIN_FILE, file_table
from dvpo_lib.experiments.real.score_tables import METRIC_LABELS, ScoreDesign, difference_table, score_table
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.real.solutions.data import (
    read_solutions,
    read_worked_problems,
    split_by_problem,
    truncate_texts,
)
from dvpo_lib.experiments.real.solutions.specs import solution_backbone_spec, solution_critic_specs
from dvpo_lib.experiments.run_store import SweepSettings, execute_specs
from dvpo_lib.experiments.specs.critic_test import POSITIONS, load_critic, score_predictions
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.critic_training import predict_values
from dvpo_lib.models.policy import load_policy

SOLUTION_DESIGN = ScoreDesign(("critic", "noise", "at"), tuple(METRIC_LABELS), unit="problem", group="generator")
BASELINES = ("constant", "generator")  # predictions without a critic


@dataclass(frozen=True)
class SolutionStudy:
    """Results of the study for notebook 02.

    Attributes:
        files: Table of `file_table`.
        training: Truncated training solutions, columns of `read_solutions`.
        held: Truncated held-out solutions.
        cut: Number of truncated rows.
        language_model: The one row of language_model.csv.
        scores: Columns critic, noise (rate), at, metric, value, low, high, n (problems).
        differences: Columns contrast, noise, at, metric, value, low, high, n.
        critics: Settings by critic.
        folders: Run folder by (critic, noise rate, seed).
        backbone: Folder of the backbone.
    """

    files: pd.DataFrame
    training: pd.DataFrame
    held: pd.DataFrame
    cut: int
    language_model: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    critics: Mapping[str, CriticSettings]
    folders: Mapping[tuple[str, float, int], Path]
    backbone: Path


def run_solution_study(
    cfg: RealSettings,
    critics: Mapping[str, CriticSettings],
    seed: int,
    workers: SweepSettings | int | None = None,
    progress: str | None = "critics on real solutions",
    resamples: int = 1000,
) -> SolutionStudy | None:
    """Runs the study.

    Args:
        cfg: Settings of the study.
        critics: {name: settings} of the critics in params.yaml.
        seed: First seed.
        workers: Where runs are computed: argument `runtime` of `execute_specs`.
        progress: Label of the progress bar. No bar if None.
        resamples: Bootstrap resamples.

    Returns:
        The results, or None if `real.dir` is not set or `real.studies` is off.

    Raises:
        ValueError: If a file is missing or malformed. The message names file and line.
    """
    if cfg.dir is None or not cfg.studies:
        return None
    root = Path(cfg.dir)
    solutions = read_solutions(root / SOLUTIONS_FILE)
    records = {name: len(read_worked_problems(root / name, name)) for name in (TRAIN_FILE, TEST_FILE)}
    records[SOLUTIONS_FILE] = solutions["problem"].nunique()
    split_by_problem(solutions, cfg.held_out)  # fails on an empty part before anything is trained
    (base,) = execute_specs([solution_backbone_spec(cfg, seed)], 1, None)
    specs = solution_critic_specs(cfg, critics, seed, base / "base")
    folders = dict(zip(specs, execute_specs(list(specs.values()), workers, progress), strict=True))
    table, changed = truncate_texts(solutions, load_policy(str(base / "base"))[1], cfg.max_tokens)
    training, held = split_by_problem(table, cfg.held_out)
    predictions = held_out_predictions(folders, held)
    return SolutionStudy(
        files=file_table({name: root / name for name in GSM8K_FILES}, records),
        training=training,
        held=held,
        cut=changed,
        language_model=pd.read_csv(base / "language_model.csv"),
        scores=score_table(SOLUTION_DESIGN, predictions, held, resamples),
        differences=difference_table(SOLUTION_DESIGN, solution_contrasts(predictions), predictions, held, resamples),
        critics=dict(critics),
        folders=folders,
        backbone=base / "base",
    )


def held_out_predictions(
    folders: Mapping[tuple[str, float, int], Path], held: pd.DataFrame
) -> dict[tuple[str, float, str], list[pd.DataFrame]]:
    """Scored predictions of critics and baselines.

    Baselines know the training labels as received: `constant` their distribution, `generator` that of each generator.
    They predict the same at every token, so their position is "any".

    Args:
        folders: Run folder by (critic, noise rate, seed).
        held: Held-out solutions.

    Returns:
        {(critic, noise rate, position): one frame of `score_predictions` per seed}.
    """
    found: dict[tuple, list[pd.DataFrame]] = {}
    seen = set()
    for (name, rate, seed), folder in folders.items():
        places = load_file(folder / "held_out.safetensors")["quantiles"].numpy()  # (n, 3, M)
        for at in POSITIONS:
            found.setdefault((name, rate, at), []).append(score_predictions(places, held["correct"], at))
        if (rate, seed) in seen:  # critics of one rate and seed share their labels
            continue
        seen.add((rate, seed))
        for baseline in BASELINES:
            guess = baseline_predictions(baseline, pd.read_csv(folder / "labels.csv"), held)
            found.setdefault((baseline, rate, "any"), []).append(score_predictions(guess, held["correct"]))
    return found


def baseline_predictions(name: str, labels: pd.DataFrame, held: pd.DataFrame) -> list[np.ndarray]:
    """The distribution of training labels as the prediction for each held-out solution.

    Args:
        name: "constant" for all training labels, "generator" for those of the solution's generator.
        labels: labels.csv of a run, with generator and received.
        held: Held-out solutions.

    Returns:
        One array (1, M) per solution.
    """
    if name == "constant":
        return overall_distribution(labels["received"], len(held))
    rows = {g: overall_distribution(own["received"], 1)[0] for g, own in labels.groupby("generator")}
    return [rows[g] for g in held["generator"]]


def solution_contrasts(predictions: Mapping[tuple, list]) -> Iterator[tuple[tuple, str, tuple, tuple]]:
    """Contrasts for `difference_table`: "quantile - scalar" at each position, and "<critic>: last - first"."""
    pairs = {}
    for name, rate, at in predictions:
        if name == "quantile" and ("scalar", rate, at) in predictions:
            pairs["quantile - scalar", rate, at] = (name, rate, at), ("scalar", rate, at)
        if at == "last":
            pairs[f"{name}: last - first", rate, at] = (name, rate, at), (name, rate, "first")
    for labels, (plus, minus) in pairs.items():
        for metric in ("auc", "auc_within", "brier"):
            yield labels, metric, plus, minus


def right_and_wrong_solution(held: pd.DataFrame, longest: int = 420) -> pd.DataFrame:
    """A right and a wrong solution of the first held-out problem that has both. Critics have no say in the choice.

    Args:
        held: Held-out solutions.
        longest: Characters of a solution at most.
    """
    short = held[held["completion"].str.len() <= longest]
    both = short.groupby("problem")["correct"].nunique() == 2
    own = short[short["problem"] == both[both].index[0]] if both.any() else held
    return own.sort_values("correct", ascending=False, kind="stable").drop_duplicates("correct")


def values_along_solutions(
    study: SolutionStudy, name: str, rate: float, seed: int, solutions: pd.DataFrame
) -> list[dict]:
    """Values of one critic at every token of some solutions.

    Args:
        study: The results.
        name: Critic.
        rate: Noise rate of its training labels.
        seed: Its seed.
        solutions: Rows of `study.held`.

    Returns:
        One dictionary per solution: tokens (readable), quantiles (T, M), correct, prompt, generator.
    """
    policy, tokenizer = load_policy(str(study.backbone))
    critic = load_critic(policy, study.critics[name], study.folders[name, rate, seed] / "critic.safetensors")
    values = predict_values(critic, solutions.to_dict("records"), tokenizer)
    found = []
    for row, value in zip(solutions.itertuples(), values, strict=True):
        ids = tokenizer(row.completion, add_special_tokens=False).input_ids
        tokens = [tokenizer.decode([i]).strip(" ").replace("\n", "⏎") or "␣" for i in ids]
        found.append(
            {
                "tokens": [*tokens, "<eos>"],
                "quantiles": value,
                "correct": row.correct,
                "prompt": row.prompt,
                "generator": row.generator,
            }
        )
    return found
