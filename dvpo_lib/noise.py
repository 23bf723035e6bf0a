"""Noisy supervision: seeded corruptions around any reward function.

Each kind is a pure function of (rewards, prompts, completions, settings, generator); `corrupt` puts one around a reward
function in TRL's signature. Randomness is drawn anew for every (seed, step), so that a resumed run sees the same noise.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class NoiseSettings:
    """One noise source."""

    kind: Literal["none", "flip", "false_positive", "false_negative", "spikes", "prompt_spikes"] = "none"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the rewards at risk that is corrupted
    scale: Annotated[float, Field(ge=0)] = 5.0  # standard deviation of spikes (reward units)


def none(rewards, prompts, completions, cfg, rng):
    """The truth."""
    return rewards


def flip(rewards, prompts, completions, cfg, rng):
    """r -> 1 - r at the rate, whatever r is."""
    return np.where(rng.random(len(rewards)) < cfg.rate, 1 - rewards, rewards)


def false_positive(rewards, prompts, completions, cfg, rng):
    """Failures (r < 0.5) called successes at the rate."""
    return np.where((rng.random(len(rewards)) < cfg.rate) & (rewards < 0.5), 1.0, rewards)


def false_negative(rewards, prompts, completions, cfg, rng):
    """Successes (r >= 0.5) called failures at the rate."""
    return np.where((rng.random(len(rewards)) < cfg.rate) & (rewards >= 0.5), 0.0, rewards)


def spikes(rewards, prompts, completions, cfg, rng):
    """Rewards replaced by N(0, scale^2) at the rate: a heavy-tailed mixture."""
    hit, spike = rng.random(len(rewards)) < cfg.rate, rng.normal(0, cfg.scale, len(rewards))
    return np.where(hit, spike, rewards)


def prompt_spikes(rewards, prompts, completions, cfg, rng):
    """Spikes whose scale depends on the prompt: 1 for one half of all prompts (by hash), `scale` for the other."""
    loud = np.array([hashlib.blake2b(p.encode(), digest_size=1).digest()[0] % 2 for p in prompts], dtype=bool)
    hit, spike = rng.random(len(rewards)) < cfg.rate, rng.normal(0, 1, len(rewards))
    return np.where(hit, spike * np.where(loud, cfg.scale, 1.0), rewards)


NOISES = {f.__name__: f for f in (none, flip, false_positive, false_negative, spikes, prompt_spikes)}


def corrupt(reward_func: Callable, cfg: NoiseSettings, seed: int) -> Callable:
    """`reward_func` under noise, in the same signature.

    The noise of a call depends on `seed` and on the trainer's `global_step` (0 where no `trainer_state` is passed).
    """

    @functools.wraps(reward_func)
    def noisy(prompts, completions, trainer_state=None, **columns):
        rewards = np.asarray(reward_func(prompts, completions, trainer_state=trainer_state, **columns), dtype=float)
        rng = np.random.default_rng([seed, getattr(trainer_state, "global_step", 0)])
        return NOISES[cfg.kind](rewards, prompts, completions, cfg, rng).tolist()

    return noisy


def confusion(true: np.ndarray, noisy: np.ndarray) -> dict[str, float]:
    """How a source errs, its reward read as a label at 0.5: shares of all responses, and the measured rates.

    Args:
        true, noisy: (n,) rewards.

    Returns:
        Shares tp, fp, fn, tn (sum 1); `corrupted`: share of rewards changed at all; `accuracy`: of the label.
    """
    t, y = np.asarray(true) >= 0.5, np.asarray(noisy) >= 0.5
    return dict(
        tp=float((t & y).mean()), fp=float((~t & y).mean()), fn=float((t & ~y).mean()), tn=float((~t & ~y).mean()),
        corrupted=float((np.asarray(true) != np.asarray(noisy)).mean()), accuracy=float((t == y).mean()),
    )  # fmt: skip
