"""What a completion says: its conclusion, its boxed answer, the letter that it chooses, the slots that it fills.

Pure functions of text, each a single pass or a bounded pattern: completions come from a policy that is rewarded for
them, and may be made to be slow to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LAST = 4000  # characters of a completion that are looked at, counted from its end


def text_of(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion: itself, or the last message of a conversation ([{role, content}], as TRL passes it).

    Raises:
        TypeError: neither of the two.
    """
    if isinstance(completion, str):
        return completion
    try:
        content = completion[-1]["content"]
    except (TypeError, KeyError, IndexError):
        content = None
    if not isinstance(content, str):
        raise TypeError(f"a completion should be a text or a list of messages, not {str(completion)[:80]!r}")
    return content


def conclusion(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> str:
    """The part of a completion that is judged: what follows the last `</think>`, at most its `last` characters."""
    text = text_of(completion)
    after = text.rpartition("</think>")[2]
    return (after if after.strip() else text)[-last:]


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every `\boxed{...}` (and `\fbox{...}`) with balanced braces: start, end, content. One pass over the text."""
    openings = {m.end() - 1: m.start() for m in re.finditer(r"\\(?:boxed|fbox)\s{0,8}\{", text)}
    found, stack = [], []
    for i, character in enumerate(text):
        if character == "{" and text[i - 1 : i] != "\\":
            stack.append(i)
        elif character == "}" and text[i - 1 : i] != "\\" and stack:
            opened = stack.pop()
            if opened in openings and not any(brace in openings for brace in stack):  # the outermost alone
                found.append((openings[opened], i + 1, text[opened + 1 : i]))
    return found


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; several side by side ("\boxed{1} and \boxed{2}") are one answer, "1, 2".

    So a completion cannot hedge: of answers in different places the last one counts, and a list is a list.
    """
    found = boxes(text)
    if not found:
        return None
    run = [found[-1]]
    for box in reversed(found[:-1]):
        between = text[box[1] : run[0][0]]
        if len(between) > 40 or not re.fullmatch(r"(?:[\s,;$]|and|or|\\text|\\quad|\\[()\[\],;]|[{}])*", between):
            break
        run.insert(0, box)
    return ", ".join(content for _, _, content in run)


def plain(answer: str) -> str:
    r"""An answer without what never matters: its box, dollar signs, outer white space, a final full stop."""
    inside = boxed(answer)
    return (answer if inside is None else inside).replace("\\$", "").replace("$", "").strip().removesuffix(".").strip()


def same_text(a: str, b: str) -> bool:
    """Whether two answers are the same text, white space aside."""
    return "".join(a.split()) == "".join(b.split()) != ""


# ---- options ----

_BEFORE = r"[\s*_$(\[{\"'`]{0,8}(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?\(?"
_LETTER = (
    r"([B-HJ]|[AI](?!\s+(?!because|since|as\b)[a-z]))(?![A-Za-z0-9_'’])"
    r"(?!\s{0,4}(?:,|/|or\b|and\b)\s{0,4}\(?[A-J]\b)"
)
_SAID = re.compile(
    r"(?i:answer|choice|option)(?:\s{1,4}(?i:is|was|should\s+be)\b\s{0,4}:?|[\s*]{0,4}[:=])"
    r"(?:\s{0,4}(?i:option|choice|letter)\b)?" + _BEFORE + _LETTER
)
_ALONE = re.compile(r"[\s*_$(\[{\"'`]*(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?[\s(]*([A-Ja-j])[\s*_$)\]}\"'`.:,]*")


def chosen_letter(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> str | None:
    r"""The option (A to J) that a completion chooses, or None.

    The first rule that applies decides, on what follows the last `</think>`:
    1. the last `\boxed{...}`, if there is one: its letter (`\boxed{\text{(B)}}` and `\boxed{B. mitosis}` are B), else
       None;
    2. the last "answer is X", "Answer: X", "option: X"; X is a capital, no word and no list ("the answer is A mixture"
       and "the answer is B or C" choose nothing);
    3. a last line that holds a letter and nothing else ("(b)", "**B**").
    """
    text = conclusion(completion, last)
    box = boxed(text)
    if box is not None:
        alone = _ALONE.fullmatch(box) or re.match(r"\s*\(?([A-J])[.):]\s", box)
        return alone[1].upper() if alone else None
    said = [m[1] for m in _SAID.finditer(text)]
    if said:
        return said[-1]
    lines = text.strip().rsplit("\n", 1)
    alone = _ALONE.fullmatch(lines[-1][:200])
    return alone[1].upper() if alone else None


# ---- slots ----


def given_slots(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> dict[str, str]:
    """{slot: value} of a completion's lines `slot = value` or `slot: value`; of a slot's lines the last counts."""
    lines = conclusion(completion, last).split("\n")
    found = [re.match(r"[\s*\-•]{0,8}([A-Za-z][A-Za-z0-9_]{0,60})\s{0,4}[=:]\s*(\S.*)", line) for line in lines]
    return {m[1].casefold(): m[2].strip().casefold() for m in found if m}
