r"""One spelling for formulas that can be written in many ways: Unicode signs, spaces, fonts, units, powers of ten.

    respell_formula("5√3")                        "5\sqrt{3}"
    respell_formula("\dfrac12\,\mathrm{e}")       "\frac{1}{2} e"
    comparable_text("\text{ Monday.}")            "monday"

The tables below hold all spellings that the judge takes to be the same. Every rule is a bounded pattern, because the
texts come from a policy that is rewarded for them.
"""

from __future__ import annotations

import re

_UNICODE_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–—‒﹣－", "-"),
        **dict.fromkeys("×✕", r"\times "),
        **dict.fromkeys("⋅·∙•", r"\cdot "),
        "÷": r"\div ",
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\n\r", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", ""),
        "∞": r"\infty ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∖": r"\setminus ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}",
        "ℂ": r"\mathbb{C}",
        "…": r"\dots ",
        "°": r"\degree ",
        "º": r"\degree ",
        "′": "'",
        "’": "'",
        "π": r"\pi ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "δ": r"\delta ",
        "ε": r"\varepsilon ",
        "θ": r"\theta ",
        "λ": r"\lambda ",
        "μ": r"\mu ",
        "ρ": r"\rho ",
        "σ": r"\sigma ",
        "τ": r"\tau ",
        "φ": r"\varphi ",
        "ϕ": r"\phi ",
        "ψ": r"\psi ",
        "ω": r"\omega ",
        "Δ": r"\Delta ",
        "Γ": r"\Gamma ",
        "Σ": r"\Sigma ",
        "Ω": r"\Omega ",
        "η": r"\eta ",
        "ξ": r"\xi ",
        "χ": r"\chi ",
        "ζ": r"\zeta ",
        "κ": r"\kappa ",
        "ν": r"\nu ",
        "Φ": r"\Phi ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "（": "(",
        "）": ")",
        "，": ",",
        "；": ";",
        "：": ":",
        "∶": ":",
        "＝": "=",
        "∣": "|",
        "％": r"\%",
        "∛": r"\sqrt[3]",
        "“": '"',
        "”": '"',
        "‘": "'",
        "¼": r"\frac{1}{4}",
        "½": r"\frac{1}{2}",
        "¾": r"\frac{3}{4}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "⅕": r"\frac{1}{5}",
        "⅖": r"\frac{2}{5}",
        "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}",
        "⅙": r"\frac{1}{6}",
        "⅚": r"\frac{5}{6}",
        "⅛": r"\frac{1}{8}",
        "⅜": r"\frac{3}{8}",
        "⅝": r"\frac{5}{8}",
        "⅞": r"\frac{7}{8}",
        "⁄": "/",
        "∕": "/",
    }
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_UNSCRIPTED = str.maketrans(_RAISED + _LOWERED, "0123456789+-n" * 2)
FONT_COMMANDS = (
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bm|boldsymbol|pmb|operatorname\*?)"
)
_NUMBER_START = r"(?<![\d.,_^])"  # a number starts here

