"""The table of methods: each row is a critic, an advantage and a policy loss.

One trainer runs them all. A row names its critic, the function from a scored batch to advantages (and critic targets),
the average in the policy's loss, and the place of the KL penalty.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.rl.config import DVPOConfig, changed_settings
from dvpo_lib.rl.estimators import (
    Experience,
    conservative_q_advantages,
    distributional_gae,
    group_centred_advantages,
    group_relative_advantages,
    return_to_go_advantages,
    robust_q_advantages,
    scalar_gae,
    winsorised_gae,
    worst_case_gae,
)

CRITIC_LEARNING_RATE = 5e-6  # of default critics on real backbones, as in the paper's public implementation


def resolve_settings(args: DVPOConfig) -> DVPOConfig:
    """A copy of the settings with the method's own decisions filled in: critic, KL penalty, old log-probabilities.

    A method without a critic has nothing to bootstrap from, so it always drops responses without reward.

    Raises:
        ValueError: If the method is unknown, the critic is of another kind than the method's, groups do not fit the
            batch, or the KL penalty in the loss is k1.
    """
    if args.method not in METHODS:
        raise ValueError(f"unknown method {args.method!r}; there are {', '.join(METHODS)}")
    method = METHODS[args.method]
    if method.groups and args.generation_batch_size % args.num_generations:
        raise ValueError(
            f"generation_batch_size {args.generation_batch_size} is not a multiple of "
            f"num_generations {args.num_generations}"
        )
    if method.groups and args.generation_batch_size % (args.num_generations * args.world_size):
        raise ValueError(
            f"generation_batch_size {args.generation_batch_size} does not give each of {args.world_size} processes "
            f"whole groups of num_generations {args.num_generations}: groups are never split. Use a multiple of "
            f"{args.num_generations * args.world_size}"
        )
    if method.groups and args.num_generations < 2:
        raise ValueError(f"method {args.method} requires at least 2 generations per prompt (num_generations)")
    critic = None
    if method.critic is not None:
        critic = args.critic or CriticSettings(kind=method.critic, learning_rate=CRITIC_LEARNING_RATE)
        if critic.kind != method.critic and (method.critic, critic.kind) != ("quantile", "categorical"):
            raise ValueError(f"method {args.method} needs a {method.critic} critic; critic.kind is {critic.kind!r}")
    if args.readout.kind == "denoised" and method.advantage not in (scalar_gae, distributional_gae):
        raise ValueError(f"readout.kind: method {args.method} knows no denoised read-out; dvpo and ppo do")
    if args.readout.stand_in == "final_state" and (critic is None or not critic.final_state):
        raise ValueError("readout.kind: denoised needs a critic with final_state: true")
    placement = args.kl_placement or method.kl
    estimator = args.kl_estimator or ("k3" if placement == "loss" else method.estimator)
    if placement == "loss" and estimator == "k1":
        raise ValueError(
            "kl_estimator: k1 in the loss penalises nothing, since the expectation of its gradient is 0; "
            "use k3 or k2, or kl_placement 'reward'"
        )
    if args.sampling_engine != "builtin" and method.offline:
        raise ValueError(
            f"method {args.method} learns from the base policy's rollouts: the built-in sampler alone has its weights "
            "beside the policy's"
        )
    return changed_settings(
        args,
        critic=critic,
        kl_placement=placement,
        kl_estimator=estimator,
        missing_rewards=args.missing_rewards if method.critic else "drop",
        old_logprobs=args.old_logprobs or _old_logprobs(args),
        accelerator_config=copy.copy(args.accelerator_config),
    )


def _old_logprobs(args: DVPOConfig) -> str:
    """In 16 bits, and in other engines, a sampler differs from a training forward; a cut distribution is not the
    policy's."""
    differs = args.bf16 or args.fp16 or args.sampling_engine in ("continuous", "vllm")
    return "recompute" if args.sampling_cuts else "truncated" if differs else "sampler"


@dataclass(frozen=True)
class Method:
    """One row of METHODS.

    Attributes:
        critic: Kind of the critic; None for no critic.
        advantage: (Experience, resolved DVPOConfig) -> (advantages (B, T), targets (B, T, K) or None).
        source: Publication, and the choice made if public versions differ.
        aggregate: Average in the policy's loss (see `aggregate_loss`).
        kl: Place of the KL penalty, unless the settings name one.
        estimator: Estimator of the KL in the reward, unless the settings name one; in the loss it is k3.
        groups: True for several completions per prompt.
        clip_rewards: True to clip rewards at batch quantiles; the chain clips in critic pretraining too.
        offline: True to learn from rollouts of the base policy, by advantage-weighted regression.
    """

    critic: Literal["scalar", "quantile", "conservative_q", "robust_q"] | None
    advantage: Callable[[Experience, DVPOConfig], tuple[Tensor, Tensor | None]]
    source: str
    aggregate: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    kl: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    groups: bool = False
    clip_rewards: bool = False
    offline: bool = False


_PPO_SOURCE = "Schulman et al. 2017 (eq. 7, 11), KL in the reward as in Ouyang et al. 2022"
_GRPO_SOURCE = "Shao et al. 2024 (eq. 3, 4), outcome supervision"
_GROUP_METHOD = dict(kl="loss", estimator="k3", groups=True)
# METHODS["dvpo"].critic is "quantile"; list(METHODS) are the values of the setting `method`.
METHODS: dict[str, Method] = {
    "dvpo": Method("quantile", distributional_gae, "Zhu et al. 2025, reconstructed"),
    "dvpo_winsorised": Method("quantile", winsorised_gae, "extension of this project"),
    "ppo": Method("scalar", scalar_gae, _PPO_SOURCE),
    "robust_ppo": Method(
        "quantile",
        worst_case_gae,
        '"Robust Bellman PPO" of Zhu et al. 2025, known only as minimum aggregation: '
        "reconstructed, as a minimum over heads",
    ),
    "grpo": Method(
        None,
        group_relative_advantages,
        f"{_GRPO_SOURCE}; the mean of sequence means, as in the paper, where TRL and verl now average over tokens",
        "sequence_mean",
        **_GROUP_METHOD,
    ),
    "dr_grpo": Method(
        None,
        group_centred_advantages,
        "Liu et al. 2025: no division by the group's deviation and none by the response's length; "
        "the paper also drops the KL penalty, which beta = 0 does",
        "constant",
        **_GROUP_METHOD,
    ),
    "reinforce_pp": Method(
        None,
        return_to_go_advantages,
        "Hu 2025, token level: returns-to-go, whitened over the batch; later versions whiten over "
        "responses or subtract group means",
    ),
    "cql": Method(
        "conservative_q",
        conservative_q_advantages,
        "Kumar et al. 2020 (eq. 4) in the form for language of ILQL (Snell et al. 2022): twin Q, expectile V",
        offline=True,
    ),
    "rfqi": Method(
        "robust_q",
        robust_q_advantages,
        "Panaganti et al. 2022, for deterministic token transitions: the total-variation ball "
        "lies around the learned outcome",
        offline=True,
    ),
    "ppo_clip_reward": Method(
        "scalar", scalar_gae, "control: ppo on rewards cut at batch quantiles", clip_rewards=True
    ),
    "grpo_clip_reward": Method(
        None,
        group_relative_advantages,
        "control: grpo on rewards cut at batch quantiles",
        "sequence_mean",
        clip_rewards=True,
        **_GROUP_METHOD,
    ),
}
