"""Losses of the quantile critic: the quantile Huber loss (`quantile_huber`) and the terms that shape its tails.

The paper's text is not at hand: each term says whether the paper names it (`paper`) and whose formula it is. All terms
are means over tokens, heads and quantiles, never sums over M, so a weight means the same at every M. Quantile vectors
are (..., M). The lower tail is the first max(3, ceil(mass * M)) of them, the upper tail the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.nn import functional as F

from dvpo_lib.functional.quantile_huber import quantile_huber, quantile_huber_at
from dvpo_lib.functional.quantiles import midpoint_levels, sort_quantiles, split_tails, tail_count
from dvpo_lib.functional.scales import quantile_rounding, return_scale, zero_up_to

Weight = Annotated[float, Field(ge=0)]


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CriticLossSettings:
    """Terms of the quantile critic's loss; a weight of 0 switches a term off."""

    kappa: Annotated[float, Field(ge=0)] = 0.0  # Huber threshold; 0: pinball. Must be small against returns' spread
    rho: Annotated[float, Field(ge=0)] = 0.0  # risk weights exp(-rho * tau), mean 1, on the core's levels; 0: equal
    head_consistency: Weight = 0.1  # heads agree with their mean
    tail_calibration: Weight = 0.03  # tail means agree with those of the target
    tail_calibration_form: Literal["sample", "elicitable"] = "elicitable"  # literal reading, or joint proper score
    mean_shift: Weight = 0.03  # pessimism of the batch mean is punished
    tail_shape: Weight = 1e-3  # lower tail's variance only falls, upper tail's only grows
    tail_curvature: Weight = 1e-6  # second differences in the tails only grow (in units of M^2: large numbers)
    shape_reference: Literal["sample", "previous"] = "previous"  # distribution that the shape terms compare with
    lower_mass: Annotated[float, Field(gt=0, lt=0.5)] = 0.1  # alpha: mass of the lower tail
    upper_mass: Annotated[float, Field(gt=0, lt=0.5)] = 0.1  # beta: mass of the upper tail

    @property
    def uses_reference(self) -> bool:
        """True if the critic's earlier output matters: as a ratchet, or as the unit of returns."""
        return self.needs_reference or (self.tail_calibration > 0 and self.tail_calibration_form == "elicitable")

    @property
    def needs_reference(self) -> bool:
        """True if the loss is undefined without the critic's earlier output."""
        return self.shape_reference == "previous" and (self.tail_shape > 0 or self.tail_curvature > 0)


def risk_weights(m: int, rho: float, *, dtype: torch.dtype = torch.float32, device=None) -> Tensor:
    """(M,) weights proportional to exp(-rho * tau_j), mean 1 (paper; formula reconstructed).

    rho > 0 stresses low levels. The weights move no free quantile's minimiser: they act through shared parameters
    alone.
    """
    w = torch.exp(-rho * midpoint_levels(m, dtype=dtype, device=device))
    return w / w.mean()


# ---- terms; q and ref are monotone ----


def tail_calibration(
    q: Tensor,
    targets: Tensor,
    lower_mass: float,
    upper_mass: float,
    form: Literal["sample", "elicitable"] = "sample",
    scale: Tensor | None = None,
) -> Tensor:
    """Distance (...) between the tail means of q (..., M) and of the targets (..., K) (paper; forms reconstructed).

    `sample`, the literal reading: squared differences of the tail means of q and G, squared return units. G is a point
    or nearly so, hence this form shrinks both tails towards the mean: its minimiser is biased.

    `elicitable`, return units: the joint score of Fissler & Ziegel (2016) of (quantile, tail mean), with G1(v) = v and
    G2 the logistic function, for both tails; the true pair minimises its expectation. G2 sees returns in the batch's
    own unit, otherwise it would be flat for large returns: the score follows every shift and scale of the returns. Any
    unit that does not depend on the targets keeps the minimiser. The unit of the scored targets themselves does not
    (heavy tails: a quantile of -0.2 in place of 0 from batches of 64).

    Args:
        q: (..., M) monotone quantiles.
        targets: (..., K); monotone for `sample`.
        lower_mass: Mass of the lower tail.
        upper_mass: Mass of the upper tail.
        form: Which of the two forms.
        scale: (2, ...) centre and spread for `elicitable`, return units; None for `return_scale` of these targets.
    """
    if form == "sample":
        pairs = zip(split_tails(q, lower_mass, upper_mass), split_tails(targets, lower_mass, upper_mass))
        return sum((own.mean(-1) - theirs.mean(-1)) ** 2 for own, theirs in pairs)
    m = q.shape[-1]
    lower, upper = split_tails(q, lower_mass, upper_mass, more=1)  # a tail's quantile lies half way to its neighbour
    low, up = (tail_count(m, mass) / m for mass in (lower_mass, upper_mass))
    centre, spread = return_scale(targets) if scale is None else scale.detach()
    y = targets - centre[..., None]
    v, e = (x.mean(-1) - centre for x in (lower[..., -2:], lower[..., :-1]))
    score = _fissler_ziegel(v, e, y, low, spread)
    v, e = (x.mean(-1) - centre for x in (upper[..., :2], upper[..., 1:]))
    return score + _fissler_ziegel(-v, -e, -y, up, spread)


