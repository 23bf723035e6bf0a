"""Interquartile means, stratified bootstrap intervals, probability of improvement.

Strata (training families) are resampled separately, so that each keeps its weight. Method: Agarwal et al. 2021, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).

Plain percentile intervals of few runs are too short: they cover the mean of five Gaussian runs in 84 % of cases in
place of 95 %. So their level is raised as in Hesterberg 2015, "What Teachers Should Know About the Bootstrap" (The
American Statistician 69(4)): a resample's variance is too small by (n - 1)/n, and Student's t takes the place of the
normal distribution. Coverage then, simulated: mean 0.92 at 5 runs and 0.95 at 10; interquartile mean 0.94 and 0.97.
Below five runs no resampling helps: an interval is the range of the runs, which covers the mean of a symmetric
distribution in 1 - 2^(1 - n) of cases, 0.50 at 2 runs and 0.88 at 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A point estimate with its interval; `low` and `high` are NaN if there are fewer than two runs."""

    point: float
    low: float
    high: float
    n: int


def interquartile_mean(values, axis: int = -1) -> np.ndarray:
    """The mean after cutting floor(n/4) values at either end; the plain mean if n < 4."""
    return stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def _checked(strata, name: str) -> list[np.ndarray]:
    """Strata as float vectors; one flat vector counts as one stratum."""
    if len(strata) and np.ndim(strata[0]) == 0:
        strata = [strata]
    arrays = [np.asarray(s, dtype=float) for s in strata]
    if not arrays or any(a.ndim != 1 or a.size == 0 for a in arrays):
        raise ValueError(f"{name}: expected one or more non-empty vectors of run scores")
    if any(not np.isfinite(a).all() for a in arrays):
        raise ValueError(f"{name}: a run score is not finite")
    return arrays


def expanded_level(sizes: Sequence[int], level: float) -> float:
    """The level of a percentile interval that covers about `level` (Hesterberg 2015), below 1.

    For several strata, which he does not treat, variances are averaged and degrees of freedom added up.

    Args:
        sizes: Runs of each stratum, at least 2.
        level: Nominal coverage.

    Example:
        >>> round(expanded_level([10], 0.95), 3)
        0.983
    """
    n = np.asarray(sizes, dtype=float)
    quantile = np.sqrt(np.mean(n / (n - 1))) * stats.t.ppf((1 + level) / 2, np.sum(n - 1))
    return min(1 - 2 * float(stats.norm.sf(quantile)), 1 - 1e-9)


def _percentile(data: tuple, statistic, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Stratified expanded percentile interval: each vector of `data` is resampled separately."""
    if any(d.size < 2 for d in data):
        return float("nan"), float("nan")
    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        confidence_level=expanded_level([d.size for d in data], level),
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def bootstrap_interval(
    strata, statistic=interquartile_mean, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A statistic of all runs with its stratified bootstrap interval.

    Args:
        strata: Vectors of run scores, one per stratum; or a single vector.
        statistic: f(values, axis) of the concatenated scores.
        level: Nominal coverage of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: If a stratum is empty or a score is not finite.
    """
    arrays = _checked(strata, "bootstrap_interval")

    def pooled(*samples, axis):
        return statistic(np.concatenate(samples, axis), axis=axis)

    low, high = _percentile(tuple(arrays), pooled, level, resamples, seed)
    return Estimate(float(pooled(*arrays, axis=-1)), low, high, sum(a.size for a in arrays))


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], clusters, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """A statistic of all records with a percentile interval over resampled clusters, such as problems.

    Records of a cluster are drawn together, since they are not independent.

    Args:
        statistic: f(weights (R, n)) -> (R,), for all resamples at once; a weight is the count of a record.
        clusters: (n,) cluster of each record.
        level: Nominal coverage of the interval.
        resamples: Number of bootstrap resamples R.
        seed: Seed of the resampling.

    Returns:
        The estimate; NaN if a record's value is missing.

    Raises:
        ValueError: If there are no records.
    """
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if not codes.size:
        raise ValueError("cluster_bootstrap: there are no records")
    count = codes.max() + 1
    point = float(statistic(np.ones((1, codes.size)))[0])
    if count < 2 or np.isnan(point):
        return Estimate(point, float("nan"), float("nan"), int(count))
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    values = statistic(drawn[:, codes].astype(float))  # (R,); NaN if a resample has no right or no wrong record
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(point, float(low), float(high), int(count))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y)/2 over all pairs, along the last axis."""
    return np.heaviside(x[..., :, None] - y[..., None, :], 0.5).mean((-2, -1))


def probability_of_improvement(x, y, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Probability that a run of X beats a run of Y: mean over strata of P(X > Y) + 0.5 P(X = Y).

    Source: Agarwal et al. 2021, equation 2.

    Args:
        x: Vectors of run scores, one per stratum; or a single vector.
        y: The same for the other method, with the same strata in the same order.
        level: Nominal coverage of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate in [0, 1], 0.5 for equal methods; `n` counts the runs of X.
    """
    xs, ys = _checked(x, "x"), _checked(y, "y")
    if len(xs) != len(ys):
        raise ValueError(f"x has {len(xs)} strata, y has {len(ys)}")

    def statistic(*samples, axis):
        half = len(samples) // 2
        return np.mean([_wins(a, b) for a, b in zip(samples[:half], samples[half:], strict=True)], axis=0)

    low, high = _percentile((*xs, *ys), statistic, level, resamples, seed)
    return Estimate(float(statistic(*xs, *ys, axis=-1)), low, high, sum(a.size for a in xs))
