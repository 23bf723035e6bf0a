"""The slots that a completion fills, as models write them.

given_slots("- **town:** Basel\\n- people = 3")         {"town": "basel", "people": "3"}
given_slots('{"town": "Basel", "people": 3}')          the same
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvpo_lib.tasks.published.answers import LAST, conclusion

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,40}(?:[ -][A-Za-z0-9_]{1,20}){0,3}"
_SLOT = re.compile(rf"\s*[\"']?({_NAME})[\"']?\s*(?:=>?|:|->|→)\s*(\S.*)")
_NEXT = re.compile(  # another slot on the line: a name before "=", or before ":" and a space (6:30 is a time)
    rf"[,;]\s{{0,4}}(?=[\"']?{_NAME}[\"']?\s{{0,4}}(?:=|:\s|:\s{{0,4}}[^\s\d]))"
)
_LEAD = re.compile(r"[\s>*•–\-+]*(?:\(?\d{1,2}[.)]\s+)?[\s*•\-]*")
_HEADS = {"slot", "name", "key"}
_QUOTES = "\"'`“”‘’*_ \t"


def given_slots(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> dict[str, str]:
    """The slots that a completion fills.

    It may write JSON, rows of a table, or lines `slot = value` or `slot: value`, several on a line too; bold, quotes,
    bullets and numbers do not matter. Of a slot's values the last counts.

    Args:
        completion: a text, or a list of messages.
        last: the characters that are looked at, counted from the end.

    Returns:
        {slot: value}, as `slot_name` and `slot_value` spell them.
    """
    text = conclusion(completion, last)
    found = json_slots(text) or table_slots(text)
    if found is None:
        pairs = [pair for line in text.split("\n") for pair in line_slots(line)]
        found = dict(pairs)
    return {slot_name(name): slot_value(value) for name, value in found.items()}


def slot_name(name: str) -> str:
    """A name of a slot in one spelling: lower case, underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip(_QUOTES).casefold())


def slot_value(value: str) -> str:
    """A value of a slot in one spelling: lower case, without quotes, bold and a final full stop."""
    value = value.strip(_QUOTES).rstrip(".,;").strip(_QUOTES)
    return " ".join(value.casefold().split())


def json_slots(text: str) -> dict[str, str] | None:
    """The slots of the JSON object in a text; None if there is none, or it is no object of plain values."""
    found = None
    for opening, closing in ("[]", "{}"):
        start, end = text.find(opening), text.rfind(closing)
        found = found or (literal(text[start : end + 1]) if 0 <= start < end else None)
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        found = merged(found)
    if isinstance(found, dict) and len(found) == 1 and isinstance(next(iter(found.values())), dict):
        found = next(iter(found.values()))
    if not isinstance(found, dict):
        return None
    plain = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}
    return {name: json.dumps(value) if not isinstance(value, str) else value for name, value in plain.items()
            if value is not None}  # fmt: skip


def literal(text: str) -> Any:
    """What a text says in JSON, with single quotes for double ones too; else None."""
    for spelled in (text, re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", '"', text)):
        try:
            return json.loads(spelled)
        except (ValueError, RecursionError):
            continue
    return None


def merged(rows: list[dict]) -> dict:
    """One object of several: [{"slot": "town", "value": "Basel"}], or [{"town": "Basel"}]."""
    found = {}
    for row in rows:
        name = next((row[key] for key in ("slot", "name", "key") if isinstance(row.get(key), str)), None)
        found |= {name: row["value"]} if name and "value" in row and len(row) == 2 else row
    return found


def table_slots(text: str) -> dict[str, str] | None:
    """The slots of a table that has a column for each: a line of names, a rule, a line of values."""
    rows = [line.strip().strip("|").split("|") for line in text.split("\n") if line.strip().startswith("|")]
    if len(rows) != 3 or len(rows[0]) != len(rows[2]) or not all(set(cell.strip()) <= set(":-") for cell in rows[1]):
        return None
    names = [cell.strip(_QUOTES) for cell in rows[0]]
    return None if names[0].casefold() in _HEADS else dict(zip(names, rows[2]))


def line_slots(line: str) -> list[tuple[str, str]]:
    """The (slot, value) pairs of a line."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if line.strip().startswith("|") or (len(cells) == 2 and all(cells)):
        names = [cell.strip(_QUOTES) for cell in cells]
        is_row = len(cells) == 2 and all(names) and re.fullmatch(_NAME, names[0]) and names[0].casefold() not in _HEADS
        return [(names[0], names[1])] if is_row else []
    bare = line.replace("**", "").replace("`", "").strip().strip("{}")
    bare = bare[_LEAD.match(bare).end() :]
    matches = [_SLOT.fullmatch(part.strip()) for part in _NEXT.split(bare)]
    return [(match[1], match[2]) for match in matches if match and slot_value(match[2])]
