"""Files of JSON lines, a record each, read with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_lines(path: str | Path, check: Callable[[Any], str | None], name: str | None = None) -> list[dict]:
    """The records of a JSON-lines file.

    Args:
        check: says what is wrong with a record, or None. name: what messages call the file (default: its path).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is malformed; the message names file and line.
    """
    name, records = name or str(path), []
    with open(path, "rb") as lines:  # bytes: only a line feed ends a line, and a wrong encoding is found by line
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise ValueError(f"{name}:{number}: not valid UTF-8") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{name}:{number}: not valid JSON: {error.msg}") from None
            problem = check(record)
            if problem:
                raise ValueError(f"{name}:{number}: {problem}")
            records.append(record)
    if not records:
        raise ValueError(f"{name}: the file is empty")
    return records


def lacks(record: Any, *fields: str) -> str | None:
    """What is wrong where a record with these fields is expected, or None."""
    if not isinstance(record, dict):
        return f"a record is expected, not {str(record)[:40]!r}"
    absent = [field for field in fields if field not in record]
    return f"the field `{absent[0]}` is missing" if absent else None
