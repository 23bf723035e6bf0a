"""How verdicts are shown: the table of claims, sentences, differences by test set, and the page for README."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dvpo_lib.reporting.findings.recommended import recommendation_table, recommended_methods
from dvpo_lib.reporting.findings.verdicts import rate_interactions, shared_run_findings, verdict_table
from dvpo_lib.reporting.names import BASE, display_name
from dvpo_lib.reporting.prose import join_words, markdown_table, noise_phrase, number_text
from dvpo_lib.reporting.statistics.claims import AUC, RATES
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, SIGNIFICANCE, role_differences
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS, claimed_family, claimed_runs
from dvpo_lib.reporting.tables import ROLES

NO_CLAIM = "no claim"  # how verdicts on too few seeds begin
OWN = "dvpo"  # the method that differences are of
SECTIONS = {  # study that decides claims: its heading in notebook 06
    "comparison": "The comparison",
    "learning_rates": "Is it the learning rate?",
    "ablation": "Which term of the critic's loss helps?",
    "quantile_counts": "How many quantiles?",
    "risk_weights": "Which risk weight?",
    "critic_kinds": "Quantiles, distributions, or the loss?",
    "denoised": "When does it pay to learn from the critic's view of a reward?",
    "wrong_steps": "Whose advantages find the step that is wrong?",
}
LEGEND = (
    "*Confirmed*: DVPO, or the setting that the claim names, is significantly better than each rival "
    f"(p < {SIGNIFICANCE:g} after correction). *Refuted*: a rival is significantly better. A number without a word: "
    "neither is shown, and the claim is not confirmed. An empty cell has no runs. A number is the mean difference "
    "to a rival, in percentage points of the score if no other measure is named: the rival that is hardest to beat, or "
    "the one that refutes. *ID* are tests like the training problems, *OOD* longer problems of the "
    "same family, *transfer* other families (the paper's OOD). *Both at 1e-4*: both methods have this learning rate. "
    "*Robust PPO* is robust Bellman PPO."
)
SETTLED = {  # {verdict: style of its cells}
    "confirmed": "background-color: #d4e6f4",
    "refuted": "background-color: #fadcc8",
}
PAGE = "reports/06_evidence/notebook.html"  # seen from README


def verdict_matrix(table: pd.DataFrame, markdown: bool = False) -> pd.DataFrame:
    """Verdicts as they are shown: a row for each claim, a column for each noise, the difference that decides.

    A claim that repeats another one stands below it, as "the same, ...".

    Args:
        table: Of `verdict_table`.
        markdown: For README: what is settled is bold, and the last column, the study with the claim's figure, links
            to its section.
    """
    noises = [noise for noise in dict.fromkeys(table["noise"]) if noise]
    rows = []
    for claim, own in table.groupby("claim", sort=False):
        cells, first = own.set_index("noise"), own.iloc[0]
        row = {"claim": f"the same{claim.removeprefix(first['repeats'])}" if first["repeats"] else claim}
        row["source"] = first["source"]
        for noise in noises:
            row[display_name(noise)] = _cell_text(cells.loc[noise], markdown) if noise in cells.index else ""
        study = first["figure"]
        address = f"{PAGE}#{SECTIONS[study].replace(' ', '-').replace(chr(39), '%27')}"
        rows.append({**row, "figure": f"[{display_name(study)}]({address})" if markdown else display_name(study)})
    return pd.DataFrame(rows)


def _cell_text(row: pd.Series, bold: bool = False) -> str:
    """A settled verdict with its difference, or the difference alone; a claim without a verdict shows its seeds."""
    if row["verdict"].startswith(NO_CLAIM) or np.isnan(row["difference"]):
        return row["verdict"].removeprefix(f"{NO_CLAIM}: ")
    number, measure = _difference_text(row), row["measure"]
    if row["verdict"] not in SETTLED:
        return f"{number} ({measure})" if measure else number
    verdict = f"**{row['verdict']}**" if bold else row["verdict"]
    return f"{verdict} ({' '.join(filter(None, [number, measure]))})"


def _difference_text(row: pd.Series, unit: bool = False) -> str:
    """A difference of scores in percentage points; of AUCs as it is. With its unit and measure if asked for."""
    number = f"{row['difference']:+.2f}" if row["measure"] in AUC else f"{100 * row['difference']:+.1f}"
    points = "" if row["measure"] in AUC else "points"
    return " ".join(filter(None, [number, points, row["measure"]])) if unit else number


def verdict_details(table: pd.DataFrame) -> pd.DataFrame:
    """The numbers behind each verdict, as they are shown.

    Args:
        table: Of `verdict_table`.
    """
    judged = table[~table["verdict"].str.startswith(NO_CLAIM)]
    scale = [1 if measure in AUC else 100 for measure in judged["measure"]]
    return pd.DataFrame(
        {
            "claim": judged["claim"],
            "noise": judged["noise"].map(display_name),
            "rival": [_rival_text(r.rival, r.measure) for r in judged.itertuples()],
            "difference": [_difference_text(row) for _, row in judged.iterrows()],
            "detectable": [number_text(k * d, 1 + (k == 1)) for k, d in zip(scale, judged["detectable"], strict=True)],
            "p": [number_text(p, 4) for p in judged["p"]],
            "corrected": [number_text(p, 3) for p in judged["corrected"]],
            "seeds": judged["n"],
        }
    )


def _rival_text(rival: str, measure: str) -> str:
    return f"{display_name(rival)} ({measure})" if rival and measure else display_name(rival) if rival else measure


def verdict_findings(table: pd.DataFrame, interactions: pd.DataFrame) -> str:
    """What is settled, which differences depend on the learning rate, and what limits the verdicts.

    Args:
        table: Of `verdict_table`.
        interactions: Of `rate_interactions`.
    """
    return "\n".join(filter(None, [settled_findings(table), rate_findings(interactions), verdict_limits(table)]))


def settled_findings(table: pd.DataFrame) -> str:
    """Which claims are confirmed, and which are refuted, under which noise; those at equal rates beside the tuned ones.

    A claim that is settled at equal learning rates alone has a line of its own.

    Args:
        table: Of `verdict_table`.
    """
    lines, judged = [], table[~table["verdict"].str.startswith(NO_CLAIM)]
    judged = judged.sort_values("repeats", key=lambda text: text != "", kind="stable")  # the tuned ones first
    verdict_of = judged.set_index(["claim", "noise"])["verdict"].to_dict()
    for verdict, opening in (("confirmed", "Confirmed"), ("refuted", "Refuted")):
        for claim, rows in judged[judged["verdict"] == verdict].groupby("claim", sort=False):
            where = []
            for _, row in rows.iterrows():
                if row["repeats"] and verdict_of.get((row["repeats"], row["noise"])) == verdict:
                    continue  # stands beside the tuned one
                again = judged[(judged["repeats"] == claim) & (judged["noise"] == row["noise"])]
                told = [_difference_text(row, unit=True)]
                for _, other in again.iterrows():
                    rate = other["claim"].removeprefix(f"{claim}, ").replace("learning rate ", "")
                    number = _difference_text(other, unit=other["measure"] != row["measure"])
                    told.append(f"{rate} {number}, {other['verdict']}")
                where.append(f"{noise_phrase(row['noise'])} ({'; '.join(told)})")
            if where:
                lines.append(f"- **{opening}**: {claim}, {join_words(where)}.")
    return "\n".join(lines)


def verdict_limits(table: pd.DataFrame) -> str:
    """What limits the verdicts: the differences that these runs can show, and too few seeds; repeated claims aside."""
    table = table[table["repeats"] == ""]
    judged, lines = table[~table["verdict"].str.startswith(NO_CLAIM)], []
    open_rows = judged[judged["verdict"] == "not confirmed"]
    if len(open_rows):
        text = f"- **Not confirmed**: {len(open_rows)} of {len(judged)} pairs of a claim and a noise."
        scores = open_rows[~open_rows["measure"].isin(AUC)]["detectable"]
        if len(scores):
            points = number_text(100 * scores.median(), 1)
            text += f" In half of them, a difference has to exceed {points} points to be found four times out of five."
        lines.append(text)
    unjudged, lost = table["verdict"].str.startswith(NO_CLAIM), table["verdict"].str.endswith("lost")
    for rows, why in ((unjudged & ~lost, f"fewer than {FEWEST_SEEDS} seeds"), (lost, "runs that diverged")):
        if count := table[rows]["claim"].nunique():
            has = "claims have" if count > 1 else "claim has"
            lines.append(f"- {count} {has} {why} under at least one noise, and no verdict there.")
    return "\n".join(lines)


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


def interaction_table(interactions: pd.DataFrame) -> pd.DataFrame:
    """Rows of `rate_interactions` as they are shown, differences in percentage points."""
    return pd.DataFrame(
        {
            "noise": interactions["noise"].map(display_name),
            "DVPO minus": interactions["rival"].map(display_name),
            "measure": [measure or ROLES["ALL"] for measure in interactions["measure"]],
            **{
                f"at {rate}": [f"{100 * d:+.1f}" for d in interactions[end]]
                for rate, end in zip(RATES, ("low", "high"))
            },
            "p": [number_text(p, 3) for p in interactions["p"]],
            "corrected": [number_text(p, 3) for p in interactions["corrected"]],
            "seeds": interactions["n"],
        }
    )


def outcome_text(runs: pd.DataFrame) -> str:
    """What the scores of claims are means of.

    Args:
        runs: Rows of a study; those of the base policy do not count.
    """
    own = runs[(runs["method"] != BASE) & (runs["metric"] == "sampled")]
    if own.empty:
        return ""
    family = claimed_family(own)
    roles = own[own["family"] == family].drop_duplicates("suite")["role"]
    return (
        f"For the claims, policies were trained on `{family}`. A score is the mean over {len(roles)} test sets, "
        f"{(roles == 'transfer').sum()} of them of families that the policy was not trained on."
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
                each = [f"{100 * r.difference:+.1f} points ({ROLES[r.role]})" for r in clear.itertuples()]
                told.append(f"{noise_phrase(noise)} {join_words(each)}")
        if told:
            lines.append(f"- **Test sets disagree** on DVPO minus {display_name(rival)}: {'; '.join(told)}.")
    return "\n".join(lines)


def verdict_page(evidence: Mapping[str, pd.DataFrame]) -> str:
    """The verdict as Markdown for README: the table of claims, its limits, then the methods to use under each noise.

    It is "" if nothing has been computed.

    Args:
        evidence: {study: rows}, as of `read_studies`.
    """
    computed = {study: runs for study, runs in evidence.items() if len(runs)}
    if not computed:
        return ""
    table = verdict_table(computed)
    known = table[table["n"] > 0]
    comparison = computed.get("comparison", pd.DataFrame(columns=RUN_LABELS))
    own = claimed_runs(comparison, FEWEST_SEEDS)
    sentences = [rate_findings(rate_interactions(computed)), verdict_limits(known), shared_run_findings(computed)]
    if len(own):
        sentences.append(disagreement_findings(role_differences(own, OWN, ["ppo", "grpo"])))
    count = pd.concat([runs["plan"] for runs in computed.values()]).nunique()  # studies share runs
    parts = [
        f"{' '.join(filter(None, [outcome_text(comparison), LEGEND]))}\n",
        f"{settled_findings(known)}\n",
        markdown_table(verdict_matrix(known[known["repeats"] == ""], markdown=True)),
        "\n".join([*filter(None, sentences), f"- The studies hold {count:,} runs so far.\n"]),
    ]
    if len(own):
        parts.append(markdown_table(recommendation_table(recommended_methods(own))))
    return "\n".join(parts)
