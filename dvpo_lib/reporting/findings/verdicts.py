"""The verdict: what DVPO's paper claims, and whether the studies of the evidence confirm it at this scale.

A claim says that one setting scores higher than each of its rivals. It is judged by its hardest rival, the one with
the smallest difference, in pairs of runs with equal noise, family and seed. A claim is confirmed if every rival is
beaten, so the largest p-value of its rivals counts (Berger 1982); it is refuted if one rival is better, so that rival's
p-value is multiplied by the number of rivals. Then all claims under one noise are corrected together (Holm). Scores are
means over all test sets, where a claim does not say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dvpo_lib.reporting.findings.recommended import recommendation_table, recommended_methods
from dvpo_lib.reporting.names import ABLATION_ROWS, BASE, DISPLAY_NAMES, display_name
from dvpo_lib.reporting.prose import join_words, markdown_table, noise_phrase, number_text
from dvpo_lib.reporting.statistics.comparisons import (
    FEWEST_SEEDS,
    claim_verdict,
    detectable_difference,
    holm_correction,
    run_pairs,
    sign_flip_test,
)

NO_CLAIM = "no claim"  # how verdicts on too few seeds begin
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
RUN = ["method", "variant", "noise", "family", "seed"]  # the columns that identify a run of a study
OFFLINE = ("cql", "rfqi")
VERDICT_COLUMNS = ["claim", "figure", "noise", "rival", "difference", "detectable", "n", "p", "corrected", "verdict"]


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong.

    Attributes:
        text: The sentence.
        study: The study of the evidence that decides it, which is also the name of its figure.
        own: The method or variant that is claimed to be better.
        rivals: (methods or variants of the study) -> those that it has to beat.
        pairs: (runs, own, rival) -> paired differences, as of `run_pairs`.
    """

    text: str
    study: str
    own: str
    rivals: Callable[[Sequence[str]], Sequence[str]]
    pairs: Callable[[pd.DataFrame, str, str], pd.DataFrame]


def overall_pairs(runs: pd.DataFrame, own: str, rival: str) -> pd.DataFrame:
    """Paired differences of the mean over all test sets."""
    pairs = run_pairs(runs, own, rival)
    return pairs[pairs["role"] == "ALL"]


def ood_minus_id_pairs(runs: pd.DataFrame, own: str, rival: str) -> pd.DataFrame:
    """Paired differences out of distribution, less those in distribution of the same runs."""
    pairs = run_pairs(runs, own, rival)
    keys = ["noise", "family", "seed"]
    far, near = (pairs[pairs["role"] == role].set_index(keys)["difference"] for role in ("OOD", "ID"))
    return (far - near).dropna().rename("difference").reset_index()


def _only(*rivals: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in rivals if name in there]


def _others(own: str, start: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in there if name != own and name.startswith(start)]


def _best(text: str, study: str, own: str, start: str) -> Claim:
    return Claim(text, study, own, _others(own, start), overall_pairs)


TERMS = {
    "head consistency": "Consistency of heads helps",
    "tail calibration": "Tail calibration helps",
    "mean shift": "The mean-shift term helps",
    "tail shape": "The tail-shape term helps",
    "tail curvature": "The tail-curvature term helps",
}
FULL = "+ tail shape and curvature"  # the ablation's row with all terms
CLAIMS = (
    Claim("DVPO is better than PPO", "comparison", "dvpo", _only("ppo"), overall_pairs),
    Claim("DVPO is better than GRPO", "comparison", "dvpo", _only("grpo"), overall_pairs),
    Claim("DVPO is better than robust Bellman PPO", "comparison", "dvpo", _only("robust_ppo"), overall_pairs),
    Claim("DVPO is better than offline worst-case methods", "comparison", "dvpo", _only(*OFFLINE), overall_pairs),
    Claim("DVPO's gain over PPO is larger OOD than ID", "comparison", "dvpo", _only("ppo"), ood_minus_id_pairs),
    *(Claim(text, "ablation", FULL, _only(f"without {term}"), overall_pairs) for term, text in TERMS.items()),
    _best("200 quantiles are best", "quantile_counts", "M = 200", "M = "),
    _best("A risk weight of 0.1 is best (mass of the tails)", "risk_weights", "tail mass 0.1", "tail mass"),
    _best("A risk weight of 0.1 is best (weight of the terms)", "risk_weights", "term weights x 1", "term weights"),
)


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


def run_count(runs: pd.DataFrame) -> int:
    """The number of runs in rows of a study."""
    return len(runs[RUN].drop_duplicates())


