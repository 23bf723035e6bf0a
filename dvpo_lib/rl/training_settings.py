"""Section `training` and rows of section `methods` in params.yaml, and the trainer's settings made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.functional import advantages as adv

if TYPE_CHECKING:
    from dvpo_lib.rl.config import DVPOConfig


SAVED_AFTER = 20  # iterations between checkpoints of a run; a shorter run has none


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
    bf16: bool | None = None  # autocast of every forward; null: on GPUs that can


def trainer_config(training: TrainingSettings, max_steps: int, **run: Any) -> DVPOConfig:
    """The trainer's settings for one run of the chain.

    The chain counts in iterations and in mini-batches of a generation batch; the trainer counts in optimiser steps and
    micro-batches. Names that are not converted mean the same in both.

    Args:
        training: Section `training` of params.yaml, changes of the method included.
        max_steps: Iterations.
        run: Further settings of `DVPOConfig`: method, max_completion_length, critic, seed, output_dir ...

    Raises:
        ValueError: If a generation batch cannot be split into the micro-batches asked for.
    """
    from dvpo_lib.rl.config import DVPOConfig

    own = vars(training).copy()
    mini_batches, micro_batches = own.pop("num_mini_batches"), own["gradient_accumulation_steps"]
    if training.generation_batch_size % (mini_batches * micro_batches):
        raise ValueError(
            f"generation_batch_size {training.generation_batch_size} is not a multiple of num_mini_batches "
            f"{mini_batches} times gradient_accumulation_steps {micro_batches}"
        )
    steps = training.num_iterations * mini_batches  # optimiser steps of an iteration
    own |= dict(
        per_device_train_batch_size=training.generation_batch_size // (mini_batches * micro_batches),
        max_steps=max_steps * steps,
        warmup_steps=training.warmup_steps * steps,
        logging_steps=steps,  # a record for each iteration
        save_strategy="steps" if max_steps > SAVED_AFTER else "no",
        save_steps=SAVED_AFTER * steps,
        save_total_limit=1,
        gradient_checkpointing=False,  # a small model's activations fit
        old_logprobs=None if training.bf16 else "sampler",
        report_to="none",
        disable_tqdm=True,
    )
    return DVPOConfig(**{**own, **run})


def with_changes(args: TrainingSettings, changes: Mapping[str, Any]) -> TrainingSettings:
    """Settings with some of them replaced, nested ones by nested mappings, as in params.yaml.

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

    return TypeAdapter(TrainingSettings).validate_python(merged(asdict(args), changes))


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class MethodSettings:
    """One row of section `methods`: the method's critic, and its changes to `training`."""

    critic: str  # a row of `critics`
    training: dict[str, Any] = Field(default_factory=dict)  # changes of `training` for this method alone
