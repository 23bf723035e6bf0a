r"""Units after a value, which an answer may leave out.

split_unit("8 km/h")            ("8", "km/h")
split_unit(r"2\pi\text{ cm}")   (r"2\pi", "cm")
split_unit("2m")                ("2m", ""): a product
"""

from __future__ import annotations

import re

from dvpo_lib.tasks.published.formulas.spelling import FONT_COMMANDS

UNIT_NAMES = {
    name: kind
    for kind, names in {
        "m": "meter meters metre metres",
        "cm": "centimeter centimeters centimetre centimetres",
        "mm": "millimeter millimeters",
        "km": "kilometer kilometers kilometre kilometres",
        "in": "inch inches",
        "ft": "foot feet",
        "yd": "yard yards",
        "mi": "mile miles",
        "s": "sec second seconds",
        "min": "minute minutes",
        "h": "hr hrs hour hours",
        "day": "days",
        "week": "weeks",
        "month": "months",
        "year": "years yr yrs",
        "g": "gram grams",
        "kg": "kilogram kilograms",
        "mg": "milligram milligrams",
        "lb": "lbs pound pounds",
        "L": "l liter liters litre litres",
        "mL": "ml milliliter milliliters",
        "N": "newton newtons",
        "J": "joule joules",
        "W": "watt watts",
        "V": "volt volts",
        "K": "kelvin",
        "Hz": "hertz",
        "mph": "",
        "degree": "degrees deg",
        "$": "dollar dollars usd",
        "cent": "cents",
        "unit": "units",
        "rad": "radian radians",
    }.items()
    for name in (kind, *names.split())
}
_NOT_UNITS = set(  # words that change the meaning of the number before them
    "and or not no nor none to than mod base if when for where as is are least most over under more less before after "
    "below above between times plus minus pi sqrt sin cos tan log ln exp e i th st nd rd dozen hundred thousand "
    "million billion trillion infinity something else other".split()
)
_ATOM = re.compile(
    rf"(\s?)((?:{FONT_COMMANDS}\s?\{{[^{{}}]{{0,60}}\}}|\\degree|(?<![A-Za-zµ\\])[A-Za-zµ]{{1,20}}\.?)"
    r"(?:\s?\^\s?\{?\s?-?\d\s?\}?)?)\s?(?:/|\\cdot)?\s?$"
)
_WORD = re.compile(r"[A-Za-zµ$]+")
_NUMBER = re.compile(r"(?:[-+\s\d.,/(){}^]|\\(?:frac|sqrt|times|cdot|pi|pm)\s?)+")
_MAX_WORDS, _LONGEST_ATOM = 8, 90


def split_unit(text: str) -> tuple[str, str]:
    """Splits a formula into its value and its unit: words after a number, or symbols of units after any value.

    Args:
        text: a respelled formula.

    Returns:
        The value and the unit in one spelling; the text and "" if there is no unit.
    """
    text = text.strip()
    found, cut = (text, ""), len(text)
    if text.endswith("/"):
        return found
    for _ in range(_MAX_WORDS):
        start = max(0, cut - _LONGEST_ATOM)
        atom = _ATOM.search(text[start:cut])
        if not atom:
            break
        cut = start + atom.start()
        value, tail = text[:cut].rstrip(" ,"), text[cut:]
        if value and value[-1] not in "\\=+-*/^_(," and _is_unit(value, tail):
            found = value, _unit_name(tail)
    return found


def _is_unit(value: str, tail: str) -> bool:
    """Whether the words after a value are its unit."""
    words, styled = (
        _WORD.findall(re.sub(FONT_COMMANDS, " ", tail).replace("\\degree", "degree")),
        "{" in tail and "\\" in tail,
    )
    if not words or _NOT_UNITS & {word.casefold() for word in words}:
        return False
    if tail.lstrip().startswith("\\degree"):
        return True
    known = all(word in UNIT_NAMES or word.casefold() in UNIT_NAMES for word in words if word != "per")
    is_number = _NUMBER.fullmatch(value) is not None and any(map(str.isdigit, value))
    if styled:
        return (is_number or known) and re.search(r"\\[A-Za-z]*$", value) is None
    if not is_number or any(len(word) == 1 and word not in UNIT_NAMES for word in words):
        return False
    spaced, single = tail[:1] == " ", len(words) == 1 and len(words[0]) == 1
    return known and (spaced or not single or "^" in tail) or (spaced and all(len(word) > 1 for word in words))


def _unit_name(tail: str) -> str:
    """A unit in one spelling such as "m/s^2", for comparison only."""
    words = re.sub(FONT_COMMANDS, " ", tail.replace("\\degree", " degree "))
    words = re.sub(r"[\s{}~.]|\\cdot", " ", words)
    words = re.sub(r"\bsquare(?:d)? (\w+)|\bsq\.? (\w+)", lambda m: f"{m[1] or m[2]}^2", words)
    words = re.sub(r"\bcubic (\w+)", r"\1^3", words)
    words = _WORD.sub(lambda m: UNIT_NAMES.get(m[0], UNIT_NAMES.get(m[0].casefold(), m[0].casefold())), words)
    return "".join(words.replace(" per ", "/").split())
