"""params.yaml as a typed, validated tree.

Every settings class lives in the module that uses it; the table `SECTIONS` says which top-level key of params.yaml has
which type. Types are imported only when their section is read, so that a stage depends on no module whose settings it
does not track. YAML is read as version 1.2 (`1e-4` is a number), as DVC reads it.

A wrong file gives one `ConfigError` that names file, line and key:
    params.yaml:31: training.learning_rte: unknown parameter; did you mean `learning_rate`?
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError


class ConfigError(ValueError):
    """A setting that cannot be used; the message names file, line and key."""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RuntimeSettings:
    """How a run is carried out on this machine. No stage tracks it: it must not change any result."""

    workers: Annotated[int, Field(ge=1)] | None = None  # processes that train seeds side by side; null: one per core
    cell_timeout: Annotated[int, Field(ge=1)] = 6 * 3600  # seconds after which a notebook's cell is given up
    expected_minutes: Annotated[float, Field(gt=0)] = 30  # what `make repro` announces, measured on two cores


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MethodSettings:
    """One row of the comparison: a method of `dvpo_lib.methods.METHODS` and where its critic comes from."""

    critic: str  # a row of `critics`
    training: dict[str, Any] = Field(default_factory=dict)  # what differs from `training` for this method alone


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AblationSettings:
    """The tail-shaping ablation (notebook 04)."""

    noise: str = "spikes"  # a row of `noises`
    seeds: Annotated[int, Field(ge=1)] = 4
    leave_one_out: bool = False  # add the rows that switch off one term each


@dataclass(frozen=True)
class Section:
    """What one top-level key of params.yaml holds."""

    type: Any  # a type, or "module:Name" of a settings class
    table: bool = False  # many named rows of that type or null; a stage may track single rows

    def resolve(self) -> Any:
        """The type itself; imports its module where it is given by name."""
        found = self.type
        if isinstance(found, str):
            module, name = found.split(":")
            found = getattr(importlib.import_module(module), name)
        return dict[str, found | None] if self.table else found


SECTIONS: dict[str, Section] = {
    "seed": Section(Annotated[int, Field(ge=0)]),
    "seeds": Section(Annotated[int, Field(ge=1)]),
    "families": Section(Annotated[list[Literal["math", "science", "dialogue"]], Field(min_length=1)]),
    "tasks": Section("dvpo_lib.tasks:TaskSettings"),
    "policy": Section("dvpo_lib.models:PolicySettings"),
    "noises": Section("dvpo_lib.noise:NoiseSettings", table=True),
    "pseudo_labels": Section("dvpo_lib.pseudo_labels:VoteSettings"),
    "reward_model": Section("dvpo_lib.reward_models:RewardModelSettings"),
    "train_noises": Section(Annotated[list[str], Field(min_length=1)]),
    "budget": Section(Annotated[int, Field(ge=1)]),
    "training": Section("dvpo_lib.methods:DVPOConfig"),
    "critics": Section("dvpo_lib.critics:CriticSettings", table=True),
    "methods": Section(MethodSettings, table=True),
    "ablation": Section(AblationSettings),
    "evaluation": Section("dvpo_lib.runs:EvaluationSettings"),
    "real": Section("dvpo_lib.real:RealSettings"),
    "runtime": Section(RuntimeSettings),
}
UNTRACKED = ("runtime",)  # readable by every stage, tracked by none
REFERENCES = {  # settings that name a row of another section
    "train_noises.*": "noises",
    "methods.*.critic": "critics",
    "ablation.noise": "noises",
}


class Params:
    """The settings that one stage tracks, as attributes; reading any other section is an error that says what to do."""

    def __init__(self, sections: Mapping[str, Any], reader: str = "this reader"):
        self.__dict__.update(sections)
        self.__dict__["_reader"] = reader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in SECTIONS:
            raise AttributeError(f"{self._reader} does not track `{name}`: add it to the stage's `params:` in dvc.yaml")
        raise AttributeError(f"params.yaml has no section `{name}`{_suggest(name, SECTIONS)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("settings are read-only: edit params.yaml, or pass `changes` to open_stage")


class Rows(dict):
    """The tracked rows of a table; asking for a row that is not tracked is an error that says what to do."""

    def __init__(self, rows: Mapping[str, Any], section: str, reader: str):
        super().__init__(rows)
        self.section, self.reader = section, reader

    def __missing__(self, row: str) -> Any:
        raise KeyError(f"{self.reader} does not track `{self.section}.{row}` (it tracks: {', '.join(self) or 'none'})")


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


def overlay(base: Any, top: Mapping[str, Any], tables: Iterable[str] | None = None) -> Any:
    """Lays `top` over `base` in place, mapping by mapping. In a table, a row set to null is dropped."""
    tables = [name for name, section in SECTIONS.items() if section.table] if tables is None else tables
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
                raise ConfigError(f"changes: {dotted}: there is no `{part}`{_suggest(part, node)}")
            node = node[part]
        node[last] = value
    return tree


def load_params(path: str | Path = "params.yaml", tracked: Iterable[str] | None = None, *, reader: str = "this reader",
                changes: Mapping[str, Any] | None = None, overlaid: str | Path | None = None) -> Params:
    """Reads and validates params.yaml.

    `tracked`: names of sections ("training") and of rows of tables ("critics.quantile"); None reads everything and
    checks what one section says of another. `changes`: dotted settings to lay over the file. `overlaid`: a
    profile's file, laid over the first. Raises ConfigError with file, line and key of the first wrong setting."""
    tree = read_yaml(path)
    files = {str(Path(path).name): tree}
    if overlaid is not None:
        top = read_yaml(overlaid)
        files = {str(Path(overlaid)): top, str(Path(path).name): read_yaml(path)}
        tree = overlay(tree, top)
    values = set_dotted(plain(tree), changes or {})

    def fail(location: tuple, problem: str) -> typing.NoReturn:
        dotted = ".".join(map(str, location))
        raise ConfigError(f"{_place(files, location, changes or {})}: {dotted}: {problem}")

    for name in values:
        if name not in SECTIONS:
            fail((name,), f"unknown parameter{_suggest(name, SECTIONS)}")
    wanted = _wanted(tracked)
    sections = {}
    for name, rows in wanted.items():
        if name not in values and name not in UNTRACKED:
            fail((name,), "this section is missing")
        value = values.get(name, {})
        if rows is not None:
            for row in rows:
                if row not in value:
                    fail((name, row), f"there is no such row{_suggest(row, value)}")
            value = {row: value[row] for row in rows}
        sections[name] = _validate(name, value, fail)
        if hasattr(sections[name], "missing"):  # settings that name files are held to them before anything runs
            for field, problem in sections[name].missing(Path(path).parent).items():
                fail((name, field), problem)
        if SECTIONS[name].table:
            sections[name] = Rows(sections[name], name, reader)
    params = Params(sections, reader)
    if tracked is None:
        _check_references(values, fail)
        # By name, as the types of sections are: no stage depends on the checks.
        for location, problem in importlib.import_module("dvpo_lib.checks").contradictions(params, values):
            fail(location, problem)
    return params


