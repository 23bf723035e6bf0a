"""The value of a parsed number, expression or matrix, by SymPy.

    evaluate_number(read_formula("0.5"))      1/2, as a fraction: decimals are exact

SymPy may take long: call this in a worker. Numbers too large to compute with raise UnreadFormula.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import S

from dvpo_lib.tasks.published.formulas.tokens import UnreadFormula

_LARGEST_FACTORIAL, _LARGEST_EXPONENT, _LARGEST_BITS, _LONGEST_SUM = 1000, 2000, 20000, 500
MATH_CONSTANTS = {"e": S.Exp1, "i": S.ImaginaryUnit, "\\pi": S.Pi, "\\infty": S.Infinity}
_SYMPY_FUNCTIONS = {
    "\\exp": sympy.exp,
    "\\ln": sympy.log,
    "\\abs": sympy.Abs,
    "\\gcd": sympy.gcd,
    "\\lcm": sympy.lcm,
    "\\min": sympy.Min,
    "\\max": sympy.Max,
    "\\lfloor": sympy.floor,
    "\\lceil": sympy.ceiling,
    "\\arcsin": sympy.asin,
    "\\arccos": sympy.acos,
    "\\arctan": sympy.atan,
    "\\arccot": sympy.acot,
    "\\arcsinh": sympy.asinh,
    "\\arccosh": sympy.acosh,
    "\\arctanh": sympy.atanh,
    **{f"\\{name}": getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh".split()},
}


def evaluate_number(tree: tuple) -> Any:
    """The SymPy number, expression or matrix of a tree."""
    kind, *parts = tree
    if kind in _OPERATIONS:
        found = _OPERATIONS[kind](*map(evaluate_number, parts))
    elif kind in _LEAVES:
        found = _LEAVES[kind](*parts)
    else:
        raise UnreadFormula(f"no number: {kind}")
    if found in (S.ComplexInfinity, S.NaN):
        raise UnreadFormula("no number: a division by zero")
    return found


def _exact_decimal(text: str) -> Any:
    """A decimal as an exact fraction."""
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > _LARGEST_EXPONENT:
        raise UnreadFormula("too large")
    return sympy.Rational(mantissa.rstrip(".") or "0") * sympy.Integer(10) ** int(exponent or 0)


def _product(left: Any, right: Any) -> Any:
    """A product of numbers or of matrices."""
    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase) and left.cols != right.rows:
        raise UnreadFormula("matrices that do not match")
    return left * right


def _power(base: Any, exponent: Any) -> Any:
    """A power, unless it is too large to compute with."""
    if (
        exponent.is_number
        and exponent.is_comparable
        and abs(exponent) > _LARGEST_EXPONENT
        or (
            exponent.is_Integer
            and base.is_Rational
            and abs(int(exponent)) * max(abs(base.p).bit_length(), base.q.bit_length()) > _LARGEST_BITS
        )
    ):
        raise UnreadFormula("too large")
    return base**exponent


def _factorial(of: Any) -> Any:
    """A factorial, of a small number or of a name."""
    if of.is_number and not (of.is_Integer and 0 <= of <= _LARGEST_FACTORIAL):
        raise UnreadFormula("a factorial too large")
    return sympy.factorial(of)


def _binomial(n: Any, k: Any) -> Any:
    """A binomial coefficient of small numbers or of names."""
    if n.is_number and k.is_number and max(abs(n), abs(k)) > _LARGEST_FACTORIAL:
        raise UnreadFormula("a binomial too large")
    return sympy.binomial(n, k)


def _root(inside: tuple, degree: tuple | None) -> Any:
    """A root. The real one, if the degree is odd and the number negative."""
    found, n = evaluate_number(inside), evaluate_number(degree) if degree else S(2)
    if found.is_negative and n.is_Integer and n % 2 == 1:  # the real one
        return -sympy.root(-found, n)
    return sympy.root(found, n)


def _function_value(name: str, given: list[tuple], base: tuple | None = None) -> Any:
    """The value of a function. Trigonometric functions take degrees as radians."""
    if name in ("\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"):
        given = [_in_radians(tree) for tree in given]
    found = [evaluate_number(tree) for tree in given]
    if name in ("\\log", "\\lg"):
        return sympy.log(found[0], evaluate_number(base) if base else 10)
    if name == "\\det" and isinstance(found[0], sympy.MatrixBase):
        return found[0].det()
    if name not in _SYMPY_FUNCTIONS or base or not (len(found) == 1 or name in ("\\gcd", "\\lcm", "\\min", "\\max")):
        raise UnreadFormula(f"no function: {name}")
    return _SYMPY_FUNCTIONS[name](*found)


def _in_radians(tree: Any) -> Any:
    """A tree with all degrees converted to radians."""
    if isinstance(tree, list):
        return [_in_radians(part) for part in tree]
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "degree":
        return ("div", ("mul", tree[1], ("name", "\\pi")), ("num", "180"))
    return tuple(_in_radians(part) for part in tree)


def _applied_name(name: tuple, given: list[tuple]) -> Any:
    """f(x): a product if there is one argument, else an unknown function."""
    found = [evaluate_number(tree) for tree in given]
    return evaluate_number(name) * found[0] if len(found) == 1 else sympy.Function(name[1])(*found)


def _finite_sum(kind: Any, name: tuple, low: tuple, high: tuple, body: tuple) -> Any:
    """A sum or a product over a range, computed if the range is short."""
    start, end = evaluate_number(low), evaluate_number(high)
    if (end - start).is_Integer and end - start > _LONGEST_SUM:
        raise UnreadFormula("a sum too long")
    found = kind(evaluate_number(body), (sympy.Symbol(name[1]), start, end))
    return found.doit() if (end - start).is_Integer else found


_OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "neg": lambda a: -a,
    "mul": _product,
    "pow": _power,
    "div": lambda a, b: a / b,
    "fact": _factorial,
    "binom": _binomial,
    "percent": lambda a: a / 100,
    "degree": lambda a: a,
}
_LEAVES = {
    "num": _exact_decimal,
    "name": lambda name: MATH_CONSTANTS.get(name) or sympy.Symbol(name),
    "root": _root,
    "call": _function_value,
    "apply": _applied_name,
    "matrix": lambda rows: sympy.Matrix([[evaluate_number(cell) for cell in row] for row in rows]),
    "sum": lambda *parts: _finite_sum(sympy.Sum, *parts),
    "prod": lambda *parts: _finite_sum(sympy.Product, *parts),
}
