"""What of a completion is judged: its conclusion, and the boxes in it.

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
    """The part of a completion that is judged.

    Args:
        completion: a text, or a list of messages.
        last: the characters that are looked at, counted from the end.

    Returns:
        What the last `<answer>` holds, else what follows the last `</think>`; "" while one of the two is still open.
    """
    text = text_of(completion).rpartition("</think>")[2]
    if "<think>" in text:
        return ""
    end = text.rfind("</answer>")
    if text.rfind("<answer>") > end:
        return ""
    start = text.rfind("<answer>", 0, max(end, 0))
    if 0 <= start and "\\boxed" not in text[end:]:
        text = text[start + len("<answer>") : end]
    return text[-last:]


_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")

# ---- boxes ----

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_MATH_SIGNS = re.compile(r"\\+$|\\(?:text|quad|qquad|left|right|[()\[\],;:! ])|[${}\s.,;:+&*_()]")
_LABEL = re.compile(r"[A-Za-z][\w\\{}()]{0,12}\s{0,4}=\s{0,4}$")
_PART = re.compile(r"\b[Pp]arts?\b|\((?:[a-h]|[ivx]{1,4}|\d)\)")  # (a), part (ii)
_TURNS = set("no not wait but yet wrong instead should actually rather check hmm so thus hence therefore answer final "
             "was gives get means then".split())  # fmt: skip


def scanned(text: str) -> tuple[list[tuple[int, int, str]], int]:
    """Every closed box, and where the last open one starts (-1: there is none). One pass over the text."""
    openings = {m.end() - 1: m.start() for m in _BOX.finditer(text)}
    found, stack = [], []
    for i in (m.start() for m in re.finditer(r"[{}]", text)):
        if text[i - 1 : i] == "\\":
            continue
        if text[i] == "{":
            stack.append(i)
        elif stack:
            opened = stack.pop()
            if opened in openings:
                while found and found[-1][0] > openings[opened]:  # the outermost alone
                    found.pop()
                found.append((openings[opened], i + 1, text[opened + 1 : i]))
    return found, max((openings[i] for i in stack if i in openings), default=-1)


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every `\boxed{...}` (and `\fbox{...}`) with balanced braces: start, end, content."""
    return scanned(text)[0]


def is_cut(text: str) -> bool:
    """Whether the last box is never closed, as where a completion ends too early."""
    found, opened = scanned(text)
    return opened > (found[-1][0] if found else -1)


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds.

    Several side by side are one list: `\boxed{1} and \boxed{2}`, `$a=\boxed{1}$, $b=\boxed{2}$`. So a completion cannot
    hedge. Boxes of one content are one.

    Args:
        text: a completion, or a right answer.

    Returns:
        The content, "1, 2" for several. None if there is no box, "" if the last one is never closed.
    """
    found, opened = scanned(text)
    if opened > (found[-1][0] if found else -1):
        return ""
    if not found:
        return None
    run = [found[-1]]
    for box in reversed(found[:-1]):
        if not _side_by_side(text[box[1] : run[0][0]]):
            break
        run.insert(0, box)
    contents = [content for _, _, content in run]
    return contents[0] if len({"".join(content.split()) for content in contents}) == 1 else ", ".join(contents)


def _side_by_side(between: str) -> bool:
    """Whether what stands between two boxes joins them, rather than turns from the one to the other."""
    if len(between) > 60:
        return False
    words = _MATH_SIGNS.sub(" ", _LABEL.sub(" ", _PART.sub(" ", between))).split()
    joins = "," in between or {"and", "or", "for"} & {word.casefold() for word in words}
    return not words or bool(joins and not _TURNS & {word.casefold() for word in words})


def plain(answer: str) -> str:
    r"""An answer without what never matters: its box, dollar signs, outer white space, a final full stop."""
    inside = boxed(answer)
    answer = (inside or answer).replace("\\$", "").replace("$", "")
    return re.sub(r"\\[()\[\]](?![\dA-Za-z]*pt)", " ", answer).strip().removesuffix(".").strip()


def same_text(a: str, b: str) -> bool:
    """Whether two answers are the same text, white space aside; between digits it counts (3 1/4 is not 31/4)."""
    return _SPACE.sub("", a) == _SPACE.sub("", b) != ""
