"""Task-oriented dialogues over five domains: the policy asks for what a service needs, answers questions, and books.

    prompt    life haircut day mon place north ?
    policy    careful ask hour <eos>
    user      <user> hour noon rather day tue price ? <eos>
    policy    say price 7 book day tue hour noon place north <eos>

A completion is the whole dialogue as text, turn by turn, policy first; every finished turn ends with `<eos>`. The
policy's turn ends where it writes `<eos>`, so turns 2, 4, ... are the user's whatever the policy writes: it cannot
forge one. The first turn opens with the style token that all families share. What a service needs, and the facts that a
user may ask about, stand in no prompt: the policy learns them from demonstrations.

`tasks.transcripts` has the grammar, the user and the metrics TCR, ACR and GCR; here are the domains, the records, and
the annotators.

Demonstrations: every annotator forgets to ask, forgets to answer or answers wrongly, and books a wrong or stale value,
each at the step error of its style; what it did not ask for it guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.dialogue_rules import FACTS, NUMBERS, USER, VALUES, first_fault, follow, hold, pairs
from dvpo_lib.tasks.suites import STYLES, Rate, SuiteSettings

GIVEN = 2  # slots that a prompt gives
SHORT_SERVICES = 6  # of a domain's services, those that need few slots; the rest need many
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
        pydantic.ValidationError: a setting out of its range, or numbers of slots that no services are made for.
    """

    short: tuple[Slots, Slots] = (1, 2)  # slots to ask for
    long: tuple[Slots, Slots] = (3, 4)  # slots to ask for out of distribution
    step_errors: tuple[Rate, Rate, Rate] = (0.04, 0.3, 0.6)  # wrong steps by annotator, in the order of STYLES
    restate: Rate = 0.5  # chance that a turn restates what was told: lengths vary
    changes: Rate = 0.3  # chance, at each of its turns, that the user changes its mind
    questions: Rate = 0.5  # chance, at each of its turns, that it asks a question

    @model_validator(mode="after")
    def _services_fit(self):
        if not (self.short[0] <= self.short[1] < self.long[0] <= self.long[1] <= self.long[0] + 1):
            raise ValueError("slots to ask for: `long` must begin beyond `short` and span at most two numbers")
        return self


@dataclass(frozen=True)
class Dialogues:
    """The family.

    Attributes:
        needs: {(domain, service): slots that it needs}, in the order of a booking.
        facts: {(domain, service, fact): number}.
    """

    needs: Mapping[tuple[str, str], tuple[str, ...]]
    facts: Mapping[tuple[str, str, str], str]
    name = "dialogue"

    @property
    def words(self) -> list[str]:
        """Every word that prompts, policy and user can say."""
        grammar = ["?", *STYLES, USER, "ask", "say", "book", "ok", "rather", "any"]
        named = [word for domain, service in self.needs for word in (domain, service)]
        values = [word for slot, values in VALUES.items() for word in (slot, *values)]
        return list(dict.fromkeys([*grammar, *named, *values, *FACTS, *NUMBERS]))

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: DialogueSettings) -> dict:
        """A user: its prompt, what it wants in the end, and its script.

        Returns:
            A record: prompt, answer (slots and values in the end), steps (slots to ask for), domain, family, and user:
            for each of its turns the slots that it changes and the facts that it asks for, with their true numbers.
        """
        size = GIVEN + int(rng.integers(steps[0], steps[1] + 1))
        fitting = [key for key, slots in self.needs.items() if len(slots) == size]
        domain, service = pick(fitting, rng)
        needed = self.needs[domain, service]
        goal = {slot: pick(VALUES[slot], rng) for slot in needed}
        given = [needed[i] for i in sorted(rng.permutation(size)[:GIVEN])]
        prompt = " ".join([domain, service, *(f"{slot} {goal[slot]}" for slot in given), "?"])
        unasked, script = [str(fact) for fact in rng.permutation(FACTS)], []
        for _ in range(size - GIVEN):
            words = []
            if rng.random() < cfg.changes:
                slot = pick(given, rng)
                goal[slot] = other(VALUES[slot], goal[slot], rng)
                words += [slot, goal[slot]]
            if unasked and rng.random() < cfg.questions:
                fact = unasked.pop()
                words += [fact, self.facts[domain, service, fact]]
            script.append(" ".join(words))
        answer = " ".join(f"{slot} {value}" for slot, value in goal.items())
        return dict(prompt=prompt, answer=answer, steps=size - GIVEN, family=self.name, domain=domain, user=script)

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        return hold(record, annotator(record, style, error, restate, rng))

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index, among the policy's words, of the last word of its first turn that does something wrong."""
        return first_fault(record, completion)


def family(cfg: DialogueSettings) -> Dialogues:
    """The world of a suite: what services need and their facts, drawn from its seed.

    A domain's services need the numbers of slots that `cfg.short` and `cfg.long` ask for, in turn.
    """
    rng, needs, facts = np.random.default_rng([cfg.seed, 2000]), {}, {}
    for domain, (slots, services) in DOMAINS.items():
        slots = slots.split()
        for i, service in enumerate(services.split()):
            first, last = cfg.short if i < SHORT_SERVICES else cfg.long
            size = GIVEN + first + i % (last - first + 1)
            needs[domain, service] = tuple(slots[j] for j in sorted(rng.permutation(len(slots))[:size]))
            facts |= {(domain, service, fact): pick(NUMBERS, rng) for fact in FACTS}
    return Dialogues(needs, facts)


def room(steps: int) -> int:
    """Tokens that a dialogue with so many slots to ask for may take: some more than the longest demonstration."""
    return 20 * steps + 16


def pick(values: Sequence, rng: np.random.Generator):
    """One of the values."""
    return values[rng.integers(len(values))]


def other(values: Iterable[str], value: str, rng: np.random.Generator) -> str:
    """One of the values, but not this one."""
    return pick([v for v in values if v != value], rng)


def annotator(
    record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator
) -> Callable[[str], str]:
    """An annotator, for `hold`: each step goes wrong at rate `error`."""
    needed = [slot for slot, _ in pairs(record["answer"].split())]
    forgotten, answered = {slot for slot in needed if rng.random() < error}, set()

    def speak(completion: str) -> str:
        state, _ = follow(record, completion)
        words = [] if completion else [style]
        if state.heard and rng.random() < restate:
            slot = pick(state.heard, rng)
            words += ["ok", slot, state.known[slot]]
        for fact, number in state.open.items():
            wrong, silent = rng.random() < error, rng.random() < 0.5
            if fact in answered or (wrong and silent):
                answered.add(fact)  # or forgotten: it does not come back to it
                continue
            answered.add(fact)
            words += ["say", fact, other(NUMBERS, number, rng) if wrong else number]
        missing = [slot for slot in needed if slot not in state.known and slot not in forgotten]
        if missing:
            return " ".join([*words, "ask", missing[0]])
        booking = {slot: state.known.get(slot) or pick(VALUES[slot], rng) for slot in needed}
        if rng.random() < error:
            slot = pick(list(state.known), rng)
            booking[slot] = state.stale.get(slot) or other(VALUES[slot], booking[slot], rng)
        return " ".join([*words, "book", *(word for pair in booking.items() for word in pair)])

    return speak
