"""Drift of the tail ratchet: terms that refer to the critic before the update, trained on mini-batches.

With `shape_reference: previous` the lower tail may only contract and the upper tail must not shrink. Mini-batches make
quantiles jitter. The ratchet keeps the outward jitter above and the inward jitter below, and the core pulls it back.
The weight decides which one wins, shown here on free quantiles that start at the truth. Used by notebooks/00_method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from dvpo_lib.experiments.known_distributions.distributions import (
    DISTRIBUTIONS,
    GRID_POINTS,
    QUANTILE_COUNT,
    TAIL_MASSES,
    curve_statistics,
)
from dvpo_lib.experiments.known_distributions.term_bias import bias_core_loss, term_weight
from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.quantiles import sort_quantiles
from dvpo_lib.reporting.prose import join_words

DRIFT_STRENGTHS = (0.01, 0.1, 1.0)  # in multiples of the default weights
RATCHET_TERMS = ("tail_shape", "tail_curvature")
TAIL_NAMES = {"lower": "lower tail", "upper": "upper tail"}


def measure_drift(
    names: Iterable[str] = tuple(DISTRIBUTIONS)[1:],
    steps: int = 2000,
    refresh: int = 8,
    batch: int = 64,
    rate: float = 0.01,
    seeds: int = 6,
    strengths: Sequence[float] = DRIFT_STRENGTHS,
) -> pd.DataFrame:
    """Trains the core plus one ratchet term on batches by Adam, all weights and seeds at once.

    Args:
        names: Keys of DISTRIBUTIONS.
        steps: Training steps.
        refresh: Steps between updates of the reference.
        batch: Samples per step.
        rate: Step size of Adam, return units.
        seeds: Number of seeds.
        strengths: Weights of the terms, as multiples of their default weights.

    Returns:
        Columns distribution, term, weight, seed; mean, lower and upper (tail means) of the average curve over the last
        quarter of the steps, each with `*_truth`. Return units.
    """
    cases = [("core", 0.0), *((term, term_weight(term, s)) for term in RATCHET_TERMS for s in strengths)]
    rows = []
    for name in names:
        truth, grid = DISTRIBUTIONS[name](QUANTILE_COUNT), DISTRIBUTIONS[name](GRID_POINTS)
        generator = torch.Generator().manual_seed(0)
        q = truth.repeat(seeds, len(cases), 1).requires_grad_()  # (seeds, cases, M)
        optimizer = torch.optim.Adam([q], lr=rate)
        reference, average = q.detach().clone(), torch.zeros_like(q)
        for step in range(steps):
            if step % refresh == 0:
                reference = sort_quantiles(q.detach())
            g = grid[torch.randint(GRID_POINTS, (seeds, batch), generator=generator)]  # the same for all cases
            loss = bias_core_loss(q[:, :, None], g).sum()
            for i, (term, w) in enumerate(cases[1:], start=1):
                loss = loss + w * getattr(losses, term)(sort_quantiles(q[:, i]), reference[:, i], *TAIL_MASSES).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= steps - steps // 4:
                average += sort_quantiles(q.detach()) / (steps // 4)
        right = {f"{k}_truth": v for k, v in curve_statistics(truth).items()}
        for i, (term, w) in enumerate(cases):
            for seed in range(seeds):
                rows.append(
                    {
                        "distribution": name,
                        "term": term,
                        "weight": w,
                        "seed": seed,
                        **curve_statistics(average[seed, i]),
                        **right,
                    }
                )
    return pd.DataFrame(rows)


def drift_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Tail means for a notebook, "mean (s.d.)" over seeds: a row per term and weight, a column per tail."""
    columns: dict[str, list[str]] = {}
    for name, own in runs.groupby("distribution", sort=False):
        for tail, title in TAIL_NAMES.items():
            cells = own.groupby(["term", "weight"], sort=False)[tail]
            heading = f"{name}: {title} (truth {own[f'{tail}_truth'].iloc[0]:.2f})"
            columns[heading] = [f"{m:.2f} ({s:.2f})" for m, s in zip(cells.mean(), cells.std())]
    keys = runs.drop_duplicates(["term", "weight"])[["term", "weight"]]
    named = {
        "term": keys["term"].str.replace("_", " ").tolist(),
        "weight": [f"{w:g}" if w else "" for w in keys["weight"]],
    }
    return pd.DataFrame({**named, **columns})


def drift_findings(runs: pd.DataFrame) -> str:
    """Tails that drift from those of the core by more than three standard errors and a tenth of their size."""
    lines = []
    for name, own in runs.groupby("distribution", sort=False):
        base, found = own[own["term"] == "core"], []
        for (term, w), cell in own[own["term"] != "core"].groupby(["term", "weight"], sort=False):
            for tail, title in TAIL_NAMES.items():
                change = cell[tail].to_numpy() - base[tail].to_numpy()  # paired: the same batches
                error = change.std(ddof=1) / len(change) ** 0.5
                if abs(change.mean()) > max(3 * error, 0.1 * abs(base[tail].mean())):
                    found.append(f"{term.replace('_', ' ')} at {w:g} moves the {title} by {change.mean():+.2f}")
        lines.append(f"- **{name}**: {join_words(found) if found else 'no weight makes a tail drift'}.")
    return "\n".join(lines)
