"""Sentences about verdicts: what is settled, what depends on the learning rate, and what limits the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import join_words, noise_phrase, number_text
from dvpo_lib.reporting.statistics.claims import AUC, CLAIMS, RATES, Claim
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, NO_CLAIM, SIGNIFICANCE
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS
from dvpo_lib.reporting.statistics.verdicts import runs_of_claim
from dvpo_lib.reporting.tables import ROLES


def verdict_findings(table: pd.DataFrame, interactions: pd.DataFrame) -> str:
    """What is settled, which differences depend on the learning rate, and what limits the verdicts.

    Args:
        table: Of `verdict_table`.
        interactions: Of `rate_interactions`.
    """
    return "\n".join(filter(None, [settled_findings(table), rate_findings(interactions), verdict_limits(table)]))


def settled_findings(table: pd.DataFrame) -> str:
    """Which claims are confirmed, and which are refuted, under which noise; those at equal rates beside the tuned ones.

    A verdict that holds as tuned and at neither equal learning rate may be due to the rates, and comes last. One that
    holds at an equal rate alone has a line of its own.

    Args:
        table: Of `verdict_table`.
    """
    judged = table[~table["verdict"].str.startswith(NO_CLAIM)]
    judged = judged.sort_values("repeats", key=lambda text: text != "", kind="stable")  # the tuned ones first
    verdict_of = judged.set_index(["claim", "noise"])["verdict"].to_dict()
    firm, doubtful = [], []
    for verdict in ("confirmed", "refuted"):
        for claim, rows in judged[judged["verdict"] == verdict].groupby("claim", sort=False):
            held, tuned_only = [], []
            for _, row in rows.iterrows():
                if row["repeats"] and verdict_of.get((row["repeats"], row["noise"])) == verdict:
                    continue  # stands beside the tuned one
                again = judged[(judged["repeats"] == claim) & (judged["noise"] == row["noise"])]
                told = [difference_text(row, unit=True)]
                for _, other in again.iterrows():
                    rate = other["claim"].removeprefix(f"{claim}, ").replace("learning rate ", "")
                    told.append(f"{rate} {difference_text(other)}, {other['verdict']}")
                (tuned_only if row["tuned_only"] else held).append(f"{noise_phrase(row['noise'])} ({'; '.join(told)})")
            if held:
                firm.append(f"- **{verdict.capitalize()}**: {claim}, {join_words(held)}.")
            if tuned_only:
                doubtful.append(f"- **{verdict.capitalize()} as tuned only**: {claim}, {join_words(tuned_only)}.")
    return "\n".join([*firm, *doubtful])


def verdict_limits(table: pd.DataFrame) -> str:
    """What limits the verdicts: the differences that these runs can show, and too few seeds; repeated claims aside."""
    table = table[table["repeats"] == ""]
    judged, lines = table[~table["verdict"].str.startswith(NO_CLAIM)], []
    open_rows = judged[judged["verdict"] == "not confirmed"]
    if len(open_rows):
        text = f"- **Not confirmed**: {len(open_rows)} of {len(judged)} pairs of a claim and a noise."
        scores = 100 * open_rows[open_rows["measure"] == ""]["detectable"]
        if len(scores):
            least, middle, most = (number_text(v, 1) for v in (scores.min(), scores.median(), scores.max()))
            text += (
                f" To be found four times out of five, a difference of the mean score has to be {middle} points in the "
                f"median ({least} to {most})."
            )
        lines.append(text)
    unjudged, lost = table["verdict"].str.startswith(NO_CLAIM), table["verdict"].str.endswith("lost")
    for rows, why in ((unjudged & ~lost, f"fewer than {FEWEST_SEEDS} seeds"), (lost, "runs that diverged")):
        if count := table[rows]["claim"].nunique():
            has = "claims have" if count > 1 else "claim has"
            lines.append(f"- {count} {has} {why} under at least one noise, and no verdict there.")
    return "\n".join(lines)


def missing_run_findings(runs: pd.DataFrame, planned: Mapping[str, int]) -> str:
    """A sentence that says on which families a study lacks runs; "" if it lacks none.

    Args:
        runs: Rows of the study.
        planned: {family: number of planned runs}.
    """
    done = runs[RUN_LABELS].drop_duplicates()["family"].value_counts()
    lacking = [
        f"{family} ({done.get(family, 0)} of {count} runs)"
        for family, count in planned.items()
        if done.get(family, 0) < count
    ]
    if not lacking:
        return ""
    return f"**Still being computed**: policies that are trained on {join_words(lacking)}."


def rate_findings(interactions: pd.DataFrame) -> str:
    """Which differences between DVPO and a rival change with the learning rate of both.

    Args:
        interactions: Of `rate_interactions`.
    """
    if interactions.empty:
        return ""
    clear, (low, high) = interactions[interactions["corrected"] < SIGNIFICANCE], RATES
    if clear.empty:
        return (
            f"- **Equal learning rates**: none of {len(interactions)} differences between DVPO and a rival is shown to "
            f"change from {low} to {high}."
        )
    lines = [
        f"- **Depends on the learning rate**: DVPO minus {display_name(r.rival)}, {noise_phrase(r.noise)}: "
        f"{100 * r.low:+.1f} points at {low}, {100 * r.high:+.1f} at {high} ({r.measure or ROLES['ALL']})."
        for r in clear.itertuples()
    ]
    return "\n".join(lines)


def shared_run_findings(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> str:
    """How many claims rest on the same runs of the setting that they praise: nothing corrects for that.

    Args:
        evidence: {study: rows}, as of `read_studies`.
        claims: The claims.
    """
    used: Counter[tuple[str, str]] = Counter()  # (noise, plan of a run): claims that it is on the own side of
    for claim in claims:
        if claim.repeats:
            continue
        for noise, there in runs_of_claim(evidence, claim).groupby("noise", sort=False):
            if claim.rivals(list(there["method"].unique())):
                used.update((noise, plan) for plan in there.loc[there["method"] == claim.own, "plan"].unique())
    most = max(used.values(), default=0)
    if most < 2:
        return ""
    noises = dict.fromkeys(noise for (noise, _), count in used.items() if count == most)
    return (
        f"- **Shared runs**: up to {most} claims rest on the same runs of DVPO "
        f"({join_words(map(noise_phrase, noises))}): their verdicts are not independent."
    )


def disagreement_findings(differences: pd.DataFrame) -> str:
    """Where DVPO leads a rival on some test sets and is behind on others: the mean over all of them hides it.

    Args:
        differences: Of `role_differences`; only those count that are significant after correction.
    """
    lines = []
    for rival, rows in differences.groupby("method", sort=False):
        told = []
        for noise, own in rows.groupby("noise", sort=False):
            clear = own[own["corrected"] < SIGNIFICANCE]
            if clear["difference"].gt(0).nunique() == 2:
                each = [f"{ROLES[r.role]} {100 * r.difference:+.1f} points" for r in clear.itertuples()]
                told.append(f"{noise_phrase(noise)}, {join_words(each)}")
        if told:
            lines.append(f"- **Test sets disagree** on DVPO minus {display_name(rival)}: {'; '.join(told)}.")
    return "\n".join(lines)


def difference_text(row: pd.Series, unit: bool = False) -> str:
    """The difference of a verdict as it is shown: of scores in percentage points, of AUCs as it is, with its measure.

    Args:
        row: A row of `verdict_table`; if it has differences by role, these are shown.
        unit: Whether points are named.
    """
    points = " points" if unit else ""
    if row["by_role"]:
        return ", ".join(f"{part}{points}" for part in row["by_role"].split(", "))
    if row["measure"] in AUC:
        return f"{row['difference']:+.2f} {row['measure']}"
    return f"{100 * row['difference']:+.1f}{points}"
