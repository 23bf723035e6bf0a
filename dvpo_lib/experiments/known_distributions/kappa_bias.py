"""The bias that kappa causes: with a large kappa, quantiles of a 0/1 reward become expectiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from dvpo_lib.experiments.known_distributions.distributions import GRID_POINTS, bernoulli_quantiles
from dvpo_lib.functional.quantile_huber import quantile_huber
from dvpo_lib.functional.quantiles import midpoint_levels
from dvpo_lib.reporting.prose import percent_text


def kappa_closed_form(p: float, kappa: float, tau: Tensor) -> Tensor:
    """Minimiser of `quantile_huber` for Bernoulli(p) in closed form.

    The slope at q in [0, 1] is zero if (1 - p)(1 - tau) min(q / kappa, 1) = p tau min((1 - q) / kappa, 1). Let
    r = p tau / ((1 - p)(1 - tau)). The solution is

        r / (1 + r)     if both errors are within kappa (always at kappa >= 1): the expectile,
        kappa r         if only the error to 0 is within kappa,
        1 - kappa / r   if only the error to 1 is within kappa,

    and the quantile at kappa = 0.

    Args:
        p: Probability of the return 1.
        kappa: Threshold of the Huber loss, return units.
        tau: (M,) levels.

    Returns:
        (M,) learned values.
    """
    r = p * tau / ((1 - p) * (1 - tau))
    to_zero, to_one = kappa * r, 1 - kappa / r
    both = r / (1 + r)
    inside = (both <= kappa) & (1 - both <= kappa)
    return torch.where(inside, both, torch.where(r <= 1, to_zero, to_one))


def bisected_minimiser(g: Tensor, kappa: float, m: int) -> Tensor:
    """Minimiser of `quantile_huber` by bisection on the sign of its gradient.

    Args:
        g: (K,) targets.
        kappa: Threshold of the Huber loss, return units.
        m: Number of quantiles.

    Returns:
        (m,) quantiles.
    """
    low, high = g.min().expand(m), g.max().expand(m)
    for _ in range(50):
        q = ((low + high) / 2).requires_grad_()
        [slope] = torch.autograd.grad(quantile_huber(q, g, kappa), q)
        low, high = torch.where(slope < 0, q.detach(), low), torch.where(slope < 0, high, q.detach())
    return (low + high) / 2


def kappa_readouts(
    ps: Iterable[float] = (0.2, 0.05), kappas: Iterable[float] = (0.0, 0.1, 0.25, 0.5, 1.0), m: int = 200
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learned quantiles of Bernoulli(p) and their mean read-out.

    Args:
        ps: Probabilities of the return 1.
        kappas: Thresholds of the Huber loss, return units.
        m: Number of quantiles.

    Returns:
        curves: Columns p, kappa, level, value, truth.
        table: Columns p, kappa, found (mean read-out by the library's gradient), closed (by the closed form), truth.
    """
    tau, curves, rows = midpoint_levels(m, dtype=torch.float64), [], []
    for p, kappa in itertools.product(ps, kappas):
        q, truth = (
            bisected_minimiser(bernoulli_quantiles(p, midpoint_levels(GRID_POINTS, dtype=torch.float64)), kappa, m),
            bernoulli_quantiles(p, tau),
        )
        rows.append(
            {
                "p": p,
                "kappa": kappa,
                "found": q.mean().item(),
                "closed": kappa_closed_form(p, kappa, tau).mean().item(),
                "truth": p,
            }
        )
        curves.append(pd.DataFrame({"p": p, "kappa": kappa, "level": tau, "value": q, "truth": truth}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


def kappa_findings(table: pd.DataFrame) -> str:
    """Error of the mean read-out at the smallest and the largest kappa."""
    parts = []
    for p, own in table.groupby("p", sort=False):
        first, last = own.iloc[0], own.iloc[-1]
        parts.append(
            f"for p = {p:g} it is {first['found']:.3f} at kappa = {first['kappa']:g} and {last['found']:.3f} "
            f"at kappa = {last['kappa']:g}, off by {percent_text(last['found'] / p - 1)}"
        )
    off = (table["found"] - table["closed"]).abs().max()
    parts = "; ".join(parts).replace(" %", "\N{NO-BREAK SPACE}%")
    return f"The mean read-out: {parts}. The library's gradient leads to the closed form to within {off:.0e}."


def kappa_metrics(table: pd.DataFrame) -> dict:
    """Mean read-outs for `dvc metrics show`: {p: {kappa: found}}."""
    return {f"p={p:g}": {f"{r.kappa:g}": r.found for r in own.itertuples()} for p, own in table.groupby("p")}
