"""Pseudo-labels by majority vote: the base policy's most frequent answer to a prompt stands for the right one.

Labels are data: `PseudoLabelSpec` samples and counts once, and writes a table prompt -> label that training reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.jsonl import read_json_lines, record_problem, write_json_lines
from dvpo_lib.common.seeds import seed_for

LABELS = "labels.jsonl"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class VoteSettings:
    """Pseudo-labels by majority vote."""

    k: Annotated[int, Field(ge=1)] = 8  # answers of the base policy to each prompt


def majority(answers: Sequence[str | None], rng: np.random.Generator) -> tuple[str | None, float]:
    """(the most frequent answer, its share of all); ties are drawn by `rng`. None is no answer and gets no vote."""
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return None, 0.0
    top = max(votes.values())
    return str(rng.choice(sorted(a for a, n in votes.items() if n == top))), top / len(answers)


def vote(samples: pd.DataFrame, answer_of: Callable[[str], str | None], seed: int) -> pd.DataFrame:
    """A label for every prompt: prompt, label (None where nothing was answered), agreement (the label's share).

    Args:
        samples: prompt, completion. answer_of: what a completion answers. seed: of ties, drawn prompt by prompt.
    """
    rows = []
    for prompt, own in samples.groupby("prompt", sort=False):
        rng = np.random.default_rng(seed_for(seed, "tied votes", prompt))
        rows.append((prompt, *majority([answer_of(c) for c in own["completion"]], rng)))
    return _table(rows)


def _table(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["prompt", "label", "agreement"])
    return table.assign(label=pd.Series([label for _, label, _ in rows], dtype=object))  # None stays None


def save_labels(labels: pd.DataFrame, path: Path) -> None:
    """Writes labels as JSON lines."""
    write_json_lines(path, labels.to_dict("records"))


def load_labels(path: Path) -> pd.DataFrame:
    """The inverse of `save_labels`.

    Raises:
        ValueError: a line is no record with prompt, label and agreement; names file and line.
    """

    def check(record: Any) -> str | None:
        problem = record_problem(record, "prompt", "label", "agreement")
        if not problem and not isinstance(record["agreement"], int | float):
            problem = f"`agreement` should be a number, not {record['agreement']!r}"
        return problem

    return _table([(r["prompt"], r["label"], float(r["agreement"])) for r in read_json_lines(path, check)])


def label_reward(labels: pd.DataFrame, reward_func: Callable) -> Callable:
    """`reward_func` with the label in the place of the column `answer`; None for prompts whose label is None.

    Raises (when called):
        ValueError: a prompt without a row in `labels`.
    """
    table = dict(zip(labels["prompt"], labels["label"].astype(object).where(labels["label"].notna(), None)))

    def by_label(prompts, completions, answer=None, **columns):
        for i, prompt in enumerate(prompts):
            if prompt not in table:
                raise ValueError(f"record {i}: there is no pseudo-label for the prompt {prompt[:80]!r}")
        found = [table[prompt] for prompt in prompts]
        rewards = reward_func(prompts=prompts, completions=completions, answer=found, **columns)
        return [None if label is None else r for label, r in zip(found, rewards, strict=True)]

    return by_label
