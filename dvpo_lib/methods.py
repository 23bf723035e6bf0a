"""Every method of the comparison as a row: critic + advantage + policy loss.

One trainer runs them all. A row names its critic, the function that turns scored rollouts into advantages (and targets
for the critic), and how the clipped policy loss is averaged and where the KL penalty goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from . import advantages as adv
from .critics import CriticSettings


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DVPOConfig:
    """Settings of a training run; names follow TRL where a setting exists there."""

    method: str = "dvpo"  # a row of METHODS
    max_steps: Annotated[int, Field(ge=1)] = 40  # iterations: sample, score, update
    generation_batch_size: Annotated[int, Field(ge=1)] = 128  # rollouts an iteration
    num_generations: Annotated[int, Field(ge=2)] = 8  # completions a prompt, for group methods
    num_iterations: Annotated[int, Field(ge=1)] = 2  # passes over an iteration's rollouts
    num_mini_batches: Annotated[int, Field(ge=1)] = 2  # optimiser steps a pass
    max_completion_length: Annotated[int, Field(ge=1)] = 32  # tokens, end of sequence included
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of sampling and of log-probabilities
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # of the policy
    beta: Annotated[float, Field(ge=0)] = 0.01  # weight of the KL penalty to the reference policy
    epsilon: Annotated[float, Field(gt=0)] = 0.2  # clip range of the policy ratio
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # discount
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95  # lambda of the actor's advantages
    lam_critic: Annotated[float, Field(ge=0, le=1)] = 1.0  # lambda of the critic's targets
    lam_adaptive: Annotated[float, Field(gt=0)] | None = None  # c of the length-adaptive lambda 1 - 1/(c * length)
    target: Literal["comonotone", "mixture"] = "comonotone"  # how lambda-returns mix distributions
    readout: adv.ReadoutSettings = adv.ReadoutSettings()  # how a quantile critic's distribution becomes a value
    reward_clip: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # *_clip_reward: batch quantile at which rewards are cut
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # gradient clipping, policy and critic each
    critic: CriticSettings = CriticSettings()  # the critic, for methods that have one
    seed: Annotated[int, Field(ge=0)] = 0  # of everything random in the run


@dataclass
class Experience:
    """Scored rollouts, as advantages see them.

    Attributes:
        rewards: (B,) task rewards. mask: (B, T). kl: (B, T) log-ratio to the reference policy, log pi_old - log pi_ref.
        values: (B, T, N, M) the critic's outputs, each head monotone; None without a critic.
        generator: for targets that draw samples.
    """

    rewards: Tensor
    mask: Tensor
    kl: Tensor
    values: Tensor | None
    generator: torch.Generator


def token_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T): -beta * log-ratio on every token, plus the task reward on the last one."""
    return adv.place_rewards(x.rewards, args.beta * x.kl if args.beta else None, x.mask)


def actor_lambda(x: Experience, args: DVPOConfig) -> float | Tensor:
    return adv.adaptive_lambda(x.mask, args.lam_adaptive) if args.lam_adaptive else args.lam


def gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Scalar GAE, whitened; the critic's target is its own lambda-return."""
    rewards, values = token_rewards(x, args), x.values[..., 0, 0]
    advantages, _ = adv.gae(rewards, values, x.mask, args.gamma, actor_lambda(x, args))
    _, returns = adv.gae(rewards, values, x.mask, args.gamma, args.lam_critic)
    return adv.whiten(advantages, x.mask), returns[..., None]


def distributional_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE in quantile space, read out by `args.readout` and whitened; targets are distributional lambda-returns."""
    rewards, zbar = token_rewards(x, args), x.values.mean(-2)
    advantages = adv.actor_advantages(rewards, zbar, x.mask, args.gamma, actor_lambda(x, args), args.readout)
    targets = adv.quantile_targets(rewards, zbar, x.mask, args.gamma, args.lam_critic, args.target, x.generator)
    return adv.whiten(advantages, x.mask), targets


def winsorised_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """`distributional_gae` with the winsorised read-out, whatever `args.readout.kind` says; its levels count."""
    return distributional_gae(x, replace(args, readout=replace(args.readout, kind="winsorised")))


def group_relative(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """(R - group mean) / (group std + 1e-4), the same at every token."""
    advantages = adv.group_advantages(x.rewards, args.num_generations, scale=True)
    return advantages[:, None].expand(x.mask.shape), None


@dataclass(frozen=True)
class Method:
    """One row: what a method is made of.

    Attributes:
        critic: the kind of critic, or None.
        advantage: (Experience, DVPOConfig) -> (advantages (B, T), targets (B, T, K) or None).
        source: where the method comes from.
        aggregate: how the clipped loss is averaged (see `policy_losses.policy_loss`).
        kl, estimator: where the KL penalty goes, and how it is estimated there.
        groups: several completions a prompt.
        clip_rewards: rewards are cut at batch quantiles before anything sees them.
    """

    critic: Literal["scalar", "quantile"] | None
    advantage: Callable[[Experience, DVPOConfig], tuple[Tensor, Tensor | None]]
    source: str
    aggregate: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    kl: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    groups: bool = False
    clip_rewards: bool = False


METHODS: dict[str, Method] = {
    "dvpo": Method("quantile", distributional_gae, "Zhu et al. 2025, reconstructed"),
    "dvpo_winsorised": Method("quantile", winsorised_gae, "extension of this project"),
    "ppo": Method("scalar", gae, "Schulman et al. 2017; KL in the reward: Ouyang et al. 2022"),
    "grpo": Method(None, group_relative, "Shao et al. 2024", "sequence_mean", "loss", "k3", groups=True),
    "ppo_clip_reward": Method("scalar", gae, "control: ppo on rewards cut at batch quantiles", clip_rewards=True),
}
