"""The run store: many runs side by side, resumable, never done twice.

A *spec* is a frozen dataclass that says everything its run depends on, with the names of its fields that are paths in
`inputs`, those that are mere names in `unkeyed`, and a method `execute(folder, scratch)` that writes the result into
`folder` and may keep resumable state in `scratch`. Its key is a hash of its fields, of its inputs' bytes, of the code
that it executes (comments and docstrings aside) and of the libraries' versions. Finished runs lie under their key in
the run store (`.runs/`, or $DVPO_STORE), which DVC and git ignore: a killed stage goes on where it was, a changed
figure trains nothing again, and two notebooks that need the same run share it. Every run uses one thread (or its
class's `threads`), so results do not depend on how many run at a time.
"""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from dvpo_lib.experiments.import_graph import reachable


def store() -> Path:
    """The run store's folder."""
    return Path(os.environ.get("DVPO_STORE", ".runs")).resolve()


def file_hash(path: str | Path) -> str:
    """SHA-256 over a file's bytes, or over the names and bytes of all files of a folder."""
    path, digest = Path(path), hashlib.sha256()
    for p in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(p.relative_to(path).as_posix().encode() + b"\0" + p.read_bytes())
    return digest.hexdigest()


@functools.cache
def code_hash(module: str) -> str:
    """SHA-256 over what a module, and every module of this package that it imports, however deep, does."""
    root = Path(__file__).parents[2]
    files = sorted(reachable([module], root))
    return hashlib.sha256("".join(f + behaviour((root / f).read_text("utf-8")) for f in files).encode()).hexdigest()


def behaviour(source: str) -> str:
    """A source without what changes no result: comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = body[1:]
    return ast.dump(tree)


def versions() -> dict[str, str]:
    """The libraries that results depend on."""
    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def spec_key(spec) -> str:
    """The name of a run in the store."""
    content = {k: v for k, v in dataclasses.asdict(spec).items() if k not in getattr(spec, "unkeyed", ())}
    content |= {name: file_hash(content[name]) for name in spec.inputs if content[name] is not None}
    content |= {"spec": type(spec).__name__, "code": code_hash(type(spec).__module__), **versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def work(spec, key: str, root: Path) -> None:
    """Executes one spec unless its result is there; a result appears whole or not at all.

    Another process that wants the same run (a notebook in JupyterLab beside the chain) waits and finds it done.
    """
    scratch = root / "unfinished" / key
    scratch.mkdir(parents=True, exist_ok=True)
    with open(root / "unfinished" / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system, however the process ends
        if not (root / key).is_dir():
            torch.set_num_threads(getattr(spec, "threads", 1))
            scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="result-", dir=scratch))
            spec.execute(folder, scratch)
            os.replace(folder, root / key)
        shutil.rmtree(scratch, ignore_errors=True)
        Path(lock.name).unlink(missing_ok=True)


def execute(specs: Sequence, workers: int | None = None, progress: str | None = "runs") -> list[Path]:
    """Results of all specs, in their order, each a folder in the store; what is missing is computed side by side.

    Args:
        workers: processes at a time; default: one a core.
        progress: label of the progress bar; none where None.
    """
    from joblib import Parallel, cpu_count, delayed

    root = store()
    keys = [spec_key(spec) for spec in specs]
    todo = {key: spec for key, spec in zip(keys, specs) if not (root / key).is_dir()}
    if todo:
        count = min(workers or cpu_count(), len(todo))
        pool = Parallel(n_jobs=count, return_as="generator_unordered")
        threads = torch.get_num_threads()
        try:
            jobs = pool(delayed(work)(spec, key, root) for key, spec in todo.items())
            for _ in tqdm(jobs, total=len(todo), desc=progress, disable=progress is None, mininterval=1):
                pass
        finally:
            torch.set_num_threads(threads)
    return [root / key for key in keys]


def collect(folders: Iterable[Path], name: str, specs: Sequence = ()) -> pd.DataFrame:
    """One table out of the `name.csv` of all runs, with the `labels` of their specs, where given, as first columns."""
    tables = [pd.read_csv(Path(f) / f"{name}.csv") for f in folders]
    for table, spec in zip(tables, specs, strict=False):
        for i, (column, value) in enumerate(spec.labels.items()):
            table.insert(i, column, value)
    return pd.concat(tables, ignore_index=True)
