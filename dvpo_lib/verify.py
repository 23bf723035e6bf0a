"""Verified rewards in TRL's signature: mathematics by math-verify, options by their letter, slots by their values.

    math_reward, choice_reward, slots_reward   f(prompts, completions, answer, **columns) -> a list of 1.0 and 0.0
    answer_reward                              picks one of them for each record, by its column `verify`
    MathReward(seconds=1, workers=4)           `math_reward` with limits of its own

Completions come from a policy that is rewarded for them, so they are hostile: `9**9**9**9`, thousands of nested
fractions, a text on which a regular expression never ends. math-verify (with SymPy below it) therefore works in
processes of its own, each with a limit on processor time and memory. A process that reaches one, or that crashes, is
replaced; its answer gets 0.0 and all others keep theirs. Limits count processor time, not time on the clock, so that a
busy machine gives the same rewards. The processes start when first needed, from any thread and inside any worker of
joblib, and end with the process (or the `MathReward`) that started them. For POSIX systems.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MathReward", "answer_reward", "choice_reward", "math_reward", "slots_reward"]

LAST = 4000  # characters of a completion that are looked at, counted from its end
START_SECONDS = 120  # on the clock, for a worker to import math-verify
PATIENCE = 10  # seconds on the clock for each second of processor time that an answer may take, on a busy machine
RECYCLE = 500  # answers after which a worker is replaced: what SymPy keeps of them would count against the memory limit
log = logging.getLogger(__name__)


# ---- what a completion says ----


def text_of(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion: itself, or the last message of a conversation ([{role, content}], as TRL passes it).

    Raises:
        TypeError: neither of the two.
    """
    if isinstance(completion, str):
        return completion
    try:
        content = completion[-1]["content"]
    except (TypeError, KeyError, IndexError):
        content = None
    if not isinstance(content, str):
        raise TypeError(f"a completion should be a text or a list of messages, not {str(completion)[:80]!r}")
    return content


