"""Claims of DVPO's paper and of this project: which setting is better than which, in which measure, by which study.

`verdicts` judges them. Another claim is another row of CLAIMS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.statistics.comparisons import run_pairs

Pairs = Callable[[pd.DataFrame, str, str], pd.DataFrame]
OFFLINE = ("cql", "rfqi")
CONTROLS = ("ppo_clip_reward", "grpo_clip_reward")  # PPO and GRPO on clipped rewards, each tuned by itself
RATES = ("1e-4", "2e-4")  # of the study of learning rates, the lower one first
PAPER, PARTLY, OURS = "paper", "paper (in part)", "project"  # sources of claims; the paper's as its summaries give them


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
        repeats: The text of the claim that this one repeats with both methods at one learning rate; "" for none.
        rival: The only rival of such a claim.
        roles: Roles of test sets on which the differences to the first rival are shown in place of the deciding one.
        source: Whose claim it is: of PAPER, PARTLY or OURS.
    """

    text: str
    study: str
    own: str
    rivals: Callable[[Sequence[str]], Sequence[str]]
    measures: Mapping[str, Pairs]
    alone: Mapping[str, Callable[[pd.DataFrame, str], pd.DataFrame]] = field(default_factory=dict)
    metric: str = "sampled"
    repeats: str = ""
    rival: str = ""
    roles: tuple[str, ...] = ()
    source: str = PAPER


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


def _only(*rivals: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in rivals if name in there]


def _others(own: str, start: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda there: [name for name in there if name != own and name.startswith(start)]


def _best(text: str, study: str, own: str, start: str) -> Claim:
    return Claim(text, study, own, _others(own, start), OVERALL)


def _with_equal_rates(text: str, rival: str, role: str = "", source: str = PAPER) -> Iterator[Claim]:
    """A claim about DVPO and a rival as tuned, and again at equal learning rates, since tuning chose different ones.

    With a role, the claim is of a lead there that is larger than in distribution: without a lead there it is none.
    """
    measures: Mapping[str, Pairs] = OVERALL
    if role:
        measures = {f"{role} minus ID": partial(beyond_id_pairs, role=role), role: partial(role_pairs, role=role)}
    roles = (role, "ID") if role else ()
    yield Claim(text, "comparison", "dvpo", _only(rival), measures, roles=roles, source=source)
    for rate in RATES:
        own, other = (f"{display_name(method)}, learning rate {rate}" for method in ("dvpo", rival))
        again, same = f"{text}, both at learning rate {rate}", dict(repeats=text, rival=rival, roles=roles)
        yield Claim(again, "learning_rates", own, _only(other), measures, source=source, **same)


TERMS = {
    "head consistency": "Consistency of heads helps",
    "tail calibration": "Tail calibration helps",
    "mean shift": "The mean-shift term helps",
    "tail shape": "The tail-shape term helps",
    "tail curvature": "The tail-curvature term helps",
}
FULL = "+ tail shape and curvature"  # the ablation's row with all terms
CLAIMS = (
    *_with_equal_rates("DVPO is better than PPO", "ppo"),
    *_with_equal_rates("DVPO is better than GRPO", "grpo"),
    Claim("DVPO is better than Robust PPO", "comparison", "dvpo", _only("robust_ppo"), OVERALL),
    # The paper names offline worst-case methods as a motive; its summaries have no scores of them.
    Claim(
        "DVPO is better than offline worst-case methods", "comparison", "dvpo", _only(*OFFLINE), OVERALL, source=OURS
    ),
    Claim(
        "DVPO is better than PPO and GRPO on clipped rewards",
        "comparison",
        "dvpo",
        _only(*CONTROLS),
        OVERALL,
        source=OURS,
    ),
    *_with_equal_rates(  # so in the paper's table if trained on science, not if trained on math
        "DVPO leads PPO on other families (transfer), and by more than ID", "ppo", "transfer", PARTLY
    ),
    *(Claim(text, "ablation", FULL, _only(f"without {term}"), OVERALL) for term, text in TERMS.items()),
    _best("200 quantiles are best", "quantile_counts", "M = 200", "M = "),
    _best("A risk weight of 0.1 is best (mass of the tails)", "risk_weights", "tail mass 0.1", "tail mass"),
    _best("A risk weight of 0.1 is best (weight of the terms)", "risk_weights", "term weights x 1", "term weights"),
    *_with_equal_rates("DVPO leads PPO on longer problems (OOD), and by more than ID", "ppo", "OOD", OURS),
    # Quantiles against the scalar critic is "DVPO is better than PPO" at the study's rate, judged above.
    Claim(
        "DVPO's critic is better than a categorical one",
        "critic_kinds",
        "quantiles",
        _only("categorical"),
        OVERALL,
        source=OURS,
    ),
    Claim(
        "The median of DVPO's critic teaches better than the reward as received",
        "denoised",
        "quantile, median, weight 0",
        _only("quantile, median, weight 1"),
        OVERALL,
        source=OURS,
    ),
    Claim(
        "The median of DVPO's critic teaches better than a scalar critic's value and the prompt's mean",
        "denoised",
        "quantile, median, weight 0",
        _only("scalar, median, weight 0", "scalar, prompt mean, weight 0"),
        OVERALL,
        source=OURS,
    ),
    Claim(
        "DVPO's TD errors find a wrong step, and better than those of PPO and Robust PPO",
        "wrong_steps",
        "dvpo",
        _only("ppo", "robust_ppo"),
        {"AUC": role_pairs},
        {"AUC minus chance": partial(above_chance, chance=0.5)},
        metric=TD_AUC,
        source=OURS,
    ),
)
