"""Uncertainty over runs: scores of runs, interquartile means with bootstrap intervals, comparisons with a baseline."""

from dvpo_lib.reporting.statistics.bootstrap import (
    Estimate,
    bootstrap_interval,
    cluster_bootstrap,
    interquartile_mean,
    probability_of_improvement,
)
from dvpo_lib.reporting.statistics.runs import (
    complete_mean,
    curve_bands,
    diverged_runs,
    improvement_table,
    missing_scores,
    paired_differences,
    run_scores,
    summarise_scores,
)

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "cluster_bootstrap",
    "complete_mean",
    "curve_bands",
    "diverged_runs",
    "improvement_table",
    "interquartile_mean",
    "missing_scores",
    "paired_differences",
    "probability_of_improvement",
    "run_scores",
    "summarise_scores",
]