_SPELLING_RULES = [
    (re.compile(pattern), new)
    for pattern, new in (
        # signs of more than one character
        (rf"[{_RAISED}]{{1,20}}", lambda m: "^{" + m[0].translate(_UNSCRIPTED) + "}"),
        (rf"[{_LOWERED}]{{1,20}}", lambda m: "_{" + m[0].translate(_UNSCRIPTED) + "}"),
        (r"√\s{0,4}(\d{1,40}(?:\.\d{1,40})?|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (
            r"(?<!\\)\\\\(?=(?:le|ge|ne|lt|gt|in|pi|frac|dfrac|sqrt|text|left|right|cup|cap|infty|circ|pm)(?![a-z]))",
            r"\\",
        ),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=(?!=)", r"\\ne "),
        (r"==", "="),
        (r"\*\*", "^"),
        # layout without meaning
        (r",\s{0,4}\\!\s{0,4}(?=\d{3})", ","),
        (
            r"(\\\\)|\\[,;:> ]|~|\\q?quad|\\(?:thin|med|thick)space(?![a-z])|\\h?space\*?\{[^{}]{0,12}\}",
            lambda m: m[1] or " ",
        ),
        (r"\\!|\\(?:displaystyle|textstyle|limits|nolimits|hfill|rm|bf|it|[lL]arge)(?![A-Za-z])", ""),
        (r"\\left\s{0,4}\.|\\right\s{0,4}\.|\\(?:left|right|[Bb]igg?[lrm]?)(?![A-Za-z])", ""),
        (r"\\(?:text)?color\s{0,4}\{[A-Za-z]{1,20}\}", ""),
        (r"\\(?:[hv]?phantom|label|tag)\{[^{}]{0,20}\}", ""),
        (r"[dtc]frac(?![A-Za-z])", "frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (rf"{FONT_COMMANDS}\s{{1,4}}(?=[A-Za-z0-9](?![A-Za-z]))", ""),
        (r"\\underline\s{0,4}\{(\s{0,4}[^{}\s][^{}]{0,60})\}", r"\1"),
        (
            rf"{FONT_COMMANDS}\s{{0,4}}\{{\s{{0,4}}([\d.,/]{{1,20}})(\s{{0,4}}[A-Za-z][^{{}}\d]{{0,60}})\}}",
            r"\1 \\text{\2}",
        ),
        # one name for each
        (r"\\middle(?![A-Za-z])", ""),
        (r"\\var(?=(?:phi|epsilon|theta)(?![A-Za-z]))", r"\\"),
        (r"\{([^{}]{1,60})\\over(?![A-Za-z])([^{}]{1,60})\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}]{1,60})\\choose(?![A-Za-z])([^{}]{1,60})\}", r"\\binom{\1}{\2}"),
        (r"\\(?:leqslant|leqq?)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geqq?)(?![A-Za-z])", r"\\ge "),
        (r"\\neq(?![A-Za-z])", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:ldots|cdots|dotsc|dotsb)(?![A-Za-z])|\.\.\.", r"\\dots "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\(?:simeq|thickapprox)(?![A-Za-z])", r"\\approx "),
        (r"\\ast(?![A-Za-z])|\*", r"\\cdot "),
        (r"\\backslash(?![A-Za-z])|\\smallsetminus(?![A-Za-z])", r"\\setminus "),
        (r"\\imath(?![A-Za-z])", "i"),
        (r"\^\s{0,4}(?:\{\s{0,4}\\circ\s{0,4}\}|\\circ(?![A-Za-z]))", r"\\degree "),
        (r"\\degrees(?![A-Za-z])", r"\\degree "),
        (r"(?<!\\)%", r"\\%"),
        (r"(?i)(?<![A-Za-z])(?:percent(?:age)?|pct)(?![A-Za-z])", r"\\%"),
        (rf"(?i){FONT_COMMANDS}\s{{0,4}}\{{\s{{0,4}}(\\%)\s{{0,4}}\}}", r"\1"),
        (
            r"\\(?:pounds|euro|yen)(?![A-Za-z])|[€£¥₹](?=\s{0,2}[\d.])|(?<=\d)\s{0,2}[€£¥₹¢]"
            r"|(?<![A-Za-z])Rs\.?\s{0,2}(?=\d)",
            "",
        ),
        (
            rf"(?:{FONT_COMMANDS}\s{{0,4}}\{{[\s,]{{0,4}}(and|or)\s{{0,4}}\}}|(?<![A-Za-z\\])(and|or)(?![a-z]))",
            lambda m: " \\" + (m[1] or m[2]) + " ",
        ),
        (r"\^\s{0,4}(?:\{\s{0,4}\\prime\s{0,4}\}|\\prime(?![A-Za-z]))|\\prime(?![A-Za-z])", "'"),
        # numbers
        (r"(?<=\d)\s{0,2}\{\s{0,2},\s{0,2}\}\s{0,2}(?=\d{3}(?!\d))", ""),
        (rf"{_NUMBER_START}(\d{{1,3}}(?: \d{{3}}){{1,20}})(?![\d/])", lambda m: m[1].replace(" ", "")),
        (rf"{_NUMBER_START}(\d{{1,20}}) (\d{{1,9}})/(\d{{1,9}})(?![\d.])", r"(\1+\\frac{\2}{\3})"),
        (r"(?<=\d)\s{0,2}[xX]\s{0,2}(?=10\s{0,2}\^)", r"\\times "),
        (
            r"(\d{0,40})\.(\d{0,40})\s{0,4}\\(?:overline|bar|dot)\s{0,4}(?:\{(\d{1,40})\}|(\d))(?:\\dot\s{0,4}\{?(\d)\}?)?",
            lambda m: _respell_repeating_decimal(m[1], m[2], (m[3] or m[4]) + (m[5] or "")),
        ),
        (r"(\d{0,40})\.(\d{0,40})\((\d{1,40})\)", lambda m: _respell_repeating_decimal(*m.groups())),
        # fractions and roots without braces
        (r"\\frac\s{0,4}(\d)\s{0,4}(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s{0,4}(\d)\s{0,4}\{", r"\\frac{\1}{"),
        (
            r"(?<![\d.,_^A-Za-z}])(\d{1,20})\s{0,4}\\frac\s{0,4}\{\s{0,4}(\d{1,9})\s{0,4}\}\s{0,4}"
            r"\{?\s{0,4}(\d{1,9})\s{0,4}\}?",
            lambda m: _respell_mixed_number(*m.groups()),
        ),
    )
]
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    rf"(\d)\s{{0,4}}(?:{FONT_COMMANDS}\s{{0,4}}\{{)?\s{{0,4}}({'|'.join(_SCALES)})\b\s{{0,4}}([A-Za-z ]{{0,30}})(\}}?)"
)


