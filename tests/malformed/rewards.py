"""Malformed rewards: what a reward function may return or raise."""

from __future__ import annotations

import asyncio
import math
import random
from types import SimpleNamespace

import numpy as np
import torch

from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.rewards import RewardError, Scores, score_completions
from malformed import Case
from malformed.mutations import nonsense

PROMPTS = ["p0", "p1", "p2"]
IDS = [[1, 2], [3], [4, 5, 6]]


class OwnError(Exception):
    """Of a user's code, with a message that cannot be written."""

    def __str__(self):
        raise RuntimeError("no text")


class Odd:
    """An object that lies about its length and cannot be shown."""

    def __len__(self):
        return 3

    def __repr__(self):
        raise ValueError("no repr")


ERRORS = [
    ValueError("x"), TypeError(), KeyError("k"), OSError(2, "gone"), MemoryError(), RecursionError("deep"), OwnError(),
    StopIteration(1), AssertionError("a\nb"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), TimeoutError(),
    RewardError("from inside"), asyncio.CancelledError(), ArithmeticError("y" * 5000), ExceptionGroup("g", [OSError()]),
]  # fmt: skip
PASSING = [KeyboardInterrupt(), SystemExit(3), GeneratorExit()]


def _returned(rng: random.Random):
    """Something that a reward function returns."""
    one = lambda: rng.choice((0.0, 1, True, None, 0.5, np.float32(1), torch.tensor(0.5), nonsense(rng)))  # noqa: E731
    size = rng.choice((3, 3, 3, 3, 0, 1, 2, 4, 1000))
    values = [one() for _ in range(size)]
    numbers = [rng.choice((0.0, 1.0, math.nan, math.inf, 1e39, -1.0)) for _ in range(size)]
    return rng.choice(
        (
            lambda: values,
            lambda: tuple(values),
            lambda: (value for value in values),
            lambda: iter(values),
            lambda: np.array(values, dtype=object),
            lambda: np.array(numbers),
            lambda: np.array(numbers).reshape(-1, 1),
            lambda: np.array(1.0),
            lambda: np.array(["a"] * 3),
            lambda: np.zeros(3, dtype=[("a", float)]),
            lambda: np.zeros(3, dtype="datetime64[s]"),
            lambda: torch.tensor(numbers),
            lambda: torch.tensor(numbers).reshape(1, -1),
            lambda: torch.zeros(3, 2),
            lambda: torch.tensor(1.0),
            lambda: torch.zeros(3, dtype=torch.complex64),
            lambda: torch.zeros(3, device="meta"),
            lambda: torch.zeros(3).to_sparse(),
            lambda: [[rng.random() for _ in ids] for ids in IDS],
            lambda: [[one() for _ in ids] for ids in IDS],
            lambda: [[0.0] * rng.randrange(4) for _ in IDS],
            lambda: [[[0.0]], 1.0, [[]]],
            lambda: [Odd(), Odd(), Odd()],
            lambda: Odd(),
            lambda: dict.fromkeys("abc", 1.0),
            lambda: {0.0, 1.0, 2.0},
            lambda: b"abc",
            lambda: (1 / 0 for _ in range(3)),
            lambda: map(float, "1x3"),
            lambda: lambda: [1.0, 0.0, 1.0],
            lambda: nonsense(rng),
        )
    )()


def reward_case(rng: random.Random) -> Case:
    """One function in a trainer's call: plain or async, alone or beside a good one, with noise around it or without."""
    passing = None
    chance = rng.random()
    if chance < 0.1:
        passing = rng.choice(PASSING)
        error, returned, shown = passing, None, repr(passing)
    elif chance < 0.3:
        error, returned = rng.choice(ERRORS), None
        shown = type(error).__name__
    else:
        error, returned = None, _returned(rng)
        shown = _shown(returned)

    def own_reward(**columns):
        if error is not None:
            raise error
        return returned

    async def own_reward_later(**columns):
        return own_reward()

    later = passing is None and rng.random() < 0.2
    func = own_reward_later if later else own_reward
    if not later and rng.random() < 0.2:
        func = corrupt(func, NoiseSettings("flip", rate=0.5), 0)
    funcs = {"own_reward": func} | ({"good": lambda **c: [0.0, None, 1.0]} if rng.random() < 0.3 else {})

    def call():
        try:
            columns = {"completion_ids": [list(ids) for ids in IDS]}
            return score_completions(funcs, list(PROMPTS), ["x"] * 3, columns, SimpleNamespace(global_step=3))
        except BaseException as caught:
            if caught is passing:  # an interruption goes through as it is
                return None
            raise

    def check(scores):
        if passing is not None:
            assert scores is None, f"{shown} was swallowed"
            return
        assert isinstance(scores, Scores) and scores.rewards.shape == (3,) and not scores.rewards.isinf().any()

    names = r"own_reward|the sum .* record \d|from inside"
    return Case(f"async: {later}, {shown}", call, (RewardError,), names, check)


def _shown(value) -> str:
    try:
        return f"{type(value).__name__} {value!r}"[:400]
    except Exception:
        return type(value).__name__
