"""Every method of the comparison as a row: critic + advantage + policy loss.

One trainer runs them all. A row names its critic, the function that turns scored rollouts into advantages (and targets
for the critic), the policy's loss and how it is averaged, and where the KL penalty goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from . import advantages as adv
from .critics import CriticSettings
from .policy_losses import kl_estimate
from .q_functions import QValues, fitted_q
from .quantiles import lower_tail_mean


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
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1  # micro-batches of an optimiser step (for memory)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # of the policy
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"  # of the policy, over max_steps
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # iterations in which the learning rate rises
    beta: Annotated[float, Field(ge=0)] = 0.01  # weight of the KL penalty to the reference policy
    kl_placement: Literal["reward", "loss"] | None = None  # where the penalty goes; null: as in the method's source
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # of the KL there; null: as in the method's source
    epsilon: Annotated[float, Field(gt=0)] = 0.2  # clip range of the policy ratio
    epsilon_high: Annotated[float, Field(gt=0)] | None = None  # upper clip range; null: epsilon
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0  # weight of the entropy bonus
    whiten_advantages: bool = True  # to mean 0 and standard deviation 1 over the batch's tokens, where the method does
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # discount
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95  # lambda of the actor's advantages
    lam_critic: Annotated[float, Field(ge=0, le=1)] = 1.0  # lambda of the critic's targets
    lam_adaptive: Annotated[float, Field(gt=0)] | None = None  # c of the length-adaptive lambda 1 - 1/(c * length)
    target: Literal["comonotone", "mixture"] = "comonotone"  # how lambda-returns mix distributions
    readout: adv.ReadoutSettings = adv.ReadoutSettings()  # how a quantile critic's distribution becomes a value
    worst_case: Literal["min_heads", "lower_tail"] = "min_heads"  # robust_ppo: smallest head's mean, or lower-tail mean
    missing_rewards: Literal["drop", "bootstrap"] = "drop"  # left out, or, with a critic, taken to be what it expects
    reward_clip: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # *_clip_reward: batch quantile at which rewards are cut
    extraction: Literal["awr", "perturbed"] = "awr"  # offline methods: regression of the policy, or perturbed logits
    awr_temperature: Annotated[float, Field(gt=0)] = 0.1  # of exp(A / temperature) (return units)
    perturbation: Annotated[float, Field(ge=0)] = 4.0  # weight of Q - V in the perturbed logits (per return unit)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # gradient clipping, policy and critic each
    critic: CriticSettings | None = None  # the critic, for methods that have one; null: the defaults of the kind needed
    seed: Annotated[int, Field(ge=0)] = 0  # of everything random in the run


def with_changes(args: DVPOConfig, changes: Mapping[str, Any]) -> DVPOConfig:
    """The settings with some of them changed, given as in params.yaml: {"learning_rate": 3e-4, "readout": {...}}.

    Raises:
        ValueError: a setting that does not exist, or a value that it does not take; the message names it.
    """
    def merged(own: dict[str, Any], new: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        for name, value in new.items():
            if name not in own:
                raise ValueError(f"{where}{name}: there is no such setting of a training run")
            nested = isinstance(value, Mapping) and isinstance(own[name], dict)
            own[name] = merged(own[name], value, f"{where}{name}.") if nested else value
        return own

    return TypeAdapter(DVPOConfig).validate_python(merged(asdict(args), changes))


def resolve(args: DVPOConfig) -> DVPOConfig:
    """The settings with what their method decides filled in: KL placement and estimator, and the critic.

    Without a critic there is none to bootstrap from, and responses whose reward is missing drop out in any case.

    Raises:
        ValueError: unknown method, a critic of another kind than the method's, or groups that do not fit the batch.
    """
    if args.method not in METHODS:
        raise ValueError(f"unknown method {args.method!r}; there are {', '.join(METHODS)}")
    method = METHODS[args.method]
    if method.groups and args.generation_batch_size % args.num_generations:
        raise ValueError(f"generation_batch_size {args.generation_batch_size} is not a multiple of "
                         f"num_generations {args.num_generations}")
    critic = None
    if method.critic is not None:
        critic = args.critic or CriticSettings(kind=method.critic)
        if critic.kind != method.critic:
            raise ValueError(f"method {args.method} needs a {method.critic} critic; critic.kind is {critic.kind!r}")
    return replace(args, critic=critic, kl_placement=args.kl_placement or method.kl,
                   kl_estimator=args.kl_estimator or method.estimator,
                   missing_rewards=args.missing_rewards if method.critic else "drop")


@dataclass
class Experience:
    """Scored rollouts, as advantages see them.

    Attributes:
        rewards: (B,) task rewards. mask: (B, T). kl: (B, T) log-ratio to the reference policy, log pi_old - log pi_ref.
        values: the critic's outputs, (B, T, N, M) with each head monotone, or `QValues`; None without a critic.
        generator: for targets that draw samples.
        places: (B,) where the responses stood in the whole batch; None where none has dropped out of it.
        missing: (B,) bool, responses whose reward is missing (0 stands in `rewards`) and taken to be what the critic
            expects at their last token; None where there are none.
    """

    rewards: Tensor
    mask: Tensor
    kl: Tensor
    values: Tensor | QValues | None
    generator: torch.Generator
    places: Tensor | None = None
    missing: Tensor | None = None


def kl_rewards(x: Experience, args: DVPOConfig) -> Tensor | None:
    """(B, T) beta * KL estimate on every token, to be taken off the reward; None where the penalty is no part of it."""
    if args.kl_placement != "reward" or not args.beta:
        return None
    return args.beta * kl_estimate(x.kl, torch.zeros_like(x.kl), args.kl_estimator)


def token_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T): the KL penalty on every token, where it is part of the reward, plus the task reward on the last one."""
    return adv.place_rewards(x.rewards, kl_rewards(x, args), x.mask)


