"""Suites: the splits of a task family, their sizes, demonstrations of mixed quality, and their files.

Three annotators write the demonstrations. The first word of a completion, the *style token*, names its annotator:
careful, average or careless, with rising rates of wrong steps. All families share the style tokens. Reinforcement
learning can elicit the careful style in one family and transfer it to the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.jsonl import read_json_lines, record_problem, write_json_lines
from dvpo_lib.common.tables import short_repr

STYLES = ("careful", "average", "careless")
SPLITS = ("demonstrations", "train", "test", "ood")
MAX_REJECTED = 20_000  # draws in a row that add no record before a split counts as too large for its family
Rate = Annotated[float, Field(ge=0, le=1)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SuiteSettings:
    """Sizes and rates of one generated family. Each family sets its own defaults."""

    short: tuple[int, int] = (2, 3)  # steps (first, last) of training and in-distribution test problems
    long: tuple[int, int] = (4, 4)  # steps of the out-of-distribution test: never in reinforcement learning
    long_share: Rate = 0.15  # share of demonstrations that are long
    step_errors: tuple[Rate, Rate, Rate] = (0.05, 0.35, 0.7)  # wrong steps by annotator, in the order of STYLES
    restate: Rate = 0.3  # chance that a step's result is said again, so that lengths vary
    demonstrations: Annotated[int, Field(ge=1)] = 30_000  # for the base policy
    train: Annotated[int, Field(ge=1)] = 1_000  # prompts for reinforcement learning
    test: Annotated[int, Field(ge=1)] = 256  # prompts of each test set
    seed: Annotated[int, Field(ge=0)] = 7  # of the suite: problems, annotators and the facts of its world


class World(Protocol):
    """A task family with its settings applied: the source of problems and demonstrations."""

    name: str
    words: list[str]  # the vocabulary of prompts and completions

    def draw(self, rng: np.random.Generator, steps: tuple[int, int], cfg: Any) -> dict:
        """Draws a problem of steps[0] to steps[1] steps: prompt, answer, steps, family, and columns of the family."""

    def demonstrate(self, record: Mapping, style: str, error: float, restate: float, rng: np.random.Generator) -> str:
        """Writes one annotator's completion; each step goes wrong with probability `error`."""

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index of the first wrong word, counted over the policy's own words; None if there is none."""


def first_records(data, count: int):
    """The first records of a split (`datasets.Dataset`), at most `count`."""
    return data.select(range(min(count, len(data))))


def hash_split(prompt: str) -> str:
    """Assigns a prompt to a split by a hash of its text, so that no two splits share a prompt.

    Of all prompts, 60 % may be demonstrated, 25 % trained on and 15 % tested.
    """
    share = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big") / 2**32
    return "demonstrations" if share < 0.6 else "train" if share < 0.85 else "test"


def build_split(world: World, split: str, cfg: SuiteSettings) -> Iterator[dict]:
    """Yields the records of one split.

    Prompts of `train`, `test` and `ood` are distinct. Demonstrations may repeat a prompt, each time with a new
    annotator.

    Args:
        world: The family.
        split: One of SPLITS.
        cfg: The family's settings.

    Yields:
        Records of `World.draw`; demonstrations also have `completion` and `style`.

    Raises:
        ValueError: If the family has fewer distinct prompts than the split needs.
    """
    rng = np.random.default_rng([cfg.seed, SPLITS.index(split)])
    size = cfg.test if split == "ood" else getattr(cfg, split)
    seen, made, rejected = set(), 0, 0
    while made < size:
        rejected += 1
        if rejected > MAX_REJECTED:
            raise ValueError(f"tasks.{world.name}.{split}: found only {made} of {size} distinct prompts")
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
        made, rejected = made + 1, 0
        yield record


def save_suites(suites, path: str | Path) -> None:
    """Writes every split to `path/family/split.jsonl`. Equal data give equal bytes.

    Args:
        suites: {family: {split: records}}, from `families.build_suites`.
        path: The folder to write to.
    """
    for name, splits in suites.items():
        (Path(path) / name).mkdir(parents=True, exist_ok=True)
        for split, data in splits.items():
            write_json_lines(Path(path) / name / f"{split}.jsonl", data)


def load_suites(path: str | Path, splits: tuple[str, ...] = ("train", "test", "ood")):
    """Reads suites that `save_suites` wrote.

    Args:
        path: The folder of the suites.
        splits: The splits to read; by default all but the demonstrations, which are large.

    Returns:
        {family: datasets.DatasetDict}.

    Raises:
        FileNotFoundError: If the file of a split is missing.
        ValueError: If a line is not a JSON record with a prompt and an answer (named by file and line), or a column
            mixes types.
    """
    from datasets import Dataset, DatasetDict

    def read(file: Path):
        records = read_json_lines(file, lambda record: record_problem(record, "prompt", "answer"))
        try:
            return Dataset.from_list(records)
        except Exception as error:  # of many kinds
            raise ValueError(f"{file}: the records form no table: {short_repr(error, 200)}") from None

    return {
        name: DatasetDict({split: read(Path(path) / name / f"{split}.jsonl") for split in splits})
        for name in sorted(p.name for p in Path(path).iterdir() if p.is_dir())
    }
