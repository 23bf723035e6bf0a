"""Parts of equations: the names that label a value, and both sides' difference."""

from __future__ import annotations

import re
from typing import Any

import sympy

from dvpo_lib.tasks.published.formulas.numbers import CONSTANTS, number
from dvpo_lib.tasks.published.formulas.tokens import Unread


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
        found = number(left) - number(right)
    except (Unread, TypeError):
        return None
    return found if isinstance(found, sympy.Expr) else None
