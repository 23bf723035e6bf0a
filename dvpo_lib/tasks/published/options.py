r"""The option that a completion chooses, as models write it.

    chosen_letter("A does not fit. It is B.")              "B"
    chosen_letter("The answer is not D but A.")            "A"
    chosen_letter("The answer is B or C.")                 None

The last statement counts. A statement that names two options or expresses doubt chooses none; a statement that denies
an option takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dvpo_lib.tasks.published.answers import JUDGED_CHARACTERS, ends_in_open_box, find_boxes, judged_text

_MARKUP = re.compile(
    r"\*\*|__|`|\"|[“”‘’]|(?<![A-Za-z])'|'(?![A-Za-z])|\$|\\[()\[\],;:! ]|~|\\q?quad"
    r"|\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s{0,4}(?=\{)|[{}<>]|(?m:^#+)"
)
_LETTER = (  # "A" and "I" before another word are words
    r"[(\[]?(?P<letter>[B-HJ]|[AI](?!\s+(?!because|since|as\b|is\b|and\b|or\b|but\b|fits\b|with\b)[a-z]))"
    r"(?![A-Za-z0-9_'’+*^=])[)\]]?"
)
_FILLER = (
    r"(?:\s{1,12}(?:clearly|definitely|therefore|thus|then|hence|indeed|obviously|simply|just|surely|again|option|choice"
    r"|letter|answer|be|to|has|have|must|should|would|the|correct|right|best|actually|most|likely)(?![A-Za-z]),?){0,5}"
)
_SAYS = (
    r"\s{1,4}(?P<said>(?:is|seems|must|has|fits|matches|looks|cannot|can't|isn't)\b"
    r"(?:(?!because|since|\bas\b|\band\b|\bbut\b)[^.,;\n]){0,40})"
)
_STATED = [
    re.compile(pattern)
    for pattern in (
        # the answer is B; Answer: B; final answer - B
        r"(?i:answer|choice|option|solution|conclusion|letter|\bans)s?\b[^.:=\n]{0,40}?"
        rf"(?i:\s(?:is|was|are|be)\b|\s{{0,4}}[:=]|\s-\s)(?i:{_FILLER})\s{{0,4}}[:=]?\s{{0,12}}(?P<not>not\s)?{_LETTER}",
        # option B is right; B is the best choice; only B fits
        rf"(?i:\b(?:option|choice|answer))\s{{1,4}}{_LETTER}{_SAYS}",
        rf"(?:^|[.:;,\n]\s{{0,4}}|(?i:\b(?:so|thus|hence|therefore|that|and|only|but))\s){_LETTER}{_SAYS}",
        # I choose B; it is B; that leaves B; thus, B
        r"(?i:\b(?:choose|chose|pick|picked|select|selected|go with|going with|going for|say|choosing|selecting))"
        rf"(?i:{_FILLER})\s{{1,12}}{_LETTER}",
        r"(?i:\b(?:it|this|that)(?:\s(?:is|must be|has to be|should be|can only be)|'s)|\bleaves|\bleaving)"
        rf"(?i:{_FILLER})\s{{1,12}}(?P<not>not\s)?{_LETTER}\s{{0,4}}(?=[.,;!]|$|\n|because|since|as\b)",
        rf"(?i:\b(?:so|thus|hence|therefore|answer)),?\s{{1,12}}{_LETTER}\s{{0,4}}(?=[.!]|$|\n)",
    )
]
_BUT = re.compile(rf"(?i:\bnot)\s{{1,4}}\(?[A-J]\)?,?\s{{1,4}}(?i:but)\s{{1,4}}(?i:rather\s|option\s)?{_LETTER}")
_ALONE = re.compile(r"[\s(\[]*(?:(?i:option|choice|answer)\s{0,4}:?\s{0,4})?\(?([A-Ja-j])[\s)\].:,]*")
_LED = re.compile(r"\s*(?:(?i:option|choice)\s)?\(?([A-J])(?:[.):]|\s-|\)\s|\s–)\s*\S")
_LOWER = re.compile(r"(?i:answer|choice|option)(?:\s{1,4}is|\s{0,4}[:=])\s{0,4}\(?([a-j])\)?[\s.]*$")
_DENIED = re.compile(
    r"(?i)\b(?:not|isn't|cannot|can't|wrong|incorrect|false|impossible|never|unlikely|ruled out|eliminated|too)\b"
)
_DOUBT = re.compile(
    r"(?i)\b(?:either|maybe|perhaps|possibly|might|could be|not sure|unsure|unclear|neither|all of|both|any of|or)\b"
)
_ANOTHER = re.compile(  # B or C; but not "B, since A and C are too small"
    r"[)\]]?\s{0,4}(?:,|/|&|\bor\b|\band\b)(?:\s{0,4}(?:or|and|maybe|perhaps|possibly|option|even))?\s{0,4}"
    r"[(\[]?[A-J](?![A-Za-z0-9_'’])[)\]]?(?!\s+(?:and|is|are|were|was|has|have|does|do)\b)"
)
_WRONG = re.compile(r"[)\]]?\s{0,4}(?:is|was|seems|are)?\s{0,4}(?:wrong|incorrect|not|false)\b")


def chosen_letter(completion: str | Sequence[Mapping[str, Any]], last: int = JUDGED_CHARACTERS) -> str | None:
    r"""The option (A to J) that a completion chooses.

    Statements are boxes (`\boxed{\text{(B)}}`, `\boxed{B. mitosis}`), sentences ("the answer is B", "option B is
    right", "I choose B"), and a first or last line that is a letter or begins with one ("(b)", "B. mitosis").

    Args:
        completion: a text, or a list of messages.
        last: the number of characters read, counted from the end.

    Returns:
        The letter of the last statement. None if there is no statement, or if the last one doubts or names several.
    """
    text = judged_text(completion, last)
    if ends_in_open_box(text):
        return None
    said = [*_boxed_choices(text)]
    for start, end, _ in find_boxes(text):
        text = text[:start] + " " * (end - start) + text[end:]
    plain = _MARKUP.sub(lambda m: " " * len(m[0]), text)
    said += _choice_statements(plain)
    at, letter = -1, None
    for start, stated, denied in sorted(said, key=lambda each: each[0]):
        if denied and stated != letter:
            continue
        at, letter = start, None if denied else stated
    return _lone_letter(plain, after=at) or letter


def _boxed_choices(text: str) -> Iterator[tuple[int, str | None, bool]]:
    """(position, letter, denied) of each box that holds letters."""
    end_before, before = -99, None
    for start, end, content in find_boxes(text):
        letter = _boxed_letter(content)
        joined = before and letter and re.fullmatch(r"[\s,$]{0,8}(?:and|or|,)?[\s$]{0,8}", text[end_before:start])
        if letter or not re.search(r"\d", content):
            yield start, None if joined and before != letter else letter, False
        end_before, before = end, letter


def _boxed_letter(content: str) -> str | None:
    """The option letter in a box, or None."""
    plain = _MARKUP.sub(" ", content)
    alone = _ALONE.fullmatch(plain)
    if alone:
        return alone[1].upper()
    led = _LED.match(plain)
    if led:
        return None if _ANOTHER.match(plain, led.end(1)) else led[1]
    return next((letter for _, letter, denied in reversed([*_choice_statements(plain)]) if not denied), None)


def _choice_statements(text: str) -> Iterator[tuple[int, str | None, bool]]:
    """(position, letter, denied) of each sentence that chooses or denies an option; several options are None."""
    for pattern in _STATED:
        for match in pattern.finditer(text):
            place, end = match.span("letter")
            groups = match.groupdict()
            before = re.split(r"[.\n;:,]", text[max(0, place - 60) : place])[-1]
            denied = (
                groups.get("not") or _DENIED.search(f"{before} {groups.get('said') or ''}") or _WRONG.match(text, end)
            )
            if _ANOTHER.match(text, end) or (_DOUBT.search(before) and not denied):
                yield place, None, False
            else:
                yield place, match["letter"], bool(denied)
    for match in _BUT.finditer(text):
        yield match.start("letter"), match["letter"], False


def _lone_letter(text: str, after: int) -> str | None:
    """The letter at the start of the last line, or of the first line if there is no statement.

    Args:
        text: the judged text without boxes and markup.
        after: the position of the last statement, -1 if there is none.

    Returns:
        A letter, or None.
    """
    lower = _LOWER.search(text[-60:])
    if lower:
        return lower[1].upper()
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or text.rfind(lines[-1]) + len(lines[-1]) <= after:
        return None
    for line in (lines[-1], lines[0]) if after < 0 else (lines[-1],):
        alone = _ALONE.fullmatch(line) if len(line) <= 200 else None
        if alone:
            return alone[1].upper()
    led = [match[1] for match in map(_LED.match, lines) if match]
    return led[-1] if len(set(led)) == 1 and after < 0 and (_LED.match(lines[-1]) or _LED.match(lines[0])) else None
