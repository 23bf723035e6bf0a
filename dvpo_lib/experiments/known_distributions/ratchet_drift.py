"""Whether the tail ratchet drifts: terms that refer to the critic before the update, trained on mini-batches.

With `shape_reference: previous` the lower tail may only contract and the upper tail must not shrink. Mini-batches make
quantiles jitter; the ratchet keeps what the jitter opens above and closes below, and the core pulls it back. Which wins
depends on the weight: shown here on free quantiles that start at the truth. Backs notebooks/00_method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from dvpo_lib.experiments.known_distributions.term_bias import DISTRIBUTIONS, MASSES, K, M, core, statistics_of, weight
from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.quantiles import monotone
from dvpo_lib.reporting.prose import join_words

STRENGTHS = (0.01, 0.1, 1.0)  # of the default weights
TERMS = ("tail_shape", "tail_curvature")
TITLES = {"lower": "lower tail", "upper": "upper tail"}


def drift(
    names: Iterable[str] = tuple(DISTRIBUTIONS)[1:],
    steps: int = 2000,
    refresh: int = 8,
    batch: int = 64,
    rate: float = 0.01,
    seeds: int = 6,
    strengths: Sequence[float] = STRENGTHS,
) -> pd.DataFrame:
    """Trains core + one ratchet term on batches, all weights and seeds at once, by Adam.

    Args:
        names: of DISTRIBUTIONS. refresh: steps after which the reference is taken anew. batch: samples a step.
        rate: of Adam, return units. strengths: of the terms, as multiples of their default weights.

    Returns:
        distribution, term, weight, seed, and mean, lower and upper (tail means) of the last quarter's average curve,
        each with `*_truth`. Return units.
    """
    cases = [("core", 0.0), *((term, weight(term, s)) for term in TERMS for s in strengths)]
    rows = []
    for name in names:
        truth, grid = DISTRIBUTIONS[name](M), DISTRIBUTIONS[name](K)
        generator = torch.Generator().manual_seed(0)
        q = truth.repeat(seeds, len(cases), 1).requires_grad_()  # (seeds, cases, M)
        optimizer = torch.optim.Adam([q], lr=rate)
        reference, average = q.detach().clone(), torch.zeros_like(q)
        for step in range(steps):
            if step % refresh == 0:
                reference = monotone(q.detach())
            g = grid[torch.randint(K, (seeds, batch), generator=generator)]  # the same for all cases
            loss = core(q[:, :, None], g).sum()
            for i, (term, w) in enumerate(cases[1:], start=1):
                loss = loss + w * getattr(losses, term)(monotone(q[:, i]), reference[:, i], *MASSES).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= steps - steps // 4:
                average += monotone(q.detach()) / (steps // 4)
        right = {f"{k}_truth": v for k, v in statistics_of(truth).items()}
        for i, (term, w) in enumerate(cases):
            for seed in range(seeds):
                rows.append(
                    {
                        "distribution": name,
                        "term": term,
                        "weight": w,
                        "seed": seed,
                        **statistics_of(average[seed, i]),
                        **right,
                    }
                )
    return pd.DataFrame(rows)


def drift_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows term and weight; for each distribution and tail "mean over seeds (s.d.)", its truth in the heading."""
    columns: dict[str, list[str]] = {}
    for name, own in runs.groupby("distribution", sort=False):
        for tail, title in TITLES.items():
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
    """Which tails drift from those of the core alone, by more than three standard errors and a tenth of their size."""
    lines = []
    for name, own in runs.groupby("distribution", sort=False):
        base, found = own[own["term"] == "core"], []
        for (term, w), cell in own[own["term"] != "core"].groupby(["term", "weight"], sort=False):
            for tail, title in TITLES.items():
                change = cell[tail].to_numpy() - base[tail].to_numpy()  # paired: the same batches
                error = change.std(ddof=1) / len(change) ** 0.5
                if abs(change.mean()) > max(3 * error, 0.1 * abs(base[tail].mean())):
                    found.append(f"{term.replace('_', ' ')} at {w:g} moves the {title} by {change.mean():+.2f}")
        lines.append(f"- **{name}**: {join_words(found) if found else 'no weight makes a tail drift'}.")
    return "\n".join(lines)
