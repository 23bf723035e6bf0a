"""The tail-shaping ablation: its rows of terms of the critic's loss, and the predictions of its critics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pandas as pd
import pydantic
import torch
from pydantic import ConfigDict, Field

from dvpo_lib.experiments.specs.critic_test import POSITIONS, load_critic
from dvpo_lib.functional.quantiles import midpoint_levels
from dvpo_lib.functional.quantiles import split_tails as quantile_tails
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.critic_training import predict_values

# In the paper's order. A row has its own terms and those of all rows above it.
CUMULATIVE_TERMS = {
    "core": (),
    "+ consistency": ("head_consistency",),
    "+ tail calibration": ("tail_calibration",),
    "+ mean shift": ("mean_shift",),
    "+ tail shape and curvature": ("tail_shape", "tail_curvature"),
}
ABLATED_TERMS = tuple(term for terms in CUMULATIVE_TERMS.values() for term in terms)


def ablation_rows(
    critic: CriticSettings, leave_one_out: bool = False, ends_only: bool = False
) -> dict[str, CriticSettings]:
    """Critics of the ablation, with terms switched on one row after the other.

    Args:
        critic: The full critic, which gives each term its weight.
        leave_one_out: Whether to add a row "without <term>" for each term.
        ends_only: Of the cumulative rows, keep the first (no term) and the last (all terms) alone.

    Returns:
        {row: critic}.
    """

    def with_terms(on) -> CriticSettings:
        off = {term: 0.0 for term in ABLATED_TERMS if term not in on}
        return dataclasses.replace(critic, loss=dataclasses.replace(critic.loss, **off))

    rows, on = {}, []
    for name, terms in CUMULATIVE_TERMS.items():
        on += terms
        rows[name] = with_terms(tuple(on))
    if ends_only:
        rows = {name: rows[name] for name in (next(iter(rows)), name)}
    if leave_one_out:
        for term in ABLATED_TERMS:
            rows[f"without {term.replace('_', ' ')}"] = with_terms([t for t in ABLATED_TERMS if t != term])
    return rows


def term_weight_table(rows: Mapping[str, CriticSettings]) -> pd.DataFrame:
    """Weight of each term in each row."""
    return pd.DataFrame(
        [
            {"row": name, **{t.replace("_", " "): f"{getattr(c.loss, t):g}" for t in ABLATED_TERMS}}
            for name, c in rows.items()
        ]
    )


def predicted_curves(
    files: Mapping[tuple, object],
    rows: Mapping[str, CriticSettings],
    policy,
    tokenizer,
    responses: pd.DataFrame,
    at: str = "first",
) -> pd.DataFrame:
    """Predicted quantile curves at one token, averaged over responses.

    Args:
        files: {(row, seed): file of weights}.
        rows: {row: critic}.
        policy: Base policy.
        tokenizer: Its tokenizer.
        responses: Table with prompt and completion.
        at: Position of the token, key of POSITIONS.

    Returns:
        Columns variant, seed, level, value.
    """
    frames, table = [], responses.to_dict("records")
    for (name, seed), path in files.items():
        predicted = predict_values(load_critic(policy, rows[name], path), table, tokenizer)
        curve = np.mean([p[round(POSITIONS[at] * (len(p) - 1))] for p in predicted], axis=0)
        level = midpoint_levels(len(curve)).numpy()
        frames.append(pd.DataFrame({"variant": name, "seed": seed, "level": level, "value": curve}))
    return pd.concat(frames, ignore_index=True)


def tail_table(curves: pd.DataFrame, received, mass: float = 0.1) -> pd.DataFrame:
    """Means, tail means and medians of the predicted curves and of the received rewards.

    Args:
        curves: Table of `predicted_curves`. Curves are averaged over seeds.
        received: Received rewards.
        mass: Mass of each tail.

    Returns:
        Columns variant, mean, lower tail mean, upper tail mean, median. Reward units.
    """

    def statistics_row(name: str, q: np.ndarray) -> dict:
        tails = [t.mean().item() for t in quantile_tails(torch.tensor(q), mass, mass)]
        return {
            "variant": name,
            "mean": q.mean(),
            "lower tail mean": tails[0],
            "upper tail mean": tails[1],
            "median": float(np.median(q)),
        }

    rows = [statistics_row("rewards received", np.sort(np.asarray(received, dtype=float)))]
    for name, own in curves.groupby("variant", sort=False):
        rows.append(statistics_row(name, own.groupby("level")["value"].mean().to_numpy()))
    return pd.DataFrame(rows)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AblationSettings:
    """The tail-shaping ablation (notebook 04)."""

    noise: str = "spikes"  # a row of `noises`
    seeds: Annotated[int, Field(ge=1)] = 4
    leave_one_out: bool = False  # add a row without each term
    ends_only: bool = False  # of the cumulative rows, the first and the last alone
