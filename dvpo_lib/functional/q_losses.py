"""Offline worst-case baselines: token-level Q functions on logged rollouts of the base policy.

In a language model the next state is the prefix plus the token, so transitions are deterministic and only the outcome
is uncertain. A Q critic predicts twin Q values of every token of the vocabulary, V by expectile regression (as in ILQL,
Snell et al. 2022) and, for the robust method, the distribution of the outcome. A slowly moving copy gives the targets.
The policy comes from advantage-weighted regression (`policy_losses.awr_loss`) or from `q_critic.PerturbedPolicy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from dvpo_lib.functional.advantages import generalised_advantages, last_token_mask
from dvpo_lib.functional.policy_losses import masked_mean
from dvpo_lib.functional.quantile_huber import quantile_huber


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class QSettings:
    """Settings of a Q critic's back-ups."""

    backup: Literal["expectile", "max"] = "expectile"  # value after a token: V, or Q of the best token
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.7  # of V: 0.5 is the data's mean, near 1 its best token
    conservatism: Annotated[float, Field(ge=0)] = 0.1  # weight of the CQL penalty, of kind conservative_q
    radius: Annotated[float, Field(ge=0, le=1)] = 0.1  # of the total-variation ball, of kind robust_q
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.2  # step of the target critic towards the critic, by iteration


@dataclass
class QValues:
    """A Q critic's predictions for the state s_t before each completion token and for the token a_t taken there.

    Attributes:
        q: (B, T, 2) twin Q(s_t, a_t).
        best: (B, T) max over tokens of the smaller twin.
        v: (B, T) V(s_t).
        spread: (B, T) logsumexp of Q(s_t, .) - Q(s_t, a_t), mean over twins: the CQL penalty.
        outcome: (B, T, M) monotone quantiles of the return after a_t; None without that head.
    """

    q: Tensor
    best: Tensor
    v: Tensor
    spread: Tensor
    outcome: Tensor | None


def expectile_loss(v: Tensor, target: Tensor, expectile: float) -> Tensor:
    """|expectile - 1{target < v}| (target - v)^2, elementwise (Kostrikov et al. 2021); half the square at 0.5."""
    error = target.detach() - v
    return torch.where(error < 0, 1 - expectile, expectile) * error**2


def q_loss(
    x: QValues, targets: Tensor, mask: Tensor, cfg: QSettings, kind: Literal["conservative_q", "robust_q"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of fitted Q iteration, means over the tokens of `mask`.

    Args:
        x: Predictions of the critic, with gradient.
        targets: (B, T, 3) of `fitted_q`: the backed-up value, the smaller twin of the target critic at the token taken,
            and the outcome; or (B, T, 1), the Monte Carlo return for all three (pretraining).
        mask: (B, T).
        cfg: Settings of the back-ups.
        kind: conservative_q adds the CQL penalty (Kumar et al. 2020, eq. 4), robust_q learns the outcome.

    Returns:
        (total, {name: 0-dim term, detached}).
    """
    targets = torch.where(mask[..., None], targets.detach(), 0.0)  # NaN would reach the gradient
    backed_up, q_hat, outcome = targets.expand(*targets.shape[:2], 3).unbind(-1)
    terms = {
        "td": masked_mean(0.5 * ((x.q - backed_up[..., None]) ** 2).mean(-1), mask),
        "value": masked_mean(expectile_loss(x.v, q_hat, cfg.expectile), mask),
    }
    total = terms["td"] + terms["value"]
    if kind == "conservative_q":
        terms["conservatism"] = masked_mean(x.spread, mask)
        total = total + cfg.conservatism * terms["conservatism"]
    else:
        terms["outcome"] = quantile_huber(x.outcome[mask], outcome[mask][:, None]).mean()
        total = total + terms["outcome"]
    return total, {k: v.detach() for k, v in terms.items()}


def worst_case_mean(q: Tensor, radius: float) -> Tensor:
    """(..., M) monotone quantiles to (...): the smallest mean in the total-variation ball of this radius.

    Mass `radius` moves from the largest outcomes to the smallest one (Panaganti et al. 2022, for a ball on the support
    of the learned outcomes). Radius 0 is the mean, radius 1 the smallest outcome.
    """
    m = q.shape[-1]
    above = torch.arange(m - 1, -1, -1, dtype=q.dtype, device=q.device)
    kept = 1 - (radius * m - above).clamp(0, 1)  # of each quantile's mass
    return (q * kept).mean(-1) + radius * q[..., 0]


def fitted_q(
    rewards: Tensor, x: QValues, mask: Tensor, gamma: float, cfg: QSettings, robust: bool = False
) -> tuple[Tensor, Tensor]:
    """Advantages Q - V of the logged tokens and the next iteration's targets, from the target critic's predictions.

    y[t] = r[t] + gamma V(s[t+1]), or the best token's Q in place of V; the value after the last token is 0. If
    `robust`, the outcome counts as the worst one in the ball around its learned distribution: the last token's reward
    loses the difference of mean and worst-case mean, so radius 0 is plain fitted Q.

    Args:
        rewards: (B, T).
        x: Predictions of the target critic.
        mask: (B, T).
        gamma: Discount.
        cfg: Settings of the back-ups.
        robust: True for the worst case.

    Returns:
        (advantages (B, T), targets (B, T, 3) for `q_loss`).
    """
    outcome = generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[1]
    if robust:
        loss = x.outcome.mean(-1) - worst_case_mean(x.outcome, cfg.radius)
        rewards = torch.where(last_token_mask(mask), rewards - loss, rewards)
    value = x.v if cfg.backup == "expectile" else x.best
    q = x.q.amin(-1)
    backed_up = generalised_advantages(rewards, value, mask, gamma, 0.0)[1]  # lambda 0: one step
    return q - value, torch.stack([backed_up, q, outcome], -1)
