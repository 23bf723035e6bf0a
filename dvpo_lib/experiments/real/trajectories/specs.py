"""Runs of the study of conversations: one backbone per fold, and critics on top of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dvpo_lib.experiments.real.pretraining import (
    byte_level_tokenizer,
    pack_token_stream,
    train_backbone,
    train_critic,
    with_study_training,
)
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.real.trajectories.data import read_trajectories, split_by_task, tokenize_turns
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, load_policy


@dataclass(frozen=True)
class TrajectoryBackboneSpec:
    """Byte-level BPE and language model of a fold's training tasks. Stores base/, losses.csv, language_model.csv."""

    policy: PolicySettings
    vocabulary: int
    passes: float
    seed: int  # of weights and folds
    folds: int
    fold: int
    trajectories: str  # file
    inputs = ("trajectories",)

    def execute(self, folder: Path, scratch: Path) -> None:
        training, held = split_by_task(read_trajectories(self.trajectories), self.folds, self.fold, self.seed)
        texts = itertools.chain(training["prompt"], *training["turns"])
        tokenizer = byte_level_tokenizer(texts, self.vocabulary)
        train, test = (pack_token_stream(whole_conversations(table, tokenizer)) for table in (training, held))
        train_backbone(folder, tokenizer, train, test, self.policy, self.passes, self.seed)


def whole_conversations(table: pd.DataFrame, tokenizer) -> list[list[int]]:
    """Token ids of each conversation, prompt and all turns, without truncation."""
    prompts = tokenizer(table["prompt"].tolist(), add_special_tokens=False, split_special_tokens=True).input_ids
    return [a + b for a, b in zip(prompts, tokenize_turns(table, tokenizer)[0]["completion_ids"], strict=True)]


@dataclass(frozen=True)
class TrajectoryCriticSpec:
    """One critic on the training tasks of a fold. Outcomes have no added noise.

    Stores critic.safetensors, history.csv and held_out.safetensors (`quantiles` (conversations, 3, M) at the first,
    middle and last token of the agent).
    """

    critic: CriticSettings
    seed: int
    split_seed: int  # of the folds
    folds: int
    fold: int
    max_tokens: int
    trajectories: str  # file
    backbone: str  # folder of the fold's backbone
    inputs = ("trajectories", "backbone")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.backbone)
        table, _ = tokenize_turns(read_trajectories(self.trajectories), tokenizer, self.max_tokens)
        table["reward"] = table["correct"]
        training, held = split_by_task(table, self.folds, self.fold, self.split_seed)
        train_critic(folder, policy, tokenizer, training, held, self.critic, self.seed, batch_size=8)


def trajectory_backbone_specs(cfg: RealSettings, seed: int, path: Path) -> list[TrajectoryBackboneSpec]:
    """The training of every fold's backbone by the settings in params.yaml.

    Args:
        cfg: Settings of both studies.
        seed: Seed of weights and folds.
        path: File of the conversations.
    """
    own = cfg.trajectories
    policy = PolicySettings(
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=4 * own.hidden_size,
        batch_size=cfg.batch_size,
        learning_rate=cfg.language_model_learning_rate,
    )
    return [
        TrajectoryBackboneSpec(policy, cfg.vocabulary, cfg.language_model_passes, seed, own.folds, fold, str(path))
        for fold in range(own.folds)
    ]


def trajectory_critic_specs(
    cfg: RealSettings, critics: Mapping[str, CriticSettings], seed: int, path: Path, backbones: Sequence[Path]
) -> dict[tuple[str, int, int], TrajectoryCriticSpec]:
    """The training of every critic in every fold.

    Args:
        cfg: Settings of both studies.
        critics: {name: settings} of the tracked critics. `cfg` replaces their training settings.
        seed: First seed, and seed of the folds.
        path: File of the conversations.
        backbones: Folder of each fold's backbone.

    Returns:
        {(critic, seed, fold): spec}.
    """
    own = cfg.trajectories
    trained = {
        name: with_study_training(critic, cfg.critic_learning_rate, own.critic_passes, own.batch_size)
        for name, critic in critics.items()
    }
    return {
        (name, s, fold): TrajectoryCriticSpec(
            critic, s, seed, own.folds, fold, own.max_tokens, str(path), str(backbone)
        )
        for name, critic in trained.items()
        for s in range(seed, seed + own.seeds)
        for fold, backbone in enumerate(backbones)
    }