def _fissler_ziegel(v: Tensor, e: Tensor, y: Tensor, mass: float, spread: float | Tensor = 1.0) -> Tensor:
    """Mean over the samples y (..., K) of the joint score of (quantile v (...) at `mass`, tail mean e (...) below it).

    G2 is the logistic function of e / spread, and the score is homogeneous: it has the unit of its arguments.
    """
    pinball = quantile_huber_at(v[..., None], y, v.new_full((1,), mass))
    tail = y.mean(-1) - pinball / mass  # v less the mean shortfall below it over the mass: the tail mean, at best
    return pinball + torch.sigmoid(e / spread) * (e - tail) - spread * F.softplus(e / spread)


def mean_shift(
    q_mean: Tensor, target_mean: Tensor, weights: Tensor | None = None, batch_gap: Tensor | None = None
) -> Tensor:
    """Huber(relu(mean of targets - mean of q)) on *batch* means (paper; formula reconstructed).

    Punishes pessimism of the mean, not optimism. Per sample it would drag the mean to the largest target.

    Args:
        q_mean: (R, N) means over quantiles, return units.
        target_mean: (R, 1), return units.
        weights: (R, N) weights of rows by head, mean 1.
        batch_gap: (N,) gap of the full batch by `mean_gap`, if these rows are one micro-batch of it. The full batch
            then decides which heads are pessimistic and by how much, so that the micro-batches' gradients, weighted
            with their share of the rows, add up.

    Returns:
        0-dim, the mean over heads.
    """
    gap = target_mean - q_mean
    gap = (gap if weights is None else gap * weights).mean(0)
    if batch_gap is not None:
        gap = gap + (batch_gap - gap).detach()  # the batch's value, these rows' gradient
    return F.huber_loss(F.relu(gap), torch.zeros_like(gap))


@torch.no_grad()
def mean_gap(z: Tensor, targets: Tensor, mask: Tensor, response_weights: Tensor | None = None) -> Tensor:
    """(N,) mean of targets minus mean of z over the tokens of `mask`, by head, return units.

    Args:
        z: (B, T, N, M) head outputs.
        targets: (B, T, K).
        mask: (B, T).
        response_weights: (B, N) bootstrap weights.
    """
    z, g, w = _token_rows(z, targets, mask, response_weights)
    gap = g.mean(-1) - z.mean(-1)
    return (gap if w is None else gap * w).mean(0)


def tail_shape(q: Tensor, ref: Tensor, lower_mass: float, upper_mass: float, scale: Tensor | None = None) -> Tensor:
    """(..., M) to (...): relu(var_low(q) - var_low(ref)) + relu(var_up(ref) - var_up(q)) (paper; reconstructed).

    Biased variances inside each tail: the lower tail may only contract, the upper tail must not shrink. At q = ref the
    gradient is 0. (That of clamp would be 1, and push at every first step.) Differences that quantiles equal up to
    rounding can have count as 0.

    Args:
        q: Monotone quantiles, return units.
        ref: Monotone quantiles to compare with.
        lower_mass: Mass of the lower tail.
        upper_mass: Mass of the upper tail.
        scale: (2,) by `return_scale`; None: of `ref`.
    """
    rounding = quantile_rounding(ref, scale)

    def variance(x: Tensor) -> Tensor:  # Tensor.var is several times slower on short rows
        return (x - x.mean(-1, keepdim=True)).square().mean(-1)

    (low_q, up_q), (low_ref, up_ref) = (map(variance, split_tails(x, lower_mass, upper_mass)) for x in (q, ref))
    low, up = (2 * rounding * v.sqrt() + rounding**2 for v in (low_ref, up_ref))  # of variances
    return zero_up_to(low, low_q - low_ref) + zero_up_to(up, up_ref - up_q)


def tail_curvature(q: Tensor, ref: Tensor, lower_mass: float, upper_mass: float, scale: Tensor | None = None) -> Tensor:
    """(..., M) to (...): mean of relu(d2(ref) - d2(q)) over each tail, summed over both (paper; formula reconstructed).

    d2_j = M^2 (q_{j+1} - 2 q_j + q_{j-1}), per element, since a mean of d2 telescopes to its end slopes. A heavy lower
    tail is concave (d2 < 0), a heavy upper tail convex (d2 > 0). A reference with fewer than 3 quantiles counts as
    flat. Differences that quantiles equal up to rounding can have count as 0: M^2 magnifies them.

    Args:
        q: Monotone quantiles, return units.
        ref: Monotone quantiles to compare with.
        lower_mass: Mass of the lower tail.
        upper_mass: Mass of the upper tail.
        scale: (2,) by `return_scale`; None: of `ref`.
    """
    rounding = 4 * q.shape[-1] ** 2 * quantile_rounding(ref, scale)  # of second differences

    def second_differences(x: Tensor) -> Iterator[Tensor]:
        m = x.shape[-1]
        return (t.diff(n=2) * m**2 if m >= 3 else x.new_zeros(1) for t in split_tails(x, lower_mass, upper_mass))

    pairs = zip(second_differences(q), second_differences(ref))
    return sum(zero_up_to(rounding, theirs - own).mean(-1) for own, theirs in pairs)


