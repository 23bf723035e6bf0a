"""What all families share: splits that can never share a prompt, sizes, and demonstrations of mixed quality.

Three annotators write the demonstrations, and the *style token* that opens a completion tells which one: a careful, an
average and a careless annotator, who differ in the rate of wrong steps. The style tokens are shared by all families:
choosing the careful style is what reinforcement learning can elicit, and what transfers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

STYLES = ("careful", "average", "careless")
SPLITS = ("demonstrations", "train", "test", "ood")
Rate = Annotated[float, Field(ge=0, le=1)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SuiteSettings:
    """Sizes and rates of one embedded family; each family has defaults and settings of its own."""

    short: tuple[int, int] = (2, 3)  # steps (first, last) of training and in-distribution test problems
    long: tuple[int, int] = (4, 4)  # steps of the out-of-distribution test: never in reinforcement learning
    long_share: Rate = 0.15  # share of demonstrations that are long
    step_errors: tuple[Rate, Rate, Rate] = (0.05, 0.35, 0.7)  # wrong steps by annotator, in the order of STYLES
    restate: Rate = 0.3  # chance that a step's result is said again: lengths vary
    demonstrations: Annotated[int, Field(ge=1)] = 30_000  # for the base policy
    train: Annotated[int, Field(ge=1)] = 1_000  # prompts for reinforcement learning
    test: Annotated[int, Field(ge=1)] = 256  # prompts of each test set
    seed: Annotated[int, Field(ge=0)] = 7  # of the suite: problems, annotators and what is to be known of its world


class World(Protocol):
    """A family as its settings have it."""

    name: str
    words: list[str]  # every word that prompts and completions can hold

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: Any) -> dict:
        """A problem of steps[0] to steps[1] steps: prompt, answer, steps, family, and what else its family needs."""

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        """One annotator's completion; each step goes wrong at rate `error`."""

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index, among the policy's words, of the first one that is wrong; None where there is none."""


def hash_split(prompt: str) -> str:
    """The split that a prompt belongs to, by its text alone: splits can never share a prompt.

    60 % of all prompts may be demonstrated, 25 % trained on, 15 % tested.
    """
    share = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big") / 2**32
    return "demonstrations" if share < 0.6 else "train" if share < 0.85 else "test"


def build_split(world: World, split: str, cfg: SuiteSettings) -> Iterator[dict]:
    """Yields the records of one split: those of `World.draw` (and completion, style for demonstrations).

    Prompts of `train`, `test` and `ood` are distinct; demonstrations may show a prompt several times, each time with
    its own annotator.

    Raises:
        ValueError: the family has too few distinct prompts for the size asked for.
    """
    rng = np.random.default_rng([cfg.seed, SPLITS.index(split)])
    size = cfg.test if split == "ood" else getattr(cfg, split)
    seen, made, vain = set(), 0, 0
    while made < size:
        vain += 1
        if vain > 20_000:
            raise ValueError(f"tasks.{world.name}.{split}: found only {made} distinct prompts of the {size} asked for")
        long = split == "ood" or (split == "demonstrations" and rng.random() < cfg.long_share)
        record = world.draw(rng, cfg.long if long else cfg.short, cfg)
        if hash_split(record["prompt"]) != ("test" if split == "ood" else split) or record["prompt"] in seen:
            continue
        if split == "demonstrations":
            style = int(rng.integers(len(STYLES)))
            record["style"] = STYLES[style]
            record["completion"] = world.demonstrate(record, STYLES[style], cfg.step_errors[style], cfg.restate, rng)
        else:
            seen.add(record["prompt"])
        made, vain = made + 1, 0
        yield record
