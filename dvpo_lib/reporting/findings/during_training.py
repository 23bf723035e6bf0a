"""Findings about training itself: widths of the critic's predicted tails, and runs that are lost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dvpo_lib.reporting import tables
from dvpo_lib.reporting.names import TAIL_COLUMNS, display_name
from dvpo_lib.reporting.prose import join_words, noise_phrase, number_text
from dvpo_lib.reporting.statistics import complete_mean, run_scores
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, SIGNIFICANCE, holm_correction, sign_flip_test
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


def tail_ends(curves: pd.DataFrame, x: str = "rollouts") -> pd.DataFrame:
    """Widths of both tails of each run in the first and in the last quarter of training, in return units.

    Args:
        curves: As in `figures.tail_panels`.
        x: Column that orders a run's rows.

    Returns:
        A row per run: noise, method, family, seed, and for each side `... at first` and `... at the end`.
    """
    known = curves.reindex(columns=[*RUN, x, *TAIL_COLUMNS]).dropna(subset=list(TAIL_COLUMNS), how="all")
    runs = known.groupby(RUN, sort=False)[x]
    place, quarter = runs.rank(method="first"), np.ceil(runs.transform("size") / 4)
    table = {}
    for column, side in SIDES.items():
        for when, there in (("at first", place <= quarter), ("at the end", place > runs.transform("size") - quarter)):
            table[f"{side} {when}"] = known[there].groupby(RUN, sort=False)[column].mean()
    return pd.DataFrame(table).reset_index()


def tail_change_table(curves: pd.DataFrame, x: str = "rollouts") -> pd.DataFrame:
    """Means of `tail_ends` over runs, a row for each noise and method; arguments as there."""
    ends = tail_ends(curves, x)
    return ends.groupby(["noise", "method"], sort=False).mean(numeric_only=True).drop(columns="seed").reset_index()


def tail_trend(curves: pd.DataFrame, method: str = "dvpo", x: str = "quarter") -> str:
    """Under how many noises a method's tails became narrower or wider, as sentences; "" below ten seeds.

    Args:
        curves: As in `tail_ends`.
        method: The method.
        x: Column that orders a run's rows.
    """
    own, told = tail_ends(curves, x), []
    own = own[own["method"] == method]
    for side in SIDES.values():
        change = own[f"{side} at the end"] - own[f"{side} at first"]
        changes = [values.dropna() for _, values in change.groupby(own["noise"], sort=False)]
        if min(map(len, changes), default=0) < FEWEST_SEEDS:
            return ""
        clear = holm_correction([sign_flip_test(values) for values in changes]) < SIGNIFICANCE
        means = np.array([values.mean() for values in changes])
        narrower, wider = (clear & (means < 0)).sum(), (clear & (means > 0)).sum()
        told.append(
            f"its {side} became narrower under {narrower} of {len(changes)} kinds of reward, and wider under {wider}"
        )
    return (
        f"{display_name(method)}, from the first to the last quarter: {'; '.join(told)} "
        f"(p < {SIGNIFICANCE:g}, Holm over kinds of reward)."
    )


def tail_findings(curves: pd.DataFrame, core: str, full: str, x: str = "rollouts") -> str:
    """A sentence for each noise: how wide the tails of two rows are at the end of training.

    Args:
        curves: As in `figures.tail_panels`.
        core: The row without terms.
        full: The row with all terms.
        x: Column that orders a run's rows.
    """
    ends, lines = tail_ends(curves, x), []
    for noise, own in ends.groupby("noise", sort=False):
        rows = {name: own[own["method"] == name].set_index(["family", "seed"]) for name in (core, full)}
        if any(row.empty for row in rows.values()):
            continue
        told = []
        for side in (f"{side} at the end" for side in SIDES.values()):
            with_terms, without = (rows[name][side] for name in (full, core))
            text = (
                f"{side.removesuffix(' at the end')} {number_text(with_terms.mean(), 2)} with all terms, "
                f"{number_text(without.mean(), 2)} with the core loss alone"
            )
            pairs = (with_terms - without).dropna()
            told.append(text + (f", p = {sign_flip_test(pairs):.3f}" if len(pairs) >= FEWEST_SEEDS else ""))
        seeds = own[own["method"].isin([core, full])]["seed"].nunique()
        start = noise_phrase(noise, capital=True)
        lines.append(f"- {start}, in the last quarter of training: {'; '.join(told)} (seeds: {seeds}).")
    return "\n".join(lines)


def variety_findings(runs: pd.DataFrame, start: pd.DataFrame) -> str:
    """Whether runs with a higher score have less entropy or a lower pass@k (ID): rank correlations over runs.

    Args:
        runs: Rows of a study, of one family.
        start: Scores of the base policy, of `base_scores`.
    """
    numbers = {}
    for name, role in (("sampled", "ID"), ("pass_at_k", "ID"), ("entropy", "training")):
        own = runs[(runs["metric"] == name) & (runs["role"] == role)]
        numbers[name] = own.groupby(RUN, sort=False)["value"].mean()
    table = pd.DataFrame(numbers).dropna()
    told = {name: [] for name in ("pass_at_k", "entropy")}
    for noise, own in table.groupby("noise", sort=False):
        for name, texts in told.items():
            if len(own) > 2 and own[name].nunique() > 1 and own["sampled"].nunique() > 1:
                texts.append(f"{noise_phrase(noise)} {own['sampled'].corr(own[name], method='spearman'):+.2f}")
    if not told["pass_at_k"]:
        return ""
    tested = tables.base_by_role(start, runs["family"].unique(), "pass_at_k")["ID"]
    lower = (table["pass_at_k"] < tested).sum()
    names = {"pass_at_k": "Score and pass@k, rank correlation over runs", "entropy": "Score and entropy"}
    lines = [f"- {text}: {join_words(told[name])}." for name, text in names.items() if told[name]]
    return "\n".join(
        [*lines, f"- The base policy's pass@k is {number_text(tested)}; {lower} of {len(table)} runs end below it."]
    )


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
