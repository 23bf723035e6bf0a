"""Keeps the `deps:` of dvc.yaml in step with what the notebooks really use.

A stage uses the modules that its notebook imports, those that hold the types of the settings it tracks, those that
render its page, and whatever these import in turn. `python -m dvpo_lib.stage deps --write` rewrites dvc.yaml; a test
compares.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from dvpo_lib.config import SECTIONS, UNTRACKED, ConfigError, read_yaml
from dvpo_lib.pipeline import StageSpec, read_stages

PACKAGE = "dvpo_lib"
ALWAYS = (f"{PACKAGE}.render",)  # makes the page of every notebook
DATA_FILES = {f"{PACKAGE}/render.py": (f"{PACKAGE}/page.html.j2",)}  # files that a module reads


def modules_of(spec: StageSpec, root: Path) -> list[str]:
    """The files of the package (relative paths) that a stage uses."""
    sections = {entry.partition(".")[0] for entry in spec.params} | set(UNTRACKED)
    types = [SECTIONS[name].type.split(":")[0] for name in sections if isinstance(SECTIONS[name].type, str)]
    roots = [*imports_of(notebook_source(root / spec.notebook)), *types, *ALWAYS]
    files = reachable(roots, root)
    return sorted({*files, *(extra for file in files for extra in DATA_FILES.get(file, ()))})


def notebook_source(path: Path) -> str:
    """The code of a notebook as one module; lines of IPython (magics, shell) are left out."""
    if not path.is_file():
        raise ConfigError(f"dvc.yaml: notebooks/{path.name} is listed and does not exist")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    lines = "\n".join(cell for cell in code if not cell.startswith("%%")).split("\n")
    return "\n".join("" if line.startswith(("%", "!", "?")) else line for line in lines)


def reachable(modules: Iterable[str], root: Path) -> set[str]:
    """The files of the modules of this package among `modules` and of all that they import, directly or not."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        file = _file(module, root)
        if file is None or file in found:
            continue
        found.add(file)
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        todo += imports_of((root / file).read_text(encoding="utf-8"), package)
        todo += [module.rpartition(".")[0]] if "." in module else []
    return found


def imports_of(source: str, package: str = "") -> list[str]:
    """The modules of this package that a source imports anywhere, functions included, type-checking blocks excluded.

    `from dvpo_lib import x` gives both dvpo_lib and dvpo_lib.x; names that are no modules are dropped later."""
    found = []
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, [base if node.level else "", node.module]))
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        todo += ast.iter_child_nodes(node)
    return [name for name in found if name.partition(".")[0] == PACKAGE]


def _file(module: str, root: Path) -> str | None:
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / candidate).is_file():
            return candidate.as_posix()
    return None


def expected(root: Path) -> dict[str, list[str]]:
    """The modules of each entry of dvc.yaml; those of a `foreach` are the union over its rows."""
    result: dict[str, set[str]] = {}
    for name, spec in read_stages(root).items():
        result.setdefault(name.partition("@")[0], set()).update(modules_of(spec, root))
    return {name: sorted(files) for name, files in result.items()}


def report(root: Path, write: bool = False) -> int:
    """Prints what dvc.yaml lacks or lists in vain; with `write`, corrects it. Exit code 1 where it is left wrong."""
    tree = read_yaml(root / "dvc.yaml")
    wrong = False
    for name, files in expected(root).items():
        entry = tree["stages"][name].get("do", tree["stages"][name])
        listed = [dep for dep in entry["deps"] if str(dep).startswith(f"{PACKAGE}/")]
        for file in sorted({*files} ^ {*listed}):
            wrong = True
            print(f"dvc.yaml: {name}: {file} is {'missing' if file in files else 'listed but not used'}")
        if write:
            entry["deps"][:] = [dep for dep in entry["deps"] if dep not in listed] + files
    if wrong and write:
        yaml = YAML()
        yaml.width, yaml.preserve_quotes = 120, True
        yaml.indent(mapping=2, sequence=4, offset=2)
        with open(root / "dvc.yaml", "w", encoding="utf-8") as file:
            yaml.dump(tree, file)
        print("dvc.yaml is rewritten", file=sys.stderr)
    return int(wrong and not write)
