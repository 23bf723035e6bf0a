"""The run store: runs in parallel, resumable, each computed once.

A *spec* is a frozen dataclass with everything that its run depends on. Its class has

    inputs                    names of the fields that are paths
    not_hashed (optional)     names of the fields that change no result
    threads (optional)        threads of a run, 1 by default, so that results do not depend on the number of workers
    execute(folder, scratch)  a method that writes the result to `folder` and may keep resumable state in `scratch`

The key of a run is a hash of the spec's fields, the bytes of its inputs, the code that it reaches through imports
(without comments and docstrings) and the versions of libraries. Finished runs lie under their key in the run store
(`.runs/`, or $DVPO_STORE), which DVC and git ignore. So an interrupted stage resumes, a changed figure retrains
nothing, and notebooks share the runs that they have in common.
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

from dvpo_lib.experiments.import_graph import reachable_files


def store_folder() -> Path:
    """The folder of the run store."""
    return Path(os.environ.get("DVPO_STORE", ".runs")).resolve()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder."""
    path, digest = Path(path), hashlib.sha256()
    for p in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(p.relative_to(path).as_posix().encode() + b"\0" + p.read_bytes())
    return digest.hexdigest()


@functools.cache
def code_hash(module: str) -> str:
    """SHA-256 of the code of a module and of all modules of this package that it imports, directly or not."""
    root = Path(__file__).parents[2]
    files = sorted(reachable_files([module], root))
    return hashlib.sha256(
        "".join(f + source_without_comments((root / f).read_text("utf-8")) for f in files).encode()
    ).hexdigest()


def source_without_comments(source: str) -> str:
    """The syntax tree of a source as text, without comments, layout and docstrings: they change no result."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = body[1:]
    return ast.dump(tree)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def spec_key(spec) -> str:
    """The key of a run: its folder's name in the store."""
    content = {k: v for k, v in dataclasses.asdict(spec).items() if k not in getattr(spec, "not_hashed", ())}
    content |= {name: file_hash(content[name]) for name in spec.inputs if content[name] is not None}
    content |= {"spec": type(spec).__name__, "code": code_hash(type(spec).__module__), **library_versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def execute_once(spec, key: str, root: Path) -> None:
    """Executes a spec unless its result exists. A result appears complete or not at all.

    A second process that needs the same run (JupyterLab beside the chain) waits and then finds the result.

    Args:
        spec: The spec.
        key: Its key.
        root: Folder of the store.
    """
    scratch = root / "unfinished" / key
    scratch.mkdir(parents=True, exist_ok=True)
    with open(root / "unfinished" / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, however the process ends
        if not (root / key).is_dir():
            torch.set_num_threads(getattr(spec, "threads", 1))
            scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="result-", dir=scratch))
            spec.execute(folder, scratch)
            os.replace(folder, root / key)
        shutil.rmtree(scratch, ignore_errors=True)
        Path(lock.name).unlink(missing_ok=True)


def execute_specs(specs: Sequence, workers: int | None = None, progress: str | None = "runs") -> list[Path]:
    """Executes specs in parallel, except those whose results the store has.

    Args:
        specs: The specs.
        workers: Processes at a time; by default one per core.
        progress: Label of the progress bar; None for no bar.

    Returns:
        The folders of the results in the store, in the order of the specs.
    """
    from joblib import Parallel, cpu_count, delayed

    root = store_folder()
    keys = [spec_key(spec) for spec in specs]
    todo = {key: spec for key, spec in zip(keys, specs) if not (root / key).is_dir()}
    if todo:
        count = min(workers or cpu_count(), len(todo))
        pool = Parallel(n_jobs=count, return_as="generator_unordered")
        threads = torch.get_num_threads()
        try:
            jobs = pool(delayed(execute_once)(spec, key, root) for key, spec in todo.items())
            for _ in tqdm(jobs, total=len(todo), desc=progress, disable=progress is None, mininterval=1):
                pass
        finally:
            torch.set_num_threads(threads)
    return [root / key for key in keys]


def collect_run_tables(folders: Iterable[Path], name: str, specs: Sequence = ()) -> pd.DataFrame:
    """Concatenates the tables `name.csv` of runs.

    Args:
        folders: Results of the runs.
        name: Name of the table, without its suffix.
        specs: The runs' specs; their `labels` become the first columns.
    """
    tables = [pd.read_csv(Path(f) / f"{name}.csv") for f in folders]
    for table, spec in zip(tables, specs, strict=False):
        for i, (column, value) in enumerate(spec.labels.items()):
            table.insert(i, column, value)
    return pd.concat(tables, ignore_index=True)
