r"""Units behind a value, which an answer may have or not.

without_unit("8 km/h")            ("8", "km/h")
without_unit(r"2\pi\text{ cm}")   (r"2\pi", "cm")
without_unit("2m")                ("2m", ""): a product
"""

from __future__ import annotations

import re

from dvpo_lib.tasks.published.formulas.spelling import FONT

UNITS = {
    name: kind for kind, names in {
        "m": "meter meters metre metres", "cm": "centimeter centimeters centimetre centimetres",
        "mm": "millimeter millimeters", "km": "kilometer kilometers kilometre kilometres", "in": "inch inches",
        "ft": "foot feet", "yd": "yard yards", "mi": "mile miles", "s": "sec second seconds", "min": "minute minutes",
        "h": "hr hrs hour hours", "day": "days", "week": "weeks", "month": "months", "year": "years yr yrs",
        "g": "gram grams", "kg": "kilogram kilograms", "mg": "milligram milligrams", "lb": "lbs pound pounds",
        "L": "l liter liters litre litres", "mL": "ml milliliter milliliters", "N": "newton newtons",
        "J": "joule joules", "W": "watt watts", "V": "volt volts", "K": "kelvin", "Hz": "hertz", "mph": "",
        "degree": "degrees deg", "$": "dollar dollars usd", "cent": "cents", "unit": "units", "rad": "radian radians",
    }.items() for name in (kind, *names.split())
}  # fmt: skip
MEANS_MORE = set(  # words after a number that change what it says
    "and or not no nor none to than mod base if when for where as is are least most over under more less before after "
    "below above between times plus minus pi sqrt sin cos tan log ln exp e i th st nd rd dozen hundred thousand "
    "million billion trillion infinity something else other".split())  # fmt: skip
_ATOM = re.compile(
    rf"(\s?)((?:{FONT}\s?\{{[^{{}}]{{0,60}}\}}|\\degree|(?<![A-Za-zµ\\])[A-Za-zµ]{{1,20}}\.?)"
    r"(?:\s?\^\s?\{?\s?-?\d\s?\}?)?)\s?(?:/|\\cdot)?\s?$"
)
_WORD = re.compile(r"[A-Za-zµ$]+")
_NUMBER = re.compile(r"(?:[-+\s\d.,/(){}^]|\\(?:frac|sqrt|times|cdot|pi|pm)\s?)+")
MOST_WORDS, LONGEST_ATOM = 8, 90


def without_unit(text: str) -> tuple[str, str]:
    """A formula's value and its unit: words after a number, symbols of units after any value; else the text and "".

    Args:
        text: a formula, respelled.

    Returns:
        The value, and the unit as `unit_name` spells it.
    """
    text = text.strip()
    found, cut = (text, ""), len(text)
    if text.endswith("/"):
        return found
    for _ in range(MOST_WORDS):
        start = max(0, cut - LONGEST_ATOM)
        atom = _ATOM.search(text[start:cut])
        if not atom:
            break
        cut = start + atom.start()
        value, tail = text[:cut].rstrip(" ,"), text[cut:]
        if value and value[-1] not in "\\=+-*/^_(," and is_unit(value, tail):
            found = value, unit_name(tail)
    return found


def is_unit(value: str, tail: str) -> bool:
    """Whether a tail of words is the unit of what stands before it."""
    words, styled = _WORD.findall(re.sub(FONT, " ", tail).replace("\\degree", "degree")), "{" in tail and "\\" in tail
    if not words or MEANS_MORE & {word.casefold() for word in words}:
        return False
    if tail.lstrip().startswith("\\degree"):
        return True
    known = all(word in UNITS or word.casefold() in UNITS for word in words if word != "per")
    is_number = _NUMBER.fullmatch(value) is not None and any(map(str.isdigit, value))
    if styled:
        return (is_number or known) and re.search(r"\\[A-Za-z]*$", value) is None
    if not is_number or any(len(word) == 1 and word not in UNITS for word in words):
        return False
    spaced, single = tail[:1] == " ", len(words) == 1 and len(words[0]) == 1
    return known and (spaced or not single or "^" in tail) or (spaced and all(len(word) > 1 for word in words))


def unit_name(tail: str) -> str:
    """A unit in one spelling, as "m/s^2"; to be compared, not read."""
    words = re.sub(FONT, " ", tail.replace("\\degree", " degree "))
    words = re.sub(r"[\s{}~.]|\\cdot", " ", words)
    words = re.sub(r"\bsquare(?:d)? (\w+)|\bsq\.? (\w+)", lambda m: f"{m[1] or m[2]}^2", words)
    words = re.sub(r"\bcubic (\w+)", r"\1^3", words)
    words = _WORD.sub(lambda m: UNITS.get(m[0], UNITS.get(m[0].casefold(), m[0].casefold())), words)
    return "".join(words.replace(" per ", "/").split())
