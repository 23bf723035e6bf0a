r"""Extraction of the answer from a completion: from its box, or from the sentence that states it.

    extract_answer("So \boxed{4}.", is_formula)                        "4"
    extract_answer("The answer is $\frac{1}{2}$.", is_formula)         "\frac{1}{2}"
    extract_answer("The answer is not 8.", is_formula)                 "": it is denied

Every pattern is bounded, because a policy may learn to write completions that are slow to read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dvpo_lib.tasks.published.answers import bare_answer, boxed_answer, find_boxes, scan_boxes

_LONGEST = 600  # characters of a sentence that are read
_SAID = re.compile(
    r"(?i)(?<![a-z])answers?\b"
    r"(?:[^.:=\n$\\]{0,40}?(?:\b(?:is|are|be|equals)\b(?:\s{0,4}[:=])?|[:=])|\s{1,2}[-–]\s"
    r"|[\s*_:]{0,8}\n)"
)
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


def _unboxed_answer(text: str, is_formula: Callable[[str], bool]) -> str | None:
    r"""The answer stated by a completion without a box.

    It follows "####", else the last "the answer is". Otherwise the last line is the answer: the line itself, its last
    formula, or its last number. Dollar amounts in prose are no formulas.

    Args:
        text: the judged part of a completion.
        is_formula: tells if a text can be read as a formula.

    Returns:
        The answer as written. None if there is none, or if it is doubted or denied.
    """
    text = _BLOCK.sub(lambda m: " ".join(m[0].split()), text.replace("\\$", ""))
    mark = text.rfind("####")
    if mark >= 0:
        return _answer_in_statement(text[mark:].lstrip("# ").partition("\n")[0], is_formula)
    said = list(_SAID.finditer(text))
    if said:
        sentence = re.split(r"[.!?;\n]", text[: said[-1].start()])[-1]
        if _NOT.search(said[-1][0]) or _DOUBT.search(f"{sentence[-_LONGEST:]} {said[-1][0]} "):
            return None
    if said:
        rest = text[said[-1].end() :].lstrip(" \n\t*_:")
        formula = _FORMULA.match(rest)
        end = _STOP.search(rest, formula.end() if formula else 0)
        if _TAKEN_BACK.match(rest, end.end() if end else len(rest)):
            return None
        return _answer_in_statement(rest[: end.start()] if end else rest, is_formula)
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
            return _answer_in_last_line(line, sentences[-1] if sentences else line, is_formula)
    return None


def extract_answer(text: str, is_formula: Callable[[str], bool], boxed_only: bool = False) -> str:
    """The answer in a completion: its box, or a later statement if that is a formula, or its only statement.

    Args:
        text: the judged part of a completion.
        is_formula: tells if a text can be read as a formula.
        boxed_only: if True, a statement without a box is no answer.

    Returns:
        The answer as written, "" if there is none.
    """
    inside = boxed_answer(text)
    if boxed_only or inside == "":
        return bare_answer(inside or "")
    if inside is None:
        return bare_answer(_unboxed_answer(text, is_formula) or "")
    behind = text[find_boxes(text)[-1][1] :]
    later = _unboxed_answer(behind, is_formula) if _SAID.search(behind) else None
    return bare_answer(later) if later and any(map(str.isdigit, later)) and is_formula(later) else bare_answer(inside)


def _clean_statement(text: str) -> str:
    """A statement without delimiters, quotes, bold type and final full stop."""
    return _CLEAN.sub(" ", text).lstrip(" \t\n,;:'*_").rstrip(" \t\n.,;:'*_")


def _answer_in_statement(said: str, is_formula: Callable[[str], bool]) -> str | None:
    """The answer in the text after "the answer is"."""
    said = said[:_LONGEST]
    instead = re.search(r"(?i)\bnot\b.{1,60}?\bbut\b(.*)", said)
    said = instead[1] if instead else said
    said = re.sub(r"(?i),?\s(?:and )?not\s.*", "", said) if re.search(r"\d.*\bnot\b", said) else said
    whole = _clean_statement(said)
    if _FORMULA.fullmatch(said.strip(" .*")):
        return whole
    if _DOUBT.search(said) or _NOT.search(said):
        return None
    either = re.match(r"(?i)either\s(.*)", whole)
    whole = either[1] if either else whole
    if is_formula(whole):
        return whole
    said = _REASON.sub("", said)
    inner = re.search(r".*\s(?:is|are|equals|be)\b:?\s+(.*)", said) or re.fullmatch(
        r"[A-Z][A-Za-z ]{0,30}:\s+(.*)", said
    )
    for part in (_clean_statement(said), _clean_statement(inner[1]) if inner else ""):
        if part and is_formula(part):
            return part
    said = inner[1] if inner else said
    formulas = [_clean_statement(m[0]) for m in _FORMULA.finditer(said)]
    if formulas:
        return formulas[0] if len(formulas) == 1 else _clean_statement(said)
    number = _NUMBER.search(said)
    if number and len(_NUMBER.findall(said)) == 1 and not re.search(r"\bor\b|[\\^_={}+*]", said):
        return _clean_statement(number[0])
    return _clean_statement(said) or None


def _answer_in_last_line(line: str, sentence: str, is_formula: Callable[[str], bool]) -> str | None:
    """The answer in a last line without the words "the answer is"."""
    line, sentence = line[-_LONGEST:], sentence[-_LONGEST:]
    if line.count("$") % 2:  # an amount of money: 2.74 $
        line, sentence = (re.sub(r"(?<=\d)\s?\$(?!\d)", " dollars", part) for part in (line, sentence))
    if sentence.rstrip().endswith("?"):
        return None
    for whole in (line, sentence):
        whole = re.sub(r"^\s*[A-Z][A-Za-z]{0,30}\s?:\s+", "", whole)
        if is_formula(_clean_statement(whole)):
            return _clean_statement(whole)
    found = [*_FORMULA.finditer(sentence)]
    if not found and not _NOT.search(sentence) and not _DOUBT.search(sentence):
        tail = _trailing_formula(sentence)
        if is_formula(tail):
            return tail
    found = found or [*_NUMBER.finditer(sentence)]
    if not found:
        return _clean_statement(sentence) or None
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
    return " or ".join(_clean_statement(match[0]) for match in run)


def _trailing_formula(sentence: str) -> str:
    """The last words of a sentence, as far back as each looks like a part of a formula."""
    words = _clean_statement(sentence).split(" ")
    start = len(words)
    while start and (_MATHS.search(words[start - 1]) or (len(words[start - 1]) == 1 and words[start - 1] not in "aAI")):
        start -= 1
    return " ".join(words[start:])


def extract_right_answer(text: str, is_formula: Callable[[str], bool]) -> str:
    """The value of a right answer, without its box, dollar signs and the sentence around it."""
    inside = boxed_answer(text)
    if inside == "":  # open at the end of the text
        inside = text[scan_boxes(text)[1] :].partition("{")[2]
    if inside is not None:
        return bare_answer(inside)
    found = bare_answer(text)
    solution = "\n" in found and is_formula(_clean_statement(found.rpartition("\n")[2].rpartition(":")[2]))
    if solution or (len(found) > 40 and _SAID.search(found) and not is_formula(found)):
        return _unboxed_answer(text, is_formula) or found
    return found


def answers_compared_as_text(answers: Sequence[str], is_formula: Callable[[str], bool]) -> list[str]:
    """The right answers that cannot be read as formulas, and are compared as texts instead.

    Args:
        answers: right answers of problems of mathematics.
        is_formula: tells if a text can be read as a formula.

    Returns:
        The answers that are no formulas, in their order.
    """
    known = {answer: is_formula(extract_right_answer(answer, is_formula)) for answer in set(answers)}
    return [answer for answer in answers if not known[answer]]
