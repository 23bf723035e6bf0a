"""Predictions of critics scored against the outcomes of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from dvpo_lib.experiments.specs.critic_test import POSITIONS, load_critic, score_predictions
from dvpo_lib.functional.quantiles import midpoint_levels
from dvpo_lib.models.critic import CriticSettings, build_critic, critic_objective
from dvpo_lib.models.critic_training import encode_table, predict_values, return_targets
from dvpo_lib.models.modes import learning_mode_of
from dvpo_lib.reporting.figures.style import CRITIC_LOOKS
from dvpo_lib.reporting.prediction_quality import explained_variance, interval_coverage


def compared_critics(critics: Mapping[str, CriticSettings]) -> dict[str, CriticSettings]:
    """The critics that notebook 02 compares: those that predict received rewards."""
    return {name: cfg for name, cfg in critics.items() if name in CRITIC_LOOKS}


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


def critic_kinds(cfg: CriticSettings, depth: int) -> dict[str, CriticSettings]:
    """Variants of a critic by what its heads read and how they read it, cheapest last.

    Args:
        cfg: A critic with a backbone of its own and linear heads.
        depth: Layers of the policy; half of them are kept where the backbone is cut, or as many as in `cfg`, whose
            whole backbone is then too large to be compared.
    """
    if cfg.layers is not None:
        return {
            f"first {cfg.layers} of {depth} layers": cfg,
            "policy's hidden states, light networks": replace(cfg, backbone="policy", layers=None, head="mlp"),
            "policy's hidden states": replace(cfg, backbone="policy", layers=None),
        }
    return {
        "own backbone": cfg,
        "own backbone, light networks": replace(cfg, head="mlp"),
        f"first {max(1, depth // 2)} of {depth} layers": replace(cfg, layers=max(1, depth // 2)),
        "policy's hidden states, light networks": replace(cfg, backbone="policy", head="mlp"),
        "policy's hidden states": replace(cfg, backbone="policy"),
    }


def critic_cost(policy, cfg: CriticSettings, table, tokenizer) -> dict[str, float]:
    """What a critic of these settings costs: `parameters` that are trained, and `gigaflops` of a training step.

    Args:
        policy: Base policy.
        cfg: The critic.
        table: Records of one step, with prompt, completion and reward.
        tokenizer: The policy's tokenizer.
    """
    critic, data = build_critic(policy, cfg, 0), encode_table(table, tokenizer)
    targets = return_targets(data.rewards, data.tokens.mask, 1.0)
    with FlopCounterMode(display=False) as counter, learning_mode_of(critic):
        z = critic(data.tokens)
        critic_objective(z, targets, data.tokens.mask, cfg, z.detach().sort(-1).values)[0].backward()
    return {"parameters": sum(p.numel() for p in critic.parameters()), "gigaflops": counter.get_total_flops() / 1e9}


def critic_kind_table(scores: pd.DataFrame, costs: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Quality against cost: explained variance of the true reward at the last token by noise, mean over seeds.

    Args:
        scores: Table of `critic_score_table`, whose critics are kinds.
        costs: {kind: `critic_cost`}.

    Returns:
        One row for each kind: kind, one column for each noise, parameters, gigaflops.
    """
    last = scores[scores["at"] == "last"]
    wide = last.pivot_table(index="critic", columns="noise", values="ev_true", sort=False, dropna=False)
    rows = [{"kind": kind, **wide.loc[kind].to_dict(), **cost} for kind, cost in costs.items()]
    return pd.DataFrame(rows)
