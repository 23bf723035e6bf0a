"""The command that runs the chain: `dvc repro`, with what a newcomer and an interrupted run need around it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from dvpo_lib.chain.params import RuntimeSettings, load_params
from dvpo_lib.chain.profiles import allow_no_git
from dvpo_lib.chain.runner import FAILED_FOLDER
from dvpo_lib.chain.stages import StageError, project_root, read_stages, tool_environment
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.common.processes import launched_environment
from dvpo_lib.common.settings_yaml import read_yaml

CONTAINERS = (  # (limit, use) of the control group, versions 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
CHAIN_LOCK = "work/chain.lock"  # held by the chain that runs in this checkout
DVC = """\
import os, sys
from dvpo_lib.common.processes import end_with_launcher, launched_environment
try:
    end_with_launcher()
    os.environ.update(launched_environment())
    from dvc.cli import main
    code = main(sys.argv[1:])
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""  # DVC, and the stages that it starts, end with the process that starts it


class Terminated(KeyboardInterrupt):
    """SIGTERM. It reaches this process alone, while Ctrl-C reaches every process of the terminal."""


def reproduce_chain(targets: Iterable[str] = ()) -> int:
    """Runs `dvc repro` with this environment's Python.

    DVC deletes the outputs of a stage before it runs the stage. After a failure they are restored from DVC's cache.

    Args:
        targets: Stages to run with all that they need; all stages by default.

    Returns:
        DVC's exit code.

    Raises:
        ConfigError: If a setting is wrong; nothing has run then.
    """
    root = project_root()
    params = load_params(root / "params.yaml")
    try:
        with locked_file(root / CHAIN_LOCK, wait=False):
            return _reproduce(root, targets, params.runtime)
    except BlockingIOError as owner:
        raise StageError(f"another chain runs in this checkout (process {owner}); wait for it, or stop it") from None


def _reproduce(root: Path, targets: Iterable[str], runtime: RuntimeSettings) -> int:
    set_unreadable_aside(root)
    allow_no_git(root)
    print(
        f"The whole chain takes about {runtime.expected_minutes:g} minutes on two cores and "
        f"{memory_notice(runtime.expected_gigabytes)}. Unchanged stages are skipped, and an interrupted run resumes.",
        file=sys.stderr,
        flush=True,
    )
    code = _run_dvc(["repro", *targets], root)
    if code:
        lost = [out for spec in read_stages(root).values() for out in spec.outs if not (root / out).exists()]
        if lost and (root / "dvc.lock").is_file():
            _run_dvc(["checkout", "--quiet", "--allow-missing", *lost], root, quiet=True)
    return code


def memory_notice(gigabytes: float) -> str:
    """An amount of memory in words; if less is free, how much, and what to do."""
    free = available_memory() / 1e9
    if free >= gigabytes:
        return f"{gigabytes:g} GB of memory"
    return f"{gigabytes:g} GB of memory, of which {free:.1f} GB are free here: fewer `runtime.workers` need less"


def available_memory() -> int:
    """Bytes that may still be taken before the machine swaps, the container is killed, or `ulimit -v` is reached."""
    found = [psutil.virtual_memory().available]
    for limit, use in CONTAINERS:
        try:
            found.append(int(Path(limit).read_text("ascii")) - int(Path(use).read_text("ascii")))
        except (OSError, ValueError):  # no control group of this version, or no limit ("max")
            continue
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    return max(0, min(found))


def set_unreadable_aside(root: Path) -> None:
    """Moves files of DVC that a crash has left behind to work/failed; DVC itself would refuse them for ever."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    readers = {"dvc.lock": lambda path: COMPILED_LOCKFILE_SCHEMA(read_yaml(path)), ".dvc/tmp/rwlock": _check_owners}
    for name, reader in readers.items():
        try:
            if (root / name).is_file():
                reader(root / name)
        except Exception as error:  # whatever the readers below raise
            (root / FAILED_FOLDER).mkdir(parents=True, exist_ok=True)
            os.replace(root / name, root / FAILED_FOLDER / Path(name).name)
            problem = str(error).splitlines()[0]
            print(f"warning: {name} is damaged ({problem}); it is now in {FAILED_FOLDER}", file=sys.stderr)


def _check_owners(rwlock: Path) -> None:
    held = json.loads(rwlock.read_text(encoding="utf-8"))
    readers = [owner for owners in held.get("read", {}).values() for owner in owners]
    for owner in [*readers, *filter(None, held.get("write", {}).values())]:
        if psutil.pid_exists(owner["pid"]):  # after a restart of the machine it may be another program's
            words = psutil.Process(owner["pid"]).cmdline()
            if not any(Path(word).name == "dvc" or "dvc.cli" in word for word in words):
                raise ValueError(f"process {owner['pid']}, which should hold it, is no DVC")


def _run_dvc(arguments: list[str], root: Path, quiet: bool = False) -> int:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # stages call `python`
    child = subprocess.Popen(
        [sys.executable, "-c", DVC, *arguments],
        cwd=root,
        env=launched_environment(PATH=path, **tool_environment(root)),
        stderr=subprocess.DEVNULL if quiet else None,
    )
    try:
        return child.wait()
    except KeyboardInterrupt as interrupt:  # Ctrl-C has reached DVC and the stage already
        if isinstance(interrupt, Terminated):
            _interrupt_dvc(child)
        child.wait()
        raise


def _interrupt_dvc(child: subprocess.Popen) -> None:
    """Ends the stage that runs; DVC ends then. Between two stages DVC itself is interrupted."""
    child.send_signal(signal.SIGINT)  # ignored while a stage runs
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:4] == ["-m", "dvpo_lib", "run"]:
                    process.terminate()
