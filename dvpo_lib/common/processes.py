"""Processes that end with the process that started them, also if that one is killed."""

from __future__ import annotations

import os
import threading
import time

LAUNCHER = "DVPO_LAUNCHER"  # environment variable: the pid of the process to end with


def end_with_process(pid: int, every: float = 1.0) -> None:
    """Ends this process, without clean-up, soon after another one has ended.

    Args:
        pid: The other process: the parent, or one further up.
        every: Seconds between two looks.
    """
    is_parent = os.getppid() == pid  # a parent that is not reaped still has its pid
    if not _is_alive(pid, is_parent):
        os._exit(1)
    threading.Thread(target=_watch, args=(pid, is_parent, every), daemon=True).start()


def _watch(pid: int, is_parent: bool, every: float) -> None:
    while _is_alive(pid, is_parent):
        time.sleep(every)
    os._exit(1)


def _is_alive(pid: int, is_parent: bool) -> bool:
    if is_parent:
        return os.getppid() == pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, so alive
        pass
    return True


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
