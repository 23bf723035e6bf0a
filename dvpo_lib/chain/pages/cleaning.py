"""Executed notebooks without what differs from run to run: times, addresses, progress bars, widget state."""

from __future__ import annotations

import copy
import re

from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
INJECTED_ID = "injected-parameters"  # papermill's own cell gets a random id otherwise


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
