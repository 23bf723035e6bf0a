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
    "below above between times plus minus pi sqrt sin cos tan log ln exp e i th st nd rd dozen hundred thousand million "
    "billion trillion infinity something else other".split())  # fmt: skip
_ATOM = rf"(?:{FONT}\s{{0,4}}\{{[^{{}}]{{0,60}}\}}|\\degree|\\%|[A-Za-zµ]{{1,20}}\.?)(?:\s{{0,2}}\^\s{{0,2}}\{{?\s?-?\d\s?\}}?)?"
_UNIT = re.compile(rf"\s{{0,4}}({_ATOM}(?:\s{{0,3}}(?:/|\\cdot)?\s{{0,3}}{_ATOM}){{0,5}})\s{{0,4}}$")
_WORD = re.compile(r"[A-Za-zµ$]+")
_NUMBER = re.compile(r"(?:[-+\s\d.,/(){}^]|\\(?:frac|sqrt|times|cdot|pi|pm)\s?)+")


def without_unit(text: str) -> tuple[str, str]:
    """A formula's value and its unit: words after a number, symbols of units after any value; else ("...", "")."""
    text = text.strip()
    for start in (m.end() for m in re.finditer(r"(?<=[\d)}\]A-Za-z.])(?=\s|\\|[A-Za-z])|$", text[-90:])):
        cut = len(text) - len(text[-90:]) + start
        value, tail = text[:cut].rstrip(" ,"), text[cut:]
        if value and value[-1] not in "\\=+-*/^_(" and _UNIT.fullmatch(tail) and is_unit(value, tail):
            return value, unit_name(tail)
    return text, ""


def is_unit(value: str, tail: str) -> bool:
    words, styled = _WORD.findall(re.sub(FONT, " ", tail)), "{" in tail and "\\" in tail
    if not words or MEANS_MORE & {word.casefold() for word in words} or re.search(r"\\(?:and|or|%)", tail):
        return False
    if tail.lstrip().startswith("\\degree"):
        return True
    known = all(word in UNITS or word.casefold() in UNITS for word in words if word != "per")
    is_number = _NUMBER.fullmatch(value) is not None and any(map(str.isdigit, value))
    if styled:
        return bool(is_number or (known and value[-1] not in "A")) and re.search(r"\\[A-Za-z]*$", value) is None
    single = len(words) == 1 and len(words[0]) == 1
    spaced = tail[:1] == " "
    if not is_number or any(len(word) == 1 and word not in UNITS for word in words):
        return False
    return known and (spaced or not single or "^" in tail) or (spaced and all(len(word) > 1 for word in words))


def unit_name(tail: str) -> str:
    """A unit in one spelling, as "m/s^2"; to be compared, not read."""
    words = re.sub(FONT, " ", tail.replace("\\degree", " degree "))
    words = re.sub(r"[\s{}~.]|\\cdot", " ", words)
    words = re.sub(r"\bsquare(?:d)? (\w+)|\bsq\.? (\w+)", lambda m: f"{m[1] or m[2]}^2", words)
    words = re.sub(r"\bcubic (\w+)", r"\1^3", words)
    words = _WORD.sub(lambda m: UNITS.get(m[0], UNITS.get(m[0].casefold(), m[0].casefold())), words)
    return "".join(words.replace(" per ", "/").split())
