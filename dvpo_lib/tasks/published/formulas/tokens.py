"""The tokens of a formula (numbers, commands, letters, signs), and the tables of names and functions among them."""

from __future__ import annotations

import re

_MAX_TOKENS, _MAX_DIGITS = 400, 1000
_TOKEN = re.compile(
    r"\s*(?:(?P<num>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<cmd>\\(?:begin|end)\s*\{\s*[a-z]+\*?\s*\}"
    r"|\\text\{[^{}]*\}|\\math(?:bb|cal|frak|scr)\s*\{?\s*[A-Za-z]\s*\}?|\\[A-Za-z]+|\\.)"
    r"|(?P<word>[A-Za-z]+)|(?P<sign>\S))"
)
_SPELLED_WORDS = {  # plain words that are names of mathematics
    "pi": "\\pi",
    "sqrt": "\\sqrt",
    "infinity": "\\infty",
    "inf": "\\infty",
    "infty": "\\infty",
    "theta": "\\theta",
    "alpha": "\\alpha",
    "beta": "\\beta",
    "gamma": "\\gamma",
    "lambda": "\\lambda",
    "mu": "\\mu",
    "sigma": "\\sigma",
    "omega": "\\omega",
    "phi": "\\phi",
    "rho": "\\rho",
    "exp": "\\exp",
    "log": "\\log",
    "ln": "\\ln",
    "sin": "\\sin",
    "cos": "\\cos",
    "tan": "\\tan",
    "cot": "\\cot",
    "sec": "\\sec",
    "csc": "\\csc",
    "arcsin": "\\arcsin",
    "arccos": "\\arccos",
    "arctan": "\\arctan",
    "sinh": "\\sinh",
    "cosh": "\\cosh",
    "tanh": "\\tanh",
    "gcd": "\\gcd",
    "lcm": "\\lcm",
    "min": "\\min",
    "max": "\\max",
    "abs": "\\abs",
    "cup": "\\cup",
    "frac": "\\frac",
    "pm": "\\pm",
}
GREEK_COMMANDS = {
    "\\" + name
    for name in (
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma "
        "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar "
        "pi infty"
    ).split()
}
FUNCTION_COMMANDS = {
    "\\" + name
    for name in (
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp gcd lcm min max abs lg det"
    ).split()
}
NUMBER_SETS = re.compile(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?")


class UnreadFormula(ValueError):
    """A text that cannot be read as a formula in all its parts."""


def formula_tokens(text: str) -> list[str]:
    """Splits a respelled text into numbers, commands, letters and signs."""
    found: list[str] = []
    after_word = -1
    for match in _TOKEN.finditer(text.rstrip()):
        kind, token = match.lastgroup, match[match.lastgroup]
        if kind == "num" and len(token) > _MAX_DIGITS:
            raise UnreadFormula("too many digits")
        if kind == "word" and token not in _SPELLED_WORDS and len(token) > 1:
            if len(token) > 3 or match.start() == after_word:  # prose; two or three letters alone may be a product
                token = f"\\text{{{token}}}"
            after_word = match.end()
        if kind != "word" or token.startswith("\\"):
            found.append(token)
        else:
            found += [_SPELLED_WORDS[token]] if token in _SPELLED_WORDS else list(token)
        if len(found) > _MAX_TOKENS:
            raise UnreadFormula("too long")
    return found
