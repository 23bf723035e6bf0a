"""Findings about worlds: what their families are, and whether methods come in the same order in two of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd

from dvpo_lib.reporting import statistics
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.prose import join_words, noise_phrase, number_text

FAMILY_TEXTS = {
    "math": "arithmetic modulo 10, `math 7 a +5 b *3 ?`. The prompt holds everything that the solution needs.",
    "science": "relations among the species of a fictional world, `science glim a host b prey ?`. The prompt holds no "
    "facts; the policy has them from its demonstrations.",
    "dialogue": "a user asks for one of 40 services in five domains (life services, transport, health, social, "
    "finance). The policy has to ask for each slot that the service needs and the user has not given, answer the "
    "user's questions, notice a change of mind, and book with the right values. No prompt says which slots a service "
    "needs or answers the questions that a user may ask.",
    "slots": "real conversations of users with assistants (SGD, schema-guided dialogues, CC BY-SA 4.0). A question "
    "shows their last turns and names slots. The answer is the value of each slot as the user gave it, `none` if the "
    "user did not, or `dontcare` if any value will do. In distribution: held-out dialogues of services that are "
    "trained on. Out of distribution: services that were neither demonstrated nor trained on.",
    "other_slots": "the same questions in other domains, demonstrated but never trained on.",
    "gsm8k": "grade-school mathematics in words (GSM8K, MIT); out of distribution are the longest problems.",
    "mmlu": "questions on science with four options (MMLU's STEM subjects, MIT); out of distribution are the longest.",
}
GENERATED_TEXT = (
    "These families are generated. In math and science a problem is a chain: a state, operations one after the other, "
    "and as answer the last state. A dialogue has several turns.\n\n"
    "Demonstrations are of mixed quality. Three annotators write them, and the first word of a solution names its "
    "annotator: the *careful* one gets few steps wrong, the *average* one more, the *careless* one most. The base "
    "policy imitates all three. Reinforcement learning can elicit the careful style in the trained family, and also in "
    "the others, because the word is the same everywhere: transfer can be measured. The longer problems (OOD) never "
    "occur in reinforcement learning.\n\n"
    "The reward of a chain is 1 if the final answer is right, else 0. The reward of a dialogue is the mean of three "
    "metrics: task completion (TCR: booked with exactly the slots that the service needs, each given by the user "
    "before), ask completion (ACR: the share of due acts that were done, with a penalty for needless ones) and goal "
    "completion (GCR: all booked values match the user's final goal)."
)
PUBLISHED_TEXT = (
    "These families are published data, and the base policy is a published language model. Demonstrations show the "
    "form of an answer; a short warm-up on them precedes everything. The reward is 1 if the answer is verified as "
    "right, else 0."
)


def family_findings(families: Iterable[str]) -> str:
    """The families of a world, what its demonstrations are and what is rewarded."""
    families = list(families)
    lines = [f"- **{name}**: {FAMILY_TEXTS[name]}" for name in families]
    about = GENERATED_TEXT if set(families) & {"math", "science", "dialogue"} else PUBLISHED_TEXT
    return "\n".join([*lines, "", about])


def order_findings(here: pd.DataFrame, there: pd.DataFrame, role: str = "ID", metric: str = "sampled") -> str:
    """Whether methods come in the same order in two worlds, under each noise that both have.

    Args:
        here: Runs on generated problems, as in `statistics.run_scores`.
        there: Runs on a published language model.
        role: The role of the test sets.
        metric: The metric to compare.
    """
    lines = []
    scores = [_scores(runs, role, metric) for runs in (here, there)]
    for noise in dict.fromkeys(noise for noise, _ in scores[0] if noise in {n for n, _ in scores[1]}):
        both = [method for n, method in scores[0] if n == noise and (noise, method) in scores[1]]
        if len(both) < 2:
            continue
        orders = [sorted(both, key=lambda m, own=own: -own[noise, m]) for own in scores]
        pairs = list(itertools.combinations(both, 2))
        alike = sum(
            (scores[0][noise, a] - scores[0][noise, b]) * (scores[1][noise, a] - scores[1][noise, b]) > 0
            for a, b in pairs
        )
        names = [
            join_words(f"{look_of(m).name} {number_text(100 * own[noise, m], 0)}" for m in order)
            for order, own in zip(orders, scores, strict=True)
        ]
        lines.append(
            f"- **{noise_phrase(noise, capital=True)}**, from best to worst: on generated problems {names[0]}; on the "
            f"language model {names[1]}. {alike} of {len(pairs)} pairs are in the same order (by chance: half of them)."
        )
    counts = [own["seed"].nunique() for own in (here, there)]
    ours, theirs = ("one seed" if count == 1 else f"at most {count} seeds" for count in counts)
    seeds = f"{ours} on generated problems, {theirs} on the language model"
    lines += [f"- Scores in per cent (ID), interquartile means; {seeds}."] * bool(lines)
    return "\n".join(lines) or "Too few runs have been computed to compare an order."


def _scores(runs: pd.DataFrame, role: str, metric: str) -> dict[tuple[str, str], float]:
    """{(noise, method): interquartile mean}, without missing ones."""
    if runs.empty:
        return {}
    table = statistics.summarise_scores(runs, metric).dropna(subset="iqm")
    return {(r.noise, r.method): r.iqm for r in table[table["role"] == role].itertuples()}
