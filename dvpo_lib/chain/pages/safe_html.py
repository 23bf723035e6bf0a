"""HTML of notebooks' outputs without anything that runs, loads or covers the page."""

from __future__ import annotations

import re

import nh3

MATHML = (
    "math semantics mrow mi mo mn ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover "
    "mmultiscripts mtable mtr mtd mstyle mpadded mphantom menclose"
).split()
TAGS = {
    *MATHML,
    *"""a abbr acronym b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3
    h4 h5 h6 hr i img li mark ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u
    ul""".split(),
}
MATHML_ATTRIBUTES = """display mathvariant stretchy fence form lspace rspace movablelimits accent columnalign
    rowspacing columnspacing linethickness width height depth largeop minsize maxsize separator displaystyle scriptlevel
    notation"""
ATTRIBUTES = {
    "*": {"class", "id", "style", "title"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "details": {"open"},
    "th": {"colspan", "rowspan", "scope"},
    "td": {"colspan", "rowspan"},
    **{tag: set(MATHML_ATTRIBUTES.split()) for tag in MATHML},
}
CSS_PROPERTIES = set(
    """background-color border border-bottom border-bottom-color border-collapse border-color border-left
    border-left-color border-radius border-right-color border-top-color clear color columns direction display float font
    font-family font-size font-style font-variant font-weight height letter-spacing line-height margin max-width opacity
    overflow padding text-align text-decoration text-indent vertical-align white-space width""".split()
)
LOADING_CSS = re.compile(r"[\\@]|url|image|expression", re.IGNORECASE)  # a backslash could spell the rest in escapes
STYLE_BLOCK = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL | re.IGNORECASE)
TABLE_SHEET = re.compile(
    r"(\s*(#T_|\.dataframe )[^{}<,]*(,\s*(#T_|\.dataframe )[^{}<,]*)*\{[^{}<]*\}\s*)*"
)  # pandas' rules
TAG_START = re.compile(r"<(?=/?([a-z][^\s/>]*))", re.IGNORECASE)


def sanitize_html(html: str) -> str:
    """Removes scripts, frames, event handlers and addresses that load; keeps tables, MathML and inline styles.

    Unknown tags become text, because `<eos>` in a completion is a word. A style sheet of a pandas table is kept if
    each of its rules is about a table. The page's content security policy forbids whatever might still load.
    """
    html = str(html)
    sheets = [sheet for sheet in STYLE_BLOCK.findall(html) if _is_table_sheet(sheet)]
    body = nh3.clean(
        TAG_START.sub(lambda tag: "<" if tag[1].lower() in TAGS else "&lt;", STYLE_BLOCK.sub("", html)),
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_filter_attribute,
        filter_style_properties=CSS_PROPERTIES,
        url_schemes={"http", "https", "mailto", "data"},
        link_rel=None,
    )
    return "".join(f"<style>{sheet}</style>" for sheet in sheets) + body


def _is_table_sheet(sheet: str) -> bool:
    return not LOADING_CSS.search(sheet) and TABLE_SHEET.fullmatch(sheet) is not None


def _filter_attribute(tag: str, attribute: str, value: str) -> str | None:
    if attribute == "style" and LOADING_CSS.search(value):
        return None
    address = re.sub(r"[\x00-\x20]", "", value).lower()  # browsers skip these characters in a scheme
    if address.startswith("data:") and not (tag == "img" and address.startswith("data:image/")):
        return None
    return value
