"""Carries the real-data study out and scores its critics on held-out problems, whose labels are clean.

A score is a mean over seeds; its interval comes from resampling held-out problems (`statistics.cluster_bootstrap`), so
it holds for these trained critics and does not contain what another training run would change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from dvpo_lib.experiments.critic_scores import POSITIONS, load_critic, overall_distribution, score_predictions
from dvpo_lib.experiments.real.data import (
    FILES,
    SOLUTIONS,
    TEST,
    TRAIN,
    RealSettings,
    read_solutions,
    read_worked,
    sha256,
    split,
)
from dvpo_lib.experiments.real.runs import base_spec, critic_specs, cut
from dvpo_lib.experiments.run_store import execute
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.critic_training import predict_values
from dvpo_lib.models.policy import load_policy
from dvpo_lib.reporting.prediction_quality import weighted_auc
from dvpo_lib.reporting.statistics import Estimate, cluster_bootstrap

METRICS = ("auc", "auc_within", "brier", "crps", "cover50", "cover80", "cover90")
BASELINES = ("constant", "generator")  # predictions without a critic


@dataclass(frozen=True)
class RealStudy:
    """What notebook 02 shows.

    Attributes:
        files: name, hash (SHA-256, the first 12 digits), records.
        training, held: solutions by `data.read_solutions`, cut. cut: how many of them were.
        language_model: one row (of `runs.RealBaseSpec`).
        scores: critic, noise (rate), at, metric, value, low, high, n (problems).
        differences: of `difference_table`.
    """

    files: pd.DataFrame
    training: pd.DataFrame
    held: pd.DataFrame
    cut: int
    language_model: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    critics: Mapping[str, CriticSettings]
    folders: Mapping[tuple[str, float, int], Path]  # by critic, noise rate, seed
    base: Path


def run(
    cfg: RealSettings,
    critics: Mapping[str, CriticSettings],
    seed: int,
    workers: int | None = None,
    progress: str | None = "critics on real solutions",
    resamples: int = 1000,
) -> RealStudy | None:
    """The study with the critics of params.yaml; None where `real.dir` is not set.

    Raises:
        ValueError: a file is missing or malformed; the message names file and line.
    """
    if cfg.dir is None:
        return None
    root = Path(cfg.dir)
    solutions = read_solutions(root / SOLUTIONS)
    records = {name: len(read_worked(root / name, name)) for name in (TRAIN, TEST)}
    records[SOLUTIONS] = solutions["problem"].nunique()
    split(solutions, cfg.held_out)  # an empty side is found before anything is trained
    (base,) = execute([base_spec(cfg, seed)], 1, None)
    specs = critic_specs(cfg, critics, seed, base / "base")
    folders = dict(zip(specs, execute(list(specs.values()), workers, progress), strict=True))
    table, changed = cut(solutions, load_policy(str(base / "base"))[1], cfg.max_tokens)
    training, held = split(table, cfg.held_out)
    predictions = held_out_predictions(folders, held)
    files = pd.DataFrame(
        [{"file": name, "SHA-256": sha256(root / name)[:12], "records": records[name]} for name in FILES]
    )
    return RealStudy(
        files,
        training,
        held,
        changed,
        pd.read_csv(base / "language_model.csv"),
        score_table(predictions, held, resamples),
        difference_table(predictions, held, resamples),
        dict(critics),
        folders,
        base / "base",
    )


def held_out_predictions(
    folders: Mapping[tuple[str, float, int], Path], held: pd.DataFrame
) -> dict[tuple[str, float, str], list[pd.DataFrame]]:
    """{(critic, noise rate, position): one frame of `inspection.score_predictions` a seed}, baselines included.

    Baselines know the training labels as received: `constant` their distribution, `generator` that of each generator.
    They say the same at every token: their position is "any".
    """
    found: dict[tuple, list[pd.DataFrame]] = {}
    seen = set()
    for (name, rate, seed), folder in folders.items():
        places = load_file(folder / "held_out.safetensors")["quantiles"].numpy()
        for at in POSITIONS:
            found.setdefault((name, rate, at), []).append(score_predictions(places, held["correct"], at))
        if (rate, seed) in seen:
            continue
        seen.add((rate, seed))
        for baseline in BASELINES:
            guess = baseline_predictions(baseline, pd.read_csv(folder / "labels.csv"), held)
            found.setdefault((baseline, rate, "any"), []).append(score_predictions(guess, held["correct"]))
    return found


def baseline_predictions(name: str, labels: pd.DataFrame, held: pd.DataFrame) -> list[np.ndarray]:
    """A distribution for every held-out solution without looking at it: of all training labels, or of its generator's.

    Args:
        labels: of a critic's run: generator, received.
    """
    if name == "constant":
        return overall_distribution(labels["received"], len(held))
    rows = {g: overall_distribution(own["received"], 1)[0] for g, own in labels.groupby("generator")}
    return [rows[g] for g in held["generator"]]


def score_function(
    metric: str, frame: pd.DataFrame, held: pd.DataFrame, within: str = "generator"
) -> Callable[[np.ndarray], np.ndarray]:
    """f(weights (R, n)) -> (R,): a metric of one critic's predictions; brier and crps: smaller is better.

    `auc_within` is the mean over groups (generators, by default) of the AUC inside one: nothing is won by recognising
    them.

    Args:
        frame: of `inspection.score_predictions`. held: correct and the column `within`, row by row the same records.
    """
    mean, outcome = frame["mean"].to_numpy(), held["correct"].to_numpy()
    if metric == "auc":
        return lambda w: weighted_auc(mean, outcome, w)
    if metric == "auc_within":
        groups = list(held.groupby(within, sort=False).indices.values())
        return lambda w: np.mean([weighted_auc(mean[i], outcome[i], w[:, i]) for i in groups], axis=0)
    if metric == "brier":
        value = (mean - outcome) ** 2
    elif metric == "crps":
        value = frame["crps"].to_numpy()
    else:
        level = int(metric.removeprefix("cover")) / 100
        pit = frame["pit"].to_numpy()
        value = np.where(np.isnan(pit), np.nan, np.abs(pit - 0.5) <= level / 2)  # a point has no interval
    return lambda w: (w @ value) / w.sum(1)


def estimate(
    metric: str,
    frames: Sequence[pd.DataFrame],
    held: pd.DataFrame,
    resamples: int,
    minus: Sequence[pd.DataFrame] = (),
    unit: str = "problem",
    within: str = "generator",
) -> Estimate:
    """The metric's mean over seeds (minus that of other predictions of the same records) over resampled units.

    Args:
        frames, minus: a frame of `inspection.score_predictions` a seed. unit, within: columns of `held`.
    """
    plus = [score_function(metric, frame, held, within) for frame in frames]
    less = [score_function(metric, frame, held, within) for frame in minus]

    def statistic(weights: np.ndarray) -> np.ndarray:
        value = np.mean([f(weights) for f in plus], axis=0)
        return value - np.mean([f(weights) for f in less], axis=0) if less else value

    return cluster_bootstrap(statistic, held[unit], resamples=resamples)


def score_table(predictions: Mapping[tuple, list[pd.DataFrame]], held: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every metric of `held_out_predictions`: critic, noise, at, metric, value, low, high, n (problems)."""
    rows = []
    for (name, rate, at), frames in predictions.items():
        for metric in METRICS:
            if not metric.startswith("cover") or frames[0]["pit"].notna().all():
                rows.append((name, rate, at, metric, *estimate(metric, frames, held, resamples)))
    return pd.DataFrame(rows, columns=["critic", "noise", "at", "metric", "value", "low", "high", "n"])


