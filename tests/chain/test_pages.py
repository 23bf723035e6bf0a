"""The rendered page: readable without a network, safe to open, the same for the same run."""

from __future__ import annotations

import html

import nbformat.v4 as nb
import pytest

from dvpo_lib.chain.pages import INJECTED_ID, WIDGET_STATE, WIDGET_VIEW, clean, sanitize, to_html, to_mathml


def notebook(*outputs, **metadata):
    cell = nb.new_code_cell("1", outputs=list(outputs), id="a", metadata={"execution": {"start": "12:00"}})
    injected = nb.new_code_cell("x = 1", metadata={"tags": [INJECTED_ID]})
    return nb.new_notebook(cells=[cell, injected], metadata={"papermill": {"duration": 3}, **metadata})


def stream(name, text):
    return nb.new_output("stream", name=name, text=text)


def test_clean_drops_what_differs_between_runs():
    cleaned = clean(notebook(stream("stdout", "a "), stream("stderr", "50%"), stream("stdout", "<f at 0x7f12>")))
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
    cleaned = clean(notebook(view, widgets={WIDGET_STATE: {"state": state}}))
    assert [output.data for output in cleaned.cells[0].outputs] == [{"image/png": "AAAA"}]
    assert "data:image/png;base64,AAAA" in to_html(cleaned, "t")


def test_page_needs_no_network_and_runs_no_script():
    unsafe = nb.new_output("display_data", data={"text/html": "<b onclick='x()'>b</b><script>x()</script>"})
    page = to_html(clean(notebook(unsafe, stream("stdout", "<i>"))), "A & B")
    assert "<script" not in page and "onclick" not in page
    assert "&lt;i&gt;" in page and "<title>A &amp; B</title>" in page
    assert "content=\"default-src 'none'" in page


def test_tables_with_styles_survive_the_sanitiser():
    styled = (
        "<style type='text/css'>#T_1 td {color: red}</style><table id='T_1'><thead><tr><th colspan='2'>A</th>"
        "</tr></thead><tbody><tr><td style='color: red'>1 &lt; 2</td></tr></tbody></table>"
    )
    cleaned = sanitize(styled)
    assert "<style>#T_1 td {color: red}</style>" in cleaned
    assert '<th colspan="2">A</th>' in cleaned and "1 &lt; 2" in cleaned
    assert "url" not in sanitize("<style>a {background: url(http://x)}</style>")


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
    found = to_mathml(latex, "block")
    assert found.startswith("<math ") and 'display="block"' in found and expected in html.unescape(found)
    assert "\\" not in found and "&amp;" not in found


def test_mathematics_that_cannot_be_converted_is_shown_as_written():
    assert to_mathml(r"x^{a}^{b} <", "inline") == r"<code>x^{a}^{b} &lt;</code>"
