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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.statistics.comparisons import (
    FEWEST_SEEDS,
    SIGNIFICANCE,
    claim_verdict,
    detectable_difference,
    holm_correction,
    run_pairs,
    sign_flip_test,
)
from dvpo_lib.reporting.statistics.runs import run_scores
from dvpo_lib.reporting.statistics.study_rows import RUN_LABELS, as_methods, claimed_family

Pairs = Callable[[pd.DataFrame, str, str], pd.DataFrame]
OFFLINE = ("cql", "rfqi")
RATES = ("1e-4", "2e-4")  # of the study of learning rates
VERDICT_COLUMNS = "claim figure noise rival measure difference detectable n p corrected verdict repeats paper".split()


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong.

    Attributes:
        text: The sentence.
        study: The study of the evidence that decides it, which is also the name of its figure.
        own: The method or variant that is claimed to be better.
        rivals: (methods or variants of the study) -> those that it has to beat.
        measures: {name: (scores, own, rival) -> paired differences, as of `run_pairs`}; in each the rivals are beaten.
        alone: {name: (scores, own) -> columns seed and difference}; each difference has to be above 0, without a rival.
        metric: The metric of the scores.
        repeats: The text of the claim that this one repeats with a setting held equal; "" for none.
        paper: Whether it is a claim of the paper; else it is this project's.
    """

    text: str
    study: str
    own: str
    rivals: Callable[[Sequence[str]], Sequence[str]]
    measures: Mapping[str, Pairs]
    alone: Mapping[str, Callable[[pd.DataFrame, str], pd.DataFrame]] = field(default_factory=dict)
    metric: str = "sampled"
    repeats: str = ""
    paper: bool = True


def role_pairs(scores: pd.DataFrame, own: str, rival: str, role: str = "ALL") -> pd.DataFrame:
    """Paired differences of the mean over the test sets of a role; ALL: over all test sets."""
    return run_pairs(scores[scores["role"] == role], own, rival)


def beyond_id_pairs(scores: pd.DataFrame, own: str, rival: str, role: str) -> pd.DataFrame:
    """Paired differences on test sets of another role, minus those in distribution of the same runs."""
    keys = ["noise", "family", "seed"]
    far, near = (role_pairs(scores, own, rival, r).set_index(keys)["difference"] for r in (role, "ID"))
    return (far - near).dropna().rename("difference").reset_index()


def above_chance(scores: pd.DataFrame, own: str, chance: float) -> pd.DataFrame:
    """The overall score of `own` minus its value by chance, for each run."""
    rows = scores[(scores["method"] == own) & (scores["role"] == "ALL")]
    return rows.assign(difference=rows["value"] - chance).dropna(subset="difference")


OVERALL = {"": role_pairs}  # the measure of most claims
TD_AUC = "error_td_auc"  # with which TD errors find the first wrong step; that of advantages depends on lambda
AUC = ("AUC", "AUC minus chance")  # measures that are no shares of a score


def _lead_beyond_id(role: str) -> dict[str, Pairs]:
    """A lead on other test sets that is larger than in distribution: without a lead there it is none."""
    return {f"{role} minus ID": partial(beyond_id_pairs, role=role), role: partial(role_pairs, role=role)}


def _only(*rivals: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in rivals if name in there]


def _others(own: str, start: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in there if name != own and name.startswith(start)]


def _best(text: str, study: str, own: str, start: str) -> Claim:
    return Claim(text, study, own, _others(own, start), OVERALL)


def _with_equal_rates(text: str, rival: str, measures: Mapping[str, Pairs], paper: bool = True) -> Iterator[Claim]:
    """A claim about DVPO and a rival as tuned, and again at equal learning rates, since tuning chose different ones."""
    yield Claim(text, "comparison", "dvpo", _only(rival), measures, paper=paper)
    for rate in RATES:
        own, other = (f"{display_name(method)}, learning rate {rate}" for method in ("dvpo", rival))
        again = f"{text}, both at learning rate {rate}"
        yield Claim(again, "learning_rates", own, _only(other), measures, repeats=text, paper=paper)


TERMS = {
    "head consistency": "Consistency of heads helps",
    "tail calibration": "Tail calibration helps",
    "mean shift": "The mean-shift term helps",
    "tail shape": "The tail-shape term helps",
    "tail curvature": "The tail-curvature term helps",
}
FULL = "+ tail shape and curvature"  # the ablation's row with all terms
CLAIMS = (
    *_with_equal_rates("DVPO is better than PPO", "ppo", OVERALL),
    *_with_equal_rates("DVPO is better than GRPO", "grpo", OVERALL),
    Claim("DVPO is better than robust Bellman PPO", "comparison", "dvpo", _only("robust_ppo"), OVERALL),
    Claim("DVPO is better than offline worst-case methods", "comparison", "dvpo", _only(*OFFLINE), OVERALL),
    *_with_equal_rates(  # the paper's "OOD" is the other family
        "DVPO leads PPO on other families (transfer), and by more than ID", "ppo", _lead_beyond_id("transfer")
    ),
    *(Claim(text, "ablation", FULL, _only(f"without {term}"), OVERALL) for term, text in TERMS.items()),
    _best("200 quantiles are best", "quantile_counts", "M = 200", "M = "),
    _best("A risk weight of 0.1 is best (mass of the tails)", "risk_weights", "tail mass 0.1", "tail mass"),
    _best("A risk weight of 0.1 is best (weight of the terms)", "risk_weights", "term weights x 1", "term weights"),
    *_with_equal_rates(
        "DVPO leads PPO on longer problems (OOD), and by more than ID", "ppo", _lead_beyond_id("OOD"), paper=False
    ),
    # Quantiles against the scalar critic is "DVPO is better than PPO" at the study's rate, judged above.
    Claim("Quantiles are better than bins", "critic_kinds", "quantiles", _only("categorical"), OVERALL, paper=False),
    Claim(
        "The critic's view of a reward is better than the reward as received",
        "denoised",
        "quantile, median, weight 0",
        _only("quantile, median, weight 1"),
        OVERALL,
        paper=False,
    ),
    Claim(
        "A distribution's view of a reward is better than a point's, or than the prompt's mean",
        "denoised",
        "quantile, median, weight 0",
        _only("scalar, median, weight 0", "scalar, prompt mean, weight 0"),
        OVERALL,
        paper=False,
    ),
    Claim(
        "DVPO's TD errors find a wrong step, and better than those of PPO and robust Bellman PPO",
        "wrong_steps",
        "dvpo",
        _only("ppo", "robust_ppo"),
        {"AUC": role_pairs},
        {"AUC minus chance": partial(above_chance, chance=0.5)},
        metric=TD_AUC,
        paper=False,
    ),
)


def verdict_table(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Verdicts on claims, a row for each claim and noise.

    Args:
        evidence: {study: rows of its file}, as of `read_evidence`; a study may be missing.
        claims: The claims.

    Returns:
        Columns VERDICT_COLUMNS. `rival` and `measure` decide: those with the largest p-value, or those that refute;
        `difference` is the mean difference to it, and `detectable` the smallest one that these pairs would show in this
        comparison after all corrections, in shares; `n` is the fewest seeds of a rival; `p` of the claim alone,
        `corrected` for all claims of the study under the noise. `repeats` and `paper` are as of the claim. All runs are
        of `claimed_family`. A claim has no verdict if one of its runs diverged: it has no score.
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
    told = [column for column in VERDICT_COLUMNS if column not in ("corrected", "verdict")]
    table = pd.DataFrame(rows).reindex(columns=[*told, "lost"])
    table["corrected"] = np.nan
    for (study, _), group in table.dropna(subset="p").groupby(["figure", "noise"], sort=False):
        table.loc[group.index, "corrected"] = holm_correction(group["p"], planned[study])
    table["lost"] = table["lost"].fillna(0)
    table["verdict"] = [claim_verdict(r.difference, r.corrected, int(r.n), int(r.lost)) for r in table.itertuples()]
    return table[VERDICT_COLUMNS]


def runs_of_claim(evidence: Mapping[str, pd.DataFrame], claim: Claim) -> pd.DataFrame:
    """Rows of the claim's study in `claimed_family`, variants as methods; none if nothing has been computed."""
    runs = evidence.get(claim.study)
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


