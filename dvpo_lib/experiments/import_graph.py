"""Import graph of this package: the run store hashes all modules that a run's module depends on."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "dvpo_lib"


def notebook_source(path: Path) -> str:
    """The code of a notebook as one module, without IPython lines (magics, shell)."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    lines = "\n".join(cell for cell in code if not cell.startswith("%%")).split("\n")
    return "\n".join("" if line.startswith(("%", "!", "?")) else line for line in lines)


def reachable_files(modules: Iterable[str], root: Path) -> set[str]:
    """Finds the files of modules and of everything of this package that they import, directly or not.

    Args:
        modules: Dotted names; names outside the package are ignored.
        root: The folder that holds the package's folder.

    Returns:
        Paths relative to `root`.
    """
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        file = _file(module, root)
        if file is None or file in found:
            continue
        found.add(file)
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        todo += library_imports((root / file).read_text(encoding="utf-8"), package)
        todo += [module.rpartition(".")[0]] if "." in module else []
    return found


def library_imports(source: str, package: str = "") -> list[str]:
    """Lists the imports of this package in a source, inside functions too, but not under TYPE_CHECKING.

    Args:
        source: Python source.
        package: Dotted name of the package that holds the source, for relative imports.

    Returns:
        Dotted names. `from dvpo_lib import x` gives dvpo_lib and dvpo_lib.x, whether or not x is a module.
    """
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
