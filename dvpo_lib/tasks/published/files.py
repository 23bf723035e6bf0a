"""Sources of published data sets: the Hugging Face hub, or files in its format, read record by record.

Parquet, JSON lines, JSON, CSV (each of the last three also with .gz) and folders of `Dataset.save_to_disk` are read.
Values pass as the file has them: text formats are read record by record, so no column is given a common type, and a
number keeps its spelling. The conversion of records is in `datasets` and `acts`.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import decimal
import gzip
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.common.tables import short_repr
from dvpo_lib.common.text_records import TEXT_FORMATS, transposed_columns

FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
MOST_UNPACKED, MOST_RATIO = 64 * 2**20, 200  # bytes that any gzip file may unpack to; beyond, by its size
NO_RECORDS = {  # about the data, beside it
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "schema.json",
}
SPLIT_WORDS = {  # words of a path that name a split
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
}


class SourceError(ValueError):
    """Data that cannot be had or used; the message is all that the user needs."""


class BadRecord(Exception):
    """A problem with a column of a record."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"column `{column}`: {problem}")


@dataclass(frozen=True)
class PublishedSource:
    """A published data set.

    Attributes:
        hub: its name on the Hugging Face hub; `config` and `revision` as `datasets.load_dataset` takes them.
        splits: {split: words that name it in paths of files}.
        columns: {column: the names under which it is accepted, the hub's first}.
        family: "math", "science" or "dialogue".
        verify: the kind of its answers: "math", "choice" or "slots".
        convert: (record, known) -> (problem, answer) pairs, none if the record holds no problem; raises BadRecord.
        survey: (record, known) adds facts about all records to `known`, before the conversion.
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
def name_record_in_errors(label: str, number: int):
    """Turns a BadRecord into a SourceError that names the record."""
    try:
        yield
    except BadRecord as error:
        raise SourceError(f"{label}: record {number}: {error}") from None


def checked_records(label: str, table: Iterable[dict], source: PublishedSource) -> Iterator[tuple[int, dict]]:
    """Records with the source's own names of the columns.

    Yields:
        (number from 1, record).

    Raises:
        SourceError: If a column is missing in a record.
    """
    for number, record in enumerate(table, start=1):
        renamed = {}
        for column, names in source.columns.items():
            present = [name for name in names if name in record]
            if not present:
                there = short_repr(list(record), 400)
                raise SourceError(f"{label}: record {number}: column `{column}` is missing; there are: {there}")
            renamed[column] = record[present[0]]
        yield number, renamed


# ---- columns of a record ----


def record_text(record: dict, column: str) -> str:
    """A text that is not empty. A number or a date becomes its text, as the file has it."""
    value = record[column]
    if isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    elif isinstance(value, datetime.datetime) and value.time() == datetime.time.min and value.tzinfo is None:
        value = str(value.date())  # pandas keeps dates as times at midnight
    elif isinstance(value, (datetime.date, datetime.time)):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(column, f"a text that is not empty is expected, not {str(value)[:60]!r}")
    return value.strip()


def whole_number(value: Any) -> int | None:
    """A whole number, also as 1.0 or as text ("1", "1.0"); None if the value is none."""
    if isinstance(value, str):
        value = value.strip()
        value = float(value) if re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return None
    return int(value)


def record_text_list(record: dict, column: str) -> list[str]:
    """A list of texts; in CSV files, a list as JSON or Python writes it."""
    value = record[column]
    if isinstance(value, str):
        for read in (parse_json, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRecord(column, f"a list of texts is expected, not {str(value)[:60]!r}")
    return value


def nested_records(value: Any, column: str) -> list[dict]:
    """Records inside a record: a list of objects, or, as the hub keeps them, an object of lists."""
    if isinstance(value, str):  # in CSV files
        with contextlib.suppress(ValueError):
            value = parse_json(value)
    if isinstance(value, dict):
        value = transposed_columns(value) or value
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadRecord(column, f"a list of records is expected, not {str(value)[:60]!r}")
    return value


# ---- hub and files ----


def load_from_hub(name: str, source: PublishedSource, split: str):
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


def find_split_files(path: Path, source: PublishedSource, split: str) -> list[Path]:
    """The files of a split, and folders of `save_to_disk`: the path itself, or those inside it.

    A file's split is named by the file, or else by the closest folder above it that names one. Hidden files, such as
    copies of Jupyter, are no data.
    """
    kinds = ", ".join(name for name in FORMATS if not name.endswith(".gz"))
    if path.is_file():
        if not path.name.endswith(FORMATS):
            raise SourceError(f"{path}: {kinds} can be read, not {path.suffix or 'a file without an ending'}")
        return [path]
    if not path.is_dir():
        raise SourceError(f"{path}: there is no such file or folder")
    folder = path / source.config if source.config and (path / source.config).is_dir() else path
    found = sorted(_find_data_files(folder))
    if not found:
        raise SourceError(f"{folder}: holds no file that can be read ({kinds})")
    named_by = {file: _split_in_path(file.relative_to(folder), source) for file in found}
    if own := [file for file in found if named_by[file] == split]:
        return own
    if any(named_by.values()):
        listed = ", ".join(str(file.relative_to(path)) for file in found[:8])
        raise SourceError(f"{folder}: holds no file of the split {split!r}; there are: {listed}")
    return found


def _find_data_files(folder: Path) -> Iterator[Path]:
    """The files with records below a folder, and the folders that `Dataset.save_to_disk` has written."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        if {"state.json", "dataset_info.json"} <= set(names):
            folders.clear()
            yield Path(parent)
            continue
        for name in names:
            if name.endswith(FORMATS) and not name.startswith(".") and name not in NO_RECORDS:
                yield Path(parent, name)


