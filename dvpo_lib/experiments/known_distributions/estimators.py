"""Kappa, targets, read-outs and whitening on small distributions whose truth is known.

Backs notebooks/00_method, together with `biases`: pure functions that return tidy frames, and sentences about them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from dvpo_lib.experiments.known_distributions.term_bias import DISTRIBUTIONS, SHOWN, K, M, bernoulli
from dvpo_lib.functional.advantages import (
    ReadoutSettings,
    actor_advantages,
    gae,
    group_advantages,
    quantile_targets,
    whiten,
)
from dvpo_lib.functional.quantile_huber import quantile_huber
from dvpo_lib.functional.quantiles import distortion_weights, interpolate, levels, monotone
from dvpo_lib.reporting.prose import join_words, percent_text

# ---- kappa ----


def closed_form(p: float, kappa: float, tau: Tensor) -> Tensor:
    """What `quantile_huber` learns at the levels tau from Bernoulli(p).

    Its slope at q in [0, 1] vanishes where (1 - p)(1 - tau) min(q / kappa, 1) = p tau min((1 - q) / kappa, 1). With
    r = p tau / ((1 - p)(1 - tau)): the expectile r / (1 + r) where both errors are within kappa (all of them at
    kappa >= 1), kappa r where only that to 0 is, 1 - kappa / r where only that to 1 is; the quantile at kappa = 0.
    """
    r = p * tau / ((1 - p) * (1 - tau))
    to_zero, to_one = kappa * r, 1 - kappa / r
    both = r / (1 + r)
    inside = (both <= kappa) & (1 - both <= kappa)
    return torch.where(inside, both, torch.where(r <= 1, to_zero, to_one))


def each_minimiser(g: Tensor, kappa: float, m: int) -> Tensor:
    """(m,) quantiles that minimise `quantile_huber` against targets g (K,): bisection on the sign of its gradient."""
    low, high = g.min().expand(m), g.max().expand(m)
    for _ in range(50):
        q = ((low + high) / 2).requires_grad_()
        [slope] = torch.autograd.grad(quantile_huber(q, g, kappa), q)
        low, high = torch.where(slope < 0, q.detach(), low), torch.where(slope < 0, high, q.detach())
    return (low + high) / 2


def kappa_curves(
    ps: Iterable[float] = (0.2, 0.05), kappas: Iterable[float] = (0.0, 0.1, 0.25, 0.5, 1.0), m: int = 200
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(curves: p, kappa, level, value, truth; table: p, kappa, found, closed, truth) of Bernoulli(p).

    `found` is the mean read-out of what the library's gradient leads to, `closed` that of the closed form; kappa in
    return units.
    """
    tau, curves, rows = levels(m, dtype=torch.float64), [], []
    for p, kappa in itertools.product(ps, kappas):
        q, truth = each_minimiser(bernoulli(p, levels(K, dtype=torch.float64)), kappa, m), bernoulli(p, tau)
        rows.append(
            {
                "p": p,
                "kappa": kappa,
                "found": q.mean().item(),
                "closed": closed_form(p, kappa, tau).mean().item(),
                "truth": p,
            }
        )
        curves.append(pd.DataFrame({"p": p, "kappa": kappa, "level": tau, "value": q, "truth": truth}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


# ---- advantages ----


def gae_identity(seed: int = 0) -> pd.DataFrame:
    """Largest |mean_j A_j - scalar GAE of the mean| over random rewards, quantiles and masks with gaps.

    Returns:
        precision, lambda, difference (return units, where rewards and quantiles have a standard deviation of 1).
    """
    rows = []
    for dtype, lam in itertools.product((torch.float32, torch.float64), (0.0, 0.5, 0.95, 1.0)):
        generator = torch.Generator().manual_seed(seed)
        r, z = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((64, 24), (64, 24, 200)))
        mask = torch.rand(64, 24, generator=generator) < 0.8
        difference = gae(r, monotone(z), mask, 1.0, lam)[0].mean(-1) - gae(r, z.mean(-1), mask, 1.0, lam)[0]
        rows.append(
            {"precision": str(dtype).removeprefix("torch."), "lambda": lam, "difference": difference.abs().max().item()}
        )
    return pd.DataFrame(rows)


def walk_returns(steps: int = 5, noise: int = 31) -> tuple[Tensor, Tensor]:
    """A Markov reward process whose returns are known: a walk of +-1 steps, paid once at its end with N(0, 1) on top.

    Returns:
        position (B, T) before each step and return (B,), all B = 2^T * noise outcomes, equally likely.
    """
    path = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=steps)), dtype=torch.float64)
    extra = torch.special.ndtri(levels(noise, dtype=torch.float64)).repeat(len(path))
    path = path.repeat_interleave(noise, 0)
    return path.cumsum(1) - path, path.sum(1) + extra


