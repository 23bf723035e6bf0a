"""Task-oriented dialogues over five domains: the policy asks for what a service needs, answers questions, and books.

    prompt    life haircut day mon place north ?
    policy    careful ask hour <eos>
    user      <user> hour noon rather day tue price ? <eos>
    policy    say price 7 book day tue hour noon place north <eos>

A completion is the whole dialogue as text, turn by turn, policy first. Every finished turn ends with `<eos>`. Turns 2,
4, ... are the user's, whatever the policy writes, so the policy cannot forge one. The first turn opens with the style
token that all families share. No prompt states the slots that a service needs or the facts that a user may ask about:
the policy learns them from demonstrations.

This module holds the domains, the records and the annotators; `dialogue_rules` the grammar and the user;
`dialogue_scores` the metrics TCR, ACR and GCR.

Annotators go wrong at the step error of their style: they forget to ask (and guess the value later), forget to answer,
answer wrongly, or book a wrong or stale value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.dialogue_rules import (
    FACT_NUMBERS,
    FACTS,
    SLOT_VALUES,
    USER_MARKER,
    run_dialogue,
    track_dialogue,
    word_pairs,
)
from dvpo_lib.tasks.dialogue_scores import first_wrong_turn
from dvpo_lib.tasks.suites import STYLES, Rate, SuiteSettings

GIVEN_SLOTS = 2  # in every prompt
SHORT_SERVICES = 6  # in each domain; its other services need more slots
DOMAINS = {  # name: (slots in the order of a booking, services)
    "life": ("day hour place who size pay", "haircut cleaning laundry repair massage gardening moving wedding"),
    "transport": ("day hour place who seat pay", "taxi bus train ferry rental shuttle flight cruise"),
    "health": ("day hour place who sign pay", "checkup dentist vaccine eyetest therapy bloodtest surgery rehab"),
    "social": ("day hour place who size music", "dinner concert picnic club museum game festival reunion"),
    "finance": ("day hour place who sum pay", "transfer loan deposit exchange insurance pension mortgage audit"),
}
Slots = Annotated[int, Field(ge=1, le=4)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class DialogueSettings(SuiteSettings):
    """Sizes and rates of the dialogues.

    Raises:
        pydantic.ValidationError: If a setting is out of range, or if no service needs the numbers of slots.
    """

    short: tuple[Slots, Slots] = (1, 2)  # slots to ask for
    long: tuple[Slots, Slots] = (3, 4)  # slots to ask for out of distribution
    step_errors: tuple[Rate, Rate, Rate] = (0.04, 0.3, 0.6)  # wrong steps by annotator, in the order of STYLES
    restate: Rate = 0.5  # chance that a turn restates what was told, so that lengths vary
    changes: Rate = 0.3  # chance, at each turn, that the user changes its mind
    questions: Rate = 0.5  # chance, at each turn, that the user asks a question

    @model_validator(mode="after")
    def _services_fit(self):
        if not (self.short[0] <= self.short[1] < self.long[0] <= self.long[1] <= self.long[0] + 1):
            raise ValueError("slots to ask for: `long` must start above `short` and span at most two numbers")
        return self


@dataclass(frozen=True)
class Dialogues:
    """The dialogue family; a `World`.

    Attributes:
        needs: {(domain, service): slots it needs}, in the order of a booking.
        facts: {(domain, service, fact): number}.
    """

    needs: Mapping[tuple[str, str], tuple[str, ...]]
    facts: Mapping[tuple[str, str, str], str]
    name = "dialogue"

    @property
    def words(self) -> list[str]:
        """The vocabulary of prompts, policy and user."""
        grammar = ["?", *STYLES, USER_MARKER, "ask", "say", "book", "ok", "rather", "any"]
        named = [word for domain, service in self.needs for word in (domain, service)]
        values = [word for slot, values in SLOT_VALUES.items() for word in (slot, *values)]
        return list(dict.fromkeys([*grammar, *named, *values, *FACTS, *FACT_NUMBERS]))

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: DialogueSettings) -> dict:
        """Draws a user: its prompt, its goal and its script.

        Returns:
            A record: prompt, answer (slots and values wanted in the end), steps (slots to ask for), family, domain,
            and user (for each turn, the slots it changes and the facts it asks for, with their true numbers).
        """
        size = GIVEN_SLOTS + int(rng.integers(steps[0], steps[1] + 1))
        fitting = [key for key, slots in self.needs.items() if len(slots) == size]
        domain, service = pick_one(fitting, rng)
        needed = self.needs[domain, service]
        goal = {slot: pick_one(SLOT_VALUES[slot], rng) for slot in needed}
        given = [needed[i] for i in sorted(rng.permutation(size)[:GIVEN_SLOTS])]
        prompt = " ".join([domain, service, *(f"{slot} {goal[slot]}" for slot in given), "?"])
        unasked, script = [str(fact) for fact in rng.permutation(FACTS)], []
        for _ in range(size - GIVEN_SLOTS):
            words = []
            if rng.random() < cfg.changes:
                slot = pick_one(given, rng)
                goal[slot] = pick_other(SLOT_VALUES[slot], goal[slot], rng)
                words += [slot, goal[slot]]
            if unasked and rng.random() < cfg.questions:
                fact = unasked.pop()
                words += [fact, self.facts[domain, service, fact]]
            script.append(" ".join(words))
        answer = " ".join(f"{slot} {value}" for slot, value in goal.items())
        return dict(
            prompt=prompt, answer=answer, steps=size - GIVEN_SLOTS, family=self.name, domain=domain, user=script
        )

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        """Writes the dialogue of one annotator with the record's user."""
        return run_dialogue(record, make_annotator(record, style, error, restate, rng))

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index of the last word of the policy's first wrong turn; see `first_wrong_turn`."""
        return first_wrong_turn(record, completion)


