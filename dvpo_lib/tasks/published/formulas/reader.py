r"""Parser of formulas: a text becomes a tree only if every token of it is understood.

    read_formula(r"2\pi r")          ("mul", ("mul", ("num", "2"), ("name", "\pi")), ("name", "r"))
    read_formula("x = 9, 7")         ("list", [("chain", ["="], [("name", "x"), ("num", "9")]), ("num", "7")], ",")
    read_formula(r"11\blob{3}")      raises UnreadFormula

Reading computes nothing, so that it is cheap and safe on any text. The nodes of the tree are tuples with their kind
first; `values` evaluates them.
"""

from __future__ import annotations

from dvpo_lib.tasks.published.formulas.atoms import ACCENT_COMMANDS, FormulaAtoms
from dvpo_lib.tasks.published.formulas.spelling import respell_formula, strip_font_commands
from dvpo_lib.tasks.published.formulas.tokens import FUNCTION_COMMANDS, GREEK_COMMANDS, UnreadFormula, formula_tokens
from dvpo_lib.tasks.published.formulas.units import split_unit

_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "~"}
_SEPARATORS = {",", ";", "\\and", "\\or"}
_ENDS = {")", "]", "\\}", "}", "\\rangle", "\\rfloor", "\\rceil", "&", "\\\\", "\\mid"}


_MAX_CHARACTERS = 1500


def read_formula(text: str) -> tuple:
    """Parses a formula.

    Args:
        text: a formula in any spelling, without delimiters.

    Returns:
        The root of the tree.

    Raises:
        Unread: If a part of the text is not understood, or it is too long or nested too deeply.
    """
    if len(text) > _MAX_CHARACTERS:
        raise UnreadFormula("too long")
    parser = FormulaParser(formula_tokens(strip_font_commands(respell_formula(text))))
    try:
        tree = parser.read_list()
    except (IndexError, RecursionError):
        raise UnreadFormula("it ends too early, or is nested too deeply") from None
    if parser.position < len(parser.tokens):
        raise UnreadFormula(f"not understood: {parser.tokens[parser.position]}")
    return tree


def is_formula(text: str) -> bool:
    """Whether a text can be read as a formula in all its parts. A unit after the value is allowed."""
    if len(text) > _MAX_CHARACTERS:
        return False
    spelled = respell_formula(text)
    for form in (spelled, split_unit(spelled)[0]):
        try:
            return bool(form) and read_formula(form) is not None
        except UnreadFormula:
            continue
    return False


class FormulaParser(FormulaAtoms):
    """A recursive descent parser; each method reads one level of precedence."""

    # ---- lists and relations ----

    def read_list(self) -> tuple:
        """Items between commas, semicolons, "and", "or". A single item is no list."""
        items, marks = [self.read_item()], []
        while self.peek() in _SEPARATORS:
            marks.append(self.take())
            while self.peek() in ("\\and", "\\or"):  # ", and"
                marks[-1] = self.take()
            items.append(self.read_item())
        if not marks:
            return items[0]
        if ";" in marks and "," in marks:  # p = 5, q = 2; p = 7, q = 2
            rows, row = [], [items[0]]
            for mark, item in zip(marks, items[1:]):
                if mark == ";":
                    rows.append(row)
                    row = []
                row.append(item)
            return ("list", [("group", "(", r, ")") if len(r) > 1 else r[0] for r in [*rows, row]], ";")
        return ("list", items, "or" if "\\or" in marks else "and" if "\\and" in marks else ",")

    def read_item(self) -> tuple:
        parts, signs = [self.read_label() or self.read_ratio()], []
        while self.peek() in _RELATIONS:
            signs.append(_RELATIONS[self.take()])
            parts.append(self.read_ratio())
        if parts[0][0] == "word" and not signs:
            raise UnreadFormula(f"a word: {parts[0][1]}")
        return ("chain", signs, parts) if signs else parts[0]

    def read_label(self) -> tuple | None:
        """A word before "=" or ":", as in "Area = 5"."""
        end = self.position
        while end < len(self.tokens) and self.tokens[end].startswith("\\text{"):
            end += 1
        if end == self.position or end >= len(self.tokens) or self.tokens[end] not in ("=", ":", "\\approx"):
            return None
        words = " ".join(token[6:-1].strip() for token in self.tokens[self.position : end])
        self.position = end
        if self.peek() == ":":
            self.tokens[self.position] = "="
        return ("word", words)

    def read_ratio(self) -> tuple:
        parts = [self.read_sum()]
        while self.peek() == ":":
            self.take()
            parts.append(self.read_sum())
        return ("ratio", parts) if len(parts) > 1 else parts[0]

    # ---- arithmetic ----

    def read_sum(self) -> tuple:
        left = None
        while True:
            sign = self.peek()
            if sign in ("+", "-", "\\pm", "\\mp"):
                right = (self.take(), self.read_product())[1]
                kind = {"+": "add", "-": "sub", "\\pm": "pm", "\\mp": "mp"}[sign]
                left = (kind, left, right) if left else {"+": right, "-": ("neg", right)}.get(sign, (kind, right))
            elif sign in ("\\cup", "\\cap", "\\setminus") and left:
                left = (self.take()[1:], left, self.read_product())
            elif left is None:
                left = self.read_product()
            else:
                return left

    def read_product(self) -> tuple:
        left = self.read_power()
        while True:
            sign = self.peek()
            if sign in ("\\cdot", "\\times", "/", "\\div"):
                self.take()
                right = ("neg", (self.take(), self.read_power())[1]) if self.peek() == "-" else self.read_power()
                left = ("mul" if sign in ("\\cdot", "\\times") else "div", left, right)
            elif self.factor_follows():
                left = ("mul", left, self.read_power())
            else:
                return left

    def factor_follows(self) -> bool:
        """Whether another factor follows without an operator. A number never does ("3 4" is no product)."""
        token = self.peek()
        if token and token[0].isdigit() and self.tokens[self.position - 1] == ")":
            return True  # (n - 2) 2^n
        if (
            not token
            or token in _ENDS
            or token in _RELATIONS
            or token in _SEPARATORS
            or token[0].isdigit()
            or token[0] == "."
        ):
            return False
        return (
            token in "([{|"
            and not (token == "|" and self.bars)
            or token.isalpha()
            or (
                token in GREEK_COMMANDS
                or token in FUNCTION_COMMANDS
                or token in ACCENT_COMMANDS
                or token in ("\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil", "\\sum", "\\prod")
                or token.startswith("\\begin")
            )
        )

    def read_power(self) -> tuple:
        base = self.read_atom()
        while True:
            token = self.peek()
            if token == "^":
                self.take()
                base = ("pow", base, self.read_superscript())
            elif token == "!":
                self.take()
                if self.peek() == "!":
                    raise UnreadFormula("a double factorial")
                base = ("fact", base)
            elif token in ("\\%", "\\degree"):
                self.take()
                base = ("percent" if token == "\\%" else "degree", base)
            else:
                return base

    def read_superscript(self) -> tuple:
        """A superscript: a group, or one sign, with its minus."""
        if self.peek() == "-":
            self.take()
            return ("neg", self.read_atom())
        return self.read_atom()
