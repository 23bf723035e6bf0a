"""Comparisons of methods over paired runs: tests, correction for their number, detectable differences, verdicts.

Runs of two methods are a pair if they share noise, family and seed. They then share the random numbers of the test and,
if both methods draw one answer to each prompt, the order of prompts. Methods with groups and offline methods see other
prompts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dvpo_lib.reporting.statistics.runs import paired_differences, run_scores

FEWEST_SEEDS = 10  # below which no claim is made
NO_CLAIM = "no claim"  # how verdicts begin that too few seeds or lost runs leave open
SIGNIFICANCE = 0.05  # of a family of comparisons, after correction
POWER = 0.8  # chance to see the smallest detectable difference
PERMUTATIONS = 9999
EXACT_UP_TO = 13  # pairs: all 2^n sign changes are tried
SIMULATED_STUDIES = 1000  # to find a detectable difference


def sign_flip_test(differences, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences being 0, by changes of sign.

    The test is exact up to 13 pairs and draws 9,999 changes beyond. It assumes that a difference is as likely as its
    negative, not a normal distribution.

    Args:
        differences: (n,) paired differences; n of at least 2.
        seed: Of the draws.
    """
    x = np.asarray(differences, dtype=float)
    if not np.any(x):
        return 1.0
    exact = len(x) <= EXACT_UP_TO
    found = stats.permutation_test(
        (x,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def smallest_p_value(pairs: int) -> float:
    """The p-value of `sign_flip_test` if all of so few pairs agree, up to 13: two of the 2^n changes of sign.

    Example:
        >>> smallest_p_value(5)
        0.0625
    """
    return 2 / 2**pairs


def holm_correction(p_values: Sequence[float], planned: int | None = None) -> np.ndarray:
    """P-values corrected for their number (Holm 1979): the chance of any false claim stays below the level.

    Args:
        p_values: (k,) p-values.
        planned: The number of comparisons that were planned, at least k; default: k. Those without a p-value yet count
            as 1, so that a corrected value can only fall when they are known.

    Returns:
        (k,) corrected p-values.
    """
    p = np.asarray(p_values, dtype=float)
    order, count = np.argsort(p), planned or len(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(count, count - len(p), -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def detectable_difference(differences, level: float = SIGNIFICANCE, power: float = POWER) -> float:
    """The smallest mean difference that `sign_flip_test` would show with chance `power`, for pairs scattered as these.

    Args:
        differences: (n,) paired differences.
        level: Two-sided level of the test.
        power: Chance of a claim if the difference is real.

    Returns:
        Their standard deviation times `_detectable_effect`; NaN below 2 pairs; infinite if n pairs have too few changes
        of sign to reach the level.
    """
    x = np.asarray(differences, dtype=float)
    if len(x) < 2:
        return float("nan")
    effect = _detectable_effect(len(x), level, power)
    return effect if np.isinf(effect) else float(x.std(ddof=1) * effect)


@functools.cache
def _detectable_effect(n: int, level: float, power: float) -> float:
    """The mean of n normal differences of variance 1 that the test shows with chance `power`; by simulation."""
    random = np.random.default_rng(0)
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.vstack([np.ones(n), random.choice([-1, 1], (1999, n))])
    if 2 / len(signs) > level:
        return float("inf")
    draws = random.standard_normal((n, SIMULATED_STUDIES))
    centred, shift = signs @ draws, signs.sum(1, keepdims=True)  # of a study with mean m: centred + m * shift

    def shown(mean: float) -> float:
        sums = np.abs(centred + mean * shift)
        return float(((sums >= sums[0] - 1e-9).mean(0) <= level).mean())

    return float(optimize.bisect(lambda mean: shown(mean) - power, 0.0, 20.0, xtol=1e-3))


def equal_methods(runs: pd.DataFrame, noise: str, metric: str = "sampled") -> list[tuple[str, str]]:
    """Pairs of methods with equal scores in every run under a noise: one does nothing that the other does not.

    Args:
        runs: As in `run_scores`.
        noise: A noise of these.
        metric: The metric.
    """
    keys, own = ["family", "seed", "suite"], runs[(runs["noise"] == noise) & (runs["metric"] == metric)]
    wide = own.pivot_table(index=keys, columns="method", values="value", sort=False)
    pairs = itertools.combinations([method for method in own["method"].unique() if method in wide], 2)
    return [(a, b) for a, b in pairs if wide[a].equals(wide[b])]


def run_pairs(scores: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """Scores of two methods side by side, a row per pair of runs and role; pairs that lack a score are left out.

    Args:
        scores: Of `run_scores`.
        method: One method.
        baseline: The other.

    Returns:
        Columns noise, family, seed, role, own, base, difference.
    """
    keys = ["noise", "family", "seed", "role"]
    own, base = (scores[scores["method"] == name][[*keys, "value"]] for name in (method, baseline))
    both = own.merge(base, on=keys, suffixes=("_own", "_base")).dropna()
    both = both.rename(columns={"value_own": "own", "value_base": "base"})
    return both.assign(difference=both["own"] - both["base"])


def role_differences(runs: pd.DataFrame, own: str, rivals: Iterable[str], metric: str = "sampled") -> pd.DataFrame:
    """The score of `own` minus that of each rival, on each kind of test set, with 95 % intervals over seeds.

    Args:
        runs: Rows of the comparison, of one family.
        own: The method.
        rivals: The methods to compare it with.
        metric: The metric to compare.

    Returns:
        Columns noise, method, role, difference, low, high (shares) and n, as of `paired_differences`, and
        corrected, the p-value of a difference on one kind of test sets (Holm over all of them, of one rival).
    """
    table = paired_differences(runs[runs["method"].isin([own, *rivals])], own, metric, overall=True)
    table = table.assign(difference=-table["difference"], low=-table["high"], high=-table["low"], corrected=np.nan)
    scores = run_scores(runs, metric)
    for rival, rows in table[table["role"] != "ALL"].dropna(subset="difference").groupby("method", sort=False):
        pairs = run_pairs(scores, own, rival).groupby(["noise", "role"])["difference"]
        p = [sign_flip_test(pairs.get_group((r.noise, r.role))) if r.n > 1 else 1.0 for r in rows.itertuples()]
        table.loc[rows.index, "corrected"] = holm_correction(p)
    return table


def claim_verdict(difference: float, p: float, n: int, lost: int = 0) -> str:
    """The verdict on "the method scores higher": confirmed, refuted, not confirmed, or no claim below 10 seeds.

    Args:
        difference: Mean over pairs.
        p: Corrected p-value.
        n: Pairs.
        lost: Further pairs in which a run diverged: it has no score, and without it the rest would be a selection.
    """
    if lost:
        return f"{NO_CLAIM}: {lost} of {n + lost} lost"
    if n < FEWEST_SEEDS or np.isnan(p):
        return f"{NO_CLAIM}: {n} of {FEWEST_SEEDS} seeds"
    if p >= SIGNIFICANCE:
        return "not confirmed"
    return "confirmed" if difference > 0 else "refuted"


def performance_profile(final: pd.DataFrame, thresholds, metric: str = "sampled") -> pd.DataFrame:
    """Share of runs that score at least each threshold (Agarwal et al. 2021, section 4.2), for each role and ALL.

    A run without a score is one that diverged: it is below every threshold.

    Args:
        final: As in `run_scores`.
        thresholds: Scores, 0 to 1.
        metric: The metric.

    Returns:
        Columns method, noise, role, threshold, share, n.
    """
    rows = []
    for key, group in run_scores(final, metric, overall=True).groupby(["method", "noise", "role"], sort=False):
        values = group["value"].to_numpy()
        rows += [(*key, t, float((values >= t).mean()), len(values)) for t in thresholds]
    return pd.DataFrame(rows, columns=["method", "noise", "role", "threshold", "share", "n"])
