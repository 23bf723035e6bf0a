"""The quantile loss against its M x M table, and advantage estimation against a loop over tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dvpo_lib.functional.advantages import generalised_advantages
from dvpo_lib.functional.quantile_huber import quantile_huber
from dvpo_lib.functional.quantiles import midpoint_levels, stable_order

from .meters import median_ms, peak_mb


def table_quantile_huber(q: Tensor, g: Tensor, kappa: float) -> Tensor:
    """The loss by its definition: every quantile against every target.

    Args:
        q: (R, M) quantiles.
        g: (R, K) targets.
        kappa: Threshold of the Huber loss.

    Returns:
        (R,).
    """
    u = g[:, None, :] - q[:, :, None]
    weight = (midpoint_levels(q.shape[-1], device=q.device)[:, None] - (u.detach() < 0).float()).abs()
    if kappa == 0:
        return (weight * u.abs()).mean((-2, -1))
    return (
        weight * torch.nn.functional.huber_loss(u, torch.zeros_like(u), reduction="none", delta=kappa) / kappa
    ).mean((-2, -1))


def loop_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages by the usual loop over tokens.

    Args:
        rewards: (B, T).
        values: (B, T, M).
        mask: (B, T), true on a prefix of each row.
        gamma: Discount.
        lam: Lambda.

    Returns:
        (B, T, M).
    """
    after, advantage, out = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0]), []
    for t in range(values.shape[1] - 1, -1, -1):
        real = mask[:, t, None].to(values.dtype)
        delta = rewards[:, t, None] + gamma * after - values[:, t]
        advantage = (delta + gamma * lam * advantage) * real
        after = values[:, t] * real
        out.append(advantage)
    return torch.stack(out[::-1], 1)


def loss_rows(sizes: list[int], rows: int, repeats: int, device: str = "cpu") -> Iterator[dict]:
    """Times loss and gradient of (rows, M) quantiles and targets. Yields form, kappa, quantiles, rows, ms, peak_mb."""
    generator = torch.Generator().manual_seed(0)
    for m in sizes:
        q = torch.randn(rows, m, generator=generator).sort(-1).values.to(device).requires_grad_()
        g = torch.randn(rows, m, generator=generator).to(device)
        for kappa in (0.0, 1.0):

            def run(loss, q=q, g=g, kappa=kappa):
                return torch.autograd.grad(loss(q, g, kappa).mean(), q)

            forms = {"sorted": lambda run=run: run(quantile_huber), "table": lambda run=run: run(table_quantile_huber)}
            times = median_ms(forms, repeats, device)
            for form, function in forms.items():
                yield dict(
                    form=form, kappa=kappa, quantiles=m, rows=rows, ms=times[form], peak_mb=peak_mb(function, device)
                )


def gae_rows(shapes: list[tuple[int, int, int]], repeats: int, device: str = "cpu") -> Iterator[dict]:
    """Times distributional GAE by matrix products and by the loop. Yields form, responses, tokens, quantiles, ms."""
    generator = torch.Generator().manual_seed(0)
    for b, t, m in shapes:
        rewards, values = torch.randn(b, t, generator=generator), torch.randn(b, t, m, generator=generator)
        mask = torch.arange(t) < torch.randint(t // 2, t + 1, (b, 1), generator=generator)
        rewards, values, mask = (x.to(device) for x in (rewards, values, mask))
        forms = {
            "matrix": lambda r=rewards, v=values, k=mask: generalised_advantages(r, v, k, 1.0, 0.95),
            "loop": lambda r=rewards, v=values, k=mask: loop_gae(r, v, k, 1.0, 0.95),
        }
        for form, ms in median_ms(forms, repeats, device).items():
            yield dict(form=form, responses=b, tokens=t, quantiles=m, ms=ms)


def sort_rows(sizes: list[int], rows: int, repeats: int) -> Iterator[dict]:
    """Times an argsort of nearly monotone heads, which a differentiable rearrangement needs.

    Always on the CPU, since the library sorts with torch elsewhere. Yields library, quantiles, rows, ms.
    """
    generator = torch.Generator().manual_seed(0)
    for m in sizes:
        z = midpoint_levels(m) + 0.05 * torch.randn(rows, m, generator=generator)
        forms = {"torch": lambda z=z: z.sort(-1), "numpy": lambda z=z: stable_order(z)}
        for library, ms in median_ms(forms, repeats).items():
            yield dict(library=library, quantiles=m, rows=rows, ms=ms)
