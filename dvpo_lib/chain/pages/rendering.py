"""Rendering of a cleaned notebook as one HTML page."""

from __future__ import annotations

import jinja2
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from dvpo_lib.chain.pages.layout import PageLinks, lay_out_page
from dvpo_lib.chain.pages.mathematics import render_markdown
from dvpo_lib.chain.pages.safe_html import sanitize_html

BODY_TEMPLATE = """\
{%- extends 'basic/index.html.j2' -%}
{%- block header %}{% endblock header -%}
{%- block input_group -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock input_group -%}
{%- block footer %}{% endblock footer -%}
"""


class _BodyExporter(HTMLExporter):
    @jinja2.pass_context
    def markdown2html(self, context, source):
        return render_markdown(source, context.get("cell", {}).get("attachments"))


def render_page(notebook: NotebookNode, title: str, links: PageLinks | None = None) -> str:
    """Renders a notebook as one HTML page.

    Args:
        notebook: A notebook from `clean_notebook`.
        title: The page's title, as plain text.
        links: Its neighbours; None for a page that stands alone.

    Returns:
        The page, complete in one file.
    """
    exporter = _BodyExporter(raw_template=BODY_TEMPLATE, sanitize_html=True, filters={"clean_html": sanitize_html})
    body, _ = exporter.from_notebook_node(notebook)
    return lay_out_page(body, title, links)
