"""Advantages and targets: GAE over values or quantiles, read-outs, group and return-to-go baselines.

Tensors cover response positions only: (B, T), with `mask` true on the policy's own tokens. Masked positions may hold
anything. Masked tokens between two of the policy's turns are skipped, as if deleted. The value after the last token is
0. Results are 0 at masked positions.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from dvpo_lib.functional.quantiles import distortion_weights, quantile_at_level
from dvpo_lib.functional.scales import group_advantages as group_advantages
from dvpo_lib.functional.scales import masked_whiten as masked_whiten

CHUNK_TOKENS = 64  # tokens that one matrix product covers


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ReadoutSettings:
    """Read-out of a distribution of returns: the scalar value that advantages use.

    Raises:
        pydantic.ValidationError: If a setting is out of its range, or the distortion does not take this strength.
    """

    kind: Literal["mean", "distorted", "winsorised", "denoised"] = "mean"  # paper, and three extensions
    distortion: Literal["mean", "cvar", "wang", "cpw", "blend"] = "mean"  # of the distorted read-out
    strength: float = 0.0  # of wang, cpw, blend: 0 is the mean
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1  # mass of the lower tail, for cvar and blend
    beta: Annotated[float, Field(gt=0, le=1)] = 0.1  # mass of the upper tail, for blend
    level_low: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # winsorised: lower level of the band; 0: no bound
    level_up: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # winsorised: upper level of the band; 0: no bound
    centre: Literal["median", "trimmed_mean", "mean", "prompt_mean"] = "median"  # denoised: of final state or prompt
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.25  # denoised: mass that a trimmed mean leaves out on each side
    weight: Annotated[float, Field(ge=0, le=1)] = 0.0  # denoised: of the received reward; the rest is the centre's

    @model_validator(mode="after")
    def _strength_fits(self):
        self.weights(8)
        return self

    def weights(self, m: int) -> Tensor:
        """(M,) weights of the quantiles in the distorted read-out, float64."""
        return distortion_weights(
            self.distortion, m, alpha=self.alpha, beta=self.beta, strength=self.strength, dtype=torch.float64
        )

    @property
    def stand_in(self) -> Literal["final_state", "prompt_mean"] | None:
        """What a denoised reward is mixed with; None for other read-outs."""
        if self.kind != "denoised":
            return None
        return "prompt_mean" if self.centre == "prompt_mean" else "final_state"

    def final_centre(self, final: Tensor) -> Tensor:
        """(B,) the centre of the value after the whole response, of its (B, M) monotone quantiles."""
        m = final.shape[-1]
        if self.centre == "median":
            return quantile_at_level(final, 0.5)
        cut = int(self.trim * m) if self.centre == "trimmed_mean" else 0
        return final[..., cut : m - cut].mean(-1)

    def denoised_reward(self, received: Tensor, centre: Tensor) -> Tensor:
        """(B,) weight * received + (1 - weight) * centre, (B,) each; NaN if the reward is missing."""
        return self.weight * received + (1 - self.weight) * torch.where(received.isnan(), received, centre)


def _justify(mask: Tensor) -> Tensor | None:
    """(B, T) order that moves each row's real tokens to its front; None if they are there already."""
    if not (mask[:, 1:] & ~mask[:, :-1]).any():
        return None
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)


def _take(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, T) or (B, T, M) in the order of `_justify`."""
    if order is None:
        return x
    return x.gather(1, order if x.dim() == 2 else order[..., None].expand_as(x))


def _put_back(x: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `_take`."""
    if order is None:
        return x
    index = order if x.dim() == 2 else order[..., None].expand_as(x)
    return torch.empty_like(x).scatter(1, index, x)


