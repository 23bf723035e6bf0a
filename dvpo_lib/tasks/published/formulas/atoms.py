"""The smallest parts of a formula: numbers, names, functions, fractions, groups, sets, matrices.

Each has a method. `reader.FormulaParser` adds operators, relations and lists.
"""

from __future__ import annotations

from dvpo_lib.tasks.published.formulas.tokens import FUNCTION_COMMANDS, GREEK_COMMANDS, NUMBER_SETS, UnreadFormula

_MAX_DEPTH = 24
ACCENT_COMMANDS = {
    "\\overline",
    "\\vec",
    "\\hat",
    "\\bar",
    "\\tilde",
    "\\overrightarrow",
    "\\widehat",
    "\\dot",
    "\\ddot",
    "\\angle",
    "\\triangle",
    "\\mathcal",
    "\\mathrm",
}
_CLOSING_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle"}


class FormulaAtoms:
    """A position in the tokens of a formula, and a method for each kind of atom that may start there."""

    def __init__(self, found: list[str]):
        self.tokens, self.position, self.depth, self.bars = found, 0, 0, 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.position + ahead] if self.position + ahead < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.tokens[self.position]
        if wanted and token not in wanted:
            raise UnreadFormula(f"{wanted[0]} expected, not {token}")
        self.position += 1
        return token

    def read_atom(self) -> tuple:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadFormula("nested too deeply")
        token = self.take()
        node = self.read_symbol(token) or self.read_command(token)
        self.depth -= 1
        return node

    def read_symbol(self, token: str) -> tuple | None:
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            if self.peek() == "_":
                raise UnreadFormula("a number in another base")
            return ("num", token)
        if token.isalpha() and len(token) == 1:
            return self.read_application(self.read_name(token))
        if token in ("(", "[", "\\langle"):
            return self.read_group(token)
        if token in ("{", "\\{"):
            return self.read_braces(token)
        if token == "|":
            self.bars += 1
            inside = self.read_sum()
            self.take("|")
            self.bars -= 1
            return ("call", "\\abs", [inside])
        return None

    def read_command(self, token: str) -> tuple:
        if token in GREEK_COMMANDS:
            return self.read_application(self.read_name(token))
        if token in FUNCTION_COMMANDS:
            return self.read_function(token)
        if token in ACCENT_COMMANDS:
            inside = self.read_span()
            return self.read_name(token + inside)
        if token == "\\frac" or token == "\\binom":
            return ("div" if token == "\\frac" else "binom", self.read_argument(), self.read_argument())
        if token == "\\sqrt":
            degree = None
            if self.peek() == "[":
                self.take()
                degree = self.read_sum()
                self.take("]")
            return ("root", self.read_argument(), degree)
        if token in ("\\lfloor", "\\lceil"):
            inside = self.read_sum()
            self.take("\\r" + token[2:])
            return ("call", token, [inside])
        if token in ("\\sum", "\\prod"):
            return self.read_series(token)
        if token.startswith("\\begin"):
            return self.read_matrix(token)
        if token == "\\emptyset":
            return ("set", [])
        if NUMBER_SETS.fullmatch(token) and self.peek() not in ("^", "_"):
            return ("numbers", NUMBER_SETS.fullmatch(token)[1])
        raise UnreadFormula(f"not understood: {token}")

    # ---- names and functions ----

    def read_name(self, name: str) -> tuple:
        """A name with its subscript and primes: x_1, F_{n-1}, f'."""
        if self.peek() == "_":
            self.take()
            name += "_" + self.read_span()
        while self.peek() == "'":
            name += self.take()
        return ("name", name)

    def read_application(self, name: tuple) -> tuple:
        """A name before a bracket: f(x) or a product. `values` decides."""
        if self.peek() != "(":
            return name
        inside = self.read_atom()
        return ("apply", name, inside[1] if inside[0] == "list" else inside[2] if inside[0] == "group" else [inside])

    def read_span(self) -> str:
        """A group or one token as text, for a name."""
        if self.peek() != "{":
            return self.take()
        depth, start = 0, self.position
        while True:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
            if depth == 0:
                return "".join(self.tokens[start + 1 : self.position - 1])

    def read_argument(self) -> tuple:
        r"""The argument of a command: a group, or one digit or sign as in TeX (\sqrt[3]27 is \sqrt[3]{2} 7)."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
        if token.startswith("\\") and token not in GREEK_COMMANDS and token != "\\{" and not token.startswith("\\frac"):
            raise UnreadFormula("an argument without braces")
        return self.read_atom()

    def read_function(self, name: str) -> tuple:
        base = raised = None
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.read_atom()
            else:
                raised = self.read_superscript()
        if self.peek() in ("(", "[", "{", "|", "\\{"):
            inside = self.read_atom()
            given = inside[2] if inside[0] == "group" else inside[1] if inside[0] in ("list", "set") else [inside]
        else:
            inside = self.read_power()
            while self.factor_follows() and self.peek() not in FUNCTION_COMMANDS:
                inside = ("mul", inside, self.read_power())
            given = [inside]
        node = ("call", name, given) if base is None else ("call", name, given, base)
        if raised == ("neg", ("num", "1")):
            return ("call", "\\arc" + name[1:], given)
        return ("pow", node, raised) if raised else node

    def read_series(self, token: str) -> tuple:
        self.take("_")
        start = self.read_braces(self.take("{"))
        self.take("^")
        end = self.read_superscript()
        if start[0] != "chain" or start[1] != ["="] or start[2][0][0] != "name":
            raise UnreadFormula("a sum without a start")
        return (token[1:], start[2][0], start[2][1], end, self.read_product())

    # ---- groups ----

    def read_group(self, opening: str) -> tuple:
        bars, self.bars = self.bars, 0
        inside = self.read_list()
        closing = self.take(")", "]") if opening in "([" else self.take(_CLOSING_BRACKETS[opening])
        self.bars = bars
        if inside[0] == "list":
            return ("group", opening[-1], inside[1], closing[-1])
        if closing != _CLOSING_BRACKETS[opening]:
            raise UnreadFormula("brackets that do not match")
        return inside

    def read_braces(self, opening: str) -> tuple:
        r"""A set, \{1, 2\} or \{x | x > 1\}, or a group of TeX."""
        bars, self.bars = self.bars, 0
        if opening == "\\{" and self.peek() == "\\}":
            self.take()
            return ("set", [])
        condition = self.read_condition(_CLOSING_BRACKETS[opening])
        inside = condition or self.read_list()
        self.take(_CLOSING_BRACKETS[opening])
        self.bars = bars
        if opening == "\\{" and not condition:
            return ("set", inside[1] if inside[0] == "list" else [inside])
        return inside

    def read_condition(self, closing: str) -> tuple | None:
        end = self.position + (3 if self.peek(1) == "\\in" else 1)
        if self.peek().isalpha() and end < len(self.tokens) and self.tokens[end] in ("|", "\\mid", ":"):
            self.position, name = end + 1, self.peek()
            return ("where", ("name", name), self.read_list())
        return None

    def read_matrix(self, token: str) -> tuple:
        if "{" not in token:
            raise UnreadFormula(f"not understood: {token}")
        kind = token[token.index("{") + 1 : -1].strip()
        if kind not in ("pmatrix", "bmatrix", "matrix", "array", "smallmatrix"):
            raise UnreadFormula(f"not understood: {token}")
        if kind == "array":
            self.read_span()
        rows = [[]]
        while not self.peek().startswith("\\end"):
            rows[-1].append(self.read_ratio())
            if self.peek() == "\\\\":
                self.take()
                rows.append([])
            elif not self.peek().startswith("\\end"):
                self.take("&")
        self.take()
        rows = rows if rows[-1] else rows[:-1]
        if not rows or len({len(row) for row in rows}) != 1:
            raise UnreadFormula("a matrix with rows of different lengths")
        return ("matrix", rows)
