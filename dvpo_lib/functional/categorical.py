"""Categorical distributions of returns: probabilities of equal bins, their loss (HL-Gauss) and their quantiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dvpo_lib.functional.quantiles import midpoint_levels

SMOOTHING = 0.75  # deviation of the smoothed target in bin widths (Farebrother et al. 2024)


class BinLogits(NamedTuple):
    """Outputs of a categorical critic.

    Attributes:
        logits: (..., N, K) of K bins, for N heads.
        support: (2,) lower edge of the first bin and upper edge of the last, return units.
        quantiles: M, the number of quantiles that read-outs see.
    """

    logits: Tensor
    support: Tensor
    quantiles: int


def bin_edges(support: Tensor, bins: int) -> Tensor:
    """(K + 1,) edges of K equal bins over `support` (2,)."""
    steps = torch.linspace(0, 1, bins + 1, dtype=support.dtype, device=support.device)
    return support[0] + (support[1] - support[0]) * steps


def gaussian_bin_masses(y: Tensor, edges: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """(...) numbers to (..., K): the mass of N(y, sigma^2), cut to the support, in each bin (Imani & White 2018).

    Args:
        y: Returns; those outside of the support count as its nearest end.
        edges: (K + 1,) edges of equal bins.
        smoothing: sigma in bin widths.
    """
    sigma = smoothing * (edges[1] - edges[0])
    cumulative = torch.special.ndtr((edges - y.clamp(edges[0], edges[-1])[..., None]) / sigma)
    return cumulative.diff(dim=-1) / (cumulative[..., -1:] - cumulative[..., :1])


def categorical_loss(z: BinLogits, targets: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Cross-entropy of predicted bins with smoothed returns (HL-Gauss; Farebrother et al. 2024, eq. 3.3).

    Args:
        z: Outputs of the critic.
        targets: (..., S) samples of the return, shared by the heads; detached here.
        smoothing: sigma in bin widths.

    Returns:
        (..., N) losses, nats.
    """
    wanted = gaussian_bin_masses(targets.detach(), bin_edges(z.support, z.logits.shape[-1]), smoothing).mean(-2)
    return -(wanted[..., None, :] * z.logits.log_softmax(-1)).sum(-1)


def quantiles_of_bins(z: BinLogits) -> Tensor:
    """(..., N, M) quantiles at midpoint levels; mass is uniform inside a bin."""
    probabilities, edges = z.logits.softmax(-1), bin_edges(z.support, z.logits.shape[-1])
    cumulative = probabilities.cumsum(-1)
    cumulative = torch.cat([torch.zeros_like(cumulative[..., :1]), cumulative / cumulative[..., -1:]], -1)
    levels = midpoint_levels(z.quantiles, dtype=probabilities.dtype, device=probabilities.device)
    levels = levels.expand(*probabilities.shape[:-1], -1).contiguous()
    right = torch.searchsorted(cumulative, levels).clamp(1, probabilities.shape[-1])
    low, high = cumulative.gather(-1, right - 1), cumulative.gather(-1, right)
    share = (levels - low) / (high - low).clamp(min=torch.finfo(levels.dtype).tiny)
    return torch.lerp(edges[right - 1], edges[right], share.clamp(0, 1))
