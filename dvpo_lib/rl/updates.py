"""One optimiser step of a critic or of a policy, on rows of a batch, in micro-batches.

A critic minimises `critic_objective`, a policy its method's loss with KL penalty and entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dvpo_lib.functional.critic_losses import mean_gap
from dvpo_lib.functional.final_states import join_final
from dvpo_lib.functional.policy_losses import (
    aggregate_loss,
    awr_loss,
    kl_estimate,
    masked_mean,
    policy_loss,
    policy_ratio,
)
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.functional.scales import pooled_scale, return_moments
from dvpo_lib.models.critic import critic_objective
from dvpo_lib.models.policy import router_losses, token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience, bootstrap_of, importance_weights, last_rewards
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE, Processes
from dvpo_lib.rl.trainer_base.parallel.shared_steps import micro_batches, optimizer_step

AVERAGES = {"grpo": "sequence_mean", "dr_grpo": "constant", "dapo": "token_mean", "bnpo": "token_mean"}  # TRL's names


class TrainingDiverged(RuntimeError):
    """A number of a run is not finite; the message names method, seed and step."""


@dataclass
class Batch:
    """A generation batch with all that its updates read. Nothing but tensors, so that a checkpoint can hold it.

    Attributes:
        tokens: B prompts and completions; `tokens.mask` (B, T) is true on the tokens that take part in the update.
        logprobs: (B, T) log-probabilities that the policy ratio refers to.
        advantages: (B, T), truncated importance weights included.
        known: (B,) bool, responses that have a reward: the critic learns from them alone.
        reference_logprobs: (B, T) under the reference policy; None without one.
        values: (B, T, N, M) outputs of the critic, each head monotone; None without a critic and for Q critics.
        targets: (B, T, K) samples of the return, or targets of `q_loss`; None without a critic.
        weights: (B, N) bootstrap weights of responses by head; None if all weigh 1.
    """

    tokens: Tokens
    logprobs: Tensor
    advantages: Tensor
    known: Tensor
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        tokens = own.pop("tokens")
        own |= {f"tokens.{field.name}": getattr(tokens, field.name) for field in fields(tokens)}
        return {name: x.contiguous() for name, x in own.items() if x is not None}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor], device) -> Batch:
        """The inverse of `tensors`."""
        own = {name: x.to(device) for name, x in tensors.items()}
        tokens = Tokens(**{name[len("tokens.") :]: own.pop(name) for name in list(own) if name.startswith("tokens.")})
        return cls(tokens, **own)


def batch_of(
    x: Experience, advantages: Tensor, targets: Tensor | None, args: DVPOConfig, generator: torch.Generator
) -> Batch:
    """All that the updates on an experience read.

    Args:
        x: The experience.
        advantages: (B, T).
        targets: (B, T, K) of the critic; None without a critic.
        args: Resolved settings.
        generator: Random source of the bootstrap weights.
    """
    values = x.values if isinstance(x.values, Tensor) else None
    if x.final_values is not None and targets is not None:
        values = join_final(values, x.final_values, x.mask)
        targets = join_final(targets, last_rewards(x)[:, None].expand(-1, targets.shape[-1]), x.mask)
    return Batch(
        x.tokens,
        x.logprobs,
        advantages.detach() * importance_weights(x, args),
        x.known,
        x.reference_logprobs,
        values,
        targets,
        bootstrap_of(x, args, generator),
    )


def update_critic(
    critic: nn.Module,
    optimizer,
    batch: Batch,
    rows: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """One optimiser step of a critic on `rows` of the batch; returns its loss, named terms and gradient norm.

    Args:
        rows: (R,) indices of responses that have a reward.
        args: Resolved settings.
        processes: Those that take the step together, each on its rows.
    """
    if args.critic.final_state:
        batch = replace(batch, tokens=batch.tokens.with_final_state())
    whole = full_batch_statistics(critic, batch, rows, args, accelerator, processes)

    def objective(tokens: Tokens, rows: Tensor):
        z = critic(tokens)
        if not tokens.mask.any():
            return sum(0.0 * x.sum() for x in _tensors_of(z)), {}
        return critic_objective(
            z,
            select_batch_rows(batch.targets, rows, tokens),
            tokens.mask,
            args.critic,
            select_batch_rows(batch.values, rows, tokens),
            batch.weights if batch.weights is None else batch.weights[rows],
            **whole,
        )

    step = (critic, optimizer, objective, batch.tokens, rows, args, accelerator, processes)
    loss, terms, norm = optimizer_step(*step)
    return {"critic_loss": loss, **{f"critic/{k}": v for k, v in terms.items()}, "critic_grad_norm": norm}


def update_policy(
    policy: nn.Module,
    optimizer,
    batch: Batch,
    rows: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """One optimiser step of a policy on `rows` of the batch; returns its loss, statistics and gradient norm.

    Args:
        rows: (R,) indices of responses.
        args: Resolved settings.
        processes: Those that take the step together, each on its rows.
    """
    loss, stats, norm = optimizer_step(
        policy,
        optimizer,
        lambda tokens, rows: policy_objective(policy, batch, tokens, rows, args),
        batch.tokens,
        rows,
        args,
        accelerator,
        processes,
        average_of(args) == "token_mean",
    )
    return {"policy_loss": loss, **stats, "policy_grad_norm": norm}


def policy_objective(
    policy: nn.Module, batch: Batch, tokens: Tokens, rows: Tensor, args: DVPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy's loss on a micro-batch, and its statistics.

    Args:
        tokens: Rows `rows` of the batch.
        args: Resolved settings.
    """
    average = dict(how=average_of(args), max_length=args.max_completion_length)
    with router_losses(policy, args.router_aux_loss_coef) as balance:
        logprobs, entropy = token_logprobs(policy, tokens, args.temperature, True, args.entropy_coef > 0)
    old, advantages = (select_batch_rows(x, rows, tokens) for x in (batch.logprobs, batch.advantages))
    if METHODS[args.method].offline:
        loss, stats = awr_loss(logprobs, advantages, tokens.mask, args.awr_temperature, **average)
    else:
        clip = dict(epsilon=args.epsilon, epsilon_high=args.epsilon_high, delta=args.delta)
        level = args.importance_sampling_level
        loss, stats = policy_loss(logprobs, old, advantages, tokens.mask, level=level, **clip, **average)
    if args.kl_placement == "loss" and args.beta:
        reference = select_batch_rows(batch.reference_logprobs, rows, tokens)
        reference = torch.where(tokens.mask, reference, logprobs.detach())
        penalty = kl_estimate(logprobs, reference, args.kl_estimator)
        if args.use_bias_correction_kl:
            penalty = penalty * policy_ratio(logprobs, old, tokens.mask, args.importance_sampling_level)[1]
        loss = loss + args.beta * aggregate_loss(penalty, tokens.mask, **average)
    if args.entropy_coef:
        loss = loss - args.entropy_coef * aggregate_loss(entropy, tokens.mask, **average)
    stats = {"entropy": masked_mean(entropy, tokens.mask), **stats}
    if balance:
        loss, stats["aux_loss"] = loss + args.router_aux_loss_coef * balance[0], balance[0].detach()
    return loss, stats


