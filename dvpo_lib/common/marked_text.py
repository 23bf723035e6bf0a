"""Generated passages of a hand-written file, each between two comments that mark its place."""

from __future__ import annotations

from pathlib import Path


def insert_between_marks(file: str | Path, start: str, end: str, text: str) -> None:
    """Replaces the passage between two marks of a text file.

    Args:
        file: The file; it is written anew.
        start: The mark before the passage, its line feed included.
        end: The mark after it.
        text: The new passage.

    Raises:
        ValueError: If a mark is missing.
    """
    file = Path(file)
    before, found_start, rest = file.read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"{file.name}: expected the marks {start.strip()!r} and {end.strip()!r}")
    file.write_text(before + start + text + end + after, encoding="utf-8")
