"""Reward functions in TRL's signature: what they get, what they may return, and the errors that name the record."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.rewards import RewardError, call_reward, score_completions

PROMPTS, COLUMNS = ["p0", "p1", "p2"], {"answer": ["a", "b", "c"]}


def run(func, step=3):
    return call_reward(func, PROMPTS, ["x"] * 3, COLUMNS, SimpleNamespace(global_step=step))


def test_numbers_of_any_kind_and_none():
    assert run(lambda **c: [1, np.float32(0.5), True])[:2].tolist() == [1, 0.5]
    assert np.isnan(run(lambda **c: [0.0, None, 1.0])).tolist() == [False, True, False]
    assert run(lambda **c: np.array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "rewards",
    [
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3], dtype=np.float16),
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), np.float32(2), 3],
        pd.Series([1.0, 2.0, 3.0], index=[7, 7, 9]),
    ],
    ids=range(6),
)
def test_lists_tensors_arrays_and_series_are_taken(rewards):
    assert run(lambda **c: rewards).tolist() == [1, 2, 3]


def test_a_function_that_edits_its_lists_changes_neither_data_nor_the_view_of_another():
    columns = {"answer": ["a", "b"], "user": [{"name": ["x"]}, {"name": ["y"]}], "completion_ids": [[1], [2, 3]]}
    prompts = ["p", [{"role": "user", "content": "q"}]]
    before = copy.deepcopy((columns, prompts))
    seen = []

    def vandal(prompts, completions, answer, user, completion_ids, **columns):
        seen.append((answer[0], user[0]["name"][0], completion_ids[1][0], prompts[1][0]["content"]))
        answer[0], user[0]["name"][0], completion_ids[1][0] = "z", "z", 9
        prompts[1][0]["content"] = "z"
        completions.clear()
        return [0.0, 1.0]

    scores = score_completions({"one": vandal, "two": vandal}, prompts, ["c", "d"], columns)
    assert scores.rewards.tolist() == [0, 2] and (columns, prompts) == before
    assert seen == [("a", "x", 2, "q")] * 2


def test_a_sum_beyond_float32_is_refused_by_record():
    funcs = {"one": lambda **c: [0.0, 3e38], "two": lambda **c: [0.0, 3e38]}
    with pytest.raises(RewardError, match="the sum 6e.38 of the rewards for record 1 .* float32"):
        score_completions(funcs, ["p", "q"], ["c", "d"], {})


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
        (lambda **c: {0: 1.0, 1: 0.0, 2: 0.5}, "returned {0: 1.0.* no list of rewards"),
        (lambda **c: {0.0, 1.0, 0.5}, "returned {.* no list of rewards"),
        (lambda **c: "123", "returned '123' at step 3, no list of rewards"),
        (lambda **c: [0.0, 1e39, 0.0], r"returned 1e\+39 for record 1 .*float32"),
        (lambda **c: [0.0, 10**30, 10**400], "returned an integer of 1329 bits for record 2 .*float32"),
        (lambda **c: [0.0, [1.0], 0.0], "record 1"),
        (lambda **c: torch.tensor([0.0, 1.0, float("nan")]), "returned nan for record 2"),
        (lambda **c: np.array([0, 1, 2], dtype=complex), "returned 0j for record 0"),
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
