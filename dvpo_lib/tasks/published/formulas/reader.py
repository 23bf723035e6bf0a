r"""A formula read whole: from text to a tree, or not at all.

    read_formula(r"2\pi r")          ("mul", ("mul", ("num", "2"), ("name", "\pi")), ("name", "r"))
    read_formula("x = 9, 7")         ("list", [("chain", ["="], [("name", "x"), ("num", "9")]), ("num", "7")], ",")
    read_formula(r"11\blob{3}")      raises Unread

Every token must be understood; nothing is skipped. Reading computes nothing, so that it is cheap and safe on any text.
The tree has tuples as nodes, each with its kind first; `values` says what they mean.
"""

from __future__ import annotations

from dvpo_lib.tasks.published.formulas.atoms import ACCENTS, Atoms
from dvpo_lib.tasks.published.formulas.spelling import respell, without_fonts
from dvpo_lib.tasks.published.formulas.tokens import FUNCTIONS, GREEK, Unread, tokens
from dvpo_lib.tasks.published.formulas.units import without_unit

RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "~"}
SEPARATORS = {",", ";", "\\and", "\\or"}
ENDS = {")", "]", "\\}", "}", "\\rangle", "\\rfloor", "\\rceil", "&", "\\\\", "\\mid"}


MOST_CHARACTERS = 1500


def read_formula(text: str) -> tuple:
    """The tree of a formula.

    Args:
        text: a formula, without delimiters; any spelling.

    Returns:
        A node.

    Raises:
        Unread: a part of the text is not understood, or it is too long or nested too deeply.
    """
    if len(text) > MOST_CHARACTERS:
        raise Unread("too long")
    parser = Parser(tokens(without_fonts(respell(text))))
    try:
        tree = parser.listed()
    except (IndexError, RecursionError):
        raise Unread("it ends too early, or is nested too deeply") from None
    if parser.at < len(parser.tokens):
        raise Unread(f"not understood: {parser.tokens[parser.at]}")
    return tree


def is_whole(text: str) -> bool:
    """Whether a text can be read as a formula, in all its parts; a unit behind a value is allowed."""
    if len(text) > MOST_CHARACTERS:
        return False
    spelled = respell(text)
    for form in (spelled, without_unit(spelled)[0]):
        try:
            return bool(form) and read_formula(form) is not None
        except Unread:
            continue
    return False


class Parser(Atoms):
    """A descent over the tokens; each method reads one level of precedence."""

    # ---- lists and relations ----

    def listed(self) -> tuple:
        """Items between commas, semicolons, "and", "or"; one item alone is itself."""
        items, marks = [self.item()], []
        while self.peek() in SEPARATORS:
            marks.append(self.take())
            while self.peek() in ("\\and", "\\or"):  # ", and"
                marks[-1] = self.take()
            items.append(self.item())
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

    def item(self) -> tuple:
        parts, signs = [self.label() or self.ratio()], []
        while self.peek() in RELATIONS:
            signs.append(RELATIONS[self.take()])
            parts.append(self.ratio())
        if parts[0][0] == "word" and not signs:
            raise Unread(f"a word: {parts[0][1]}")
        return ("chain", signs, parts) if signs else parts[0]

    def label(self) -> tuple | None:
        """A word before "=" or ":", as in "Area = 5"."""
        end = self.at
        while end < len(self.tokens) and self.tokens[end].startswith("\\text{"):
            end += 1
        if end == self.at or end >= len(self.tokens) or self.tokens[end] not in ("=", ":", "\\approx"):
            return None
        words = " ".join(token[6:-1].strip() for token in self.tokens[self.at : end])
        self.at = end
        if self.peek() == ":":
            self.tokens[self.at] = "="
        return ("word", words)

    def ratio(self) -> tuple:
        parts = [self.sum()]
        while self.peek() == ":":
            self.take()
            parts.append(self.sum())
        return ("ratio", parts) if len(parts) > 1 else parts[0]

    # ---- arithmetic ----

    def sum(self) -> tuple:
        left = None
        while True:
            sign = self.peek()
            if sign in ("+", "-", "\\pm", "\\mp"):
                right = (self.take(), self.product())[1]
                kind = {"+": "add", "-": "sub", "\\pm": "pm", "\\mp": "mp"}[sign]
                left = (kind, left, right) if left else {"+": right, "-": ("neg", right)}.get(sign, (kind, right))
            elif sign in ("\\cup", "\\cap", "\\setminus") and left:
                left = (self.take()[1:], left, self.product())
            elif left is None:
                left = self.product()
            else:
                return left

    def product(self) -> tuple:
        left = self.power()
        while True:
            sign = self.peek()
            if sign in ("\\cdot", "\\times", "/", "\\div"):
                self.take()
                right = ("neg", (self.take(), self.power())[1]) if self.peek() == "-" else self.power()
                left = ("mul" if sign in ("\\cdot", "\\times") else "div", left, right)
            elif self.goes_on():
                left = ("mul", left, self.power())
            else:
                return left

    def goes_on(self) -> bool:
        """Whether another factor stands beside the last one; a number never does ("3 4" is no product)."""
        token = self.peek()
        if token and token[0].isdigit() and self.tokens[self.at - 1] == ")":
            return True  # (n - 2) 2^n
        if (
            not token
            or token in ENDS
            or token in RELATIONS
            or token in SEPARATORS
            or token[0].isdigit()
            or token[0] == "."
        ):
            return False
        return token in "([{|" and not (token == "|" and self.bars) or token.isalpha() or (
            token in GREEK or token in FUNCTIONS or token in ACCENTS
            or token in ("\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil", "\\sum", "\\prod")
            or token.startswith("\\begin"))  # fmt: skip

    def power(self) -> tuple:
        base = self.atom()
        while True:
            token = self.peek()
            if token == "^":
                self.take()
                base = ("pow", base, self.script())
            elif token == "!":
                self.take()
                if self.peek() == "!":
                    raise Unread("a double factorial")
                base = ("fact", base)
            elif token in ("\\%", "\\degree"):
                self.take()
                base = ("percent" if token == "\\%" else "degree", base)
            else:
                return base

    def script(self) -> tuple:
        """What is raised: a group, or one sign with its minus."""
        if self.peek() == "-":
            self.take()
            return ("neg", self.atom())
        return self.atom()
