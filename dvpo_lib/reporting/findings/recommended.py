"""Which method to use under which noise, and which simple control is the strongest."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import noise_phrase, percent_text
from dvpo_lib.reporting.statistics.comparisons import (
    SIGNIFICANCE,
    equal_methods,
    holm_correction,
    run_pairs,
    sign_flip_test,
)
from dvpo_lib.reporting.statistics.runs import complete_mean, run_scores, summarise_scores

CONTROLS = ("ppo_clip_reward", "grpo_clip_reward")  # simple ones: rewards are clipped, nothing else changes


def recommended_methods(runs: pd.DataFrame, metric: str = "sampled") -> pd.DataFrame:
    """The method with the highest mean score under each noise, and the methods that are not significantly worse.

    The best one is chosen by the same runs that the others are compared on, so that the list may be too short. Means
    are compared and shown, since the test is one of means.

    Args:
        runs: Rows of the comparison, of one family.
        metric: The metric.

    Returns:
        Columns noise, best, score (mean over runs and all test sets), as_good (names; Holm over the rivals; a rival
        without pairs is among them, one that lost a run is not), and n, the fewest seeds of a method.
    """
    rows = []
    scores = run_scores(runs, metric, overall=True)
    scores = scores[scores["role"] == "ALL"]
    for noise, cell in scores.groupby("noise", sort=False):
        own = complete_mean(cell.groupby("method", sort=False)["value"])
        if own.isna().all():
            continue
        best = own.idxmax()
        pairs = {m: run_pairs(cell, best, m)["difference"] for m in own.index if m != best}
        equal = equal_methods(runs, noise, metric)
        copies = {b: a for a, b in reversed(equal)}  # {method: the first one that it equals}
        known = {m: sign_flip_test(d.to_numpy()) for m, d in pairs.items() if len(d) > 1 and m not in copies}
        corrected = dict(zip(known, holm_correction(list(known.values())), strict=True))
        alike = [m for m in pairs if corrected.get(copies.get(m, m), 1.0) >= SIGNIFICANCE and own.notna()[m]]
        rows.append((noise, best, own[best], alike, int(cell.groupby("method")["seed"].nunique().min())))
    return pd.DataFrame(rows, columns=["noise", "best", "score", "as_good", "n"])


def copied_findings(runs: pd.DataFrame) -> str:
    """A sentence for each pair of methods with equal scores in every run under a noise: a clip may find nothing."""
    lines = [
        f"- {noise_phrase(noise, capital=True)}, {display_name(a)} and {display_name(b)} have equal scores in "
        "every run: they count as one rival."
        for noise in dict.fromkeys(runs["noise"])
        for a, b in equal_methods(runs, noise)
    ]
    return "\n".join(lines)


def strongest_control(runs: pd.DataFrame, metric: str = "sampled") -> str | None:
    """The simple control with the highest interquartile mean over all noises and test sets; None if none has run."""
    own = runs[runs["method"].isin(CONTROLS)]
    if own.empty:
        return None
    scores = summarise_scores(own, metric, overall=True)
    means = complete_mean(scores[scores["role"] == "ALL"].groupby("method")["iqm"]).dropna()
    return None if means.empty else means.idxmax()


def recommendation_table(recommended: pd.DataFrame) -> pd.DataFrame:
    """Rows of `recommended_methods` with names as they are shown."""
    alike = ["; ".join(map(display_name, names)) or "none" for names in recommended["as_good"]]
    return pd.DataFrame(
        {
            "noise": recommended["noise"].map(display_name),
            "highest mean score": recommended["best"].map(display_name),
            "all test sets": recommended["score"].map(percent_text),
            "not significantly worse": alike,
            "seeds": recommended["n"],
        }
    )
