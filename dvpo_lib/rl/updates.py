"""One optimiser step of a critic or of a policy, on rows of a batch, in micro-batches.

A critic minimises `critic_objective`, a policy its method's loss with KL penalty and entropy bonus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dvpo_lib.functional.critic_losses import mean_gap, return_scale
from dvpo_lib.functional.policy_losses import aggregate_loss, awr_loss, kl_estimate, masked_mean, policy_loss
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.critic_training import bootstrap_weights, critic_objective
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience
from dvpo_lib.rl.methods import METHODS


def update_critic(
    critic: nn.Module,
    optimizer,
    experience: Experience,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    args: DVPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step of a critic on `rows` of the batch; returns its loss, named terms and gradient norm.

    Args:
        critic: The critic.
        optimizer: Its optimiser.
        experience: The batch before the update.
        rows: (R,) indices of responses with a reward.
        targets: (B, T, K) samples of the return, or targets of `q_loss`.
        weights: (B, N) bootstrap weights of responses by head; None if all weigh 1.
        args: Resolved settings.
        accelerator: See `optimizer_step`.
    """
    old = experience.values if isinstance(experience.values, Tensor) else None
    whole = full_batch_statistics(critic, experience, rows, targets, weights, args)

    def objective(batch: Tokens, rows: Tensor):
        return critic_objective(
            critic(batch),
            cut_rows(targets, rows, batch),
            batch.mask,
            args.critic,
            cut_rows(old, rows, batch),
            weights if weights is None else weights[rows],
            **whole,
        )

    loss, terms, norm = optimizer_step(critic, optimizer, objective, experience.tokens, rows, args, accelerator)
    return {"critic_loss": loss, **{f"critic/{k}": v for k, v in terms.items()}, "critic_grad_norm": norm}


def update_policy(
    policy: nn.Module,
    optimizer,
    experience: Experience,
    rows: Tensor,
    advantages: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step of a policy on `rows` of the batch; returns its loss, statistics and gradient norm.

    Args:
        policy: The policy.
        optimizer: Its optimiser.
        experience: The batch before the update.
        rows: (R,) indices of responses.
        advantages: (B, T).
        args: Resolved settings.
        accelerator: See `optimizer_step`.
    """
    method = METHODS[args.method]
    average = dict(how=method.aggregate, max_length=args.max_completion_length)
    whole = (experience.logprobs, advantages, experience.reference_logprobs)

    def objective(batch: Tokens, rows: Tensor):
        logprobs, entropy = token_logprobs(policy, batch, args.temperature, args.entropy_coef > 0)
        old, a, reference = (cut_rows(x, rows, batch) for x in whole)
        if method.offline:
            loss, stats = awr_loss(logprobs, a, batch.mask, args.awr_temperature, **average)
        else:
            loss, stats = policy_loss(logprobs, old, a, batch.mask, args.epsilon, args.epsilon_high, **average)
        if args.kl_placement == "loss" and args.beta:
            reference = torch.where(batch.mask, reference, logprobs.detach())  # k3 overflows if the two are far apart
            penalty = kl_estimate(logprobs, reference, args.kl_estimator)
            loss = loss + args.beta * aggregate_loss(penalty, batch.mask, **average)
        if args.entropy_coef:
            loss = loss - args.entropy_coef * aggregate_loss(entropy, batch.mask, **average)
        return loss, {"entropy": masked_mean(entropy, batch.mask), **stats}

    by_token = method.aggregate == "token_mean"
    loss, stats, norm = optimizer_step(
        policy, optimizer, objective, experience.tokens, rows, args, accelerator, by_token
    )
    return {"policy_loss": loss, **stats, "policy_grad_norm": norm}


def response_weights(experience: Experience, cfg: CriticSettings, generator: torch.Generator) -> Tensor | None:
    """(B, N) bootstrap weights of responses by head, 0 for dropped responses; None if all weigh 1."""
    active = experience.active
    drawn = bootstrap_weights(cfg, len(active), generator)  # (R, N), so that dropped responses shift no stream
    if drawn is None:
        return None
    return torch.zeros(len(experience.tokens), cfg.heads).index_copy(0, active.cpu(), drawn).to(active.device)


def mean_records(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each value over the records that have it."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: float(np.mean([record[name] for record in records if name in record])) for name in names}


def cut_rows(x: Tensor | None, rows: Tensor, batch: Tokens) -> Tensor | None:
    """Rows of a (B, T, ...) tensor, shortened to the completion length of `batch`."""
    return x if x is None else x[rows, : batch.completion_length]


@torch.no_grad()
def full_batch_statistics(
    critic: nn.Module, experience: Experience, rows: Tensor, targets: Tensor, weights: Tensor | None, args: DVPOConfig
) -> dict[str, Tensor]:
    """Return scale and mean gap of the full batch, shared by its micro-batches; empty if there is but one."""
    parts, tokens = rows.chunk(args.gradient_accumulation_steps), experience.tokens
    if len(parts) == 1 or args.critic.kind != "quantile":
        return {}
    gap, count = 0.0, tokens.mask[rows].sum()
    for part in parts:
        batch = tokens.rows(part)
        own_weights = weights if weights is None else weights[part]
        own = mean_gap(critic(batch), cut_rows(targets, part, batch), batch.mask, own_weights)
        gap = gap + own * (batch.mask.sum() / count)
    return {"batch_gap": gap, "scale": return_scale(experience.values[rows], tokens.mask[rows])}


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
    """One optimiser step on `rows`, in `args.gradient_accumulation_steps` micro-batches.

    Args:
        module: The network to update.
        optimizer: Its optimiser.
        objective: (micro-batch, its rows) -> (loss, named values), means over the micro-batch.
        tokens: The whole batch.
        rows: (R,) indices of responses.
        args: Resolved settings.
        accelerator: For the backward pass and the clipping of gradients.
        by_token: A micro-batch's share of the loss is its share of tokens if true, of responses if false.

    Returns:
        (loss, named values, norm of the gradient before clipping).
    """
    optimizer.zero_grad()
    total, named, count = 0.0, {}, tokens.mask[rows].sum()
    for part in rows.chunk(args.gradient_accumulation_steps):
        batch = tokens.rows(part)
        loss, values = objective(batch, part)
        of_tokens = (batch.mask.sum() / count).item()
        share = of_tokens if by_token else len(part) / len(rows)
        accelerator.backward(loss * share)
        total += share * loss.item()
        named = {k: named.get(k, 0.0) + of_tokens * v.item() for k, v in values.items()}
    norm = accelerator.clip_grad_norm_(module.parameters(), args.max_grad_norm)
    optimizer.step()
    return total, named, float(norm)
