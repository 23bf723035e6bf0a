"""The verdict: claims of DVPO's paper and of this project, and whether the evidence confirms them at this scale.

A claim says that one setting scores higher than each of its rivals, in pairs of runs with equal noise, family and
seed; a claim may compare several measures. It is confirmed if every rival is beaten in every measure, so the largest of
their p-values counts (Berger 1982). It is refuted if one rival is better in one measure, so that p-value is multiplied
by the number of comparisons. Then all claims of one study under one noise are corrected together (Holm 1979), those
that cannot be judged yet among them: other studies do not change a verdict. Scores are means over all test sets, where
a claim does not say otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from dvpo_lib.reporting.names import BASE
from dvpo_lib.reporting.statistics.claims import CLAIMS, Claim, role_pairs
from dvpo_lib.reporting.statistics.comparisons import (
    FEWEST_SEEDS,
    SIGNIFICANCE,
    claim_verdict,
    detectable_difference,
    holm_correction,
    sign_flip_test,
)
from dvpo_lib.reporting.statistics.runs import run_scores
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS, as_methods, claimed_family

VERDICT_COLUMNS = [
    *"claim figure noise rival measure difference detectable by_role n p corrected".split(),
    *"verdict tuned_only repeats source".split(),
]


def verdict_table(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Verdicts on claims, a row for each claim and noise.

    Args:
        evidence: {study: rows of its file}, as of `read_evidence`; a study may be missing.
        claims: The claims.

    Returns:
        Columns VERDICT_COLUMNS. `rival` and `measure` decide: those with the largest p-value, or those that refute;
        `difference` is the mean difference to it, and `detectable` the smallest one that these pairs would show in this
        comparison after all corrections, in shares; `by_role` has the differences on the claim's roles in points, to
        be shown; `n` is the fewest seeds of a rival; `p` of the claim alone, `corrected` for all claims of the study
        under the noise; `tuned_only` whether a settled verdict on tuned methods does not hold at any equal learning
        rate. `repeats` and `source` are those of the claim. All runs are of `claimed_family`. A claim has no
        verdict if one of its runs diverged: it has no score.
    """
    rows, planned = [], Counter(claim.study for claim in claims)
    known = _claimed_scores(evidence, claims)
    for claim in claims:
        scores = known[claim.study, claim.metric]
        if scores.empty:
            rows.append(_label(claim, "") | dict(n=0))
            continue
        level = SIGNIFICANCE / planned[claim.study]
        for noise, own in scores.groupby("noise", sort=False):
            rivals = claim.rivals(list(dict.fromkeys(own["method"])))
            if rivals:
                rows.append(_label(claim, noise) | _judge(claim, own, rivals, level))
    told = [column for column in VERDICT_COLUMNS if column not in ("corrected", "verdict", "tuned_only")]
    table = pd.DataFrame(rows).reindex(columns=[*told, "lost"])
    table["corrected"] = np.nan
    for (study, _), group in table.dropna(subset="p").groupby(["figure", "noise"], sort=False):
        table.loc[group.index, "corrected"] = holm_correction(group["p"], planned[study])
    table["lost"], table["by_role"] = table["lost"].fillna(0), table["by_role"].astype(object).fillna("")
    table["verdict"] = [claim_verdict(r.difference, r.corrected, int(r.n), int(r.lost)) for r in table.itertuples()]
    return table.assign(tuned_only=_tuned_only(table))[VERDICT_COLUMNS]


def _tuned_only(table: pd.DataFrame) -> list[bool]:
    """Whether a settled verdict on tuned methods is another one, or none, at each equal learning rate."""
    again = table[(table["repeats"] != "") & (table["n"] >= FEWEST_SEEDS)]
    at_equal = again.groupby(["repeats", "noise"])["verdict"].agg(set).to_dict()
    flags = []
    for row in table.itertuples():
        equal = at_equal.get((row.claim, row.noise), set())
        flags.append(row.verdict in ("confirmed", "refuted") and bool(equal) and row.verdict not in equal)
    return flags


def runs_of_claim(evidence: Mapping[str, pd.DataFrame], claim: Claim) -> pd.DataFrame:
    """Rows of the claim's study in `claimed_family`, variants as methods; none if nothing has been computed."""
    runs = evidence.get(claim.study)
    runs = None if runs is None or runs.empty else runs[runs["method"] != BASE]
    if runs is None or runs.empty:
        return pd.DataFrame(columns=[*RUN_LABELS, "plan"])
    return as_methods(runs[runs["family"] == claimed_family(runs)])


