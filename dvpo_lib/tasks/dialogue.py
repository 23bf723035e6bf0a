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

Demonstrations: every annotator forgets to ask, forgets to answer or answers wrongly, and books wrong or stale values,
each at the step error of its style; what it did not ask for it guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from .chains import SPLITS, STYLES, hash_split
from .transcripts import FACTS, NUMBERS, USER, VALUES, follow, hold, pairs

GIVEN = 2  # slots that a prompt gives
SHORT_SERVICES = 6  # of a domain's services, those that need few slots; the rest need many
DOMAINS = {  # name: (slots in the order of a booking, services)
    "life": ("day hour place who size pay", "haircut cleaning laundry repair massage gardening moving wedding"),
    "transport": ("day hour place who seat pay", "taxi bus train ferry rental shuttle flight cruise"),
    "health": ("day hour place who sign pay", "checkup dentist vaccine eyetest therapy bloodtest surgery rehab"),
    "social": ("day hour place who size music", "dinner concert picnic club museum game festival reunion"),
    "finance": ("day hour place who sum pay", "transfer loan deposit exchange insurance pension mortgage audit"),
}


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class DialogueSettings:
    """Sizes and rates of the dialogues.

    Raises:
        pydantic.ValidationError: a setting out of its range, or numbers of slots that no services are made for.
    """

    short: tuple[Annotated[int, Field(ge=1, le=4)], Annotated[int, Field(ge=1, le=4)]] = (1, 2)  # slots to ask for
    long: tuple[Annotated[int, Field(ge=1, le=4)], Annotated[int, Field(ge=1, le=4)]] = (3, 4)  # out of distribution
    long_share: Annotated[float, Field(ge=0, le=1)] = 0.15  # share of demonstrations that are long
    changes: Annotated[float, Field(ge=0, le=1)] = 0.3  # chance, at each of its turns, that the user changes its mind
    questions: Annotated[float, Field(ge=0, le=1)] = 0.5  # chance, at each of its turns, that it asks a question
    step_errors: tuple[float, float, float] = (0.04, 0.3, 0.6)  # wrong steps by annotator, in the order of STYLES
    restate: Annotated[float, Field(ge=0, le=1)] = 0.5  # chance that a turn restates what was told: lengths vary
    demonstrations: Annotated[int, Field(ge=1)] = 30_000  # dialogues for the base policy
    train: Annotated[int, Field(ge=1)] = 1_000  # prompts for reinforcement learning
    test: Annotated[int, Field(ge=1)] = 256  # prompts of each test set
    seed: Annotated[int, Field(ge=0)] = 7  # of the suite: users, annotators, what services need, facts

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

    def sample(self, rng: np.random.Generator, steps: tuple[int, int], cfg: DialogueSettings) -> dict:
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


def build_split(family: Dialogues, split: str, cfg: DialogueSettings) -> Iterator[dict]:
    """Yields the records of one split: those of `Dialogues.sample` (and completion, style for demonstrations).

    Prompts of `train`, `test` and `ood` are distinct; demonstrations may show a prompt several times, each time with
    its own user and annotator.

    Raises:
        ValueError: there are too few distinct prompts for the size asked for.
    """
    rng = np.random.default_rng([cfg.seed, 3000 + SPLITS.index(split)])
    size = cfg.test if split == "ood" else getattr(cfg, split)
    seen, made, vain = set(), 0, 0
    while made < size:
        vain += 1
        if vain > 20_000:
            raise ValueError(f"tasks.{family.name}.{split}: found only {made} distinct prompts of the {size} asked for")
        long = split == "ood" or (split == "demonstrations" and rng.random() < cfg.long_share)
        record = family.sample(rng, cfg.long if long else cfg.short, cfg)
        if hash_split(record["prompt"]) != ("test" if split == "ood" else split) or record["prompt"] in seen:
            continue
        if split == "demonstrations":
            style = int(rng.integers(len(STYLES)))
            speak = annotator(record, STYLES[style], cfg.step_errors[style], cfg.restate, rng)
            record |= dict(style=STYLES[style], completion=hold(record, speak))
        else:
            seen.add(record["prompt"])
        made, vain = made + 1, 0
        yield record


def pick(values: Sequence, rng: np.random.Generator):
    """One of the values."""
    return values[rng.integers(len(values))]


def other(values: Iterable[str], value: str, rng: np.random.Generator) -> str:
    """One of the values, but not this one."""
    return pick([v for v in values if v != value], rng)


def annotator(record: Mapping, style: str, error: float, restate: float,
              rng: np.random.Generator) -> Callable[[str], str]:
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
        words.append("book")
        for slot in needed:
            value = state.known.get(slot) or pick(VALUES[slot], rng)
            if slot in state.known and rng.random() < error:
                value = state.stale.get(slot) or other(VALUES[slot], value, rng)
            words += [slot, value]
        return " ".join(words)

    return speak
