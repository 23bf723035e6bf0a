"""Scales of rewards and returns: normalised advantages, and differences that are no more than rounding."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 2e-6  # differences between quantiles that the ratchets ignore, times mean and deviation of the returns


def has_spread(x: Tensor, dim: int) -> Tensor:
    """Whether numbers along `dim` differ by more than rounding, 8 units in the last place; NaN is skipped.

    Returns:
        Bool, `dim` kept with size 1.
    """
    missing = x.isnan()
    high = torch.where(missing, -torch.inf, x).amax(dim, keepdim=True)
    low = torch.where(missing, torch.inf, x).amin(dim, keepdim=True)
    return high - low > 8 * torch.finfo(x.dtype).eps * torch.maximum(high.abs(), low.abs())


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / std over the batch's real tokens (unbiased variance + 1e-8, as in TRL); 0 if masked.

    Exactly 0 everywhere if the real tokens differ by no more than rounding.
    """
    values = x[mask]
    if values.numel() < 2 or not has_spread(values, 0):
        return torch.zeros_like(x)
    return torch.where(mask, (x - values.mean()) * torch.rsqrt(values.var() + 1e-8), 0.0)


def group_advantages(rewards: Tensor, group_size: int, scale: bool = True) -> Tensor:
    """(B,) rewards to (B,) advantages: R - group mean, over the group's Bessel std + 1e-4 if `scale`.

    With scale GRPO (Shao et al. 2024), without Dr. GRPO (Liu et al. 2025). Groups are runs of `group_size` rows. A
    missing reward (NaN) is no member of its group and has advantage 0; so has the only reward of a group. Rewards that
    do not differ by more than rounding have advantage 0 exactly: divided by their own rounding error they would not.

    Raises:
        ValueError: If B is no multiple of `group_size`.
    """
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size}")
    groups = rewards.view(-1, group_size)  # (G, group_size)
    if groups.isnan().any():
        count = (~groups.isnan()).sum(1, keepdim=True)
        centred = (groups - groups.nanmean(1, keepdim=True)).nan_to_num(0.0)
        std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    else:
        centred, std = groups - groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
    centred = torch.where(has_spread(groups, 1), centred, 0.0)
    return (centred / (std + 1e-4) if scale else centred).flatten()


def return_scale(returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """(2,) mean and standard deviation (1 if it is 0) of a batch's returns, the unit of the elicitable score.

    Args:
        returns: (B, T, ...), return units.
        mask: (B, T), the tokens to include; None for all.
    """
    return pooled_scale(return_moments(returns, mask)[None], torch.promote_types(returns.dtype, torch.float32))


def return_moments(returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3,) number, mean and variance of returns, float64: what `pooled_scale` needs of a part of a batch."""
    y = returns.detach() if mask is None else returns.detach()[mask]
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    if not y.numel():
        return y.new_zeros(3, dtype=torch.float64)
    centre = y.mean()
    numbers = torch.stack([torch.zeros_like(centre), centre, (y - centre).square().mean()]).double()
    numbers[0] = y.numel()
    return numbers


def pooled_scale(moments: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`return_scale` of a batch from the (P, 3) `return_moments` of its parts, for returns of this type."""
    count, means, variances = moments.unbind(-1)
    share = count / count.sum()
    centre = (share * means).sum()
    spread = (share * (variances + (means - centre).square())).sum().sqrt()
    rounding = 8 * torch.finfo(dtype).eps * centre.abs()  # equal targets may differ from their own mean by it
    return torch.stack([centre, torch.where(spread > rounding, spread, 1.0)]).to(dtype)


def quantile_rounding(ref: Tensor, scale: Tensor | None) -> Tensor:
    """0-dim: the largest difference between quantiles that is no more than rounding, return units."""
    centre, spread = return_scale(ref) if scale is None else scale.detach().to(ref)
    return ROUNDING * (centre.abs() + spread)


def zero_up_to(threshold: Tensor, x: Tensor) -> Tensor:
    """x if it exceeds the threshold, else 0, with gradient 0."""
    return torch.where(x > threshold, x, 0.0)
