"""Calls of reward functions: f(prompts, completions, **columns) -> list of numbers, None for a missing reward.

Any callable with TRL's signature works, the noise wrappers of `noise` included. Its result is checked here, once, for
trainers and wrappers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RewardError(RuntimeError):
    """A reward function raised, or its result is no list of rewards. The message names function and record."""


def call_reward(
    func: Callable, prompts: list[str], completions: list[str], columns: dict[str, list], state: Any = None
) -> np.ndarray:
    """Calls one reward function.

    If it raises, it is called again, record by record, to find the culprit.

    Args:
        func: The reward function.
        prompts: B texts.
        completions: B texts.
        columns: {name: B values}, the other columns of the records.
        state: The trainer's state, passed as `trainer_state`.

    Returns:
        (B,) rewards; NaN marks a missing one (None).

    Raises:
        RewardError: If the function raises (its error is chained), or returns the wrong number of rewards, or anything
            but finite numbers and None.
    """
    name, step = getattr(func, "__name__", repr(func)), getattr(state, "global_step", 0)

    def record(i: int) -> str:
        return f"record {i} at step {step} (prompt {prompts[i][:80]!r})"

    try:
        returned = func(prompts=prompts, completions=completions, trainer_state=state, **columns)
    except RewardError:  # from a function inside a wrapper, complete as it is
        raise
    except Exception as error:
        culprit = _culprit(func, prompts, completions, columns, state, type(error))
        alone = "" if culprit is None else f"; also on {record(culprit)} alone"
        raise RewardError(f"reward function {name} raised at step {step}: {error!r}{alone}") from error
    try:
        rewards = list(returned)
    except TypeError:
        raise RewardError(f"reward function {name} returned {returned!r} at step {step}, no list of rewards") from None
    if len(rewards) != len(prompts):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards for {len(prompts)} completions at step {step}"
        )
    for i, r in enumerate(rewards):
        if r is not None and (not isinstance(r, (int, float, np.number, np.bool_)) or not np.isfinite(r)):
            raise RewardError(f"reward function {name} returned {r!r} for {record(i)}; use None for a missing reward")
    return np.array([np.nan if r is None else r for r in rewards], dtype=float)


def _culprit(func, prompts, completions, columns, state, kind: type) -> int | None:
    """Index of the first record on which the function alone raises an error of this kind; None if there is none."""
    for i in range(len(prompts)):
        try:
            func(
                prompts=prompts[i : i + 1],
                completions=completions[i : i + 1],
                trainer_state=state,
                **{name: column[i : i + 1] for name, column in columns.items()},
            )
        except kind:
            return i
        except Exception:
            continue
    return None


def score_completions(
    reward_funcs: Iterable[Callable],
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list],
    state: Any = None,
) -> Tensor:
    """Sums the rewards of all functions.

    Args:
        reward_funcs: The reward functions.
        prompts: B texts.
        completions: B texts.
        columns: {name: B values}, the other columns of the records.
        state: The trainer's state.

    Returns:
        (B,) sum over the functions that give a reward; NaN if none does.

    Raises:
        RewardError: See `call_reward`.
    """
    each = np.stack([call_reward(func, prompts, completions, columns, state) for func in reward_funcs])
    total = np.where(np.isnan(each).all(0), np.nan, np.nansum(each, 0))
    return torch.tensor(total, dtype=torch.float32)
