"""Run spec of critic pretraining."""

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
from dvpo_lib.noise.proxies import corrupt_table, load_proxies, proxies_folder
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.tasks.evaluation import sample_table
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import load_suites


@dataclass(frozen=True)
class CriticPretrainingSpec:
    """Fits a critic to scored rollouts of the base policy under noise. Stores critic.safetensors and history.csv."""

    critic: CriticSettings
    noise: NoiseSettings
    family: str
    seed: int
    gamma: float
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of the proxies, for noise that needs them
    bf16: bool = False  # autocast
    inputs = ("base", "suites", "proxies")

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        policy, tokenizer = load_policy(self.base)
        rollouts = pretraining_rollouts(self, policy, tokenizer)
        critic = build_critic(policy, self.critic, self.seed)
        records = rollouts.to_dict("records")
        history = fit_critic(critic, records, tokenizer, self.critic, self.seed, self.gamma, bf16=self.bf16)
        save_file(critic.state_dict(), folder / "critic.safetensors")
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.8g")


def pretraining_rollouts(spec: CriticPretrainingSpec, policy, tokenizer) -> pd.DataFrame:
    """Samples `critic.pretrain_rollouts` completions of training prompts.

    Completions whose reward is missing are dropped: without a critic nothing can fill it in.

    Returns:
        A table of `sample_table`, with `reward` (received) and `reward_true`.
    """
    data = load_suites(spec.suites)[spec.family]["train"]
    generator = generator_for(spec.seed, "pretraining prompts")
    picks = torch.randint(len(data), (spec.critic.pretrain_rollouts,), generator=generator)
    records = [data[i] for i in picks.tolist()]
    seed, family = seed_for(spec.seed, "pretraining rollouts"), FAMILIES[spec.family]
    table = sample_table(policy, tokenizer, records, family, 1, seed, bf16=spec.bf16)
    noise_seed, proxies = seed_for(spec.seed, "pretraining noise"), load_proxies(spec.proxies, spec.base)
    received = corrupt_table(table, spec.noise, noise_seed, proxies, step=0)
    table = table.rename(columns={"reward": "reward_true"}).assign(reward=received)
    return table.dropna(subset="reward").reset_index(drop=True)


def critic_pretraining_spec(
    params, critic: CriticSettings, noise: str, family: str, seed: int
) -> CriticPretrainingSpec:
    """Builds the spec of one critic from params.yaml.

    Args:
        params: The settings.
        critic: The critic.
        noise: A row of `noises`.
        family: A row of FAMILIES.
        seed: Of the run.
    """
    source = params.noises[noise]
    return CriticPretrainingSpec(
        critic,
        source,
        family,
        seed,
        params.training.gamma,
        proxies=proxies_folder(source, family),
        bf16=params.evaluation.bf16,
    )
