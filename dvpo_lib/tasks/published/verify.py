"""Verified rewards in TRL's signature: mathematics by what formulas mean, options by their letter, slots by values.

    math_reward, choice_reward, slots_reward   f(prompts, completions, answer, **columns) -> a list of 1.0 and 0.0
    answer_reward                              picks one of them for each record, by its column `verify`
    MathReward(seconds=1, workers=4)           `math_reward` with limits of its own

Completions come from a policy that is rewarded for them, so they are hostile: `9**9**9**9`, thousands of nested
fractions, a text on which a regular expression never ends. Finding and reading an answer is bounded and happens here.
Comparing formulas is SymPy's, and happens in processes of its own (`math_workers`). One that reaches its limits or
crashes is replaced. Its answer gets 0.0 and all others keep theirs. The processes start when first needed, from any
thread and inside any worker of joblib, and end with the process (or the `MathReward`) that started them.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.common.tables import short_repr
from dvpo_lib.tasks.published.answers import JUDGED_CHARACTERS, judged_text, same_answer_text
from dvpo_lib.tasks.published.formulas.reader import is_formula
from dvpo_lib.tasks.published.math_workers import MathWorker, MathWorkerPool
from dvpo_lib.tasks.published.options import chosen_letter
from dvpo_lib.tasks.published.slots import given_slots, normal_slot_name, normal_slot_value
from dvpo_lib.tasks.published.statements import extract_answer, extract_right_answer

__all__ = ["MathReward", "answer_reward", "choice_reward", "math_reward", "slots_reward"]

log = logging.getLogger(__name__)


# ---- mathematics ----


class MathReward:
    r"""1.0 if a completion's answer is mathematically equal to the right one, else 0.0 (in TRL's signature).

    The answer stands in the last `\boxed{...}` (several side by side are one list), behind "the answer is" or "####",
    or at the end of the last line; see `statements`. What hedges or denies is no answer.

    Both sides are read whole as formulas and compared by type: numbers, lists, tuples, sets, intervals and
    inequalities, matrices, equations. Exact values are compared exactly, decimals to six significant digits. A unit,
    a currency, a label ("x =") or a percent sign may be missing on one side. If a side is not read whole, the two are
    compared as texts, white space, fonts and case of words aside.

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
        ValueError: If the numbers of answers and completions differ.
        TypeError: If an answer or a completion is no text.
        RuntimeError: If workers cannot start, for example without SymPy; never because of a completion.
    """

    def __init__(
        self,
        seconds: float = 2.0,
        batch_seconds: float = 300.0,
        workers: int | None = None,
        memory: int = 2**30,
        last: int = JUDGED_CHARACTERS,
        boxed_only: bool = False,
    ):
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
        self._pool = MathWorkerPool()
        weakref.finalize(self, self._pool.close)  # at the end of the process too

    def __getstate__(self) -> dict:  # to another process go the limits, not the workers
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._renew()

    def __call__(self, prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
        asked = []
        for a, completion in _pairs(completions, answer):
            given = extract_answer(judged_text(completion, self.last), is_formula, self.boxed_only)
            asked.append((extract_right_answer(a, is_formula), given))
        verdicts: dict[tuple, float | None] = {}  # of each question once: groups repeat answers
        for truth, given in asked:
            verdicts[truth, given] = 1.0 if same_answer_text(truth, given) else None if given else 0.0
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
                    workers.append(MathWorker.start(self.seconds, self.memory))
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
                    log.warning(
                        "math_reward: %d of %d answers were not judged within %g s and get 0.0",
                        open_,
                        len(questions),
                        self.batch_seconds,
                    )
                    for worker in [w for w in workers if w.item is not None]:
                        self._drop(worker, selector, count=False)
                    break
        return verdicts

    def _drop(self, worker: MathWorker, selector, reply: dict | None = None, count: bool = True) -> int:
        """Ends a worker and returns the number of answers decided by that; RuntimeError if it was never ready."""
        why = None if worker.ready else (reply or {}).get("error") or worker.start_failure()
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
            raise TypeError(f"record {i}: `answer` should be a text that is not empty, not {short_repr(a)}")
    return zip(answer, completions)


_default: MathReward | None = None
_lock = threading.Lock()


def math_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """`MathReward` with its default limits; its workers are shared by all callers of this process."""
    global _default
    with _lock:
        _default = _default or MathReward()
    return _default(prompts, completions, answer, **columns)


# ---- options and slots ----


def choice_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """1.0 if `chosen_letter` finds the answer ("A" to "J"), else 0.0 (in TRL's signature).

    Raises:
        ValueError: If the numbers of answers and completions differ.
        TypeError: If an answer or a completion is no text.
    """
    return [float(chosen_letter(c) == a.strip().upper()) for a, c in _pairs(completions, answer)]


def slots_reward(prompts: Sequence, completions: Sequence, answer: Sequence[str], **columns) -> list[float]:
    """1.0 if a completion gives exactly the slots of the answer, each with an accepted value, else 0.0.

    Args:
        answer: JSON objects {slot: [accepted values]}, as `load_problems("sgd", ...)` gives them; case is ignored.

    Raises:
        ValueError: If the numbers of answers and completions differ, or an answer is no such JSON (names the record).
    """
    rewards = []
    for i, (a, completion) in enumerate(_pairs(completions, answer)):
        try:
            truth = {
                normal_slot_name(slot): set(map(normal_slot_value, values)) for slot, values in parse_json(a).items()
            }
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"record {i}: `answer` should be a JSON object of slots, not {short_repr(a)}") from None
        found = given_slots(completion)
        rewards.append(float(found.keys() == truth.keys() and all(found[slot] in truth[slot] for slot in truth)))
    return rewards


# ---- by record ----

VERIFIERS = {"math": math_reward, "choice": choice_reward, "slots": slots_reward}


def answer_reward(
    prompts: Sequence, completions: Sequence, answer: Sequence[str], verify: Sequence[str], **columns
) -> list[float]:
    """The reward of each record by its `verify` ("math", "choice" or "slots"): one function for mixed data.

    Raises:
        ValueError: If a kind is unknown (names the record); else as the functions it calls.
    """
    prompts, completions, answer, verify = map(list, (prompts, completions, answer, verify))  # series of pandas too
    pairs = list(_pairs(completions, answer))
    rewards = [0.0] * len(pairs)
    for i, kind in enumerate(verify):
        if kind not in VERIFIERS:
            raise ValueError(f"record {i}: `verify` should be one of {', '.join(VERIFIERS)}, not {short_repr(kind)}")
    for kind, func in VERIFIERS.items():
        rows = [i for i, k in enumerate(verify) if k == kind]
        own = func([prompts[i] for i in rows], [completions[i] for i in rows], [answer[i] for i in rows])
        for i, reward in zip(rows, own, strict=True):
            rewards[i] = reward
    return rewards