def dialogue_world(cfg: DialogueSettings) -> Dialogues:
    """Builds the dialogue family: draws the needs and facts of every service from `cfg.seed`.

    The services of a domain take turns through the numbers of slots in `cfg.short` and `cfg.long`.
    """
    rng, needs, facts = np.random.default_rng([cfg.seed, 2000]), {}, {}
    for domain, (slots, services) in DOMAINS.items():
        slots = slots.split()
        for i, service in enumerate(services.split()):
            first, last = cfg.short if i < SHORT_SERVICES else cfg.long
            size = GIVEN_SLOTS + first + i % (last - first + 1)
            needs[domain, service] = tuple(slots[j] for j in sorted(rng.permutation(len(slots))[:size]))
            facts |= {(domain, service, fact): pick_one(FACT_NUMBERS, rng) for fact in FACTS}
    return Dialogues(needs, facts)


def dialogue_token_limit(steps: int) -> int:
    """Token limit of a dialogue with this many slots to ask for: above the longest demonstration."""
    return 20 * steps + 16


def pick_one(values: Sequence, rng: np.random.Generator):
    """One of the values, uniformly."""
    return values[rng.integers(len(values))]


def pick_other(values: Iterable[str], value: str, rng: np.random.Generator) -> str:
    """One of the values except `value`, uniformly."""
    return pick_one([v for v in values if v != value], rng)


def make_annotator(
    record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator
) -> Callable[[str], str]:
    """Builds an annotator for `run_dialogue`.

    Args:
        record: With answer and user.
        style: The style token that opens the dialogue.
        error: Probability that a step goes wrong.
        restate: Probability that a turn restates a slot that it was told.
        rng: Source of the errors and restatements.

    Returns:
        transcript -> the annotator's next turn.
    """
    needed = [slot for slot, _ in word_pairs(record["answer"].split())]
    forgotten, answered = {slot for slot in needed if rng.random() < error}, set()

    def speak(completion: str) -> str:
        state, _ = track_dialogue(record, completion)
        words = [] if completion else [style]
        if state.heard and rng.random() < restate:
            slot = pick_one(state.heard, rng)
            words += ["ok", slot, state.known[slot]]
        for fact, number in state.open.items():
            wrong, silent = rng.random() < error, rng.random() < 0.5
            if fact in answered or (wrong and silent):
                answered.add(fact)  # answered or forgotten: a forgotten question is never taken up again
                continue
            answered.add(fact)
            words += ["say", fact, pick_other(FACT_NUMBERS, number, rng) if wrong else number]
        missing = [slot for slot in needed if slot not in state.known and slot not in forgotten]
        if missing:
            return " ".join([*words, "ask", missing[0]])
        booking = {slot: state.known.get(slot) or pick_one(SLOT_VALUES[slot], rng) for slot in needed}
        if rng.random() < error:
            slot = pick_one(list(state.known), rng)
            booking[slot] = state.stale.get(slot) or pick_other(SLOT_VALUES[slot], booking[slot], rng)
        return " ".join([*words, "book", *(word for pair in booking.items() for word in pair)])

    return speak