def repeat_differences(evidence: Mapping[str, pd.DataFrame], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """How far a difference changes where a claim is repeated with a setting held equal, in pairs of one seed.

    A changed verdict shows no changed difference: verdicts depend on the spread over seeds, too.

    Args:
        evidence: As in `verdict_table`.
        claims: The claims.

    Returns:
        Columns claim, again (text of the repetition), noise, measure, first and second (mean differences, shares), p
        of their difference being 0, corrected (Holm over all rows of one noise) and n, at least 10.
    """
    rows, texts, known = [], {claim.text: claim for claim in claims}, _claimed_scores(evidence, claims)
    for again in (claim for claim in claims if claim.repeats):
        claim = texts[again.repeats]
        both = [known[k.study, k.metric].groupby("noise", sort=False) for k in (claim, again)]
        for noise in (noise for noise in both[0].groups if noise in both[1].groups):
            for measure in claim.measures:
                found = [_differences(k, own.get_group(noise), measure) for k, own in zip((claim, again), both)]
                pairs = pd.concat(found, axis=1, keys=["first", "second"]).dropna()
                if len(pairs) >= FEWEST_SEEDS:
                    label = dict(claim=claim.text, again=again.text, noise=noise, measure=measure, n=len(pairs))
                    rows.append(
                        label | pairs.mean().to_dict() | dict(p=sign_flip_test(pairs["second"] - pairs["first"]))
                    )
    table = pd.DataFrame(rows, columns=["claim", "again", "noise", "measure", "first", "second", "p", "n"])
    table["corrected"] = table.groupby("noise", sort=False)["p"].transform(holm_correction)
    return table


def _differences(claim: Claim, scores: pd.DataFrame, measure: str) -> pd.Series:
    """Paired differences of a claim with one rival, by seed."""
    rivals = claim.rivals(list(scores["method"].unique()))
    pairs = [claim.measures[measure](scores, claim.own, rival).set_index("seed")["difference"] for rival in rivals]
    return pairs[0] if pairs else pd.Series(dtype=float)


def _label(claim: Claim, noise: str) -> dict:
    return dict(claim=claim.text, figure=claim.study, noise=noise, repeats=claim.repeats, paper=claim.paper)


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
    return row | dict(n=fewest, detectable=detectable_difference(row["d"], level))
