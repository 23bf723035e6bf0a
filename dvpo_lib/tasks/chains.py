"""Chain problems: the common shape of the embedded families.

A chain starts in a state and applies operations one after the other; the answer is the last state. A worked solution
names each step with a letter, so that a small policy can look the operation up in the prompt::

    prompt      math 7 a +5 b *3 ?
    completion  careful a +5 = 2 b *3 = 6 so 6 answer 6

Demonstrations are of mixed quality. Three annotators write them, and the *style token* that opens a completion tells
which one: a careful, an average and a careless annotator, who differ in the rate of wrong steps. The style tokens are
shared by all families: choosing the careful style is what reinforcement learning can elicit, and what transfers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

STYLES = ("careful", "average", "careless")
LABELS = tuple("abcdefgh")
MARKERS = ("?", "=", "so", "answer")
SPLITS = ("demonstrations", "train", "test", "ood")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ChainSettings:
    """Sizes and error rates of one embedded family."""

    short: tuple[int, int] = (2, 3)  # steps (first, last) of training and in-distribution test problems
    long: tuple[int, int] = (4, 4)  # steps of the out-of-distribution test: never in reinforcement learning
    long_share: Annotated[float, Field(ge=0, le=1)] = 0.15  # share of demonstrations that are long
    step_errors: tuple[float, float, float] = (0.05, 0.35, 0.7)  # wrong steps by annotator, in the order of STYLES
    restate: Annotated[float, Field(ge=0, le=1)] = 0.3  # chance that a step's result is said again: lengths vary
    demonstrations: Annotated[int, Field(ge=1)] = 30_000  # worked solutions for the base policy
    train: Annotated[int, Field(ge=1)] = 1_000  # prompts for reinforcement learning
    test: Annotated[int, Field(ge=1)] = 256  # prompts of each test set
    seed: Annotated[int, Field(ge=0)] = 7  # of the suite: problems, annotators and (science) the knowledge base


@dataclass(frozen=True)
class Family:
    """A family of chain problems.

    Attributes:
        name: first word of every prompt.
        states: all states; a wrong step lands in another of them, uniformly.
        operations: all operations, each one word.
        apply: (state, operation) -> next state, the truth.
    """

    name: str
    states: tuple[str, ...]
    operations: tuple[str, ...]
    apply: Callable[[str, str], str]

    @property
    def words(self) -> list[str]:
        """Every word that prompts and solutions of this family can hold."""
        return list(dict.fromkeys([self.name, *MARKERS, *STYLES, *LABELS, *self.states, *self.operations]))

    def prompt(self, start: str, operations: list[str]) -> str:
        return " ".join([self.name, start, *(f"{a} {op}" for a, op in zip(LABELS, operations)), "?"])

    def answer(self, start: str, operations: list[str]) -> str:
        for op in operations:
            start = self.apply(start, op)
        return start

    def solution(self, start: str, operations: list[str], style: str, error: float, restate: float,
                 rng: np.random.Generator) -> str:
        """One annotator's worked solution; a wrong step is carried on, as people do."""
        words, state = [style], start
        for label, op in zip(LABELS, operations):
            result = self.apply(state, op)
            if rng.random() < error:
                result = str(rng.choice([s for s in self.states if s != result]))
            words += [label, op, "=", result]
            if rng.random() < restate:
                words += ["so", result]
            state = result
        return " ".join([*words, "answer", state])

    def sample(self, rng: np.random.Generator, steps: tuple[int, int]) -> tuple[str, list[str]]:
        length = int(rng.integers(steps[0], steps[1] + 1))
        return str(rng.choice(self.states)), [str(op) for op in rng.choice(self.operations, size=length)]


def hash_split(prompt: str) -> str:
    """The split that a prompt belongs to, by its text alone: splits can never share a prompt.

    60 % of all prompts may be demonstrated, 25 % trained on, 15 % tested.
    """
    share = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big") / 2**32
    return "demonstrations" if share < 0.6 else "train" if share < 0.85 else "test"


def build_split(family: Family, split: str, cfg: ChainSettings) -> Iterator[dict]:
    """Yields the records of one split: prompt, answer, steps, family (and completion, style for demonstrations).

    Prompts of `train`, `test` and `ood` are distinct; demonstrations may show a prompt several times, each time with
    its own annotator.

    Raises:
        ValueError: the family has too few distinct prompts for the size asked for.
    """
    rng = np.random.default_rng([cfg.seed, SPLITS.index(split)])
    size = cfg.test if split == "ood" else getattr(cfg, split)
    seen, made, tries = set(), 0, 0
    while made < size:
        tries += 1
        if tries > 200 * size + 10_000:
            raise ValueError(f"tasks.{family.name}.{split}: found only {made} distinct prompts of the {size} asked for")
        long = split == "ood" or (split == "demonstrations" and rng.random() < cfg.long_share)
        start, operations = family.sample(rng, cfg.long if long else cfg.short)
        prompt = family.prompt(start, operations)
        if hash_split(prompt) != ("test" if split == "ood" else split) or prompt in seen:
            continue
        record = dict(prompt=prompt, answer=family.answer(start, operations), steps=len(operations), family=family.name)
        if split == "demonstrations":
            style = int(rng.integers(len(STYLES)))
            record["style"] = STYLES[style]
            record["completion"] = family.solution(start, operations, STYLES[style], cfg.step_errors[style],
                                                   cfg.restate, rng)
        else:
            seen.add(prompt)
        made += 1
        yield record


def final_answer(completion: str) -> str | None:
    """The word after the last `answer`, or None where the completion gives none."""
    words = completion.split()
    where = [i for i, w in enumerate(words[:-1]) if w == "answer"]
    return words[where[-1] + 1] if where else None


def accuracy_reward(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float]:
    """1.0 where the final answer is the right one, else 0.0 (a reward function in TRL's signature)."""
    return [float(final_answer(c) == a) for c, a in zip(completions, answer, strict=True)]
