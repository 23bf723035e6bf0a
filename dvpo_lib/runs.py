"""Specs: what a run of critic pretraining or of training is, as data, and how it is carried out.

A spec holds everything that its run depends on. `dvpo_lib.store.execute` carries specs out side by side and keeps their
results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from safetensors.torch import load_file, save_file

from .critics import CriticSettings, build_critic, fit_critic
from .evaluation import columns_of, evaluate, sample_table
from .methods import METHODS, DVPOConfig, with_changes
from .models import load_policy
from .noise import NoiseSettings, corrupt
from .pseudo_labels import LABELS, label_reward, load_labels
from .reward_models import WEIGHTS, load_reward_model, model_reward
from .seeds import generator_for, seed_for
from .tasks import FAMILIES, accuracy_reward, load_suites
from .trainer import DVPOTrainer, TrainerState


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How policies are tested."""

    prompts: Annotated[int, Field(ge=1)] = 256  # of each test set, the first ones
    k: Annotated[int, Field(ge=1)] = 4  # samples a prompt


@dataclass(frozen=True)
class CriticSpec:
    """Critic pretraining on scored rollouts of the base policy under noise. Stores critic.safetensors, history.csv."""

    critic: CriticSettings
    noise: NoiseSettings
    family: str
    seed: int
    gamma: float
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of `proxy_rewards`, for noises that need them
    inputs = ("base", "suites", "proxies")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.base)
        rollouts = pretraining_rollouts(self, policy, tokenizer)
        critic = build_critic(policy, self.critic, self.seed)
        history = fit_critic(critic, rollouts.to_dict("records"), tokenizer, self.critic, self.seed, self.gamma)
        save_file(critic.state_dict(), folder / "critic.safetensors")
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.8g")


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
        final = pd.DataFrame(final_test(trainer.actor, trainer.processing_class, load_suites(self.suites), self.family,
                                        self.evaluation, config.seed))
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
    return DVPOTrainer(policy, training_reward(spec), config, data, tokenizer, critic, {"reward_true": family.reward},
                       reply=family.reply)


def training_reward(spec: TrainSpec) -> Callable:
    """The reward function that a run learns from."""
    return corrupt(FAMILIES[spec.family].reward, spec.noise, seed_for(spec.config.seed, "training noise"),
                   proxy_rewards(spec.proxies, spec.base))


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


def tied(policy) -> bool:
    return bool(policy.config.tie_word_embeddings)


def received(table: pd.DataFrame, noise: NoiseSettings, seed: int, proxies: Mapping[str, Callable] | None = None,
             step: int = 10**9) -> pd.Series:
    """What a trainer would receive under noise for the scored completions of `evaluation.sample_table`.

    Args:
        proxies: of `noise.corrupt`. step: of training; by default one at which every drift has ended.

    Returns:
        Rewards, NaN where missing.
    """
    def known(prompts, completions, **columns):
        return table["reward"].tolist()

    noisy = corrupt(known, noise, seed, proxies)
    return pd.Series(noisy(table["prompt"].tolist(), table["completion"].tolist(), trainer_state=TrainerState(step),
                           **columns_of(table)), dtype=float, index=table.index)


def pretraining_rollouts(spec: CriticSpec, policy, tokenizer) -> pd.DataFrame:
    """`critic.pretrain_rollouts` completions of training prompts, with `reward` (noisy) and `reward_true`.

    Those whose reward is missing are left out: nothing can be learned from them before there is a critic.
    """
    data = load_suites(spec.suites)[spec.family]["train"]
    generator = generator_for(spec.seed, "pretraining prompts")
    picks = torch.randint(len(data), (spec.critic.pretrain_rollouts,), generator=generator)
    records = [data[i] for i in picks.tolist()]
    table = sample_table(policy, tokenizer, records, FAMILIES[spec.family], 1,
                         seed_for(spec.seed, "pretraining rollouts"))
    noisy = received(table, spec.noise, seed_for(spec.seed, "pretraining noise"),
                     proxy_rewards(spec.proxies, spec.base), step=0)
    table = table.rename(columns={"reward": "reward_true"}).assign(reward=noisy)
    return table.dropna(subset="reward").reset_index(drop=True)


def final_test(policy, tokenizer, suites, family: str, cfg: EvaluationSettings, seed: int) -> Iterable[dict]:
    """`evaluate` on every test set: role ID (trained family), OOD (its longer problems), transfer (other families)."""
    for name, splits in suites.items():
        for split in ("test", "ood"):
            data = splits[split].select(range(min(cfg.prompts, len(splits[split]))))
            role = "transfer" if name != family else "ID" if split == "test" else "OOD"
            suite = f"{name}_{'id' if split == 'test' else 'ood'}"
            scores = evaluate(policy, tokenizer, data, FAMILIES[name], cfg.k, seed_for(seed, "final test", suite))
            yield from (dict(suite=suite, role=role, metric=metric, value=v) for metric, v in scores.items())


# ---- specs from params.yaml ----


def critic_spec(params, critic: CriticSettings, noise: str, family: str, seed: int) -> CriticSpec:
    """The pretraining of one critic, by params.yaml."""
    source = params.noises[noise]
    return CriticSpec(critic, source, family, seed, params.training.gamma, proxies=proxies_of(source, family))


def train_spec(params, name: str, method: str, noise: str, family: str, seed: int, critic: CriticSettings | None,
               critic_file: str | Path | None, changes: Mapping[str, Any] | None = None) -> TrainSpec:
    """One training, by params.yaml: `training` with what the method's own row (or `changes` in its place) changes.

    Every method has the same budget of scored rollouts (`params.budget`): what critic pretraining takes of it is left
    out of training.
    """
    config = with_changes(params.training, params.methods[method].training if changes is None else changes)
    spent = critic.pretrain_rollouts if critic else 0
    steps = max(1, (params.budget - spent) // config.generation_batch_size)
    config = dataclasses.replace(config, method=method, seed=seed, max_steps=steps, critic=critic)
    return TrainSpec(name, noise, config, params.noises[noise], family, params.evaluation,
                     str(critic_file) if critic_file else None, proxies=proxies_of(params.noises[noise], family))
