"""What critics and methods say of single responses: predictions scored, advantages by token, wrong steps found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from dvpo_lib.functional.quantiles import crps, levels, pit
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.critic_training import predict_values
from dvpo_lib.reporting.figures.style import CRITIC_LOOKS
from dvpo_lib.reporting.prediction_quality import explained_variance, interval_coverage

POSITIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}


def load_critic(policy, cfg: CriticSettings, path, seed: int = 0) -> Critic:
    """A pretrained critic from its file of weights."""
    critic = build_critic(policy, cfg, seed)
    critic.load_state_dict(load_file(path))
    return critic.eval()


def compared_critics(critics: Mapping[str, CriticSettings]) -> dict[str, CriticSettings]:
    """The critics that notebook 02 compares: those that predict the rewards as received, by name."""
    return {name: cfg for name, cfg in critics.items() if name in CRITIC_LOOKS}


def score_predictions(
    predictions: Sequence[np.ndarray], outcomes, at: str = "first", seed: int = 0, tolerance: float = 0.1
) -> pd.DataFrame:
    """Predicted distributions at one token of every response against what the responses got.

    Args:
        predictions: arrays (T_i, M) of monotone quantiles (M = 1: a point prediction).
        outcomes: rewards, one per response. at: "first", "middle" or "last" token. seed: of the randomised PIT.
        tolerance: quantiles so near to the outcome count as equal to it in the PIT (reward units): a network meets an
            atom at 0 or 1 only nearly, and without a tolerance every such miss would count as a wrong distribution.

    Returns:
        One row per response: mean, crps (reward units; absolute error of a point), pit (NaN for a point).
    """
    rows = [p[round(POSITIONS[at] * (len(p) - 1))] for p in predictions]
    q, y = torch.tensor(np.stack(rows), dtype=torch.float64), torch.tensor(np.asarray(outcomes, dtype=float))
    point = q.shape[1] == 1
    met = torch.where((q - y[:, None]).abs() <= tolerance, y[:, None], q)
    where = torch.full_like(y, torch.nan) if point else pit(met, y, torch.Generator().manual_seed(seed))
    return pd.DataFrame({"mean": q.mean(1), "crps": (q[:, 0] - y).abs() if point else crps(q, y), "pit": where})


def overall_distribution(rewards, count: int, quantiles: int = 200) -> list[np.ndarray]:
    """The prediction without a critic: the distribution of the training rewards, the same for all `count` responses."""
    q = np.quantile(np.asarray(rewards, dtype=float), levels(quantiles).numpy(), method="inverted_cdf")
    return [q[None]] * count


def critic_predictions(
    files: Mapping[tuple, object],
    settings: Mapping[str, CriticSettings],
    policy,
    tokenizer,
    responses: Mapping[tuple, pd.DataFrame],
    constants: Mapping[tuple, Sequence[float]],
    at: Sequence[str] = tuple(POSITIONS),
) -> pd.DataFrame:
    """Every pretrained critic on held-out responses, beside the prediction without a critic.

    Args:
        files: {(critic, family, noise, seed): file of weights}. settings: {critic: CriticSettings}.
        responses: {(family, noise): table with prompt, completion, received, true}.
        constants: {(family, noise): rewards of the critics' training data}, for the row "constant"; may be empty.

    Returns:
        One row per critic, response and position: critic, family, noise, seed, at, mean, crps, pit, received, true.
    """
    frames = []
    constant = {("constant", *key, -1): None for key in constants}
    for (name, family, noise, seed), path in {**files, **constant}.items():
        held = responses[family, noise]
        if path is None:
            predicted = overall_distribution(constants[family, noise], len(held))
        else:
            critic = load_critic(policy, settings[name], path)
            predicted = predict_values(critic, held.to_dict("records"), tokenizer)
        for where in at:
            frame = score_predictions(predicted, held["received"], where)
            labels = {"critic": name, "family": family, "noise": noise, "seed": seed, "at": where}
            frames.append(frame.assign(**labels, received=held["received"].to_numpy(), true=held["true"].to_numpy()))
    return pd.concat(frames, ignore_index=True)


def critic_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per critic, noise, family, seed and position of `critic_predictions`.

    Columns ev_received and ev_true (explained variance of the received and of the true reward), crps, cover50, cover80
    and cover90 (share of outcomes in the central interval; NaN for point predictions).
    """
    rows = []
    for key, own in predictions.groupby(["noise", "critic", "family", "seed", "at"], sort=False):
        pits = own["pit"].dropna()
        inside = interval_coverage(pits, [0.5, 0.8, 0.9])["covered"] if len(pits) else [np.nan] * 3
        explained = [explained_variance(own["mean"], own[column]) for column in ("received", "true")]
        rows.append((*key, *explained, own["crps"].mean(), *inside))
    return pd.DataFrame(
        rows,
        columns=[
            "noise",
            "critic",
            "family",
            "seed",
            "at",
            "ev_received",
            "ev_true",
            "crps",
            "cover50",
            "cover80",
            "cover90",
        ],
    )