def _split_in_path(path: Path, source: PublishedSource) -> str | None:
    """The split of a file, by its path inside the folder of the data set; None if no part names one.

    Raises:
        SourceError: If a name is that of several splits.
    """
    for part in reversed(path.parts):
        named = set()
        for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", part):
            word = re.sub(r"(?<=.)(set|split|data|file)s?$", "", word.lower())
            own = {name for name, words in source.splits.items() if word in words}
            named |= own or {name for name, words in SPLIT_WORDS.items() if word in words}
        if len(named) > 1:
            raise SourceError(
                f"{path}: is this file of the split {' or '.join(sorted(named))}? Rename it, or give its path"
            )
        if named:
            return named.pop()
    return None


def _unpacked(file: Path) -> bytes:
    """The content of a gzip file; none that unpacks to so many times its size that it cannot be text."""
    most = max(MOST_UNPACKED, MOST_RATIO * file.stat().st_size)
    with gzip.open(file) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it unpacks to more than {most // 2**20} MiB, {MOST_RATIO} times its size: no text does")
    return content


def read_source_file(file: Path) -> list[dict] | Any:
    """The records of a file, or of a folder of `save_to_disk`. Nothing is cached, and no network is asked.

    Raises:
        SourceError: If it cannot be read or is empty; of text formats, the message names the first bad record.
    """
    try:
        if file.is_dir():
            from datasets import load_from_disk

            table = load_from_disk(str(file), keep_in_memory=True)
        elif file.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.ParquetFile(file).read().to_pylist()
        else:
            table = _unpacked(file) if file.suffix == ".gz" else file.read_bytes()
    except Exception as error:  # of pyarrow, gzip, the file system
        reason = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {reason[0][:200] if reason else ''}"
        raise SourceError(f"{file}: cannot be read: {problem}") from None
    if isinstance(table, bytes):
        try:
            table = TEXT_FORMATS[file.name.removesuffix(".gz").rpartition(".")[2]](table)
        except ValueError as error:
            raise SourceError(f"{file}: {error}") from None
    if not len(table):
        raise SourceError(f"{file}: the file is empty")
    return table