def head_consistency(q: Tensor) -> Tensor:
    """(..., N, M) to (...): mean over heads and quantiles of (q_nj - mean_n q_nj)^2 (paper; formula reconstructed)."""
    mean = q.detach().mean(-2, keepdim=True)  # deviations from it sum to zero, so no gradient flows through it
    deviation = (q - mean).flatten(-2)
    return torch.linalg.vecdot(deviation, deviation) / deviation.shape[-1]


def _token_rows(
    z: Tensor, targets: Tensor, mask: Tensor, response_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens of `mask` in float32 at least: (R, N, M) outputs, (R, 1, K) targets, (R, N) weights."""
    z = z[mask]  # padding costs nothing from here on
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    g = targets.detach()[mask].to(z.dtype)[:, None]  # heads share their targets
    w = None if response_weights is None else response_weights[:, None].expand(*mask.shape, -1)[mask].to(z)
    return z, g, w


def critic_loss(
    z: Tensor,
    targets: Tensor,
    mask: Tensor,
    cfg: CriticLossSettings,
    *,
    reference: Tensor | None = None,
    response_weights: Tensor | None = None,
    crossing: Literal["rearrange", "increments"] = "rearrange",
    scale: Tensor | None = None,
    batch_gap: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The quantile critic's loss: core plus weighted terms, means over the tokens of `mask`.

    The core is taken on the heads' raw output, the terms on the monotone one. Given the `scale` and `batch_gap` of the
    full batch, the losses of its micro-batches, weighted with their share of the tokens, have the gradient of the
    whole.

    Args:
        z: (B, T, N, M) head outputs.
        targets: (B, T, K) samples of the return, detached here.
        mask: (B, T).
        cfg: Weights and forms of the terms.
        reference: (B, T, N, M) the critic's monotone heads before this update, for `shape_reference: previous`.
        response_weights: (B, N) bootstrap weights of responses by head, for the terms that see data.
        crossing: "increments" if z is monotone already.
        scale: (2,) by `return_scale`; None for that of `reference` or, without one, of these targets.
        batch_gap: (N,) by `mean_gap`; None for that of these tokens.

    Returns:
        (total, {name: 0-dim unweighted term, detached}); terms of weight 0 are neither computed nor returned.

    Raises:
        ValueError: If a reference is needed and missing, or the inputs of `quantile_huber` are invalid.
    """
    if cfg.needs_reference and reference is None:
        raise ValueError("tail_shape and tail_curvature with shape_reference 'previous' need `reference`")
    z, g, w = _token_rows(z, targets, mask, response_weights)

    def average(x: Tensor) -> Tensor:
        return x.mean() if w is None else (x * w).mean()

    level_weights = risk_weights(z.shape[-1], cfg.rho, dtype=z.dtype, device=z.device) if cfg.rho else None
    terms = {"quantile_huber": average(quantile_huber(z, g, cfg.kappa, level_weights))}
    shaped = cfg.head_consistency or cfg.tail_calibration or cfg.tail_shape or cfg.tail_curvature
    q = sort_quantiles(z) if crossing == "rearrange" and shaped else z
    by_rank = cfg.tail_calibration and cfg.tail_calibration_form == "sample" or cfg.shape_reference == "sample"
    sample = sort_quantiles(g) if by_rank else g
    ref = reference.detach()[mask] if cfg.needs_reference else sample
    if scale is None and reference is not None:
        scale = return_scale(reference, mask)
    masses = (cfg.lower_mass, cfg.upper_mass)
    if cfg.head_consistency:
        terms["head_consistency"] = head_consistency(q).mean()
    if cfg.tail_calibration:
        terms["tail_calibration"] = average(tail_calibration(q, sample, *masses, cfg.tail_calibration_form, scale))
    if cfg.mean_shift:
        terms["mean_shift"] = mean_shift(z.mean(-1), g.mean(-1), w, batch_gap)
    shape_average = average if cfg.shape_reference == "sample" else torch.mean
    if cfg.tail_shape:
        terms["tail_shape"] = shape_average(tail_shape(q, ref, *masses, scale))
    if cfg.tail_curvature:
        terms["tail_curvature"] = shape_average(tail_curvature(q, ref, *masses, scale))
    total = terms["quantile_huber"] + sum(getattr(cfg, k) * v for k, v in terms.items() if k != "quantile_huber")
    return total, {k: v.detach() for k, v in terms.items()}
