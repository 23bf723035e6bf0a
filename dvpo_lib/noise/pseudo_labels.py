"""Pseudo-labels by majority vote: the base policy's most frequent answer to a prompt replaces the right one.

Labels are data: `PseudoLabelSpec` samples and counts once and writes a table prompt -> label; training reads it.
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
from dvpo_lib.common.tables import short_repr

LABELS_FILE = "labels.jsonl"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class VoteSettings:
    """Settings of the majority vote."""

    k: Annotated[int, Field(ge=1)] = 8  # answers of the base policy to each prompt


def majority_answer(answers: Sequence[str | None], rng: np.random.Generator) -> tuple[str | None, float]:
    """Counts the votes on one prompt.

    Args:
        answers: One answer per sample; None, for a sample without an answer, is no vote.
        rng: Breaks ties.

    Returns:
        The most frequent answer (None if there is no answer) and its share of all samples.
    """
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return None, 0.0
    top = max(votes.values())
    return str(rng.choice(sorted(a for a, n in votes.items() if n == top))), top / len(answers)


def majority_labels(samples: pd.DataFrame, answer_of: Callable[[str], str | None], seed: int) -> pd.DataFrame:
    """Takes the majority vote on every prompt.

    Args:
        samples: Columns prompt, completion.
        answer_of: completion -> its answer, or None.
        seed: Of tie-breaking; each prompt has its own random stream.

    Returns:
        One row per prompt: prompt, label (None if no sample has an answer), agreement (share of the label).
    """
    rows = []
    for prompt, own in samples.groupby("prompt", sort=False):
        rng = np.random.default_rng(seed_for(seed, "tied votes", prompt))
        rows.append((prompt, *majority_answer([answer_of(c) for c in own["completion"]], rng)))
    return _table(rows)


def _table(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["prompt", "label", "agreement"])
    return table.assign(label=pd.Series([label for _, label, _ in rows], dtype=object))  # None stays None


def save_labels(labels: pd.DataFrame, path: Path) -> None:
    """Writes labels as JSON lines."""
    write_json_lines(path, labels.to_dict("records"))


def load_labels(path: Path) -> pd.DataFrame:
    """Reads labels that `save_labels` wrote.

    Raises:
        ValueError: If a line record_problem prompt, label or agreement; the message names file and line.
    """

    def check(record: Any) -> str | None:
        problem = record_problem(record, "prompt", "label", "agreement")
        if not problem and not isinstance(record["agreement"], int | float):
            problem = f"`agreement` must be a number, not {short_repr(record['agreement'])}"
        return problem

    return _table([(r["prompt"], r["label"], float(r["agreement"])) for r in read_json_lines(path, check)])


def label_reward(labels: pd.DataFrame, reward_func: Callable) -> Callable:
    """Builds a reward function that scores completions against pseudo-labels.

    Args:
        labels: From `majority_labels`.
        reward_func: A reward function that reads the column `answer`; it gets the label there.

    Returns:
        A reward function in TRL's signature; its reward is None for prompts whose label is None. It raises ValueError
        if a prompt has no row in `labels`.
    """
    table = dict(zip(labels["prompt"], labels["label"].astype(object).where(labels["label"].notna(), None)))

    def by_label(prompts, completions, answer=None, **columns):
        for i, prompt in enumerate(prompts):
            if prompt not in table:
                raise ValueError(f"record {i}: no pseudo-label for the prompt {prompt[:80]!r}")
        found = [table[prompt] for prompt in prompts]
        rewards = reward_func(prompts=prompts, completions=completions, answer=found, **columns)
        return [None if label is None else r for label, r in zip(found, rewards, strict=True)]

    return by_label
