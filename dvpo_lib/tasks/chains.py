"""Chain problems, the common form of the math and science families.

A chain starts in a state and applies one operation after another; the answer is the last state. A worked solution
repeats the letter of each step, so that a small policy can look the operation up in the prompt::

    prompt      math 7 a +5 b *3 ?
    completion  careful a +5 = 2 b *3 = 6 so 6 answer 6

A wrong step leads to a random other state, and the solution goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.suites import STYLES, SuiteSettings

STEP_LETTERS = tuple("abcdefgh")
MARKERS = ("?", "=", "so", "answer")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ChainSettings(SuiteSettings):
    """Sizes and rates of one family of chains."""


@dataclass(frozen=True)
class Chains:
    """A family of chain problems; a `World`.

    Attributes:
        name: First word of every prompt.
        states: All states. A wrong step leads to another of them, uniformly.
        operations: All operations, each one word.
        apply: (state, operation) -> the true next state.
    """

    name: str
    states: tuple[str, ...]
    operations: tuple[str, ...]
    apply: Callable[[str, str], str]

    @property
    def words(self) -> list[str]:
        """The vocabulary of the family's prompts and solutions."""
        return list(dict.fromkeys([self.name, *MARKERS, *STYLES, *STEP_LETTERS, *self.states, *self.operations]))

    def prompt(self, start: str, operations: list[str]) -> str:
        """The question as text."""
        return " ".join([self.name, start, *(f"{a} {op}" for a, op in zip(STEP_LETTERS, operations)), "?"])

    def answer(self, start: str, operations: list[str]) -> str:
        """The true last state."""
        for op in operations:
            start = self.apply(start, op)
        return start

    def solution(
        self, start: str, operations: list[str], style: str, error: float, restate: float, rng: np.random.Generator
    ) -> str:
        """Writes one annotator's worked solution; later steps build on a wrong result.

        Args:
            start: The first state.
            operations: The operations of the prompt.
            style: The style token that opens the solution.
            error: Probability that a step is wrong.
            restate: Probability that a step's result is said again.
            rng: Source of the errors and restatements.
        """
        words, state = [style], start
        for letter, op in zip(STEP_LETTERS, operations):
            result = self.apply(state, op)
            if rng.random() < error:
                result = str(rng.choice([s for s in self.states if s != result]))
            words += [letter, op, "=", result]
            if rng.random() < restate:
                words += ["so", result]
            state = result
        return " ".join([*words, "answer", state])

    def sample(self, rng: np.random.Generator, steps: tuple[int, int]) -> tuple[str, list[str]]:
        """Draws a start state and between steps[0] and steps[1] operations."""
        length = int(rng.integers(steps[0], steps[1] + 1))
        return str(rng.choice(self.states)), [str(op) for op in rng.choice(self.operations, size=length)]

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: ChainSettings) -> dict:
        """Draws a problem: prompt, answer, steps, family."""
        start, operations = self.sample(rng, steps)
        return dict(
            prompt=self.prompt(start, operations),
            answer=self.answer(start, operations),
            steps=len(operations),
            family=self.name,
        )

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        """Writes a `solution` of a record."""
        words = record["prompt"].split()
        return self.solution(words[1], words[3::2], style, error, restate, rng)

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index of the first wrong word of a worked solution; None if all steps are right.

        A step reads `<letter> <operation> = <result>`. It is wrong if its operation is not the prompt's, or if its
        result does not follow from the state before it. The answer is wrong if it differs from the last state.
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


def chain_token_limit(steps: int) -> int:
    """Token limit of a solution with this many steps: a third more than the longest demonstration needs."""
    return 8 * steps + 8


def final_answer(completion: str) -> str | None:
    """The word after the last `answer`; None if there is none."""
    words = completion.split()
    markers = [i for i, w in enumerate(words[:-1]) if w == "answer"]
    return words[markers[-1] + 1] if markers else None


def accuracy_reward(prompts: list[str], completions: list[str], answer: list[str], **columns) -> list[float]:
    """Reward 1.0 if the final answer is right, else 0.0 (a reward function in TRL's signature)."""
    return [float(final_answer(c) == a) for c, a in zip(completions, answer, strict=True)]
