"""Advantage estimators: from a scored batch (`Experience`) to advantages and critic targets, one function per
method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dvpo_lib.common.seeds import row_uniforms
from dvpo_lib.functional import advantages as adv
from dvpo_lib.functional.policy_losses import kl_estimate
from dvpo_lib.functional.q_losses import QValues, fitted_q
from dvpo_lib.functional.quantiles import lower_tail_mean
from dvpo_lib.models.critic import bootstrap_weights
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig, changed_settings
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE, Processes


@dataclass
class Experience:
    """A scored batch and the networks' outputs on it before the update.

    The batch keeps all its rows. A response without reward has NaN in `rewards`; everything that depends on this reads
    `known`. With `missing_rewards: drop` such a response has no true entry in `tokens.mask`, so that no loss and no
    statistic sees its tokens.

    Attributes:
        tokens: B prompts and completions; `tokens.mask` (B, T) is true on the tokens that take part in the update.
        logprobs: (B, T) log-probabilities under the policy that sampled.
        reference_logprobs: (B, T) log-probabilities under the reference policy; None without one.
        rewards: (B,) task rewards, clipped if the method clips them; NaN if missing.
        values: (B, T, N, M) outputs of the critic, each head monotone, or `QValues`; None without a critic.
        seed: Of sampled targets.
        process: (B, T) rewards by token that are part of `rewards`; None if all rewards are of whole responses.
        sampled_logprobs: (B, T) log-probabilities by the sampler; None if `logprobs` are these.
        final_values: (B, N, M) outputs of the critic after the whole response; None if it does not give them.
        processes: Those whose rows make one batch with these: statistics are of all their rows.
        prompt_means: (B,) means of the rewards that each row's prompt has had so far, in the whole run; None if no
            read-out needs them, and in evaluations.
    """

    tokens: Tokens
    logprobs: Tensor
    reference_logprobs: Tensor | None
    rewards: Tensor
    values: Tensor | QValues | None
    seed: int
    process: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    final_values: Tensor | None = None
    processes: Processes = ALONE
    prompt_means: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, tokens that take part in the update."""
        return self.tokens.mask

    @property
    def known(self) -> Tensor:
        """(B,) bool, responses that have a reward."""
        return ~self.rewards.isnan()

    @property
    def kl(self) -> Tensor:
        """(B, T) log-ratio to the reference policy, log pi_old - log pi_ref; 0 without one."""
        if self.reference_logprobs is None:
            return torch.zeros_like(self.logprobs)
        return self.logprobs - self.reference_logprobs

    def uniforms(self, count: int) -> Tensor:
        """(B, T, count) numbers in [0, 1), those of each row from a stream of its own."""
        size, length = self.mask.shape
        rows = self.processes.own_rows(range(size * self.processes.count))
        return torch.from_numpy(row_uniforms(self.seed, rows, [0] * size, length * count)).view(size, length, count)


def kl_rewards(x: Experience, args: DVPOConfig) -> Tensor | None:
    """(B, T) beta * KL estimate, the penalty on every token; None if the reward has no penalty."""
    if args.kl_placement != "reward" or not args.beta:
        return None
    return args.beta * kl_estimate(x.kl, torch.zeros_like(x.kl), args.kl_estimator)


def task_rewards(x: Experience) -> Tensor:
    """(B, T): rewards by token, and on the last token what is left of the response's reward."""
    if x.process is None:
        return adv.place_rewards(x.rewards, None, x.mask)
    return torch.where(x.mask, x.process, 0.0) + adv.place_rewards(last_rewards(x), None, x.mask)


def token_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T): `task_rewards` less the KL penalty on every token, if the penalty is part of the reward."""
    if x.process is None:
        return adv.place_rewards(x.rewards, kl_rewards(x, args), x.mask)
    return task_rewards(x) + adv.place_rewards(torch.zeros_like(x.rewards), kl_rewards(x, args), x.mask)


def last_rewards(x: Experience) -> Tensor:
    """(B,) the part of the task reward that the last token gets."""
    return x.rewards if x.process is None else x.rewards - torch.where(x.mask, x.process, 0.0).sum(1)


def denoised_experience(x: Experience, args: DVPOConfig) -> Experience:
    """The experience with the reward mixed with what stands for it, if the read-out says so.

    That is the critic's own view of the last token's reward, or the mean of the prompt's whole rewards.
    """
    readout = args.readout
    if readout.kind != "denoised":
        return x
    if readout.stand_in == "prompt_mean":  # evaluations have no history of their prompts
        return x if x.prompt_means is None else replace(x, rewards=readout.denoised_reward(x.rewards, x.prompt_means))
    received = last_rewards(x)
    denoised = readout.denoised_reward(received, readout.final_centre(x.final_values.mean(-2)))
    return replace(x, rewards=x.rewards - received + denoised)


def response_rewards(x: Experience, args: DVPOConfig) -> Tensor:
    """(B,) task reward less the summed KL penalty, if the penalty is part of the reward; NaN if missing."""
    penalty = kl_rewards(x, args)
    return x.rewards if penalty is None else x.rewards - torch.where(x.mask, penalty, 0.0).sum(1)


def actor_lambda(x: Experience, args: DVPOConfig) -> float | Tensor:
    """Lambda of the actor's advantages: `lam`, or (B,) length-adaptive ones if `lam_adaptive` is set."""
    return adv.adaptive_lambda(x.mask, args.lam_adaptive) if args.lam_adaptive else args.lam


