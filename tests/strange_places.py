"""The chain in paths, locales and limits of other machines; outcomes go to benchmarks/strange_places.json.

    python -m strange_places                    all places
    python -m strange_places "no git"           some of them
    python -m strange_places --python PATH ...  with other interpreters, whose environments hold the dependencies

In each place a copy of the project validates its settings (`check`) and runs one small notebook as a stage of the real
chain (`repro`). Where that cannot work, the error has to say so in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from conftest import BODY, ROOT, TINY_STAGE, make_notebook

from dvpo_lib.chain.profiles import list_project_files

RESULT = ROOT / "benchmarks" / "strange_places.json"
SECONDS = 600  # of one command


@dataclass
class Place:
    """Where a copy lies, and how its commands are started.

    Attributes:
        folder: Name of the copy's folder.
        before: Words before each command, such as `taskset -c 0`.
        environment: Changes of the environment; None deletes a variable.
        prepare: Called with the copy before its first command.
        refused: Pattern of the one-line error of `repro`, if it cannot work here.
    """

    folder: str = "copy"
    before: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    prepare: Callable[[Path], None] = lambda copy: None
    refused: str | None = None


def _path_without_git() -> str:
    """A PATH of links to a few tools, git not among them."""
    folder = tempfile.mkdtemp(prefix="tools-")
    for tool in ("sh", "bash", "env", "uname", "ls", "cat"):
        if found := shutil.which(tool):
            os.symlink(found, f"{folder}/{tool}")
    return folder


READ_ONLY = 'mount --bind "$PWD" "$PWD" && mount -o remount,bind,ro "$PWD" && cd "$PWD" && exec "$@"'
PLACES = {
    "path with spaces and other letters": Place("ein Ordner – é 漢字 'x' $HOME"),
    "no git repository (unpacked archive)": Place(),
    "no git program": Place(environment={"PATH": _path_without_git()}),
    "HOME is no folder": Place(
        environment={"HOME": "/dev/null", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "XDG_DATA_HOME": None}
    ),
    "locale C without UTF-8": Place(
        "é", environment={"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "one core": Place(before=("taskset", "-c", "0")),
    "4 GB of address space": Place(before=("sh", "-c", 'ulimit -v 4194304; exec "$@"', "sh")),
    "no terminal, no input": Place(before=("setsid",), environment={"TERM": None}),
    "read-only checkout": Place(
        before=("unshare", "--mount", "sh", "-c", READ_ONLY, "sh"),
        refused=r"^error: .*Read-only file system.*copy the project",
    ),
}


def make_copy(folder: Path) -> None:
    """Copies the project's files and adds a small stage."""
    for name in [*list_project_files(ROOT), "params.yaml"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    with open(folder / "dvc.yaml", "a", encoding="utf-8") as file:
        file.write(f"\n{TINY_STAGE}")
    make_notebook(folder / "notebooks" / "tiny.ipynb", BODY)


def run_in(place: Place, copy: Path, python: str, *arguments: str) -> str:
    """Runs one command in a copy.

    Returns:
        "works", "refused: ..." with the error's line, or "fault: ..." with the last lines.
    """
    environment = {**os.environ, "PYTHONPATH": str(copy), "DVPO_STORE": str(copy / ".runs"), **place.environment}
    done = subprocess.run(
        [*place.before, python, "-m", "dvpo_lib", *arguments],
        cwd=copy,
        env={name: value for name, value in environment.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
    )
    lines = done.stderr.strip().splitlines() or [""]
    if done.returncode == 0:
        return "works"
    errors = [line for line in lines if line.startswith("error: ")]
    if errors and "Traceback" not in done.stderr:
        return f"refused: {errors[-1].replace(str(copy), 'COPY')}"
    return f"fault: exit code {done.returncode}: " + " | ".join(lines[-4:])


def try_place(place: Place, python: str = sys.executable) -> dict[str, str]:
    """Outcome of each command in one place."""
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / place.folder
        copy.mkdir()
        make_copy(copy)
        place.prepare(copy)
        outcomes = {
            "check": run_in(place, copy, python, "check"),
            "repro": run_in(place, copy, python, "repro", "tiny"),
        }
        page = copy / "results" / "tiny" / "notebook.html"
        if outcomes["repro"] == "works" and "saved" not in page.read_text(encoding="utf-8"):
            outcomes["repro"] = "fault: the page is not there"
    wanted = "works" if place.refused is None else place.refused
    for command, outcome in outcomes.items():
        refusal = command == "repro" and place.refused and re.search(wanted, outcome.removeprefix("refused: "))
        if outcome != "works" and not refusal:
            outcomes[command] = outcome if outcome.startswith("fault") else f"fault: {outcome}"
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m strange_places", description=__doc__.split("\n")[0])
    parser.add_argument("places", nargs="*", metavar="PLACE", help=f"some of: {', '.join(PLACES)}")
    parser.add_argument("--python", nargs="*", default=[], metavar="PATH", help="other interpreters to try")
    chosen = parser.parse_args()
    table = {}
    for name in chosen.places or PLACES:
        table[name] = try_place(PLACES[name])
        print(f"{name}: {table[name]}", flush=True)
    for python in [sys.executable, *chosen.python]:
        asked = [python, "-c", "import platform; print(platform.python_version())"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        table[f"Python {version}"] = try_place(Place(), python)
        print(f"Python {version}: {table[f'Python {version}']}", flush=True)
    if not chosen.places:
        RESULT.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(outcome.startswith("fault") for row in table.values() for outcome in row.values()))


if __name__ == "__main__":
    sys.exit(main())
