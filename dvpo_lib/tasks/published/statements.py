r"""Where an answer stands: in the box of a completion, or in the sentence that states it.

    answer_of("So \boxed{4}.", is_whole)                        "4"
    answer_of("The answer is $\frac{1}{2}$.", is_whole)         "\frac{1}{2}"
    answer_of("The answer is not 8.", is_whole)                 "": it is denied

Every pattern is bounded, because completions may be made to be slow to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dvpo_lib.tasks.published.answers import boxed, boxes, plain, scanned

LONGEST = 600  # characters of a sentence that are looked at
_SAID = re.compile(r"(?i)(?<![a-z])answers?\b"
                   r"(?:[^.:=\n$\\]{0,40}?(?:\b(?:is|are|be|equals)\b(?:\s{0,4}[:=])?|[:=])|\s{1,2}[-–]\s"
                   r"|[\s*_:]{0,8}\n)")  # fmt: skip
_FORMULA = re.compile(
    r"\$\$([^$]{1,600})\$\$|\$([^$\n]{1,600})\$(?!\d)|\\\(([^\n]{1,600}?)\\\)|\\\[(.{1,600}?)\\\]", re.DOTALL
)
_BLOCK = re.compile(r"\\\[.{1,600}?\\\]|\$\$[^$]{1,600}\$\$", re.DOTALL)
_STOP = re.compile(r"(?<!\\)[.!?](?=\s|$|[\"'`*)])|\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?]\$)\s+|(?<=[.!?]\$\$)\s+")
_NUMBER = re.compile(  # in prose; not a part of a formula
    r"(?<![\w.,/^{(\\])-?(?:[$€£]\s?)?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?![\d,.]*[_^\\{(])(?:[eE][+-]?\d+)?"
    r"(?:\s\d+/\d+|\s?/\s?\d+)?(?::\d+){0,2}(?:\s?(?:\\?%|percent\b|pct\b))?"
)
_MATHS = re.compile(r"[\d\\=+*/^|<>√π∞-]")
_REASON = re.compile(
    r"(?i)[,;(]?\s(?:because|since|where|which|so that|when|as (?!a\b)|for all|for every)\b.*", re.DOTALL
)
_DOUBT = re.compile(
    r"(?i)\b(?:maybe|perhaps|possibly|probably|unsure|unclear|unknown|guess|doubt|neither|not sure"
    r"|(?:might|could|may) be(?!.*\b(?:is|are|equals)\b))\b"
)
_NOT = re.compile(r"(?i)\b(?:not|isn't|never|cannot|can't)\b")
_TAKEN_BACK = re.compile(
    r"(?i)[\s.*\"]{0,6}(?:no\b|wait\b|hmm|but (?:that|this)|(?:that|this)(?:'s| is) (?:wrong|not|incorrect))"
)
_CLEAN = re.compile(r"\\[()\[\]]|\$|\*\*|__|`|[\"“”]|^'|'$")


def unboxed_answer(text: str, is_whole: Callable[[str], bool]) -> str | None:
    r"""The answer that a completion without a box states.

    It follows "####", else the last "the answer is", else it is what the last line says: the line itself, its last
    formula, its last number. Dollar amounts in prose are no formulas.

    Args:
        text: the conclusion of a completion.
        is_whole: whether a text can be read as a formula.

    Returns:
        The answer as it is written. None if there is none, or if it is doubted or denied.
    """
    text = _BLOCK.sub(lambda m: " ".join(m[0].split()), text.replace("\\$", ""))
    mark = text.rfind("####")
    if mark >= 0:
        return stated(text[mark:].lstrip("# ").partition("\n")[0], is_whole)
    said = list(_SAID.finditer(text))
    if said:
        sentence = re.split(r"[.!?;\n]", text[: said[-1].start()])[-1]
        if _NOT.search(said[-1][0]) or _DOUBT.search(f"{sentence[-LONGEST:]} {said[-1][0]} "):
            return None
    if said:
        rest = text[said[-1].end() :].lstrip(" \n\t*_:")
        formula = _FORMULA.match(rest)
        end = _STOP.search(rest, formula.end() if formula else 0)
        if _TAKEN_BACK.match(rest, end.end() if end else len(rest)):
            return None
        return stated(rest[: end.start()] if end else rest, is_whole)
    lines = [line for line in text.split("\n") if line.strip()]
    for line in reversed(lines[-4:]):
        if not any(map(str.isalnum, line)):
            return None
        sentences = [
            part for part in _SENTENCE.split(line) if any(map(str.isdigit, part)) or "$" in part or "\\" in part
        ]
        if sentences and _TAKEN_BACK.match(line[line.rfind(sentences[-1]) + len(sentences[-1]) :]):
            return None
        if sentences or line is lines[0]:
            return concluded(line, sentences[-1] if sentences else line, is_whole)
    return None


def answer_of(text: str, is_whole: Callable[[str], bool], boxed_only: bool = False) -> str:
    """The answer that a conclusion gives: its box, or what it states (behind the box too, where that is a formula).

    Args:
        text: the conclusion of a completion.
        is_whole: whether a text can be read as a formula.
        boxed_only: whether a statement without a box is no answer.

    Returns:
        The answer as it is written, "" if there is none.
    """
    inside = boxed(text)
    if boxed_only or inside == "":
        return plain(inside or "")
    if inside is None:
        return plain(unboxed_answer(text, is_whole) or "")
    behind = text[boxes(text)[-1][1] :]
    later = unboxed_answer(behind, is_whole) if _SAID.search(behind) else None
    return plain(later) if later and any(map(str.isdigit, later)) and is_whole(later) else plain(inside)


def clean(text: str) -> str:
    """A statement without delimiters, quotes, bold and a final full stop."""
    return _CLEAN.sub(" ", text).lstrip(" \t\n,;:'*_").rstrip(" \t\n.,;:'*_")


def stated(said: str, is_whole: Callable[[str], bool]) -> str | None:
    """The answer in what follows "the answer is"."""
    said = said[:LONGEST]
    instead = re.search(r"(?i)\bnot\b.{1,60}?\bbut\b(.*)", said)
    said = instead[1] if instead else said
    said = re.sub(r"(?i),?\s(?:and )?not\s.*", "", said) if re.search(r"\d.*\bnot\b", said) else said
    whole = clean(said)
    if _FORMULA.fullmatch(said.strip(" .*")):
        return whole
    if _DOUBT.search(said) or _NOT.search(said):
        return None
    either = re.match(r"(?i)either\s(.*)", whole)
    whole = either[1] if either else whole
    if is_whole(whole):
        return whole
    said = _REASON.sub("", said)
    inner = re.search(r".*\s(?:is|are|equals|be)\b:?\s+(.*)", said) or re.fullmatch(
        r"[A-Z][A-Za-z ]{0,30}:\s+(.*)", said
    )
    for part in (clean(said), clean(inner[1]) if inner else ""):
        if part and is_whole(part):
            return part
    said = inner[1] if inner else said
    formulas = [clean(m[0]) for m in _FORMULA.finditer(said)]
    if formulas:
        return formulas[0] if len(formulas) == 1 else clean(said)
    number = _NUMBER.search(said)
    if number and len(_NUMBER.findall(said)) == 1 and not re.search(r"\bor\b|[\\^_={}+*]", said):
        return clean(number[0])
    return clean(said) or None


def concluded(line: str, sentence: str, is_whole: Callable[[str], bool]) -> str | None:
    """The answer in a last line that does not say that it is one."""
    line, sentence = line[-LONGEST:], sentence[-LONGEST:]
    if line.count("$") % 2:  # an amount of money: 2.74 $
        line, sentence = (re.sub(r"(?<=\d)\s?\$(?!\d)", " dollars", part) for part in (line, sentence))
    if sentence.rstrip().endswith("?"):
        return None
    for whole in (line, sentence):
        whole = re.sub(r"^\s*[A-Z][A-Za-z]{0,30}\s?:\s+", "", whole)
        if is_whole(clean(whole)):
            return clean(whole)
    found = [*_FORMULA.finditer(sentence)]
    if not found and not _NOT.search(sentence) and not _DOUBT.search(sentence):
        tail = formula_behind(sentence)
        if is_whole(tail):
            return tail
    found = found or [*_NUMBER.finditer(sentence)]
    if not found:
        return clean(sentence) or None
    run = [found[-1]]
    for match in reversed(found[:-1]):
        if not re.fullmatch(r"[\s,]*(?:or|and|,)[\s,]*", sentence[match.end() : run[0].start()]):
            break
        run.insert(0, match)
    before = sentence[found[-len(run) - 1].end() if len(found) > len(run) else 0 : run[0].start()]
    if (
        _NOT.search(before)
        or _DOUBT.search(sentence)
        or re.search(r"(?i)\bfails?\b|\bwrong\b|\bnot\b", sentence[run[-1].end() :])
    ):
        return None
    return " or ".join(clean(match[0]) for match in run)


def formula_behind(sentence: str) -> str:
    """The words with which a sentence ends, as long as each looks like a part of a formula."""
    words = clean(sentence).split(" ")
    start = len(words)
    while start and (_MATHS.search(words[start - 1]) or (len(words[start - 1]) == 1 and words[start - 1] not in "aAI")):
        start -= 1
    return " ".join(words[start:])


def right_answer(text: str, is_whole: Callable[[str], bool]) -> str:
    """A right answer without what is not its value: its box, dollar signs, a sentence around it."""
    inside = boxed(text)
    if inside == "":  # open at the end of the text
        inside = text[scanned(text)[1] :].partition("{")[2]
    if inside is not None:
        return plain(inside)
    found = plain(text)
    solution = "\n" in found and is_whole(clean(found.rpartition("\n")[2].rpartition(":")[2]))
    if solution or (len(found) > 40 and _SAID.search(found) and not is_whole(found)):
        return unboxed_answer(text, is_whole) or found
    return found


def not_whole(answers: Sequence[str], is_whole: Callable[[str], bool]) -> list[str]:
    """The right answers that are not read whole as formulas: they are compared as texts.

    Args:
        answers: right answers of problems of mathematics.
        is_whole: whether a text can be read as a formula.

    Returns:
        Those that are not, in their order.
    """
    known = {answer: is_whole(right_answer(answer, is_whole)) for answer in set(answers)}
    return [answer for answer in answers if not known[answer]]
