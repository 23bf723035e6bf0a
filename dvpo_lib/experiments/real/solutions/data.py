"""GSM8K problems with the solutions of four language models: reading, split by problem, label noise."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dvpo_lib.common.jsonl import record_problem
from dvpo_lib.common.tables import short_repr
from dvpo_lib.experiments.real.files import SOLUTIONS_FILE, TRAIN_FILE, read_checked_lines

GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")  # models of the solutions


def _text_problem(record: Any, *fields: str) -> str | None:
    """Problem with the text fields of a record, or None."""
    if not isinstance(record, dict):
        return record_problem(record)
    for field in fields:
        if field not in record:
            return record_problem(record, field)
        if not isinstance(record[field], str) or not record[field].strip():
            return f"`{field}` should be a text that is not empty, not {short_repr(record[field])}"
    return None


def _solution_problem(record: Any) -> str | None:
    """Problem with a GSM8K problem and its solutions, or None."""
    problem = _text_problem(record, "question", "ground_truth")
    for generator in GENERATORS:
        if problem:
            return problem
        if generator not in record:
            return f"the field `{generator}` is missing"
        problem = _text_problem(record[generator], "solution")
        problem = f"{generator}: {problem}" if problem else None
        label = record[generator].get("is_correct") if not problem else True
        if not isinstance(label, bool):
            problem = f"{generator}: `is_correct` should be true or false, not {short_repr(label)}"
    return problem


def read_worked_problems(path: str | Path, name: str = TRAIN_FILE) -> pd.DataFrame:
    """Problems with worked solutions, in the notation of the language models ("A: 72" at the end).

    Args:
        path: File to read.
        name: Name of the file in error messages.

    Returns:
        Columns prompt, completion.

    Raises:
        ValueError: If the file cannot be read. The message names file and line.
    """
    records = read_checked_lines(path, name, lambda record: _text_problem(record, "question", "answer"))
    return pd.DataFrame(
        {
            "prompt": [r["question"] + "\n" for r in records],
            "completion": [r["answer"].replace("#### ", "A: ") for r in records],
        }
    )


def read_solutions(path: str | Path, name: str = SOLUTIONS_FILE) -> pd.DataFrame:
    """Solutions of the language models, one row each.

    Args:
        path: File to read.
        name: Name of the file in error messages.

    Returns:
        Columns problem (line of the file, from 0), generator, prompt, completion, correct (0 or 1).

    Raises:
        ValueError: If the file cannot be read. The message names file and line.
    """
    rows = [
        {
            "problem": i,
            "generator": g,
            "prompt": r["question"] + "\n",
            "completion": r[g]["solution"],
            "correct": float(r[g]["is_correct"]),
        }
        for i, r in enumerate(read_checked_lines(path, name, _solution_problem))
        for g in GENERATORS
    ]
    return pd.DataFrame(rows)


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a problem is held out. The hash of its text decides, so all its solutions stay together."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") < share * 2**64


def split_by_problem(solutions: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Solutions of training problems and of held-out problems.

    Args:
        solutions: Table of `read_solutions`.
        share: Expected share of held-out problems.

    Raises:
        ValueError: If one of the two parts is empty.
    """
    held = solutions["prompt"].map(lambda prompt: is_held_out(prompt, share))
    if held.all() or not held.any():
        count = solutions["problem"].nunique()
        raise ValueError(f"real.held_out = {share} leaves none of {count} problems on one of the two sides")
    return solutions[~held].reset_index(drop=True), solutions[held].reset_index(drop=True)


def flip_labels(labels, rate: float, seed: int) -> np.ndarray:
    """0/1 labels, each flipped with probability `rate`. With equal seeds, a higher rate keeps the flips of a lower."""
    labels = np.asarray(labels, dtype=float)
    return np.where(np.random.default_rng(seed).random(len(labels)) < rate, 1 - labels, labels)


def truncate_texts(table: pd.DataFrame, tokenizer, max_tokens: int) -> tuple[pd.DataFrame, int]:
    """Limits prompts and completions to `max_tokens` tokens each. Prompts lose their start, completions their end.

    Returns:
        The table and the number of truncated rows.
    """

    def spans(column: str) -> list[list[tuple[int, int]]]:
        found = tokenizer(table[column].tolist(), add_special_tokens=False, return_offsets_mapping=True)
        return found["offset_mapping"]

    prompts = [t[s[-max_tokens][0] :] if len(s) > max_tokens else t for t, s in zip(table["prompt"], spans("prompt"))]
    completions = [
        t[: s[max_tokens - 1][1]] if len(s) > max_tokens else t
        for t, s in zip(table["completion"], spans("completion"))
    ]
    changed = (table["prompt"] != prompts) | (table["completion"] != completions)
    return table.assign(prompt=prompts, completion=completions), int(changed.sum())
