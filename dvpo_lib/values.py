"""What the tree of a formula means: numbers, tuples, sets, intervals, matrices, equations, by SymPy.

    values(read("x = 9"))          [Value("number", 9, label="x")]
    values(read("1 < x"))          [Value("region", Interval.open(1, oo))]

SymPy may take long, so this belongs into a worker. Numbers too large to be computed with are not read at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from sympy import S

from .formulas import Unread

LARGEST_FACTORIAL, LARGEST_EXPONENT, LARGEST_BITS, LONGEST_SUM = 1000, 2000, 20000, 500
CONSTANTS = {"e": S.Exp1, "i": S.ImaginaryUnit, "\\pi": S.Pi, "\\infty": S.Infinity}
CALLS = {
    "\\exp": sympy.exp, "\\ln": sympy.log, "\\abs": sympy.Abs, "\\gcd": sympy.gcd, "\\lcm": sympy.lcm,
    "\\min": sympy.Min, "\\max": sympy.Max, "\\lfloor": sympy.floor, "\\lceil": sympy.ceiling,
    "\\arcsin": sympy.asin, "\\arccos": sympy.acos, "\\arctan": sympy.atan, "\\arccot": sympy.acot,
    "\\arcsinh": sympy.asinh, "\\arccosh": sympy.acosh, "\\arctanh": sympy.atanh,
    **{f"\\{name}": getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh".split()},
}  # fmt: skip
NUMBER_SETS = {"R": S.Reals, "Z": S.Integers, "N": S.Naturals, "Q": S.Rationals, "C": S.Complexes}


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


def values(tree: tuple) -> list[Value]:
    """The values that an answer lists; a plus-minus sign stands for two.

    Raises:
        Unread: a part has no meaning here.
    """
    if tree[0] != "list":
        return [value(each) for each in signs(tree)]
    found = [value(each) for item in tree[1] for each in signs(item)]
    if len(found) > 1 and all(v.kind == "region" and not v.label for v in found):
        return [joined([v.data for v in found], tree[2])]
    return found


def joined(regions: list, mark: str) -> Value:
    """Several conditions as one: "or" joins them, all else restricts."""
    both = sympy.Intersection(*regions)
    return Value("region", sympy.Union(*regions) if mark == "or" or both is S.EmptySet else both)


def signs(tree: tuple) -> list[tuple]:
    """The two trees that a plus-minus sign stands for, or the tree alone."""
    count = str(tree).count("('pm'")
    if count == 0 or tree[0] in ("set", "group"):
        return [tree]
    if count > 1:
        raise Unread("several plus-minus signs")
    return [chosen(tree, "add", "sub"), chosen(tree, "sub", "add")]


def chosen(tree: Any, plus: str, minus: str) -> Any:
    if isinstance(tree, list):
        return [chosen(part, plus, minus) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] in ("pm", "mp"):
        kind = plus if tree[0] == "pm" else minus
        parts = [chosen(part, plus, minus) for part in tree[1:]]
        return (kind, *parts) if len(parts) == 2 else parts[0] if kind == "add" else ("neg", parts[0])
    return tuple(chosen(part, plus, minus) for part in tree)


def value(tree: tuple) -> Value:
    """The value of one item."""
    kind = tree[0]
    if kind == "chain":
        return related(tree[1], tree[2])
    if kind == "group":
        return Value("group", (tree[1], [value(item) for item in tree[2]], tree[3]))
    if kind == "set":
        return Value("set", [v for item in tree[1] for v in map(value, signs(item))])
    if kind == "list":
        return Value("set", [v for item in tree[1] for v in map(value, signs(item))])
    if kind in ("where", "cup", "cap", "setminus", "numbers"):
        return Value("region", region(tree))
    if kind == "ratio":
        texts = [part[1] if part[0] == "num" else "" for part in tree[1]]
        if all(text.isdigit() for text in texts) and all(len(text) == 2 and text < "60" for text in texts[1:]):
            return Value("time", [int(text) for text in texts])
        return Value("ratio", [number(part) for part in tree[1]])
    if kind == "percent":
        return Value("percent", number(tree[1]))
    found = number(tree)
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
        found = value(parts[1])
        found.label = label_of(parts[0])
        return Value("region", region(parts[1])) if found.kind in ("group", "region") else found
    if set(marks) <= {"<", ">", "<=", ">=", "!="}:
        return compared(marks, parts)
    raise Unread("a chain of relations")


def equated(marks: list[str], parts: list[tuple]) -> Value:
    exact = parts[: marks.index("~") + 1] if "~" in marks else parts
    if len(exact) == 1:  # x is about 11, or 22/7 is about 3.14
        exact = exact if not label_of(exact[0]) else [exact[0], parts[1]]
    label = label_of(exact[0])
    if not label and len(exact) == 2 and label_of(exact[1]) and exact[1][0] != "word":
        exact, label = exact[::-1], label_of(exact[1])
    if len(exact) == 1:
        return value(exact[0])
    if label:
        found = value(exact[-1])
        found.label, found.equation = label, None if exact[0][0] == "word" else difference(exact[0], exact[-1])
        return found
    if len(exact) == 2:
        gap = difference(*exact)
        if gap is None:
            raise Unread("an equation between things that are no numbers")
        if gap.free_symbols:
            return Value("equation", None, equation=gap)
    if any(getattr(number(part), "free_symbols", None) for part in exact):
        raise Unread("a chain of equations")
    return value(exact[-1])


def difference(left: tuple, right: tuple) -> Any:
    """Left minus right side, or None where they are no numbers."""
    try:
        found = number(left) - number(right)
    except (Unread, TypeError):
        return None
    return found if isinstance(found, sympy.Expr) else None


def label_of(tree: tuple) -> str:
    """The name that a tree is, or "": x, x_1, f(x), (x, y), AB, |AB|, AB : CD, AB / CD, "Area"."""
    kind = tree[0]
    if kind == "word":
        return tree[1].casefold()
    if kind == "name":
        return "" if tree[1] in CONSTANTS else tree[1]
    if kind == "apply":  # the name of its variable does not matter
        return label_of(tree[1]) + "".join(part[1] for part in tree[2] if part[0] == "num")
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


def compared(marks: list[str], parts: list[tuple]) -> Value:
    """An inequality: the region of its one variable, or left minus right sides where there are several."""
    sides = [sympy.Symbol(part[1][1]) if part[0] == "apply" else number(part) for part in parts]
    names = set().union(*(side.free_symbols for side in sides))
    if len(names) == 1:
        name = names.pop()
        pieces = [solved(mark, a, b, name) for mark, a, b in zip(marks, sides, sides[1:])]
        return Value("region", sympy.Intersection(*pieces))
    if len(marks) != 1 or not names:
        raise Unread("an inequality of several variables")
    gap = sides[0] - sides[1]
    return Value("relation", (marks[0].replace(">", "<"), -gap if ">" in marks[0] else gap))


def solved(mark: str, left: Any, right: Any, name: Any) -> Any:
    if right == name and not left.has(name):
        left, right, mark = right, left, mark.translate(str.maketrans("<>", "><"))
    if left == name and not right.has(name) and right.is_extended_real:
        return {"<": sympy.Interval.open(-sympy.oo, right), "<=": sympy.Interval(-sympy.oo, right),
                ">": sympy.Interval.open(right, sympy.oo), ">=": sympy.Interval(right, sympy.oo),
                "!=": S.Reals - sympy.FiniteSet(right)}[mark]  # fmt: skip
    if mark == "!=":
        return S.Reals - sympy.solveset(left - right, name, S.Reals)
    kinds = {"<": sympy.StrictLessThan, "<=": sympy.LessThan, ">": sympy.StrictGreaterThan, ">=": sympy.GreaterThan}
    relation = kinds[mark](left, right)
    if not left.has(name) and not right.has(name):
        return S.Reals if relation == True else S.EmptySet  # noqa: E712
    return sympy.solve_univariate_inequality(relation, name, relational=False)


def region(tree: tuple) -> Any:
    """A set of numbers, by SymPy."""
    kind = tree[0]
    if kind == "group" and len(tree[2]) == 2 and tree[1] in "([":
        low, high = map(number, tree[2])
        return sympy.Interval(low, high, tree[1] == "(", tree[3] == ")")
    if kind == "set":
        return sympy.FiniteSet(*[number(each) for item in tree[1] for each in signs(item)])
    if kind == "numbers":
        return NUMBER_SETS[tree[1]]
    if kind in ("cup", "cap", "setminus"):
        left, right = region(tree[1]), region(tree[2])
        return {"cup": left | right, "cap": left & right, "setminus": left - right}[kind]
    if kind == "where":
        found = values(tree[2])
        if len(found) == 1 and found[0].kind == "region":
            return found[0].data
    raise Unread("no set of numbers")


# ---- numbers ----


def number(tree: tuple) -> Any:
    """A number, an expression or a matrix, by SymPy."""
    kind, *parts = tree
    if kind in OPERATIONS:
        found = OPERATIONS[kind](*map(number, parts))
    elif kind in LEAVES:
        found = LEAVES[kind](*parts)
    else:
        raise Unread(f"no number: {kind}")
    if found in (S.ComplexInfinity, S.NaN):
        raise Unread("no number: a division by zero")
    return found


def decimal(text: str) -> Any:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > LARGEST_EXPONENT:
        raise Unread("too large")
    return sympy.Rational(mantissa.rstrip(".") or "0") * sympy.Integer(10) ** int(exponent or 0)


def product(left: Any, right: Any) -> Any:
    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase) and left.cols != right.rows:
        raise Unread("matrices that do not match")
    return left * right


def power(base: Any, exponent: Any) -> Any:
    if exponent.is_number and exponent.is_comparable and abs(exponent) > LARGEST_EXPONENT or (
            exponent.is_Integer and base.is_Rational and abs(int(exponent)) * max(
                abs(base.p).bit_length(), base.q.bit_length()) > LARGEST_BITS):  # fmt: skip
        raise Unread("too large")
    return base**exponent


def factorial(of: Any) -> Any:
    if of.is_number and not (of.is_Integer and 0 <= of <= LARGEST_FACTORIAL):
        raise Unread("a factorial too large")
    return sympy.factorial(of)


def binomial(n: Any, k: Any) -> Any:
    if n.is_number and k.is_number and max(abs(n), abs(k)) > LARGEST_FACTORIAL:
        raise Unread("a binomial too large")
    return sympy.binomial(n, k)


def root(inside: tuple, degree: tuple | None) -> Any:
    found, n = number(inside), number(degree) if degree else S(2)
    if found.is_negative and n.is_Integer and n % 2 == 1:  # the real one
        return -sympy.root(-found, n)
    return sympy.root(found, n)


def call(name: str, given: list[tuple], base: tuple | None = None) -> Any:
    if name in ("\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"):
        given = [in_radians(tree) for tree in given]
    found = [number(tree) for tree in given]
    if name in ("\\log", "\\lg"):
        return sympy.log(found[0], number(base) if base else 10)
    if name == "\\det" and isinstance(found[0], sympy.MatrixBase):
        return found[0].det()
    if name not in CALLS or base or not (len(found) == 1 or name in ("\\gcd", "\\lcm", "\\min", "\\max")):
        raise Unread(f"no function: {name}")
    return CALLS[name](*found)


def in_radians(tree: Any) -> Any:
    if isinstance(tree, list):
        return [in_radians(part) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "degree":
        return ("div", ("mul", tree[1], ("name", "\\pi")), ("num", "180"))
    return tuple(in_radians(part) for part in tree)


def applied(name: tuple, given: list[tuple]) -> Any:
    """f(x): a product where there is one argument, else an unknown function of several."""
    found = [number(tree) for tree in given]
    return number(name) * found[0] if len(found) == 1 else sympy.Function(name[1])(*found)


def summed(kind: Any, name: tuple, low: tuple, high: tuple, body: tuple) -> Any:
    start, end = number(low), number(high)
    found = kind(number(body), (sympy.Symbol(name[1]), start, end))
    return found.doit() if (end - start).is_Integer and end - start <= LONGEST_SUM else found


OPERATIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "neg": lambda a: -a, "mul": product, "pow": power,
    "div": lambda a, b: a / b, "fact": factorial, "binom": binomial, "percent": lambda a: a / 100, "degree": lambda a: a,
}  # fmt: skip
LEAVES = {
    "num": decimal, "name": lambda name: CONSTANTS.get(name) or sympy.Symbol(name), "root": root, "call": call,
    "apply": applied, "matrix": lambda rows: sympy.Matrix([[number(cell) for cell in row] for row in rows]),
    "sum": lambda *parts: summed(sympy.Sum, *parts), "prod": lambda *parts: summed(sympy.Product, *parts),
}  # fmt: skip
