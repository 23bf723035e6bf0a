r"""Whether two answers are equal: by their mathematics if both can be read as formulas, else as texts.

    same_answer(r"\frac{1}{2}", "0.5")      True
    same_answer("9", r"9\blob{3}")          False: it is no formula, and the texts differ

Values of different types are never equal: a set is no tuple, an equation no number. Exact numbers are compared exactly,
decimals to six significant digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from dvpo_lib.tasks.published.formulas.reader import read_formula
from dvpo_lib.tasks.published.formulas.regions import RealInterval, region_of_points
from dvpo_lib.tasks.published.formulas.same_numbers import same_equation, same_number
from dvpo_lib.tasks.published.formulas.spelling import comparable_text, respell_formula
from dvpo_lib.tasks.published.formulas.tokens import UnreadFormula
from dvpo_lib.tasks.published.formulas.units import UNIT_NAMES, split_unit
from dvpo_lib.tasks.published.formulas.values import FormulaValue, evaluate_formula

_MAX_ITEMS = 40


def same_answer(truth: str, given: str) -> bool:
    """Whether a given answer equals the right one.

    Args:
        truth: the right answer, without delimiters.
        given: the answer to judge.

    Returns:
        True if the values are equal, or if one of the answers is no formula and both are the same text.
    """
    truth, given = respell_formula(truth), respell_formula(given)
    if comparable_text(truth) == comparable_text(given) != "":
        return True
    sides = [list(_formula_readings(text)) for text in (truth, given)]
    return any(_same_unit(a[1], b[1]) and _same_values(a[0], b[0]) for a, b in product(*sides))


def _formula_readings(text: str) -> Iterator[tuple[list[FormulaValue], str]]:
    """The values and the unit of a text, once for each way to read it as a formula."""
    for spelled in dict.fromkeys(_spelling_variants(text)):
        bare, unit = split_unit(spelled)
        for form, name in ((bare, unit), (spelled, "")) if unit else ((bare, ""),):
            try:
                yield evaluate_formula(read_formula(form)), name
            except (UnreadFormula, TypeError, ValueError, AttributeError, NotImplementedError, ZeroDivisionError):
                continue


def _spelling_variants(text: str) -> Iterator[str]:
    """Readings of a text: 1,234 is a number or a list, 1,22 a list or a decimal, 2e-1 a decimal or 2 e - 1."""
    yield re.sub(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?![\d])", lambda m: m[1].replace(",", ""), text)
    yield text
    if re.fullmatch(r"-?(?:0,\d+|\d+,\d\d)", text):
        yield text.replace(",", ".")
    parts = text.split("=")
    if len(parts) > 2 and re.fullmatch(r"\s*[A-Za-z]\s*", parts[-2]) and not re.search(r"[,;]|\\(?:and|or) ", text):
        # a = b = x = 0 says x = 0
        yield "=".join(parts[-2:])
    yield re.sub(r"(?<![\d.])(\d+)e([+-]\d)(?!\d)", r"\1 e\2", text)


def _same_unit(a: str, b: str) -> bool:
    """Whether two units agree. A unit on one side only is ignored, and so is an unknown word without a number in it."""
    return (
        not a
        or not b
        or a == b
        or (re.sub(r"[^\d^/-]", "", a) == re.sub(r"[^\d^/-]", "", b) and not (_is_known_unit(a) and _is_known_unit(b)))
    )


def _is_known_unit(unit: str) -> bool:
    """Whether all words of a unit are in the table of units."""
    return all(word in UNIT_NAMES for word in re.findall(r"[A-Za-zµ$]+", unit))


# ---- lists ----


def _same_values(truth: list[FormulaValue], given: list[FormulaValue]) -> bool:
    """Whether two lists hold the same values: in order if labels or a tuple give one, else in any order."""
    truth, given = (
        _without_repeated_tuples(side) for side in (_unwrapped_items(truth, given), _unwrapped_items(given, truth))
    )
    if len(truth) != len(given) or len(truth) > _MAX_ITEMS:
        return False
    if len(truth) == 1:
        return _same_value(truth[0], given[0])
    if all(v.label for v in truth) != all(v.label for v in given) and _have_distinct_labels(
        truth
    ) + _have_distinct_labels(given):
        return all(map(_same_value, truth, given))  # x = 3, y = 4 and 3, 4: in this order
    return _match_in_any_order(truth, given)


def _without_repeated_tuples(found: list[FormulaValue]) -> list[FormulaValue]:
    """A list of tuples without repetitions: tuples are solutions. Repeated numbers may mean something and stay."""
    if not all(v.kind == "group" and not v.label for v in found) or len(found) > _MAX_ITEMS:
        return found
    return [v for i, v in enumerate(found) if not any(_same_value(v, earlier) for earlier in found[:i])]


def _have_distinct_labels(found: list[FormulaValue]) -> bool:
    """Whether each value has a label of its own."""
    return all(v.label for v in found) and len({v.label for v in found}) == len(found)


def _unwrapped_items(found: list[FormulaValue], other: list[FormulaValue]) -> list[FormulaValue]:
    """The items of a set, if the other side is a list; the items of a tuple, if they are in the list's order."""
    if len(found) != 1 or len(other) < 2:
        return found
    if found[0].kind == "set":
        return found[0].data
    if found[0].kind == "group" and found[0].data[0] + found[0].data[2] == "()":
        items = found[0].data[1]
        in_order = len(items) == len(other) and all(map(_same_value, items, other))
        return items if in_order else found
    return found


