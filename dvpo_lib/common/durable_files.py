"""Files that survive a crash: written whole or not at all, flushed to the disk, locked against a second process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """{path relative to the folder: SHA-256} of all files in a folder, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def flush_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of entries, would survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(source: Path, target: Path) -> None:
    """Renames a file or a whole folder to `target`, in one step, once all that it holds is on the disk."""
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        flush_to_disk(path)
    os.replace(source, target)
    flush_to_disk(target.parent)


def write_durably(path: Path, text: str) -> None:
    """Writes a text file: after a crash it holds the old text or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    replace_durably(fresh, path)


@contextlib.contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """A scratch folder that is renamed to `place` once everything in it is written."""
    scratch, old = (place.with_name(f".{place.name}.{end}") for end in ("new", "old"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(place, old)
    os.replace(scratch, place)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked_file(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock on a file, which the system releases however the process ends. The file holds the owner's pid.

    Args:
        path: The file; made if missing, and left in place.
        wait: Whether to wait for another owner.

    Raises:
        BlockingIOError: If there is another owner and `wait` is false; its text is the owner's pid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read() or "unknown") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
