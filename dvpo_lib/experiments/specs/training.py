"""Run spec of a policy's training and its final test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.proxies import load_proxies, proxies_folder
from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.config import DVPOConfig, TrainingSettings, trainer_config, with_changes
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.evaluation import EvaluationSettings, evaluate_policy
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import load_suites


@dataclass(frozen=True)
class TrainingSpec:
    """Trains one policy and tests it. Stores curves.csv, final.csv, policy.safetensors and, if any, critic.safetensors.

    A spec holds everything that its run depends on, so that the run store can key the result by it.
    """

    name: str  # row in tables: a method, or a row of the ablation
    noise_name: str  # row of `noises`
    method: str  # row of METHODS
    training: TrainingSettings
    max_steps: int  # iterations
    critic: CriticSettings | None  # None for methods without one
    noise: NoiseSettings
    family: str
    seed: int
    evaluation: EvaluationSettings
    critic_file: str | None = None  # weights of the pretrained critic; None: a new critic
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of the proxies, for noise that needs them
    inputs = ("base", "suites", "critic_file", "proxies")
    not_hashed = ("name", "noise_name")  # labels that change no result

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that identify this run in tables."""
        return dict(method=self.name, noise=self.noise_name, family=self.family, seed=self.seed)

    def config(self) -> DVPOConfig:
        """The trainer's settings. Responses may be as long as the family's training problems need."""
        data = load_suites(self.suites)[self.family]["train"]
        return trainer_config(
            self.training,
            method=self.method,
            max_steps=self.max_steps,
            max_completion_length=FAMILIES[self.family].max_completion_length(data),
            critic=self.critic,
            seed=self.seed,
        )

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`; keeps resumable state in `scratch`."""
        trainer = build_trainer(self)
        trainer.train(checkpoint=scratch / "state.pt", progress=False)
        policy, critic, config = trainer.policy, trainer.critic, trainer.args
        head_start = config.critic.pretrain_rollouts if self.critic_file else 0
        curves = pd.DataFrame(trainer.state.log_history).rename(columns={"reward": "reward_noisy", "step": "iteration"})
        curves.insert(1, "rollouts", head_start + (curves["iteration"] + 1) * config.generation_batch_size)
        suites, tokenizer = load_suites(self.suites), trainer.processing_class
        final = pd.DataFrame(final_test(trainer.actor, tokenizer, suites, self.family, self.evaluation, self.seed))
        for name, table in {"curves": curves, "final": final}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g")
        state = policy.state_dict()
        if policy.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)  # the embeddings once more: safetensors refuses shared memory
        save_file(state, folder / "policy.safetensors")
        if critic is not None:
            save_file(critic.state_dict(), folder / "critic.safetensors")


def build_trainer(spec: TrainingSpec) -> DVPOTrainer:
    """Builds the trainer of a run, before its first step."""
    policy, tokenizer = load_policy(spec.base)
    family, data = FAMILIES[spec.family], load_suites(spec.suites)[spec.family]["train"]
    return DVPOTrainer(
        policy,
        training_reward(spec),
        spec.config(),
        data,
        tokenizer,
        pretrained_critic(spec, policy),
        {"reward_true": family.reward},
        reply=family.reply,
    )


def training_reward(spec: TrainingSpec) -> Callable:
    """The reward function that a run learns from: the family's true reward under the run's noise."""
    noise_seed, proxies = seed_for(spec.seed, "training noise"), load_proxies(spec.proxies, spec.base)
    return corrupt(FAMILIES[spec.family].reward, spec.noise, noise_seed, proxies)


def pretrained_critic(spec: TrainingSpec, policy) -> Critic | None:
    """The run's critic with pretrained weights; None if the spec names no file of them."""
    if spec.critic_file is None:
        return None
    critic = build_critic(policy, spec.critic, spec.seed)
    critic.load_state_dict(load_file(spec.critic_file))
    return critic


def final_test(policy, tokenizer, suites, family: str, cfg: EvaluationSettings, seed: int) -> Iterator[dict]:
    """Evaluates a policy on every test set.

    Args:
        policy: The causal LM.
        tokenizer: Its tokenizer.
        suites: {family: splits}, from `load_suites`.
        family: The family that the policy was trained on.
        cfg: Size of the tests.
        seed: Of sampling.

    Yields:
        {suite, role, metric, value}; role is ID (trained family), OOD (its longer problems) or transfer (others).
    """
    for name, splits in suites.items():
        for split in ("test", "ood"):
            data = splits[split].select(range(min(cfg.prompts, len(splits[split]))))
            role = "transfer" if name != family else "ID" if split == "test" else "OOD"
            suite = f"{name}_{'id' if split == 'test' else 'ood'}"
            scores = evaluate_policy(
                policy, tokenizer, data, FAMILIES[name], cfg.k, seed_for(seed, "final test", suite)
            )
            yield from (dict(suite=suite, role=role, metric=metric, value=v) for metric, v in scores.items())


def training_spec(
    params,
    name: str,
    method: str,
    noise: str,
    family: str,
    seed: int,
    critic: CriticSettings | None,
    critic_file: str | Path | None,
    changes: Mapping[str, Any] | None = None,
) -> TrainingSpec:
    """Builds the spec of one training from params.yaml.

    Every method has the same budget of scored rollouts (`params.budget`): training gets what critic pretraining leaves.

    Args:
        params: The settings.
        name: Row in tables.
        method: A row of METHODS.
        noise: A row of `noises`.
        family: A row of FAMILIES.
        seed: Of the run.
        critic: The critic; None for methods without one.
        critic_file: Weights of the pretrained critic.
        changes: Changes to the section `training`; by default those of the method's row in `methods`.
    """
    training = with_changes(params.training, params.methods[method].training if changes is None else changes)
    spent = critic.pretrain_rollouts if critic else 0
    return TrainingSpec(
        name,
        noise,
        method,
        training,
        max(1, (params.budget - spent) // training.generation_batch_size),
        critic,
        params.noises[noise],
        family,
        seed,
        params.evaluation,
        str(critic_file) if critic_file else None,
        proxies=proxies_folder(params.noises[noise], family),
    )
