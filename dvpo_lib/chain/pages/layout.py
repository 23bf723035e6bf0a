"""Layout of a page around its body: contents at its side, links to its neighbours, figures that open large.

There is no script: a figure opens by its address (`:target`), and light or dark follows the reader's system.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
from pygments.formatters import HtmlFormatter

from dvpo_lib.chain.pages.mathematics import render_markdown
from dvpo_lib.chain.pages.safe_html import sanitize_html

FOLDER = Path(__file__).parent
HEADING = re.compile(r"<h([1-3])(?: id=\"[^\"]*\")?>(.*?)</h\1>", re.DOTALL)
PICTURE = re.compile(r'<img[^>]*\bsrc="(data:image/png;base64,([A-Za-z0-9+/=\s]+))"[^>]*/?>')
MAIN = re.compile(r"<main[^>]*>(.*)</main>", re.DOTALL)
CODE_STYLES = {"light": "default", "dark": "github-dark"}  # of pygments


@dataclass(frozen=True)
class PageLinks:
    """Links of a page to others: pairs of address and title.

    Attributes:
        home: The index of all pages; None if there is none.
        previous: The page before; None for the first.
        following: The page after; None for the last.
        siblings: All pages, for the list at the side of a site; empty for a page by itself.
    """

    home: tuple[str, str] | None = None
    previous: tuple[str, str] | None = None
    following: tuple[str, str] | None = None
    siblings: tuple[tuple[str, str], ...] = ()


def page_body(page: str) -> str:
    """The body of a page that `lay_out_page` made; of any page, what stands in its `main`."""
    return MAIN.search(page)[1].strip()


def lay_out_page(body: str, title: str, links: PageLinks | None = None) -> str:
    """Puts a body into the template.

    Args:
        body: HTML that is safe to show: of `render_page`, or from a page by `page_body`.
        title: The page's title, as plain text.
        links: Its neighbours; None for a page that stands alone.
    """
    if 'class="figure"' not in body:
        body = _wrap_tables(_wrap_figures(body))
    body, headings = _with_anchors(body)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER), autoescape=True)
    code_css = {theme: HtmlFormatter(style=style).get_style_defs(".highlight") for theme, style in CODE_STYLES.items()}
    return environment.get_template("page.html.j2").render(
        body=body.strip(),
        title=title,
        links=links or PageLinks(),
        headings=headings,
        css=(FOLDER / "page.css").read_text(encoding="utf-8"),
        code_css=code_css,
    )


def index_anchor(folder: str) -> str:
    """The address of a notebook's pages on the index, by the folder of its results."""
    return f"pages-{folder}"


def index_page(title: str, summary: str, addresses: Mapping[str, str], figure: bytes | None = None) -> str:
    """The first page of a run: its pages in order, its main figure and its findings.

    Args:
        title: The page's title, as plain text.
        summary: Markdown below the list.
        addresses: {title: address} of the pages, relative to the index; pages of one folder are listed together.
        figure: A PNG file's content.
    """
    folders: dict[str, list[str]] = {}
    for text, address in addresses.items():
        folder = address.removeprefix("../").partition("/")[0]
        folders.setdefault(folder, []).append(f'<li><a href="{html.escape(address)}">{html.escape(text)}</a></li>')
    items = "\n".join(
        f'<li id="{index_anchor(folder)}">{pages[0][4:]}'
        if len(pages) == 1
        else f'<li id="{index_anchor(folder)}">Training, by method<ul>{"".join(pages)}</ul></li>'
        for folder, pages in folders.items()
    )
    picture = f'<img src="data:image/png;base64,{base64.b64encode(figure).decode()}">' if figure else ""
    findings = sanitize_html(render_markdown(summary))
    return lay_out_page(f"<h1>{html.escape(title)}</h1>\n<ol>\n{items}\n</ol>\n{picture}\n{findings}\n", title)


def _wrap_figures(body: str) -> str:
    """Makes each picture a figure with an address; its place keeps the size while the picture is shown large."""
    number = 0

    def wrapped(found: re.Match) -> str:
        nonlocal number
        head = base64.b64decode(found[2][:64])
        if not head.startswith(b"\x89PNG") or len(head) < 24:
            return found[0]
        number += 1
        width, height = struct.unpack(">II", head[16:24])
        return (
            f'<div class="figure" id="figure-{number}" style="aspect-ratio: {width} / {height}; max-width: {width}px">'
            f'<div class="picture" id="large-{number}"><a href="#large-{number}" title="Open large">'
            f'<img src="{found[1]}" alt="Figure {number}" width="{width}" height="{height}"></a>'
            f'<a class="close" href="#figure-{number}">Close</a></div></div>'
        )

    return PICTURE.sub(wrapped, body)


def _wrap_tables(body: str) -> str:
    """Lets wide tables scroll inside the page, by keyboard too."""
    box = '<div class="table" tabindex="0" role="region" aria-label="Table">'
    return body.replace("<table", f"{box}<table").replace("</table>", "</table></div>")


def _with_anchors(body: str) -> tuple[str, list[tuple[int, str, str]]]:
    """The body with an id for each heading, and (level, id, text) of headings below the first."""
    headings: list[tuple[int, str, str]] = []
    used: set[str] = set()

    def anchored(found: re.Match) -> str:
        text = html.unescape(re.sub(r"<[^>]+>", "", found[2])).strip()
        slug = base = re.sub(r"\s+", "-", text)  # as in JupyterLab, whose links work here then
        while slug in used:
            slug = f"{base}-{len(used)}"
        used.add(slug)
        if found[1] != "1":
            headings.append((int(found[1]), slug, text))
        return f'<h{found[1]} id="{html.escape(slug)}">{found[2]}</h{found[1]}>'

    return HEADING.sub(anchored, body), headings
