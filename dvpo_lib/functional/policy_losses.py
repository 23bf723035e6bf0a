"""Losses of PPO's kind: the scalar critic's loss, the clipped policy loss, KL estimates and averages over tokens.

Tensors are (B, T). Masked positions may hold anything, NaN included, and get no gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EXACT_BELOW = 20.0  # largest argument of an exponential that is not extended by its tangent


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the true entries of mask; the others may hold anything, NaN included."""
    return torch.where(mask, x, torch.zeros_like(x)).sum() / mask.sum().clamp(min=1)


def value_loss(
    v: Tensor, returns: Tensor, mask: Tensor, old_v: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """PPO's critic loss 0.5 * (V - G)^2, with the value clip if `clip` is set (Schulman et al. 2017).

    Args:
        v: (B, T) predicted values.
        returns: (B, T) targets.
        mask: (B, T).
        old_v: (B, T) values before the update.
        clip: Largest move of V away from old_v, return units.

    Raises:
        ValueError: If `clip` is set without `old_v`.
    """
    v, g = v[mask], returns.detach()[mask]
    error = (v - g) ** 2
    if clip is not None:
        if old_v is None:
            raise ValueError("the value clip needs old_v")
        old = old_v.detach()[mask]
        error = torch.maximum(error, (old + (v - old).clamp(-clip, clip) - g) ** 2)
    return 0.5 * error.mean()


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) up to `EXACT_BELOW`, its tangent beyond: finite, with a finite gradient of the right sign."""
    exact = x.clamp(max=EXACT_BELOW).exp()
    return torch.where(x > EXACT_BELOW, math.exp(EXACT_BELOW) * (1 + x - EXACT_BELOW), exact)


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(pi || ref) from samples of pi (Schulman 2020), in nats.

    With d = logp - ref_logp: k1 = d, k2 = d^2 / 2, k3 = e^-d - 1 + d, its exponential by `bounded_exp`. In a loss k1
    penalises nothing: the expectation of its gradient is 0.

    Raises:
        ValueError: If the kind is unknown.
    """
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return bounded_exp(-d) - 1 + d
    raise ValueError(f"unknown estimator {kind!r}: k1, k2 or k3")


def aggregate_loss(
    x: Tensor, mask: Tensor, how: Literal["token_mean", "sequence_mean", "constant"], max_length: int | None = None
) -> Tensor:
    """Averages token losses (B, T) to a 0-dim loss. Masked entries may hold anything.

    Args:
        x: (B, T) token losses.
        mask: (B, T).
        how: "token_mean" is the mean over tokens (PPO), "sequence_mean" the mean of sequence means (GRPO), "constant"
            the sum over B * max_length (Dr. GRPO).
        max_length: Tokens, for "constant".

    Raises:
        ValueError: If `how` is unknown, or "constant" comes without max_length.
    """
    if how == "token_mean":
        return masked_mean(x, mask)
    x = torch.where(mask, x, torch.zeros_like(x)).sum(1)
    if how == "sequence_mean":
        return (x / mask.sum(1).clamp(min=1)).mean()
    if how == "constant" and max_length:
        return (x / max_length).mean()
    raise ValueError(f"unknown aggregation {how!r}, or 'constant' without max_length")


def policy_ratio(
    logp: Tensor, old_logp: Tensor, mask: Tensor, level: Literal["token", "sequence"] = "token"
) -> tuple[Tensor, Tensor]:
    """(B, T) log-ratios logp - old_logp, 0 if masked, and their exponentials by `bounded_exp`.

    Args:
        logp: (B, T).
        old_logp: (B, T).
        mask: (B, T).
        level: "token", or "sequence": each token has the mean of its response's log-ratios (GSPO, Zheng et al. 2025).
    """
    zero = torch.zeros_like(logp)
    log_ratio = torch.where(mask, logp - torch.where(mask, old_logp, zero), zero)
    if level == "sequence":
        mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(mask, mean, zero)
    return log_ratio, bounded_exp(log_ratio)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    how: Literal["token_mean", "sequence_mean", "constant"] = "token_mean",
    max_length: int | None = None,
    level: Literal["token", "sequence"] = "token",
    delta: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped loss -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) (Schulman et al. 2017).

    Args:
        logp: (B, T) log-probabilities of the sampled tokens, with gradient.
        old_logp: (B, T) the same under the policy that sampled.
        advantages: (B, T).
        mask: (B, T).
        epsilon: Clip range of the ratio.
        epsilon_high: Upper clip range; default epsilon.
        how: See `aggregate_loss`.
        max_length: See `aggregate_loss`.
        level: Of the ratio, see `policy_ratio`.
        delta: Largest ratio where the advantage is negative, too (two-sided clip, INTELLECT-2 2025); None: no limit.

    Returns:
        (loss, {"clip_fraction", "approx_kl"}): approx_kl is the k3 estimate of KL(old || new).
    """
    log_ratio, ratio = policy_ratio(logp, old_logp, mask, level)
    advantages = torch.where(mask, advantages, torch.zeros_like(logp))
    clipped = ratio.clamp(1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high))
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    loss = aggregate_loss(-torch.minimum(bounded * advantages, clipped * advantages), mask, how, max_length)
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean((ratio != clipped).to(logp.dtype), mask),
            "approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
        }
    return loss, stats


def awr_loss(
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    temperature: float,
    max_weight: float = 20.0,
    how: Literal["token_mean", "sequence_mean", "constant"] = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantage-weighted regression -min(exp(A / temperature), max_weight) log pi (Peng et al. 2019).

    Args:
        logp: (B, T) log-probabilities of the logged tokens, with gradient.
        advantages: (B, T).
        mask: (B, T).
        temperature: Return units.
        max_weight: Largest weight of a token.
        how: See `aggregate_loss`.
        max_length: See `aggregate_loss`.

    Returns:
        (loss, {"clip_fraction"}): the share of tokens with a clipped weight.
    """
    weights = torch.where(mask, advantages.detach() / temperature, torch.zeros_like(advantages)).exp()
    loss = aggregate_loss(-weights.clamp(max=max_weight) * logp, mask, how, max_length)
    return loss, {"clip_fraction": masked_mean((weights > max_weight).to(logp.dtype), mask)}
