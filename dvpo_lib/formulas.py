r"""A formula read whole: from text to a tree, or not at all.

    read(r"2\pi r")          ("mul", ("mul", ("num", "2"), ("name", "\pi")), ("name", "r"))
    read("x = 9, 7")         ("list", [("chain", ["="], [("name", "x"), ("num", "9")]), ("num", "7")], ",")
    read(r"11\blob{3}")      raises Unread

Every token must be understood; nothing is skipped. Reading computes nothing, so that it is cheap and safe on any text.
The tree has tuples as nodes, each with its kind first; `values` says what they mean.
"""

from __future__ import annotations

import re

from .spelling import respell, without_fonts, without_unit

MOST_TOKENS, MOST_DEPTH, MOST_DIGITS = 400, 24, 1000
TOKEN = re.compile(r"\s*(?:(?P<num>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<cmd>\\(?:begin|end)\s*\{[a-z]+\*?\}"
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
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar pi infty").split()}  # fmt: skip
FUNCTIONS = {"\\" + name for name in (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp gcd lcm min max abs lg det").split()}  # fmt: skip
SETS = re.compile(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?")
ACCENTS = {"\\overline", "\\vec", "\\hat", "\\bar", "\\tilde", "\\overrightarrow", "\\widehat", "\\dot", "\\ddot",
           "\\angle", "\\triangle", "\\mathcal", "\\mathrm"}  # fmt: skip
RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in", "\\approx": "~"}
SEPARATORS = {",", ";", "\\and", "\\or"}
CLOSING = {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle"}
ENDS = {")", "]", "\\}", "}", "\\rangle", "\\rfloor", "\\rceil", "&", "\\\\", "\\mid"}


class Unread(ValueError):
    """A text that is no formula, or not in all its parts."""


def read(text: str) -> tuple:
    """The tree of a formula.

    Args:
        text: a formula, without delimiters; any spelling.

    Returns:
        A node.

    Raises:
        Unread: a part of the text is not understood, or it is too long or nested too deeply.
    """
    parser = Parser(tokens(without_fonts(respell(text))))
    try:
        tree = parser.listed()
    except (IndexError, RecursionError):
        raise Unread("it ends too early") from None
    if parser.at < len(parser.tokens):
        raise Unread(f"not understood: {parser.tokens[parser.at]}")
    return tree


def is_whole(text: str) -> bool:
    """Whether a text can be read as a formula, in all its parts; a unit behind a value is allowed."""
    spelled = respell(text)
    for form in (spelled, without_unit(spelled)[0]):
        try:
            return bool(form) and read(form) is not None
        except Unread:
            continue
    return False


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


class Parser:
    """A descent over the tokens; each method reads one level of precedence."""

    def __init__(self, found: list[str]):
        self.tokens, self.at, self.depth, self.bars = found, 0, 0, 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.tokens[self.at]
        if wanted and token not in wanted:
            raise Unread(f"{wanted[0]} expected, not {token}")
        self.at += 1
        return token

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
        if not token or token in ENDS or token in RELATIONS or token in SEPARATORS or token[0].isdigit() or token[0] == ".":
            return False
        return token in "({|" and not (token == "|" and self.bars) or token.isalpha() or (
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

    def atom(self) -> tuple:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Unread("nested too deeply")
        token = self.take()
        node = self.signed(token) or self.commanded(token)
        self.depth -= 1
        return node

    def signed(self, token: str) -> tuple | None:
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            if self.peek() == "_":
                raise Unread("a number in another base")
            return ("num", token)
        if token.isalpha() and len(token) == 1:
            return self.applied(self.named(token))
        if token in ("(", "[", "\\langle"):
            return self.group(token)
        if token in ("{", "\\{"):
            return self.braced(token)
        if token == "|":
            self.bars += 1
            inside = self.sum()
            self.take("|")
            self.bars -= 1
            return ("call", "\\abs", [inside])
        return None

    def commanded(self, token: str) -> tuple:
        if token in GREEK:
            return self.applied(self.named(token))
        if token in FUNCTIONS:
            return self.function(token)
        if token in ACCENTS:
            inside = self.span()
            return self.named(token + inside)
        if token == "\\frac" or token == "\\binom":
            return ("div" if token == "\\frac" else "binom", self.argument(), self.argument())
        if token == "\\sqrt":
            degree = None
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return ("root", self.argument(), degree)
        if token in ("\\lfloor", "\\lceil"):
            inside = self.sum()
            self.take("\\r" + token[2:])
            return ("call", token, [inside])
        if token in ("\\sum", "\\prod"):
            return self.summed(token)
        if token.startswith("\\begin"):
            return self.matrix(token)
        if token == "\\emptyset":
            return ("set", [])
        if SETS.fullmatch(token) and self.peek() not in ("^", "_"):
            return ("numbers", SETS.fullmatch(token)[1])
        raise Unread(f"not understood: {token}")

    # ---- names and functions ----

    def named(self, name: str) -> tuple:
        """A name with what belongs to it: x_1, F_{n-1}, f'."""
        if self.peek() == "_":
            self.take()
            name += "_" + self.span()
        while self.peek() == "'":
            name += self.take()
        return ("name", name)

    def applied(self, name: tuple) -> tuple:
        """A name before a bracket: f(x), or a product; `values` decides."""
        if self.peek() != "(":
            return name
        inside = self.atom()
        return ("apply", name, inside[1] if inside[0] == "list" else inside[2] if inside[0] == "group" else [inside])

    def span(self) -> str:
        """A group or one token as text, for a name."""
        if self.peek() != "{":
            return self.take()
        depth, start = 0, self.at
        while True:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
            if depth == 0:
                return "".join(self.tokens[start + 1 : self.at - 1])

    def argument(self) -> tuple:
        r"""What a command takes: a group, or one digit or sign as TeX has it (\frac12, \sqrt[3]27 is 7 times \sqrt[3]2)."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        if token.startswith("\\") and token not in GREEK and token != "\\{" and not token.startswith("\\frac"):
            raise Unread("an argument without braces")
        return self.atom()

    def function(self, name: str) -> tuple:
        base = raised = None
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.atom()
            else:
                raised = self.script()
        if self.peek() in ("(", "[", "{", "|"):
            inside = self.atom()
            given = inside[2] if inside[0] == "group" else inside[1] if inside[0] == "list" else [inside]
        else:
            inside = self.power()
            while self.goes_on() and self.peek() not in FUNCTIONS:
                inside = ("mul", inside, self.power())
            given = [inside]
        node = ("call", name, given) if base is None else ("call", name, given, base)
        if raised == ("neg", ("num", "1")):
            return ("call", "\\arc" + name[1:], given)
        return ("pow", node, raised) if raised else node

    def summed(self, token: str) -> tuple:
        self.take("_")
        start = self.braced(self.take("{"))
        self.take("^")
        end = self.script()
        if start[0] != "chain" or start[1] != ["="] or start[2][0][0] != "name":
            raise Unread("a sum without a start")
        return (token[1:], start[2][0], start[2][1], end, self.product())

    # ---- groups ----

    def group(self, opening: str) -> tuple:
        bars, self.bars = self.bars, 0
        inside = self.listed()
        closing = self.take(")", "]") if opening in "([" else self.take(CLOSING[opening])
        self.bars = bars
        if inside[0] == "list":
            return ("group", opening[-1], inside[1], closing[-1])
        if closing != CLOSING[opening] or (opening == "[" and inside[0] != "matrix"):
            raise Unread("brackets that do not match")
        return inside

    def braced(self, opening: str) -> tuple:
        r"""A set, \{1, 2\} or \{x | x > 1\}, or a group of TeX."""
        bars, self.bars = self.bars, 0
        if opening == "\\{" and self.peek() == "\\}":
            self.take()
            return ("set", [])
        condition = self.condition(CLOSING[opening])
        inside = condition or self.listed()
        self.take(CLOSING[opening])
        self.bars = bars
        if opening == "\\{" and not condition:
            return ("set", inside[1] if inside[0] == "list" else [inside])
        return inside

    def condition(self, closing: str) -> tuple | None:
        end = self.at + (3 if self.peek(1) == "\\in" else 1)
        if self.peek().isalpha() and end < len(self.tokens) and self.tokens[end] in ("|", "\\mid", ":"):
            self.at, name = end + 1, self.peek()
            return ("where", ("name", name), self.listed())
        return None

    def matrix(self, token: str) -> tuple:
        kind = token[token.index("{") + 1 : -1]
        if kind not in ("pmatrix", "bmatrix", "matrix", "array", "smallmatrix"):
            raise Unread(f"not understood: {token}")
        if kind == "array":
            self.span()
        rows = [[]]
        while not self.peek().startswith("\\end"):
            rows[-1].append(self.ratio())
            if self.peek() == "\\\\":
                self.take()
                rows.append([])
            elif not self.peek().startswith("\\end"):
                self.take("&")
        self.take()
        rows = rows if rows[-1] else rows[:-1]
        if not rows or len({len(row) for row in rows}) != 1:
            raise Unread("a matrix with rows of different lengths")
        return ("matrix", rows)
