"""Settings of the real-data study, its files, and the split by problem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.jsonl import read_json_lines, record_problem

TRAIN, TEST, SOLUTIONS = "gsm8k/train.jsonl", "gsm8k/test.jsonl", "gsm8k/example_model_solutions.jsonl"
FILES = (TRAIN, TEST, SOLUTIONS)  # names inside `real.dir`
GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")  # models of the solutions
HOW = "`make real-data` downloads the files into data/real"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TrajectorySettings:
    """Critics on an agent's logged conversations (notebook 02); what is not said here is as for the solutions."""

    folds: Annotated[int, Field(ge=2)] = 5  # every task is held out in one of them
    seeds: Annotated[int, Field(ge=1)] = 2  # critics of each kind in a fold
    hidden_size: Annotated[int, Field(ge=8, multiple_of=8)] = 64  # width of the backbone: there is little text
    num_hidden_layers: Annotated[int, Field(ge=1)] = 2  # its depth
    max_tokens: Annotated[int, Field(ge=8)] = 1536  # of a conversation after its first message: the last ones are kept
    critic_passes: Annotated[int, Field(ge=1)] = 2  # over the conversations of the training tasks
    batch_size: Annotated[int, Field(ge=1)] = 4  # conversations a step


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class RealSettings:
    """Critics on real language-model solutions (notebook 02); without `dir` nothing is read and nothing trained."""

    dir: str | None = None  # folder that holds the files, relative to params.yaml; `make real-data` fills data/real
    vocabulary: Annotated[int, Field(ge=260)] = 3000  # of the byte-level BPE
    hidden_size: Annotated[int, Field(ge=8, multiple_of=8)] = 128  # width of the backbone
    num_hidden_layers: Annotated[int, Field(ge=1)] = 4  # its depth
    language_model_passes: Annotated[float, Field(gt=0)] = 3  # over the worked solutions of the training file
    language_model_learning_rate: Annotated[float, Field(gt=0)] = 2e-3  # peak of a cosine schedule
    critic_passes: Annotated[int, Field(ge=1)] = 1  # over the solutions of the training problems
    critic_learning_rate: Annotated[float, Field(gt=0)] = 5e-4  # in place of the tracked critics' own
    batch_size: Annotated[int, Field(ge=1)] = 16  # texts a step
    max_tokens: Annotated[int, Field(ge=8)] = 320  # of a prompt and of a solution; longer ones are cut
    noise_rates: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.0, 0.2, 0.4)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3  # share of the problems (by hash) that critics are scored on
    seeds: Annotated[int, Field(ge=1)] = 1  # critics of each kind and noise rate
    trajectories: TrajectorySettings = TrajectorySettings()  # where the folder holds an agent's conversations as well

    def missing(self, root: Path) -> dict[str, str]:
        """{setting: problem} where files are missing; a relative `dir` counts from `root`."""
        if self.dir is None:
            return {}
        folder = root / self.dir
        if not folder.is_dir():
            return {"dir": f"there is no folder {self.dir}; {HOW}"}
        absent = [name for name in FILES if not (folder / name).is_file()]
        return {"dir": f"{self.dir} holds no file {absent[0]}; {HOW}"} if absent else {}


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_records(path: str | Path, name: str, check: Callable[[Any], str | None]) -> list[dict]:
    """The records of a JSON-lines file.

    Args:
        name: what messages call the file.
        check: says what is wrong with a record, or None.

    Raises:
        ValueError: the file is missing or empty, or a line is malformed; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: no such file; {HOW}")
    return read_json_lines(path, check, name)


def read_list(path: str | Path, name: str, check: Callable[[Any], str | None]) -> list[dict]:
    """The records of a file that is one JSON list.

    Raises:
        ValueError: as `read_records`; the message names file and record (from 1).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: no such file; {HOW}")
    try:
        records = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{name}: a list of records is expected")
    for number, record in enumerate(records, start=1):
        problem = check(record)
        if problem:
            raise ValueError(f"{name}: record {number}: {problem}")
    return records


def _texts(record: Any, *fields: str) -> str | None:
    """What is wrong with the text fields of a record, or None."""
    if not isinstance(record, dict):
        return record_problem(record)
    for field in fields:
        if field not in record:
            return record_problem(record, field)
        if not isinstance(record[field], str) or not record[field].strip():
            return f"`{field}` should be a text that is not empty, not {record[field]!r}"
    return None


def _solved(record: Any) -> str | None:
    """What is wrong with a problem and its solutions, or None."""
    problem = _texts(record, "question", "ground_truth")
    for generator in GENERATORS:
        if problem:
            return problem
        if generator not in record:
            return f"the field `{generator}` is missing"
        problem = _texts(record[generator], "solution")
        problem = f"{generator}: {problem}" if problem else None
        label = record[generator].get("is_correct") if not problem else True
        if not isinstance(label, bool):
            problem = f"{generator}: `is_correct` should be true or false, not {label!r}"
    return problem


def read_worked(path: str | Path, name: str = TRAIN) -> pd.DataFrame:
    """Problems with their worked solutions: prompt, completion; written as the models write ("A: 72" at the end).

    Raises:
        ValueError: as `read_records`.
    """
    records = read_records(path, name, lambda record: _texts(record, "question", "answer"))
    return pd.DataFrame(
        {
            "prompt": [r["question"] + "\n" for r in records],
            "completion": [r["answer"].replace("#### ", "A: ") for r in records],
        }
    )


def read_solutions(path: str | Path, name: str = SOLUTIONS) -> pd.DataFrame:
    """The models' solutions, one row each: problem (its line, from 0), generator, prompt, completion, correct (0/1).

    Raises:
        ValueError: as `read_records`.
    """
    rows = [
        {
            "problem": i,
            "generator": g,
            "prompt": r["question"] + "\n",
            "completion": r[g]["solution"],
            "correct": float(r[g]["is_correct"]),
        }
        for i, r in enumerate(read_records(path, name, _solved))
        for g in GENERATORS
    ]
    return pd.DataFrame(rows)


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a problem is kept for scoring: by a hash of its text, so all its solutions go the same way."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") < share * 2**64


def split(solutions: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Solutions of training problems and of held-out problems.

    Raises:
        ValueError: one of the two is empty.
    """
    held = solutions["prompt"].map(lambda prompt: is_held_out(prompt, share))
    if held.all() or not held.any():
        count = solutions["problem"].nunique()
        raise ValueError(f"real.held_out = {share} leaves none of {count} problems on one of the two sides")
    return solutions[~held].reset_index(drop=True), solutions[held].reset_index(drop=True)


def flipped(labels, rate: float, seed: int) -> np.ndarray:
    """0/1 labels, each turned over at the rate; one seed turns over more of the same labels at a higher rate."""
    labels = np.asarray(labels, dtype=float)
    return np.where(np.random.default_rng(seed).random(len(labels)) < rate, 1 - labels, labels)
