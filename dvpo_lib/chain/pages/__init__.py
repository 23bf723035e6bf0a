"""Rendered pages: one file each, equal bytes for equal runs, safe to open, readable without a network."""

from dvpo_lib.chain.pages.cleaning import INJECTED_ID, WIDGET_STATE, WIDGET_VIEW, clean_notebook
from dvpo_lib.chain.pages.layout import PageLinks, index_page, lay_out_page, page_body
from dvpo_lib.chain.pages.mathematics import latex_to_mathml
from dvpo_lib.chain.pages.neighbours import neighbour_links
from dvpo_lib.chain.pages.rendering import render_page
from dvpo_lib.chain.pages.safe_html import sanitize_html

__all__ = [
    "INJECTED_ID",
    "WIDGET_STATE",
    "WIDGET_VIEW",
    "PageLinks",
    "clean_notebook",
    "index_page",
    "latex_to_mathml",
    "lay_out_page",
    "neighbour_links",
    "page_body",
    "render_page",
    "sanitize_html",
]