def conclusion(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> str:
    """The part of a completion that is judged: what follows the last `</think>`, at most its `last` characters."""
    text = text_of(completion)
    after = text.rpartition("</think>")[2]
    return (after if after.strip() else text)[-last:]


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every `\boxed{...}` (and `\fbox{...}`) with balanced braces: start, end, content. One pass over the text."""
    openings = {m.end() - 1: m.start() for m in re.finditer(r"\\(?:boxed|fbox)\s{0,8}\{", text)}
    found, stack = [], []
    for i, character in enumerate(text):
        if character == "{" and text[i - 1 : i] != "\\":
            stack.append(i)
        elif character == "}" and text[i - 1 : i] != "\\" and stack:
            opened = stack.pop()
            if opened in openings and not any(brace in openings for brace in stack):  # the outermost alone
                found.append((openings[opened], i + 1, text[opened + 1 : i]))
    return found


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; several side by side ("\boxed{1} and \boxed{2}") are one answer, "1, 2".

    So a completion cannot hedge: of answers in different places the last one counts, and a list is a list.
    """
    found = boxes(text)
    if not found:
        return None
    run = [found[-1]]
    for box in reversed(found[:-1]):
        between = text[box[1] : run[0][0]]
        if len(between) > 40 or not re.fullmatch(r"(?:[\s,;$]|and|or|\\text|\\quad|\\[()\[\],;]|[{}])*", between):
            break
        run.insert(0, box)
    return ", ".join(content for _, _, content in run)


def plain(answer: str) -> str:
    r"""An answer without what never matters: its box, dollar signs, outer white space, a final full stop."""
    inside = boxed(answer)
    return (answer if inside is None else inside).replace("\\$", "").replace("$", "").strip().removesuffix(".").strip()


def same_text(a: str, b: str) -> bool:
    """Whether two answers are the same text, white space aside."""
    return "".join(a.split()) == "".join(b.split()) != ""


# ---- mathematics: the worker's side ----


def is_right(answer: str, given: str, is_boxed: bool) -> bool:
    """math-verify's verdict, without any limit; to be called in a worker.

    Args:
        given: the content of the box, or the end of a completion that has none (then math-verify searches it: after
            "answer" first, else the last formula or number).
    """
    from math_verify import parse, verify

    truth = parse(f"${answer}$", parsing_timeout=None)
    found = parse(f"${given}$" if is_boxed else given, parsing_timeout=None)
    return bool(verify(truth, found, timeout_seconds=None))


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
        is_right("\\frac{1}{2}", "The answer is $0.5$ or 1/2.", False)  # imports, compiles the regular expressions
        is_right("[1, 2)", "x^2 + 1", True)
    except ImportError as error:
        reply(error=f"math-verify cannot be imported: {error}; `make install` brings what is missing")
        return
    logging.disable()
    limit = _limits(seconds, memory)
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


def _limits(seconds: float, memory: int):
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


# ---- mathematics: the parent's side ----


@dataclass(eq=False)
class _Worker:
    """A process that judges one answer at a time."""

    process: subprocess.Popen
    errors: Any  # the file of its standard error
    deadline: float  # on the monotonic clock, of what it does now
    item: int | None = None  # the index of the answer it judges; None before it is ready and between answers
    ready: bool = False
    read: bytes = b""

    @classmethod
    def start(cls, seconds: float, memory: int) -> _Worker:
        paths = os.pathsep.join(p for p in sys.path if p and os.path.exists(p))
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"from dvpo_lib.verify import serve; serve({seconds!r}, {memory!r})"
        errors = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([paths, package]), "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )  # fmt: skip
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
class _Pool:
    """Workers of one process; what is forked from it must not talk to them."""

    owner: int = field(default_factory=os.getpid)
    workers: list[_Worker] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def close(self) -> None:
        if self.owner == os.getpid():
            while self.workers:
                self.workers.pop().end()


class MathReward:
    r"""1.0 where a completion's answer is mathematically equal to the right one, else 0.0 (in TRL's signature).

    What counts is what follows the last `</think>`, and of it the last `last` characters: there the last
    `\boxed{...}` (several side by side are one list), or without a box what math-verify finds: after "answer" first,
    else the last formula or number. It is lenient there: "The answer is 18 or 19" passes for 18. Fractions and
    decimals, sets, intervals, matrices, equal expressions and so on are equal as math-verify has it; units, percent and
    dollar signs are ignored; decimals are equal to six places.

    Args:
        seconds: processor time for one answer; there is no more for the whole of parsing and comparing.
        batch_seconds: time on the clock for one call; what is not judged by then gets 0.0, and a warning is logged.
        workers: processes, started as needed (default: the cores that this process may use, at most 4).
        memory: bytes of address space of a worker.
        last: characters of a completion that are looked at.
        boxed_only: a completion without a box gets 0.0, so that a policy cannot learn to name several answers.

    Attributes:
        failures: {reason: count} of answers that were not judged, over all calls: "limit" (time, or a crash) and
            "batch".

    Raises (when called):
        ValueError: another number of answers than of completions. TypeError: an answer or a completion is no text.
        RuntimeError: workers cannot start, as where math-verify is missing; never because of a completion.
    """

    def __init__(self, seconds: float = 2.0, batch_seconds: float = 300.0, workers: int | None = None,
                 memory: int = 2**30, last: int = LAST, boxed_only: bool = False):
        if seconds <= 0 or batch_seconds <= 0 or (workers is not None and workers < 1) or last < 1:
            raise ValueError("seconds, batch_seconds, workers and last should be larger than 0")
        if memory < 2**28:
            raise ValueError(f"memory should be at least {2**28} bytes (SymPy alone needs that), not {memory}")
        self.__name__ = "math_reward"
        self.seconds, self.batch_seconds, self.memory, self.last = float(seconds), batch_seconds, int(memory), last
        self.boxed_only = boxed_only
        self.workers = workers or min(4, _cores())
        self.failures: dict[str, int] = {}
        self._renew()

    def _renew(self) -> None:
        self._pool = _Pool()
        weakref.finalize(self, self._pool.close)  # at the end of the process too

    def __getstate__(self) -> dict:  # to another process go the limits, not the workers
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._renew()

    def __call__(self, prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
        asked = []
        for a, completion in _pairs(completions, answer):
            text = conclusion(completion, self.last)
            given, loose = boxed(text), "" if self.boxed_only else text.replace("\\$", "")
            asked.append((plain(a), loose if given is None else plain(given), given is not None))
        verdicts: dict[tuple, float | None] = {}  # of each question once: groups repeat answers
        for truth, given, is_boxed in asked:
            same = same_text(truth, plain(given))
            verdicts[truth, given, is_boxed] = 1.0 if same else None if given.strip() else 0.0
        self._judge(verdicts)
        return [verdicts[question] for question in asked]

    def close(self) -> None:
        """Ends the workers; a later call starts new ones."""
        self._pool.close()

    def _judge(self, verdicts: dict[tuple, float | None]) -> None:
        """Fills in the verdicts that are None, by question."""
        if self._pool.owner != os.getpid():  # this process was forked
            self._renew()
        todo = [question for question, verdict in verdicts.items() if verdict is None]
        with self._pool.lock:
            try:
                verdicts.update(zip(todo, self._run(todo), strict=True))
            except BaseException:  # an interruption: replies to come belong to no question
                self._pool.close()
                raise

    def _run(self, questions: list[tuple]) -> list[float]:
        verdicts = [0.0] * len(questions)
        waiting, open_, again = deque(range(len(questions))), len(questions), set()
        workers, end = self._pool.workers, time.monotonic() + self.batch_seconds
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while open_:
                while len(workers) < min(self.workers, open_):
                    workers.append(_Worker.start(self.seconds, self.memory))
                    selector.register(workers[-1].process.stdout, selectors.EVENT_READ, workers[-1])
                for worker in workers:
                    if worker.ready and worker.item is None and waiting:
                        worker.ask(item := waiting.popleft(), questions[item], self.seconds)
                busy = [w for w in workers if w.item is not None or not w.ready]
                until = min([end, *(w.deadline for w in busy)])
                heard = selector.select(max(0.0, until - time.monotonic()))
                for worker in [key.data for key, _ in heard]:
                    reply = worker.reply()
                    if reply is None and worker.item not in again and not worker.out_of_time():
                        again.add(worker.item)  # it crashed, or was killed by no fault of this answer: once more
                        waiting.extendleft([] if worker.item is None else [worker.item])
                        self._drop(worker, selector, count=False)
                    elif reply is None or "error" in reply:
                        open_ -= self._drop(worker, selector, reply)
                    elif "ready" in reply:
                        worker.ready = True
                    elif reply:
                        verdicts[worker.item], worker.item = float(reply["right"]), None
                        open_ -= 1
                        if reply["spent"]:
                            self._drop(worker, selector)
                now = time.monotonic()
                for worker in [w for w in workers if (w.item is not None or not w.ready) and now >= w.deadline]:
                    open_ -= self._drop(worker, selector)
                if now >= end and open_:
                    self._count("batch", open_)
                    log.warning("math_reward: %d of %d answers were not judged within %g s and get 0.0", open_,
                                len(questions), self.batch_seconds)  # fmt: skip
                    for worker in [w for w in workers if w.item is not None]:
                        self._drop(worker, selector, count=False)
                    break
        return verdicts

    def _drop(self, worker: _Worker, selector, reply: dict | None = None, count: bool = True) -> int:
        """Ends a worker and returns how many answers that decides; RuntimeError where it has never been ready."""
        why = None if worker.ready else (reply or {}).get("error") or worker.why()
        selector.unregister(worker.process.stdout)
        self._pool.workers.remove(worker)
        worker.end()
        if why is not None:
            raise RuntimeError(f"a worker for math_reward cannot start: {why}")
        if worker.item is None:
            return 0
        if count:
            self._count("limit", 1)
        return 1

    def _count(self, reason: str, number: int) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + number


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pairs(completions: Sequence, answer: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """(answer, completion) for each record, checked."""
    if len(completions) != len(answer):
        raise ValueError(f"there are {len(answer)} answers for {len(completions)} completions")
    for i, a in enumerate(answer):
        if not isinstance(a, str) or not a.strip():
            raise TypeError(f"record {i}: `answer` should be a text that is not empty, not {a!r}")
    return zip(answer, completions)


_default: MathReward | None = None
_lock = threading.Lock()


def math_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """`MathReward` with its default limits; its workers are shared by all callers of this process."""
    global _default
    with _lock:
        _default = _default or MathReward()
    return _default(prompts, completions, answer, **columns)


# ---- options ----

_BEFORE = r"[\s*_$(\[{\"'`]{0,8}(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?\(?"
_LETTER = (r"([B-HJ]|[AI](?!\s+(?!because|since|as\b)[a-z]))(?![A-Za-z0-9_'’])"
           r"(?!\s{0,4}(?:,|/|or\b|and\b)\s{0,4}\(?[A-J]\b)")
_SAID = re.compile(r"(?i:answer|choice|option)(?:\s{1,4}(?i:is|was|should\s+be)\b\s{0,4}:?|[\s*]{0,4}[:=])"
                   r"(?:\s{0,4}(?i:option|choice|letter)\b)?" + _BEFORE + _LETTER)  # fmt: skip
_ALONE = re.compile(r"[\s*_$(\[{\"'`]*(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?[\s(]*([A-Ja-j])[\s*_$)\]}\"'`.:,]*")


def chosen_letter(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> str | None:
    r"""The option (A to J) that a completion chooses, or None.

    The first rule that applies decides, on what follows the last `</think>`:
    1. the last `\boxed{...}`, if there is one: its letter (`\boxed{\text{(B)}}` and `\boxed{B. mitosis}` are B), else
       None;
    2. the last "answer is X", "Answer: X", "option: X"; X is a capital, no word and no list ("the answer is A mixture"
       and "the answer is B or C" choose nothing);
    3. a last line that holds a letter and nothing else ("(b)", "**B**").
    """
    text = conclusion(completion, last)
    box = boxed(text)
    if box is not None:
        alone = _ALONE.fullmatch(box) or re.match(r"\s*\(?([A-J])[.):]\s", box)
        return alone[1].upper() if alone else None
    said = [m[1] for m in _SAID.finditer(text)]
    if said:
        return said[-1]
    lines = text.strip().rsplit("\n", 1)
    alone = _ALONE.fullmatch(lines[-1][:200])
    return alone[1].upper() if alone else None


def choice_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """1.0 where the letter that `chosen_letter` finds is the answer ("A" to "J"), else 0.0 (in TRL's signature).

    Raises:
        ValueError: another number of answers than of completions. TypeError: an answer or a completion is no text.
    """
    return [float(chosen_letter(c) == a.strip().upper()) for a, c in _pairs(completions, answer)]


# ---- slots ----


def given_slots(completion: str | Sequence[Mapping[str, Any]], last: int = LAST) -> dict[str, str]:
    """{slot: value} of a completion's lines `slot = value` or `slot: value`; of a slot's lines the last counts."""
    lines = conclusion(completion, last).split("\n")
    found = [re.match(r"[\s*\-•]{0,8}([A-Za-z][A-Za-z0-9_]{0,60})\s{0,4}[=:]\s*(\S.*)", line) for line in lines]
    return {m[1].casefold(): m[2].strip().casefold() for m in found if m}


def slots_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """1.0 where a completion gives exactly the slots of the answer, each with an accepted value, else 0.0.

    Args:
        answer: JSON objects {slot: [accepted values]}, as `sources.load("sgd", ...)` gives them; case is ignored.

    Raises:
        ValueError: another number of answers than of completions, or an answer is no such JSON; names the record.
    """
    rewards = []
    for i, (a, completion) in enumerate(_pairs(completions, answer)):
        try:
            truth = {slot.casefold(): {v.casefold().strip() for v in values} for slot, values in json.loads(a).items()}
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"record {i}: `answer` should be a JSON object of slots, not {a[:80]!r}") from None
        found = given_slots(completion)
        rewards.append(float(found.keys() == truth.keys() and all(found[slot] in truth[slot] for slot in truth)))
    return rewards


# ---- by record ----

KINDS = {"math": math_reward, "choice": choice_reward, "slots": slots_reward}


def answer_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], verify: Sequence[str],
                  **columns) -> list[float]:
    """The reward of each record by its `verify` ("math", "choice" or "slots"): one function for mixed data.

    Raises:
        ValueError: an unknown kind, named with its record; else as the functions it calls.
    """
    pairs = list(_pairs(completions, answer))
    rewards = [0.0] * len(pairs)
    for i, kind in enumerate(verify):
        if kind not in KINDS:
            raise ValueError(f"record {i}: `verify` should be one of {', '.join(KINDS)}, not {kind!r}")
    for kind, func in KINDS.items():
        rows = [i for i, k in enumerate(verify) if k == kind]
        own = func([prompts[i] for i in rows], [completions[i] for i in rows], [answer[i] for i in rows])
        for i, reward in zip(rows, own, strict=True):
            rewards[i] = reward
    return rewards
