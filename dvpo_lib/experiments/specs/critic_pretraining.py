"""Critic pretraining as a run of the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from dvpo_lib.common.seeds import generator_for, seed_for
from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import fit_critic
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.proxies import proxies_of, proxy_rewards, received
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.tasks.evaluation import sample_table
from dvpo_lib.tasks.families import FAMILIES, load_suites


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


def pretraining_rollouts(spec: CriticSpec, policy, tokenizer) -> pd.DataFrame:
    """`critic.pretrain_rollouts` completions of training prompts, with `reward` (noisy) and `reward_true`.

    Those whose reward is missing are left out: nothing can be learned from them before there is a critic.
    """
    data = load_suites(spec.suites)[spec.family]["train"]
    generator = generator_for(spec.seed, "pretraining prompts")
    picks = torch.randint(len(data), (spec.critic.pretrain_rollouts,), generator=generator)
    records = [data[i] for i in picks.tolist()]
    table = sample_table(
        policy, tokenizer, records, FAMILIES[spec.family], 1, seed_for(spec.seed, "pretraining rollouts")
    )
    noisy = received(
        table, spec.noise, seed_for(spec.seed, "pretraining noise"), proxy_rewards(spec.proxies, spec.base), step=0
    )
    table = table.rename(columns={"reward": "reward_true"}).assign(reward=noisy)
    return table.dropna(subset="reward").reset_index(drop=True)


def critic_spec(params, critic: CriticSettings, noise: str, family: str, seed: int) -> CriticSpec:
    """The pretraining of one critic, by params.yaml."""
    source = params.noises[noise]
    return CriticSpec(critic, source, family, seed, params.training.gamma, proxies=proxies_of(source, family))
