"""One optimiser step of a critic or of a policy, on some rows of a batch of rollouts, in micro-batches.

What is minimised: `critics.critic_objective`, and for policies the method's loss with KL penalty and entropy bonus.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dvpo_lib.functional.critic_losses import mean_gap, return_scale
from dvpo_lib.functional.policy_losses import aggregate, awr_loss, kl_estimate, masked_mean, policy_loss
from dvpo_lib.models.critic_training import critic_objective
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS


def update_critic(
    critic: nn.Module,
    optimizer,
    tokens: Tokens,
    rows: Tensor,
    targets: Tensor,
    old: Tensor | None,
    weights: Tensor | None,
    args: DVPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step of a critic on `rows` of the batch; returns its loss, named terms and gradient norm.

    Args:
        targets, old, weights: of the whole batch, as `critics.critic_objective` has them.
        args: resolved settings.
    """
    whole = of_the_whole(critic, tokens, rows, targets, old, weights, args)

    def objective(batch: Tokens, rows: Tensor):
        return critic_objective(
            critic(batch),
            cut(targets, rows, batch),
            batch.mask,
            args.critic,
            cut(old, rows, batch),
            weights if weights is None else weights[rows],
            **whole,
        )

    loss, terms, norm = descend(critic, optimizer, objective, tokens, rows, args, accelerator)
    return {"critic_loss": loss, **{f"critic/{k}": v for k, v in terms.items()}, "critic_grad_norm": norm}


def update_policy(
    policy: nn.Module,
    optimizer,
    tokens: Tokens,
    rows: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    reference_logprobs: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step of a policy on `rows` of (B, T) tensors; returns its loss, statistics and gradient norm."""
    method = METHODS[args.method]
    average = dict(how=method.aggregate, max_length=args.max_completion_length)

    def objective(batch: Tokens, rows: Tensor):
        logprobs, entropy = token_logprobs(policy, batch, args.temperature, args.entropy_coef > 0)
        old, a, reference = (cut(x, rows, batch) for x in (old_logprobs, advantages, reference_logprobs))
        if method.offline:
            loss, stats = awr_loss(logprobs, a, batch.mask, args.awr_temperature, **average)
        else:
            loss, stats = policy_loss(logprobs, old, a, batch.mask, args.epsilon, args.epsilon_high, **average)
        if args.kl_placement == "loss" and args.beta:
            reference = torch.where(batch.mask, reference, logprobs.detach())  # k3 overflows where it is far off
            penalty = kl_estimate(logprobs, reference, args.kl_estimator)
            loss = loss + args.beta * aggregate(penalty, batch.mask, **average)
        if args.entropy_coef:
            loss = loss - args.entropy_coef * aggregate(entropy, batch.mask, **average)
        return loss, {"entropy": masked_mean(entropy, batch.mask), **stats}

    loss, stats, norm = descend(
        policy, optimizer, objective, tokens, rows, args, accelerator, method.aggregate == "token_mean"
    )
    return {"policy_loss": loss, **stats, "policy_grad_norm": norm}


def cut(x: Tensor | None, rows: Tensor, batch: Tokens) -> Tensor | None:
    """Rows of a (B, T, ...) tensor, as long as those of `batch`."""
    return x if x is None else x[rows, : batch.completion_length]


@torch.no_grad()
def of_the_whole(
    critic: nn.Module,
    tokens: Tokens,
    rows: Tensor,
    targets: Tensor,
    old: Tensor | None,
    weights: Tensor | None,
    args: DVPOConfig,
) -> dict[str, Tensor]:
    """What quantile losses that see micro-batches take of the whole one: the unit of returns, the mean's gap."""
    parts = rows.chunk(args.gradient_accumulation_steps)
    if len(parts) == 1 or args.critic.kind != "quantile":
        return {}
    gap, count = 0.0, tokens.mask[rows].sum()
    for part in parts:
        batch = tokens.rows(part)
        own = mean_gap(
            critic(batch), cut(targets, part, batch), batch.mask, weights if weights is None else weights[part]
        )
        gap = gap + own * (batch.mask.sum() / count)
    return {"batch_gap": gap, "scale": return_scale(old[rows], tokens.mask[rows])}


def descend(
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
        objective: (micro-batch, its rows) -> (loss, named values), means over the micro-batch.
        by_token: whether the loss is a mean over tokens, or over responses: what a micro-batch's share is.

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
