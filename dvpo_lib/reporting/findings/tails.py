"""Tails of the critic's predictions during training: what the terms that shape them do to their widths."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.reporting.figures.diagnostics import TAIL_COLUMNS
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
    order = {method: k for k, method in enumerate(dict.fromkeys(own["method"]))}
    return wide.reset_index().sort_values("method", key=lambda names: names.map(order), kind="stable")


def tail_change_table(curves: pd.DataFrame, x: str = "rollouts") -> pd.DataFrame:
    """Widths of both tails in the first and in the last quarter of training, means over runs, in return units.

    Args:
        curves: As in `figures.tail_panels`.
        x: Column that orders a run's rows.

    Returns:
        A row for each noise and method: noise, method, and for each side `... at first` and `... at the end`.
    """
    known = curves.dropna(subset=list(TAIL_COLUMNS), how="all")
    place = known.groupby(RUN, sort=False)[x].rank(pct=True)
    table = {}
    for column, side in SIDES.items():
        for when, there in (("at first", place <= 0.25), ("at the end", place > 0.75)):
            cells = known[there].groupby(["noise", "method"], sort=False)[column]
            table[f"{side} {when}"] = cells.mean()
    return pd.DataFrame(table).reset_index()


def tail_findings(curves: pd.DataFrame, core: str, full: str, x: str = "rollouts") -> str:
    """A sentence for each noise: how wide the tails of one row end beside those of another.

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
        parts = []
        for side in SIDES.values():
            one, other = (table.loc[(noise, row), f"{side} at the end"] for row in (full, core))
            more = 100 * (one / other - 1)
            parts.append(f"the {side} is {number_text(abs(more), 0)} % {'wider' if more > 0 else 'narrower'}")
        lines.append(
            f"- At the end of training {noise_phrase(noise)}, with all terms {' and '.join(parts)} than with "
            "the core loss alone."
        )
    return "\n".join(lines)