def _clean(x: Tensor, mask: Tensor) -> Tensor:
    """x with 0 at masked positions."""
    mask = mask if x.dim() == 2 else mask[..., None]
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _next(x: Tensor) -> Tensor:
    """x of the next token; 0 after the last."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def discounted_sum(x: Tensor, discount: float | Tensor) -> Tensor:
    """y[t] = sum_{s >= t} discount^(s - t) x[s] along dim 1, as matrix products over chunks of tokens.

    Args:
        x: (B, T) or (B, T, M).
        discount: A number, or (B,) one for each row.

    Returns:
        y, shaped as x.
    """
    flat = x if x.dim() == 3 else x[..., None]
    batch, length, _ = flat.shape
    discount = torch.as_tensor(discount, dtype=x.dtype, device=x.device)
    size = min(CHUNK_TOKENS, length)
    gap = torch.arange(size, device=x.device)
    gap = gap[None, :] - gap[:, None]
    powers = torch.where(gap >= 0, discount[..., None, None] ** gap.clamp(min=0), 0.0)  # (C, C) or (B, C, C)
    carry = discount[..., None] ** torch.arange(size, 0, -1, device=x.device)  # (C) or (B, C): from the next chunk
    out, after = [], torch.zeros_like(flat[:, :1])
    for end in range(length, 0, -size):
        start = max(0, end - size)
        n = end - start
        y = powers[..., :n, :n] @ flat[:, start:end] + carry[..., size - n :, None] * after
        out.append(y)
        after = y[:, :1]
    return torch.cat(out[::-1], 1).view_as(x)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float | Tensor = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016), for values or, quantile by quantile, distributions.

    delta[t] = r[t] + gamma V[t+1] - V[t];  A[t] = delta[t] + gamma lambda A[t+1];  G[t] = V[t] + A[t].

    NaN as the reward of a last token says that the reward is missing. It is taken to be the critic's expectation: delta
    is 0 there, and no signal comes from it.

    Args:
        rewards: (B, T).
        values: (B, T) or (B, T, M), values of the state before each token.
        mask: (B, T).
        gamma: Discount.
        lam: A number, or (B,) one for each response.

    Returns:
        (advantages, returns), both shaped as values.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if rewards.shape != mask.shape or values.shape[:2] != mask.shape or values.dim() not in (2, 3):
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} "
            "must be (B, T), (B, T) or (B, T, M), and (B, T)"
        )
    order = _justify(mask)
    real = _take(mask, order)
    v = _clean(_take(values, order), real)
    r = _clean(_take(rewards, order), real).to(v.dtype)
    delta = (r if v.dim() == 2 else r[..., None]) + gamma * _next(v) - v
    unknown = r.isnan() & last_token_mask(real)
    delta = torch.where(unknown if v.dim() == 2 else unknown[..., None], 0.0, delta)
    advantages = discounted_sum(delta, gamma * lam)
    advantages, returns = (_put_back(_clean(x, real), order) for x in (advantages, v + advantages))
    return advantages, returns


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """(B, T) discounted sum of this and all later rewards of the response."""
    order = _justify(mask)
    real = _take(mask, order)
    return _put_back(_clean(discounted_sum(_clean(_take(rewards, order), real), gamma), real), order)


def quantile_targets(
    rewards: Tensor,
    zbar: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    kind: Literal["comonotone", "mixture"] = "comonotone",
    uniforms: Tensor | None = None,
) -> Tensor:
    """Samples of the distributional lambda-return, the critic's targets.

    `comonotone` (paper; formula reconstructed): G[t,j] = Zbar[t,j] + A[t,j]. It averages n-step quantile vectors and is
    narrower than their mixture. `mixture` (Nam et al. 2021, SR(lambda)): each sample j draws its own horizon n with
    probability (1 - lambda) lambda^(n-1), the rest of the mass on the Monte Carlo return, and takes quantile j of that
    n-step return. The two agree at lambda 0 and 1, and in the mean between.

    Args:
        rewards: (B, T).
        zbar: (B, T, M) ensemble quantiles.
        mask: (B, T).
        gamma: Discount.
        lam: Lambda.
        kind: "comonotone" or "mixture".
        uniforms: (B, T, M) float64 in [0, 1) that the horizons are made of; None: by torch's global generator.

    Returns:
        (B, T, M); (B, T, 1) at lambda = 1, since every target is the point of the Monte Carlo return.

    Raises:
        ValueError: If the kind is unknown.
    """
    if lam == 1:
        return returns_to_go(rewards, mask, gamma)[..., None]
    if kind == "comonotone":
        return generalised_advantages(rewards, zbar, mask, gamma, lam)[1]
    if kind != "mixture":
        raise ValueError(f"unknown target {kind!r}: comonotone or mixture")
    order = _justify(mask)
    real = _take(mask, order)
    z = _clean(_take(zbar, order), real)
    to_go = discounted_sum(_clean(_take(rewards, order), real), gamma)  # (B, T)
    left = real.flip(1).cumsum(1).flip(1)[..., None]  # tokens from t to the end, t included
    horizon = torch.ones(z.shape, dtype=torch.long, device=z.device)
    if lam > 0:
        u = torch.rand(z.shape, dtype=torch.float64) if uniforms is None else uniforms
        u = u.clamp(min=1e-300).to(z.device)
        horizon = (u.log() / torch.tensor(lam, dtype=torch.float64).log()).floor().clamp(max=z.shape[1]).long() + 1
    horizon = torch.minimum(horizon, left.clamp(min=1))
    # n-step return = to_go[t] - gamma^n to_go[t+n] + gamma^n Z[t+n,j]; both are 0 after the last token.
    rest = torch.cat([z - to_go[..., None], torch.zeros_like(z[:, :1])], 1)
    when = torch.arange(z.shape[1], device=z.device)[:, None] + horizon
    targets = to_go[..., None] + z.new_tensor(gamma) ** horizon * rest.gather(1, when)
    return _put_back(_clean(targets, real), order)


def adaptive_lambda(mask: Tensor, c: float) -> Tensor:
    """(B,) lambda = 1 - 1 / (c * length), at least 0: longer responses look further ahead (VAPO, Yue et al. 2025)."""
    return (1 - 1 / (c * mask.sum(1).clamp(min=1))).clamp(min=0)


def place_rewards(task: Tensor, kl: Tensor | None, mask: Tensor) -> Tensor:
    """(B, T) token rewards: -kl on every real token, plus the task reward on the last one.

    Args:
        task: (B,) task rewards. A response without real tokens gets none.
        kl: (B, T) penalties; None for no penalty.
        mask: (B, T).
    """
    rewards = torch.zeros(mask.shape, dtype=task.dtype, device=task.device) if kl is None else -_clean(kl, mask)
    return rewards + torch.where(last_token_mask(mask), task[:, None], torch.zeros_like(task)[:, None]).to(
        rewards.dtype
    )


def clip_at_quantiles(rewards: Tensor, level: float) -> Tensor:
    """(B,) rewards clipped to the batch's quantiles `level` and 1 - `level`; unchanged at level 0. NaN stays NaN."""
    return rewards.clamp(rewards.nanquantile(level), rewards.nanquantile(1 - level)) if level else rewards


