"""Targets, read-outs and whitening on small distributions with a known truth. Used by notebooks/00_method."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from dvpo_lib.experiments.known_distributions.distributions import DISTRIBUTIONS, QUANTILE_COUNT, SHOWN_DISTRIBUTION
from dvpo_lib.functional.advantages import (
    ReadoutSettings,
    actor_advantages,
    generalised_advantages,
    group_advantages,
    masked_whiten,
    quantile_targets,
)
from dvpo_lib.functional.quantiles import distortion_weights, midpoint_levels, quantile_at_level, sort_quantiles
from dvpo_lib.reporting.prose import join_words, percent_text

# ---- advantages ----


def gae_identity(seed: int = 0) -> pd.DataFrame:
    """Largest |mean_j A_j - scalar GAE of the mean| over random rewards, quantiles and masks with gaps.

    Returns:
        Columns precision, lambda, difference (return units; rewards and quantiles have standard deviation 1).
    """
    rows = []
    for dtype, lam in itertools.product((torch.float32, torch.float64), (0.0, 0.5, 0.95, 1.0)):
        generator = torch.Generator().manual_seed(seed)
        r, z = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((64, 24), (64, 24, 200)))
        mask = torch.rand(64, 24, generator=generator) < 0.8
        difference = (
            generalised_advantages(r, sort_quantiles(z), mask, 1.0, lam)[0].mean(-1)
            - generalised_advantages(r, z.mean(-1), mask, 1.0, lam)[0]
        )
        rows.append(
            {"precision": str(dtype).removeprefix("torch."), "lambda": lam, "difference": difference.abs().max().item()}
        )
    return pd.DataFrame(rows)


def random_walk_returns(steps: int = 5, noise: int = 31) -> tuple[Tensor, Tensor]:
    """A Markov reward process with known returns: a walk of +-1 steps, paid at its end with N(0, 1) added.

    Args:
        steps: Length T of the walk.
        noise: Points that represent N(0, 1).

    Returns:
        position: (B, T) position before each step, for all B = 2^T * noise equally likely outcomes.
        returns: (B,) return.
    """
    path = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=steps)), dtype=torch.float64)
    extra = torch.special.ndtri(midpoint_levels(noise, dtype=torch.float64)).repeat(len(path))
    path = path.repeat_interleave(noise, 0)
    return path.cumsum(1) - path, path.sum(1) + extra


def fixed_point_quantiles(lam: float, kind: str, m: int = QUANTILE_COUNT, seed: int = 0) -> Tensor:
    """Quantiles of the walk's first state that an exact critic learns from its own lambda-return targets.

    States are solved backwards. Quantile regression (kappa = 0) on all targets of a state gives their quantiles.

    Args:
        lam: Lambda of the targets.
        kind: "comonotone" or "mixture".
        m: Number of quantiles.
        seed: Seed of the mixture's horizons.

    Returns:
        (m,) quantiles, return units.
    """
    position, returns = random_walk_returns()
    length = position.shape[1]
    rewards = torch.cat([torch.zeros_like(position[:, 1:]), returns[:, None]], 1)
    z, mask = torch.zeros(*position.shape, m, dtype=torch.float64), torch.ones_like(position, dtype=torch.bool)
    for t in reversed(range(length)):
        uniforms = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed + t), dtype=torch.float64)
        targets = quantile_targets(rewards, z, mask, 1.0, lam, kind, uniforms)[:, t]
        for state in position[:, t].unique():
            here = position[:, t] == state
            pool = targets[here].flatten().sort().values
            z[here, t] = pool[(midpoint_levels(m, dtype=torch.float64) * len(pool)).long()]
    return z[0, 0]


def walk_quantiles(lams: Iterable[float] = tuple(i / 10 for i in range(11))) -> pd.DataFrame:
    """Quantile curves of the walk's first state.

    Args:
        lams: Values of lambda.

    Returns:
        Columns kind ("true", "comonotone", "mixture"), lambda, level, value.
    """
    returns = random_walk_returns()[1].sort().values
    tau = midpoint_levels(QUANTILE_COUNT, dtype=torch.float64)
    true = returns[(tau * len(returns)).long()]
    frames = [pd.DataFrame({"kind": "true", "lambda": lam, "level": tau, "value": true}) for lam in lams]
    frames += [
        pd.DataFrame({"kind": kind, "lambda": lam, "level": tau, "value": fixed_point_quantiles(lam, kind)})
        for kind in ("comonotone", "mixture")
        for lam in lams
    ]
    return pd.concat(frames, ignore_index=True)


# ---- read-outs ----

SHOWN_READOUTS = {  # {name: (kind, settings of `distortion_weights`)}
    "mean": ("mean", {}),
    "CVaR, 25 %": ("cvar", {"alpha": 0.25}),
    "Wang, 0.5": ("wang", {"strength": 0.5}),
    "Wang, -0.5": ("wang", {"strength": -0.5}),
    "CPW, 0.3": ("cpw", {"strength": 0.3}),
    "blend, 0.5": ("blend", {"strength": 0.5}),
}


def readout_weights(m: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Level weights of each read-out, and its value for each distribution.

    Returns:
        curves: Columns readout, level, weight (relative to that of the mean).
        table: Column readout and one column per distribution, return units.
    """
    curves, rows = [], []
    for name, (kind, settings) in SHOWN_READOUTS.items():
        w = distortion_weights(kind, m, dtype=torch.float64, **settings)
        curves.append(
            pd.DataFrame({"readout": name, "level": midpoint_levels(m, dtype=torch.float64), "weight": w * m})
        )
        rows.append({"readout": name, **{n: (f(m) @ w).item() for n, f in DISTRIBUTIONS.items()}})
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


