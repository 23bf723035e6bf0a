"""Proxy reward functions from their files, and tables of scored completions under noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.pseudo_labels import LABELS_FILE, label_reward, load_labels
from dvpo_lib.noise.reward_model import WEIGHTS_FILE, load_reward_model, model_reward
from dvpo_lib.noise.sources import NoiseSettings, corrupt_rewards, score_proxies
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.evaluation import record_columns

AFTER_DRIFT = 10**9  # a training step at which every rate has reached its value


def load_proxies(folder: str | Path | None, base: str | Path = "data/base") -> dict[str, Callable]:
    """Loads the pseudo-labels and the reward model that a folder holds.

    Args:
        folder: data/noise/<family>, written by notebook 01; None for no proxies.
        base: Folder of the base policy, whose backbone the reward model shares.

    Returns:
        {kind: reward function} of the files found.
    """
    found: dict[str, Callable] = {}
    if folder is None:
        return found
    if (Path(folder) / LABELS_FILE).exists():
        found["majority_vote"] = label_reward(load_labels(Path(folder) / LABELS_FILE), accuracy_reward)
    if (Path(folder) / WEIGHTS_FILE).exists():
        policy, tokenizer = load_policy(str(base))
        found["reward_model"] = model_reward(load_reward_model(Path(folder) / WEIGHTS_FILE, policy), tokenizer)
    return found


def proxies_folder(noise: NoiseSettings, family: str) -> str | None:
    """The folder of the proxies that a noise source needs; None if it needs none."""
    return f"data/noise/{family}" if noise.proxies else None


def corrupt_table(
    table: pd.DataFrame,
    noise: NoiseSettings,
    seed: int,
    proxies: Mapping[str, Callable] | None = None,
    step: int = AFTER_DRIFT,
) -> pd.Series:
    """The rewards that a trainer would receive under noise for scored completions.

    Args:
        table: From `evaluation.sample_table`; its column `reward` holds the true rewards.
        noise: The noise source.
        seed: Of the noise.
        proxies: {kind: reward function} for the kinds in `noise.proxies`.
        step: Training step; by default after every drift.

    Returns:
        Rewards, with the index of `table`; NaN if missing.
    """
    prompts, completions = table["prompt"].tolist(), table["completion"].tolist()
    scores = score_proxies(noise, proxies or {}, prompts, completions, record_columns(table))
    rewards = corrupt_rewards(table["reward"].to_numpy(dtype=float), prompts, completions, noise, seed, step, scores)
    return pd.Series(rewards, dtype=float, index=table.index)
