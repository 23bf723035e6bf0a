"""The math family: arithmetic chains modulo 10, `math 7 a +5 b *3 ?` -> `... answer 6`.

Multipliers are units modulo 10. Every operation is then a bijection, and all answers are equally likely.
"""

from __future__ import annotations

import operator

from dvpo_lib.tasks.chains import Chains, ChainSettings

MODULUS = 10
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def apply_operation(state: str, operation: str) -> str:
    """One step of a chain, e.g. apply_operation("7", "+5") == "2"."""
    return str(OPERATORS[operation[0]](int(state), int(operation[1:])) % MODULUS)


def arithmetic_world(cfg: ChainSettings) -> Chains:
    """Builds the math family. It needs nothing from its settings: arithmetic is the same for every seed."""
    digits = [str(d) for d in range(MODULUS)]
    operations = [f"{s}{d}" for s in "+-" for d in digits[1:]] + [f"*{d}" for d in "379"]
    return Chains("math", tuple(digits), tuple(operations), apply_operation)
