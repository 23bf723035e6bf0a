"""The smallest parts of a formula: numbers, names, functions, fractions, groups, sets, matrices.

A method for each. `reader.Parser` adds what stands between them.
"""

from __future__ import annotations

from dvpo_lib.tasks.published.formulas.tokens import FUNCTIONS, GREEK, SETS, Unread

MOST_DEPTH = 24
ACCENTS = {"\\overline", "\\vec", "\\hat", "\\bar", "\\tilde", "\\overrightarrow", "\\widehat", "\\dot", "\\ddot",
           "\\angle", "\\triangle", "\\mathcal", "\\mathrm"}  # fmt: skip
CLOSING = {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle"}


class Atoms:
    """A position in the tokens, and what is read from there."""

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
        r"""What a command takes: a group, or one digit or sign as TeX has it: \sqrt[3]27 is \sqrt[3]{2} 7."""
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
        if self.peek() in ("(", "[", "{", "|", "\\{"):
            inside = self.atom()
            given = inside[2] if inside[0] == "group" else inside[1] if inside[0] in ("list", "set") else [inside]
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
        if closing != CLOSING[opening]:
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
        if "{" not in token:
            raise Unread(f"not understood: {token}")
        kind = token[token.index("{") + 1 : -1].strip()
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
