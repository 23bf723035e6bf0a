"""Quantile algebra: a distribution as M quantiles at the midpoint levels tau_j = (2j - 1) / (2M).

The last dimension holds a quantile vector. Its plain mean is the mean of the distribution with mass 1/M on each entry.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def midpoint_levels(m: int, *, dtype: torch.dtype = torch.float32, device=None) -> Tensor:
    """(M,) midpoint levels (2j - 1) / (2M) (Dabney et al. 2018, lemma 2)."""
    return (torch.arange(m, dtype=dtype, device=device) + 0.5) / m


def tail_count(m: int, mass: float) -> int:
    """Number of quantiles in a tail: max(3, ceil(mass * M)), at most M.

    Raises:
        ValueError: If `mass` is outside (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"a tail's mass lies in (0, 1], not {mass}")
    return min(m, max(3, math.ceil(mass * m - 1e-9)))


def stable_order(x: Tensor) -> Tensor:
    """Indices (..., L) that sort each vector of x (..., L); equal numbers keep their order.

    On a CPU, single precision is sorted as integers by numpy's vectorised sort, several times faster than torch's sort
    (`make bench`). The key of a number is its bits, those of negative numbers flipped so that they sort like integers,
    followed by its position.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return x.detach().argsort(dim=-1, stable=True)
    bits = (x.detach().numpy() + 0.0).view(np.int32)  # + 0: no negative zeros
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(x.shape[-1])
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(keys)


def sort_quantiles(z: Tensor) -> Tensor:
    """Rearrangement: sorts each quantile vector (Chernozhukov et al. 2010). Never worse than z in any L^p norm.

    Sorting is most of the extra cost of a quantile critic over a scalar one, hence numpy's sort on CPUs.
    """
    if z.device.type != "cpu" or z.dtype not in (torch.float32, torch.float64):
        return z.sort(dim=-1).values
    if torch.is_grad_enabled() and z.requires_grad:
        return z.gather(-1, stable_order(z))
    return torch.from_numpy(np.sort(z.detach().numpy(), axis=-1))


def quantiles_from_increments(raw: Tensor) -> Tensor:
    """Quantiles that cannot cross: (..., M) raw outputs to a location and M - 1 positive steps around it.

    q_1 = 0 and q_{j+1} = q_j + softplus(raw_{j+1}) / M, shifted so that the mean of q is raw_1. The location is learned
    apart from the shape, and steps scale with 1/M, so M does not set the width. Made for smooth distributions: a jump
    by 1 between two levels needs a raw output of M, so 0/1 outcomes at M = 200 are hard to learn.
    """
    m = raw.shape[-1]
    steps = F.softplus(raw[..., 1:]) / m
    q = torch.cat([torch.zeros_like(raw[..., :1]), steps.cumsum(-1)], dim=-1)
    return q - q.mean(-1, keepdim=True) + raw[..., :1]


def ensemble_quantiles(z: Tensor) -> Tensor:
    """(..., N, M) head quantiles to (..., M): the mean over heads after each head is sorted."""
    return (z if z.shape[-1] == 1 else sort_quantiles(z)).mean(-2)


def split_tails(q: Tensor, lower_mass: float, upper_mass: float, more: int = 0) -> tuple[Tensor, Tensor]:
    """Lower (..., K) and upper (..., L) tail of monotone quantiles (..., M), with K and L by `tail_count`.

    If the tails do not overlap they come from one split: the gradient of a slice would be a vector of all M zeros.

    Args:
        q: (..., M) monotone quantiles.
        lower_mass: Mass of the lower tail.
        upper_mass: Mass of the upper tail.
        more: Neighbouring quantiles to add to each tail.
    """
    m = q.shape[-1]
    low, up = (min(m, tail_count(m, mass) + more) for mass in (lower_mass, upper_mass))
    if low + up > m:
        return q[..., :low], q[..., m - up :]
    lower, _, upper = q.split([low, m - low - up, up], -1)
    return lower, upper


def lower_tail_mean(q: Tensor, mass: float) -> Tensor:
    """(..., M) monotone quantiles to (...): mean of the lower tail, CVaR at level `mass`."""
    return split_tails(q, mass, mass)[0].mean(-1)


def upper_tail_mean(q: Tensor, mass: float) -> Tensor:
    """(..., M) monotone quantiles to (...): mean of the upper tail."""
    return split_tails(q, mass, mass)[1].mean(-1)


def quantile_at_level(q: Tensor, level: float | Tensor) -> Tensor:
    """(..., M) monotone quantiles to (...): the quantile at any level, linear between midpoints, constant outside."""
    m = q.shape[-1]
    position = (torch.as_tensor(level, dtype=q.dtype, device=q.device) * m - 0.5).clamp(0, m - 1)
    low = position.floor().long()
    weight = position - low
    low, high = (i.expand(q.shape[:-1])[..., None] for i in (low, (low + 1).clamp(max=m - 1)))
    return torch.lerp(q.gather(-1, low), q.gather(-1, high), weight.expand(q.shape[:-1])[..., None]).squeeze(-1)


def distortion_weights(
    kind: Literal["mean", "cvar", "wang", "cpw", "blend"],
    m: int,
    *,
    alpha: float = 0.1,
    beta: float = 0.1,
    strength: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(M,) weights of quantiles, sum 1, of a distorted mean (Dabney et al. 2018b, "Implicit Quantile Networks").

    The weight of level tau_j is g(j/M) - g((j-1)/M) for a distortion g of cumulative probability:
        mean   g(t) = t
        cvar   g(t) = min(t / alpha, 1)                              neutral at alpha = 1
        wang   g(t) = Phi(Phi^-1(t) + strength)                      neutral at 0; > 0 stresses low quantiles
        cpw    g(t) = t^k / (t^k + (1-t)^k)^(1/k), k = 1 - strength  neutral at 0; > 0 stresses both tails; at most
               0.72, since g is no distribution function for k < 0.279 (its weights turn negative)
        blend  (1 - |strength|) * mean + |strength| * tail           neutral at 0; > 0 takes the upper tail of mass
        beta,
               < 0 the lower tail of mass alpha

    Args:
        kind: One of the distortions above.
        m: Number of quantiles M.
        alpha: Mass of the lower tail.
        beta: Mass of the upper tail.
        strength: Parameter of wang, cpw and blend.
        dtype: Of the result.

    Raises:
        ValueError: If the kind is unknown or a parameter is out of its range.
    """
    t = torch.linspace(0, 1, m + 1, dtype=torch.float64)
    if kind == "mean":
        g = t
    elif kind == "cvar":
        if not 0 < alpha <= 1:
            raise ValueError(f"cvar: alpha lies in (0, 1], not {alpha}")
        g = (t / alpha).clamp(max=1)
    elif kind == "wang":
        g = torch.special.ndtr(torch.special.ndtri(t) + strength)
    elif kind == "cpw":
        if not 0 <= strength <= 0.72:
            raise ValueError(f"cpw: strength lies in [0, 0.72], not {strength}")
        k = 1 - strength
        g = t**k / (t**k + (1 - t) ** k) ** (1 / k)
    elif kind == "blend":
        if not -1 <= strength <= 1:
            raise ValueError(f"blend: strength lies in [-1, 1], not {strength}")
        if not (0 < alpha <= 1 and 0 < beta <= 1):
            raise ValueError(f"blend: alpha and beta lie in (0, 1], not {alpha} and {beta}")
        tail = (t / alpha).clamp(max=1) if strength < 0 else (1 - (1 - t) / beta).clamp(min=0)
        g = (1 - abs(strength)) * t + abs(strength) * tail
    else:
        raise ValueError(f"unknown distortion {kind!r}: mean, cvar, wang, cpw or blend")
    return g.diff().to(dtype)


