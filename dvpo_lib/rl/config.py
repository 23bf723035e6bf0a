"""Settings of a training run: section `training` of params.yaml, and the trainer's configuration built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.functional import advantages as adv
from dvpo_lib.models.critic import CriticSettings


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TrainingSettings:
    """Section `training` of params.yaml. Names follow TRL if TRL has the setting."""

    generation_batch_size: Annotated[int, Field(ge=1)] = 128  # rollouts per iteration
    num_generations: Annotated[int, Field(ge=2)] = 8  # completions per prompt, for group methods
    num_iterations: Annotated[int, Field(ge=1)] = 2  # passes over an iteration's rollouts
    num_mini_batches: Annotated[int, Field(ge=1)] = 2  # optimiser steps per pass
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of sampling and of log-probabilities
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1  # micro-batches of an optimiser step (for memory)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # of the policy
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"  # of the policy, over max_steps
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # iterations with a rising learning rate
    beta: Annotated[float, Field(ge=0)] = 0.01  # weight of the KL penalty to the reference policy
    kl_placement: Literal["reward", "loss"] | None = None  # place of the penalty; null: as in the method's source
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # of the KL there; null: as in the method's source
    epsilon: Annotated[float, Field(gt=0)] = 0.2  # clip range of the policy ratio
    epsilon_high: Annotated[float, Field(gt=0)] | None = None  # upper clip range; null: epsilon
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0  # weight of the entropy bonus
    whiten_advantages: bool = True  # to mean 0, deviation 1 over the batch's tokens, if the method does
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # discount
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95  # lambda of the actor's advantages
    lam_critic: Annotated[float, Field(ge=0, le=1)] = 1.0  # lambda of the critic's targets
    lam_adaptive: Annotated[float, Field(gt=0)] | None = None  # c of the length-adaptive lambda 1 - 1/(c * length)
    target: Literal["comonotone", "mixture"] = "comonotone"  # mixing of distributions in lambda-returns
    readout: adv.ReadoutSettings = adv.ReadoutSettings()  # from a quantile critic's distribution to a value
    worst_case: Literal["min_heads", "lower_tail"] = "min_heads"  # robust_ppo: smallest head's mean, or lower-tail mean
    missing_rewards: Literal["drop", "bootstrap"] = "drop"  # left out, or set to the critic's expectation
    reward_clip: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # *_clip_reward: batch quantile to clip rewards at
    extraction: Literal["awr", "perturbed"] = "awr"  # offline methods: regression of the policy, or perturbed logits
    awr_temperature: Annotated[float, Field(gt=0)] = 0.1  # of exp(A / temperature) (return units)
    perturbation: Annotated[float, Field(ge=0)] = 4.0  # weight of Q - V in the perturbed logits (per return unit)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  # gradient clipping, policy and critic each


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DVPOConfig(TrainingSettings):
    """Settings of one training run: `TrainingSettings` plus the settings that differ from run to run.

    Example:
        >>> args = DVPOConfig(method="ppo", max_steps=10, learning_rate=3e-4)
        >>> args.method, args.lam
        ('ppo', 0.95)
    """

    method: str = "dvpo"  # a row of METHODS
    max_steps: Annotated[int, Field(ge=1)] = 40  # iterations: sample, score, update
    max_completion_length: Annotated[int, Field(ge=1)] = 32  # tokens, end of sequence included
    critic: CriticSettings | None = None  # the critic, if the method has one; null: defaults of its kind
    seed: Annotated[int, Field(ge=0)] = 0  # of every random stream of the run


Settings = TypeVar("Settings", bound=TrainingSettings)


def trainer_config(training: TrainingSettings, **run: Any) -> DVPOConfig:
    """Builds the settings of one run.

    Args:
        training: Section `training` of params.yaml, with the method's changes.
        **run: `method`, `max_steps`, `max_completion_length`, `critic`, `seed`.

    Raises:
        pydantic.ValidationError: If a value is out of its range.
    """
    return DVPOConfig(**vars(training), **run)


def with_changes(args: Settings, changes: Mapping[str, Any]) -> Settings:
    """Replaces some settings, nested ones by nested mappings, as in params.yaml.

    Args:
        args: The settings to change.
        changes: {setting: value}.

    Raises:
        ValueError: If a setting does not exist or a value is out of its range; the message names the setting.

    Example:
        >>> with_changes(TrainingSettings(), {"lam": 0.9, "readout": {"kind": "winsorised"}}).readout.level_low
        0.1
    """

    def merged(own: dict[str, Any], new: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
        for name, value in new.items():
            if name not in own:
                raise ValueError(f"{parent}{name}: there is no such setting of a training run")
            nested = isinstance(value, Mapping) and isinstance(own[name], dict)
            own[name] = merged(own[name], value, f"{parent}{name}.") if nested else value
        return own

    return TypeAdapter(type(args)).validate_python(merged(asdict(args), changes))


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class MethodSettings:
    """One row of section `methods`: the method's critic, and its changes to `training`."""

    critic: str  # a row of `critics`
    training: dict[str, Any] = Field(default_factory=dict)  # changes of `training` for this method alone
