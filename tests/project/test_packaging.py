"""Packaging: pyproject.toml, constraints.txt, environment.yml and the environment agree; the import is light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML


def test_every_direct_dependency_is_pinned_and_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): Requirement(line) for line in lines if not line.startswith("#")}
    for requirement in wanted:
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version(requirement.name)), requirement
        assert pin.specifier.contains(version(requirement.name)), f"{pin} is not what is installed"


def test_conda_environment_installs_the_same():
    environment = YAML(typ="safe").load(ROOT / "environment.yml")
    plain, (pip,) = ([d for d in environment["dependencies"] if isinstance(d, kind)] for kind in (str, dict))
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    python = next(d for d in plain if d.startswith("python=")).removeprefix("python=")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(python)


def test_the_package_imports_nothing_heavy():
    modules = "dvc papermill jupyter_client jupyterlab nbconvert datasets"
    code = f"import sys, dvpo_lib; print([m for m in '{modules}'.split() if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import dvpo_lib

    for name in dvpo_lib.__all__:
        assert getattr(dvpo_lib, name) is not None
    assert set(dvpo_lib.__all__) <= set(dir(dvpo_lib))
