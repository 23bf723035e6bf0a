"""Scores of runs: means over test sets inside a run, summaries over runs, comparisons with a baseline, curves.

The unit is a *run* (one training seed of one family), never an evaluated prompt: the suites of a role are first
averaged inside a run. A missing value is never averaged away. A run without a score on every test set has no mean, and
a group that holds such a run is shown as missing (NaN); `missing_scores` names the runs and the test sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dvpo_lib.reporting.statistics.bootstrap import Estimate, bootstrap_interval, probability_of_improvement

RUN = ["method", "noise", "family", "seed"]  # the columns that identify a run


def complete_mean(groups) -> pd.Series | pd.DataFrame:
    """The mean of each group of a pandas groupby, NaN if a value of the group is missing."""
    whole = groups.count().eq(groups.size(), axis=0)
    return groups.mean().where(whole)


def _scores_by_suite(final: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric; a run gets a row without a value for every test set that it lacks.

    A run should have the test sets that any run of its family has.
    """
    need = [*RUN, "suite", "role", "metric", "value"]
    if missing := [c for c in need if c not in final]:
        raise ValueError(f"final: column(s) {missing} missing")
    chosen = final[final["metric"] == metric]
    if chosen.empty:
        raise ValueError(f"final: no rows of metric {metric!r}; there are {sorted(final['metric'].unique())}")
    if chosen.duplicated([*RUN, "suite", "role"]).any():
        raise ValueError("final: a run has two values of one suite")
    expected = chosen[["family", "suite", "role"]].drop_duplicates()
    wanted = final[RUN].drop_duplicates().merge(expected, on="family").assign(metric=metric, value=np.nan)
    keys = [*RUN, "suite", "role"]
    absent = wanted[~pd.MultiIndex.from_frame(wanted[keys]).isin(pd.MultiIndex.from_frame(chosen[keys]))]
    return pd.concat([chosen, absent], ignore_index=True) if len(absent) else chosen


def diverged_runs(final: pd.DataFrame) -> pd.DataFrame:
    """Runs that diverged, which have no scores.

    Args:
        final: As in `run_scores`. Column `diverged`, if there is one: the optimiser step at which the run diverged.

    Returns:
        Columns method, noise, family, seed, diverged, and runs: the number of all runs of the method under the noise.
    """
    runs = final.drop_duplicates(RUN)
    runs = runs.assign(runs=runs.groupby(["method", "noise"])["seed"].transform("size"))
    found = runs[runs["diverged"].notna()] if "diverged" in runs else runs.head(0).assign(diverged=np.nan)
    return found[[*RUN, "diverged", "runs"]].reset_index(drop=True)


def missing_scores(final: pd.DataFrame, metric: str = "sampled") -> pd.DataFrame:
    """Runs and test sets without a score: the value is missing, or the run has no row of the test set.

    Those of runs that diverged are not among them: `diverged_runs` lists these.

    Args:
        final: As in `run_scores`.
        metric: The metric to look at.

    Returns:
        Columns method, noise, family, seed, suite, role; empty if nothing is missing.
    """
    scores = _scores_by_suite(final, metric)
    missing = scores.loc[scores["value"].isna(), [*RUN, "suite", "role"]]
    diverged = pd.MultiIndex.from_frame(diverged_runs(final)[RUN])
    return missing[~pd.MultiIndex.from_frame(missing[RUN]).isin(diverged)].reset_index(drop=True)


def run_scores(final: pd.DataFrame, metric: str = "sampled", overall: bool = False) -> pd.DataFrame:
    """One row per run and role, with `value` averaged over the role's suites; NaN if the run lacks one of them.

    Args:
        final: Tidy frame of the training stages: method, noise, family, seed, suite, role, metric, value (0..1).
        metric: The metric to keep.
        overall: Adds rows of role "ALL", the mean over all suites.

    Raises:
        ValueError: If a column is missing, the metric does not occur or a run appears twice.
    """
    chosen = _scores_by_suite(final, metric)
    if overall:
        chosen = pd.concat([chosen, chosen.assign(role="ALL")])
    return complete_mean(chosen.groupby([*RUN, "role"], sort=False, observed=True)["value"]).reset_index()


def _estimate(estimator, *strata: list[np.ndarray], **settings) -> Estimate:
    """The estimate of strata of run scores; NaN if one is missing, with the number of runs that have a score."""
    values = np.concatenate(strata[0])
    if any(np.isnan(run).any() for side in strata for run in side):
        return Estimate(np.nan, np.nan, np.nan, int(np.isfinite(values).sum()))
    return estimator(*strata, **settings)


