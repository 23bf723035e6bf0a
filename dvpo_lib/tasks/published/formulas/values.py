"""What the tree of a formula means: numbers, tuples, sets, intervals, matrices, equations, by SymPy.

    values_of(read_formula("x = 9"))          [Value("number", 9, label="x")]
    values_of(read_formula("1 < x"))          [Value("region", Interval.open(1, oo))]

SymPy may take long, so this belongs into a worker. Numbers too large to be computed with are not read at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sympy

from dvpo_lib.tasks.published.formulas.numbers import CONSTANTS, number_of
from dvpo_lib.tasks.published.formulas.regions import LINE, Piece, complement, intersection, points, solved, union
from dvpo_lib.tasks.published.formulas.tokens import Unread


@dataclass
class Value:
    """One thing that an answer says.

    Attributes:
        kind: "number", "percent", "time", "ratio", "group", "set", "region", "matrix", "equation" or "relation".
        data: what the kind needs: an expression, (opening, values, closing), a list of values, a set of SymPy, ...
        digits: significant digits, if the number is written as a decimal; else None.
        label: the name before "=", or "".
        equation: left minus right side, if the value came from an equation; else None.
    """

    kind: str
    data: Any
    digits: int | None = None
    label: str = ""
    equation: Any = None


def values_of(tree: tuple) -> list[Value]:
    """The values that an answer lists; a plus-minus sign stands for two.

    Raises:
        Unread: a part has no meaning here.
    """
    if tree[0] != "list":
        return [value_of(each) for each in signs(tree)]
    found = [value_of(each) for item in tree[1] for each in signs(item)]
    if len(found) > 1 and all(v.kind == "region" and item[0] == "chain" for v, item in zip(found, tree[1])):
        return [joined([v.data for v in found], tree[2])]
    return found


def joined(regions: list[list[Piece]], mark: str) -> Value:
    """Several conditions as one: "or" joins them, all else restricts."""
    both = intersection(*regions)
    return Value("region", union(*regions) if mark == "or" or not both else both)


def signs(tree: tuple) -> list[tuple]:
    """The two trees that a plus-minus sign stands for, or the tree alone."""
    count = str(tree).count("('pm'")
    if count == 0 or tree[0] in ("set", "group"):
        return [tree]
    if count > 1:
        raise Unread("several plus-minus signs")
    return [chosen(tree, "add", "sub"), chosen(tree, "sub", "add")]


def chosen(tree: Any, plus: str, minus: str) -> Any:
    """A tree with its plus-minus signs read as one of the two."""
    if isinstance(tree, list):
        return [chosen(part, plus, minus) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] in ("pm", "mp"):
        kind = plus if tree[0] == "pm" else minus
        parts = [chosen(part, plus, minus) for part in tree[1:]]
        return (kind, *parts) if len(parts) == 2 else parts[0] if kind == "add" else ("neg", parts[0])
    return tuple(chosen(part, plus, minus) for part in tree)


def value_of(tree: tuple) -> Value:
    """The value of one item."""
    kind = tree[0]
    if kind == "chain":
        return related(tree[1], tree[2])
    if kind == "group":
        return Value("group", (tree[1], [value_of(item) for item in tree[2]], tree[3]))
    if kind == "set":
        return Value("set", [v for item in tree[1] for v in map(value_of, signs(item))])
    if kind == "list":
        return Value("set", [v for item in tree[1] for v in map(value_of, signs(item))])
    if kind == "numbers" and tree[1] != "R":
        return Value("numbers", tree[1])
    if kind in ("where", "cup", "cap", "setminus", "numbers"):
        return Value("region", region(tree))
    if kind == "ratio":
        texts = [part[1] if part[0] == "num" else "" for part in tree[1]]
        if all(text.isdigit() for text in texts) and all(len(text) == 2 and text < "60" for text in texts[1:]):
            return Value("time", [int(text) for text in texts])
        return Value("ratio", [number_of(part) for part in tree[1]])
    if kind == "percent":
        return Value("percent", number_of(tree[1]))
    found = number_of(tree)
    return Value("matrix", found) if isinstance(found, sympy.MatrixBase) else Value("number", found, digits(tree))


def digits(tree: tuple) -> int | None:
    """The significant digits of a decimal: 6 of 0.333333 and of 1.23456 times a power of ten."""
    if tree[0] in ("neg", "degree"):
        return digits(tree[1])
    if tree[0] == "mul" and tree[2][:2] == ("pow", ("num", "10")):
        return digits(tree[1])
    if tree[0] != "num" or not ("." in tree[1] or "e" in tree[1].lower()):
        return None
    return len(tree[1].lower().partition("e")[0].replace(".", "").lstrip("0"))


# ---- relations ----


def related(marks: list[str], parts: list[tuple]) -> Value:
    """What a chain of relations says: a labelled value, an equation, or the region where it holds."""
    if set(marks) <= {"=", "~"}:
        return equated(marks, parts)
    if marks == ["in"] and label_of(parts[0]):
        found = value_of(parts[1])
        found.label = label_of(parts[0])
        return Value("region", region(parts[1])) if found.kind in ("group", "region") else found
    if set(marks) <= {"<", ">", "<=", ">=", "!="}:
        return compared(marks, parts)
    raise Unread("a chain of relations")


def equated(marks: list[str], parts: list[tuple]) -> Value:
    """What a chain of equal (or about equal) parts says: the last one, or an equation."""
    exact = parts[: marks.index("~") + 1] if "~" in marks else parts
    if len(exact) == 1:  # x is about 11, or 22/7 is about 3.14
        exact = exact if not label_of(exact[0]) else [exact[0], parts[1]]
    label = label_of(exact[0])
    if not label and len(exact) == 2 and label_of(exact[1]) and exact[1][0] != "word":
        exact, label = exact[::-1], label_of(exact[1])
    if len(exact) == 1:
        return value_of(exact[0])
    if label:
        found = value_of(exact[-1])
        found.label, found.equation = label, None if exact[0][0] == "word" else difference(exact[0], exact[-1])
        return found
    if len(exact) == 2:
        gap = difference(*exact)
        if gap is None:
            raise Unread("an equation between things that are no numbers")
        if gap.free_symbols:
            return Value("equation", None, equation=gap)
    if any(getattr(number_of(part), "free_symbols", None) for part in exact):
        raise Unread("a chain of equations")
    return value_of(exact[-1])


def label_of(tree: tuple) -> str:
    """The name that a tree is, or "": x, x_1, f(x), (x, y), AB, |AB|, AB : CD, AB / CD, "Area"."""
    kind = tree[0]
    if kind == "word":
        return tree[1].casefold()
    if kind == "name":
        return "" if tree[1] in CONSTANTS else tree[1]
    if kind == "apply":  # the name of its variable does not matter
        return label_of(tree[1]) + "".join(re.findall(r"\('num', '(.*?)'", str(tree[2])))
    if kind == "mul":
        parts = [label_of(part) for part in tree[1:]]
        return "".join(parts) if all(part[:1].isupper() for part in parts) else ""
    if kind == "group":
        parts = [label_of(part) for part in tree[2]]
        return f"({','.join(parts)})" if all(parts) else ""
    if kind in ("ratio", "div", "call"):
        parts = [label_of(p) for p in (tree[1] if kind == "ratio" else tree[2] if kind == "call" else tree[1:])]
        if kind == "call" and tree[1] != "\\abs" or not all(part[:1].isupper() for part in parts):
            return ""
        return f"{kind}({','.join(parts)})" if kind == "ratio" or all(len(part) > 1 for part in parts) else ""
    return ""


def difference(left: tuple, right: tuple) -> Any:
    """Left minus right side, or None where they are no numbers."""
    try:
        found = number_of(left) - number_of(right)
    except (Unread, TypeError):
        return None
    return found if isinstance(found, sympy.Expr) else None


def compared(marks: list[str], parts: list[tuple]) -> Value:
    """An inequality: the region of its one variable, or left minus right sides where there are several."""
    sides = [sympy.Symbol(part[1][1]) if part[0] == "apply" else number_of(part) for part in parts]
    names = set().union(*(side.free_symbols for side in sides))
    if len(names) == 1:
        name = names.pop()
        pieces = [solved(mark, a, b, name) for mark, a, b in zip(marks, sides, sides[1:])]
        return Value("region", intersection(*pieces))
    if len(marks) != 1 or not names:
        raise Unread("an inequality of several variables")
    gap = sides[0] - sides[1]
    return Value("relation", (marks[0].replace(">", "<"), -gap if ">" in marks[0] else gap))


def region(tree: tuple) -> list[Piece]:
    """A set of real numbers."""
    kind = tree[0]
    if kind == "group" and len(tree[2]) == 2 and tree[1] in "([":
        return [Piece(*map(number_of, tree[2]), tree[1] == "(", tree[3] == ")")]
    if kind == "set":
        return points([number_of(each) for item in tree[1] for each in signs(item)])
    if kind == "numbers" and tree[1] == "R":
        return LINE
    if kind in ("cup", "cap", "setminus"):
        left, right = region(tree[1]), region(tree[2])
        return (
            {"cup": union, "cap": intersection}[kind](left, right)
            if kind != "setminus"
            else intersection(left, complement(right))
        )
    if kind == "where":
        found = values_of(tree[2])
        if len(found) == 1 and found[0].kind == "region":
            return found[0].data
    raise Unread("no set of real numbers")
