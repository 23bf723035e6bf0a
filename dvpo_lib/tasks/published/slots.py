"""The slots that a completion fills, in any of the formats that models write.

given_slots("- **town:** Basel\\n- people = 3")         {"town": "basel", "people": "3"}
given_slots('{"town": "Basel", "people": 3}')          the same
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvpo_lib.tasks.published.answers import JUDGED_CHARACTERS, judged_text

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,40}(?:[ -][A-Za-z0-9_]{1,20}){0,3}"
_SLOT = re.compile(rf"\s*[\"']?({_NAME})[\"']?\s*(?:=>?|:|->|→)\s*(\S.*)")
_NEXT = re.compile(  # another slot on the line: a name before "=", or before ":" and a space (6:30 is a time)
    rf"[,;]\s{{0,4}}(?=[\"']?{_NAME}[\"']?\s{{0,4}}(?:=|:\s|:\s{{0,4}}[^\s\d]))"
)
_LEAD = re.compile(r"[\s>*•–\-+]*(?:\(?\d{1,2}[.)]\s+)?[\s*•\-]*")
_HEADS = {"slot", "name", "key"}
_QUOTES = "\"'`“”‘’*_ \t"


def given_slots(completion: str | Sequence[Mapping[str, Any]], last: int = JUDGED_CHARACTERS) -> dict[str, str]:
    """The slots that a completion fills.

    Accepted are JSON, rows of a table, and lines `slot = value` or `slot: value`, also several on a line. Bold type,
    quotes, bullets and numbering are ignored. The last value of a slot counts.

    Args:
        completion: a text, or a list of messages.
        last: the number of characters read, counted from the end.

    Returns:
        {slot: value}, both normalised by `normal_slot_name` and `normal_slot_value`.
    """
    text = judged_text(completion, last)
    found = _json_slots(text) or _table_slots(text)
    if found is None:
        pairs = [pair for line in text.split("\n") for pair in _line_slots(line)]
        found = dict(pairs)
    return {normal_slot_name(name): normal_slot_value(value) for name, value in found.items()}


def normal_slot_name(name: str) -> str:
    """A slot name in lower case with underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip(_QUOTES).casefold())


def normal_slot_value(value: str) -> str:
    """A slot value in lower case, without quotes, bold type and final full stop."""
    value = value.strip(_QUOTES).rstrip(".,;").strip(_QUOTES)
    return " ".join(value.casefold().split())


def _json_slots(text: str) -> dict[str, str] | None:
    """The slots of the JSON object in a text. None if there is no object of plain values."""
    found = None
    for opening, closing in ("[]", "{}"):
        start, end = text.find(opening), text.rfind(closing)
        found = found or (_parse_literal(text[start : end + 1]) if 0 <= start < end else None)
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        found = _merge_objects(found)
    if isinstance(found, dict) and len(found) == 1 and isinstance(next(iter(found.values())), dict):
        found = next(iter(found.values()))
    if not isinstance(found, dict):
        return None
    plain = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}
    return {
        name: json.dumps(value) if not isinstance(value, str) else value
        for name, value in plain.items()
        if value is not None
    }


def _parse_literal(text: str) -> Any:
    """A JSON text parsed, with single quotes allowed. None if it is not JSON."""
    for spelled in (text, re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", '"', text)):
        try:
            return json.loads(spelled)
        except (ValueError, RecursionError):
            continue
    return None


def _merge_objects(rows: list[dict]) -> dict:
    """Several JSON objects merged: [{"slot": "town", "value": "Basel"}] or [{"town": "Basel"}]."""
    found = {}
    for row in rows:
        name = next((row[key] for key in ("slot", "name", "key") if isinstance(row.get(key), str)), None)
        found |= {name: row["value"]} if name and "value" in row and len(row) == 2 else row
    return found


def _table_slots(text: str) -> dict[str, str] | None:
    """The slots of a table with a column per slot: a line of names, a rule, a line of values."""
    rows = [line.strip().strip("|").split("|") for line in text.split("\n") if line.strip().startswith("|")]
    if len(rows) != 3 or len(rows[0]) != len(rows[2]) or not all(set(cell.strip()) <= set(":-") for cell in rows[1]):
        return None
    names = [cell.strip(_QUOTES) for cell in rows[0]]
    return None if names[0].casefold() in _HEADS else dict(zip(names, rows[2]))


def _line_slots(line: str) -> list[tuple[str, str]]:
    """The (slot, value) pairs of a line."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if line.strip().startswith("|") or (len(cells) == 2 and all(cells)):
        names = [cell.strip(_QUOTES) for cell in cells]
        is_row = len(cells) == 2 and all(names) and re.fullmatch(_NAME, names[0]) and names[0].casefold() not in _HEADS
        return [(names[0], names[1])] if is_row else []
    bare = line.replace("**", "").replace("`", "").strip().strip("{}")
    bare = bare[_LEAD.match(bare).end() :]
    matches = [_SLOT.fullmatch(part.strip()) for part in _NEXT.split(bare)]
    return [(match[1], match[2]) for match in matches if match and normal_slot_value(match[2])]
