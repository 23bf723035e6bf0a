"""Reward functions in TRL's signature: f(prompts, completions, completion_ids, trainer_state, **columns) -> rewards.

Any callable serves, async ones and the noise wrappers of `noise` included; a sequence classifier is a reward function
by `RewardClassifier`. A reward is a number, None if there is none, or a list of numbers, one for each token of the
completion. What a function returns is checked here, once, for trainers and wrappers alike.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dvpo_lib.common.tables import FLOAT32_MAX, number_problem, short_repr
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.tokens import pad_rows

logger = logging.getLogger(__name__)
Reward = float | list[float] | None


class RewardError(RuntimeError):
    """A reward function raised, or what it returned is no list of rewards; the message names function and record."""


@dataclass
class Scores:
    """Rewards of B completions.

    Attributes:
        rewards: (B,) weighted sum over the functions that have a reward; NaN if none has.
        by_function: Name of each function to its rewards (B,), sums over tokens included; NaN if missing.
        process: (B, T) weighted rewards by token that are part of `rewards`; None if all are of whole responses.
    """

    rewards: Tensor
    by_function: dict[str, Tensor]
    process: Tensor | None = None


def score_completions(
    reward_funcs: Mapping[str, Callable],
    prompts: list,
    completions: list,
    columns: dict[str, Any],
    state: Any = None,
    weights: Sequence[float] | None = None,
) -> Scores:
    """Calls all functions, async ones side by side.

    Args:
        reward_funcs: Functions by name.
        prompts: B prompts, texts or lists of messages; completions alike.
        columns: Further arguments by name. Lists of B elements are one for each record; `completion_ids` among them
            says how many tokens a completion has.
        state: Argument `trainer_state`.
        weights: Of the functions; None: 1 each.

    Raises:
        RewardError: If a function raises, or returns anything but a reward for each completion.
    """
    funcs, size = list(reward_funcs.values()), len(prompts)
    returned = _outcomes(funcs, prompts, completions, columns, state)
    weights = np.ones(len(funcs)) if weights is None else np.asarray(weights, dtype=float)
    each, process = np.full((len(funcs), size), np.nan), None
    for place, (func, values) in enumerate(zip(funcs, returned, strict=True)):
        by_token = []
        for i, reward in enumerate(_checked(func, values, prompts, state, columns.get("completion_ids"))):
            by_token.append(reward if isinstance(reward, list) else [])
            each[place, i] = np.nan if reward is None else np.sum(reward)
        if any(by_token):
            longest = max(map(len, columns["completion_ids"]))
            table = pad_rows([*by_token, [0.0] * longest], 0.0, dtype=torch.float32)[0][:-1]  # (B, T)
            process = (0.0 if process is None else process) + weights[place] * table
    total = np.where(np.isnan(each).all(0), np.nan, np.nansum(each * weights[:, None], 0))
    if (beyond := np.flatnonzero(np.abs(total) > FLOAT32_MAX)).size:
        place = _record(int(beyond[0]), getattr(state, "global_step", 0), prompts)
        raise RewardError(f"the sum {total[beyond[0]]:g} of the rewards for {place} does not fit into float32")
    by_function = {name: torch.tensor(row, dtype=torch.float32) for name, row in zip(reward_funcs, each, strict=True)}
    return Scores(torch.tensor(total, dtype=torch.float32), by_function, process)


def call_reward(
    func: Callable, prompts: list, completions: list, columns: dict[str, Any], state: Any = None
) -> np.ndarray:
    """(B,) rewards by one function, for wrappers of it; NaN if missing. Rewards by token are not taken.

    Args and raises: as `score_completions`.
    """
    rewards = _checked(func, _outcomes([func], prompts, completions, columns, state)[0], prompts, state)
    return np.array([np.nan if reward is None else reward for reward in rewards], dtype=float)


def function_names(funcs: Sequence[Callable]) -> list[str]:
    """A name for each function, unlike all others."""
    names: list[str] = []
    for func in funcs:
        name = getattr(func, "__name__", None) or getattr(getattr(func, "func", None), "__name__", type(func).__name__)
        count = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{count + 1}" if name in names else name)
    return names


def warn_of_missing(rewards: Tensor, prompts: list, completions: list, columns: dict[str, Any]) -> None:
    """Says which record no function has a reward for, the first of them."""
    first = int(rewards.isnan().nonzero()[0])
    record = {name: column[first] for name, column in columns.items() if _is_by_record(column, len(prompts))}
    record |= {"prompt": prompts[first], "completion": completions[first]}
    logger.warning(
        f"All reward functions returned None for the following kwargs:\n{record}\n"
        "Please ensure that at least one reward function returns a valid reward."
    )


class RewardClassifier:
    """A sequence classifier with one output as a reward function.

    Args:
        model: Classifier of `transformers`, or a module that is called alike.
        tokenizer: Its own.
        batch_size: Completions read at once.
        template: Further arguments of the chat template, for conversations.
    """

    def __init__(self, model: nn.Module, tokenizer, batch_size: int, template: dict | None = None):
        self.model, self.tokenizer, self.batch_size, self.template = model, tokenizer, batch_size, template or {}
        self.__name__ = (
            str(getattr(model.config, "_name_or_path", "") or type(model).__name__).rstrip("/").split("/")[-1]
        )

    @torch.no_grad()
    def __call__(self, prompts, completions, **columns) -> list[float]:
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        device, rewards = next(self.model.parameters()).device, []
        with inference_mode_of(self.model):
            for start in range(0, len(texts), self.batch_size):
                inputs = self.tokenizer(
                    text=texts[start : start + self.batch_size],
                    return_tensors="pt",
                    padding=True,
                    padding_side="right",
                    add_special_tokens=False,
                ).to(device)
                rewards += self.model(**inputs).logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt, completion) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False, **self.template)


def _outcomes(funcs: Sequence[Callable], prompts, completions, columns, state) -> list:
    """What each function returns."""
    outcomes: list = []
    try:
        for func in funcs:
            outcomes.append(_started(func, prompts, completions, columns, state))
        pending = {place: outcome for place, outcome in enumerate(outcomes) if inspect.isawaitable(outcome)}
        for place, result in zip(pending, _awaited(list(pending.values()))):
            outcomes[place] = result
            if isinstance(result, BaseException):
                func = funcs[place]
                raise result
    except RewardError:  # of a function inside a wrapper: it says all that is to be said
        raise
    except (Exception, asyncio.CancelledError) as error:
        name, step = function_names([func])[0], getattr(state, "global_step", 0)
        culprit = _culprit(func, prompts, completions, columns, state, type(error))
        alone = "" if culprit is None else f"; also on {_record(culprit, step, prompts)} alone"
        raise RewardError(f"reward function {name} raised at step {step}: {short_repr(error, 500)}{alone}") from error
    finally:
        for outcome in outcomes:
            if inspect.iscoroutine(outcome):
                outcome.close()  # one before it raised
    return outcomes


def _started(func: Callable, prompts, completions, columns, state):
    """The function's result, or the awaitable of an async one. It is passed copies, for it may change them."""
    own = {name: _copied(x) if _is_by_record(x, len(prompts)) else x for name, x in columns.items()}
    return func(prompts=_copied(prompts), completions=_copied(completions), trainer_state=state, **own)


