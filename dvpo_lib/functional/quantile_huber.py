"""The quantile Huber loss, exact, in O((M + K) log(M + K)) time and O(M + K) memory, with its own gradient.

Quantiles are rows of M numbers at midpoint levels, targets rows of K samples. A row with one target has a closed form.
Other targets are sorted once; prefix sums and ranks then give value and gradient in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dvpo_lib.functional.quantiles import midpoint_levels, sort_quantiles, stable_order

BLOCK_NUMBERS = 2**16  # numbers per block of rows, small enough for a CPU's cache


class _QuantileHuber(torch.autograd.Function):
    """Rows of (R, N, M) quantiles against (R, K) targets -> (R, N); value and gradient in one pass."""

    @staticmethod
    def forward(ctx, q: Tensor, g: Tensor, tau: Tensor, weights: Tensor | None, kappa: float) -> Tensor:
        if g.shape[-1] == 1:
            loss, grad = _against_point(q, g[:, :, None], tau, kappa)
        else:  # on a CPU in blocks of rows that stay in its cache
            rows = len(q) if q.is_cuda else max(1, BLOCK_NUMBERS // (q.shape[1:].numel() + g.shape[-1]))
            parts = [_against_sample(*block, tau, kappa) for block in zip(q.split(rows), g.split(rows))]
            loss, grad = (torch.cat(x) for x in zip(*parts))
        if weights is not None:
            loss, grad = loss * weights, grad * weights
        ctx.save_for_backward(grad.div_(q.shape[-1]), q)
        return loss.mean(-1)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return _Gradient.apply(upstream, *ctx.saved_tensors), None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient as a function of q, so that a second derivative fails.

    `once_differentiable` would see `upstream` alone and treat the gradient as a constant.
    """

    @staticmethod
    def forward(ctx, upstream: Tensor, grad: Tensor, q: Tensor) -> Tensor:
        return upstream[..., None] * grad

    @staticmethod
    def backward(ctx, upstream: Tensor):
        raise RuntimeError("quantile_huber has no second derivative")


