"""Rows of a study of the evidence: their order, the cells that are complete, variants as methods, and counts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from dvpo_lib.reporting.names import ABLATION_ROWS, BASE, DISPLAY_NAMES, display_name

NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
RUN_LABELS = ["method", "variant", "noise", "family", "seed"]  # the columns that identify a run of a study


def in_display_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of a study with noises, methods, variants and roles in the order in which they are shown.

    Names without a place of their own follow, by their words and numbers: "M = 25" comes before "M = 100".
    """
    columns, order = ["noise", "method", "variant", "role"], [*DISPLAY_NAMES, *ABLATION_ROWS]
    place = {name: k for k, name in enumerate(order)}
    names = {str(name) for column in columns for name in runs[column].unique()} - set(place)
    place |= {name: len(order) + k for k, name in enumerate(sorted(names, key=_words_and_numbers))}
    keys = {column: runs[column].astype(str).map(place) for column in columns}
    return runs.loc[pd.DataFrame(keys).sort_values(columns, kind="stable").index]


def _words_and_numbers(name: str) -> list:
    return [(0, float(part), "") if NUMBER.fullmatch(part) else (1, 0.0, part) for part in NUMBER.split(name) if part]


def covered_cells(runs: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Rows of those noises and families in which every method and variant of the study has enough seeds.

    A study that is still being computed has some of a cell's runs before others: to compare these would be unfair.

    Args:
        runs: Rows of a study.
        seeds: The fewest seeds of a method or variant.
    """
    if runs.empty:
        return runs
    columns = ["method", "variant"]
    counts = runs.pivot_table(index=["noise", "family"], columns=columns, values="seed", aggfunc="nunique")
    covered = counts.index[(counts.fillna(0) >= seeds).all(axis=1)]
    return runs[pd.MultiIndex.from_frame(runs[["noise", "family"]]).isin(covered)]


def as_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of a study with their variant, where they have one, as name of the method.

    The method stands before the variant if several methods have variants of one name.
    """
    variant = runs["variant"].astype(str)
    if (runs.groupby(variant)["method"].nunique() > 1).drop("", errors="ignore").any():
        variant = (runs["method"].map(display_name) + ", " + variant).where(variant != "", "")
    return runs.assign(method=runs["method"].where(variant == "", variant))


def claimed_family(runs: pd.DataFrame) -> str:
    """The family that claims are about: the one with most seeds, which others have fewer of."""
    return runs.groupby("family", sort=False)["seed"].nunique().idxmax()


def claimed_runs(runs: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Rows of methods in the family that claims are about, under noises in which all of them have enough seeds.

    Args:
        runs: Rows of a study; those of the base policy are left out.
        seeds: The fewest seeds of a method.
    """
    own = runs[runs["method"] != BASE]
    return own if own.empty else covered_cells(own[own["family"] == claimed_family(own)], seeds)


def base_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Scores of the base policy, means over its tests: columns suite, metric and value, as `base_by_role` takes them.

    A test of one seed is the same for every family, so it counts once.

    Args:
        runs: Rows of a study, those of the base policy among them.
    """
    tests = runs[runs["method"] == BASE].drop_duplicates(["suite", "metric", "seed"])
    return tests.groupby(["suite", "metric"])["value"].mean().reset_index()


def metric_columns(runs: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """One row per run with some of its metrics as columns.

    Args:
        runs: Rows of a study's file in which a run has each of the metrics at most once.
        names: {metric: name of its column}.
    """
    own = runs[runs["metric"].isin(names)]
    order = own[RUN_LABELS].drop_duplicates()
    wide = own.pivot(index=RUN_LABELS, columns="metric", values="value").rename(columns=names).reset_index()
    return order.merge(wide, on=RUN_LABELS).reindex(columns=[*RUN_LABELS, *names.values()])


def run_count(runs: pd.DataFrame) -> int:
    """The number of runs in rows of a study."""
    return len(runs[RUN_LABELS].drop_duplicates())


def study_table(
    questions: Mapping[str, str], evidence: Mapping[str, pd.DataFrame], planned: Mapping[str, int]
) -> pd.DataFrame:
    """What each study asks, how many settings and seeds of it have been computed, and how many runs of those planned.

    Args:
        questions: {study: question}.
        evidence: {study: rows of its file}.
        planned: {study: number of planned runs}, as far as it is known.
    """
    rows = []
    for study, question in questions.items():
        runs = evidence[study]
        seeds = runs[RUN_LABELS].drop_duplicates().groupby(RUN_LABELS[:-1])["seed"].size()
        fewest, most = (0, 0) if seeds.empty else (seeds.min(), seeds.max())
        row = {"study": study.replace("_", " "), "question": question, "settings": len(seeds)}
        row["seeds"] = f"{most}" if fewest == most else f"{fewest} to {most}"
        rows.append({**row, "runs": f"{seeds.sum():,}" + (f" of {planned[study]:,}" if study in planned else "")})
    return pd.DataFrame(rows)
