"""The files of real data: names, hashes, and readers that name file and record in every error."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dvpo_lib.common.jsonl import parse_json, read_json_lines

# Names inside `real.dir`.
TRAIN_FILE, TEST_FILE = "gsm8k/train.jsonl", "gsm8k/test.jsonl"
SOLUTIONS_FILE = "gsm8k/example_model_solutions.jsonl"
GSM8K_FILES = (TRAIN_FILE, TEST_FILE, SOLUTIONS_FILE)
TRAJECTORY_FILES = (
    "taubench/gpt-4o-airline.json",  # as published: one JSON list
    "taubench/airline_gpt4o_trajectories.jsonl",  # one record per line, messages truncated at 600 characters
)
DOWNLOAD_HINT = "`make real-data` downloads the files into data/real"


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_table(files: Mapping[str, Path], records: Mapping[str, int]) -> pd.DataFrame:
    """The table of input files for a notebook.

    Args:
        files: {shown name: path}.
        records: {shown name: number of records}.

    Returns:
        Columns file, SHA-256 (first 12 digits), records.
    """
    return pd.DataFrame(
        [{"file": name, "SHA-256": sha256_of(path)[:12], "records": records[name]} for name, path in files.items()]
    )


def read_checked_lines(path: str | Path, name: str, check: Callable[[Any], str | None]) -> list[dict]:
    """Records of a JSON-lines file.

    Args:
        path: File to read.
        name: Name of the file in error messages.
        check: Returns the problem of a record, or None.

    Raises:
        ValueError: If the file is missing, empty or malformed. The message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: no such file; {DOWNLOAD_HINT}")
    return read_json_lines(path, check, name)


def read_checked_list(path: str | Path, name: str, check: Callable[[Any], str | None]) -> list[dict]:
    """Records of a file that holds one JSON list. Arguments as in `read_checked_lines`.

    Raises:
        ValueError: If the file is missing, empty or malformed. The message names file and record (from 1).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: no such file; {DOWNLOAD_HINT}")
    try:
        records = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{name}: a list of records is expected")
    for number, record in enumerate(records, start=1):
        problem = check(record)
        if problem:
            raise ValueError(f"{name}: record {number}: {problem}")
    return records