def last_token_mask(mask: Tensor) -> Tensor:
    """(B, T) bool, true on each row's last real token."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def actor_advantages(
    rewards: Tensor, zbar: Tensor, mask: Tensor, gamma: float, lam: float | Tensor, readout: ReadoutSettings
) -> Tensor:
    """(B, T) advantages of the actor from a distributional critic.

    `mean` (paper): GAE on the mean of Zbar, which equals the mean over quantiles of distributional GAE.
    `distorted` (extension): GAE on a fixed weighting of the quantiles.
    `winsorised` (extension): the last token's reward is clipped into the critic's own band
    [Zbar at level_low, Zbar at 1 - level_up] there, and the baseline at that token is the mean of Zbar clipped
    likewise.
    `denoised` (extension): as `mean`; the reward is replaced before (see `ReadoutSettings.denoised_reward`).

    Args:
        rewards: (B, T); NaN at a last token if the reward is missing.
        zbar: (B, T, M) monotone ensemble quantiles.
        mask: (B, T).
        gamma: Discount.
        lam: A number, or (B,) one for each response.
        readout: Settings of the read-out.
    """
    if readout.kind == "distorted":
        return generalised_advantages(rewards, zbar @ readout.weights(zbar.shape[-1]).to(zbar), mask, gamma, lam)[0]
    values = zbar.mean(-1)
    if readout.kind == "winsorised":
        infinity = torch.full_like(values, float("inf"))
        low = quantile_at_level(zbar, readout.level_low) if readout.level_low else -infinity
        up = quantile_at_level(zbar, 1 - readout.level_up) if readout.level_up else infinity
        last = last_token_mask(mask)
        rewards = torch.where(last, torch.minimum(torch.maximum(rewards, low), up), rewards)
        clipped = torch.minimum(torch.maximum(zbar, low[..., None]), up[..., None]).mean(-1)
        values = torch.where(last, clipped, values)
    return generalised_advantages(rewards, values, mask, gamma, lam)[0]
