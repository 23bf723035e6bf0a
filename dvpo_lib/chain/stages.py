"""What a notebook knows of the chain: its settings, where its inputs lie and where its outputs go.

dvc.yaml is the one place that says which settings a stage tracks and which files it writes; `open_stage` reads it
there, for JupyterLab and for the chain alike:

    here = open_stage("train@dvpo")
    here.params.methods                          # only what the stage tracks
    here.save_table("curves.csv", frame)         # only what the stage declares

A notebook reads its inputs by their plain paths from the project's root (`data/base`), and writes under `out`
(`work/lab` in JupyterLab); `chain.runner` moves the finished files from there into place.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.common.settings_tree import ConfigError, read_yaml, set_dotted, to_builtins


class StageError(RuntimeError):
    """A stage that cannot run or did not finish; the message is all that the user needs."""


@dataclass(frozen=True)
class StageSpec:
    """A stage of dvc.yaml with its templates filled in. Paths are relative to the project's root."""

    name: str
    notebook: str
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]  # metrics and plots included

    @property
    def results(self) -> str:
        """The folder of the stage's rendered notebook, metrics and tables."""
        return str(Path(next(out for out in self.outs if out.endswith("/notebook.ipynb"))).parent)


def project_root(start: str | Path = ".") -> Path:
    """The nearest folder at or above `start` that holds dvc.yaml and params.yaml; raises ConfigError without one."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise ConfigError(f"{start}: neither here nor above is there a folder with dvc.yaml and params.yaml")


def read_stages(root: str | Path = ".", changes: Mapping[str, Any] | None = None) -> dict[str, StageSpec]:
    """All notebook stages of dvc.yaml by name; a `foreach` over a table of params.yaml gives a `stage@row` each."""
    root = Path(root)
    values = set_dotted(to_builtins(read_yaml(root / "params.yaml")), changes or {})
    stages = {}
    for name, entry in to_builtins(read_yaml(root / "dvc.yaml"))["stages"].items():
        if "foreach" not in entry:
            stages[name] = _spec(name, entry, values)
            continue
        for key, item in values[entry["foreach"].strip("${} ")].items():
            stages[f"{name}@{key}"] = _spec(f"{name}@{key}", entry["do"], {**values, "key": key, "item": item})
    return stages


def _spec(name: str, entry: dict, values: dict) -> StageSpec:
    def fill(text: str) -> str:
        return re.sub(r"\$\{\s*([\w.]+)\s*\}", lambda match: str(_lookup(values, match[1])), text)

    def paths(field: str) -> tuple[str, ...]:
        return tuple(fill(next(iter(item)) if isinstance(item, dict) else item) for item in entry.get(field, []))

    deps = paths("deps")
    notebook = next((dep for dep in deps if dep.endswith(".ipynb")), "")
    return StageSpec(name, notebook, paths("params"), deps, paths("outs") + paths("metrics") + paths("plots"))


def _lookup(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if part not in values:
            raise ConfigError(f"dvc.yaml: `${{{dotted}}}` is not in params.yaml")
        values = values[part]
    return values


class Stage:
    """One stage as its notebook sees it (made by `open_stage`)."""

    def __init__(self, spec: StageSpec, out: Path, params: Params):
        self.spec, self.out, self.params = spec, out, params

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def results(self) -> Path:
        """The folder for this notebook's own results."""
        folder = self.out / self.spec.results
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, declared: str) -> Path:
        """Where to write an output (or a file in an output folder) that dvc.yaml declares by its path from the root.

        Parent folders are made. Raises ConfigError where the stage declares no such output: DVC would lose it."""
        if not any(Path(declared).is_relative_to(out) for out in self.spec.outs):
            raise ConfigError(f"dvc.yaml: stage {self.name} declares no output {declared}")
        path = self.out / declared
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json (`dvc metrics show`): nested mappings of finite numbers, keys sorted."""
        text = json.dumps(_numbers(metrics, "metrics"), indent=2, sort_keys=True) + "\n"
        self.path(f"{self.spec.results}/metrics.json").write_text(text, encoding="utf-8")

    def save_table(self, name: str, frame: Any) -> None:
        """Writes a DataFrame as CSV to `name` inside the results folder, without its index, to eight digits."""
        path = self.path(f"{self.spec.results}/{name}")
        frame.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


def _numbers(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _numbers(item, f"{where}.{key}") for key, item in value.items()}
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, (int, float)) and math.isfinite(number):
        return number
    raise ValueError(f"{where} is no finite number: {value!r}")


def open_stage(stage: str, out: str = "work/lab", changes: Mapping[str, Any] | None = None) -> Stage:
    """Opens a stage of dvc.yaml for its notebook and makes the project's root the working directory.

    stage: its name, `train@dvpo` for a row of a `foreach`; out: the folder that stands for the root when writing;
    changes: settings to try out, {"training.learning_rate": 3e-4}. Raises ConfigError for an unknown stage or a wrong
    setting."""
    root = project_root()
    os.chdir(root)  # notebooks/ in JupyterLab, the root already in the chain: the same paths in both
    stages = read_stages(root, changes)
    if stage not in stages:
        raise ConfigError(f"dvc.yaml: there is no stage {stage}; there are: {', '.join(stages)}")
    params = load_params(root / "params.yaml", stages[stage].params, reader=f"stage {stage}", changes=changes)
    return Stage(stages[stage], Path(out), params)
