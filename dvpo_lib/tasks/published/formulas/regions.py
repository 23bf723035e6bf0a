"""Sets of real numbers as disjoint pieces, and where an inequality holds.

    union([piece(0, 1)], [piece(1, 2, low_open=True)])      [Piece(0, 2)]

SymPy's own sets take seconds where the ends are multiples of pi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from sympy import S

from dvpo_lib.tasks.published.formulas.tokens import Unread

MOST_PIECES = 60


@dataclass
class Piece:
    """An interval, or a point where both ends are one number."""

    low: Any
    high: Any
    low_open: bool = False
    high_open: bool = False

    def __post_init__(self):
        for end in (self.low, self.high):
            if not end.is_extended_real or end.free_symbols:
                raise Unread("the end of an interval that is no number")
        self.start, self.end = float(self.low), float(self.high)
        self.low_open, self.high_open = (
            self.low_open or self.start == -float("inf"),
            self.high_open or self.end == float("inf"),
        )


LINE = [Piece(S.NegativeInfinity, S.Infinity)]


def union(*regions: list[Piece]) -> list[Piece]:
    """The pieces of several regions in order, those that touch as one."""
    pieces = sorted((p for region in regions for p in region), key=lambda p: (p.start, p.low_open))
    if len(pieces) > MOST_PIECES:
        raise Unread("too many pieces")
    found: list[Piece] = []
    for new in pieces:
        if new.start > new.end or (new.start == new.end and (new.low_open or new.high_open)):
            continue
        last = found[-1] if found else None
        if last is None or new.start > last.end or (new.start == last.end and last.high_open and new.low_open):
            found.append(Piece(new.low, new.high, new.low_open, new.high_open))
        elif (new.end, not new.high_open) > (last.end, not last.high_open):
            found[-1] = Piece(last.low, new.high, last.low_open, new.high_open)
    return found


def complement(region: list[Piece]) -> list[Piece]:
    """All other real numbers."""
    found, low, low_open = [], S.NegativeInfinity, True
    for p in region:
        if p.start > -float("inf"):
            found.append(Piece(low, p.low, low_open, not p.low_open))
        low, low_open = p.high, not p.high_open
    if not region or region[-1].end < float("inf"):
        found.append(Piece(low, S.Infinity, low_open, True))
    return union(found)


def intersection(*regions: list[Piece]) -> list[Piece]:
    """What is in all regions."""
    return complement(union(*map(complement, regions)))


def points(numbers: list[Any]) -> list[Piece]:
    """Single numbers as a region."""
    return union([Piece(x, x) for x in numbers])


def solved(mark: str, left: Any, right: Any, name: Any) -> list[Piece]:
    """Where a relation of one variable holds.

    Args:
        mark: "<", "<=", ">", ">=" or "!=".
        left: its left side, by SymPy.
        right: its right side.
        name: the variable.

    Returns:
        The pieces.

    Raises:
        Unread: SymPy does not find them.
    """
    if right == name and not left.has(name):
        left, right, mark = right, left, mark.translate(str.maketrans("<>", "><"))
    if left == name and not right.has(name):
        ends = (S.NegativeInfinity, right) if mark[0] == "<" else (right, S.Infinity)
        return complement(points([right])) if mark == "!=" else [Piece(*ends, mark == ">", mark == "<")]
    if not left.has(name) and not right.has(name):
        holds = {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right, "!=": left != right}
        return LINE if holds[mark] == True else []  # noqa: E712
    if mark == "!=":
        return complement(pieces_of(sympy.solveset(left - right, name, S.Reals)))
    kinds = {"<": sympy.StrictLessThan, "<=": sympy.LessThan, ">": sympy.StrictGreaterThan, ">=": sympy.GreaterThan}
    return pieces_of(sympy.solve_univariate_inequality(kinds[mark](left, right), name, relational=False))


def pieces_of(found: Any) -> list[Piece]:
    """A set of SymPy as pieces."""
    if found is S.EmptySet:
        return []
    if found is S.Reals:
        return LINE
    if isinstance(found, sympy.Interval):
        return [Piece(found.start, found.end, bool(found.left_open), bool(found.right_open))]
    if isinstance(found, sympy.FiniteSet):
        return points(list(found))
    if isinstance(found, sympy.Union):
        return union(*map(pieces_of, found.args))
    raise Unread("no pieces")