def _awaited(pending: list) -> list:
    """Results or exceptions of awaitables, run side by side in a thread: notebooks have a running loop in theirs."""
    if not pending:
        return []

    async def settled(awaitable):
        try:
            return await awaitable
        except BaseException as error:  # an interrupt, too: it would end the loop's thread and leave us waiting
            return error

    async def together() -> list:
        return await asyncio.gather(*map(settled, pending))

    loop = _loop_of(os.getpid(), threading.get_ident())
    return asyncio.run_coroutine_threadsafe(together(), loop).result()


@functools.cache
def _loop_of(process: int, thread: int) -> asyncio.AbstractEventLoop:
    """One loop for all calls from a thread: what functions keep (clients, semaphores) belongs to the loop it met."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _checked(func, returned, prompts, state, completion_ids=None) -> list[Reward]:
    """The rewards as plain numbers and lists of them.

    Args:
        completion_ids: Tokens of each completion, if there may be rewards by token.
    """
    name, step = function_names([func])[0], getattr(state, "global_step", 0)
    try:
        if isinstance(returned, Mapping | Set | str | bytes):  # of no order, or no rewards
            raise TypeError
        values = _plain(returned, 1) if isinstance(returned, Tensor | np.ndarray) else [_plain(x) for x in returned]
        values = list(values)
    except Exception as error:  # also of the user's iterator, or of a tensor without values
        why = "no list of rewards" if isinstance(error, TypeError) else f"unreadable: {short_repr(error, 200)}"
        shown = short_repr(returned, 200)
        raise RewardError(f"reward function {name} returned {shown} at step {step}, {why}") from error
    if len(values) != len(prompts):
        raise RewardError(
            f"reward function {name} returned {len(values)} rewards for {len(prompts)} completions at step {step}"
        )
    for i, value in enumerate(values):
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        for number in numbers:
            if problem := number_problem(number):
                hint = ": it does not fit into float32" if "float32" in problem else "; use None for a missing reward"
                place = _record(i, step, prompts)
                raise RewardError(f"reward function {name} returned {short_repr(number)} for {place}{hint}")
        if isinstance(value, list):
            tokens = None if completion_ids is None else len(completion_ids[i])
            if len(value) != tokens:
                expected = "one reward" if tokens is None else f"one for each of its {tokens} tokens"
                place = _record(i, step, prompts)
                raise RewardError(f"reward function {name} returned {len(value)} rewards for {place}, not {expected}")
    return values


def _plain(value, dimensions: int = 0):
    """A number, or a list of numbers, of `torch` or `numpy` as Python has it; a last dimension of 1 too many goes."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim > dimensions and value.shape[-1] == 1:
        value = value.squeeze(-1)  # a column, as classifiers return it
    if isinstance(value, Tensor):
        return value.detach().to_dense().cpu().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def _culprit(func, prompts, completions, columns, state, kind: type) -> int | None:
    """The first record on which the function raises an error of this kind by itself."""
    for i in range(len(prompts)):
        own = {name: x[i : i + 1] if _is_by_record(x, len(prompts)) else x for name, x in columns.items()}
        try:
            result = _started(func, prompts[i : i + 1], completions[i : i + 1], own, state)
            results = _awaited([result]) if inspect.isawaitable(result) else []
            if any(isinstance(x, kind) for x in results):
                return i
        except kind:
            return i
        except Exception:
            continue
    return None


def _record(i: int, step: int, prompts: list) -> str:
    return f"record {i} at step {step} (prompt {str(prompts[i])[:80]!r})"


def _is_by_record(column, size: int) -> bool:
    return isinstance(column, list) and len(column) == size


def _copied(column: list) -> list:
    """A copy of a column that shares nothing that can be changed."""
    if all(isinstance(x, str | int | float | None) for x in column):
        return list(column)
    if all(isinstance(x, list) and all(isinstance(y, int) for y in x[:1]) for x in column):  # token ids
        return [list(x) for x in column]
    return copy.deepcopy(column)
