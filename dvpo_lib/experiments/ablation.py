"""The tail-shaping ablation: which terms of the critic's loss are on in which row, and what its critics predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pandas as pd
import pydantic
import torch
from pydantic import ConfigDict, Field

from dvpo_lib.experiments.critic_scores import POSITIONS, load_critic
from dvpo_lib.functional.quantiles import levels
from dvpo_lib.functional.quantiles import tails as quantile_tails
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.critic_training import predict_values

# The paper's cumulative order; a row has its own terms and those of all rows above it.
CUMULATIVE = {
    "core": (),
    "+ consistency": ("head_consistency",),
    "+ tail calibration": ("tail_calibration",),
    "+ mean shift": ("mean_shift",),
    "+ tail shape and curvature": ("tail_shape", "tail_curvature"),
}
TERMS = tuple(term for terms in CUMULATIVE.values() for term in terms)


def ablation_rows(critic: CriticSettings, leave_one_out: bool = False) -> dict[str, CriticSettings]:
    """{row: critic}: terms switched on one after the other, each with the weight that `critic` gives it.

    Args:
        leave_one_out: add a row "without <term>" for each term.
    """

    def with_terms(on) -> CriticSettings:
        off = {term: 0.0 for term in TERMS if term not in on}
        return dataclasses.replace(critic, loss=dataclasses.replace(critic.loss, **off))

    rows, on = {}, []
    for name, terms in CUMULATIVE.items():
        on += terms
        rows[name] = with_terms(tuple(on))
    if leave_one_out:
        for term in TERMS:
            rows[f"without {term.replace('_', ' ')}"] = with_terms([t for t in TERMS if t != term])
    return rows


def weights_table(rows: Mapping[str, CriticSettings]) -> pd.DataFrame:
    """The weight of every term in every row."""
    return pd.DataFrame(
        [{"row": name, **{t.replace("_", " "): f"{getattr(c.loss, t):g}" for t in TERMS}} for name, c in rows.items()]
    )


def predicted_curves(
    files: Mapping[tuple, object],
    rows: Mapping[str, CriticSettings],
    policy,
    tokenizer,
    responses: pd.DataFrame,
    at: str = "first",
) -> pd.DataFrame:
    """Quantile curves that critics predict at one token, averaged over responses: variant, seed, level, value.

    Args:
        files: {(row, seed): file of the critic's weights}. responses: prompt, completion.
    """
    frames, table = [], responses.to_dict("records")
    for (name, seed), path in files.items():
        predicted = predict_values(load_critic(policy, rows[name], path), table, tokenizer)
        curve = np.mean([p[round(POSITIONS[at] * (len(p) - 1))] for p in predicted], axis=0)
        level = levels(len(curve)).numpy()
        frames.append(pd.DataFrame({"variant": name, "seed": seed, "level": level, "value": curve}))
    return pd.concat(frames, ignore_index=True)


def tail_table(curves: pd.DataFrame, received, mass: float = 0.1) -> pd.DataFrame:
    """Mean, tail means and width of the predicted curves (means over seeds), and of the rewards received.

    Args:
        curves: of `predicted_curves`. received: rewards. mass: of each tail.
    """

    def describe(name: str, q: np.ndarray) -> dict:
        tails = [t.mean().item() for t in quantile_tails(torch.tensor(q), mass, mass)]
        return {
            "variant": name,
            "mean": q.mean(),
            "lower tail mean": tails[0],
            "upper tail mean": tails[1],
            "median": float(np.median(q)),
        }

    rows = [describe("rewards received", np.sort(np.asarray(received, dtype=float)))]
    for name, own in curves.groupby("variant", sort=False):
        rows.append(describe(name, own.groupby("level")["value"].mean().to_numpy()))
    return pd.DataFrame(rows)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AblationSettings:
    """The tail-shaping ablation (notebook 04)."""

    noise: str = "spikes"  # a row of `noises`
    seeds: Annotated[int, Field(ge=1)] = 4
    leave_one_out: bool = False  # add the rows that switch off one term each
