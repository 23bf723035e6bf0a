"""Processes that end with the process that started them, also if that one is killed."""

from __future__ import annotations

import os
import threading
import time

import psutil

LAUNCHER = "DVPO_LAUNCHER"  # environment variable: the pid of the process to end with


def end_with_process(pid: int, every: float = 1.0) -> None:
    """Ends this process, without clean-up, soon after another one has ended.

    Args:
        pid: The other process.
        every: Seconds between two looks.
    """
    try:
        other = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)
    threading.Thread(target=_watch, args=(other, every), daemon=True).start()


def _watch(other: psutil.Process, every: float) -> None:
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:  # another process may get the same pid
        time.sleep(every)
    os._exit(1)


def end_with_launcher() -> None:
    """Ends this process soon after the one that started it with `launched_environment`, if one did."""
    if pid := os.environ.pop(LAUNCHER, None):
        end_with_process(int(pid))


def launched_environment(**changes: str) -> dict[str, str]:
    """The environment of a process that is to end with this one.

    Args:
        changes: Further variables.
    """
    return {**os.environ, LAUNCHER: str(os.getpid()), **changes}
