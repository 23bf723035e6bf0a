"""Specs: what a run of critic pretraining or of training is, as data, and how it is carried out.

A spec holds everything that its run depends on. `dvpo_lib.store.execute` carries specs out side by side and keeps their
results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.proxies import proxies_of, proxy_rewards
from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.config import DVPOConfig, with_changes
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.evaluation import EvaluationSettings, evaluate
from dvpo_lib.tasks.families import FAMILIES, load_suites


@dataclass(frozen=True)
class TrainSpec:
    """One training and its final test. Stores curves.csv, final.csv, policy.safetensors (and critic.safetensors)."""

    name: str  # the row's name in tables: a method, or a row of the ablation
    noise_name: str
    config: DVPOConfig
    noise: NoiseSettings
    family: str
    evaluation: EvaluationSettings
    critic: str | None = None  # file of the pretrained critic's weights
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of `proxy_rewards`, for noises that need them
    inputs = ("base", "suites", "critic", "proxies")
    unkeyed = ("name", "noise_name")  # they say what the run is called, not what it is

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that tell this run from others in tables."""
        return dict(method=self.name, noise=self.noise_name, family=self.family, seed=self.config.seed)

    def execute(self, folder: Path, scratch: Path) -> None:
        trainer = start(self)
        trainer.train(checkpoint=scratch / "state.pt", progress=False)
        policy, critic, config = trainer.policy, trainer.critic, trainer.args
        head_start = config.critic.pretrain_rollouts if self.critic else 0
        curves = pd.DataFrame(trainer.state.log_history).rename(columns={"reward": "reward_noisy", "step": "iteration"})
        curves.insert(1, "rollouts", head_start + (curves["iteration"] + 1) * config.generation_batch_size)
        final = pd.DataFrame(
            final_test(
                trainer.actor,
                trainer.processing_class,
                load_suites(self.suites),
                self.family,
                self.evaluation,
                config.seed,
            )
        )
        for name, table in {"curves": curves, "final": final}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g")
        state = {k: v for k, v in policy.state_dict().items() if k != "lm_head.weight" or not tied(policy)}
        save_file(state, folder / "policy.safetensors")
        if critic is not None:
            save_file(critic.state_dict(), folder / "critic.safetensors")


def start(spec: TrainSpec) -> DVPOTrainer:
    """The trainer of a run before its first step."""
    policy, tokenizer = load_policy(spec.base)
    family, data = FAMILIES[spec.family], load_suites(spec.suites)[spec.family]["train"]
    config = dataclasses.replace(spec.config, max_completion_length=family.max_completion_length(data))
    critic = None
    if METHODS[config.method].critic is not None:
        critic = build_critic(policy, config.critic, config.seed)
        if spec.critic:
            critic.load_state_dict(load_file(spec.critic))
    return DVPOTrainer(
        policy,
        training_reward(spec),
        config,
        data,
        tokenizer,
        critic,
        {"reward_true": family.reward},
        reply=family.reply,
    )


def training_reward(spec: TrainSpec) -> Callable:
    """The reward function that a run learns from."""
    return corrupt(
        FAMILIES[spec.family].reward,
        spec.noise,
        seed_for(spec.config.seed, "training noise"),
        proxy_rewards(spec.proxies, spec.base),
    )


def tied(policy) -> bool:
    return bool(policy.config.tie_word_embeddings)


def final_test(policy, tokenizer, suites, family: str, cfg: EvaluationSettings, seed: int) -> Iterable[dict]:
    """`evaluate` on every test set: role ID (trained family), OOD (its longer problems), transfer (other families)."""
    for name, splits in suites.items():
        for split in ("test", "ood"):
            data = splits[split].select(range(min(cfg.prompts, len(splits[split]))))
            role = "transfer" if name != family else "ID" if split == "test" else "OOD"
            suite = f"{name}_{'id' if split == 'test' else 'ood'}"
            scores = evaluate(policy, tokenizer, data, FAMILIES[name], cfg.k, seed_for(seed, "final test", suite))
            yield from (dict(suite=suite, role=role, metric=metric, value=v) for metric, v in scores.items())


def train_spec(
    params,
    name: str,
    method: str,
    noise: str,
    family: str,
    seed: int,
    critic: CriticSettings | None,
    critic_file: str | Path | None,
    changes: Mapping[str, Any] | None = None,
) -> TrainSpec:
    """One training, by params.yaml: `training` with what the method's own row (or `changes` in its place) changes.

    Every method has the same budget of scored rollouts (`params.budget`): what critic pretraining takes of it is left
    out of training.
    """
    config = with_changes(params.training, params.methods[method].training if changes is None else changes)
    spent = critic.pretrain_rollouts if critic else 0
    steps = max(1, (params.budget - spent) // config.generation_batch_size)
    config = dataclasses.replace(config, method=method, seed=seed, max_steps=steps, critic=critic)
    return TrainSpec(
        name,
        noise,
        config,
        params.noises[noise],
        family,
        params.evaluation,
        str(critic_file) if critic_file else None,
        proxies=proxies_of(params.noises[noise], family),
    )
