"""Reads and validates params.yaml.

`SECTIONS` maps each top-level key to its settings class, which is defined in the module that uses it. The file is YAML
1.2, as DVC reads it. A wrong file gives one `ConfigError` with file, line and key:

    params.yaml:31: training.learning_rte: unknown parameter; did you mean `learning_rate`?
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from dvpo_lib.chain.checks import SET_BY_THE_CHAIN, contradictions, unusable_values
from dvpo_lib.common.settings_tree import ConfigError, cut_text, did_you_mean, merge_trees, set_dotted, to_builtins
from dvpo_lib.common.settings_yaml import read_yaml
from dvpo_lib.experiments.grids.ablation import AblationSettings
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.run_store.executors import SweepSettings
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings
from dvpo_lib.noise.pseudo_labels import VoteSettings
from dvpo_lib.noise.reward_model import RewardModelSettings
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.rl.training_settings import MethodSettings, TrainingSettings
from dvpo_lib.tasks.evaluation import EvaluationSettings
from dvpo_lib.tasks.families import FAMILIES, TaskSettings


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RuntimeSettings(SweepSettings):
    """How a run is carried out. No stage tracks these settings, so they must not change any result."""

    cell_timeout: Annotated[int, Field(ge=1)] = 6 * 3600  # seconds after which a notebook's cell is given up
    expected_minutes: Annotated[float, Field(gt=0)] = 30  # announced by `make repro`; measured on two cores
    expected_gigabytes: Annotated[float, Field(gt=0)] = 3  # of memory, announced beside it; for two workers


@dataclass(frozen=True)
class Section:
    """The type of one top-level key of params.yaml."""

    type: Any
    table: bool = False  # named rows of that type, or null; a stage may track single rows

    def annotation(self) -> Any:
        """The type of the whole section, for pydantic."""
        return dict[str, self.type | None] if self.table else self.type


SECTIONS: dict[str, Section] = {
    "seed": Section(Annotated[int, Field(ge=0)]),
    "seeds": Section(Annotated[int, Field(ge=1)]),
    "families": Section(Annotated[list[Literal[tuple(FAMILIES)]], Field(min_length=1)]),
    "tasks": Section(TaskSettings),
    "policy": Section(PolicySettings),
    "noises": Section(NoiseSettings, table=True),
    "pseudo_labels": Section(VoteSettings),
    "reward_model": Section(RewardModelSettings),
    "train_noises": Section(Annotated[list[str], Field(min_length=1)]),
    "budget": Section(Annotated[int, Field(ge=1)]),
    "training": Section(TrainingSettings),
    "critics": Section(CriticSettings, table=True),
    "methods": Section(MethodSettings, table=True),
    "ablation": Section(AblationSettings),
    "evaluation": Section(EvaluationSettings),
    "real": Section(RealSettings),
    "runtime": Section(RuntimeSettings),
}
TABLES = tuple(name for name, section in SECTIONS.items() if section.table)
UNTRACKED = ("runtime",)  # readable by every stage, tracked by none
REFERENCES = {  # settings that name a row of another section
    "train_noises.*": "noises",
    "methods.*.critic": "critics",
    "ablation.noise": "noises",
}


class Params:
    """The settings that one stage tracks, as read-only attributes.

    Raises:
        AttributeError: If another section is read; the message says how to track it.
    """

    def __init__(self, sections: Mapping[str, Any], reader: str = "this reader"):
        self.__dict__.update(sections)
        self.__dict__["_reader"] = reader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in SECTIONS:
            raise AttributeError(f"{self._reader} does not track `{name}`: add it to the stage's `params:` in dvc.yaml")
        raise AttributeError(f"params.yaml has no section `{name}`{did_you_mean(name, SECTIONS)}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("settings are read-only: edit params.yaml, or pass `changes` to open_stage")


class TrackedRows(dict):
    """The rows of a table that one stage tracks; a KeyError lists them if another row is read."""

    def __init__(self, rows: Mapping[str, Any], section: str, reader: str):
        super().__init__(rows)
        self.section, self.reader = section, reader

    def __missing__(self, row: str) -> Any:
        raise KeyError(f"{self.reader} does not track `{self.section}.{row}` (it tracks: {', '.join(self) or 'none'})")


def load_params(
    path: str | Path = "params.yaml",
    tracked: Iterable[str] | None = None,
    *,
    reader: str = "this reader",
    changes: Mapping[str, Any] | None = None,
    overlaid: str | Path | None = None,
) -> Params:
    """Reads and validates params.yaml.

    Args:
        path: The file.
        tracked: Sections ("training") and rows of tables ("critics.quantile") to read. None reads everything and also
            checks the sections against each other.
        reader: Names the reader in errors about settings that it does not track.
        changes: Settings by dotted name that replace those of the file.
        overlaid: A profile, merged into the file before the changes.

    Returns:
        The tracked settings.

    Raises:
        ConfigError: If a file cannot be read or a setting is wrong; the message names file, line and key of the first.
    """
    tree = read_yaml(path)
    files = {str(Path(path).name): tree}
    if overlaid is not None:
        top = read_yaml(overlaid)
        files = {str(Path(overlaid)): top, str(Path(path).name): read_yaml(path)}
        merge_trees(tree, top, tables=TABLES)
    values = set_dotted(to_builtins(tree), changes or {})

    def fail(location: tuple, problem: str) -> typing.NoReturn:
        dotted = cut_text(".".join(str(part) or "''" for part in location))
        raise ConfigError(f"{_place(files, location, changes or {})}: {dotted}: {problem}")

    for name in values:
        if name not in SECTIONS:
            fail((name,), f"unknown parameter{did_you_mean(name, SECTIONS)}")
    for location, problem in unusable_values(values, TABLES):
        fail(location, problem)
    wanted = _wanted(tracked)
    sections = {}
    for name, rows in wanted.items():
        if name not in values and name not in UNTRACKED:
            fail((name,), "this section is missing")
        value = values.get(name, {})
        if rows is not None:
            for row in rows:
                if row not in value:
                    fail((name, row), f"there is no such row{did_you_mean(row, value)}")
            value = {row: value[row] for row in rows}
        sections[name] = _validate(name, value, fail)
        if hasattr(sections[name], "missing"):  # files that settings name must exist before anything runs
            for field, problem in sections[name].missing(Path(path).parent).items():
                fail((name, field), problem)
        if SECTIONS[name].table:
            sections[name] = TrackedRows(sections[name], name, reader)
    params = Params(sections, reader)
    if tracked is None:
        _check_references(values, fail)
        for location, problem in contradictions(params):
            fail(location, problem)
    return params


def _wanted(tracked: Iterable[str] | None) -> dict[str, list[str] | None]:
    """{section: tracked rows, or None for all of it}, including the sections that every stage may read."""
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
    kind = SECTIONS[name].annotation()
    try:  # through JSON: strict ("5" is no 5), and yet mappings become settings classes
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = _file_location(value, first["loc"])
        if first["type"] == "missing":
            fail((name, *location, first["loc"][-1]), "this setting is missing")
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            if name == "training" and location[-1] in SET_BY_THE_CHAIN:
                fail((name, *location), f"is not set here but by {SET_BY_THE_CHAIN[location[-1]]}")
            fail((name, *location), f"unknown parameter{did_you_mean(location[-1], _fields(kind, location[:-1]))}")
        message = cut_text(first["msg"].replace("Input should", "should"))
        fail((name, *location), f"{message}, not {cut_text(repr(first['input']))}")


def _file_location(value: Any, location: tuple) -> tuple:
    """pydantic's location without the parts that name no key of the file, such as the branch of a union."""
    found = []
    for part in location:
        if part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value)):
            found.append(part)
            value = value[part]
    return tuple(found)