def average_of(args: DVPOConfig) -> str:
    """How the policy's loss is averaged (see `policy_losses.aggregate`)."""
    return AVERAGES.get(args.loss_type, METHODS[args.method].aggregate)


def select_batch_rows(x: Tensor | None, rows: Tensor, tokens: Tokens) -> Tensor | None:
    """Rows of a (B, T, ...) tensor, shortened to the completion length of `tokens`."""
    return x if x is None else x[rows, : tokens.completion_length]


@torch.no_grad()
def full_batch_statistics(
    critic: nn.Module, batch: Batch, rows: Tensor, args: DVPOConfig, accelerator: Accelerator, processes: Processes
) -> dict[str, Tensor]:
    """Return scale and mean gap of all processes' rows, shared by their micro-batches; empty if there is but one."""
    one = processes.count == 1 and len(rows) <= args.per_device_train_batch_size
    if one or args.critic.kind != "quantile":
        return {}
    tokens = batch.tokens
    count = processes.sum({"tokens": tokens.mask[rows].sum().item()})["tokens"]
    gap = tokens.mask.new_zeros(batch.values.shape[2], dtype=torch.float32)
    for own, part in micro_batches(critic, tokens, rows, args.per_device_train_batch_size, processes):
        with accelerator.autocast():
            z = critic(own)
        if own.mask.any():
            weights = batch.weights if batch.weights is None else batch.weights[part]
            own_gap = mean_gap(z, select_batch_rows(batch.targets, part, own), own.mask, weights)
            gap = gap + own_gap * (own.mask.sum() / count)
    moments = return_moments(batch.values[rows], tokens.mask[rows])
    scale = pooled_scale(processes.gather(moments[None]))
    return {"batch_gap": processes.gather(gap[None]).sum(0), "scale": scale}


def _tensors_of(z: Tensor | QValues) -> list[Tensor]:
    return [z] if isinstance(z, Tensor) else [x for x in vars(z).values() if x is not None]
