"""From an executed notebook to two files that are equal whenever the run was equal: notebook.ipynb and notebook.html.

`clean` drops what differs from run to run (times, addresses, progress bars, widget state); `to_html` makes a page that
loads nothing from a network: mathematics becomes MathML, pictures are inlined, HTML from cells is sanitised.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from pathlib import Path

import bleach
import jinja2
import latex2mathml.converter
import markupsafe
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, CSSSanitizer
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
    *bleach.ALLOWED_TAGS,
    *MATHML,
    *"""div span p br hr pre h1 h2 h3 h4 h5 h6 table caption colgroup col thead tbody
    tfoot tr th td sub sup del img dl dt dd details summary figure figcaption u s small mark""".split(),
}
MATHML_ATTRIBUTES = """display mathvariant stretchy fence form lspace rspace movablelimits accent columnalign
    rowspacing columnspacing linethickness width height depth largeop minsize maxsize separator displaystyle scriptlevel
    notation"""
ATTRIBUTES = {
    **bleach.ALLOWED_ATTRIBUTES,
    "*": ["class", "id", "style", "title"],
    "img": ["src", "alt", "width", "height"],
    "details": ["open"],
    "th": ["colspan", "rowspan", "scope"],
    "td": ["colspan", "rowspan"],
    **dict.fromkeys(MATHML, MATHML_ATTRIBUTES.split()),
}
CSS = CSSSanitizer(
    allowed_css_properties=[
        *ALLOWED_CSS_PROPERTIES,
        "margin",
        "padding",
        "border",
        "border-left",
        "border-bottom",
        "border-radius",
        "max-width",
        "opacity",
        "columns",
    ]
)
STYLE_BLOCK = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL | re.IGNORECASE)


def clean(notebook: NotebookNode) -> NotebookNode:
    """A copy of an executed notebook without anything that depends on when and where it ran."""
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
    """Without stderr, widgets replaced by the picture inside them, pieces of stdout joined, no memory addresses."""
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
            output.text = _no_address(output.text)
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") and isinstance(value, str):
                output["data"][kind] = _no_address(value)
    return kept


def _inner_outputs(model_id: str, widgets: dict) -> list:
    """What a widget (that of `interact`) last showed."""
    state = widgets.get(model_id, {}).get("state", {})
    found = [NotebookNode(output) for output in state.get("outputs", [])]
    for child in state.get("children", []):
        found += _inner_outputs(child.removeprefix("IPY_MODEL_"), widgets)
    return [_node(output) for output in found]


def _node(value):
    if isinstance(value, dict):
        return NotebookNode({key: _node(item) for key, item in value.items()})
    return [_node(item) for item in value] if isinstance(value, list) else value


def _no_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


class _MathRenderer(IPythonRenderer):
    """Markdown whose mathematics is MathML, which browsers show without a script."""

    def inline_math(self, body: str) -> str:
        return to_mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return to_mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return to_mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def to_mathml(latex: str, display: str) -> str:
    """MathML of a formula; one that cannot be converted is shown as it was written."""
    # The library knows only one of the environments that set equations below each other.
    latex = re.sub(r"\\(begin|end)\{(aligned|split|gathered)\}", r"\\\1{align*}", latex.strip())
    try:
        mathml = latex2mathml.converter.convert(latex, display=display)
    except Exception:  # the library raises many kinds, none of them documented
        return f"<code>{markupsafe.escape(latex)}</code>"
    return re.sub(r'<(mi|mn) mathvariant="(script|bold|fraktur)">(\w)</\1>', _letter, mathml)


def _letter(match: re.Match) -> str:
    """A letter of a mathematical alphabet as the character of its own: browsers ignore the attribute `mathvariant`."""
    tag, style, letter = match.groups()
    case = "DIGIT" if letter.isdigit() else "CAPITAL" if letter.isupper() else "SMALL"
    plain_name = unicodedata.name(letter).rpartition(" ")[2]
    for name in (f"MATHEMATICAL {style.upper()} {case} {plain_name}", f"{style.upper()} {case} {plain_name}"):
        try:
            return f"<{tag}>{unicodedata.lookup(name)}</{tag}>"
        except KeyError:  # some letters got their names earlier, without "MATHEMATICAL"
            continue
    return match[0]


def sanitize(html: str) -> str:
    """HTML without scripts, foreign frames, handlers and foreign addresses of styles; tables and MathML stay.

    The style sheets of pandas' Styler are kept, since they only speak of the ids of their own table; the page's content
    security policy forbids whatever they might load."""
    sheets = [sheet for sheet in STYLE_BLOCK.findall(str(html)) if not re.search(r"[<\\]|@import|url\(", sheet)]
    body = bleach.clean(
        STYLE_BLOCK.sub("", str(html)),
        tags=TAGS,
        attributes=ATTRIBUTES,
        css_sanitizer=CSS,
        protocols={"http", "https", "mailto", "data"},
    )
    return "".join(f"<style>{sheet}</style>" for sheet in sheets) + body


class _PageExporter(HTMLExporter):
    @jinja2.pass_context
    def markdown2html(self, context, source):
        cell = context.get("cell", {})
        renderer = _MathRenderer(escape=False, attachments=cell.get("attachments", {}), exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)


def to_html(notebook: NotebookNode, title: str) -> str:
    """The page of a cleaned notebook, complete in one file."""
    exporter = _PageExporter(
        raw_template=(Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8"),
        sanitize_html=True,
        filters={"clean_html": sanitize},
    )
    resources = {"page_title": title, "code_css": HtmlFormatter(style="friendly").get_style_defs(".highlight")}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return page
