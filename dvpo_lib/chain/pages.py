"""Turns an executed notebook into notebook.ipynb and notebook.html, equal bytes for equal runs.

`clean_notebook` drops what differs from run to run: times, addresses, progress bars, widget state. `render_page` makes
one HTML file that loads nothing from a network: mathematics becomes MathML, pictures are inlined, HTML of cells is
sanitised.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from pathlib import Path

import jinja2
import latex2mathml.converter
import markupsafe
import nh3
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
INJECTED_ID = "injected-parameters"  # papermill's own cell gets a random id otherwise

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


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """Copies an executed notebook without anything that depends on when and where it ran."""
    nb = copy.deepcopy(notebook)
    widgets = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nb.metadata = NotebookNode(kernelspec=NotebookNode(kernel), language_info=NotebookNode(language))
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        cell.id = INJECTED_ID if INJECTED_ID in tags else cell.get("id", f"cell-{number}")
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs, widgets)
    return nb


def _clean_outputs(outputs: list, widgets: dict) -> list:
    """Drops stderr and memory addresses, joins pieces of stdout, replaces a widget by the picture inside it."""
    kept: list = []
    for output in outputs:
        data = output.get("data", {})
        if WIDGET_VIEW in data:
            kept += _clean_outputs(_inner_outputs(data[WIDGET_VIEW]["model_id"], widgets), widgets)
        elif output.output_type == "stream" and output.name == "stderr":
            continue
        elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _drop_address(output.text)
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") and isinstance(value, str):
                output["data"][kind] = _drop_address(value)
    return kept


def _inner_outputs(model_id: str, widgets: dict) -> list:
    """The outputs that a widget, such as `interact`, showed last."""
    state = widgets.get(model_id, {}).get("state", {})
    found = [NotebookNode(output) for output in state.get("outputs", [])]
    for child in state.get("children", []):
        found += _inner_outputs(child.removeprefix("IPY_MODEL_"), widgets)
    return [_as_nodes(output) for output in found]


def _as_nodes(value):
    if isinstance(value, dict):
        return NotebookNode({key: _as_nodes(item) for key, item in value.items()})
    return [_as_nodes(item) for item in value] if isinstance(value, list) else value


def _drop_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


class _MathRenderer(IPythonRenderer):
    """Renders Markdown with MathML, which browsers show without a script."""

    def inline_math(self, body: str) -> str:
        return latex_to_mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return latex_to_mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return latex_to_mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def latex_to_mathml(latex: str, display: str) -> str:
    """Converts a LaTeX formula to MathML; if that fails, returns it as code.

    Args:
        latex: The formula, without dollar signs.
        display: "inline" or "block".
    """
    # latex2mathml knows only one of the environments for equations below each other.
    latex = re.sub(r"\\(begin|end)\{(aligned|split|gathered)\}", r"\\\1{align*}", latex.strip())
    try:
        mathml = latex2mathml.converter.convert(latex, display=display)
    except Exception:  # latex2mathml raises many undocumented kinds
        return f"<code>{markupsafe.escape(latex)}</code>"
    return re.sub(r'<(mi|mn) mathvariant="(script|bold|fraktur)">(\w)</\1>', _styled_letter, mathml)


def _styled_letter(match: re.Match) -> str:
    """Spells a script, bold or fraktur letter as its own character, because browsers ignore `mathvariant`."""
    tag, style, letter = match.groups()
    case = "DIGIT" if letter.isdigit() else "CAPITAL" if letter.isupper() else "SMALL"
    plain_name = unicodedata.name(letter).rpartition(" ")[2]
    for name in (f"MATHEMATICAL {style.upper()} {case} {plain_name}", f"{style.upper()} {case} {plain_name}"):
        try:
            return f"<{tag}>{unicodedata.lookup(name)}</{tag}>"
        except KeyError:  # older letters have names without "MATHEMATICAL"
            continue
    return match[0]


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


class _PageExporter(HTMLExporter):
    @jinja2.pass_context
    def markdown2html(self, context, source):
        cell = context.get("cell", {})
        renderer = _MathRenderer(escape=False, attachments=cell.get("attachments", {}), exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def render_page(notebook: NotebookNode, title: str) -> str:
    """Renders a notebook as one HTML page.

    Args:
        notebook: A notebook from `clean_notebook`.
        title: The page's title, as plain text.

    Returns:
        The page, complete in one file.
    """
    exporter = _PageExporter(
        raw_template=(Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"),
        sanitize_html=True,
        filters={"clean_html": sanitize_html},
    )
    resources = {"page_title": title, "code_css": HtmlFormatter(style="friendly").get_style_defs(".highlight")}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return page
