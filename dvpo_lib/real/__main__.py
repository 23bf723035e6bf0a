"""The command line of the real data: `python -m dvpo_lib.real COMMAND`.

    download DIR    brings GSM8K and the solutions of four language models (7.5 MB, MIT licence) into DIR/gsm8k, an
                    agent's conversations of tau-bench (4.1 MB, MIT licence) into DIR/taubench, checks their SHA-256,
                    and leaves what is there and right alone: run it again after an interruption
    check DIR       reads the files in DIR as notebook 02 will, and says what is in them

Afterwards set `real: {dir: DIR}` in params.yaml; notebook 02 then pretrains critics on the data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .data import SOLUTIONS, TEST, TRAIN, read_solutions, read_worked
from .download import CONVERSATIONS, CONVERSATIONS_SHA256, SHA256, SOURCE, DownloadError, download
from .trajectories import find, read_trajectories


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dvpo_lib.real", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bring = commands.add_parser("download", help="bring the files and check them")
    bring.add_argument("dir", metavar="DIR", help="the folder to fill; `make real-data` takes data/real")
    names = ", ".join(Path(name).name for name in [*SHA256, *CONVERSATIONS_SHA256])
    bring.add_argument("--source", metavar="URL",
                       help=f"one folder that serves {names} (default: {SOURCE} and {CONVERSATIONS})")
    check = commands.add_parser("check", help="read the files and say what is in them")
    check.add_argument("dir", metavar="DIR", help="the folder that holds gsm8k/, and taubench/ if it is there")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "download":
            for source, hashes in ((SOURCE, SHA256), (CONVERSATIONS, CONVERSATIONS_SHA256)):
                for name, state in download(chosen.dir, chosen.source or source, hashes).items():
                    print(f"{name}: {state}, SHA-256 as published")
            print(f"in params.yaml, `real: {{dir: {chosen.dir}}}` lets notebook 02 use them")
        else:
            describe(Path(chosen.dir))
    except (DownloadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the files that are missing", file=sys.stderr)
        return 130
    return 0


def describe(folder: Path) -> None:
    """Prints what is in the files; ValueError where one cannot be used."""
    for name in (TRAIN, TEST):
        print(f"{name}: {len(read_worked(folder / name, name))} problems with a worked solution")
    solutions = read_solutions(folder / SOLUTIONS)
    print(f"{SOLUTIONS}: {solutions['problem'].nunique()} problems, each solved by:")
    for generator, share in solutions.groupby("generator", sort=False)["correct"].mean().items():
        print(f"  {generator}: {100 * share:.1f} % correct")
    path = find(folder)
    if path is not None:  # optional
        table = read_trajectories(path)
        print(f"{path.relative_to(folder).as_posix()}: {len(table)} conversations on {table['task'].nunique()} tasks, "
              f"{100 * table['correct'].mean():.1f} % successful")


if __name__ == "__main__":
    sys.exit(main())
