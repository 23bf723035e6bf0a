"""The layout that README and CONTRIBUTING promise: small modules and folders, imports that point down, unique names.

python tests/project/test_layout.py      writes dvpo_lib/README.md, the map of the library
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from dvpo_lib.experiments.import_graph import library_imports

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "dvpo_lib"
MODULES = sorted(LIBRARY.rglob("*.py"))
ROWS = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
MAP = {name: (content, modules.split(", ")) for name, content, modules in ROWS if (LIBRARY / name).is_dir()}
FLOORS = list(MAP)  # in import order
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())


def floor_of(module: str) -> int | None:
    """The position of a module's package in the import order; None for the top of the library."""
    name = module.split(".")[1] if "." in module else ""
    return FLOORS.index(name) if name in FLOORS else None


def definitions(path: Path) -> list[ast.AST]:
    """The public functions and classes at the top level of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    paragraph = " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0].split())
    return re.split(r"\.(?:\s(?=[A-Z])|$)", paragraph)[0]


def library_map() -> str:
    """The text of dvpo_lib/README.md: every module in import order, with its docstring and its public names."""
    lines = [
        "# Map of the library",
        "",
        "Packages in import order: each imports only packages above it. Below a module stand its public functions and",
        "classes. `python tests/project/test_layout.py` writes this file from the modules' docstrings.",
    ]
    for package in FLOORS:
        lines += ["", f"## {package}", "", f"{MAP[package][0]}.", ""]
        files = sorted((LIBRARY / package).rglob("*.py"), key=lambda path: (path.parent.parts, path.name))
        for path in files[1:]:
            place = path.relative_to(LIBRARY)
            if path.name == "__init__.py":
                lines.append(f"- **{place.parent.as_posix()}/**: {first_sentence(path)}.")
                continue
            names = ", ".join(f"`{node.name}`" for node in definitions(path))
            lines.append(f"- [{place.as_posix()}]({place.as_posix()}): {first_sentence(path)}." + "  " * bool(names))
            lines += [f"  {names}"] if names else []
    return "\n".join(lines) + "\n"


def test_the_map_of_the_library_is_current():
    expected = library_map()
    found = (LIBRARY / "README.md").read_text(encoding="utf-8")
    assert found == expected, f"`python tests/project/test_layout.py` writes dvpo_lib/README.md:\n\n{expected}"


def test_the_map_in_the_readme_is_the_listing():
    packages = [folder for folder in LIBRARY.iterdir() if any(folder.glob("*.py"))]
    assert set(MAP) == {folder.name for folder in packages}
    for folder in packages:
        content, modules = MAP[folder.name]
        found = [f.stem for f in folder.glob("*.py") if f.name != "__init__.py"]
        found += [f"{f.parent.name}/" for f in folder.glob("*/__init__.py")]
        assert modules == sorted(found), f"README.md, row `{folder.name}`: should list {', '.join(sorted(found))}"
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert docstring.split("\n")[0] == f"{content}."


@each_module
def test_imports_point_down(path: Path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = floor_of(module)
    if own is None:  # the public face and the command line
        return
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    for name in library_imports(path.read_text(encoding="utf-8"), package):
        assert (floor_of(name) or 0) <= own, f"{module} imports {name}, which is above it"


@each_module
def test_modules_are_short_and_documented(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)), "the module has no docstring"
    for node in definitions(path):
        assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_folders_are_small():
    for folder in (LIBRARY, *(path for path in LIBRARY.rglob("*") if path.is_dir())):
        entries = [path.name for path in folder.iterdir() if not path.name.startswith("__")]
        assert len(entries) <= 10, f"{folder}: {sorted(entries)}"


def test_no_public_name_is_defined_twice():
    places = defaultdict(list)
    for path in MODULES:
        for node in definitions(path):
            places[node.name].append(path.relative_to(LIBRARY).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_named_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./]+\.(?:py|ya?ml|toml|txt|json)|[\w.]+(?:/[\w.]+)*/)`", text)
    assert len(named) > 20
    # folders that the chain makes are not in a fresh clone; .gitignore names them
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    for name in named:
        exists = (ROOT / name).exists() or (LIBRARY / name).exists() or name.strip("/") in made
        assert exists, f"CONTRIBUTING.md names {name}"


def test_tables_named_in_contributing_are_in_the_files_of_their_row():
    """A contributor who opens the named file finds the table to extend."""
    count = 0
    for row in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        files = [LIBRARY / name for name in re.findall(r"`([\w./]+\.py)`", row)]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        for name in re.findall(r"`([A-Z][A-Z_]{3,})`", row):
            assert re.search(rf"^{name}\b", text, re.MULTILINE), f"CONTRIBUTING.md: no {name} in the files of its row"
            count += 1
    assert count >= 6


def test_files_of_tests_have_names_of_their_own():
    """Pytest refuses two files of one name in folders without `__init__.py`."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


if __name__ == "__main__":
    (LIBRARY / "README.md").write_text(library_map(), encoding="utf-8")
