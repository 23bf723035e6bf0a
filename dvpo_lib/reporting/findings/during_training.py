"""Findings about training itself: widths of the critic's predicted tails, and runs that are lost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dvpo_lib.reporting.names import TAIL_COLUMNS, display_name
from dvpo_lib.reporting.prose import join_words, noise_phrase, number_text
from dvpo_lib.reporting.statistics import complete_mean, run_scores
from dvpo_lib.reporting.statistics.runs import RUN

SIDES = dict(zip(TAIL_COLUMNS, ("lower tail", "upper tail"), strict=True))


def tails_by_quarter(runs: pd.DataFrame) -> pd.DataFrame:
    """Widths of tails in each quarter of training, from rows of the evidence.

    Args:
        runs: Rows of a study, those of suites "quarter 1" to "quarter 4" among them.

    Returns:
        A frame for `figures.tail_panels`: method, noise, family, seed, quarter, and TAIL_COLUMNS.
    """
    own = runs[runs["suite"].str.startswith("quarter ")]
    own = own.assign(quarter=own["suite"].str.removeprefix("quarter ").astype(int), column="critic/" + own["metric"])
    wide = own.pivot(index=[*RUN, "quarter"], columns="column", values="value").reindex(columns=list(TAIL_COLUMNS))
    places = {column: {name: k for k, name in enumerate(own[column].unique())} for column in ("noise", "method")}
    return wide.reset_index().sort_values(["noise", "method"], key=lambda x: x.map(places[x.name]), kind="stable")


def tail_change_table(curves: pd.DataFrame, x: str = "rollouts") -> pd.DataFrame:
    """Widths of both tails in the first and in the last quarter of training, means over runs, in return units.

    Args:
        curves: As in `figures.tail_panels`.
        x: Column that orders a run's rows.

    Returns:
        A row for each noise and method: noise, method, and for each side `... at first` and `... at the end`.
    """
    known = curves.reindex(columns=[*RUN, x, *TAIL_COLUMNS]).dropna(subset=list(TAIL_COLUMNS), how="all")
    runs = known.groupby(RUN, sort=False)[x]
    place, quarter = runs.rank(method="first"), np.ceil(runs.transform("size") / 4)
    table = {}
    for column, side in SIDES.items():
        for when, there in (("at first", place <= quarter), ("at the end", place > runs.transform("size") - quarter)):
            table[f"{side} {when}"] = known[there].groupby(["noise", "method"], sort=False)[column].mean()
    return pd.DataFrame(table).reset_index()


def tail_trend(widths: pd.DataFrame, method: str = "dvpo") -> str:
    """Under how many noises a method's tails became narrower, as a sentence.

    Args:
        widths: Of `tail_change_table`.
        method: The method.
    """
    own = widths[widths["method"] == method]
    if own.empty:
        return ""
    lower, upper = ((own[f"{side} at the end"] < own[f"{side} at first"]).sum() for side in SIDES.values())
    return (
        f"From the first to the last quarter, the lower tail of {display_name(method)} became narrower under {lower} "
        f"of {len(own)} kinds of reward, and its upper tail under {upper}."
    )


def tail_findings(curves: pd.DataFrame, core: str, full: str, x: str = "rollouts") -> str:
    """A sentence for each noise: how wide the tails of two rows are at the end of training.

    Args:
        curves: As in `figures.tail_panels`.
        core: The row without terms.
        full: The row with all terms.
        x: Column that orders a run's rows.
    """
    table = tail_change_table(curves, x).set_index(["noise", "method"])
    lines = []
    for noise in table.index.unique("noise"):
        if not {(noise, core), (noise, full)} <= {*table.index}:
            continue
        widths = [
            f"{side} {number_text(table.loc[(noise, full), name])} with all terms, "
            f"{number_text(table.loc[(noise, core), name])} with the core loss alone"
            for side, name in ((side, f"{side} at the end") for side in SIDES.values())
        ]
        seeds = curves[(curves["noise"] == noise) & curves["method"].isin([core, full])]["seed"].nunique()
        start = noise_phrase(noise, capital=True)
        lines.append(f"- {start}, in the last quarter of training: {'; '.join(widths)} (seeds: {seeds}).")
    return "\n".join(lines)


def lost_runs(runs: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each method diverged, or ended below the base policy (sampled score, ID), under each noise.

    Args:
        runs: Rows of a study.
        base: Rows of the base policy's tests, of the same families.

    Returns:
        Columns method, noise, lost and runs.
    """
    ended = run_scores(runs)
    ended = ended[ended["role"] == "ID"]
    start = complete_mean(run_scores(base).query("role == 'ID'").groupby("family")["value"])
    lost = ended["value"].isna() | (ended["value"] < ended["family"].map(start))
    cells = lost.groupby([ended["method"], ended["noise"]], sort=False)
    return pd.DataFrame({"lost": cells.sum(), "runs": cells.size()}).reset_index()


def lost_findings(runs: pd.DataFrame, base: pd.DataFrame) -> str:
    """Sentences that say which methods lost runs under which noise; arguments as of `lost_runs`."""
    table = lost_runs(runs, base)
    hit = table[table["lost"] > 0]
    if hit.empty:
        return f"None of {table['runs'].sum()} runs diverged or ended below the base policy (ID)."
    lines = ["Runs that diverged or ended below the base policy (ID), of all runs of a method:", ""]
    for noise, own in hit.groupby("noise", sort=False):
        counts = join_words(f"{display_name(r.method)} {r.lost} of {r.runs}" for r in own.itertuples())
        lines.append(f"- {noise_phrase(noise, capital=True)}: {counts}.")
    return "\n".join(lines)
