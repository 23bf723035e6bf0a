"""How verdicts are shown: the table of claims, sentences, differences by test set, and the page for README."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dvpo_lib.reporting.findings.recommended import recommendation_table, recommended_methods
from dvpo_lib.reporting.findings.verdict_sentences import (
    difference_text,
    disagreement_findings,
    rate_findings,
    settled_findings,
    shared_run_findings,
    verdict_limits,
)
from dvpo_lib.reporting.names import BASE, display_name
from dvpo_lib.reporting.prose import markdown_table, number_text
from dvpo_lib.reporting.statistics.claims import AUC, CONTROLS, OFFLINE, RATES
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, NO_CLAIM, SIGNIFICANCE, role_differences
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS, claimed_family, claimed_runs
from dvpo_lib.reporting.statistics.verdicts import rate_interactions, verdict_table
from dvpo_lib.reporting.tables import ROLES

OWN = "dvpo"  # the method that differences are of
RIVALS = ("ppo", "grpo", "robust_ppo", *OFFLINE, *CONTROLS)  # to which they are shown on each kind of test set
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
    f"(p < {SIGNIFICANCE:g} after correction). *Refuted*: a rival is significantly better, or an AUC is below chance. "
    "*As tuned only*: the verdict holds if each method has the learning rate of its own tuning, but not if both have "
    "the same one. A number alone: not confirmed. An empty cell has no runs. A number is the mean difference "
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
    if row["verdict"] not in SETTLED:
        return difference_text(row)
    verdict = f"**{row['verdict']}**" if bold else row["verdict"]
    return f"{verdict}{' as tuned only' if row['tuned_only'] else ''} ({difference_text(row)})"


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
            "difference": [difference_text(row) for _, row in judged.iterrows()],
            "detectable": [number_text(k * d, 1 + (k == 1)) for k, d in zip(scale, judged["detectable"], strict=True)],
            "p": [number_text(p, 4) for p in judged["p"]],
            "corrected": [number_text(p, 3) for p in judged["corrected"]],
            "seeds": judged["n"],
        }
    )


def _rival_text(rival: str, measure: str) -> str:
    return f"{display_name(rival)} ({measure})" if rival and measure else display_name(rival) if rival else measure


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
        sentences.append(disagreement_findings(role_differences(own, OWN, RIVALS)))
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
