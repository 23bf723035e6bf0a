"""One optimiser step of a critic or of a policy, on rows of a batch, in micro-batches.

A critic minimises `critic_objective`, a policy its method's loss with KL penalty and entropy bonus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dvpo_lib.functional.critic_losses import mean_gap, return_scale
from dvpo_lib.functional.final_states import join_final
from dvpo_lib.functional.policy_losses import (
    aggregate_loss,
    awr_loss,
    kl_estimate,
    masked_mean,
    policy_loss,
    policy_ratio,
)
from dvpo_lib.models.critic import critic_objective
from dvpo_lib.models.modes import learning_mode_of
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience, bootstrap_of, importance_weights, last_rewards
from dvpo_lib.rl.methods import METHODS

AVERAGES = {"grpo": "sequence_mean", "dr_grpo": "constant", "dapo": "token_mean", "bnpo": "token_mean"}  # TRL's names


class NotFiniteError(FloatingPointError):
    """A loss, gradient, log-probability or weight is not finite."""


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
    critic: nn.Module, optimizer, batch: Batch, rows: Tensor, args: DVPOConfig, accelerator: Accelerator
) -> dict[str, float]:
    """One optimiser step of a critic on `rows` of the batch; returns its loss, named terms and gradient norm.

    Args:
        rows: (R,) indices of responses that have a reward.
        args: Resolved settings.
    """
    if args.critic.final_state:
        batch = replace(batch, tokens=batch.tokens.with_final_state())
    whole = full_batch_statistics(critic, batch, rows, args, accelerator)

    def objective(tokens: Tokens, rows: Tensor):
        return critic_objective(
            critic(tokens),
            select_batch_rows(batch.targets, rows, tokens),
            tokens.mask,
            args.critic,
            select_batch_rows(batch.values, rows, tokens),
            batch.weights if batch.weights is None else batch.weights[rows],
            **whole,
        )

    loss, terms, norm = optimizer_step(critic, optimizer, objective, batch.tokens, rows, args, accelerator)
    return {"critic_loss": loss, **{f"critic/{k}": v for k, v in terms.items()}, "critic_grad_norm": norm}


def update_policy(
    policy: nn.Module, optimizer, batch: Batch, rows: Tensor, args: DVPOConfig, accelerator: Accelerator
) -> dict[str, float]:
    """One optimiser step of a policy on `rows` of the batch; returns its loss, statistics and gradient norm.

    Args:
        rows: (R,) indices of responses.
        args: Resolved settings.
    """
    loss, stats, norm = optimizer_step(
        policy,
        optimizer,
        lambda tokens, rows: policy_objective(policy, batch, tokens, rows, args),
        batch.tokens,
        rows,
        args,
        accelerator,
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


@contextmanager
def router_losses(policy: nn.Module, coefficient: float | None) -> Iterator[list[Tensor]]:
    """Collects the load-balancing losses that a mixture of experts computes in forward passes inside the context."""
    found: list[Tensor] = []
    if not coefficient:
        yield found
        return
    config = policy.config.get_text_config()
    before, config.output_router_logits = config.output_router_logits, True
    handle = policy.register_forward_hook(lambda module, inputs, outputs: found.append(outputs.aux_loss))
    try:
        yield found
    finally:
        handle.remove()
        config.output_router_logits = before


def select_batch_rows(x: Tensor | None, rows: Tensor, tokens: Tokens) -> Tensor | None:
    """Rows of a (B, T, ...) tensor, shortened to the completion length of `tokens`."""
    return x if x is None else x[rows, : tokens.completion_length]


@torch.no_grad()
def full_batch_statistics(
    critic: nn.Module, batch: Batch, rows: Tensor, args: DVPOConfig, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Return scale and mean gap of all rows, shared by their micro-batches; empty if there is but one."""
    parts, tokens = rows.split(args.per_device_train_batch_size), batch.tokens
    if len(parts) == 1 or args.critic.kind != "quantile":
        return {}
    gap, count = 0.0, tokens.mask[rows].sum()
    for part in parts:
        own = tokens.rows(part)
        with accelerator.autocast():
            z = critic(own)
        weights = batch.weights if batch.weights is None else batch.weights[part]
        gap = gap + mean_gap(z, select_batch_rows(batch.targets, part, own), own.mask, weights) * (
            own.mask.sum() / count
        )
    return {"batch_gap": gap, "scale": return_scale(batch.values[rows], tokens.mask[rows])}


def optimizer_step(
    module: nn.Module,
    optimizer,
    objective: Callable,
    tokens: Tokens,
    rows: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
    by_token: bool = True,
) -> tuple[float, dict[str, float], float]:
    """One optimiser step on `rows`, in micro-batches of `args.per_device_train_batch_size`.

    Args:
        objective: (micro-batch, its rows) -> (loss, named values), means over the micro-batch.
        by_token: A micro-batch's share of the loss is its share of tokens if true, of responses if false.

    Returns:
        (loss, named values, norm of the gradient before clipping).

    Raises:
        NotFiniteError: If the loss or the gradient is not finite; the weights are as they were.
    """
    optimizer.zero_grad()
    total, named, count = 0.0, {}, tokens.mask[rows].sum()
    with learning_mode_of(module, dropout=not args.disable_dropout):
        for part in rows.split(args.per_device_train_batch_size):
            own = tokens.rows(part)
            with accelerator.autocast():
                loss, values = objective(own, part)
            of_tokens = (own.mask.sum() / count).item()
            share = of_tokens if by_token else len(part) / len(rows)
            total += share * loss.item()
            if not math.isfinite(total):
                raise NotFiniteError(f"the loss is {total}")
            # Accelerate divides by its own number of accumulation steps; shares are all the scaling wanted.
            accelerator.backward(loss * (share * accelerator.gradient_accumulation_steps))
            named = {k: named.get(k, 0.0) + of_tokens * v.item() for k, v in values.items()}
    norm = float(accelerator.clip_grad_norm_(module.parameters(), args.max_grad_norm or math.inf))
    if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler of fp16 skips such a step itself
        raise NotFiniteError(f"the gradient's norm is {norm}")
    optimizer.step()
    return total, named, norm


def check_weights(module: nn.Module) -> None:
    """Raises:
    NotFiniteError: If a weight is not finite.
    """
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise NotFiniteError(f"{name} is not finite")