def _strata(frame: pd.DataFrame, strata: str) -> dict:
    return {k: g["value"].to_numpy() for k, g in frame.groupby(strata, observed=True)}


def summarise_scores(
    final: pd.DataFrame,
    metric: str = "sampled",
    overall: bool = False,
    by=("method", "noise", "role"),
    strata: str = "family",
    **settings,
) -> pd.DataFrame:
    """Interquartile mean of runs with its interval, in order of appearance.

    Args:
        final: As in `run_scores`.
        metric: As in `run_scores`.
        overall: As in `run_scores`.
        by: Columns of a group; one row per group.
        strata: Column that holds the strata of the bootstrap.
        settings: Further arguments of `bootstrap_interval`.

    Returns:
        Columns `by`, iqm, low, high, n (runs with a score). The interquartile mean is NaN if a run lacks its score.
    """
    rows = []
    for key, frame in run_scores(final, metric, overall).groupby(list(by), sort=False, observed=True):
        e = _estimate(bootstrap_interval, list(_strata(frame, strata).values()), **settings)
        rows.append((*key, e.point, e.low, e.high, e.n))
    return pd.DataFrame(rows, columns=[*by, "iqm", "low", "high", "n"])


def improvement_table(
    final: pd.DataFrame,
    baseline: str = "ppo",
    metric: str = "sampled",
    overall: bool = False,
    strata: str = "family",
    **settings,
) -> pd.DataFrame:
    """Probability that a run beats a run of `baseline` under the same noise.

    Only strata of both methods count; a method without a common stratum gets no row. NaN if a run lacks its score.

    Returns:
        Columns method, noise, role, probability, low, high, n.
    """
    scores = run_scores(final, metric, overall)
    rows = []
    for (noise, role), cell in scores.groupby(["noise", "role"], sort=False, observed=True):
        base = _strata(cell[cell["method"] == baseline], strata)
        for method, frame in cell[cell["method"] != baseline].groupby("method", sort=False, observed=True):
            own = _strata(frame, strata)
            if common := [k for k in own if k in base]:
                sides = [own[k] for k in common], [base[k] for k in common]
                e = _estimate(probability_of_improvement, *sides, **settings)
                rows.append((method, noise, role, e.point, e.low, e.high, e.n))
    return pd.DataFrame(rows, columns=["method", "noise", "role", "probability", "low", "high", "n"])


def paired_differences(
    final: pd.DataFrame,
    baseline: str = "ppo",
    metric: str = "sampled",
    overall: bool = False,
    strata: str = "family",
    **settings,
) -> pd.DataFrame:
    """Mean difference to `baseline` over runs that share family and seed.

    Pairing removes what the seed does to both runs (the test's random numbers, the prompts of most methods). NaN if a
    run lacks its score.

    Returns:
        Columns method, noise, role, difference, low, high, n.
    """
    scores = run_scores(final, metric, overall)
    base = scores[scores["method"] == baseline].drop(columns="method")
    both = scores[scores["method"] != baseline].merge(
        base, on=["noise", "role", "family", "seed"], suffixes=("", "_base")
    )
    both["value"] = both["value"] - both["value_base"]
    rows = []
    for key, frame in both.groupby(["method", "noise", "role"], sort=False, observed=True):
        e = _estimate(bootstrap_interval, list(_strata(frame, strata).values()), statistic=np.mean, **settings)
        rows.append((*key, e.point, e.low, e.high, e.n))
    return pd.DataFrame(rows, columns=["method", "noise", "role", "difference", "low", "high", "n"])


def curve_bands(
    curves: pd.DataFrame, y: str, by: Sequence[str] = ("method", "noise", "family"), x: str = "iteration", **settings
) -> pd.DataFrame:
    """Pointwise interquartile mean over seeds with its interval along `x`.

    A group without any `y` is left out: a method without a critic has no explained variance. Elsewhere a point is NaN
    if a run has no value there, or no row, and `n` counts the runs that have one.

    Returns:
        Columns `by`, x, iqm, low, high, n.
    """
    rows, settings = [], {"resamples": 500, **settings}
    known = curves[curves.groupby(list(by), sort=False, observed=True)[y].transform("count") > 0]
    points = known.groupby([*by, x], sort=False, observed=True)
    runs = points.size().groupby(list(by), sort=False, observed=True).max()
    for key, frame in points:
        values = frame[y].to_numpy(dtype=float)
        lacking = len(values) < runs[key[:-1] if len(by) > 1 else key[0]]
        e = _estimate(bootstrap_interval, [np.append(values, np.nan) if lacking else values], **settings)
        rows.append((*key, e.point, e.low, e.high, e.n))
    return pd.DataFrame(rows, columns=[*by, x, "iqm", "low", "high", "n"])