def walk_fixed_point(lam: float, kind: str, m: int = M, seed: int = 0) -> Tensor:
    """(m,) quantiles of the first state that a critic without error learns from its own lambda-return targets.

    State by state from the end: quantile regression (kappa = 0) on all targets of a state gives their quantiles.
    """
    position, returns = walk_returns()
    length = position.shape[1]
    rewards = torch.cat([torch.zeros_like(position[:, 1:]), returns[:, None]], 1)
    z, mask = torch.zeros(*position.shape, m, dtype=torch.float64), torch.ones_like(position, dtype=torch.bool)
    for t in reversed(range(length)):
        targets = quantile_targets(rewards, z, mask, 1.0, lam, kind, torch.Generator().manual_seed(seed + t))[:, t]
        for state in position[:, t].unique():
            here = position[:, t] == state
            pool = targets[here].flatten().sort().values
            z[here, t] = pool[(levels(m, dtype=torch.float64) * len(pool)).long()]
    return z[0, 0]


def walk_widths(lams: Iterable[float] = tuple(i / 10 for i in range(11))) -> pd.DataFrame:
    """Quantile curves of the walk's first state: kind ("true", "comonotone", "mixture"), lambda, level, value."""
    returns = walk_returns()[1].sort().values
    tau = levels(M, dtype=torch.float64)
    true = returns[(tau * len(returns)).long()]
    frames = [pd.DataFrame({"kind": "true", "lambda": lam, "level": tau, "value": true}) for lam in lams]
    frames += [
        pd.DataFrame({"kind": kind, "lambda": lam, "level": tau, "value": walk_fixed_point(lam, kind)})
        for kind in ("comonotone", "mixture")
        for lam in lams
    ]
    return pd.concat(frames, ignore_index=True)


# ---- read-outs ----

READOUTS = {  # what is shown: (kind, settings of `distortion_weights`)
    "mean": ("mean", {}),
    "CVaR, 25 %": ("cvar", {"alpha": 0.25}),
    "Wang, 0.5": ("wang", {"strength": 0.5}),
    "Wang, -0.5": ("wang", {"strength": -0.5}),
    "CPW, 0.3": ("cpw", {"strength": 0.3}),
    "blend, 0.5": ("blend", {"strength": 0.5}),
}