def _against_point(q: Tensor, g: Tensor, tau: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Elementwise loss and its derivative in q, for one target per row."""
    u = g - q
    slope = (u < 0).to(q.dtype) - tau  # of the pinball loss in q: 1 - tau above the target, -tau below
    if kappa == 0:
        return -slope * u, slope
    near = u.abs() <= kappa
    loss = slope.abs() * torch.where(near, u * u / (2 * kappa), u.abs() - kappa / 2)
    return loss, slope.abs() * -torch.where(near, u / kappa, u.sign())


def _against_sample(q: Tensor, g: Tensor, tau: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Elementwise loss and its derivative in q, for K targets per row, in O((M + K) log(M + K)) a row.

    With n(x) the number of targets below x and P(x) their sum,
        sum_k (tau - 1{g_k < q}) (g_k - q) = tau (P(inf) - K q) - (P(q) - n(q) q).

    The Huber form needs the counts, sums and sums of squares between q - kappa, q and q + kappa.
    """
    shape, k = q.shape, g.shape[-1]
    centre = g.mean(-1, keepdim=True)  # prefix sums lose digits if returns share a large offset
    g = sort_quantiles(g - centre)
    q = (q - centre[..., None]).flatten(1).contiguous()
    tau = tau.expand(shape[1:]).flatten()
    if kappa > 0:  # squares lose digits if kappa is far below the spread
        g, q, tau = g.double(), q.double(), tau.double()
    zero = g.new_zeros(len(g), 1)
    first = torch.cat([zero, g.cumsum(-1)], -1)

    if kappa == 0:
        index = _ranks(g, q)
        slope = index - tau * k
        loss = tau * first[:, -1:] - first.gather(-1, index) + slope * q
    else:
        second = torch.cat([zero, (g * g).cumsum(-1)], -1)

        def below(x: Tensor, right: bool = False) -> tuple[Tensor, Tensor]:
            index = torch.searchsorted(g, x, right=right)
            return index, first.gather(-1, index)

        n, p = below(q)
        n_low, p_low = below(q - kappa)
        n_up, p_up = below(q + kappa, right=True)

        def squares(a: Tensor, b: Tensor, n: Tensor, p: Tensor) -> Tensor:
            return second.gather(-1, b) - second.gather(-1, a) - 2 * q * p + n * q * q

        near_low, near_up = squares(n_low, n, n - n_low, p - p_low), squares(n, n_up, n_up - n, p_up - p)
        far_low = n_low * (q - kappa / 2) - p_low
        far_up = (first[:, -1:] - p_up) - (k - n_up) * (q + kappa / 2)
        loss = (1 - tau) * (far_low + near_low / (2 * kappa)) + tau * (far_up + near_up / (2 * kappa))
        slope = (1 - tau) * (n_low + ((n - n_low) * q - (p - p_low)) / kappa)
        slope = slope - tau * ((k - n_up) + ((p_up - p) - (n_up - n) * q) / kappa)
    dtype = centre.dtype
    return (loss / k).to(dtype).view(shape), (slope / k).to(dtype).view(shape)


def _ranks(g: Tensor, q: Tensor) -> Tensor:
    """(R, L) number of sorted targets g (R, K) below each of q (R, L).

    On a CPU, sorting both together is several times faster than many binary searches. Targets come last, so that a
    target equal to a quantile is not below it.
    """
    count = q.shape[-1]
    if g.device.type != "cpu" or g.dtype != torch.float32 or count < g.shape[-1]:
        return torch.searchsorted(g, q)
    order = stable_order(torch.cat([q, g], -1))
    below = (order >= count).cumsum(-1)
    return torch.empty_like(order).scatter_(-1, order, below)[:, :count]


def quantile_huber(quantiles: Tensor, targets: Tensor, kappa: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """mean_j mean_k w_j |tau_j - 1{G_k < q_j}| H_kappa(G_k - q_j) / kappa (paper; Dabney et al. 2018, eq. 10).

    Exact without an M x K table: O((M + K) log(M + K)) time and O(M + K) memory a row; value and gradient come from one
    pass. kappa = 0 is the pinball loss. kappa must be small against the spread of returns, or the critic learns
    expectiles. Computed in float32 at least, returned in that dtype.

    Args:
        quantiles: (..., M), in any order.
        targets: (..., K), leading sizes equal or 1; no gradient flows to them.
        kappa: Huber threshold, return units.
        weights: (M,) weights of the levels, mean 1; None for equal weights.

    Returns:
        (...) losses, return units.

    Raises:
        ValueError: If the shapes do not fit, or kappa is negative.
        FloatingPointError: If quantiles or targets are not finite.
        RuntimeError: On a second derivative, which is not implemented.

    Example:
        >>> quantile_huber(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([0.1250])
    """
    if kappa < 0:
        raise ValueError(f"kappa must not be negative, but is {kappa}")
    if quantiles.dim() != targets.dim():
        raise ValueError(f"quantiles {tuple(quantiles.shape)} and targets {tuple(targets.shape)} differ in rank")
    if weights is not None and weights.shape != quantiles.shape[-1:]:
        raise ValueError(f"weights have shape {tuple(weights.shape)}, not ({quantiles.shape[-1]},)")
    if not all(x.detach().abs().amax().isfinite() for x in (quantiles, targets) if x.numel()):
        raise FloatingPointError("quantiles or targets are not finite")
    dtype = torch.promote_types(quantiles.dtype, torch.float32)
    tau = midpoint_levels(quantiles.shape[-1], dtype=dtype, device=quantiles.device)
    return quantile_huber_at(quantiles, targets, tau, kappa, weights)


def quantile_huber_at(
    quantiles: Tensor, targets: Tensor, tau: Tensor, kappa: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """`quantile_huber` at any levels tau (M,), in the dtype of tau."""
    q, g = quantiles.to(tau), targets.detach().to(tau)
    lead = torch.broadcast_shapes(q.shape[:-1], g.shape[:-1])
    if lead != q.shape[:-1]:
        q = q.expand(*lead, q.shape[-1])
    shared = q.dim() >= 3 and g.shape[-2] == 1 and g.shape[:-2] == q.shape[:-2]  # heads share their targets: sort once
    heads = q.shape[-2] if shared else 1
    g = (g if shared else g.expand(*lead, g.shape[-1])).reshape(-1, g.shape[-1])
    weights = None if weights is None else weights.to(tau)
    return _QuantileHuber.apply(q.reshape(-1, heads, q.shape[-1]), g, tau, weights, kappa).view(lead)