def response_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B,): the task reward, less the response's summed KL penalty where that is part of the reward."""
    return token_rewards(x, args).sum(1)


def actor_lambda(x: Experience, args: DVPOConfig) -> float | Tensor:
    return adv.adaptive_lambda(x.mask, args.lam_adaptive) if args.lam_adaptive else args.lam


def whitened(advantages: Tensor, x: Experience, args: DVPOConfig) -> Tensor:
    return adv.whiten(advantages, x.mask) if args.whiten_advantages else advantages


def gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Scalar GAE, whitened; the critic's target is its own lambda-return."""
    rewards, values = token_rewards(x, args), x.values[..., 0, 0]
    advantages, _ = adv.gae(rewards, values, x.mask, args.gamma, actor_lambda(x, args), x.missing)
    _, returns = adv.gae(rewards, values, x.mask, args.gamma, args.lam_critic)
    return whitened(advantages, x, args), returns[..., None]


def distributional_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE in quantile space, read out by `args.readout` and whitened; targets are distributional lambda-returns."""
    rewards, zbar = token_rewards(x, args), x.values.mean(-2)
    advantages = adv.actor_advantages(rewards, zbar, x.mask, args.gamma, actor_lambda(x, args), args.readout,
                                      x.missing)
    targets = adv.quantile_targets(rewards, zbar, x.mask, args.gamma, args.lam_critic, args.target, x.generator)
    return whitened(advantages, x, args), targets


def winsorised_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """`distributional_gae` with the winsorised read-out, whatever `args.readout.kind` says; its levels count."""
    return distributional_gae(x, replace(args, readout=replace(args.readout, kind="winsorised")))


def worst_case_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE, whitened, and lambda-returns on worst-case values, which both advantages and targets bootstrap from.

    Only minimum aggregation is known of the paper's "Robust Bellman PPO". `min_heads`, the default since it is the
    literal minimum over estimates and neutral at one head: the smallest of the heads' means. `lower_tail`: the mean of
    the ensemble's lower tail. A target at lambda 1 would never see a worst case, so targets take the actor's lambda.
    """
    if args.worst_case == "min_heads":
        values = x.values.mean(-1).amin(-1)
    else:
        values = lower_tail_mean(x.values.mean(-2), args.critic.loss.lower_mass)
    rewards, lam = token_rewards(x, args), actor_lambda(x, args)
    advantages, returns = adv.gae(rewards, values, x.mask, args.gamma, lam, x.missing)
    return whitened(advantages, x, args), returns[..., None]


