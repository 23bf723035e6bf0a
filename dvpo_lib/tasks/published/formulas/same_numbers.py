"""Whether two numbers, expressions or equations are equal: exactly, or to six digits if one is written as a decimal.

same_number(Rational(1, 3), Rational("0.333333"), b_digits=6)      True
same_number(Rational(1, 3), Rational("0.3333"), b_digits=4)        False
"""

from __future__ import annotations

from typing import Any

import sympy

_DECIMAL_DIGITS = 6  # significant digits in which a decimal must agree
_PRECISION = 60  # digits to which irrational numbers are computed
_MAX_NAMES = 6
_PRIMES = [11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79]
_POINTS = [[sympy.Rational(_PRIMES[row + 2 * i + 3], _PRIMES[i]) for i in range(_MAX_NAMES)] for row in range(3)]
_NEGATIVE_POINTS = [[-x for x in row] for row in _POINTS]
_WHOLE_POINTS = [[sympy.Integer((row * row * 7 + i * 101) % 97 + 1) for i in range(_MAX_NAMES)] for row in range(24)]


def same_number(a: Any, b: Any, a_digits: int | None = None, b_digits: int | None = None) -> bool:
    """Whether two numbers or expressions are equal: exactly, or to six digits if one is written as a decimal."""
    if a == b:
        return True
    if (
        not isinstance(a, sympy.Expr)
        or not isinstance(b, sympy.Expr)
        or not (a.is_finite is not False and b.is_finite is not False)
    ):
        return False
    if a.free_symbols or b.free_symbols:
        return _same_expression(a, b)
    if not (a.is_Rational and b.is_Rational) and _is_zero(a - b):
        return True
    return _is_near(a, b, a_digits, b_digits)


def _is_near(a: Any, b: Any, *written: int | None) -> bool:
    """Whether a and b agree to the digits of a decimal, if it has at least six."""
    fewest = min((n for n in written if n), default=0)
    if fewest < _DECIMAL_DIGITS:
        return False
    x, y = (sympy.N(n, 30) for n in (a, b))
    if not (x.is_Float and y.is_Float) or x == 0 or y == 0:
        return False
    size = int(sympy.floor(sympy.log(abs(x), 10).evalf(20)))
    places = _DECIMAL_DIGITS if size < _DECIMAL_DIGITS - 1 else fewest  # a long number is exact to its own last digit
    return bool(abs(a - b).evalf(30) <= sympy.Rational(1, 2) * sympy.Integer(10) ** (size - places + 1))


def _is_zero(gap: Any) -> bool:
    """Whether a sum of constants vanishes, relative to the size of its terms."""
    terms = [abs(term.evalf(_PRECISION)) for term in sympy.Add.make_args(gap)]
    total = gap.evalf(_PRECISION)
    if not total.is_number or not all(term.is_Float or term.is_Rational for term in terms):
        return False
    return bool(abs(total) <= sum(terms) * sympy.Rational(1, 10 ** (_PRECISION - 10)))


def _evaluate_at(expr: Any, names: list, row: list) -> Any:
    """The value of an expression at a point; None if it has none."""
    found = expr.subs(dict(zip(names, row)))
    if not found.is_Rational:
        found = found.evalf(_PRECISION)
    return found if found.is_number and found.is_finite else None


def _same_expression(a: Any, b: Any) -> bool:
    """Whether two expressions agree at fixed points, to `_PRECISION` digits."""
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(names) > _MAX_NAMES or a.has(sympy.Sum, sympy.Product) or b.has(sympy.Sum, sympy.Product):
        return False
    rows = [*_POINTS]
    if a.has(sympy.Abs, sympy.Max, sympy.Min) or b.has(sympy.Abs, sympy.Max, sympy.Min):
        rows += _NEGATIVE_POINTS
    if a.has(sympy.floor, sympy.ceiling) or b.has(sympy.floor, sympy.ceiling):
        rows += _WHOLE_POINTS
    for row in rows:
        x, y = (_evaluate_at(expr, names, row) for expr in (a, b))
        if x is None or y is None:
            return False
        if x.is_Rational and y.is_Rational:
            if x != y:
                return False
        elif abs(x - y) > (abs(x) + abs(y)) * sympy.Rational(1, 10 ** (_PRECISION - 10)):
            return False
    return True


def same_equation(a: Any, b: Any, positive: bool = False) -> bool:
    """Whether two differences of sides agree up to a constant factor, which must be positive for inequalities."""
    if a is None or b is None:
        return False
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols or len(names) > _MAX_NAMES:
        return False
    ratios = []
    for row in _POINTS:
        x, y = (_evaluate_at(expr, names, row) for expr in (a, b))
        if x is None or y is None or y == 0:
            return False
        ratios.append(x / y)
    factor = ratios[0]
    return factor != 0 and all(same_number(ratio, factor) for ratio in ratios) and not (positive and factor.is_negative)
