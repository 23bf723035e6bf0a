"""What the tree of a number, an expression or a matrix means, by SymPy.

    number_of(read_formula("0.5"))      1/2, as a fraction: decimals are exact

SymPy may take long, so this belongs into a worker. Numbers too large to be computed with are not read at all.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import S

from dvpo_lib.tasks.published.formulas.tokens import Unread

LARGEST_FACTORIAL, LARGEST_EXPONENT, LARGEST_BITS, LONGEST_SUM = 1000, 2000, 20000, 500
CONSTANTS = {"e": S.Exp1, "i": S.ImaginaryUnit, "\\pi": S.Pi, "\\infty": S.Infinity}
CALLS = {
    "\\exp": sympy.exp, "\\ln": sympy.log, "\\abs": sympy.Abs, "\\gcd": sympy.gcd, "\\lcm": sympy.lcm,
    "\\min": sympy.Min, "\\max": sympy.Max, "\\lfloor": sympy.floor, "\\lceil": sympy.ceiling,
    "\\arcsin": sympy.asin, "\\arccos": sympy.acos, "\\arctan": sympy.atan, "\\arccot": sympy.acot,
    "\\arcsinh": sympy.asinh, "\\arccosh": sympy.acosh, "\\arctanh": sympy.atanh,
    **{f"\\{name}": getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh".split()},
}  # fmt: skip


def number_of(tree: tuple) -> Any:
    """A number, an expression or a matrix, by SymPy."""
    kind, *parts = tree
    if kind in OPERATIONS:
        found = OPERATIONS[kind](*map(number_of, parts))
    elif kind in LEAVES:
        found = LEAVES[kind](*parts)
    else:
        raise Unread(f"no number: {kind}")
    if found in (S.ComplexInfinity, S.NaN):
        raise Unread("no number: a division by zero")
    return found


def exact_decimal(text: str) -> Any:
    """A number as it is written, as an exact fraction."""
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > LARGEST_EXPONENT:
        raise Unread("too large")
    return sympy.Rational(mantissa.rstrip(".") or "0") * sympy.Integer(10) ** int(exponent or 0)


def product(left: Any, right: Any) -> Any:
    """A product of numbers or of matrices."""
    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase) and left.cols != right.rows:
        raise Unread("matrices that do not match")
    return left * right


def power(base: Any, exponent: Any) -> Any:
    """A power, if it can be computed with."""
    if exponent.is_number and exponent.is_comparable and abs(exponent) > LARGEST_EXPONENT or (
            exponent.is_Integer and base.is_Rational and abs(int(exponent)) * max(
                abs(base.p).bit_length(), base.q.bit_length()) > LARGEST_BITS):  # fmt: skip
        raise Unread("too large")
    return base**exponent


def factorial(of: Any) -> Any:
    """A factorial, of a small number or of a name."""
    if of.is_number and not (of.is_Integer and 0 <= of <= LARGEST_FACTORIAL):
        raise Unread("a factorial too large")
    return sympy.factorial(of)


def binomial(n: Any, k: Any) -> Any:
    """A binomial coefficient of small numbers or of names."""
    if n.is_number and k.is_number and max(abs(n), abs(k)) > LARGEST_FACTORIAL:
        raise Unread("a binomial too large")
    return sympy.binomial(n, k)


def root(inside: tuple, degree: tuple | None) -> Any:
    """A root; of a negative number and an odd degree, the real one."""
    found, n = number_of(inside), number_of(degree) if degree else S(2)
    if found.is_negative and n.is_Integer and n % 2 == 1:  # the real one
        return -sympy.root(-found, n)
    return sympy.root(found, n)


def called(name: str, given: list[tuple], base: tuple | None = None) -> Any:
    """A function of its arguments; degrees become radians in trigonometric ones."""
    if name in ("\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"):
        given = [in_radians(tree) for tree in given]
    found = [number_of(tree) for tree in given]
    if name in ("\\log", "\\lg"):
        return sympy.log(found[0], number_of(base) if base else 10)
    if name == "\\det" and isinstance(found[0], sympy.MatrixBase):
        return found[0].det()
    if name not in CALLS or base or not (len(found) == 1 or name in ("\\gcd", "\\lcm", "\\min", "\\max")):
        raise Unread(f"no function: {name}")
    return CALLS[name](*found)


def in_radians(tree: Any) -> Any:
    """A tree with every angle in degrees as one in radians."""
    if isinstance(tree, list):
        return [in_radians(part) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "degree":
        return ("div", ("mul", tree[1], ("name", "\\pi")), ("num", "180"))
    return tuple(in_radians(part) for part in tree)


def applied(name: tuple, given: list[tuple]) -> Any:
    """f(x): a product where there is one argument, else an unknown function of several."""
    found = [number_of(tree) for tree in given]
    return number_of(name) * found[0] if len(found) == 1 else sympy.Function(name[1])(*found)


def summed(kind: Any, name: tuple, low: tuple, high: tuple, body: tuple) -> Any:
    """A sum or a product over a range; a short one is computed."""
    start, end = number_of(low), number_of(high)
    if (end - start).is_Integer and end - start > LONGEST_SUM:
        raise Unread("a sum too long")
    found = kind(number_of(body), (sympy.Symbol(name[1]), start, end))
    return found.doit() if (end - start).is_Integer else found


OPERATIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "neg": lambda a: -a, "mul": product, "pow": power,
    "div": lambda a, b: a / b, "fact": factorial, "binom": binomial, "percent": lambda a: a / 100,
    "degree": lambda a: a,
}  # fmt: skip
LEAVES = {
    "num": exact_decimal, "name": lambda name: CONSTANTS.get(name) or sympy.Symbol(name), "root": root, "call": called,
    "apply": applied, "matrix": lambda rows: sympy.Matrix([[number_of(cell) for cell in row] for row in rows]),
    "sum": lambda *parts: summed(sympy.Sum, *parts), "prod": lambda *parts: summed(sympy.Product, *parts),
}  # fmt: skip
