"""Advantage estimators: from a scored batch (`Experience`) to advantages and critic targets, one function per
method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dvpo_lib.functional import advantages as adv
from dvpo_lib.functional.policy_losses import kl_estimate
from dvpo_lib.functional.q_losses import QValues, fitted_q
from dvpo_lib.functional.quantiles import lower_tail_mean
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig


@dataclass
class Experience:
    """A scored batch and the networks' outputs on it before the update.

    The batch keeps all its rows. A response without reward has NaN in `rewards`; everything that depends on this reads
    `known`. With `missing_rewards: drop` such a response has no true entry in `tokens.mask`, so that no loss and no
    statistic sees its tokens.

    Attributes:
        tokens: B prompts and completions; `tokens.mask` (B, T) is true on the tokens that take part in the update.
        logprobs: (B, T) log-probabilities under the policy that sampled.
        reference_logprobs: (B, T) log-probabilities under the reference policy.
        rewards: (B,) task rewards, clipped if the method clips them; NaN if missing.
        values: (B, T, N, M) outputs of the critic, each head monotone, or `QValues`; None without a critic.
        generator: Random source of sampled targets.
    """

    tokens: Tokens
    logprobs: Tensor
    reference_logprobs: Tensor
    rewards: Tensor
    values: Tensor | QValues | None
    generator: torch.Generator | None

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, tokens that take part in the update."""
        return self.tokens.mask

    @property
    def known(self) -> Tensor:
        """(B,) bool, responses that have a reward."""
        return ~self.rewards.isnan()

    @property
    def active(self) -> Tensor:
        """(R,) indices of responses that take part in the update; dropped ones have no token left."""
        return self.mask.any(1).nonzero().squeeze(-1)

    @property
    def kl(self) -> Tensor:
        """(B, T) log-ratio to the reference policy, log pi_old - log pi_ref."""
        return self.logprobs - self.reference_logprobs


def kl_rewards(x: Experience, args: DVPOConfig) -> Tensor | None:
    """(B, T) beta * KL estimate, the penalty on every token; None if the reward has no penalty."""
    if args.kl_placement != "reward" or not args.beta:
        return None
    return args.beta * kl_estimate(x.kl, torch.zeros_like(x.kl), args.kl_estimator)


def token_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T) rewards: the KL penalty (if the reward has one) on every token, the task reward on the last one."""
    return adv.place_rewards(x.rewards, kl_rewards(x, args), x.mask)


def response_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B,) task reward minus the summed KL penalty (if the reward has one); NaN if missing."""
    return torch.where(x.known, token_rewards(x, args).sum(1), torch.nan)


def actor_lambda(x: Experience, args: DVPOConfig) -> float | Tensor:
    """Lambda of the actor's advantages: `lam`, or (B,) length-adaptive ones if `lam_adaptive` is set."""
    return adv.adaptive_lambda(x.mask, args.lam_adaptive) if args.lam_adaptive else args.lam


def whitened_if_set(advantages: Tensor, x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T) advantages, whitened over the batch's tokens if `whiten_advantages` is set."""
    return adv.masked_whiten(advantages, x.mask) if args.whiten_advantages else advantages


def scalar_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Scalar GAE, whitened; the critic's target is its own lambda-return."""
    rewards, values = token_rewards(x, args), x.values[..., 0, 0]
    advantages, _ = adv.generalised_advantages(rewards, values, x.mask, args.gamma, actor_lambda(x, args))
    _, returns = adv.generalised_advantages(rewards, values, x.mask, args.gamma, args.lam_critic)
    return whitened_if_set(advantages, x, args), returns[..., None]


def distributional_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE in quantile space, read out by `args.readout` and whitened; targets are distributional lambda-returns."""
    rewards, zbar = token_rewards(x, args), x.values.mean(-2)
    advantages = adv.actor_advantages(rewards, zbar, x.mask, args.gamma, actor_lambda(x, args), args.readout)
    targets = adv.quantile_targets(rewards, zbar, x.mask, args.gamma, args.lam_critic, args.target, x.generator)
    return whitened_if_set(advantages, x, args), targets


def winsorised_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """`distributional_gae` with the winsorised read-out, whatever `args.readout.kind` says; its levels count."""
    return distributional_gae(x, replace(args, readout=replace(args.readout, kind="winsorised")))


def worst_case_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE, whitened, and lambda-returns on worst-case values, which both advantages and targets bootstrap from.

    The paper's "Robust Bellman PPO" is known only as minimum aggregation. `min_heads`, the default, is the smallest of
    the heads' means: the literal minimum over estimates, neutral with one head. `lower_tail` is the mean of the
    ensemble's lower tail. A target at lambda 1 would never see a worst case, so targets use the actor's lambda.
    """
    if args.worst_case == "min_heads":
        values = x.values.mean(-1).amin(-1)
    else:
        values = lower_tail_mean(x.values.mean(-2), args.critic.loss.lower_mass)
    rewards, lam = token_rewards(x, args), actor_lambda(x, args)
    advantages, returns = adv.generalised_advantages(rewards, values, x.mask, args.gamma, lam)
    return whitened_if_set(advantages, x, args), returns[..., None]


def group_relative(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """(R - group mean) / (group std + 1e-4), the same at every token."""
    advantages = adv.group_advantages(response_rewards(x, args), args.num_generations, True)
    return advantages[:, None].expand(x.mask.shape), None


def group_centred(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """R - group mean, the same at every token."""
    advantages = adv.group_advantages(response_rewards(x, args), args.num_generations, False)
    return advantages[:, None].expand(x.mask.shape), None


def whitened_returns(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """Discounted sum of this and all later rewards (KL penalty and R), whitened over all tokens of the batch."""
    return whitened_if_set(adv.returns_to_go(token_rewards(x, args), x.mask, args.gamma), x, args), None


def conservative_q(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; targets are one-step back-ups (`q_losses.fitted_q`)."""
    return fitted_q(adv.place_rewards(x.rewards, None, x.mask), x.values, x.mask, args.gamma, args.critic.q)


def robust_q(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; back-ups start from the worst case of the learned outcome."""
    rewards = adv.place_rewards(x.rewards, None, x.mask)
    return fitted_q(rewards, x.values, x.mask, args.gamma, args.critic.q, robust=True)