def winsorised_rewards(
    band: Iterable[float] = (0.0, 0.05, 0.1, 0.2), name: str = SHOWN_DISTRIBUTION, reach: float = 12.0
) -> pd.DataFrame:
    """The reward that reaches the actor at the last token under the winsorised read-out.

    Args:
        band: Levels of the bounds, the same on both sides.
        name: Key of DISTRIBUTIONS, the critic's prediction.
        reach: Largest absolute reward.

    Returns:
        Columns level, reward, used (advantage plus its baseline), in reward units.
    """
    z, r = DISTRIBUTIONS[name](200), torch.linspace(-reach, reach, 241, dtype=torch.float64)[:, None]
    rows, mask = [], torch.ones(len(r), 1, dtype=torch.bool)
    for level in band:
        readout = ReadoutSettings(kind="winsorised", level_low=level, level_up=level)
        a = actor_advantages(r, z.expand(len(r), 1, -1), mask, 1.0, 1.0, readout)[:, 0]
        low, up = (quantile_at_level(z, level), quantile_at_level(z, 1 - level)) if level else (-torch.inf, torch.inf)
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
    """Distance of the advantages of a right (1) and a wrong answer (0) if some rewards are N(0, scale^2).

    Half of the answers are right. Advantages are linear in the rewards of their batch or group, so the distance of any
    two clean rewards 1 and 0 stands for all. Groups without both are left out.

    Args:
        scales: Standard deviations of the spikes, return units.
        rate: Share of rewards that are spikes.
        group: Responses per group.
        batch: Responses per batch.
        batches: Number of batches.
        seed: Seed of the rewards.

    Returns:
        Columns share of spikes, scale (0 in the first row, without spikes), whitened (over the batch, measured),
        formula (for an infinite batch), groups (measured), spike-free groups (share).
    """
    mask, rows = torch.ones(batch, 1, dtype=torch.bool), []
    for share, scale in ((0.0, 0.0), *((rate, scale) for scale in scales)):
        generator = torch.Generator().manual_seed(seed)
        right = torch.rand(batches, batch, generator=generator, dtype=torch.float64) < 0.5
        spike = torch.rand(batches, batch, generator=generator, dtype=torch.float64) < share
        noise = scale * torch.randn(batches, batch, generator=generator, dtype=torch.float64)
        r = torch.where(spike, noise, right.double())
        found = {
            "whitened": (torch.stack([masked_whiten(x[:, None], mask)[:, 0] for x in r]), batch),
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


def identity_findings(identity: pd.DataFrame) -> str:
    """The float error of the identity."""
    worst = identity.groupby("precision", sort=False)["difference"].max()
    lams = join_words(f"{x:g}" for x in identity["lambda"].unique())
    parts = join_words(f"{value:.1e} in {precision}" for precision, value in worst.items())
    return f"For lambda = {lams} the two sides differ by at most {parts}."


def walk_findings(widths: pd.DataFrame) -> str:
    """The largest error in width of each kind of target."""
    std = widths.groupby(["kind", "lambda"])["value"].std(ddof=0).unstack("kind")
    std = std[(std.index > 0) & (std.index < 1)]
    parts = []
    for kind in ("comonotone", "mixture"):
        off = std[kind] / std["true"] - 1
        worst = off.abs().idxmax()
        parts.append(f"with *{kind}* targets its width is off by up to {100 * off[worst]:+.0f} % (at lambda {worst:g})")
    return "What a critic without error learns of the first state, for 0 < lambda < 1: " + join_words(parts) + "."


def spike_findings(spikes: pd.DataFrame) -> str:
    """Remaining distance of right and wrong at the largest scale, by batch and by group."""
    clean, last = spikes.iloc[0], spikes.iloc[-1]
    left = {name: percent_text(last[name] / clean[name]) for name in ("whitened", "groups")}
    text = (
        f"With {percent_text(last['share of spikes'])} of spikes at scale {last['scale']:g}, whitening over the batch "
        f"leaves {left['whitened']} of the distance, normalising in groups {left['groups']}."
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
