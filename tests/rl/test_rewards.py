"""Reward functions in TRL's signature: what they get, what they may return, and the errors that name the record."""

from types import SimpleNamespace

import numpy as np
import pytest

from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.rewards import RewardError, call_reward

PROMPTS, COLUMNS = ["p0", "p1", "p2"], {"answer": ["a", "b", "c"]}


def run(func, step=3):
    return call_reward(func, PROMPTS, ["x"] * 3, COLUMNS, SimpleNamespace(global_step=step))


def test_numbers_of_any_kind_and_none():
    assert run(lambda **c: [1, np.float32(0.5), True])[:2].tolist() == [1, 0.5]
    assert np.isnan(run(lambda **c: [0.0, None, 1.0])).tolist() == [False, True, False]
    assert run(lambda **c: np.array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]


def picky(prompts, completions, answer, trainer_state, **columns):
    return [1 / 0 if a == "b" else 1.0 for a in answer]


def moody(prompts, completions, **columns):
    if len(prompts) == 3:
        raise OSError("the judge is away")
    return [0.0] * len(prompts)


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (picky, r"picky raised at step 3: ZeroDivisionError.*; also on record 1 .*\(prompt 'p1'\) alone"),
        (moody, r"moody raised at step 3: OSError\('the judge is away'\)$"),  # no record by itself is to blame
        (lambda **c: [1.0, float("nan"), 0.0], r"returned nan for record 1 at step 3 \(prompt 'p1'\); use None"),
        (lambda **c: [1.0, 0.0, float("-inf")], "returned -inf for record 2"),
        (lambda **c: ["1", 0.0, 0.0], "returned '1' for record 0"),
        (lambda **c: [1.0], "returned 1 rewards for 3 completions at step 3"),
        (lambda **c: None, "returned None at step 3, no list of rewards"),
    ],
)
def test_errors_name_function_step_and_record(func, message):
    for wrapped in (func, corrupt(func, NoiseSettings("flip", rate=0.5), 0)):  # a wrapper hands the message on
        with pytest.raises(RewardError, match=message):
            run(wrapped)


def test_the_error_is_chained():
    with pytest.raises(RewardError) as caught:
        run(picky)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
