"""Trees of settings: dotted names such as `training.learning_rate`, and trees merged into trees."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """An invalid setting; the message names its key and, if it comes from a file, file and line."""


def cut_text(value: Any, limit: int = 200) -> str:
    """A value as text for a message, cut to a length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def to_builtins(tree: Any) -> Any:
    """Copies a tree into dicts, lists and scalars of Python's own types."""
    if isinstance(tree, dict):
        return {str(key): to_builtins(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [to_builtins(value) for value in tree]
    for kind in (bool, int, float, str):  # ruamel's subclasses remember how a number was spelled
        if isinstance(tree, kind):
            return kind(tree)
    return tree


def get_dotted(tree: Mapping[str, Any], dotted: str) -> Any:
    """Looks up a setting by its dotted name.

    Args:
        tree: Nested mappings.
        dotted: For example "training.learning_rate".

    Returns:
        The value, or the subtree if the name ends at a mapping.

    Raises:
        ConfigError: If a part of the name does not exist.
    """
    return _descend(tree, dotted.split("."), dotted)


def set_dotted(tree: Any, changes: Mapping[str, Any]) -> Any:
    """Sets values by dotted names, in place. A name may add a key to a mapping, but no mapping in between.

    Args:
        tree: Nested mappings.
        changes: For example {"training.learning_rate": 3e-4}.

    Returns:
        `tree`.

    Raises:
        ConfigError: If a parent of the setting does not exist.
    """
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        parent = _descend(tree, parents, dotted, "changes: ")
        if not isinstance(parent, dict):
            raise ConfigError(f"changes: {cut_text(dotted)}: `{cut_text(parents[-1])}` has no settings below it")
        parent[last] = value
    return tree


def nest_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turns dotted names into a tree: {"critic.q.radius": 0.1} becomes {"critic": {"q": {"radius": 0.1}}}."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def merge_trees(base: Any, top: Mapping[str, Any], *, tables: Iterable[str] = (), only_known: bool = False) -> Any:
    """Merges `top` into `base`, in place: mappings key by key, anything else replaced.

    Args:
        base: Nested mappings; comments of a ruamel tree survive.
        top: The settings that differ.
        tables: Top-level keys of tables. A row that `top` sets to null is dropped from its table.
        only_known: Refuse keys that `base` does not have.

    Returns:
        `base`.

    Raises:
        ConfigError: If `only_known` and a key is new; the message names it by its dotted name.
    """
    return _merge(base, top, tuple(tables), only_known, "")


def _merge(base: Any, top: Mapping[str, Any], tables: tuple[str, ...], only_known: bool, prefix: str) -> Any:
    for key, value in top.items():
        if only_known and key not in base:
            raise ConfigError(f"{cut_text(f'{prefix}{key}')}: there is no such setting{did_you_mean(key, base)}")
        if not (isinstance(value, Mapping) and isinstance(base.get(key), dict)):
            base[key] = value
            continue
        if key in tables:
            for row in [row for row, settings in value.items() if settings is None]:
                base[key].pop(row, None)
            value = {row: settings for row, settings in value.items() if settings is not None}
        _merge(base[key], value, (), only_known, f"{prefix}{key}.")
    return base


def _descend(tree: Any, parts: Iterable[str], dotted: str, place: str = "") -> Any:
    for part in parts:
        if not isinstance(tree, Mapping) or part not in tree:
            raise ConfigError(f"{place}{cut_text(dotted)}: there is no `{cut_text(part)}`{did_you_mean(part, tree)}")
        tree = tree[part]
    return tree


def did_you_mean(name: Any, known: Any) -> str:
    """The end of an error message that suggests the known name closest to a wrong one; empty if none is close."""
    names = [str(key) for key in known] if isinstance(known, Iterable) and not isinstance(known, str) else []
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