def _claimed_scores(
    evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim]
) -> dict[tuple[str, str], pd.DataFrame]:
    """{(study, metric): `run_scores` of the runs that claims are about}."""
    scores = {}
    for claim in claims:
        if (key := (claim.study, claim.metric)) not in scores:
            runs = runs_of_claim(evidence, claim)
            scores[key] = runs if runs.empty else run_scores(runs, claim.metric, overall=True)
    return scores


def rate_interactions(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Whether a difference between two methods changes with the learning rate of both, in pairs of one seed.

    The comparison of tuned methods is no part of it: it shares the runs of one method with each equal rate, so that a
    change from it would be the other method's own.

    Args:
        evidence: As in `verdict_table`.
        claims: The claims; those that repeat another one count.

    Returns:
        Columns claim, noise, rival, measure, low and high (mean differences at the lower and the higher rate, in
        shares), p (of the change being 0), corrected (Holm over what is planned under one noise) and n, at least 10.
    """
    repeated: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.repeats:
            repeated.setdefault(claim.repeats, []).append(claim)
    rows, known = [], _claimed_scores(evidence, [low for low, _ in repeated.values()])
    for text, (low, high) in repeated.items():
        for noise, scores in known[low.study, low.metric].groupby("noise", sort=False):
            for measure in low.measures:
                ends = {name: _differences(k, scores, measure) for name, k in (("low", low), ("high", high))}
                pairs = pd.concat(ends, axis=1).dropna()
                if len(pairs) >= FEWEST_SEEDS:
                    p = sign_flip_test(pairs["high"] - pairs["low"])
                    row = dict(claim=text, noise=noise, rival=low.rival, measure=measure, p=p, n=len(pairs))
                    rows.append(row | pairs.mean().to_dict())
    table = pd.DataFrame(rows, columns=["claim", "noise", "rival", "measure", "low", "high", "p", "n"])
    planned = sum(len(low.measures) for low, _ in repeated.values())
    table["corrected"] = table.groupby("noise", sort=False)["p"].transform(lambda p: holm_correction(p, planned))
    return table


def _differences(claim: Claim, scores: pd.DataFrame, measure: str) -> pd.Series:
    """Paired differences to the claim's only rival, by family and seed; none before it has been computed."""
    rivals = claim.rivals(list(scores["method"].unique()))
    if not rivals:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []]))
    [rival] = rivals
    return claim.measures[measure](scores, claim.own, rival).set_index(["family", "seed"])["difference"]


def _label(claim: Claim, noise: str) -> dict:
    return dict(claim=claim.text, figure=claim.study, noise=noise, repeats=claim.repeats, source=claim.source)


def _judge(claim: Claim, scores: pd.DataFrame, rivals: Sequence[str], level: float) -> dict:
    """The row of a claim under a noise; a rival with too few pairs, or one that diverged, leaves it undecided."""
    found, seeds = [], scores.groupby("method")["seed"].agg(set)
    for rival, (measure, pairs_of) in product(rivals, claim.measures.items()):
        pairs = pairs_of(scores, claim.own, rival)
        found.append((dict(rival=rival, measure=measure), pairs["difference"].to_numpy(), pairs["seed"].nunique()))
    for measure, scores_of in claim.alone.items():
        own = scores_of(scores, claim.own)
        found.append((dict(rival="", measure=measure), own["difference"].to_numpy(), own["seed"].nunique()))
    fewest = min(n for *_, n in found)
    if fewest < FEWEST_SEEDS:
        ran = min(len(seeds.get(claim.own, set()) & seeds[rival]) for rival in rivals)
        return dict(n=fewest, lost=ran - fewest if ran >= FEWEST_SEEDS else 0)
    tested = [row | dict(difference=d.mean(), p=sign_flip_test(d), d=d) for row, d, _ in found]
    better = [row for row in tested if row["difference"] <= 0]
    if better:
        row = min(better, key=lambda row: (row["p"], row["difference"]))
        row["p"], level = min(1.0, len(tested) * row["p"]), level / len(tested)
    else:
        row = max(tested, key=lambda row: (row["p"], -row["difference"]))
    roles = {role: role_pairs(scores, claim.own, rivals[0], role)["difference"].mean() for role in claim.roles}
    by_role = ", ".join(f"{role} {100 * difference:+.1f}" for role, difference in roles.items())
    return row | dict(n=fewest, detectable=detectable_difference(row["d"], level), by_role=by_role)