def _fields(kind: Any, location: tuple) -> list[str]:
    """The names of the settings at a location inside a section's type, for suggestions."""
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
    """Checks that every row that one section names exists in the other section."""
    for pattern, table in REFERENCES.items():
        for location, name in _matches(values, pattern.split(".")):
            if name not in values[table]:
                fail(location, f"`{cut_text(name)}` is no row of `{table}`{did_you_mean(name, values[table])}")


def _matches(node: Any, parts: list[str], location: tuple = ()) -> list[tuple[tuple, Any]]:
    if not parts:
        return [(location, node)]
    keys = range(len(node)) if isinstance(node, list) else node
    keys = keys if parts[0] == "*" else [parts[0]] if parts[0] in keys else []
    return [found for key in keys for found in _matches(node[key], parts[1:], (*location, key))]


def _place(files: Mapping[str, Any], location: tuple, changes: Mapping[str, Any]) -> str:
    """`file:line` of a location in the first file that holds it, else of its deepest parent."""
    if ".".join(map(str, location)) in changes:
        return "changes"
    best, depth = next(iter(files)) + ":1", 0
    for file, node in reversed(files.items()):
        for level, part in enumerate(location, start=1):
            if not (part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))):
                break
            line = (node.lc.item(part) if isinstance(node, list) else node.lc.key(part))[0] + 1
            best, depth = (f"{file}:{line}", level) if level >= depth else (best, depth)
            node = node[part]
    return best