def difference_table(
    predictions: Mapping[tuple, list[pd.DataFrame]], held: pd.DataFrame, resamples: int
) -> pd.DataFrame:
    """Differences on the same problems: contrast, noise, at, metric, value, low, high, n.

    Contrasts: "quantile - scalar" at every position, and "<critic>: last - first", what reading a solution adds.
    """
    pairs = {}
    for name, rate, at in predictions:
        if name == "quantile" and ("scalar", rate, at) in predictions:
            pairs["quantile - scalar", rate, at] = (name, rate, at), ("scalar", rate, at)
        if at == "last":
            pairs[f"{name}: last - first", rate, at] = (name, rate, at), (name, rate, "first")
    rows = [
        (*key, metric, *estimate(metric, predictions[plus], held, resamples, minus=predictions[less]))
        for key, (plus, less) in pairs.items()
        for metric in ("auc", "auc_within", "brier")
    ]
    return pd.DataFrame(rows, columns=["contrast", "noise", "at", "metric", "value", "low", "high", "n"])


def right_and_wrong(held: pd.DataFrame, longest: int = 420) -> pd.DataFrame:
    """A right and a wrong solution of one held-out problem: the first one that has both, each of at most `longest`
    characters. Chosen by the data alone, never by what a critic says."""
    short = held[held["completion"].str.len() <= longest]
    both = short.groupby("problem")["correct"].nunique() == 2
    own = short[short["problem"] == both[both].index[0]] if both.any() else held
    return own.sort_values("correct", ascending=False, kind="stable").drop_duplicates("correct")


def values_of(study: RealStudy, name: str, rate: float, seed: int, solutions: pd.DataFrame) -> list[dict]:
    """A critic along solutions: for each one dicts with tokens (readable pieces of text), quantiles (T, M), correct."""
    policy, tokenizer = load_policy(str(study.base))
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
