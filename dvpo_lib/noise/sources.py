"""Noise sources: seeded corruptions of rewards that can be combined.

A source is a row of `noises` in params.yaml. Its kind sets what a corrupted reward becomes, its rate how often that
happens. `drift` lets the rate rise during training; `then` lists sources that act on the result::

    flip: {kind: flip, rate: 0.4}
    late_flips: {kind: flip, rate: 0.4, drift: [10, 30]}
    long_and_gappy: {kind: length_bias, scale: 0.3, then: [{kind: missing, rate: 0.2}]}

The kinds `majority_vote` and `reward_model` (`PROXIES`) replace the true reward by that of another reward function;
notebook 01 makes both. Every (seed, step) has its own random stream, so a resumed run sees the same noise.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.common.settings_tree import cut_text
from dvpo_lib.rl.rewards import call_reward

PROXIES = ("majority_vote", "reward_model")  # kinds that need a reward function in place of the true one


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class NoiseSettings:
    """One noise source.

    Example:
        >>> flips = NoiseSettings("flip", rate=0.4)  # 40 % of the rewards r become 1 - r
        >>> late = NoiseSettings("flip", rate=0.4, drift=(10, 30))  # ... rising from 0 between steps 10 and 30
        >>> late.rate_at(20)
        0.2
        >>> gaps = NoiseSettings("length_bias", scale=0.3, then=(NoiseSettings("missing", rate=0.2),))
        >>> [part.kind for part in gaps.chain]
        ['length_bias', 'missing']
    """

    kind: Annotated[str, AfterValidator(lambda kind: _known_kind(kind))] = "none"  # a row of NOISES
    rate: Annotated[float, Field(ge=0, le=1)] = 1.0  # probability that it corrupts a reward
    scale: Annotated[float, Field(ge=0)] = 5.0  # spikes: standard deviation; length_bias: reward per deviation
    drift: tuple[int, int] | None = None  # steps between which the rate rises from 0; null: constant rate
    hard: bool = False  # reward_model: verdicts 0 or 1 in place of probabilities
    then: tuple[NoiseSettings, ...] = ()  # sources that act on the result, in order

    @model_validator(mode="after")
    def _drift_fits(self):
        if self.drift is not None and not 0 <= self.drift[0] <= self.drift[1]:
            raise ValueError(f"drift: steps (first, last) with 0 <= first <= last expected, not {self.drift}")
        if self.hard and self.kind != "reward_model":
            raise ValueError(f"hard: only a reward model has verdicts, not {self.kind}")
        return self

    @property
    def chain(self) -> tuple[NoiseSettings, ...]:
        """All sources in the order in which they act, this one first."""
        return (self, *(part for source in self.then for part in source.chain))

    @property
    def proxies(self) -> tuple[str, ...]:
        """The kinds of `PROXIES` in the chain."""
        return tuple(kind for kind in PROXIES if any(part.kind == kind for part in self.chain))

    def rate_at(self, step: int) -> float:
        """The rate at a training step; critic pretraining counts as step 0."""
        if self.drift is None:
            return self.rate
        first, last = self.drift
        return self.rate * (float(step >= last) if first == last else min(max((step - first) / (last - first), 0), 1))


def none(rewards, prompts, completions, cfg, rng):
    """The truth."""
    return rewards


def flip(rewards, prompts, completions, cfg, rng):
    """r -> 1 - r, whatever r is."""
    return 1 - rewards


def false_positive(rewards, prompts, completions, cfg, rng):
    """Failures (r < 0.5) are called successes."""
    return np.where(rewards < 0.5, 1.0, rewards)


def false_negative(rewards, prompts, completions, cfg, rng):
    """Successes (r >= 0.5) are called failures."""
    return np.where(rewards >= 0.5, 0.0, rewards)


def spikes(rewards, prompts, completions, cfg, rng):
    """Rewards are replaced by N(0, scale^2): a heavy-tailed mixture."""
    return rng.normal(0, cfg.scale, len(rewards))


def prompt_spikes(rewards, prompts, completions, cfg, rng):
    """Spikes whose scale depends on the prompt: 1 for one half of all prompts (by hash), `scale` for the other."""
    loud = np.array([hashlib.blake2b(p.encode(), digest_size=1).digest()[0] % 2 for p in prompts], dtype=bool)
    return rng.normal(0, 1, len(rewards)) * np.where(loud, cfg.scale, 1.0)


def missing(rewards, prompts, completions, cfg, rng):
    """There is no reward (None)."""
    return np.full(len(rewards), np.nan)


def length_bias(rewards, prompts, completions, cfg, rng):
    """r + scale * (words - mean) / deviation, over the responses scored together; all words count, the user's too."""
    words = np.array([len(c.split()) for c in completions], dtype=float)
    return rewards + cfg.scale * (words - words.mean()) / (words.std() or 1.0)


