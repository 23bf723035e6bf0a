"""The command line: `python -m dvpo_lib COMMAND`.

    run STAGE        execute the notebook of a stage and move its outputs into place (what dvc.yaml calls)
    repro [TARGETS]  validate params.yaml, say how long it will take, run `dvc repro`
    check            validate params.yaml
    profile NAME     run the chain with profiles/NAME.yaml laid over params.yaml, in a copy of the project
    tune             tune every method on the same small grid
    download DIR     download the real data sets and check their SHA-256

An error is one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from dvpo_lib.chain import profiles, tune
from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.runner import run_stage
from dvpo_lib.chain.stages import StageError, project_root, read_stages
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.real.download import (
    GSM8K_SHA256,
    GSM8K_SOURCE,
    TAUBENCH_SHA256,
    TAUBENCH_SOURCE,
    DownloadError,
    describe_files,
    download_files,
)


def repro(targets: Iterable[str] = ()) -> int:
    """`dvc repro` with this environment's python; DVC's exit code. After a failure, earlier results are put back.

    DVC deletes the outputs of a stage before it runs it; if the stage then fails, they come back from DVC's cache."""
    root = project_root()
    load_params(root / "params.yaml")
    print(_forecast(), file=sys.stderr, flush=True)
    code = _dvc(["repro", *targets], root)
    if code:
        lost = [out for spec in read_stages(root).values() for out in spec.outs if not (root / out).exists()]
        if lost and (root / "dvc.lock").is_file():
            _dvc(["checkout", "--quiet", "--allow-missing", *lost], root, quiet=True)
    return code


def _forecast() -> str:
    minutes = load_params(project_root() / "params.yaml", ()).runtime.expected_minutes
    return (
        f"The whole chain takes about {minutes:g} minutes on two cores; what has not changed is skipped, "
        "and an interrupted run goes on where it stopped."
    )


def _dvc(arguments: list[str], root: Path, quiet: bool = False) -> int:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # stages call `python`
    child = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env={**os.environ, "PATH": path},
        stderr=subprocess.DEVNULL if quiet else None,
    )
    try:
        return child.wait()
    except KeyboardInterrupt as signalled:  # a Ctrl-C has reached the stage already; DVC ends when the stage does
        for process in psutil.Process(child.pid).children(recursive=True):
            if isinstance(signalled, Terminated) and process.cmdline()[1:4] == ["-m", "dvpo_lib", "run"]:
                process.terminate()
        child.wait()
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return COMMANDS[chosen.command](chosen) or 0
    except (ConfigError, StageError, DownloadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dvpo_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="execute a stage's notebook")
    command.add_argument("stage")
    command.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the notebook, its value in YAML",
    )
    command = commands.add_parser("repro", help="run the chain")
    command.add_argument("targets", nargs="*")
    command = commands.add_parser("check", help="validate params.yaml, or downloaded data")
    command.add_argument("--data", metavar="DIR", help="read the real data in DIR instead and say what is in it")
    profiles.add_profile_arguments(commands.add_parser("profile", help="run the chain with a profile, in a copy"))
    tune.add_tune_arguments(commands.add_parser("tune", help="tune every method on the same grid"))
    command = commands.add_parser("download", help="download the real data sets and check them")
    command.add_argument("dir", metavar="DIR", help="the folder to fill; `make real-data` takes data/real")
    names = ", ".join(Path(name).name for name in [*GSM8K_SHA256, *TAUBENCH_SHA256])
    command.add_argument(
        "--source",
        metavar="URL",
        help=f"one folder that serves {names} (default: {GSM8K_SOURCE} and {TAUBENCH_SOURCE})",
    )
    return parser


def _run(chosen: argparse.Namespace) -> None:
    run_stage(chosen.stage, dict(_assignment(text) for text in chosen.parameter))


def _check(chosen: argparse.Namespace) -> int:
    if chosen.data is None:
        load_params(project_root() / "params.yaml")
        print("params.yaml is valid")
        return 0
    try:
        describe_files(Path(chosen.data))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _download(chosen: argparse.Namespace) -> None:
    for source, hashes in ((GSM8K_SOURCE, GSM8K_SHA256), (TAUBENCH_SOURCE, TAUBENCH_SHA256)):
        for name, state in download_files(chosen.dir, chosen.source or source, hashes).items():
            print(f"{name}: {state}, SHA-256 as published")
    print(f"in params.yaml, `real: {{dir: {chosen.dir}}}` lets notebook 02 use them")


COMMANDS = {
    "run": _run,
    "repro": lambda chosen: repro(chosen.targets),
    "check": _check,
    "profile": profiles.run_profile,
    "tune": tune.tune_command,
    "download": _download,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which reaches one process and not, as Ctrl-C does, all that the terminal started."""


def _terminate(signum, frame) -> None:
    raise Terminated


def _assignment(text: str) -> tuple[str, Any]:
    from ruamel.yaml import YAML

    key, sign, value = text.partition("=")
    if not sign:
        raise StageError(f"-p {text}: KEY=VALUE is expected")
    return key, YAML(typ="safe").load(value)
