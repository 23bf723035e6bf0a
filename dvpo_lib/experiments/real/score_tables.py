"""Scores of critics on held-out records, their differences and their tables: the part that both studies share.

A score is a mean over seeds. Its interval comes from a bootstrap over problems or tasks
(`statistics.cluster_bootstrap`), so it holds for these trained critics and leaves out the variation between training
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dvpo_lib.reporting.prediction_quality import weighted_auc
from dvpo_lib.reporting.prose import percent_text
from dvpo_lib.reporting.statistics import Estimate, cluster_bootstrap

# {(critic, ..., position): one frame of `score_predictions` per seed}
Predictions = Mapping[tuple, Sequence[pd.DataFrame]]

METRIC_LABELS = {
    "auc": "AUC",
    "auc_within": "AUC in one generator",
    "brier": "Brier",
    "crps": "CRPS",
    "cover50": "inside 50%",
    "cover80": "inside 80%",
    "cover90": "inside 90%",
}
ESTIMATE_COLUMNS = ("value", "low", "high", "n")


@dataclass(frozen=True)
class ScoreDesign:
    """How a study scores its critics.

    Attributes:
        keys: Names of the parts of a key of `Predictions`; the first one is "critic".
        metrics: Metrics of the score table, keys of METRIC_LABELS.
        unit: Column of the records that identifies the resampled units.
        group: Column of the records; `auc_within` is the mean over its groups.
    """

    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    unit: str
    group: str


def metric_statistic(
    metric: str, frame: pd.DataFrame, records: pd.DataFrame, group: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A metric of one critic as a function of record weights. Smaller is better for brier and crps.

    Args:
        metric: Key of METRIC_LABELS. `auc_within` is the mean AUC inside the groups, so that recognising a group
            gains nothing.
        frame: Frame of `score_predictions`, n rows.
        records: The same records in the same order, with `correct` and the column `group`.
        group: Column of the groups of `auc_within`.

    Returns:
        f(weights (R, n)) -> (R,).
    """
    mean, outcome = frame["mean"].to_numpy(), records["correct"].to_numpy()
    if metric == "auc":
        return lambda w: weighted_auc(mean, outcome, w)
    if metric == "auc_within":
        groups = list(records.groupby(group, sort=False).indices.values())
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


def estimate_metric(
    design: ScoreDesign,
    metric: str,
    frames: Sequence[pd.DataFrame],
    records: pd.DataFrame,
    resamples: int,
    minus: Sequence[pd.DataFrame] = (),
) -> Estimate:
    """A metric, or a paired difference of it, averaged over seeds, with its bootstrap interval.

    Args:
        design: Scoring of the study.
        metric: Key of METRIC_LABELS.
        frames: One frame of `score_predictions` per seed.
        records: The held-out records.
        resamples: Bootstrap resamples.
        minus: Frames of other predictions of the same records. If given, their metric is subtracted.
    """
    plus = [metric_statistic(metric, frame, records, design.group) for frame in frames]
    less = [metric_statistic(metric, frame, records, design.group) for frame in minus]

    def statistic(weights: np.ndarray) -> np.ndarray:
        value = np.mean([f(weights) for f in plus], axis=0)
        return value - np.mean([f(weights) for f in less], axis=0) if less else value

    return cluster_bootstrap(statistic, records[design.unit], resamples=resamples)


def score_table(design: ScoreDesign, predictions: Predictions, records: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every metric of every prediction. Point predictions have no coverage.

    Returns:
        Columns: the keys of the design, metric, value, low, high, n (resampled units).
    """
    rows = [
        (*key, metric, *estimate_metric(design, metric, frames, records, resamples))
        for key, frames in predictions.items()
        for metric in design.metrics
        if not metric.startswith("cover") or frames[0]["pit"].notna().all()
    ]
    return pd.DataFrame(rows, columns=[*design.keys, "metric", *ESTIMATE_COLUMNS])


def difference_table(
    design: ScoreDesign,
    contrasts: Iterable[tuple[tuple, str, tuple, tuple]],
    predictions: Predictions,
    records: pd.DataFrame,
    resamples: int,
) -> pd.DataFrame:
    """Paired differences of predictions of the same records.

    Args:
        design: Scoring of the study.
        contrasts: (labels, metric, key, subtracted key) each. Labels are the name of the contrast and all parts of
            the key but the critic.
        predictions: Predictions by key.
        records: The held-out records.
        resamples: Bootstrap resamples.

    Returns:
        Columns contrast, the other keys of the design, metric, value, low, high, n.
    """
    rows = [
        (*labels, metric, *estimate_metric(design, metric, predictions[plus], records, resamples, predictions[minus]))
        for labels, metric, plus, minus in contrasts
    ]
    return pd.DataFrame(rows, columns=["contrast", *design.keys[1:], "metric", *ESTIMATE_COLUMNS])


def score_text(row, digits: int = 2) -> str:
    """ "0.70 [0.67, 0.73]" of a row with value, low and high, without line breaks."""
    span = f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if np.isfinite(row["low"]) else ""
    return f"{row['value']:.{digits}f}{span}".replace(" ", "\N{NO-BREAK SPACE}")


def score_cells(scores: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Scores as texts, one row per key and one column per metric: intervals, coverage as a percentage."""
    scores = scores.copy()
    scores["cell"] = [
        percent_text(r["value"])
        if r["metric"].startswith("cover")
        else score_text(r, 2 if r["metric"].startswith("auc") else 3)
        for _, r in scores.iterrows()
    ]
    return scores.pivot(index=list(keys), columns="metric", values="cell")


def metric_tree(scores: pd.DataFrame, keys: Sequence[str]) -> dict:
    """Scores as nested dictionaries for `dvc metrics show`: {key: ... {metric: value}}."""
    tree: dict = {}
    for row in scores.to_dict("records"):
        node = tree
        for key in keys:
            node = node.setdefault(row[key], {})
        node[row["metric"]] = row["value"]
    return tree


def seed_count(count: int) -> str:
    """ "1 seed", "2 seeds"."""
    return f"{count} seed{'s' * (count > 1)}"
