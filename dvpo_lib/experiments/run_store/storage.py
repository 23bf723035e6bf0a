"""Results on the disk: each whole, with hashes of its files beside it.

KEY/                  the files of a run
KEY.json              its name, the machine that computed it and the SHA-256 of each file
unfinished/KEY/       scratch of a run that has not finished, for example checkpoints
unfinished/KEY.lock   held while a process computes the run
unfinished/KEY.txt    the last error of a run that failed, with its traceback
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from dvpo_lib.common.durable_files import folder_digests, locked_file, replace_durably, write_durably
from dvpo_lib.experiments.run_store.keys import machine_name, spec_name

DIVERGED = "diverged.json"  # in the result of a run that diverged


def store_folder() -> Path:
    """The folder of the run store."""
    return Path(os.environ.get("DVPO_STORE", ".runs")).resolve()


def stored_problem(root: Path, key: str) -> str | None:
    """What keeps a stored result from being used.

    Args:
        root: Folder of the store.
        key: Of the run.

    Returns:
        None if its files are those that were stored; "" if there is no result; else what is wrong with it.
    """
    folder, manifest = root / key, root / f"{key}.json"
    if not folder.is_dir():
        return f"{folder} is missing" if manifest.is_file() else ""
    try:
        expected = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        found = folder_digests(folder)
    except FileNotFoundError:
        return f"{folder} has no hashes beside it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder} or its hashes cannot be read ({error})"
    for name in sorted(expected | found):
        if found.get(name) != expected.get(name):
            wrong = "is missing" if name not in found else "is damaged" if name in expected else "does not belong there"
            return f"{folder / name} {wrong}"
    return None


def execute_once(spec, key: str, root: Path) -> None:
    """Executes a spec unless its result exists and is what was stored. A result appears complete or not at all.

    A second process that needs the same run (JupyterLab beside the chain) waits and then finds the result.

    Args:
        spec: The spec.
        key: Its key.
        root: Folder of the store.
    """
    unfinished = root / "unfinished"
    scratch, lock = unfinished / key, unfinished / f"{key}.lock"
    with locked_file(lock):
        if stored_problem(root, key) is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            for leftover in scratch.glob("result-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            if (root / key).exists():
                os.replace(root / key, Path(tempfile.mkdtemp(prefix="result-", dir=scratch)) / "damaged")
            torch.set_num_threads(getattr(spec, "threads", 1))
            folder = Path(tempfile.mkdtemp(prefix="result-", dir=scratch))
            spec.execute(folder, scratch)
            manifest = {"run": spec_name(spec), "machine": machine_name(), "files": folder_digests(folder)}
            write_durably(root / f"{key}.json", json.dumps(manifest, indent=1) + "\n")
            replace_durably(folder, root / key)
        shutil.rmtree(scratch, ignore_errors=True)
        for path in (unfinished / f"{key}.txt", lock):
            path.unlink(missing_ok=True)


def machine_of(folder: Path) -> str:
    """The machine that computed a stored run, as `machine_name` calls it; "unknown" of runs stored without a name."""
    return json.loads(folder.with_name(f"{folder.name}.json").read_text(encoding="utf-8")).get("machine", "unknown")


def divergence_of(root: Path, key: str) -> str | None:
    """How a stored run diverged, in words; None if it did not."""
    file = root / key / DIVERGED
    return json.loads(file.read_text(encoding="utf-8"))["error"] if file.is_file() else None
