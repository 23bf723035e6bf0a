"""JSON-lines files: one record a line, read with errors that name file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

DEEPEST = 100  # levels; the readers of JSON below need a level of Python's or C's stack for each
BRACKETS_AND_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


class WrittenFloat(float):
    """A float that keeps its spelling: `str` gives it as the file has it, such as "1.50"."""

    def __new__(cls, text: str):
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def parse_json(text: str | bytes, as_written: bool = False) -> Any:
    """Reads a JSON text; deep nesting and an object with a key given twice are refused.

    Args:
        text: The text, as bytes in UTF-8.
        as_written: Read floats as `WrittenFloat`.

    Raises:
        ValueError: If the text is no such JSON; the message is short, without the place of the text.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if _is_deeper_than(text, DEEPEST):
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_float=WrittenFloat if as_written else None)
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg}{place}") from None
    except ValueError as error:  # such as a number of more than 4300 digits
        raise ValueError(str(error)[:200]) from None


def _is_deeper_than(text: str, levels: int) -> bool:
    """If brackets nest deeper than so many levels; found without reading the values."""
    if text.count("[") + text.count("{") <= levels:
        return False
    depth = 0
    for match in BRACKETS_AND_TEXTS.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > levels:
            return True
    return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {double[:60]!r} is given twice")
    return found


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
                record = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {error}") from None
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
