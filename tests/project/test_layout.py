"""The layout that README and CONTRIBUTING promise: small modules, small folders, imports that point down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

from dvpo_lib.experiments.import_graph import library_imports

FLOORS = ["common", "functional", "models", "rl", "tasks", "noise", "reporting", "experiments", "chain"]
MODULES = sorted((ROOT / "dvpo_lib").rglob("*.py"))


def floor_of(module: str) -> int | None:
    """The floor of a dotted name of the library; None for the package itself."""
    name = module.split(".")[1] if "." in module else ""
    return FLOORS.index(name) if name in FLOORS else None


def test_every_package_is_a_floor():
    assert {p.name for p in (ROOT / "dvpo_lib").iterdir() if any(p.glob("*.py"))} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / "dvpo_lib").as_posix())
def test_imports_point_down(path: Path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = floor_of(module)
    if own is None:  # the public face and the command line stand on top
        return
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    for name in library_imports(path.read_text(encoding="utf-8"), package):
        assert (floor_of(name) or 0) <= own, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / "dvpo_lib").as_posix())
def test_modules_are_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_folders_are_small():
    for folder in (ROOT / "dvpo_lib", *(p for p in (ROOT / "dvpo_lib").rglob("*") if p.is_dir())):
        entries = [p.name for p in folder.iterdir() if not p.name.startswith("__")]
        assert len(entries) <= 10, f"{folder}: {sorted(entries)}"


def test_every_module_says_what_it_holds():
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not tree.body or ast.get_docstring(tree) or path.name == "__main__.py", f"{path} has no docstring"
