"""Links between the pages of a run, from dvc.yaml alone: a page is not rendered anew because another stage changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dvpo_lib.chain.pages.layout import PageLinks, index_anchor
from dvpo_lib.chain.stages import StageSpec


def neighbour_links(stages: Mapping[str, StageSpec], name: str) -> PageLinks:
    """Index, page before and page after of a stage's page, in the order of the notebooks.

    A notebook with a page for each row of a `foreach` is linked by its place on the index.

    Args:
        stages: All stages, in order.
        name: The stage.
    """
    index = next((out for spec in stages.values() for out in spec.outs if out.endswith("/index.html")), None)
    pages: dict[str, str | None] = {}  # notebook -> its page, or its place on the index
    for stage, spec in stages.items():
        page = f"{spec.results}/notebook.html"
        if page in spec.outs:
            listed = index and f"{index}#{index_anchor(Path(page).relative_to('results').parts[0])}"
            pages[spec.notebook] = listed if "@" in stage else page
    here, notebooks = stages[name].results, list(pages)
    if stages[name].notebook not in pages:
        return PageLinks()
    place = notebooks.index(stages[name].notebook)

    def link(place: int) -> tuple[str, str] | None:
        page = pages[notebooks[place]] if 0 <= place < len(notebooks) else None
        return page and (os.path.relpath(page, here), Path(notebooks[place]).stem.replace("_", " "))

    home = (os.path.relpath(index, here), "All notebooks") if index else None
    return PageLinks(home=home, previous=link(place - 1), following=link(place + 1))