def study_table(questions: Mapping[str, str], evidence: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each study asks, and how many settings and seeds of it have been computed.

    Args:
        questions: {study: question}.
        evidence: {study: rows of its file}.
    """
    rows = []
    for study, question in questions.items():
        runs = evidence[study]
        seeds = runs[RUN].drop_duplicates().groupby(RUN[:-1])["seed"].size()
        fewest, most = (0, 0) if seeds.empty else (seeds.min(), seeds.max())
        span = f"{most}" if fewest == most else f"{fewest} to {most}"
        rows.append({"study": study.replace("_", " "), "question": question, "settings": len(seeds), "seeds": span})
    return pd.DataFrame(rows)


def verdict_table(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Verdicts on claims, a row for each claim and noise.

    Args:
        evidence: {study: rows of its file}, as of `read_evidence`; a study may be missing.
        claims: The claims.

    Returns:
        Columns VERDICT_COLUMNS. `rival` is the hardest one; `difference`, `detectable` (the smallest difference that
        these pairs would show) in shares; `n` is the fewest seeds of a rival; `p` of the claim alone, `corrected` for
        all claims under the noise that have enough seeds. All runs are of `claimed_family`.
    """
    rows = []
    for claim in claims:
        runs = evidence.get(claim.study)
        if runs is None or runs.empty:
            rows.append(dict(claim=claim.text, figure=claim.study, noise="", n=0))
            continue
        runs = as_methods(runs[runs["family"] == claimed_family(runs)])
        for noise, own in runs.groupby("noise", sort=False):
            rivals = claim.rivals(list(dict.fromkeys(own["method"])))
            if rivals:
                rows.append(dict(claim=claim.text, figure=claim.study, noise=noise, **_hardest(claim, own, rivals)))
    table = pd.DataFrame(rows).reindex(columns=[c for c in VERDICT_COLUMNS if c not in ("corrected", "verdict")])
    table["corrected"] = np.nan
    for _, group in table.dropna(subset="p").groupby("noise", sort=False):
        table.loc[group.index, "corrected"] = holm_correction(group["p"])
    table["verdict"] = [
        claim_verdict(d, p, int(n)) for d, p, n in zip(table["difference"], table["corrected"], table["n"], strict=True)
    ]
    return table[VERDICT_COLUMNS]


def _hardest(claim: Claim, runs: pd.DataFrame, rivals: Sequence[str]) -> dict:
    """The row of a claim under a noise; a rival without a pair of runs leaves it undecided."""
    found = []
    for rival in rivals:
        pairs = claim.pairs(runs, claim.own, rival)
        d, n = pairs["difference"].to_numpy(), pairs["seed"].nunique()
        known = dict(difference=d.mean(), detectable=detectable_difference(d)) if len(d) else {}
        found.append(dict(rival=rival, n=n, p=sign_flip_test(d) if len(d) > 1 else np.nan, **known))
    scored = [row for row in found if "difference" in row]
    if not scored:
        return dict(n=0)
    hardest, fewest = min(scored, key=lambda row: row["difference"]), min(row["n"] for row in found)
    if fewest < FEWEST_SEEDS:
        return {**hardest, "n": fewest, "p": np.nan}
    beaten = hardest["difference"] > 0
    p = max(row["p"] for row in found) if beaten else min(1.0, len(found) * hardest["p"])
    return {**hardest, "n": fewest, "p": p}


def verdict_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Verdicts as they are shown: a row for each claim, a column for each noise, the difference in points.

    Args:
        table: Of `verdict_table`.
    """
    noises = [noise for noise in dict.fromkeys(table["noise"]) if noise]
    rows = []
    for claim, own in table.groupby("claim", sort=False):
        cells = own.set_index("noise")
        row = {"claim": claim}
        for noise in noises:
            row[display_name(noise)] = _cell_text(cells.loc[noise]) if noise in cells.index else ""
        rows.append({**row, "figure": display_name(own["figure"].iloc[0])})
    return pd.DataFrame(rows)


def _cell_text(row: pd.Series) -> str:
    if np.isnan(row["difference"]):
        return row["verdict"]
    points = f"{100 * row['difference']:+.1f}"
    return f"{row['verdict']}, {points}" if row["verdict"].startswith(NO_CLAIM) else f"{row['verdict']} ({points})"


def verdict_findings(table: pd.DataFrame) -> str:
    """The verdicts in sentences: which claims hold under which noise, which are refuted, and what could be seen."""
    lines = []
    for verdict, opening in (("confirmed", "Confirmed"), ("refuted", "Refuted")):
        own = table[table["verdict"] == verdict]
        for claim, rows in own.groupby("claim", sort=False):
            where = join_words(f"{noise_phrase(r.noise)} ({100 * r.difference:+.1f} points)" for r in rows.itertuples())
            lines.append(f"- **{opening}**: {claim}, {where}.")
    judged = table[~table["verdict"].str.startswith(NO_CLAIM)]
    open_rows = judged[judged["verdict"] == "not confirmed"]
    if len(open_rows):
        seen = 100 * open_rows["detectable"].median()
        lines.append(
            f"- **Not confirmed**: {len(open_rows)} of {len(judged)} claims under a noise. The median difference that "
            f"as many runs would have shown is {number_text(seen, 1)} points."
        )
    if few := table[table["verdict"].str.startswith(NO_CLAIM)]["claim"].nunique():
        lines.append(f"- {few} claims have fewer than {FEWEST_SEEDS} seeds under some noise, and are not judged there.")
    return "\n".join(lines)


def verdict_page(evidence: Mapping[str, pd.DataFrame]) -> str:
    """The verdict as Markdown for README: the table of claims, the sentences, then the methods to use under each noise.

    It is "" if nothing has been computed.

    Args:
        evidence: {study: rows of its file}.
    """
    computed = {study: in_display_order(runs) for study, runs in evidence.items() if len(runs)}
    if not computed:
        return ""
    table = verdict_table(computed)
    known = table[table["n"] > 0]
    count = sum(run_count(runs) for runs in computed.values())
    parts = [markdown_table(verdict_matrix(known)), f"{verdict_findings(known)}\n- {count} runs.\n"]
    comparison = computed.get("comparison", pd.DataFrame(columns=RUN))
    if len(trained := covered_cells(comparison[comparison["method"] != BASE], FEWEST_SEEDS)):
        parts.append(markdown_table(recommendation_table(recommended_methods(trained))))
    return "\n".join(parts)
