"""Quality of predicted returns: explained variance, coverage of intervals, area under the ROC curve."""

from __future__ import annotations

import numpy as np
import pandas as pd


def explained_variance(predicted, outcome) -> float:
    """1 - Var(outcome - predicted)/Var(outcome): 1 is perfect, 0 a constant; NaN if all outcomes are equal."""
    predicted, outcome = np.asarray(predicted, dtype=float), np.asarray(outcome, dtype=float)
    spread = outcome.var()
    return float(1 - (outcome - predicted).var() / spread) if spread > 0 else float("nan")


def interval_coverage(pit, levels=None) -> pd.DataFrame:
    """Share of outcomes inside the central prediction interval of each level.

    Args:
        pit: (n,) randomised PIT values in [0, 1]; uniform if the predicted distribution is right.
        levels: Nominal levels, 0.05, 0.10 ... 0.95 by default.

    Returns:
        Columns level, covered, low, high (Wilson 95 % interval for independent outcomes); NaN if a PIT value is
        missing.
    """
    from scipy import stats  # slow to import, and settings classes lead here

    pit = np.asarray(pit, dtype=float)
    levels = np.arange(1, 20) / 20 if levels is None else np.asarray(levels, dtype=float)
    if np.isnan(pit).any() or not pit.size:
        return pd.DataFrame({"level": levels, "covered": np.nan, "low": np.nan, "high": np.nan})
    inside = [int((np.abs(pit - 0.5) <= level / 2).sum()) for level in levels]
    ci = [stats.binomtest(k, pit.size).proportion_ci(method="wilson") for k in inside]
    return pd.DataFrame(
        {
            "level": levels,
            "covered": np.array(inside) / pit.size,
            "low": [c.low for c in ci],
            "high": [c.high for c in ci],
        }
    )


def weighted_auc(score, outcome, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, P(S1 > S0) + P(S1 = S0)/2, for each row of weights.

    Equals scikit-learn's `roc_auc_score(outcome, score, sample_weight=row)`, for all rows at once.

    Args:
        score: (n,) predictions.
        outcome: (n,) 0 or 1.
        weights: (R, n), non-negative.

    Returns:
        (R,) areas; NaN if a row leaves only right or only wrong records, or a prediction or an outcome is missing.
    """
    score, outcome = np.asarray(score, dtype=float), np.asarray(outcome, dtype=float)
    if np.isnan(score).any() or np.isnan(outcome).any():
        return np.full(len(weights), np.nan)
    right = outcome >= 0.5
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # first record of each group of equal scores
    ordered = weights[:, order]
    won = np.add.reduceat(ordered * right[order], starts, axis=1)
    lost = np.add.reduceat(ordered * ~right[order], starts, axis=1)
    wins = (won * (lost.cumsum(1) - lost / 2)).sum(1)
    with np.errstate(invalid="ignore"):
        return wins / (won.sum(1) * lost.sum(1))
