"""Noisy supervision: seeded corruptions around any reward function, put together at will.

A source is a row of `noises` in params.yaml. Its kind says what a reward becomes where the noise strikes, its rate how
often it strikes; `drift` lets the rate rise in the course of training; `then` lists sources that act on the result::

    flip: {kind: flip, rate: 0.4}
    late_flips: {kind: flip, rate: 0.4, drift: [10, 30]}
    long_and_gappy: {kind: length_bias, scale: 0.3, then: [{kind: missing, rate: 0.2}]}

Kinds `majority_vote` and `reward_model` put another reward function in the truth's place (`PROXIES`; notebook 01 makes
them). Randomness is drawn anew for every (seed, step), so that a resumed run sees the same noise.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.rl.rewards import call

PROXIES = ("majority_vote", "reward_model")  # reward functions that stand for the truth, by kind


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class NoiseSettings:
    """One noise source."""

    kind: Literal[
        "none",
        "flip",
        "false_positive",
        "false_negative",
        "spikes",
        "prompt_spikes",
        "missing",
        "length_bias",
        "majority_vote",
        "reward_model",
    ] = "none"
    rate: Annotated[float, Field(ge=0, le=1)] = 1.0  # probability that it strikes a reward at risk
    scale: Annotated[float, Field(ge=0)] = 5.0  # of spikes: standard deviation; of length_bias: a deviation's reward
    drift: tuple[int, int] | None = None  # steps between which the rate rises from 0 to its value; null: it holds
    hard: bool = False  # reward_model: its verdict, 0 or 1, in place of its probability
    then: tuple[NoiseSettings, ...] = ()  # sources that act on the result, one after the other

    @model_validator(mode="after")
    def _drift_fits(self):
        if self.drift is not None and not 0 <= self.drift[0] <= self.drift[1]:
            raise ValueError(f"drift: steps (first, last) with 0 <= first <= last are expected, not {self.drift}")
        if self.hard and self.kind != "reward_model":
            raise ValueError(f"hard: only a reward model has verdicts, not {self.kind}")
        return self

    @property
    def chain(self) -> tuple[NoiseSettings, ...]:
        """The sources that act one after the other, this one first."""
        return (self, *(part for source in self.then for part in source.chain))

    @property
    def proxies(self) -> tuple[str, ...]:
        """The reward functions that it needs in the truth's place."""
        return tuple(kind for kind in PROXIES if any(part.kind == kind for part in self.chain))

    def rate_at(self, step: int) -> float:
        """The rate at a step of training; pretraining counts as step 0."""
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


def corrupt(
    reward_func: Callable, cfg: NoiseSettings, seed: int, proxies: Mapping[str, Callable] | None = None
) -> Callable:
    """`reward_func` under noise, in the same signature. A missing reward (None) stays missing.

    The noise of a call depends on `seed` and on the trainer's `global_step` (0 where no `trainer_state` is passed).

    Args:
        proxies: {kind: reward function} for the kinds of `PROXIES`; any callable with the signature serves.

    Raises:
        ValueError: a proxy that the source needs is not there.
    """
    proxies = proxies or {}
    for kind in cfg.proxies:
        if kind not in proxies:
            raise ValueError(f"noise of kind {kind} needs proxies[{kind!r}], the reward function in the truth's place")

    @functools.wraps(reward_func)
    def noisy(prompts, completions, trainer_state=None, **columns):
        rewards = call(reward_func, prompts, completions, columns, trainer_state)
        step = getattr(trainer_state, "global_step", 0)
        for place, part in enumerate(cfg.chain):
            rng = np.random.default_rng(seed_for(seed, "noise", step, place))
            struck = (rng.random(len(rewards)) < part.rate_at(step)) & ~np.isnan(rewards)
            if part.kind in PROXIES:
                new = call(proxies[part.kind], prompts, completions, columns, trainer_state)
                new = np.where(np.isnan(new), new, new >= 0.5) if part.hard else new
            else:
                new = NOISES[part.kind](rewards, prompts, completions, part, rng)
            rewards = np.where(struck, new, rewards)
        return [None if np.isnan(r) else r for r in rewards.tolist()]

    return noisy


def confusion(true: np.ndarray, noisy: np.ndarray, length: np.ndarray | None = None) -> dict[str, float]:
    """How a source errs, its reward read as a label at 0.5, with its rates as measured.

    Args:
        true, noisy: (n,) rewards; NaN in `noisy` is a missing one. length: (n,) of the responses.

    Returns:
        Shares of all responses tp, fp, fn, tn, missing (sum 1); `corrupted`: share of rewards that are not the true
        ones, missing ones included; `accuracy`: of the labels that there are; `false_positives`, `false_negatives`:
        shares of the wrong, and of the right, whose label is not theirs; with `length`, correlations of the reward
        (`length_reward`) and of its error (`length_error`) with it, 0 where either is constant.
    """
    true, noisy = np.asarray(true, dtype=float), np.asarray(noisy, dtype=float)
    given = ~np.isnan(noisy)
    t, y, n = true[given] >= 0.5, noisy[given] >= 0.5, max(len(true), 1)
    counts = dict(tp=(t & y).sum(), fp=(~t & y).sum(), fn=(t & ~y).sum(), tn=(~t & ~y).sum(), missing=(~given).sum())
    found = {name: float(count / n) for name, count in counts.items()}
    found |= dict(
        corrupted=float((true != noisy).mean()),
        accuracy=float((t == y).mean()) if len(t) else float("nan"),
        false_positives=float(counts["fp"] / max((~t).sum(), 1)),
        false_negatives=float(counts["fn"] / max(t.sum(), 1)),
    )
    if length is not None:
        length = np.asarray(length, dtype=float)[given]
        found |= dict(
            length_reward=_correlation(noisy[given], length), length_error=_correlation((noisy - true)[given], length)
        )
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else 0.0
