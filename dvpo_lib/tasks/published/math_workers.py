"""Worker processes that compare formulas, each with limits on processor time and memory.

No answer can hang or crash the caller. A worker (`run_math_worker`) reads questions from its standard input and writes
verdicts to its standard output. `MathWorker` is the caller's end of one worker, `MathWorkerPool` holds all workers of a
process. Limits count processor time, not time on the clock, so that a busy machine gives the same verdicts. For POSIX
systems.
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
RECYCLE_AFTER = 500  # answers until a worker is replaced: SymPy's caches would count against the memory limit


# ---- the worker's side ----


def _is_right(answer: str, given: str) -> bool:
    """Whether a given answer equals the right one. There is no time limit: call it in a worker."""
    from dvpo_lib.tasks.published.formulas.equality import same_answer

    return same_answer(answer, given)


def run_math_worker(seconds: float, memory: int) -> None:
    """The main loop of a worker: reads a JSON line per answer from standard input, writes one to standard output.

    Args:
        seconds: processor time for one answer; the operating system ends the process after that.
        memory: bytes of address space.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")  # a stray print in a library must not look like a reply
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def reply(**fields) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    try:
        _is_right("\\frac{1}{2}", "\\sqrt{2} + x")  # imports SymPy, compiles the regular expressions
        _is_right("[1, 2)", "1 \\le x^2")
    except ImportError as error:
        reply(error=f"SymPy cannot be imported: {error}; `make install` brings what is missing")
        return
    logging.disable()
    limit = limit_worker_resources(seconds, memory)
    reply(ready=True)
    os.dup2(nowhere, 2)
    for done, line in enumerate(sys.stdin, start=1):
        limit(seconds)
        try:
            right = _is_right(*json.loads(line))
        except Exception:  # of SymPy, MemoryError and RecursionError included
            right = False
        limit(0)
        reply(right=right, spent=done >= RECYCLE_AFTER or _peak() > memory / 2)


def limit_worker_resources(seconds: float, memory: int):
    """Limits memory, and returns a function that starts the limit on processor time (or stops it, if given 0)."""
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
    """Peak memory of this program in bytes.

    `ru_maxrss` is the last resort: on Linux it starts at the parent's memory, which may hold a whole model.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- the caller's side ----


@dataclass(eq=False)
class MathWorker:
    """A process that judges one answer at a time."""

    process: subprocess.Popen
    errors: Any  # the file of its standard error
    deadline: float  # on the monotonic clock, of what it does now
    item: int | None = None  # the index of the answer it judges; None before it is ready and between answers
    ready: bool = False
    read: bytes = b""

    @classmethod
    def start(cls, seconds: float, memory: int) -> MathWorker:
        paths = os.pathsep.join(p for p in sys.path if p and os.path.exists(p))
        package = str(Path(__file__).parents[3])
        module = "dvpo_lib.tasks.published.math_workers"
        code = f"from {module} import run_math_worker; run_math_worker({seconds!r}, {memory!r})"
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
        """The worker's reply. {} while the line is incomplete, None if the worker has died."""
        part = os.read(self.process.stdout.fileno(), 65536)
        self.read += part
        if not part:
            return None
        if not self.read.endswith(b"\n"):
            return {}
        line, self.read = self.read, b""
        return json.loads(line)

    def out_of_time(self) -> bool:
        """Whether the operating system ended the worker because an answer took too much processor time."""
        return self.process.wait() == -signal.SIGPROF

    def start_failure(self) -> str:
        """The reason why the worker did not start: the last line of its standard error."""
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
class MathWorkerPool:
    """The workers of one process. A fork of that process must not talk to them."""

    owner: int = field(default_factory=os.getpid)
    workers: list[MathWorker] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def close(self) -> None:
        if self.owner == os.getpid():
            while self.workers:
                self.workers.pop().end()
