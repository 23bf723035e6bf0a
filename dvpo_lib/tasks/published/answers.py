"""The part of a completion that is judged: its conclusion, and the boxes in it.

Every function is a single pass or a bounded pattern. Completions come from a policy that is rewarded for them, and it
may learn to write text that is slow to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

JUDGED_CHARACTERS = 4000  # characters at the end of a completion that are read


def _completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion, or of the last message of a conversation ([{role, content}], as TRL passes it).

    Raises:
        TypeError: If the completion is neither a text nor a list of messages.
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


def judged_text(completion: str | Sequence[Mapping[str, Any]], last: int = JUDGED_CHARACTERS) -> str:
    """The part of a completion that is judged.

    Args:
        completion: a text, or a list of messages.
        last: the number of characters read, counted from the end.

    Returns:
        The content of the last `<answer>`, else the text after the last `</think>`. "" if either tag is still open.
    """
    text = _completion_text(completion).rpartition("</think>")[2]
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
_TURNS = set(
    "no not wait but yet wrong instead should actually rather check hmm so thus hence therefore answer final "
    "was gives get means then".split()
)


def scan_boxes(text: str) -> tuple[list[tuple[int, int, str]], int]:
    """All closed boxes, and the position of the last box left open (-1 if there is none), in one pass over the text."""
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


def find_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""The start, end and content of every `\boxed{...}` (or `\fbox{...}`) with balanced braces."""
    return scan_boxes(text)[0]


def ends_in_open_box(text: str) -> bool:
    """Whether the last box is never closed, for example if the completion was cut off."""
    found, opened = scan_boxes(text)
    return opened > (found[-1][0] if found else -1)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`.

    Boxes side by side are read as one list: `\boxed{1} and \boxed{2}`, `$a=\boxed{1}$, $b=\boxed{2}$`, so that a
    completion cannot hedge. Boxes with the same content count once.

    Args:
        text: a completion, or a right answer.

    Returns:
        The content; "1, 2" for several boxes. None if there is no box, "" if the last one is never closed.
    """
    found, opened = scan_boxes(text)
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
    """Whether the text between two boxes joins them, rather than replaces the first by the second."""
    if len(between) > 60:
        return False
    words = _MATH_SIGNS.sub(" ", _LABEL.sub(" ", _PART.sub(" ", between))).split()
    joins = "," in between or {"and", "or", "for"} & {word.casefold() for word in words}
    return not words or bool(joins and not _TURNS & {word.casefold() for word in words})


def bare_answer(answer: str) -> str:
    r"""An answer without its box, dollar signs, outer white space and final full stop."""
    inside = boxed_answer(answer)
    answer = (inside or answer).replace("\\$", "").replace("$", "")
    return re.sub(r"\\[()\[\]](?![\dA-Za-z]*pt)", " ", answer).strip().removesuffix(".").strip()


def same_answer_text(a: str, b: str) -> bool:
    """Whether two answers are the same text. White space counts only between digits (3 1/4 is not 31/4)."""
    return _SPACE.sub("", a) == _SPACE.sub("", b) != ""
