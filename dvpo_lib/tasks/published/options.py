r"""The option that a completion chooses, and the slots that it fills, as models write them.

    chosen_letter("A does not fit. It is B.")              "B"
    chosen_letter("The answer is B or C.")                 None
    given_slots("- **town:** Basel\n- people = 3")         {"town": "basel", "people": "3"}

Of several statements the last counts. One that names two options, or denies one, chooses nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvpo_lib.tasks.published.answers import LAST, boxes, conclusion, is_cut

# ---- options ----

_MARKUP = re.compile(r"\*\*|__|`|\"|[“”‘’]|(?<![A-Za-z])'|'(?![A-Za-z])|\$|\\[()\[\],;:! ]|~|\\q?quad"
                     r"|\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s{0,4}(?=\{)|[{}<>]|(?m:^#+)")  # fmt: skip
_NOT_LETTER = r"(?![A-Za-z0-9_'’+*^=])"
_LETTER = rf"[(\[]?(?P<letter>[B-HJ]|[AI](?!\s+(?!because|since|as\b|is\b|and\b|or\b|but\b|fits\b|with\b)[a-z])){_NOT_LETTER}[)\]]?"
_FILLER = r"(?:\s{1,4}(?:clearly|definitely|therefore|thus|then|hence|indeed|obviously|simply|just|surely|again|option|choice|letter|answer|be|to|has|have|must|should|would|the|correct|right|best|actually|most likely)(?![A-Za-z]),?){0,5}"
_STATED = [re.compile(pattern) for pattern in (
    rf"(?i:answer|choice|option|solution|conclusion|letter)s?\b[^.:=\n]{{0,40}}?(?i:\s(?:is|was|are|be)\b|\s{{0,4}}[:=]|\s-\s)(?i:{_FILLER})\s{{0,4}}[:=]?\s{{0,4}}(?P<not>not\s)?{_LETTER}",
    rf"(?i:\b(?:option|choice|answer))\s{{1,4}}{_LETTER}\s{{1,4}}(?P<said>(?:is|seems|must|has|fits|matches|looks)\b[^.\n]{{0,40}})",
    rf"(?:^|[.:;,\n]\s{{0,4}}|(?i:so|thus|hence|therefore|that|and)\s){_LETTER}\s{{1,4}}(?P<said>(?:is|seems|must|has|fits|matches|looks)\b[^.\n]{{0,40}})",
    rf"(?i:\b(?:choose|chose|pick|picked|select|selected|go with|going with|going for|say|choosing|selecting))(?i:{_FILLER})\s{{1,4}}{_LETTER}",
    rf"(?i:\b(?:it|this|that)(?:\s(?:is|must be|has to be|should be|can only be)|'s)|\bleaves|\bleaving)(?i:{_FILLER})\s{{1,4}}(?P<not>not\s)?{_LETTER}\s{{0,4}}(?=[.,;!]|$|\n|because|since|as\b)",
    rf"(?i:\b(?:so|thus|hence|therefore|answer)),?\s{{1,4}}{_LETTER}\s{{0,4}}(?=[.!]|$|\n)",
)]  # fmt: skip
_ALONE = re.compile(r"[\s(\[]*(?:(?i:option|choice|answer)\s{0,4}:?\s{0,4})?\(?([A-Ja-j])[\s)\].:,]*")
_LED = re.compile(r"\s*(?:(?i:option|choice)\s)?\(?([A-J])(?:[.):]|\s-|\)\s|\s–)\s*\S")
_LOWER = re.compile(r"(?i:answer|choice|option)(?:\s{1,4}is|\s{0,4}[:=])\s{0,4}\(?([a-j])\)?[\s.]*$")
_DENIED = re.compile(
    r"(?i)\b(?:not|isn't|cannot|can't|wrong|incorrect|false|impossible|never|unlikely|ruled out|eliminated|too)\b"
)
_ANOTHER = re.compile(
    r"\s{0,4}(?:,|/|&|\bor\b|\band\b)(?:\s{0,4}(?:or|and|maybe|perhaps|possibly|option|even))?\s{0,4}[(\[]?[A-J](?![A-Za-z0-9_'’])[)\]]?(?!\s+(?:and|is|are|were|was|has|have|does|do)\b)"
)
_DOUBT = re.compile(
    r"(?i)\b(?:either|maybe|perhaps|possibly|might|could be|not sure|unsure|unclear|neither|all of|both|any of|or)\b"
)
_BUT = re.compile(rf"(?i:\bnot)\s{{1,4}}\(?[A-J]\)?,?\s{{1,4}}(?i:but)\s{{1,4}}(?i:rather\s|option\s)?{_LETTER}")


def chosen_letter(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> str | None:
    r"""The option (A to J) that a completion chooses.

    Statements are boxes (`\boxed{\text{(B)}}`, `\boxed{B. mitosis}`), sentences ("the answer is B", "option B is right",
    "I choose B"), and a last line that holds a letter and nothing else or begins with one ("(b)", "B. mitosis").

    Args:
        completion: a text, or a list of messages.
        last: the characters that are looked at, counted from the end.

    Returns:
        The letter of the last statement. None if there is no statement, or if the last one doubts, denies, or names
        several options.
    """
    text = conclusion(completion, last)
    if is_cut(text):
        return None
    said: tuple[int, str | None] = (-1, None)
    whole = text
    for start, end, content in boxes(whole):
        letter = boxed_letter(content)
        if letter or not re.search(r"\d", content):
            said = (start, letter if not _several(whole, start) else None)
        text = text[:start] + " " * (end - start) + text[end:]
    plain = "".join(_MARKUP.sub(lambda m: " " * len(m[0]), text))
    plain = plain.replace("\\boxed", "      ")
    for pattern in _STATED:
        for match in pattern.finditer(plain):
            if match.start("letter") > said[0]:
                said = (match.start("letter"), stated_letter(plain, match))
    for match in _BUT.finditer(plain):
        if match.start("letter") >= said[0]:
            said = (match.start("letter"), match["letter"])
    lone = lone_letter(plain, after=said[0])
    return lone or said[1]


def boxed_letter(content: str) -> str | None:
    plain = _MARKUP.sub(" ", content)
    alone = _ALONE.fullmatch(plain)
    if alone:
        return alone[1].upper()
    led = _LED.match(plain)
    return led[1] if led and not _ANOTHER.match(plain, led.end(1)) else None


def _several(text: str, start: int) -> bool:
    r"""Whether another letter in a box stands right before this one: \boxed{A} or \boxed{B}."""
    return any(boxed_letter(content) and 0 < start - end < 12 and re.fullmatch(r"[\s,$]*(?:and|or|,)[\s$]*", text[end:start])
               for _, end, content in boxes(text))  # fmt: skip


def stated_letter(text: str, match: re.Match) -> str | None:
    """The letter of a statement, or None where it is doubted, denied or one of several."""
    groups = match.groupdict()
    if groups.get("not") or _ANOTHER.match(
        text, match.end("letter") + (text[match.end("letter") : match.end("letter") + 1] in (")", "]"))
    ):
        return None
    before = re.split(r"[.\n;:]", text[max(0, match.start("letter") - 60) : match.start("letter")])[-1]
    after = groups.get("said") or ""
    if _DENIED.search(before) or _DENIED.search(after) or _DOUBT.search(before):
        return None
    rest = re.match(
        r"[)\]]?\s{0,4}(?:is|was|seems)?\s{0,4}(?:wrong|incorrect|not|false)\b", text[match.end("letter") :]
    )
    return None if rest else match["letter"]


def lone_letter(text: str, after: int) -> str | None:
    """The letter that the last line is or begins with, if it stands behind the last statement."""
    lower = _LOWER.search(text[-60:])
    if lower:
        return lower[1].upper()
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or text.rfind(lines[-1]) + len(lines[-1]) <= after:
        return None
    alone = _ALONE.fullmatch(lines[-1][:200])
    if alone and len(lines[-1]) <= 200:
        return alone[1].upper()
    led = [match[1] for match in map(_LED.match, lines) if match]
    return led[-1] if len(set(led)) == 1 and after < 0 and _LED.match(lines[-1]) else None


# ---- slots ----

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,40}(?:[ -][A-Za-z0-9_]{1,20}){0,3}"
_SLOT = re.compile(rf"\s*[\"']?({_NAME})[\"']?\s*(?:=>?|:|->|→)\s*(\S.*)")
_NEXT = re.compile(  # another slot on the line: a name before "=", or before ":" and a space (6:30 is a time)
    rf"[,;]\s{{0,4}}(?=[\"']?{_NAME}[\"']?\s{{0,4}}(?:=|:\s|:\s{{0,4}}[^\s\d]))"
)
_LEAD = re.compile(r"[\s>*•\-+]*(?:\d{1,2}[.)]\s+)?[\s*•\-]*")
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
    found = json_slots(text)
    if found is None:
        pairs = [pair for line in text.split("\n") for pair in line_slots(line)]
        found = dict(pairs)
    return {slot_name(name): slot_value(value) for name, value in found.items()}


def slot_name(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip(_QUOTES).casefold())


def slot_value(value: str) -> str:
    value = value.strip(_QUOTES).rstrip(".,;").strip(_QUOTES)
    return " ".join(value.casefold().split())


def json_slots(text: str) -> dict[str, str] | None:
    """The slots of the JSON object in a text; None if there is none, or it is no object of plain values."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict) and len(found) == 1 and isinstance(next(iter(found.values())), dict):
        found = next(iter(found.values()))
    if not isinstance(found, dict):
        return None
    plain = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in found.items()}
    return {name: json.dumps(value) if not isinstance(value, str) else value for name, value in plain.items()
            if value is not None}  # fmt: skip


def line_slots(line: str) -> list[tuple[str, str]]:
    """The (slot, value) pairs of a line."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if line.strip().startswith("|") or (len(cells) == 2 and all(cells)):
        names = [cell.strip(_QUOTES) for cell in cells]
        is_row = (
            len(cells) == 2
            and all(names)
            and re.fullmatch(_NAME, names[0])
            and names[0].casefold() not in ("slot", "name", "key")
        )
        return [(names[0], names[1])] if is_row else []
    bare = line.replace("**", "").replace("`", "").strip()
    bare = bare[_LEAD.match(bare).end() :]
    matches = [_SLOT.fullmatch(part.strip()) for part in _NEXT.split(bare)]
    return [(match[1], match[2]) for match in matches if match and slot_value(match[2])]
