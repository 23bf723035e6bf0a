"""Reward functions that stand in for the truth, and the rewards that a trainer would receive under noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.pseudo_labels import LABELS, label_reward, load_labels
from dvpo_lib.noise.reward_model import WEIGHTS, load_reward_model, model_reward
from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.trainer import TrainerState
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.evaluation import columns_of


def proxy_rewards(folder: str | Path | None, base: str | Path = "data/base") -> dict[str, Callable]:
    """{kind: reward function} of the pseudo-labels and the reward model that lie in a folder, none where None.

    Args:
        folder: data/noise/<family>, as notebook 01 writes it. base: folder of the policy whose backbone the model has.
    """
    found: dict[str, Callable] = {}
    if folder is None:
        return found
    if (Path(folder) / LABELS).exists():
        found["majority_vote"] = label_reward(load_labels(Path(folder) / LABELS), accuracy_reward)
    if (Path(folder) / WEIGHTS).exists():
        policy, tokenizer = load_policy(str(base))
        found["reward_model"] = model_reward(load_reward_model(Path(folder) / WEIGHTS, policy), tokenizer)
    return found


def proxies_of(noise: NoiseSettings, family: str) -> str | None:
    """Where the proxies lie that a noise source needs; None where it needs none."""
    return f"data/noise/{family}" if noise.proxies else None


def received(
    table: pd.DataFrame,
    noise: NoiseSettings,
    seed: int,
    proxies: Mapping[str, Callable] | None = None,
    step: int = 10**9,
) -> pd.Series:
    """What a trainer would receive under noise for the scored completions of `evaluation.sample_table`.

    Args:
        proxies: of `noise.corrupt`. step: of training; by default one at which every drift has ended.

    Returns:
        Rewards, NaN where missing.
    """

    def known(prompts, completions, **columns):
        return table["reward"].tolist()

    noisy = corrupt(known, noise, seed, proxies)
    return pd.Series(
        noisy(
            table["prompt"].tolist(),
            table["completion"].tolist(),
            trainer_state=TrainerState(step),
            **columns_of(table),
        ),
        dtype=float,
        index=table.index,
    )
