"""JSON-lines files: one record a line, read with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one record a line, in UTF-8: equal bytes for equal records."""
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read_json_lines(path: str | Path, check: Callable[[Any], str | None], name: str | None = None) -> list[dict]:
    """Reads and checks every record of a JSON-lines file.

    Args:
        path: The file.
        check: Returns what is wrong with a record, or None (see `record_problem`).
        name: The file's name in error messages; its path by default.

    Returns:
        The records, at least one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or a line is malformed; the message names file and line.
    """
    name, records = name or str(path), []
    with open(path, "rb") as lines:  # as bytes: only "\n" ends a line, and an encoding error is found on its own line
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


def record_problem(record: Any, *fields: str) -> str | None:
    """Says what is wrong with a record that should be a JSON object with these fields; None if nothing is."""
    if not isinstance(record, dict):
        return f"a record is expected, not {str(record)[:40]!r}"
    missing = [field for field in fields if field not in record]
    return f"the field `{missing[0]}` is missing" if missing else None