def _wanted(tracked: Iterable[str] | None) -> dict[str, list[str] | None]:
    """{section: rows, or None for the whole of it}, with the sections that every stage may read."""
    if tracked is None:
        return dict.fromkeys(SECTIONS)
    wanted: dict[str, list[str] | None] = dict.fromkeys(UNTRACKED)
    for entry in tracked:
        name, _, row = entry.partition(".")
        if name not in SECTIONS or (row and not SECTIONS[name].table):
            raise ConfigError(f"dvc.yaml: `{entry}` is neither a section of params.yaml nor a row of one of its tables")
        if not row:
            wanted[name] = None
        elif wanted.get(name, []) is not None:
            wanted[name] = [*(wanted.get(name) or []), row]
    return wanted


def _validate(name: str, value: Any, fail) -> Any:
    kind = SECTIONS[name].resolve()
    try:  # by way of JSON: strict (no "5" for 5) and yet takes mappings for settings classes
        return pydantic.TypeAdapter(kind).validate_json(json.dumps({} if value is None else value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = tuple(part for part in first["loc"] if not _is_branch(part))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            fail((name, *location), f"unknown parameter{_suggest(location[-1], _fields(kind, location[:-1]))}")
        if first["type"] == "missing":
            fail((name, *location), "this setting is missing")
        fail((name, *location), f"{first['msg'].replace('Input should', 'should')}, not {first['input']!r}")


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names the branch of a union and no key of the file."""
    return isinstance(part, str) and (part in ("int", "float", "str", "bool", "constrained-int") or "[" in part)


def _fields(kind: Any, location: tuple) -> list[str]:
    """The names of the settings at a location below a section's type, for suggestions."""
    for part in (*location, None):
        while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
            kind = typing.get_args(kind)[0]
        if part is None:
            break
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(part)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _check_references(values: dict, fail) -> None:
    """Every name that one section gives of a row of another must exist there."""
    for pattern, table in REFERENCES.items():
        for location, name in _matches(values, pattern.split(".")):
            if name not in values[table]:
                fail(location, f"`{name}` is no row of `{table}`{_suggest(name, values[table])}")


def _matches(node: Any, parts: list[str], location: tuple = ()) -> list[tuple[tuple, Any]]:
    if not parts:
        return [(location, node)]
    keys = range(len(node)) if isinstance(node, list) else node
    keys = keys if parts[0] == "*" else [parts[0]] if parts[0] in keys else []
    return [found for key in keys for found in _matches(node[key], parts[1:], (*location, key))]


def _suggest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1) if known else []
    return f"; did you mean `{close[0]}`?" if close else ""


def _place(files: Mapping[str, Any], location: tuple, changes: Mapping[str, Any]) -> str:
    """"file:line" of a location: of the first file that holds all of it, else of the deepest parent in the last one."""
    if ".".join(map(str, location)) in changes:
        return "changes"
    best, depth = next(iter(files)) + ":1", 0
    for file, node in reversed(files.items()):
        for level, part in enumerate(location, start=1):
            if not (isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int)):
                break
            line = (node.lc.item(part) if isinstance(node, list) else node.lc.key(part))[0] + 1
            best, depth = (f"{file}:{line}", level) if level >= depth else (best, depth)
            node = node[part]
    return best
