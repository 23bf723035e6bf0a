"""Tails of the critic's predictions during training: what the terms that shape them do to their widths."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dvpo_lib.reporting.names import TAIL_COLUMNS
from dvpo_lib.reporting.prose import noise_phrase, number_text

RUN = ["method", "noise", "family", "seed"]
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
