"""Trees of settings: YAML 1.2 files, dotted names, one tree laid over another, and the error for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError


class ConfigError(ValueError):
    """A setting that cannot be used; the message names file, line and key."""


def read_yaml(path: str | Path) -> Any:
    """The round-trip tree (comments and line numbers kept) of a YAML 1.2 file.

    Raises ConfigError where the file is missing or is no YAML mapping."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        tree = YAML().load(path)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path.name}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}:1: a mapping of sections is expected")
    return tree


def plain(tree: Any) -> Any:
    """The same tree of plain dicts, lists and scalars."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [plain(value) for value in tree]
    for kind in (bool, int, float, str):  # ruamel keeps the spelling of numbers in subclasses
        if isinstance(tree, kind):
            return kind(tree)
    return tree


def overlay(base: Any, top: Mapping[str, Any], tables: Iterable[str] = ()) -> Any:
    """Lays `top` over `base` in place, mapping by mapping. In a table, a row set to null is dropped."""
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            dropped = [row for row, settings in value.items() if settings is None] if key in tables else []
            for row in dropped:
                base[key].pop(row, None)
            overlay(base[key], {row: value[row] for row in value if row not in dropped}, tables=())
        else:
            base[key] = value
    return base


def set_dotted(tree: Any, changes: Mapping[str, Any]) -> Any:
    """Applies {"training.learning_rate": 3e-4} to a tree in place; the last part may be new, its parents may not."""
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            if not isinstance(node, dict) or part not in node:
                raise ConfigError(f"changes: {dotted}: there is no `{part}`{suggestion(part, node)}")
            node = node[part]
        node[last] = value
    return tree


def suggestion(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1) if known else []
    return f"; did you mean `{close[0]}`?" if close else ""
