"""Records of JSON lines, JSON and CSV: every value as the file has it, every error with the number of the record.

Each record is read for itself, so no column is given a common type: in JSON an integer stays one beside floats, and a
float keeps its spelling; in CSV every value is a text, also `None`, `null` and `NA`.
"""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

from dvpo_lib.common.jsonl import parse_json


def transposed_columns(columns: dict[str, Any]) -> list[dict] | None:
    """The records of an object of lists of one length; None if it is none."""
    lists = list(columns.values())
    if not lists or not all(isinstance(values, list) and len(values) == len(lists[0]) for values in lists):
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def read_line_records(raw: bytes) -> list[dict]:
    """The records of JSON lines; blank lines are skipped."""
    records = []
    for number, line in enumerate((line for line in raw.split(b"\n") if line.strip()), start=1):
        try:
            record = parse_json(line, as_written=True)
        except ValueError as error:
            raise ValueError(f"record {number}: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"record {number}: an object is expected, not {str(record)[:60]!r}")
        records.append(record)
    return records


def read_json_records(raw: bytes) -> list[dict]:
    """The records of a JSON file: a list of objects, an object of lists, or, as some files are, JSON lines."""
    if not raw.strip():
        return []
    try:
        value = parse_json(raw, as_written=True)
    except ValueError as error:
        if "Extra data" in str(error):
            return read_line_records(raw)
        raise
    records = (transposed_columns(value) or [value]) if isinstance(value, dict) else value
    if not isinstance(records, list):
        raise ValueError("a list of records is expected")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"record {number}: an object is expected, not {str(record)[:60]!r}")
    return records


def read_csv_records(raw: bytes) -> list[dict]:
    """The records of a CSV file with a header; every value is the text that the file has."""
    csv.field_size_limit(2**31 - 1)
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"line {raw[: error.start].count(10) + 1}: not valid UTF-8") from None
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"the header: not valid CSV: {error}") from None
    if doubled := {name for name in header if header.count(name) > 1}:
        raise ValueError(f"the column {min(doubled)[:60]!r} is given twice")
    records = []
    for number in itertools.count(1):
        try:
            row = next(reader)
        except StopIteration:
            return records
        except csv.Error as error:
            raise ValueError(f"record {number}: not valid CSV: {error}") from None
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            raise ValueError(f"record {number}: {len(row)} values for {len(header)} columns")
        records.append(dict(zip(header, row, strict=True)))


TEXT_FORMATS = {"jsonl": read_line_records, "json": read_json_records, "csv": read_csv_records}  # by ending