def whitened_if_set(advantages: Tensor, x: Experience, args: DVPOConfig) -> Tensor:
    """(B, T) advantages, whitened over the batch's tokens if `whiten_advantages` is set."""
    if not args.whiten_advantages:
        return advantages
    everywhere = x.processes.gather
    return x.processes.own_rows(adv.masked_whiten(everywhere(advantages), everywhere(x.mask)))


def scalar_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Scalar GAE, whitened; the critic's target is its own lambda-return."""
    rewards, values = token_rewards(x, args), x.values[..., 0, 0]
    denoised = token_rewards(denoised_experience(x, args), args)
    advantages, _ = adv.generalised_advantages(denoised, values, x.mask, args.gamma, actor_lambda(x, args))
    _, returns = adv.generalised_advantages(rewards, values, x.mask, args.gamma, args.lam_critic)
    return whitened_if_set(advantages, x, args), returns[..., None]


def distributional_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """GAE for each quantile; the advantage is their mean, or another read-out, whitened.

    Targets are distributional lambda-returns.
    """
    rewards, zbar = token_rewards(x, args), x.values.mean(-2)
    denoised = token_rewards(denoised_experience(x, args), args)
    advantages = adv.actor_advantages(denoised, zbar, x.mask, args.gamma, actor_lambda(x, args), args.readout)
    uniforms = x.uniforms(zbar.shape[-1]) if args.target == "mixture" and args.lam_critic < 1 else None
    targets = adv.quantile_targets(rewards, zbar, x.mask, args.gamma, args.lam_critic, args.target, uniforms)
    return whitened_if_set(advantages, x, args), targets


def winsorised_gae(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """As DVPO, with the last token's reward and value clipped to the band of the critic's own quantiles.

    It is `distributional_gae` with `args.readout` of kind `winsorised`, whatever its kind is; its levels count.
    """
    return distributional_gae(x, changed_settings(args, readout=replace(args.readout, kind="winsorised")))


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


def group_relative_advantages(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """(R - group mean) / (group standard deviation + 1e-4), the same at every token.

    `scale_rewards` may choose another deviation.
    """
    return _by_group(x, args, args.scale_rewards or "group")


def group_centred_advantages(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """R - group mean, the same at every token; `scale_rewards` may choose a deviation to divide by."""
    return _by_group(x, args, args.scale_rewards or "none")


def _by_group(x: Experience, args: DVPOConfig, scale: str) -> tuple[Tensor, None]:
    rewards = response_rewards(x, args)
    advantages = adv.group_advantages(rewards, args.num_generations, scale == "group")
    if scale == "batch":
        known = x.processes.gather(rewards)
        known = known[~known.isnan()]
        advantages = advantages / (known.std() + 1e-4) if len(known) > 1 else advantages  # one reward: all are 0
    return advantages[:, None].expand(x.mask.shape), None


def return_to_go_advantages(x: Experience, args: DVPOConfig) -> tuple[Tensor, None]:
    """Discounted sum of this and all later rewards (KL penalty and R), whitened over all tokens of the batch."""
    return whitened_if_set(adv.returns_to_go(token_rewards(x, args), x.mask, args.gamma), x, args), None


def conservative_q_advantages(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; targets are one-step back-ups (`q_losses.fitted_q`)."""
    return fitted_q(task_rewards(x), x.values, x.mask, args.gamma, args.critic.q)


def robust_q_advantages(x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor]:
    """Q - V of the logged tokens; back-ups start from the worst case of the learned outcome."""
    return fitted_q(task_rewards(x), x.values, x.mask, args.gamma, args.critic.q, robust=True)


# ---- from experience to a batch ----


def advantages_of(method, x: Experience, args: DVPOConfig) -> tuple[Tensor, Tensor | None]:
    """The method's advantages (B, T) and targets; zeros and None if no response takes part, or groups are of one."""
    lonely = method.groups and args.num_generations == 1
    if lonely or not x.processes.any(x.mask.any()):
        return torch.zeros_like(x.logprobs), None
    return method.advantage(x, args)


def importance_weights(x: Experience, args: DVPOConfig) -> Tensor | float:
    """(B, T) truncated weights min(pi_forward / pi_sampler, cap) (Yao et al. 2025), or 1 if they are not asked for."""
    if args.old_logprobs != "truncated":
        return 1.0
    log_ratio = torch.where(x.mask, x.logprobs - x.sampled_logprobs, 0.0)
    return log_ratio.exp().clamp(max=args.importance_sampling_cap)


def bootstrap_of(x: Experience, args: DVPOConfig, generator: torch.Generator) -> Tensor | None:
    """(B, N) bootstrap weights of responses by head, 0 for those that take no part; None if all weigh 1."""
    takes_part = x.processes.gather(x.mask.any(1)).cpu()
    drawn = None if args.critic is None else bootstrap_weights(args.critic, int(takes_part.sum()), generator)
    if drawn is None:
        return None
    weights = torch.zeros(len(takes_part), drawn.shape[1])
    weights[takes_part] = drawn
    return x.processes.own_rows(weights).to(x.mask.device)
