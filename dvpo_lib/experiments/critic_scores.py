"""Predictions of critics scored against the outcomes of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from dvpo_lib.functional.quantiles import crps, midpoint_levels, pit
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.critic_training import predict_values
from dvpo_lib.reporting.figures.style import CRITIC_LOOKS
from dvpo_lib.reporting.prediction_quality import explained_variance, interval_coverage

POSITIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}  # of a token, as a share of the response


def load_critic(policy, cfg: CriticSettings, path, seed: int = 0) -> Critic:
    """A critic with the weights of a file, in evaluation mode."""
    critic = build_critic(policy, cfg, seed)
    critic.load_state_dict(load_file(path))
    return critic.eval()


def compared_critics(critics: Mapping[str, CriticSettings]) -> dict[str, CriticSettings]:
    """The critics that notebook 02 compares: those that predict received rewards."""
    return {name: cfg for name, cfg in critics.items() if name in CRITIC_LOOKS}


def score_predictions(
    predictions: Sequence[np.ndarray], outcomes, at: str = "first", seed: int = 0, tolerance: float = 0.1
) -> pd.DataFrame:
    """Scores predicted distributions at one token of each response.

    Args:
        predictions: Arrays (T_i, M) of monotone quantiles. M = 1 is a point prediction.
        outcomes: One reward per response.
        at: Position of the token, key of POSITIONS.
        seed: Seed of the randomised PIT.
        tolerance: Quantiles this close to the outcome count as equal to it in the PIT (reward units). A network meets
            an atom at 0 or 1 only approximately, and without a tolerance each such miss would count as an error.

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
    """The prediction without a critic: the distribution of the training rewards.

    Args:
        rewards: Training rewards.
        count: Number of responses.
        quantiles: Number of quantiles M.

    Returns:
        The same array (1, M) for each response.
    """
    q = np.quantile(np.asarray(rewards, dtype=float), midpoint_levels(quantiles).numpy(), method="inverted_cdf")
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
    """Predictions of pretrained critics on held-out responses, and the prediction without a critic.

    Args:
        files: {(critic, family, noise, seed): file of weights}.
        settings: {critic: settings}.
        policy: Base policy.
        tokenizer: Its tokenizer.
        responses: {(family, noise): table with prompt, completion, received, true}.
        constants: {(family, noise): rewards of the critics' training data} for the critic "constant". May be empty.
        at: Positions, keys of POSITIONS.

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


def critic_score_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores of each critic, noise, family, seed and position.

    Args:
        predictions: Table of `critic_predictions`.

    Returns:
        Columns noise, critic, family, seed, at; ev_received and ev_true (explained variance of the received and of the
        true reward); crps; cover50, cover80 and cover90 (share of outcomes in the central interval, NaN for points).
    """
    rows = []
    for key, own in predictions.groupby(["noise", "critic", "family", "seed", "at"], sort=False):
        inside = interval_coverage(own["pit"], [0.5, 0.8, 0.9])["covered"]
        explained = [explained_variance(own["mean"], own[column]) for column in ("received", "true")]
        rows.append((*key, *explained, own["crps"].mean(skipna=False), *inside))
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
