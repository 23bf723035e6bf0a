"""Malformed answers: texts of any kind for the judges, which return 0.0 or 1.0 within bounded time."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dvpo_lib.tasks.published.verify import MathReward, choice_reward, slots_reward
from malformed import Case
from malformed.mutations import mutate_bytes, nonsense

CASES = Path(__file__).resolve().parents[1] / "tasks" / "answer_cases.jsonl"
PIECES = (
    r"\boxed{ \frac{ } { ( [ ] ) } \sqrt ^ _ $ \( \) \left( \right) 9**9**9**9 10^{10^{10^{10}}} ! "
    r"\begin{pmatrix} & \\ \infty \pi e i 0/0 1/0 1e999 0.1 3.50 -2 x y = < \le \cup \sin \log \int "
    r"\sum_{k=1}^{n} \binom{100000}{50000} #### <think> </think> <answer> </answer> The answer is (A) "
    r"(B) **C** not or % $5 \text{cm} 12,345 ² ½ √ ∞ ، ٣ 一 \mathrm{ \operatorname \color{red} \u202e "
    r"\x00 {} () 99999999999999999999 factorial(10**6) __import__('os') lambda:"
).split(" ")
JUDGES = {"choice": choice_reward, "slots": slots_reward}
SLOTS = json.dumps({"city": ["Paris", "paris"], "seats": ["2"]})


class AnswerCases:
    """Completions, right answers and their kinds. One set of workers judges all mathematics."""

    def __init__(self):
        self.math = MathReward(seconds=1, workers=1)
        self.known = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]

    def __call__(self, rng: random.Random) -> Case:
        kind = rng.choice(("math", "math", "math", "choice", "slots"))
        judge = self.math if kind == "math" else JUDGES[kind]
        right = {"math": self._text(rng), "choice": rng.choice("ABCDJ"), "slots": SLOTS}[kind]
        if rng.random() < 0.15:
            right = nonsense(rng)  # a right answer is data: it may be refused, by record
        completion = nonsense(rng) if rng.random() < 0.1 else self._text(rng)
        if rng.random() < 0.1:
            completion = [{"role": "assistant", "content": completion}]
        return Case(
            f"{kind}, right {right!r}, given {completion!r}",
            lambda: judge([""], [completion], answer=[right]),
            (TypeError, ValueError),
            r"record 0|a completion should be",
            _is_verdict,
        )

    def _text(self, rng: random.Random) -> str:
        chance = rng.random()
        text = rng.choice(rng.choice(self.known)[2:4])
        if chance < 0.2:
            return text
        if chance < 0.5:
            return mutate_bytes(text.encode(), rng).decode("utf-8", "replace")
        if chance < 0.6:
            return rng.choice(PIECES) * rng.choice((2, 50, 3000))
        if chance < 0.7:
            return text * rng.choice((2, 1000))
        words = [rng.choice(PIECES) for _ in range(rng.randint(1, 30))]
        return rng.choice(("", " ")).join(words) + rng.choice(("", "}", r" so \boxed{4}"))


def _is_verdict(rewards) -> None:
    assert rewards in ([0.0], [1.0]), rewards
