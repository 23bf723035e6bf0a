"""Formulas compared in processes of their own, each with limits on processor time and memory.

No answer can hang or crash the caller.

A worker (`serve`) reads questions from its standard input and writes verdicts to its standard output; `Worker` is the
caller's end of it, `Pool` those of one process. Limits count processor time, not time on the clock, so that a busy
machine gives the same verdicts. For POSIX systems.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 120  # on the clock, for a worker to import SymPy
PATIENCE = 10  # seconds on the clock for each second of processor time that an answer may take, on a busy machine
RECYCLE = 500  # answers after which a worker is replaced: what SymPy keeps of them would count against the memory limit


# ---- the worker's side ----


def is_right(answer: str, given: str) -> bool:
    """Whether a given answer is equal to the right one, without any limit; to be called in a worker."""
    from dvpo_lib.tasks.published.formulas.equality import same_answer

    return same_answer(answer, given)


def serve(seconds: float, memory: int) -> None:
    """A worker: reads one JSON line for each answer from standard input, writes one for each to standard output.

    Args:
        seconds: processor time for one answer, after which the operating system ends the process.
        memory: bytes of address space.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")  # a stray print in a library must not look like a reply
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def reply(**fields) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    try:
        is_right("\\frac{1}{2}", "\\sqrt{2} + x")  # imports SymPy, compiles the regular expressions
        is_right("[1, 2)", "1 \\le x^2")
    except ImportError as error:
        reply(error=f"SymPy cannot be imported: {error}; `make install` brings what is missing")
        return
    logging.disable()
    limit = limits(seconds, memory)
    reply(ready=True)
    os.dup2(nowhere, 2)
    for done, line in enumerate(sys.stdin, start=1):
        limit(seconds)
        try:
            right = is_right(*json.loads(line))
        except Exception:  # of SymPy, MemoryError and RecursionError included
            right = False
        limit(0)
        reply(right=right, spent=done >= RECYCLE or _peak() > memory / 2)


def limits(seconds: float, memory: int):
    """Sets the limit on memory and returns the function that starts (or with 0 stops) the one on processor time."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory if hard < 0 else min(memory, hard), hard))
    except (ValueError, OSError):  # macOS has no such limit
        pass
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in whatever code it is
    return lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)


def _peak() -> int:
    """Bytes of memory that this program has held at most.

    Not `ru_maxrss` where there is another way: on Linux it starts at what the parent held, a whole model perhaps.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the caller's side ----


@dataclass(eq=False)
class Worker:
    """A process that judges one answer at a time."""

    process: subprocess.Popen
    errors: Any  # the file of its standard error
    deadline: float  # on the monotonic clock, of what it does now
    item: int | None = None  # the index of the answer it judges; None before it is ready and between answers
    ready: bool = False
    read: bytes = b""

    @classmethod
    def start(cls, seconds: float, memory: int) -> Worker:
        paths = os.pathsep.join(p for p in sys.path if p and os.path.exists(p))
        package = str(Path(__file__).parents[3])
        code = f"from dvpo_lib.tasks.published.math_workers import serve; serve({seconds!r}, {memory!r})"
        errors = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([paths, package]), "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        return cls(process, errors, time.monotonic() + START_SECONDS)

    def ask(self, item: int, question: tuple, seconds: float) -> None:
        self.item, self.deadline = item, time.monotonic() + PATIENCE * seconds
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError:  # it has died; its empty reply says so
            pass

    def reply(self) -> dict | None:
        """What it says: {} while the line is not whole, None where it has died."""
        part = os.read(self.process.stdout.fileno(), 65536)
        self.read += part
        if not part:
            return None
        if not self.read.endswith(b"\n"):
            return {}
        line, self.read = self.read, b""
        return json.loads(line)

    def out_of_time(self) -> bool:
        """Whether the operating system ended it for an answer's processor time."""
        return self.process.wait() == -signal.SIGPROF

    def why(self) -> str:
        """The last line of its standard error."""
        if self.process.poll() is None:
            return f"it is not ready after {START_SECONDS} s"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit code {self.process.poll()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()


@dataclass
class Pool:
    """Workers of one process; what is forked from it must not talk to them."""

    owner: int = field(default_factory=os.getpid)
    workers: list[Worker] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def close(self) -> None:
        if self.owner == os.getpid():
            while self.workers:
                self.workers.pop().end()
