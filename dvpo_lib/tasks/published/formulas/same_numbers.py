"""Whether two numbers, expressions or equations are equal: exactly, or to six digits if one is written as a decimal.

same_number(Rational(1, 3), Rational("0.333333"), b_digits=6)      True
same_number(Rational(1, 3), Rational("0.3333"), b_digits=4)        False
"""

from __future__ import annotations

from typing import Any

import sympy

DIGITS = 6  # significant ones, to which a decimal is equal to another number
PRECISE = 60  # digits with which equality of irrational numbers is tried
MOST_NAMES = 6
PRIMES = [11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79]
POINTS = [[sympy.Rational(PRIMES[row + 2 * i + 3], PRIMES[i]) for i in range(MOST_NAMES)] for row in range(3)]
NEGATIVE = [[-x for x in row] for row in POINTS]
WHOLE = [[sympy.Integer((row * row * 7 + i * 101) % 97 + 1) for i in range(MOST_NAMES)] for row in range(24)]


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
        return same_expression(a, b)
    if not (a.is_Rational and b.is_Rational) and is_zero(a - b):
        return True
    return is_near(a, b, a_digits, b_digits)


def is_near(a: Any, b: Any, *written: int | None) -> bool:
    """Whether b is what a decimal of six digits or more says of a."""
    fewest = min((n for n in written if n), default=0)
    if fewest < DIGITS:
        return False
    x, y = (sympy.N(n, 30) for n in (a, b))
    if not (x.is_Float and y.is_Float) or x == 0 or y == 0:
        return False
    size = int(sympy.floor(sympy.log(abs(x), 10).evalf(20)))
    places = DIGITS if size < DIGITS - 1 else fewest  # a long number is exact to its own last digit
    return bool(abs(a - b).evalf(30) <= sympy.Rational(1, 2) * sympy.Integer(10) ** (size - places + 1))


def is_zero(gap: Any) -> bool:
    """Whether a sum of constants vanishes, beside the size of its terms."""
    terms = [abs(term.evalf(PRECISE)) for term in sympy.Add.make_args(gap)]
    total = gap.evalf(PRECISE)
    if not total.is_number or not all(term.is_Float or term.is_Rational for term in terms):
        return False
    return bool(abs(total) <= sum(terms) * sympy.Rational(1, 10 ** (PRECISE - 10)))


def at(expr: Any, names: list, row: list) -> Any:
    """An expression at a point; None where it has no value there."""
    found = expr.subs(dict(zip(names, row)))
    if not found.is_Rational:
        found = found.evalf(PRECISE)
    return found if found.is_number and found.is_finite else None


def same_expression(a: Any, b: Any) -> bool:
    """Whether two expressions agree at points drawn once and for all, with PRECISE digits."""
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(names) > MOST_NAMES or a.has(sympy.Sum, sympy.Product) or b.has(sympy.Sum, sympy.Product):
        return False
    rows = [*POINTS]
    if a.has(sympy.Abs, sympy.Max, sympy.Min) or b.has(sympy.Abs, sympy.Max, sympy.Min):
        rows += NEGATIVE
    if a.has(sympy.floor, sympy.ceiling) or b.has(sympy.floor, sympy.ceiling):
        rows += WHOLE
    for row in rows:
        x, y = (at(expr, names, row) for expr in (a, b))
        if x is None or y is None:
            return False
        if x.is_Rational and y.is_Rational:
            if x != y:
                return False
        elif abs(x - y) > (abs(x) + abs(y)) * sympy.Rational(1, 10 ** (PRECISE - 10)):
            return False
    return True


def same_equation(a: Any, b: Any, positive: bool = False) -> bool:
    """Whether two left minus right sides are the same but for a constant factor (a positive one, for inequalities)."""
    if a is None or b is None:
        return False
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols or len(names) > MOST_NAMES:
        return False
    ratios = []
    for row in POINTS:
        x, y = (at(expr, names, row) for expr in (a, b))
        if x is None or y is None or y == 0:
            return False
        ratios.append(x / y)
    factor = ratios[0]
    return factor != 0 and all(same_number(ratio, factor) for ratio in ratios) and not (positive and factor.is_negative)