def group_relative(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """(R - group mean) / (group std + 1e-4), the same at every token."""
    advantages = adv.group_advantages(response_rewards(x, args), args.num_generations, True, x.places)
    return advantages[:, None].expand(x.mask.shape), None


def group_centred(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """R - group mean, the same at every token."""
    advantages = adv.group_advantages(response_rewards(x, args), args.num_generations, False, x.places)
    return advantages[:, None].expand(x.mask.shape), None


def return_to_go(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """Discounted sum of this and all later rewards (KL penalty and R), whitened over all tokens of the batch."""
    return whitened(adv.returns_to_go(token_rewards(x, args), x.mask, args.gamma), x, args), None


def conservative_q(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; targets are one-step back-ups (`q_functions.fitted_q`)."""
    return fitted_q(adv.place_rewards(x.rewards, None, x.mask), x.values, x.mask, args.gamma, args.critic.q)


def robust_q(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; back-ups start from the worst case of the learned outcome."""
    rewards = adv.place_rewards(x.rewards, None, x.mask)
    return fitted_q(rewards, x.values, x.mask, args.gamma, args.critic.q, robust=True)


@dataclass(frozen=True)
class Method:
    """One row: what a method is made of.

    Attributes:
        critic: the kind of critic, or None.
        advantage: (Experience, resolved DVPOConfig) -> (advantages (B, T), targets (B, T, K) or None).
        source: where the method comes from, and what was chosen where public versions differ.
        aggregate: how the policy's loss is averaged (see `policy_losses.aggregate`).
        kl, estimator: where the KL penalty goes, and how it is estimated there, unless the settings say otherwise.
        groups: several completions a prompt.
        clip_rewards: rewards are cut at batch quantiles before critic and policy see them, in pretraining too.
        offline: rollouts are those of the base policy; the policy's loss is advantage-weighted regression.
    """

    critic: Literal["scalar", "quantile", "conservative_q", "robust_q"] | None
    advantage: Callable[[Experience, DVPOConfig], tuple[Tensor, Tensor | None]]
    source: str
    aggregate: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    kl: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    groups: bool = False
    clip_rewards: bool = False
    offline: bool = False


PPO = "Schulman et al. 2017 (eq. 7, 11), KL in the reward as in Ouyang et al. 2022"
GRPO = "Shao et al. 2024 (eq. 3, 4), outcome supervision"
GROUPS = dict(kl="loss", estimator="k3", groups=True)
METHODS: dict[str, Method] = {
    "dvpo": Method("quantile", distributional_gae, "Zhu et al. 2025, reconstructed"),
    "dvpo_winsorised": Method("quantile", winsorised_gae, "extension of this project"),
    "ppo": Method("scalar", gae, PPO),
    "robust_ppo": Method(
        "quantile", worst_case_gae, '"Robust Bellman PPO" of Zhu et al. 2025, known only as minimum aggregation: '
        "reconstructed, as a minimum over heads"),
    "grpo": Method(
        None, group_relative, f"{GRPO}; the mean of sequence means, as in the paper, where TRL and verl now average "
        "over tokens", "sequence_mean", **GROUPS),
    "dr_grpo": Method(
        None, group_centred, "Liu et al. 2025: no division by the group's deviation and none by the response's length; "
        "the paper also drops the KL penalty, which beta = 0 does", "constant", **GROUPS),
    "reinforce_pp": Method(
        None, return_to_go, "Hu 2025, token level: returns-to-go, whitened over the batch; later versions whiten over "
        "responses or subtract group means"),
    "cql": Method(
        "conservative_q", conservative_q, "Kumar et al. 2020 (eq. 4) in the form for language of ILQL (Snell et al. "
        "2022): twin Q, expectile V", offline=True),
    "rfqi": Method(
        "robust_q", robust_q, "Panaganti et al. 2022, for deterministic token transitions: the total-variation ball "
        "lies around the learned outcome", offline=True),
    "ppo_clip_reward": Method("scalar", gae, "control: ppo on rewards cut at batch quantiles", clip_rewards=True),
    "grpo_clip_reward": Method(
        None, group_relative, "control: grpo on rewards cut at batch quantiles", "sequence_mean", clip_rewards=True,
        **GROUPS),
}  # fmt: skip