def majority_vote(rewards, prompts, completions, cfg, rng):
    """Agreement with the prompt's pseudo-label, the base policy's majority answer, in place of the truth."""


def reward_model(rewards, prompts, completions, cfg, rng):
    """What a trained reward model says, in place of the truth: its probability, or, where `hard`, its verdict."""


# The functions' names are the kinds of NoiseSettings; their docstrings are cells of the table of noise sources.
NOISES = {
    f.__name__: f
    for f in (
        none,
        flip,
        false_positive,
        false_negative,
        spikes,
        prompt_spikes,
        missing,
        length_bias,
        majority_vote,
        reward_model,
    )
}


def _known_kind(kind: str) -> str:
    if kind not in NOISES:
        raise ValueError(f"{cut_text(repr(kind))} is no kind of noise; there are {', '.join(NOISES)}")
    return kind


def corrupt_rewards(
    rewards: np.ndarray,
    prompts: list[str],
    completions: list[str],
    cfg: NoiseSettings,
    seed: int,
    step: int = 0,
    proxies: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Applies a noise source, and the sources chained to it, to a batch of rewards.

    Each source of the chain has its own random stream, set by (seed, step, position). Missing rewards stay missing.

    Args:
        rewards: (B,) rewards; NaN if missing.
        prompts: (B,) prompts.
        completions: (B,) completions.
        cfg: The source.
        seed: Of the noise.
        step: Training step, for the random stream and the drift of rates.
        proxies: {kind: (B,) rewards by that proxy, NaN if missing} for the kinds in `cfg.proxies`.

    Returns:
        (B,) corrupted rewards; NaN if missing.
    """
    for place, part in enumerate(cfg.chain):
        rng = np.random.default_rng(seed_for(seed, "noise", step, place))
        struck = (rng.random(len(rewards)) < part.rate_at(step)) & ~np.isnan(rewards)
        if part.kind in PROXIES:
            new = (proxies or {})[part.kind]
            new = np.where(np.isnan(new), new, new >= 0.5) if part.hard else new
        else:
            new = NOISES[part.kind](rewards, prompts, completions, part, rng)
        rewards = np.where(struck, new, rewards)
    return rewards


def score_proxies(
    cfg: NoiseSettings,
    proxies: Mapping[str, Callable],
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list],
    state: Any = None,
) -> dict[str, np.ndarray]:
    """Calls the proxies that a source needs, for `corrupt_rewards`.

    Args:
        cfg: The source.
        proxies: {kind: reward function}.
        prompts: (B,) prompts.
        completions: (B,) completions.
        columns: Other columns of the records.
        state: The `trainer_state` passed to the functions.

    Returns:
        {kind: (B,) rewards, NaN if missing}.

    Raises:
        ValueError: If a proxy that the source needs is missing.
    """
    _check_proxies(cfg, proxies)
    return {kind: call_reward(proxies[kind], prompts, completions, columns, state) for kind in cfg.proxies}


def _check_proxies(cfg: NoiseSettings, proxies: Mapping[str, Callable]) -> None:
    for kind in cfg.proxies:
        if kind not in proxies:
            raise ValueError(f"noise of kind {kind} needs proxies[{kind!r}], a reward function")


def corrupt(
    reward_func: Callable, cfg: NoiseSettings, seed: int, proxies: Mapping[str, Callable] | None = None
) -> Callable:
    """Wraps a reward function in noise; see `corrupt_rewards`.

    The noise of a call depends on `seed` and the trainer's `global_step` (0 without `trainer_state`).

    Args:
        reward_func: A reward function in TRL's signature.
        cfg: The noise source.
        seed: Of the noise.
        proxies: {kind: reward function} for the kinds in `cfg.proxies`.

    Returns:
        A reward function in the same signature; None marks a missing reward.

    Raises:
        ValueError: If a proxy that the source needs is missing.

    Example:
        >>> def exact_match(prompts, completions, answer, **columns):
        ...     return [float(c == a) for c, a in zip(completions, answer)]
        >>> noisy = corrupt(exact_match, NoiseSettings("flip", rate=1.0), seed=0)
        >>> noisy(["1 + 1", "1 + 2"], ["2", "4"], answer=["2", "3"])
        [0.0, 1.0]
    """
    _check_proxies(cfg, proxies or {})

    @functools.wraps(reward_func)
    def noisy(prompts, completions, trainer_state=None, **columns):
        rewards = call_reward(reward_func, prompts, completions, columns, trainer_state)
        scores = score_proxies(cfg, proxies or {}, prompts, completions, columns, trainer_state)
        step = getattr(trainer_state, "global_step", 0)
        rewards = corrupt_rewards(rewards, prompts, completions, cfg, seed, step, scores)
        return [None if np.isnan(r) else r for r in rewards.tolist()]

    return noisy
