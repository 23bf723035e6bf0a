"""Runs of the study of solutions: a language model as backbone, and critics under label noise.

File paths are inputs: the key of a run depends on the bytes of a file, not on its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dvpo_lib.experiments.real.files import SOLUTIONS_FILE, TEST_FILE, TRAIN_FILE
from dvpo_lib.experiments.real.pretraining import (
    byte_level_tokenizer,
    pack_texts,
    train_backbone,
    train_critic,
    with_study_training,
)
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.real.solutions.data import (
    flip_labels,
    read_solutions,
    read_worked_problems,
    split_by_problem,
    truncate_texts,
)
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, load_policy


@dataclass(frozen=True)
class SolutionBackboneSpec:
    """Byte-level BPE and language model of worked solutions. Stores base/, losses.csv, language_model.csv."""

    policy: PolicySettings
    vocabulary: int
    passes: float
    seed: int
    train: str  # file
    test: str  # file; only its loss is measured
    inputs = ("train", "test")
    threads = 2

    def execute(self, folder: Path, scratch: Path) -> None:
        train, test = read_worked_problems(self.train, TRAIN_FILE), read_worked_problems(self.test, TEST_FILE)
        tokenizer = byte_level_tokenizer(train["prompt"] + train["completion"], self.vocabulary)
        train_backbone(
            folder,
            tokenizer,
            pack_texts(train, tokenizer),
            pack_texts(test, tokenizer),
            self.policy,
            self.passes,
            self.seed,
            progress="language model",
        )


@dataclass(frozen=True)
class SolutionCriticSpec:
    """One critic on the solutions of the training problems, with labels flipped at `rate`.

    Stores critic.safetensors, history.csv, labels.csv (training: problem, generator, correct, received) and
    held_out.safetensors (`quantiles` (solutions, 3, M) at the first, middle and last token).
    """

    critic: CriticSettings
    rate: float
    seed: int
    held_out: float
    max_tokens: int
    solutions: str  # file
    backbone: str  # folder
    inputs = ("solutions", "backbone")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.backbone)
        table, _ = truncate_texts(read_solutions(self.solutions, SOLUTIONS_FILE), tokenizer, self.max_tokens)
        training, held = split_by_problem(table, self.held_out)
        training["reward"] = flip_labels(training["correct"], self.rate, self.seed)
        train_critic(folder, policy, tokenizer, training, held, self.critic, self.seed)
        labels = training[["problem", "generator", "correct", "reward"]].rename(columns={"reward": "received"})
        labels.to_csv(folder / "labels.csv", index=False)


def solution_backbone_spec(cfg: RealSettings, seed: int) -> SolutionBackboneSpec:
    """The training of the backbone by the settings in params.yaml."""
    policy = PolicySettings(
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_hidden_layers,
        intermediate_size=4 * cfg.hidden_size,
        batch_size=cfg.batch_size,
        learning_rate=cfg.language_model_learning_rate,
    )
    folder = Path(cfg.dir)
    return SolutionBackboneSpec(
        policy, cfg.vocabulary, cfg.language_model_passes, seed, str(folder / TRAIN_FILE), str(folder / TEST_FILE)
    )


def solution_critic_specs(
    cfg: RealSettings, critics: Mapping[str, CriticSettings], seed: int, backbone: Path
) -> dict[tuple[str, float, int], SolutionCriticSpec]:
    """The training of every critic at every noise rate.

    Args:
        cfg: Settings of the study.
        critics: {name: settings} of the tracked critics. `cfg` replaces their training settings.
        seed: First seed.
        backbone: Folder of the backbone.

    Returns:
        {(critic, noise rate, seed): spec}.
    """
    solutions = str(Path(cfg.dir) / SOLUTIONS_FILE)
    trained = {
        name: with_study_training(critic, cfg.critic_learning_rate, cfg.critic_passes, cfg.batch_size)
        for name, critic in critics.items()
    }
    return {
        (name, rate, s): SolutionCriticSpec(critic, rate, s, cfg.held_out, cfg.max_tokens, solutions, str(backbone))
        for name, critic in trained.items()
        for rate in cfg.noise_rates
        for s in range(seed, seed + cfg.seeds)
    }
