"""Which method to use under which noise, and which simple control is the strongest."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import noise_phrase, percent_text
from dvpo_lib.reporting.statistics.claims import CONTROLS
from dvpo_lib.reporting.statistics.comparisons import (
    SIGNIFICANCE,
    equal_methods,
    holm_correction,
    run_pairs,
    sign_flip_test,
    smallest_p_value,
)
from dvpo_lib.reporting.statistics.runs import complete_mean, run_scores, summarise_scores
from dvpo_lib.reporting.statistics.study_rows import NUMBER


def recommended_methods(runs: pd.DataFrame, metric: str = "sampled") -> pd.DataFrame:
    """The method with the highest mean score under each noise, and the methods that are not significantly worse.

    The best one is chosen by the same runs that the others are compared on, so that the list may be too short. Means
    are compared and shown, since the test is one of means.

    Args:
        runs: Rows of the comparison, of one family.
        metric: The metric.

    Returns:
        Columns noise, best, score (mean over runs and all test sets), dvpo (that of DVPO; NaN without it), as_good
        (names; Holm over the rivals; a rival without pairs is among them, one that lost a run is not), and n, the
        fewest seeds of a method.
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
        seeds = int(cell.groupby("method")["seed"].nunique().min())
        rows.append((noise, best, own[best], own.get("dvpo", float("nan")), alike, seeds))
    return pd.DataFrame(rows, columns=["noise", "best", "score", "dvpo", "as_good", "n"])


def spread_findings(runs: pd.DataFrame, metric: str = "sampled") -> str:
    """For settings without a claim: which one scores highest and which lowest, in how many pairs of runs.

    If each setting has another that differs from it in a number alone, those are compared with each other.

    Args:
        runs: Rows of a study, settings as methods, of one family.
        metric: The metric.

    Returns:
        A line for each noise and group of settings, and what they are not; "" without settings to compare.
    """
    scores = run_scores(runs, metric, overall=True)
    scores = scores[scores["role"] == "ALL"].assign(group=scores["method"].str.replace(NUMBER, "", regex=True))
    if scores.groupby("group")["method"].nunique().min() < 2:
        scores["group"] = ""
    lines, counts = [], []
    for (noise, _), cell in scores.groupby(["noise", "group"], sort=False):
        means = complete_mean(cell.groupby("method", sort=False)["value"]).dropna()
        if len(means) < 2:
            continue
        best, worst = means.idxmax(), means.idxmin()
        higher = run_pairs(cell, best, worst)["difference"] > 0
        counts.append(len(higher))
        top, bottom = (f"{display_name(name)} ({percent_text(means[name])})" for name in (best, worst))
        lines.append(
            f"- {noise_phrase(noise, capital=True)}, the highest mean score is that of {top}, the lowest that of "
            f"{bottom}; the first is higher in {higher.sum()} of {len(higher)} seeds."
        )
    if not lines:
        return ""
    fewest = min(counts)
    caution = (
        "Highest and lowest are chosen by the same seeds: this is no claim. "
        f"{fewest} pairs cannot have a p-value below {smallest_p_value(fewest):.2g}."
    )
    return "\n".join([*lines, "", caution])


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
    table = {
        "noise": recommended["noise"].map(display_name),
        "highest mean score": recommended["best"].map(display_name),
        "all test sets": recommended["score"].map(percent_text),
        "DVPO": recommended["dvpo"].map(percent_text),
        "not significantly worse": alike,
        "seeds": recommended["n"],
    }
    if recommended["dvpo"].isna().all():
        del table["DVPO"]
    return pd.DataFrame(table)