def crps(q: Tensor, y: Tensor) -> Tensor:
    """(..., M) quantiles and (...) outcomes to (...): the quantile score 2 * mean_j pinball_j, in outcome units.

    The continuous ranked probability score of the distribution, integrated at M levels (Gneiting & Raftery 2007).
    """
    u = y[..., None] - q
    return 2 * (u * (midpoint_levels(q.shape[-1], dtype=q.dtype, device=q.device) - (u < 0).to(q.dtype))).mean(-1)


def pit(q: Tensor, y: Tensor, generator: torch.Generator | None = None, tolerance: float = 0.0) -> Tensor:
    """(...) randomised probability integral transform in [0, 1]; uniform if the predictions are calibrated.

    A jump of the predicted distribution at y (discrete outcomes) is filled uniformly: F(y-) + V * (F(y) - F(y-))
    (Czado et al. 2009).

    Args:
        q: (..., M) predicted quantiles.
        y: (...) outcomes.
        generator: Random source of V.
        tolerance: Distance from y within which a quantile counts as equal to y, outcome units.
    """
    y = y[..., None]
    below, at_most = (q < y - tolerance).to(q.dtype).mean(-1), (q <= y + tolerance).to(q.dtype).mean(-1)
    return below + (at_most - below) * torch.rand(below.shape, generator=generator, dtype=q.dtype).to(q.device)
