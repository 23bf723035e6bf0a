"""Sets of real numbers as disjoint intervals, and the solutions of inequalities.

    region_union([RealInterval(0, 1)], [RealInterval(1, 2, low_open=True)])      [RealInterval(0, 2)]

SymPy's own sets take seconds if the ends are multiples of pi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from sympy import S

from dvpo_lib.tasks.published.formulas.tokens import UnreadFormula

_MAX_PIECES = 60


@dataclass
class RealInterval:
    """An interval, or a point if both ends are one number."""

    low: Any
    high: Any
    low_open: bool = False
    high_open: bool = False

    def __post_init__(self):
        for end in (self.low, self.high):
            if not end.is_extended_real or end.free_symbols:
                raise UnreadFormula("the end of an interval that is no number")
        self.start, self.end = float(self.low), float(self.high)
        self.low_open, self.high_open = (
            self.low_open or self.start == -float("inf"),
            self.high_open or self.end == float("inf"),
        )


REAL_LINE = [RealInterval(S.NegativeInfinity, S.Infinity)]


def region_union(*regions: list[RealInterval]) -> list[RealInterval]:
    """The union of regions: intervals in order, touching ones merged."""
    pieces = sorted((p for region in regions for p in region), key=lambda p: (p.start, p.low_open))
    if len(pieces) > _MAX_PIECES:
        raise UnreadFormula("too many pieces")
    found: list[RealInterval] = []
    for new in pieces:
        if new.start > new.end or (new.start == new.end and (new.low_open or new.high_open)):
            continue
        last = found[-1] if found else None
        if last is None or new.start > last.end or (new.start == last.end and last.high_open and new.low_open):
            found.append(RealInterval(new.low, new.high, new.low_open, new.high_open))
        elif (new.end, not new.high_open) > (last.end, not last.high_open):
            found[-1] = RealInterval(last.low, new.high, last.low_open, new.high_open)
    return found


def region_complement(region: list[RealInterval]) -> list[RealInterval]:
    """All real numbers outside a region."""
    found, low, low_open = [], S.NegativeInfinity, True
    for p in region:
        if p.start > -float("inf"):
            found.append(RealInterval(low, p.low, low_open, not p.low_open))
        low, low_open = p.high, not p.high_open
    if not region or region[-1].end < float("inf"):
        found.append(RealInterval(low, S.Infinity, low_open, True))
    return region_union(found)


def region_intersection(*regions: list[RealInterval]) -> list[RealInterval]:
    """The intersection of regions."""
    return region_complement(region_union(*map(region_complement, regions)))


def region_of_points(numbers: list[Any]) -> list[RealInterval]:
    """Single numbers as a region."""
    return region_union([RealInterval(x, x) for x in numbers])


def solve_inequality(mark: str, left: Any, right: Any, name: Any) -> list[RealInterval]:
    """The region in which a relation of one variable holds.

    Args:
        mark: "<", "<=", ">", ">=" or "!=".
        left: the left side, a SymPy expression.
        right: the right side.
        name: the variable.

    Returns:
        The region, as disjoint intervals.

    Raises:
        Unread: If SymPy does not find it.
    """
    if right == name and not left.has(name):
        left, right, mark = right, left, mark.translate(str.maketrans("<>", "><"))
    if left == name and not right.has(name):
        ends = (S.NegativeInfinity, right) if mark[0] == "<" else (right, S.Infinity)
        return (
            region_complement(region_of_points([right]))
            if mark == "!="
            else [RealInterval(*ends, mark == ">", mark == "<")]
        )
    if not left.has(name) and not right.has(name):
        holds = {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right, "!=": left != right}
        return REAL_LINE if holds[mark] == True else []  # noqa: E712
    if mark == "!=":
        return region_complement(_region_of_sympy_set(sympy.solveset(left - right, name, S.Reals)))
    kinds = {"<": sympy.StrictLessThan, "<=": sympy.LessThan, ">": sympy.StrictGreaterThan, ">=": sympy.GreaterThan}
    return _region_of_sympy_set(sympy.solve_univariate_inequality(kinds[mark](left, right), name, relational=False))


def _region_of_sympy_set(found: Any) -> list[RealInterval]:
    """A SymPy set as a region."""
    if found is S.EmptySet:
        return []
    if found is S.Reals:
        return REAL_LINE
    if isinstance(found, sympy.Interval):
        return [RealInterval(found.start, found.end, bool(found.left_open), bool(found.right_open))]
    if isinstance(found, sympy.FiniteSet):
        return region_of_points(list(found))
    if isinstance(found, sympy.Union):
        return region_union(*map(_region_of_sympy_set, found.args))
    raise UnreadFormula("no pieces")
