"""Packaging: pyproject.toml, constraints.txt, environment.yml and the environment agree; the import is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import dvpo_lib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
TRAINER_PACKAGES = ("common", "functional", "models", "rl", "tasks", "noise", "experiments/launch")
PARTS = {  # top-level module -> the distribution that brings it, if their names differ or another one depends on it
    "ruamel": "ruamel.yaml",
    "PIL": "pillow",
    "pyarrow": "datasets",
    "huggingface_hub": "transformers",
    "configobj": "dvc",
    "pathspec": "dvc",
    "IPython": "ipykernel",
    "jupyter_client": "ipykernel",
    "markupsafe": "jinja2",
}


def required(extra: str | None = None) -> dict[str, Requirement]:
    """The requirements of the package or of one of its extras, the extras in it included, by canonical name."""
    found = {}
    for text in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found |= {name: r for part in requirement.extras for name, r in required(part).items()}
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def test_every_direct_dependency_is_pinned_and_installed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(line.split("==")[0]): Requirement(line) for line in lines if not line.startswith("#")}
    assert all(
        requirement.specifier.contains(str(pins[name].specifier)[2:]) for name, requirement in required("docs").items()
    )
    for name, requirement in (required() | required("dev")).items():
        assert requirement.specifier.contains(version(requirement.name)), requirement
        assert pins[name].specifier.contains(version(requirement.name)), f"{pins[name]} is not what is installed"


def test_conda_environment_installs_the_same():
    environment = YAML(typ="safe").load(ROOT / "environment.yml")
    plain, (pip,) = ([d for d in environment["dependencies"] if isinstance(d, kind)] for kind in (str, dict))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extra = re.search(r"^EXTRA \?= (\w+)$", makefile, re.MULTILINE)[1]
    assert pip == {"pip": ["--constraint constraints.txt", f"--editable .[{extra}]"]}
    python = next(d for d in plain if d.startswith("python=")).removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    versions = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert python in versions and all(SpecifierSet(PROJECT["requires-python"]).contains(v) for v in versions)


def imported_packages(path: Path) -> set[str]:
    """Top-level modules outside the standard library that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"dvpo_lib"}


@pytest.mark.parametrize(
    "package",
    [*sorted(p.name for p in (ROOT / "dvpo_lib").iterdir() if (p / "__init__.py").exists()), "experiments/launch"],
)
def test_a_user_of_the_trainer_needs_no_notebooks(package):
    """Trainer packages import base dependencies, the others those of `pipeline` as well; optional ones have extras."""
    known = required() | ({} if package in TRAINER_PACKAGES else required("pipeline"))
    optional = {
        name
        for extra in set(PROJECT["optional-dependencies"]) - {"pipeline", "dev", "docs"}
        for name in required(extra)
    }
    for path in (ROOT / "dvpo_lib" / package).rglob("*.py"):
        for module in imported_packages(path):
            name = canonicalize_name(PARTS.get(module, module))
            assert name in known or name in optional | {"wandb"}, f"{path}: {module} is no dependency of {package}"


def test_the_import_is_light():
    """It loads nothing heavy, and takes under 3 seconds beyond torch's, public names included."""
    heavy = "dvc papermill jupyter_client jupyterlab nbconvert matplotlib IPython seaborn".split()
    code = f"""
import sys, time
import dvpo_lib
assert not set(sys.modules) & {{*{heavy}, "torch", "datasets"}}
import torch
start = time.process_time()
import dvpo_lib.rl.methods, dvpo_lib.models.critic_training, dvpo_lib.noise.sources
assert not set(sys.modules) & {{*{heavy}}}
assert time.process_time() - start < 3
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_version_everywhere():
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "dvpo_lib/__about__.py"
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert str(citation["version"]) == dvpo_lib.__version__
    assert f"## {dvpo_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (
        "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8") and PROJECT["license"] == citation["license"]
    )
    assert PROJECT["urls"]["Paper"] == citation["preferred-citation"]["url"]


def test_description_of_the_package_has_no_dead_link():
    """README.md as `pip` and a package index show it: links lead to addresses, or are text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert "](" in (ROOT / "README.md").read_text(encoding="utf-8") and "[" in text
    assert all(address.startswith("http") for address in re.findall(r"\]\(([^)]*)\)", text))


def test_a_missing_extra_is_one_clear_message(monkeypatch, capsys):
    from dvpo_lib.__main__ import command_line

    def run_command():
        import papermill  # noqa: F401

    monkeypatch.setitem(sys.modules, "dvpo_lib.chain.cli", SimpleNamespace(main=run_command))
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.setattr(sys, "argv", ["dvpo", "repro"])
    assert command_line() == 1
    shown = capsys.readouterr().err
    assert (
        shown == "error: the package papermill is missing; commands need the extra: pip install 'dvpo-lib[pipeline]'\n"
    )


def test_every_public_name_resolves():
    for name in dvpo_lib.__all__:
        assert getattr(dvpo_lib, name) is not None
    assert set(dvpo_lib.__all__) <= set(dir(dvpo_lib))


def test_the_lock_has_the_pinned_versions_with_hashes():
    """`make lock` writes what `make install` installs; beside it, packages of other platforms and the build backend."""
    entry = re.compile(r"^([\w.-]+)==([^\s;\\]+)[^\\\n]*(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {canonicalize_name(name): version for name, version in entry.findall(text)}
    assert len(locked) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)), "an entry has no hash"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    assert {name: pins.get(name, version) for name, version in locked.items()} == locked
    assert locked.keys() >= (required() | required("dev")).keys()
    assert len(locked.keys() & pins.keys()) > 200
