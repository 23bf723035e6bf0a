"""Checks of single settings, with errors that name the setting."""

from __future__ import annotations

import functools
import typing
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.common.tables import short_repr


def parsed_setting(name: str, text: str) -> Any:
    """The value of a setting that was given as JSON.

    Raises:
        ValueError: If it is no JSON; the message names the setting.
    """
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}: {short_repr(text)}") from None


def validated_setting(name: str, kind: Any, value: Any, strict: bool | None = None) -> Any:
    """The value of a setting as one of this type.

    Args:
        name: Of the setting.
        kind: Its type.
        value: What was given.
        strict: Whether a value of another type is refused rather than converted; None: as the type says.

    Raises:
        ValueError: If it is none; the message names the setting, or the one inside it.
    """
    try:
        return TypeAdapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = [str(part) for part in first["loc"] if "[" not in str(part) and "Settings" not in str(part)]
        place, problem = ".".join([name, *inner]), first["msg"].replace("Input should", "should")
        raise ValueError(f"{place}: {problem}, not {short_repr(first['input'])}") from None


@functools.cache
def setting_types(settings: type) -> dict[str, Any]:
    """The types of a class's own settings that do not take one of a fixed list."""
    hints = typing.get_type_hints(settings)
    names = [name for name in settings.__annotations__ if name[0] != "_"]
    return {name: hints[name] for name in names if name not in setting_choices(settings)}


@functools.cache
def setting_choices(settings: type) -> dict[str, tuple]:
    """The values of each own setting of a class that takes one of a fixed list."""
    found, hints = {}, typing.get_type_hints(settings)
    for name in settings.__annotations__:
        kinds = [hints[name], *typing.get_args(hints[name])]
        literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
        if literals:
            found[name] = tuple(value for literal in literals for value in typing.get_args(literal))
    return found
