"""The tokens of a formula: numbers, commands, letters, signs; and which of them are names and functions."""

from __future__ import annotations

import re

MOST_TOKENS, MOST_DIGITS = 400, 1000
TOKEN = re.compile(r"\s*(?:(?P<num>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
                   r"|(?P<cmd>\\(?:begin|end)\s*\{\s*[a-z]+\*?\s*\}"
                   r"|\\text\{[^{}]*\}|\\math(?:bb|cal|frak|scr)\s*\{?\s*[A-Za-z]\s*\}?|\\[A-Za-z]+|\\.)"
                   r"|(?P<word>[A-Za-z]+)|(?P<sign>\S))")  # fmt: skip
SPELLED = {  # plain words that are names of mathematics
    "pi": "\\pi", "sqrt": "\\sqrt", "infinity": "\\infty", "inf": "\\infty", "infty": "\\infty", "theta": "\\theta",
    "alpha": "\\alpha", "beta": "\\beta", "gamma": "\\gamma", "lambda": "\\lambda", "mu": "\\mu", "sigma": "\\sigma",
    "omega": "\\omega", "phi": "\\phi", "rho": "\\rho", "exp": "\\exp", "log": "\\log", "ln": "\\ln", "sin": "\\sin",
    "cos": "\\cos", "tan": "\\tan", "cot": "\\cot", "sec": "\\sec", "csc": "\\csc", "arcsin": "\\arcsin",
    "arccos": "\\arccos", "arctan": "\\arctan", "sinh": "\\sinh", "cosh": "\\cosh", "tanh": "\\tanh", "gcd": "\\gcd",
    "lcm": "\\lcm", "min": "\\min", "max": "\\max", "abs": "\\abs", "cup": "\\cup", "frac": "\\frac", "pm": "\\pm",
}  # fmt: skip
GREEK = {"\\" + name for name in (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma "
    "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar "
    "pi infty").split()}  # fmt: skip
FUNCTIONS = {"\\" + name for name in (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp gcd lcm min max "
    "abs lg det").split()}  # fmt: skip
SETS = re.compile(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?")


class Unread(ValueError):
    """A text that is no formula, or not in all its parts."""


def tokens(text: str) -> list[str]:
    """The tokens of a respelled text: numbers, commands, letters, signs."""
    found: list[str] = []
    after_word = -1
    for match in TOKEN.finditer(text.rstrip()):
        kind, token = match.lastgroup, match[match.lastgroup]
        if kind == "num" and len(token) > MOST_DIGITS:
            raise Unread("too many digits")
        if kind == "word" and token not in SPELLED and len(token) > 1:
            if len(token) > 3 or match.start() == after_word:  # prose; two or three letters alone may be a product
                token = f"\\text{{{token}}}"
            after_word = match.end()
        if kind != "word" or token.startswith("\\"):
            found.append(token)
        else:
            found += [SPELLED[token]] if token in SPELLED else list(token)
        if len(found) > MOST_TOKENS:
            raise Unread("too long")
    return found
