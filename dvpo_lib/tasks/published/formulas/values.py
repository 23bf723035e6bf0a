"""The values of a parsed formula: numbers, tuples, sets, intervals, matrices, equations, by SymPy.

    evaluate_formula(read_formula("x = 9"))          [FormulaValue("number", 9, label="x")]
    evaluate_formula(read_formula("1 < x"))          [FormulaValue("region", [RealInterval(1, oo, True, True)])]

SymPy may take long: call this in a worker. Numbers too large to compute with raise UnreadFormula.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sympy

from dvpo_lib.tasks.published.formulas.numbers import MATH_CONSTANTS, evaluate_number
from dvpo_lib.tasks.published.formulas.regions import (
    REAL_LINE,
    RealInterval,
    region_complement,
    region_intersection,
    region_of_points,
    region_union,
    solve_inequality,
)
from dvpo_lib.tasks.published.formulas.tokens import UnreadFormula


@dataclass
class FormulaValue:
    """One value of an answer.

    Attributes:
        kind: "number", "percent", "time", "ratio", "group", "set", "region", "matrix", "equation" or "relation".
        data: by kind: an expression, (opening, values, closing), a list of values, a region, ...
        digits: significant digits, if the number is written as a decimal; else None.
        label: the name before "=", or "".
        equation: left minus right side, if the value came from an equation; else None.
    """

    kind: str
    data: Any
    digits: int | None = None
    label: str = ""
    equation: Any = None


def evaluate_formula(tree: tuple) -> list[FormulaValue]:
    """The values of an answer. A plus-minus sign stands for two.

    Raises:
        Unread: If a part has no meaning here.
    """
    if tree[0] != "list":
        return [_evaluate_item(each) for each in _expand_plus_minus(tree)]
    found = [_evaluate_item(each) for item in tree[1] for each in _expand_plus_minus(item)]
    if len(found) > 1 and all(v.kind == "region" and item[0] == "chain" for v, item in zip(found, tree[1])):
        return [_join_conditions([v.data for v in found], tree[2])]
    return found


def _join_conditions(regions: list[list[RealInterval]], mark: str) -> FormulaValue:
    """Several conditions as one region: their union if joined by "or", else their intersection."""
    both = region_intersection(*regions)
    return FormulaValue("region", region_union(*regions) if mark == "or" or not both else both)


def _expand_plus_minus(tree: tuple) -> list[tuple]:
    """The two trees of a plus-minus sign, or the tree alone."""
    count = str(tree).count("('pm'")
    if count == 0 or tree[0] in ("set", "group"):
        return [tree]
    if count > 1:
        raise UnreadFormula("several plus-minus signs")
    return [_choose_signs(tree, "add", "sub"), _choose_signs(tree, "sub", "add")]


def _choose_signs(tree: Any, plus: str, minus: str) -> Any:
    """A tree with its plus-minus signs read as one of the two."""
    if isinstance(tree, list):
        return [_choose_signs(part, plus, minus) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] in ("pm", "mp"):
        kind = plus if tree[0] == "pm" else minus
        parts = [_choose_signs(part, plus, minus) for part in tree[1:]]
        return (kind, *parts) if len(parts) == 2 else parts[0] if kind == "add" else ("neg", parts[0])
    return tuple(_choose_signs(part, plus, minus) for part in tree)


def _evaluate_item(tree: tuple) -> FormulaValue:
    """The value of one item."""
    kind = tree[0]
    if kind == "chain":
        return _evaluate_relations(tree[1], tree[2])
    if kind == "group":
        return FormulaValue("group", (tree[1], [_evaluate_item(item) for item in tree[2]], tree[3]))
    if kind == "set":
        return FormulaValue("set", [v for item in tree[1] for v in map(_evaluate_item, _expand_plus_minus(item))])
    if kind == "list":
        return FormulaValue("set", [v for item in tree[1] for v in map(_evaluate_item, _expand_plus_minus(item))])
    if kind == "numbers" and tree[1] != "R":
        return FormulaValue("numbers", tree[1])
    if kind in ("where", "cup", "cap", "setminus", "numbers"):
        return FormulaValue("region", _evaluate_region(tree))
    if kind == "ratio":
        texts = [part[1] if part[0] == "num" else "" for part in tree[1]]
        if all(text.isdigit() for text in texts) and all(len(text) == 2 and text < "60" for text in texts[1:]):
            return FormulaValue("time", [int(text) for text in texts])
        return FormulaValue("ratio", [evaluate_number(part) for part in tree[1]])
    if kind == "percent":
        return FormulaValue("percent", evaluate_number(tree[1]))
    found = evaluate_number(tree)
    return (
        FormulaValue("matrix", found)
        if isinstance(found, sympy.MatrixBase)
        else FormulaValue("number", found, _decimal_digits(tree))
    )


def _decimal_digits(tree: tuple) -> int | None:
    """The significant digits of a decimal: 6 of 0.333333 and of 1.23456 times a power of ten."""
    if tree[0] in ("neg", "degree"):
        return _decimal_digits(tree[1])
    if tree[0] == "mul" and tree[2][:2] == ("pow", ("num", "10")):
        return _decimal_digits(tree[1])
    if tree[0] != "num" or not ("." in tree[1] or "e" in tree[1].lower()):
        return None
    return len(tree[1].lower().partition("e")[0].replace(".", "").lstrip("0"))


# ---- relations ----


def _evaluate_relations(marks: list[str], parts: list[tuple]) -> FormulaValue:
    """The value of a chain of relations: a labelled value, an equation, or the region in which it holds."""
    if set(marks) <= {"=", "~"}:
        return _evaluate_equalities(marks, parts)
    if marks == ["in"] and _label_of(parts[0]):
        found = _evaluate_item(parts[1])
        found.label = _label_of(parts[0])
        return FormulaValue("region", _evaluate_region(parts[1])) if found.kind in ("group", "region") else found
    if set(marks) <= {"<", ">", "<=", ">=", "!="}:
        return _evaluate_inequality(marks, parts)
    raise UnreadFormula("a chain of relations")


def _evaluate_equalities(marks: list[str], parts: list[tuple]) -> FormulaValue:
    """The value of a chain of equal (or about equal) parts: its last part, or an equation."""
    exact = parts[: marks.index("~") + 1] if "~" in marks else parts
    if len(exact) == 1:  # x is about 11, or 22/7 is about 3.14
        exact = exact if not _label_of(exact[0]) else [exact[0], parts[1]]
    label = _label_of(exact[0])
    if not label and len(exact) == 2 and _label_of(exact[1]) and exact[1][0] != "word":
        exact, label = exact[::-1], _label_of(exact[1])
    if len(exact) == 1:
        return _evaluate_item(exact[0])
    if label:
        found = _evaluate_item(exact[-1])
        found.label, found.equation = (
            label,
            None if exact[0][0] == "word" else _difference_of_sides(exact[0], exact[-1]),
        )
        return found
    if len(exact) == 2:
        gap = _difference_of_sides(*exact)
        if gap is None:
            raise UnreadFormula("an equation between things that are no numbers")
        if gap.free_symbols:
            return FormulaValue("equation", None, equation=gap)
    if any(getattr(evaluate_number(part), "free_symbols", None) for part in exact):
        raise UnreadFormula("a chain of equations")
    return _evaluate_item(exact[-1])


def _label_of(tree: tuple) -> str:
    """The tree as a name: x, x_1, f(x), (x, y), AB, |AB|, AB : CD, AB / CD, "Area". "" if it is none."""
    kind = tree[0]
    if kind == "word":
        return tree[1].casefold()
    if kind == "name":
        return "" if tree[1] in MATH_CONSTANTS else tree[1]
    if kind == "apply":  # the name of its variable does not matter
        return _label_of(tree[1]) + "".join(re.findall(r"\('num', '(.*?)'", str(tree[2])))
    if kind == "mul":
        parts = [_label_of(part) for part in tree[1:]]
        return "".join(parts) if all(part[:1].isupper() for part in parts) else ""
    if kind == "group":
        parts = [_label_of(part) for part in tree[2]]
        return f"({','.join(parts)})" if all(parts) else ""
    if kind in ("ratio", "div", "call"):
        parts = [_label_of(p) for p in (tree[1] if kind == "ratio" else tree[2] if kind == "call" else tree[1:])]
        if kind == "call" and tree[1] != "\\abs" or not all(part[:1].isupper() for part in parts):
            return ""
        return f"{kind}({','.join(parts)})" if kind == "ratio" or all(len(part) > 1 for part in parts) else ""
    return ""


def _difference_of_sides(left: tuple, right: tuple) -> Any:
    """Left minus right side; None if they are no numbers."""
    try:
        found = evaluate_number(left) - evaluate_number(right)
    except (UnreadFormula, TypeError):
        return None
    return found if isinstance(found, sympy.Expr) else None


def _evaluate_inequality(marks: list[str], parts: list[tuple]) -> FormulaValue:
    """An inequality: the region of its variable, or the difference of its sides if there are several variables."""
    sides = [sympy.Symbol(part[1][1]) if part[0] == "apply" else evaluate_number(part) for part in parts]
    names = set().union(*(side.free_symbols for side in sides))
    if len(names) == 1:
        name = names.pop()
        pieces = [solve_inequality(mark, a, b, name) for mark, a, b in zip(marks, sides, sides[1:])]
        return FormulaValue("region", region_intersection(*pieces))
    if len(marks) != 1 or not names:
        raise UnreadFormula("an inequality of several variables")
    gap = sides[0] - sides[1]
    return FormulaValue("relation", (marks[0].replace(">", "<"), -gap if ">" in marks[0] else gap))


def _evaluate_region(tree: tuple) -> list[RealInterval]:
    """A set of real numbers."""
    kind = tree[0]
    if kind == "group" and len(tree[2]) == 2 and tree[1] in "([":
        return [RealInterval(*map(evaluate_number, tree[2]), tree[1] == "(", tree[3] == ")")]
    if kind == "set":
        return region_of_points([evaluate_number(each) for item in tree[1] for each in _expand_plus_minus(item)])
    if kind == "numbers" and tree[1] == "R":
        return REAL_LINE
    if kind in ("cup", "cap", "setminus"):
        left, right = _evaluate_region(tree[1]), _evaluate_region(tree[2])
        return (
            {"cup": region_union, "cap": region_intersection}[kind](left, right)
            if kind != "setminus"
            else region_intersection(left, region_complement(right))
        )
    if kind == "where":
        found = evaluate_formula(tree[2])
        if len(found) == 1 and found[0].kind == "region":
            return found[0].data
    raise UnreadFormula("no set of real numbers")
