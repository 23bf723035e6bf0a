r"""Whether two answers are equal: by the mathematics of what is read whole, else as texts.

    same_answer(r"\frac{1}{2}", "0.5")      True
    same_answer("9", r"9\blob{3}")          False: it is not read whole, and the texts differ

Values of different types are never equal: a set is no tuple, an equation no number. Exact numbers are compared exactly,
decimals to six significant digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from dvpo_lib.tasks.published.formulas.reader import read_formula
from dvpo_lib.tasks.published.formulas.regions import Piece, points
from dvpo_lib.tasks.published.formulas.same_numbers import same_equation, same_number
from dvpo_lib.tasks.published.formulas.spelling import as_text, respell
from dvpo_lib.tasks.published.formulas.tokens import Unread
from dvpo_lib.tasks.published.formulas.units import UNITS, without_unit
from dvpo_lib.tasks.published.formulas.values import Value, values_of

MOST_ITEMS = 40


def same_answer(truth: str, given: str) -> bool:
    """Whether a given answer is equal to the right one.

    Args:
        truth: the right answer, without delimiters.
        given: the answer to be judged.

    Returns:
        True if the values are equal, or if one of the texts is not read whole and they are the same text.
    """
    truth, given = respell(truth), respell(given)
    if as_text(truth) == as_text(given) != "":
        return True
    sides = [list(readings(text)) for text in (truth, given)]
    return any(same_unit(a[1], b[1]) and same_values(a[0], b[0]) for a, b in product(*sides))


def readings(text: str) -> Iterator[tuple[list[Value], str]]:
    """The values and the unit of a text in each way in which it can be read whole."""
    for spelled in dict.fromkeys(spellings(text)):
        bare, unit = without_unit(spelled)
        for form, name in ((bare, unit), (spelled, "")) if unit else ((bare, ""),):
            try:
                yield values_of(read_formula(form)), name
            except (Unread, TypeError, ValueError, AttributeError, NotImplementedError, ZeroDivisionError):
                continue


def spellings(text: str) -> Iterator[str]:
    """What a text may mean: 1,234 is a number or a list, 1,22 a list or a decimal, 2e-1 a decimal or 2 e - 1."""
    yield re.sub(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?![\d])", lambda m: m[1].replace(",", ""), text)
    yield text
    if re.fullmatch(r"-?(?:0,\d+|\d+,\d\d)", text):
        yield text.replace(",", ".")
    parts = text.split("=")
    if len(parts) > 2 and re.fullmatch(r"\s*[A-Za-z]\s*", parts[-2]) and not re.search(r"[,;]|\\(?:and|or) ", text):
        # a = b = x = 0 says x = 0
        yield "=".join(parts[-2:])
    yield re.sub(r"(?<![\d.])(\d+)e([+-]\d)(?!\d)", r"\1 e\2", text)


def same_unit(a: str, b: str) -> bool:
    """Whether two units agree; one alone is ignored, and so is another word without a number in it."""
    return not a or not b or a == b or (re.sub(r"[^\d^/-]", "", a) == re.sub(r"[^\d^/-]", "", b) and not (
        is_known(a) and is_known(b)))  # fmt: skip


def is_known(unit: str) -> bool:
    """Whether a unit is made of units of the table alone."""
    return all(word in UNITS for word in re.findall(r"[A-Za-zµ$]+", unit))


# ---- lists ----


def same_values(truth: list[Value], given: list[Value]) -> bool:
    """Whether two lists say the same: in order where labels or a tuple give one, else in any order."""
    truth, given = (once(side) for side in (unwrapped(truth, given), unwrapped(given, truth)))
    if len(truth) != len(given) or len(truth) > MOST_ITEMS:
        return False
    if len(truth) == 1:
        return same_value(truth[0], given[0])
    if all(v.label for v in truth) != all(v.label for v in given) and distinct(truth) + distinct(given):
        return all(map(same_value, truth, given))  # x = 3, y = 4 and 3, 4: in this order
    return matched(truth, given)


def once(found: list[Value]) -> list[Value]:
    """A list of tuples is one of solutions, where repetition says nothing; of numbers it may say something."""
    if not all(v.kind == "group" and not v.label for v in found) or len(found) > MOST_ITEMS:
        return found
    return [v for i, v in enumerate(found) if not any(same_value(v, earlier) for earlier in found[:i])]


def distinct(found: list[Value]) -> bool:
    """Whether each value has a label of its own."""
    return all(v.label for v in found) and len({v.label for v in found}) == len(found)


def unwrapped(found: list[Value], other: list[Value]) -> list[Value]:
    """The items of a set, beside a list; of a tuple, labelled or not, likewise, where the order is kept."""
    if len(found) != 1 or len(other) < 2:
        return found
    if found[0].kind == "set":
        return found[0].data
    if found[0].kind == "group" and found[0].data[0] + found[0].data[2] == "()":
        items = found[0].data[1]
        in_order = len(items) == len(other) and all(map(same_value, items, other))
        return items if in_order else found
    return found


def matched(truth: list[Value], given: list[Value]) -> bool:
    """Whether each item has an equal one, in any order."""
    left = list(given)
    for item in truth:
        found = next((i for i, other in enumerate(left) if same_value(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


# ---- values ----


def same_value(a: Value, b: Value) -> bool:
    """Whether two values are equal; their kinds decide how."""
    if a.label and b.label and a.label != b.label and {a.label, b.label} != {"f", "y"}:
        return same_equation(a.equation, b.equation)
    if "equation" in (a.kind, b.kind):
        return same_equation(a.equation, b.equation)
    if a.kind != b.kind:
        return same_kinds(a, b) or same_kinds(b, a)
    if a.kind == "number":
        return same_number(a.data, b.data, a.digits, b.digits)
    if a.kind == "percent":
        return same_number(a.data, b.data)
    if a.kind == "ratio":
        return len(a.data) == len(b.data) and all(
            same_number(x * b.data[0], y * a.data[0]) for x, y in zip(a.data, b.data))  # fmt: skip
    if a.kind == "group":
        return (a.data[0], a.data[2]) == (b.data[0], b.data[2]) and len(a.data[1]) == len(b.data[1]) and all(
            map(same_value, a.data[1], b.data[1]))  # fmt: skip
    if a.kind == "set":
        return len(a.data) <= MOST_ITEMS and matched(a.data, b.data)
    if a.kind == "matrix":
        return a.data.shape == b.data.shape and all(map(same_number, a.data, b.data))
    if a.kind == "relation":
        return a.data[0] == b.data[0] and same_equation(a.data[1], b.data[1], positive=a.data[0] != "!=")
    return same_region(a.data, b.data) if a.kind == "region" else a.data == b.data


def same_kinds(a: Value, b: Value) -> bool:
    """Whether values of two types say the same; b's type decides."""
    if b.kind == "percent" and a.kind == "number":
        return same_number(a.data, b.data, a.digits) or same_number(a.data, b.data / 100, a.digits)
    if b.kind == "ratio" and a.kind == "number" and len(b.data) == 2:
        return same_number(a.data * b.data[1], b.data[0])
    if b.kind == "region" and a.kind == "group" and len(a.data[1]) == 2 and a.data[0] in "([":
        low, high = a.data[1]
        return low.kind == high.kind == "number" and same_region(
            [Piece(low.data, high.data, a.data[0] == "(", a.data[2] == ")")], b.data
        )
    if b.kind == "region" and a.kind == "set" and all(v.kind == "number" for v in a.data):
        return same_region(points([v.data for v in a.data]), b.data)
    return False


def same_region(a: list[Piece], b: list[Piece]) -> bool:
    """Whether two sets of real numbers have the same pieces."""
    return len(a) == len(b) and all(
        (p.low_open, p.high_open) == (q.low_open, q.high_open)
        and same_number(p.low, q.low)
        and same_number(p.high, q.high)
        for p, q in zip(a, b)
    )
