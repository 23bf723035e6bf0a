"""Runs that collapsed: training ended with less than half of the reward that the base policy starts with."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import join_words, noise_phrase

COLLAPSED = 0.5  # of the first iteration's true reward


def collapsed_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each method collapsed or diverged under each noise.

    Args:
        runs: Rows of a study, those of suite "training" among them.

    Returns:
        Columns method, noise, lost and runs.
    """
    keys = ["method", "noise", "family", "seed"]
    training = runs[runs["suite"] == "training"].pivot(index=keys, columns="metric", values="value")
    sampled = runs[runs["metric"] == "sampled"].groupby(keys, sort=False)["value"]
    lost = (training["reward_true"] < COLLAPSED * training["first_reward"]) | (sampled.count() < sampled.size())
    cells = lost.groupby(level=["method", "noise"], sort=False)
    return pd.DataFrame({"lost": cells.sum(), "runs": cells.size()}).reset_index()


def collapse_findings(runs: pd.DataFrame) -> str:
    """Sentences that say which methods lost runs under which noise."""
    table = collapsed_runs(runs)
    hit = table[table["lost"] > 0]
    if hit.empty:
        return f"None of {table['runs'].sum()} runs collapsed or diverged."
    lines = ["Lost runs, of all runs of a method:", ""]
    for noise, own in hit.groupby("noise", sort=False):
        lines.append(
            f"- {noise_phrase(noise)[0].upper()}{noise_phrase(noise)[1:]}: "
            + join_words(f"{display_name(r.method)} {r.lost} of {r.runs}" for r in own.itertuples())
            + "."
        )
    return "\n".join(lines)
