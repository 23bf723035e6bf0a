"""Return distributions in closed form, and the statistics of a quantile curve that the tables show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.functional.quantiles import lower_tail_mean, midpoint_levels, upper_tail_mean

DEFAULT_LOSS = CriticLossSettings()
TAIL_MASSES = (DEFAULT_LOSS.lower_mass, DEFAULT_LOSS.upper_mass)
QUANTILE_COUNT = 50  # quantiles of the critic
GRID_POINTS = 4000  # points of the grid that represents a distribution
SHOWN_DISTRIBUTION = "0/1, 20 % spikes"  # the distribution of the figures


def bernoulli_quantiles(p: float, tau: Tensor) -> Tensor:
    """Quantiles at the levels `tau` of a reward that is 1 with probability `p`, else 0."""
    return (tau > 1 - p).to(tau.dtype)


@cache
def _spike_quantiles(m: int, p: float, rate: float, scale: float) -> Tensor:
    """(m,) quantiles of Bernoulli(p) with a share `rate` replaced by N(0, scale^2), by bisection of the CDF."""
    tau = midpoint_levels(m, dtype=torch.float64)
    low, high = torch.full_like(tau, -20 * scale), torch.full_like(tau, 20 * scale)
    for _ in range(90):
        x = (low + high) / 2
        atoms = (1 - p) * (x >= 0) + p * (x >= 1)
        above = (1 - rate) * atoms + rate * torch.special.ndtr(x / scale) >= tau
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    return torch.where((high - high.round()).abs() < 1e-9, high.round(), high)  # the atoms themselves


DISTRIBUTIONS: Mapping[str, Callable[[int], Tensor]] = {  # {name: M -> (M,) exact quantiles at midpoint levels}
    "Bernoulli(0.2)": lambda m: bernoulli_quantiles(0.2, midpoint_levels(m, dtype=torch.float64)),
    "Gaussian N(0, 1)": lambda m: torch.special.ndtri(midpoint_levels(m, dtype=torch.float64)),
    SHOWN_DISTRIBUTION: lambda m: _spike_quantiles(m, 0.5, 0.2, 5.0),
}


def curve_statistics(z: Tensor) -> dict[str, float]:
    """Mean and tail means of (M,) quantiles, in return units."""
    tails = lower_tail_mean(z, TAIL_MASSES[0]), upper_tail_mean(z, TAIL_MASSES[1])
    return {"mean": z.mean().item(), "lower": tails[0].item(), "upper": tails[1].item()}
