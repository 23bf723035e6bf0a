"""Diagnostics of a batch before its update: distance from the reference policy, groups without signal, fit of the
critic, tails of its predictions.

A number is NaN if it does not apply: no reward in the batch, a method without groups, a method without a critic. Only
critics that predict a distribution have tails.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dvpo_lib.functional.advantages import returns_to_go
from dvpo_lib.functional.policy_losses import masked_mean
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.functional.quantiles import lower_tail_mean, quantile_at_level, upper_tail_mean
from dvpo_lib.models.critic import mean_values
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience, token_rewards
from dvpo_lib.rl.rewards import Scores
from dvpo_lib.rl.sampling.rollouts import Rollouts

NOT_APPLICABLE = float("nan")
TAIL_MASS = 0.1  # of each tail whose width is logged
WIDE_GAP = 0.3  # nats; in 16 bits it is about 0.01


def mean_kl(kl: Tensor, mask: Tensor) -> float:
    """Mean log-ratio to the reference policy (nats a token) over the tokens of `mask`, both (B, T)."""
    return masked_mean(kl, mask).item() if mask.any() else NOT_APPLICABLE


def flat_group_share(rewards: Tensor, group_size: int) -> float:
    """Share of groups with equal rewards, which teach nothing, among groups with any reward.

    Args:
        rewards: (B,), NaN if missing.
        group_size: Consecutive rows that make a group.
    """
    groups = rewards.view(-1, group_size)
    groups = groups[(~groups.isnan()).any(1)]
    low, high = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
    return (high <= low).float().mean().item()


def critic_explained_variance(experience: Experience, args: DVPOConfig) -> float:
    """1 - var(return - value) / var(return) over the tokens of responses with a reward.

    Args:
        experience: The batch before its update.
        args: Resolved settings.
    """
    everywhere = experience.processes.gather
    scored = everywhere(experience.mask & experience.known[:, None])
    if experience.values is None or not scored.any():
        return NOT_APPLICABLE
    returns = returns_to_go(token_rewards(experience, args), experience.mask, args.gamma)
    returns, values = everywhere(returns)[scored], everywhere(mean_values(experience.values))[scored]
    error = returns - values
    return (1 - error.var() / returns.var().clamp(min=1e-12)).item()


def tail_widths(experience: Experience) -> dict[str, float]:
    """How far the tails of the predicted distribution reach, averaged over the tokens of responses with a reward.

    A tail is a tenth of the quantiles, but at least three of them, so that widths at few quantiles are not comparable.

    Args:
        experience: The batch before its update.

    Returns:
        `critic/lower_tail`, median less mean of the lower tail, and `critic/upper_tail`, mean of the upper tail
        less median, both in return units; nothing for methods without a distribution.
    """
    values = experience.values
    if values is None or isinstance(values, QValues) or values.shape[-1] == 1:
        return {}
    q = values.mean(-2)  # heads are sorted
    middle = quantile_at_level(q, 0.5)
    widths = {
        "critic/lower_tail": middle - lower_tail_mean(q, TAIL_MASS),
        "critic/upper_tail": upper_tail_mean(q, TAIL_MASS) - middle,
    }
    everywhere = experience.processes.gather
    scored = everywhere(experience.mask & experience.known[:, None])
    return {
        name: masked_mean(everywhere(x), scored).item() if scored.any() else NOT_APPLICABLE
        for name, x in widths.items()
    }


def batch_metrics(
    rollouts: Rollouts, scores: Scores, x: Experience, args: DVPOConfig, terminated: Tensor, group_size: int
) -> dict[str, float]:
    """Metrics of a scored batch, of all processes' rows, with TRL's names if TRL has the metric.

    Args:
        terminated: (B,) bool, responses that ended by themselves.
        group_size: Completions a prompt.
    """
    everywhere = x.processes.gather
    rewards, mask = everywhere(scores.rewards), everywhere(x.mask)
    metrics = {"reward": rewards.nanmean().item(), "reward_std": _deviation(rewards, group_size)}
    for name, own in scores.by_function.items():
        own = everywhere(own)
        metrics[f"rewards/{name}/mean"] = own.nanmean().item()
        metrics[f"rewards/{name}/std"] = _deviation(own, len(own))
    metrics |= {
        "kl": NOT_APPLICABLE if x.reference_logprobs is None else mean_kl(everywhere(x.kl), mask),
        "completions/mean_length": everywhere(rollouts.tokens.mask.sum(1)).float().mean().item(),
        "completions/clipped_ratio": 1 - everywhere(terminated).float().mean().item(),
        "frac_reward_zero_std": flat_group_share(everywhere(x.rewards), group_size)
        if group_size > 1
        else NOT_APPLICABLE,
        "explained_variance": critic_explained_variance(x, args),
        "missing": rewards.isnan().float().mean().item(),
        **tail_widths(x),
    }
    if args.old_logprobs == "truncated" and mask.any():
        gap = everywhere((x.logprobs - x.sampled_logprobs).abs())
        metrics["sampling/logprob_gap"] = mean = masked_mean(gap, mask).item()
        if mean > WIDE_GAP:
            warnings.warn(
                f"the sampler's log-probabilities are {mean:.2f} nats away from the policy's on average: does it "
                "sample by the policy's weights, in a similar precision?",
                stacklevel=2,
            )
    return metrics


def _deviation(rewards: Tensor, group_size: int) -> float:
    """Mean over groups of the standard deviation of their rewards; NaN without a group of two."""
    groups = [own for own in (group[~group.isnan()] for group in rewards.view(-1, group_size)) if len(own) > 1]
    if not groups:
        known = rewards[~rewards.isnan()]
        return known.std().item() if len(known) > 1 else NOT_APPLICABLE
    return torch.stack([own.std() for own in groups]).mean().item()