def _match_in_any_order(truth: list[FormulaValue], given: list[FormulaValue]) -> bool:
    """Whether the lists hold equal items, in any order."""
    left = list(given)
    for item in truth:
        found = next((i for i, other in enumerate(left) if _same_value(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


# ---- values ----


def _same_value(a: FormulaValue, b: FormulaValue) -> bool:
    """Whether two values are equal, by the rule of their kind."""
    if a.label and b.label and a.label != b.label and {a.label, b.label} != {"f", "y"}:
        return same_equation(a.equation, b.equation)
    if "equation" in (a.kind, b.kind):
        return same_equation(a.equation, b.equation)
    if a.kind != b.kind:
        return _same_across_kinds(a, b) or _same_across_kinds(b, a)
    if a.kind == "number":
        return same_number(a.data, b.data, a.digits, b.digits)
    if a.kind == "percent":
        return same_number(a.data, b.data)
    if a.kind == "ratio":
        return len(a.data) == len(b.data) and all(
            same_number(x * b.data[0], y * a.data[0]) for x, y in zip(a.data, b.data)
        )
    if a.kind == "group":
        return (
            (a.data[0], a.data[2]) == (b.data[0], b.data[2])
            and len(a.data[1]) == len(b.data[1])
            and all(map(_same_value, a.data[1], b.data[1]))
        )
    if a.kind == "set":
        return len(a.data) <= _MAX_ITEMS and _match_in_any_order(a.data, b.data)
    if a.kind == "matrix":
        return a.data.shape == b.data.shape and all(map(same_number, a.data, b.data))
    if a.kind == "relation":
        return a.data[0] == b.data[0] and same_equation(a.data[1], b.data[1], positive=a.data[0] != "!=")
    return _same_region(a.data, b.data) if a.kind == "region" else a.data == b.data


def _same_across_kinds(a: FormulaValue, b: FormulaValue) -> bool:
    """Whether values of two kinds are equal, by the rule of b's kind."""
    if b.kind == "percent" and a.kind == "number":
        return same_number(a.data, b.data, a.digits) or same_number(a.data, b.data / 100, a.digits)
    if b.kind == "ratio" and a.kind == "number" and len(b.data) == 2:
        return same_number(a.data * b.data[1], b.data[0])
    if b.kind == "region" and a.kind == "group" and len(a.data[1]) == 2 and a.data[0] in "([":
        low, high = a.data[1]
        return low.kind == high.kind == "number" and _same_region(
            [RealInterval(low.data, high.data, a.data[0] == "(", a.data[2] == ")")], b.data
        )
    if b.kind == "region" and a.kind == "set" and all(v.kind == "number" for v in a.data):
        return _same_region(region_of_points([v.data for v in a.data]), b.data)
    return False


def _same_region(a: list[RealInterval], b: list[RealInterval]) -> bool:
    """Whether two sets of real numbers have the same pieces."""
    return len(a) == len(b) and all(
        (p.low_open, p.high_open) == (q.low_open, q.high_open)
        and same_number(p.low, q.low)
        and same_number(p.high, q.high)
        for p, q in zip(a, b)
    )
