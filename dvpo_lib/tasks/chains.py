"""Chain problems: the common shape of mathematics and science.

A chain starts in a state and applies operations one after the other; the answer is the last state. A worked solution
names each step with a letter, so that a small policy can look the operation up in the prompt::

    prompt      math 7 a +5 b *3 ?
    completion  careful a +5 = 2 b *3 = 6 so 6 answer 6

A wrong step of an annotator lands in any other state, and is carried on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.suites import STYLES, SuiteSettings

LABELS = tuple("abcdefgh")
MARKERS = ("?", "=", "so", "answer")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ChainSettings(SuiteSettings):
    """Sizes and rates of one family of chains."""


@dataclass(frozen=True)
class Chains:
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

    def solution(
        self, start: str, operations: list[str], style: str, error: float, restate: float, rng: np.random.Generator
    ) -> str:
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

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: ChainSettings) -> dict:
        start, operations = self.sample(rng, steps)
        return dict(
            prompt=self.prompt(start, operations),
            answer=self.answer(start, operations),
            steps=len(operations),
            family=self.name,
        )

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        words = record["prompt"].split()
        return self.solution(words[1], words[3::2], style, error, restate, rng)

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index of the first word of a worked solution that is wrong, None where all steps are right.

        A step reads `<letter> <operation> = <result>`; it is wrong where the operation is not the prompt's, or the
        result not what the operation makes of the state before it. The answer is wrong where it is not the last state.
        """
        asked, words = record["prompt"].split(), completion.split()
        state, operations = asked[1], dict(zip(asked[2:-1:2], asked[3:-1:2], strict=False))
        for i, word in enumerate(words):
            if word not in operations or words[i + 2 : i + 3] != ["="]:
                continue
            if words[i + 1] != operations[word]:
                return i + 1
            if words[i + 3 : i + 4] != [self.apply(state, operations[word])]:
                return min(i + 3, len(words) - 1)
            state = words[i + 3]
        said = [i for i, word in enumerate(words[:-1]) if word == "answer"]
        return said[-1] + 1 if said and words[said[-1] + 1] != state else None


def room(steps: int) -> int:
    """Tokens that a completion of so many steps may take: a third more than the longest worked solution."""
    return 8 * steps + 8


def final_answer(completion: str) -> str | None:
    """The word after the last `answer`, or None where the completion gives none."""
    words = completion.split()
    where = [i for i, w in enumerate(words[:-1]) if w == "answer"]
    return words[where[-1] + 1] if where else None


def accuracy_reward(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float]:
    """1.0 where the final answer is the right one, else 0.0 (a reward function in TRL's signature)."""
    return [float(final_answer(c) == a) for c, a in zip(completions, answer, strict=True)]