def readout_weights(m: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(curves: readout, level, weight relative to the mean's; table: readout and its value for every distribution)."""
    curves, rows = [], []
    for name, (kind, settings) in READOUTS.items():
        w = distortion_weights(kind, m, dtype=torch.float64, **settings)
        curves.append(pd.DataFrame({"readout": name, "level": levels(m, dtype=torch.float64), "weight": w * m}))
        rows.append({"readout": name, **{n: (f(m) @ w).item() for n, f in DISTRIBUTIONS.items()}})
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


def winsorised(band: Iterable[float] = (0.0, 0.05, 0.1, 0.2), name: str = SHOWN, reach: float = 12.0) -> pd.DataFrame:
    """The reward that reaches the actor: level (of either side), reward, used (reward units), at the last token.

    `used` is the advantage of `actor_advantages` plus the baseline that it is measured from.
    """
    z, r = DISTRIBUTIONS[name](200), torch.linspace(-reach, reach, 241, dtype=torch.float64)[:, None]
    rows, mask = [], torch.ones(len(r), 1, dtype=torch.bool)
    for level in band:
        readout = ReadoutSettings(kind="winsorised", level_low=level, level_up=level)
        a = actor_advantages(r, z.expand(len(r), 1, -1), mask, 1.0, 1.0, readout)[:, 0]
        low, up = (interpolate(z, level), interpolate(z, 1 - level)) if level else (-torch.inf, torch.inf)
        rows.append(pd.DataFrame({"level": level, "reward": r[:, 0], "used": a + z.clamp(low, up).mean()}))
    return pd.concat(rows, ignore_index=True)


# ---- spikes ----


def spike_shrinkage(
    scales: Iterable[float] = (1.0, 2.0, 5.0, 10.0, 20.0),
    rate: float = 0.2,
    group: int = 8,
    batch: int = 128,
    batches: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How far apart the advantages of a right (1) and a wrong answer (0) are, where some rewards are N(0, scale^2).

    Half of the answers are right. Advantages are linear in the rewards of their batch or group, so the distance is that
    of any two clean rewards in it, 1 and 0; groups without both are left out.

    Returns:
        share of spikes, scale (return units; 0 in a first row without spikes), whitened (over the batch, found),
        formula (for an endless batch), groups (found), spike-free groups (share).
    """
    mask, rows = torch.ones(batch, 1, dtype=torch.bool), []
    for share, scale in ((0.0, 0.0), *((rate, scale) for scale in scales)):
        generator = torch.Generator().manual_seed(seed)
        right = torch.rand(batches, batch, generator=generator, dtype=torch.float64) < 0.5
        spike = torch.rand(batches, batch, generator=generator, dtype=torch.float64) < share
        noise = scale * torch.randn(batches, batch, generator=generator, dtype=torch.float64)
        r = torch.where(spike, noise, right.double())
        found = {
            "whitened": (torch.stack([whiten(x[:, None], mask)[:, 0] for x in r]), batch),
            "groups": (group_advantages(r.flatten(), group), group),
        }
        distances = {}
        for name, (a, n) in found.items():
            a, ones, zeros = (x.reshape(-1, n) for x in (a, right & ~spike, ~right & ~spike))
            both = ones.any(1) & zeros.any(1)
            top, bottom = ((a * x).sum(1) / x.sum(1) for x in (ones, zeros))
            distances[name] = (top - bottom)[both].mean().item()
        spread = (0.25 * (1 - share) * (1 + share) + share * scale**2) ** 0.5
        rows.append(
            {
                "share of spikes": share,
                "scale": scale,
                "whitened": distances["whitened"],
                "formula": 1 / spread,
                "groups": distances["groups"],
                "spike-free groups": (1 - share) ** group,
            }
        )
    return pd.DataFrame(rows)


# ---- sentences ----


def kappa_findings(table: pd.DataFrame) -> str:
    """How wrong the mean read-out gets at the largest kappa, and how right at the smallest."""
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


def identity_findings(identity: pd.DataFrame) -> str:
    """The float error of the mean of distributional GAE."""
    worst = identity.groupby("precision", sort=False)["difference"].max()
    lams = join_words(f"{x:g}" for x in identity["lambda"].unique())
    parts = join_words(f"{value:.1e} in {precision}" for precision, value in worst.items())
    return f"For lambda = {lams} the two sides differ by at most {parts}."


def walk_findings(widths: pd.DataFrame) -> str:
    """How far each kind of target misses the true width, where it does so most."""
    std = widths.groupby(["kind", "lambda"])["value"].std(ddof=0).unstack("kind")
    std = std[(std.index > 0) & (std.index < 1)]
    parts = []
    for kind in ("comonotone", "mixture"):
        off = std[kind] / std["true"] - 1
        worst = off.abs().idxmax()
        parts.append(f"with *{kind}* targets its width is off by up to {100 * off[worst]:+.0f} % (at lambda {worst:g})")
    return "What a critic without error learns of the first state, for 0 < lambda < 1: " + join_words(parts) + "."


def spike_findings(spikes: pd.DataFrame) -> str:
    """What is left of the distance between right and wrong at the largest scale, by the batch and by the group."""
    clean, last = spikes.iloc[0], spikes.iloc[-1]
    left = {name: percent_text(last[name] / clean[name]) for name in ("whitened", "groups")}
    text = (
        f"With {percent_text(last['share of spikes'])} of spikes at scale {last['scale']:g}, whitening over the batch "
        f"leaves {left['whitened']} of the distance, normalising in groups {left['groups']}."
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def kappa_metrics(table: pd.DataFrame) -> dict:
    """For `dvc metrics show`: mean read-outs, {p: {kappa: found}}."""
    return {f"p={p:g}": {f"{r.kappa:g}": r.found for r in own.itertuples()} for p, own in table.groupby("p")}