def _respell_repeating_decimal(whole: str, before: str, period: str) -> str:
    """A repeating decimal as a fraction: 0.1666... is (16 - 1) / 90."""
    top = int("0" + whole + before + period) - int("0" + whole + before)
    return f"\\frac{{{top}}}{{{'9' * len(period)}{'0' * len(before)}}}"


def _respell_mixed_number(whole: str, top: str, bottom: str) -> str:
    """A mixed number as a sum if the fraction is smaller than 1, else unchanged."""
    fraction = f"\\frac{{{top}}}{{{bottom}}}"
    return f"({whole}+{fraction})" if int(top) < int(bottom) else whole + fraction


def respell_formula(text: str) -> str:
    """A formula in the one spelling that `formulas.reader` understands."""
    text = text.translate(_UNICODE_SIGNS)
    for pattern, new in _SPELLING_RULES:
        text = pattern.sub(new, text)
    text = _SCALE.sub(lambda m: f"{m[1]}\\cdot 10^{{{_SCALES[m[2]]}}}" + (f" \\text{{{m[3]}}}" if m[3] else ""), text)
    return text.strip()


# ---- fonts ----

_STYLED = re.compile(rf"{FONT_COMMANDS}\s{{0,4}}\{{([^{{}}]{{0,400}})\}}")
_NO_WORD = re.compile(r"\s*(?:[A-Za-z]|[^A-Za-z]*)\s*")


def strip_font_commands(text: str) -> str:
    r"""The text without font commands. Words stay in `\text{}`, single letters and numbers do not."""

    def bare(match: re.Match) -> str:
        inside = match[1].strip()
        if match[0].startswith("\\operatorname") and inside.isalpha():
            return f"\\{inside} "
        return f" {inside} " if _NO_WORD.fullmatch(inside) or "\\" in inside else f"\\text{{{inside}}}"

    return _STYLED.sub(bare, text)


# ---- texts ----

_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # 3 1/4 is not 31/4
_BRACED = re.compile(r"\{\s*(\\[A-Za-z]+|[^{}\\])\s*\}")


def comparable_text(text: str) -> str:
    """An answer that is no formula, reduced for comparison: without fonts, white space, quotes and case of words."""
    text = strip_font_commands(text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = _BRACED.sub(r"\1", text.replace("\\and", "and").replace("\\or", "or"))
    text = _SPACE.sub("", text).strip('"`.,;:*')
    if re.fullmatch(r"\([A-Za-z]\)|'[^']*'", text):
        text = text[1:-1]
    words = re.fullmatch(r"[A-Za-z\d\"'`.,;:()?!&-]*[A-Za-z]{2}[A-Za-z\d\"'`.,;:()?!&-]*", text)
    return text.casefold() if words else text
