"""Reads settings from YAML 1.2, in which `1e-4` is a number, and refuses what no setting needs before it is built.

Settings are mappings, lists, texts, numbers, booleans and null. Dates, tags and aliases are refused, as are files that
are too large or nested too deeply to be settings: a reader could hang on them, and a few aliases can stand for millions
of values. An error names file, line and key.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, MappingStartEvent, ScalarEvent

from dvpo_lib.common.settings_tree import ConfigError, cut_text

MOST_BYTES, MOST_VALUES, DEEPEST = 200_000, 5_000, 30
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([Tt ]|$)")
DEEP_LIST = re.compile(r"(?:[\[{]\s*){60}")
LONG_NUMBER = re.compile(r"[-+]?[\d_]{100,}$")


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML 1.2 file with a mapping at its top level.

    Args:
        path: The file.

    Returns:
        ruamel's tree, which keeps comments and line numbers.

    Raises:
        ConfigError: If the file is missing, is no valid YAML, holds no mapping, or holds what no setting needs.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    raw = path.read_bytes()
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{path.name}:1: the file has {len(raw):,} bytes; settings have at most {MOST_BYTES:,}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, key = raw.count(b"\n", 0, error.start) + 1, raw[raw.rfind(b"\n", 0, error.start) + 1 : error.start]
        name = key.partition(b":")[0].strip().decode("utf-8", "replace") if b":" in key else ""
        raise ConfigError(f"{path.name}:{line}: {cut_text(name)}{': ' * bool(name)}not valid UTF-8") from None
    tree = _load(text.replace("\r\n", "\n"), path.name, YAML())
    if not isinstance(tree, dict):
        raise ConfigError(f"{path.name}:1: expected a mapping of sections")
    return tree


def read_yaml_assignment(text: str, option: str) -> tuple[str, Any]:
    """Reads KEY=VALUE of the command line, the value in YAML.

    Args:
        text: The argument.
        option: Names the option in errors, such as "-p".

    Raises:
        ConfigError: If there is no equals sign or no key, or the value is no valid YAML.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{option} {cut_text(text)}: expected KEY=VALUE")
    if len(value) > MOST_BYTES:
        raise ConfigError(f"{option} {cut_text(key)}: the value is too long")
    return key, _load(value, f"{option} {cut_text(key)}", YAML(typ="safe", pure=True))


def _load(text: str, name: str, yaml: YAML) -> Any:
    try:
        _check_events(text, name)
        return yaml.load(text)
    except ConfigError:
        raise
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = cut_text(" ".join((error.problem or "unreadable").split()))
        raise ConfigError(f"{name}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:  # a character that YAML does not allow
        place = getattr(error, "position", 0)
        line = text.count("\n", 0, place) + 1 if isinstance(place, int) else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {cut_text(str(error).splitlines()[0])}") from None
    except (ValueError, ArithmeticError, RecursionError, NotImplementedError) as error:
        problem = cut_text(" ".join(str(error).split()))
        raise ConfigError(f"{name}:1: not valid YAML: {problem}") from None


def _check_events(text: str, name: str) -> None:
    """Follows the events of a document, without building anything, and refuses what no setting needs."""
    keys: list[str | None] = []  # of the open collections; None: a key of a mapping comes next, or a list
    mappings: list[bool] = []
    count = 0
    if deep := DEEP_LIST.search(text):
        text = text[: deep.end()]  # the scanner reads far ahead, in time that grows with the square of the depth
    for event in YAML().parse(text):

        def fail(problem: str, line: int = event.start_mark.line + 1):
            dotted = ".".join(key for key in keys if key is not None)
            raise ConfigError(f"{name}:{line}: {f'{cut_text(dotted)}: ' if dotted else ''}{problem}")

        if isinstance(event, CollectionEndEvent):
            mappings.pop()
            keys.pop()
        elif isinstance(event, (AliasEvent, ScalarEvent, CollectionStartEvent)):
            count += 1
            if count > MOST_VALUES:
                fail(f"more than {MOST_VALUES:,} values")
            if isinstance(event, AliasEvent):
                fail("aliases are not supported; write the settings out")
            if event.tag is not None:
                fail(f"tags such as {cut_text(str(event.tag), 40)} are not supported")
            is_key = bool(mappings) and mappings[-1] and keys[-1] is None
            if isinstance(event, CollectionStartEvent):
                if is_key:
                    fail("a key should be a text")
                if len(mappings) >= DEEPEST:
                    fail(f"nested deeper than {DEEPEST} levels")
                mappings.append(isinstance(event, MappingStartEvent))
                keys.append(None)
                continue
            if is_key:
                keys[-1] = event.value
                if event.value == "<<" and event.implicit[0]:
                    fail("merge keys are not supported; write the settings out")
                continue
            if event.implicit[0] and DATE.match(event.value):
                fail(f"a date is no setting; write a text in quotes: {cut_text(event.value)}")
            if event.implicit[0] and LONG_NUMBER.match(event.value):
                fail(f"this number has too many digits: {cut_text(event.value)}")
        else:
            continue
        if mappings and mappings[-1]:
            keys[-1] = None  # the value is read
