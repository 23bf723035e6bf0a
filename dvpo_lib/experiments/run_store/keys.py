"""Keys of runs: hashes of everything that a run depends on."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from dvpo_lib.experiments.import_graph import reachable_files


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder.

    The hash is kept while no file is changed, replaced or added: hundreds of runs share their inputs.
    """
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _hash_of_files(path, tuple((p, *_state_of(p)) for p in files))


def _state_of(path: Path) -> tuple[int, ...]:
    """Changes with every write to a file, also if its size and its time of change are set back, as copies do."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@functools.lru_cache(maxsize=4096)
def _hash_of_files(path: Path, files: tuple[tuple, ...]) -> str:
    digest = hashlib.sha256()
    for p, *_ in files:
        digest.update(p.relative_to(path).as_posix().encode() + b"\0" + p.read_bytes())
    return digest.hexdigest()


@functools.cache
def code_hash(module: str) -> str:
    """SHA-256 of the code of a module and of all modules of this package that it imports, directly or not."""
    root = Path(__file__).parents[3]
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


@functools.cache
def machine_name() -> str:
    """The processor that runs are computed on, and the version of PyTorch: on others, last digits may differ."""
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator().type
        processor = torch.cuda.get_device_name() if device == "cuda" else device
    else:
        info = Path("/proc/cpuinfo")
        lines = [line.partition(":") for line in info.read_text("utf-8").splitlines()] if info.exists() else []
        known = {name.strip(): value.strip() for name, _, value in lines}
        processor = known.get("model name") or platform.processor() or platform.machine()
        kind = [f"model {known['model']}"] if "model" in known else []  # clouds give many processors one name
        processor += f" ({', '.join([*kind, torch.backends.cpu.get_cpu_capability()])})"
    return f"{processor}, torch {version('torch').split('+')[0]}"


def spec_key(spec) -> str:
    """The key of a run: its folder's name in the store."""
    content = {k: v for k, v in dataclasses.asdict(spec).items() if k not in getattr(spec, "not_hashed", ())}
    content |= {name: file_hash(content[name]) for name in spec.inputs if content[name] is not None}
    content |= {"spec": type(spec).__name__, "code": code_hash(type(spec).__module__), **library_versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def spec_name(spec) -> str:
    """The name of a run in messages, such as "TrainingSpec dvpo, spikes, math, seed 3"."""
    known = getattr(spec, "labels", None) or {k: getattr(spec, k) for k in ("family", "seed") if hasattr(spec, k)}
    parts = [f"{k} {v}" if isinstance(v, int) else str(v) for k, v in known.items()]
    return " ".join([type(spec).__name__, ", ".join(parts)]).strip()
