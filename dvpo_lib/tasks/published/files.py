"""What a published data set is, and where its records come from: the Hugging Face hub, or files in the hub's format.

Parquet, JSON lines, JSON and CSV are read. What a record says is the business of `sources`.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
NO_RECORDS = {"dataset_info.json", "dataset_infos.json", "state.json", "schema.json"}  # about the data, beside it


class SourceError(ValueError):
    """Data that cannot be had or used; the message is all that the user needs."""


class BadRecord(Exception):
    """What is wrong with a column of a record."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"column `{column}`: {problem}")


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        hub: its name on the Hugging Face hub; `config` and `revision` as `datasets.load_dataset` takes them.
        splits: {split: words that name it in paths of files}.
        columns: {column: the names under which it is accepted, the hub's first}.
        family: "math", "science" or "dialogue".
        verify: the kind of its answers: "math", "choice" or "slots".
        convert: (record, known) -> (problem, answer) pairs, none where the record holds no problem; raises BadRecord.
        survey: (record, known) adds to `known` what must be known of all records before the first is converted.
    """

    hub: str
    splits: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    family: str
    verify: str
    convert: Callable[[dict, dict], Iterable[tuple[str, str]]]
    config: str | None = None
    revision: str | None = None
    survey: Callable[[dict, dict], None] | None = None


# ---- records ----


@contextlib.contextmanager
def named(label: str, number: int):
    """Turns a BadRecord into a SourceError that names the record."""
    try:
        yield
    except BadRecord as error:
        raise SourceError(f"{label}: record {number}: {error}") from None


def checked(label: str, table: Iterable[dict], source: Source) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) with the source's own names of the columns; SourceError where one is missing."""
    records = iter(table)
    for number in itertools.count(1):
        try:
            record = next(records)
        except StopIteration:
            return
        except UnicodeDecodeError:
            raise SourceError(f"{label}: record {number}: not valid UTF-8") from None
        renamed = {}
        for column, names in source.columns.items():
            present = [n for n in names if n in record]
            if not present:
                raise SourceError(
                    f"{label}: record {number}: column `{column}` is missing; there are: {', '.join(map(str, record))}"
                )
            renamed[column] = record[present[0]]
        yield number, renamed


# ---- what a record says ----


def text(record: dict, column: str) -> str:
    """A text that is not empty; a number becomes its text (in CSV files, answers are numbers)."""
    value = record[column]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        value = f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(column, f"a text that is not empty is expected, not {str(value)[:60]!r}")
    return value.strip()


def texts(record: dict, column: str) -> list[str]:
    """A list of texts; in CSV files, a list as JSON or Python writes it."""
    value = record[column]
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(column, f"a list of texts is expected, not {str(value)[:60]!r}")
    return value


def rows(value: Any, column: str) -> list[dict]:
    """Records inside a record: a list of objects, or, as the hub keeps them, an object of lists."""
    if isinstance(value, str):  # in CSV files
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, dict):
        lists = list(value.values())
        if lists and all(isinstance(v, list) and len(v) == len(lists[0]) for v in lists):
            return [dict(zip(value, row)) for row in zip(*lists)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadRecord(column, f"a list of records is expected, not {str(value)[:60]!r}")
    return value


# ---- hub and files ----


def from_hub(name: str, source: Source, split: str):
    """A split of a source from the hub or its cache."""
    import datasets

    try:
        return datasets.load_dataset(source.hub, source.config, split=split, revision=source.revision)
    except Exception as error:  # of many kinds: no network, offline mode, no such repository, rate limits
        tried = f"{source.hub}, {f'config {source.config}, ' if source.config else ''}split {split}"
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        raise SourceError(
            f"{name}: {tried} cannot be had from the Hugging Face hub ({reason}). Bring it once where it "
            f"can be reached (`datasets` keeps it), or give a copy on this machine: load_problems({name!r}, "
            f"{split!r}, path=FILE_OR_FOLDER), parquet, JSON lines, JSON or CSV with the columns "
            f"{', '.join(source.columns)}"
        ) from error


def files(path: Path, source: Source, split: str) -> list[Path]:
    """The files of a split: the path itself, or those inside it; see `sources.load`."""
    kinds = ", ".join(FORMATS)
    if path.is_file():
        if path.suffix not in FORMATS:
            raise SourceError(f"{path}: {kinds} can be read, not {path.suffix or 'a file without an ending'}")
        return [path]
    if not path.is_dir():
        raise SourceError(f"{path}: there is no such file or folder")
    folder = path / source.config if source.config and (path / source.config).is_dir() else path
    found = sorted(f for f in folder.rglob("*") if f.suffix in FORMATS and f.name not in NO_RECORDS and f.is_file())
    if not found:
        raise SourceError(f"{folder}: holds no file that can be read ({kinds})")

    def naming(words: Iterable[str]) -> list[Path]:
        pattern = re.compile(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])")
        return [f for f in found if pattern.search(str(f.relative_to(folder).with_suffix("")).lower())]

    own = naming(source.splits[split])
    if not own and naming(["train", "test", "validation", "dev"]):
        listed = ", ".join(str(f.relative_to(path)) for f in found[:8])
        raise SourceError(f"{folder}: holds no file of the split {split!r}; there are: {listed}")
    return own or found


def from_file(file: Path):
    """The records of a file as a `datasets.Dataset` in memory; nothing is cached, and no network is asked."""
    from datasets import Dataset

    read = {"parquet": Dataset.from_parquet, "json": Dataset.from_json, "csv": Dataset.from_csv}[FORMATS[file.suffix]]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            table = read(str(file), cache_dir=scratch, keep_in_memory=True)
        except Exception as error:  # of pyarrow and pandas; StopIteration where the file is empty
            raise SourceError(f"{file}: {why(file, error.__cause__ or error)}") from None
    if not len(table):
        raise SourceError(f"{file}: the file is empty")
    return table


def why(file: Path, error: BaseException) -> str:
    """What is wrong with a file that `datasets` cannot read: of JSON lines, the first bad record."""
    if file.stat().st_size == 0:
        return "the file is empty"
    if file.suffix == ".jsonl":
        with open(file, "rb") as lines:
            for number, line in enumerate((line for line in lines if line.strip()), start=1):
                try:
                    json.loads(line.decode("utf-8"))
                except ValueError as problem:  # a wrong encoding included
                    return f"record {number}: not valid JSON: {problem}"
    reason = str(error).strip().splitlines()
    return f"cannot be read: {type(error).__name__}: {reason[0][:200] if reason else ''}"
