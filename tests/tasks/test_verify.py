"""Verified rewards: right answers in many forms, hostile ones, limits, and every place from which they are called."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from joblib import Parallel, delayed

from dvpo_lib.tasks.published import math_workers
from dvpo_lib.tasks.published.options import chosen_letter
from dvpo_lib.tasks.published.verify import MathReward, answer_reward, choice_reward, math_reward, slots_reward


@pytest.fixture(scope="module")
def reward():
    """One for all tests that need no limits of their own: starting workers takes a second."""
    made = MathReward(seconds=0.5, workers=2)  # right answers below take at most 0.2 s
    yield made
    made.close()


def judge(reward, pairs) -> list[float]:
    return reward(prompts=[""] * len(pairs), completions=[c for _, c in pairs], answer=[a for a, _ in pairs])


# ---- mathematics ----

RIGHT = [
    ("18", "18"),
    ("18", "so she makes \\boxed{18}."),
    ("18", "A: 18"),
    ("18", "The final answer is $18$. I hope so."),
    ("1303", "\\boxed{1,303}"),
    ("1,303", "That is 1303 in all."),
    ("18.90", "answer: \\$18.90"),
    ("-4", "x = -4"),
    ("\\$18.90", "\\boxed{18.9}"),
    ("\\frac{1}{2}", "The answer is 0.5"),
    ("\\frac{1}{2}", "\\boxed{1/2}"),
    ("\\frac12", "\\boxed{\\dfrac{2}{4}}"),
    ("1\\frac{1}{2}", "\\boxed{3/2}"),
    ("0.5", "$\\frac{1}{2}$"),
    ("10\\%", "\\boxed{10\\%}"),
    ("10", "\\boxed{10\\%}"),
    ("5\\text{ cm}", "\\boxed{5}"),
    ("90^\\circ", "\\boxed{90}"),
    ("5", "\\boxed{5 \\text{ meters}}"),
    ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}"),
    ("-2,1", "$\\boxed{1}$ and $\\boxed{-2}$"),
    ("[1,2)", "\\boxed{[1, 2)}"),
    ("(-\\infty,2]\\cup[3,\\infty)", "\\boxed{(-\\infty, 2] \\cup [3, \\infty)}"),
    ("x \\in [-2,7]", "\\boxed{[-2,7]}"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "$\\boxed{(3, \\pi/2)}$"),
    ("2\\sqrt{2}", "\\boxed{\\sqrt{8}}"),
    ("x^2+2x+1", "\\boxed{(x+1)^2}"),
    ("p - q", "\\boxed{-q+p}"),
    ("x=5", "\\boxed{5}"),
    ("6 - 5i", "\\boxed{-5i+6}"),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"),
    ("\\begin{pmatrix} -2 \\\\ 1 \\end{pmatrix}", "\\[\\boxed{\\begin{pmatrix}-2\\\\1\\end{pmatrix}}\\]"),
    ("3", "\\boxed{4}. No, wait: that is wrong, and it should be \\boxed{3}"),
    ("3", "<think>\\boxed{4}</think>It is 3."),
    ("3", [{"role": "assistant", "content": "\\boxed{3}"}]),
    ("\\boxed{3}", "3"),
    ("3", "\\boxed{\\boxed{3}}"),
]
WRONG = [
    ("18", ""),
    ("18", " \n"),
    ("18", "I do not know."),
    ("18", "\\boxed{}"),
    ("18", "\\boxed{19}"),
    ("18", "-18"),
    ("72", "so 72 plums. No: 71."),
    ("3", "The answer is \\boxed{3} or \\boxed{4}"),
    ("3", "\\boxed{3}, \\boxed{4}"),
    ("3", "\\boxed{3} was my first thought, yet it is \\boxed{4}"),
    ("[1,2)", "\\boxed{[1,2]}"),
    ("(1,2)", "\\boxed{(2,1)}"),
    ("\\frac{1}{2}", "\\boxed{0.51}"),
    ("x", "\\boxed{X + 1}"),
    ("3.14", "\\boxed{\\pi}"),
    ("\\frac{1}{3}", "\\boxed{0.33}"),
    ("3", "<think>It is 3.</think> It is 4."),
    ("\\{1,2\\}", "\\boxed{1}"),
]


def test_equal_answers_are_right_and_others_wrong(reward):
    verdicts = judge(reward, RIGHT + WRONG)
    assert [pair for pair, v in zip(RIGHT, verdicts) if v != 1.0] == []
    assert [pair for pair, v in zip(WRONG, verdicts[len(RIGHT) :]) if v != 0.0] == []
    assert judge(reward, RIGHT + WRONG) == verdicts and reward.failures == {}


def test_a_hedge_is_no_answer_and_a_box_may_be_required(reward):
    said = [("18", "The answer is 18 or 19"), ("18", "The answer is 18"), ("18", "\\boxed{18}")]
    assert judge(reward, said) == [0.0, 1.0, 1.0]
    assert judge(MathReward(boxed_only=True), said) == [0.0, 0.0, 1.0]


SLOW = "\\tan(x)+\\sin(x)\\cos(2x)>\\frac{1}{3}"  # SymPy takes minutes to solve it
HOSTILE = {
    "slow inequality": f"\\boxed{{{SLOW}}}",
    "tower": "9**9**9**9",
    "factorial": "\\boxed{10000000!}",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 301,
    "nested brackets": "$" + "(" * 1900 + "18" + ")" * 1900 + "$",
    "long text": "x" * 10**6,
    "long number": "1" * 5000,
    "nulls": "a\x00\\boxed{\x00}",
    "half a surrogate": "\ud800 \\boxed{\ud800}",
    "open boxes": "\\boxed{" * 500,
    "slow for regular expressions": "$" * 1000 + "answer: " + "( " * 1000,
}


def test_hostile_answers_get_nothing_and_take_nothing_from_others(reward):
    pairs = [pair for c in HOSTILE.values() for pair in (("18", c), ("18", "It is \\boxed{18.0}"))]
    started = time.monotonic()
    verdicts = judge(reward, pairs)
    assert time.monotonic() - started < 60  # ten times what it takes
    assert dict(zip(HOSTILE, verdicts[::2])) == dict.fromkeys(HOSTILE, 0.0) and verdicts[1::2] == [1.0] * len(HOSTILE)
    assert set(reward.failures) == {"limit"} and 1 <= reward.failures["limit"] < len(HOSTILE)


def test_memory_is_limited():
    limit = "from dvpo_lib.tasks.published import math_workers; math_workers.limit_worker_resources(1, 2**28)"
    code = f"{limit}; x = bytearray(2**28)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "MemoryError" in done.stderr


def processes(reward) -> list[int]:
    return [worker.process.pid for worker in reward._pool.workers]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_was_killed_is_replaced():
    reward = MathReward(workers=1)  # which is then ready for certain, and the one that is asked next
    assert judge(reward, [("2", "1 + 1"), ("3", "1 + 2")]) == [1.0, 1.0]
    before = processes(reward)
    os.kill(before[0], signal.SIGKILL)
    assert judge(reward, [("2", "\\boxed{4/2}"), ("3", "\\boxed{6/2}")]) == [1.0, 1.0]
    assert before[0] not in processes(reward) and not alive(before[0])


def test_a_worker_that_does_not_answer_is_replaced(monkeypatch):
    """Time on the clock is limited too, where no processor time passes."""
    reward = MathReward(workers=1)
    judge(reward, [("2", "1 + 1")])
    for pid in processes(reward):
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(math_workers, "PATIENCE", 1.0)
    before = processes(reward)
    assert judge(reward, [("2", "\\boxed{8/4}")]) == [0.0] and len(set(processes(reward)) - set(before)) == 0
    monkeypatch.undo()
    assert judge(reward, [("2", "\\boxed{8/4}")]) == [1.0]


def test_a_batch_has_a_limit_too(caplog):
    short = MathReward(seconds=60, batch_seconds=3, workers=1)
    with caplog.at_level(logging.WARNING):
        verdicts = judge(short, [("2", "\\boxed{4/2}"), ("18", SLOW), ("3", "\\boxed{6/2}")])
    assert verdicts[1:] == [0.0, 0.0] and "answers were not judged within 3 s and get 0.0" in caplog.text
    assert short.failures["batch"] >= 2
    short.close()


def test_a_parent_that_holds_much_memory_does_not_wear_its_workers_out():
    """A process that has a model loaded: its workers are not taken for as large as itself, and go on."""
    ballast = bytearray(1 << 30)
    ballast[::4096] = b"1" * len(ballast[::4096])  # touched, or it would not count
    reward = MathReward(workers=1)
    assert judge(reward, [("2", "\\boxed{4/2}")]) == [1.0]
    before = processes(reward)
    del ballast
    assert judge(reward, [("3", "\\boxed{6/2}")]) == [1.0] and processes(reward) == before != []


def test_workers_are_started_when_needed_and_recycled(monkeypatch):
    lazy = MathReward(workers=3)
    assert judge(lazy, [("18", "18"), ("18", "")]) == [1.0, 0.0] and processes(lazy) == []
    assert judge(lazy, [("18", "\\boxed{36/2}")] * 8) == [1.0] * 8 and len(processes(lazy)) == 1  # the same question
    gone = processes(lazy)
    lazy.close()
    assert not any(map(alive, gone))
    assert judge(lazy, [("18", "\\boxed{36/2}")]) == [1.0], "a closed one starts again"
    gone = processes(lazy)
    del lazy
    gc.collect()
    assert not any(map(alive, gone))


def test_a_missing_library_is_no_wrong_answer(monkeypatch, tmp_path):
    (tmp_path / "sympy.py").write_text("raise ImportError('no such thing')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="SymPy cannot be imported: no such thing; `make install`"):
        judge(MathReward(), [("2", "1 + 1")])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a worker for math_reward cannot start: exit code 1"):
        judge(MathReward(), [("2", "1 + 1")])


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="there are 1 answers for 2 completions"):
        math_reward([""] * 2, ["1", "2"], ["1"])
    with pytest.raises(TypeError, match="record 1: `answer` should be a text that is not empty, not None"):
        math_reward([""] * 2, ["1", "2"], ["1", None])
    with pytest.raises(TypeError, match="a completion should be a text or a list of messages, not '3'"):
        math_reward([""], [3], ["1"])
    for wrong in ({"seconds": 0}, {"workers": 0}, {"memory": 1}, {"last": 0}, {"batch_seconds": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MathReward(**wrong)
    assert math_reward([], [], []) == [] and math_reward.__name__ == MathReward().__name__


def test_only_the_end_of_a_completion_counts():
    end = MathReward(last=20)
    assert judge(end, [("3", "\\boxed{3}" + " " * 30 + "x"), ("3", "\\boxed{4}" + " " * 30 + "3")]) == [0.0, 1.0]
    end.close()


# ---- where it is called from ----

PAIRS = [("\\frac{1}{2}", "\\boxed{2/4}"), ("18", "\\boxed{17}")]


def test_threads(reward):
    found = [None] * 3

    def work(i):
        found[i] = judge(reward, PAIRS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert found == [[1.0, 0.0]] * 3


def test_workers_of_joblib():
    answers, completions = zip(*PAIRS)
    rewards = MathReward(workers=1), math_reward
    verdicts = Parallel(n_jobs=2)(delayed(reward)([""] * 2, completions, answers) for reward in rewards)
    assert verdicts == [[1.0, 0.0]] * 2


def test_copies_and_forks_have_workers_of_their_own(reward):
    judge(reward, PAIRS)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.seconds == reward.seconds and copy._pool is not reward._pool and processes(copy) == []
    code = (
        "import os; from dvpo_lib.tasks.published.verify import MathReward; r = MathReward(workers=1)\n"
        "def ask(): return r([''], [r'\\boxed{2/4}'], [r'\\frac{1}{2}'])\n"
        "ask(); pid = os.fork()\n"
        "if pid == 0: os._exit(ask() != [1.0] or not r._pool.workers)\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "print(os.waitstatus_to_exitcode(status), ask(), r._pool.workers[0].process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    status, verdict, pid = done.stdout.split()
    assert (status, verdict) == ("0", "[1.0]"), done.stderr
    assert not alive(int(pid)), "workers end with the process that started them"


def test_workers_end_when_their_parent_is_killed():
    code = (
        "import os, signal; from dvpo_lib.tasks.published.verify import MathReward; r = MathReward(workers=1)\n"
        "r([''], [r'\\boxed{2/4}'], [r'\\frac{1}{2}']); print(r._pool.workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    deadline = time.monotonic() + 10
    while alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(done.stdout))


# ---- letters ----


@pytest.mark.parametrize(
    ("letter", "completions"),
    [
        (
            "B",
            [
                "\\boxed{B}",
                "\\boxed{\\text{(B)}}",
                "\\boxed{b}",
                "\\boxed{B. mitosis}",
                "The answer is B.",
                "(b)",
                "B",
                "Answer: B) 12",
                "**Answer:** B",
                "**Answer: (B)**",
                "answer is $\\boxed{B}$",
                "because\n**B**",
                "The correct option is B",
                "The answer is A. No, the answer is B.",
                "The answer should be option B",
                "The answer is B mitosis",
                "The answer is C. So \\boxed{B}",
                "<think>Answer: A</think> Answer: B",
            ],
        ),
        ("A", ["The answer is A because of it", "Answer: A", "The answer is A"]),
        ("J", ["The answer is: \\text{J}", "\\boxed{J}"]),
        (
            None,
            [
                "",
                "the answer is A mixture of",
                "The answer is B or C",
                "\\boxed{A, B}",
                "\\boxed{A} or \\boxed{B}",
                "I think A",
                "The answer is K",
                "The answer is Bern",
                "A B",
                "\\boxed{K}",
                "\x00",
                "answer " * 10**5,
                "answer is " + "(" * 10**5 + "A",
                "*" * 10**5,
                "\\boxed{" * 10**4,
            ],
        ),
    ],
)
def test_the_letter_that_is_chosen(letter, completions):
    started = time.process_time()
    assert {c[:60]: chosen_letter(c) for c in completions} == {c[:60]: letter for c in completions}
    assert time.process_time() - started < 1


def test_choice_reward():
    assert choice_reward([""] * 3, ["\\boxed{B}", "\\boxed{A}", "?"], answer=["B", "B", "b "]) == [1.0, 0.0, 0.0]


# ---- slots, mixed data ----


def test_slots_reward():
    answer = json.dumps({"city": ["Bern"], "seats": ["two", "2"]})
    right = [
        "city = Bern\nseats = 2",
        "- City: bern\n- seats: two",
        "seats = 3\ncity = Bern\nseats = 2",
        "<think>city = Rome</think>city = Bern\nseats = 2",
    ]
    wrong = ["", "city = Bern", "city = Bern\nseats = 3", "city = Bern\nseats = 2\ntime = now", "\x00", "=" * 10**5]
    rewards = slots_reward([""] * 10, right + wrong, [answer] * 10)
    assert rewards == [1.0] * len(right) + [0.0] * len(wrong)
    for bad in ("x", "[1]", '{"city": 3}'):
        with pytest.raises(ValueError, match="record 0: `answer` should be a JSON object of slots"):
            slots_reward([""], [""], [bad])


def test_mixed_data_is_judged_by_kind():
    answers, kinds = ["\\frac{1}{2}", "B", '{"a": ["1"]}', "2"], ["math", "choice", "slots", "math"]
    completions = ["\\boxed{0.5}", "\\boxed{B}", "a = 1", "3"]
    assert answer_reward([""] * 4, completions, answer=answers, verify=kinds, source=[""] * 4) == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="record 1: `verify` should be one of math, choice, slots, not 'maths'"):
        answer_reward([""] * 2, ["1"] * 2, ["1"] * 2, ["math", "maths"])


def test_import_is_light():
    heavy = "torch", "sympy", "datasets"
    code = f"import sys, dvpo_lib.tasks.published.verify; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
