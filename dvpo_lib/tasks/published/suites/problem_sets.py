"""Suites of published problems of mathematics and science (GSM8K, MMLU), for models that are large enough for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.published.datasets import SOURCES, load_problems
from dvpo_lib.tasks.published.suites.worlds import PublishedWorld, chat_prompt, share_of

Count = Annotated[int, Field(ge=1)]
CHARACTERS = 200  # of a prompt that count as one step


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ProblemSettings:
    """Sizes of the suite of a published data set. A hash of the prompt decides what is demonstrated."""

    demonstrated: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training problems that are demonstrated
    demonstrations: Count = 1_000  # at most, of each split; they show the form of the answer, not its derivation
    train: Count = 5_000
    test: Count = 256
    longest: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of test problems, by length, of the OOD test


def problem_token_limit(steps: int) -> int:
    """Token limit of a reasoned answer to a prompt of this many steps."""
    return 256 + 64 * steps


def problem_world(source: str) -> Callable[..., PublishedWorld]:
    """The function that reads the suite of a row of `SOURCES`: (name, cfg, folder, tokenizer) -> world.

    If the folder of real data has none of its name, it comes from the hub. If the data set has no training split,
    a quarter of its problems, by hash, are tested and the rest is trained on.
    """

    def read(name: str, cfg: ProblemSettings, folder: str | Path | None = None, tokenizer=None) -> PublishedWorld:
        row = SOURCES[source]
        path = Path(folder or "") / source
        path = path if folder is not None and path.is_dir() else None
        usual = row.splits.keys() & {"train", "test"}
        found = {split: _records(name, load_problems(source, split, path)) for split in sorted(usual)}
        if len(found) == 1:
            [every] = found.values()
            found = {
                "train": [r for r in every if share_of(r["question"]) >= 0.25],
                "test": [r for r in every if share_of(r["question"]) < 0.25],
            }
        shown = [share_of(f"shown {r['question']}") < cfg.demonstrated for r in found["train"]]
        longest = sorted(found["test"], key=lambda r: -len(r["question"]))[
            : math.ceil(cfg.longest * len(found["test"]))
        ]
        far = {r["question"] for r in longest}
        splits = {
            "demonstrations": [
                {**r, "completion": rf"\boxed{{{r['answer']}}}"} for r, s in zip(found["train"], shown) if s
            ][: cfg.demonstrations],
            "train": [r for r, s in zip(found["train"], shown) if not s][: cfg.train],
            "test": [r for r in found["test"] if r["question"] not in far][: cfg.test],
            "ood": longest[: cfg.test],
        }
        for split, records in splits.items():
            if not records:
                raise ValueError(f"tasks.{name}: there are too few problems for the split `{split}`")
            splits[split] = [{**r, "prompt": chat_prompt(tokenizer, r["question"])} for r in records]
        return PublishedWorld(name, splits)

    return read


def _records(name: str, problems) -> list[dict]:
    """Problems in an order that depends neither on the file's nor on the model, with steps and other columns."""
    own = [
        {**r, "question": r["prompt"].strip(), "family": name, "domain": name, "kind": r["verify"]} for r in problems
    ]
    known = {r["question"]: {**r, "steps": math.ceil(len(r["question"]) / CHARACTERS)} for r in own}
    return sorted(known.values(), key=lambda r: share_of(r["question"]))
