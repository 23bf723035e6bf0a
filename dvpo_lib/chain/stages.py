"""The chain as a notebook sees it: the settings that its stage tracks and the files that its stage writes.

dvc.yaml alone says which settings a stage tracks and which files it writes. `open_stage` reads it, in JupyterLab as in
the chain:

    here = open_stage("train@dvpo")
    here.params.methods                          # refuses a section that the stage does not track
    here.save_table("curves.csv", frame)         # refuses a file that the stage does not declare

A notebook reads its inputs by paths from the project's root (`data/base`). It writes under `out`, in JupyterLab
`work/lab`; in the chain, `chain.runner` moves the finished files from there to their places.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.common.settings_tree import ConfigError, set_dotted, to_builtins
from dvpo_lib.common.settings_yaml import read_yaml


class StageError(RuntimeError):
    """A stage that cannot run or did not finish. The message stands alone: it is shown without a traceback."""


@dataclass(frozen=True)
class StageSpec:
    """A stage of dvc.yaml with its templates resolved. Paths are relative to the project's root."""

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
    """Finds the nearest folder at or above `start` that holds dvc.yaml and params.yaml.

    Raises:
        ConfigError: If there is none.
    """
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise ConfigError(f"{start}: no dvc.yaml with a params.yaml beside it, neither here nor in a folder above")


def tool_environment(root: Path) -> dict[str, str]:
    """Variables for DVC and Jupyter: UTF-8 in every locale, and work/home for their files if HOME cannot be used."""
    home, found = os.path.expanduser("~"), {"PYTHONUTF8": "1"}
    if not (os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)):
        (root / "work" / "home").mkdir(parents=True, exist_ok=True)
        found["HOME"] = str((root / "work" / "home").resolve())
    return found


def read_stages(root: str | Path = ".", changes: Mapping[str, Any] | None = None) -> dict[str, StageSpec]:
    """Reads all stages of dvc.yaml, resolved by DVC.

    Args:
        root: The project's root.
        changes: Settings by dotted name that replace those of params.yaml; templates and `foreach` see them.

    Returns:
        Stages by name; a `foreach` gives one `stage@row` for each row of its table.

    Raises:
        ConfigError: If a file cannot be read or a template names a setting that does not exist.
    """
    # Imported here because `import dvpo_lib` must not load DVC. Its resolver takes 0.3 s; `dvc.repo.Repo.index`, which
    # calls the resolver, takes 2 s and cannot see `changes`.
    from dvc.exceptions import DvcException
    from dvc.fs import LocalFileSystem
    from dvc.parsing import DataResolver

    root = Path(root)
    values = set_dotted(to_builtins(read_yaml(root / "params.yaml")), changes or {})
    definition = to_builtins(read_yaml(root / "dvc.yaml"))
    repo = SimpleNamespace(fs=LocalFileSystem(), config={})  # all that the resolver reads of a repository
    try:
        resolver = DataResolver(repo, str(root), definition)
        resolver.context.update(values)  # replaces the sections that it has read from params.yaml
        resolved = resolver.resolve()["stages"]
    except DvcException as error:
        raise ConfigError(str(error)) from None  # names dvc.yaml, the stage and the expression
    return {name: _stage_spec(name, entry) for name, entry in resolved.items()}


def _stage_spec(name: str, entry: Mapping[str, Any]) -> StageSpec:
    def paths(field: str) -> tuple[str, ...]:  # an entry with options is a mapping of one key, its path
        return tuple(next(iter(item)) if isinstance(item, dict) else item for item in entry.get(field, []))

    deps = paths("deps")
    notebook = next((dep for dep in deps if dep.endswith(".ipynb")), "")
    return StageSpec(name, notebook, paths("params"), deps, paths("outs") + paths("metrics") + paths("plots"))


class Stage:
    """A stage as its notebook sees it; `open_stage` makes it.

    Attributes:
        spec: The stage's entry in dvc.yaml.
        out: The folder that stands for the project's root when the notebook writes.
        params: The settings that the stage tracks.
    """

    def __init__(self, spec: StageSpec, out: Path, params: Params):
        self.spec, self.out, self.params = spec, out, params

    @property
    def name(self) -> str:
        """The stage's name in dvc.yaml."""
        return self.spec.name

    @property
    def results(self) -> Path:
        """The folder for metrics and tables of this notebook, made on first use."""
        folder = self.out / self.spec.results
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, declared: str) -> Path:
        """Returns the place to write an output to, and makes its parent folders.

        Args:
            declared: An output of the stage in dvc.yaml, or a file in one that is a folder, relative to the root.

        Raises:
            ConfigError: If the stage declares no such output; DVC would not keep it.
        """
        inside = ".." not in Path(declared).parts
        if not (inside and any(Path(declared).is_relative_to(out) for out in self.spec.outs)):
            raise ConfigError(f"dvc.yaml: stage {self.name} declares no output {declared}")
        path = self.out / declared
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json, which `dvc metrics` shows: nested mappings of finite numbers or null, keys sorted."""
        text = json.dumps(_finite_numbers(metrics, "metrics"), indent=2, sort_keys=True) + "\n"
        self.path(f"{self.spec.results}/metrics.json").write_text(text, encoding="utf-8")

    def save_table(self, name: str, frame: Any) -> None:
        """Writes a DataFrame to a CSV file of the results folder, without its index, with eight significant digits."""
        path = self.path(f"{self.spec.results}/{name}")
        frame.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


def _finite_numbers(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite_numbers(item, f"{name}.{key}") for key, item in value.items()}
    number = value.item() if hasattr(value, "item") else value
    if number is None:  # missing
        return None
    if isinstance(number, (int, float)) and math.isfinite(number):
        return number
    raise ValueError(f"{name}: expected a finite number, not {value!r}")


def open_stage(stage: str, out: str = "work/lab", changes: Mapping[str, Any] | None = None) -> Stage:
    """Opens a stage for its notebook and changes the working directory to the project's root.

    Args:
        stage: Its name in dvc.yaml; `train@dvpo` for a row of a `foreach`.
        out: The folder to write under.
        changes: Settings to try without editing params.yaml: {"training.learning_rate": 3e-4}.

    Returns:
        The stage, with its settings validated.

    Raises:
        ConfigError: If there is no such stage, or a setting is wrong.
    """
    root = project_root()
    os.chdir(root)  # JupyterLab starts in notebooks/, the chain in the root: paths are the same in both
    stages = read_stages(root, changes)
    if stage not in stages:
        raise ConfigError(f"dvc.yaml: there is no stage {stage}; there are: {', '.join(stages)}")
    params = load_params(root / "params.yaml", stages[stage].params, reader=f"stage {stage}", changes=changes)
    return Stage(stages[stage], Path(out), params)
