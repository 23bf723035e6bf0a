"""One trainer for every method: sample, score, estimate advantages, update critic and policy.

    trainer = DVPOTrainer(model, reward_funcs, args=DVPOConfig(method="dvpo"), train_dataset=data,
                          processing_class=tokenizer)
    trainer.train()

Randomness is derived from (seed, step, purpose), never from global generators; the whole state is `state_dict()`: a
restored trainer goes on bit for bit. Left out: several processes (refused), checkpoint rotation, logging services.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_scheduler

from dvpo_lib.common.seeds import generator_for
from dvpo_lib.functional.advantages import by_group, cut_at_quantiles, returns_to_go
from dvpo_lib.functional.policy_losses import masked_mean
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.models.critic import Critic, build_critic
from dvpo_lib.models.critic_training import bootstrap_weights, mean_values, monotone_outputs
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.q_critic import PerturbedPolicy, QCritic
from dvpo_lib.rl import updates
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience, token_rewards
from dvpo_lib.rl.methods import METHODS, resolve
from dvpo_lib.rl.rewards import RewardError, score
from dvpo_lib.rl.rollouts import Rollouts, sample


@dataclass
class TrainerState:
    """Where a run stands: `global_step` iterations are done; `log_history` holds one record for each."""

    global_step: int = 0
    log_history: list[dict] = field(default_factory=list)


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


class DVPOTrainer:
    """Trains a causal LM by any method of `METHODS`.

    Args:
        model: causal LM of `transformers`; trained in place. A frozen copy becomes the reference policy.
        reward_funcs: one function or several, f(prompts, completions, **columns) -> list of floats; several are summed.
            None says that there is no reward: the sum is over the functions that have one, and what becomes of a
            response for which none has is said by `args.missing_rewards`. NaN is an error.
        args: settings. train_dataset: `datasets.Dataset` (or list of records) with a column `prompt`; every other
            column reaches the reward functions.
        processing_class: the tokenizer. critic: a pretrained critic (default: a new one by `args.critic`).
        log_funcs: {name: reward function} that are scored and logged, never learned from (the truth under noise).
        accelerator: default: one on the device that Accelerate finds.
        reply: (record, transcript so far) -> what a user or a tool says next, None where the dialogue is over: makes
            dialogues of completions (see `rollouts.converse`), in which only the policy's own tokens are learned from.

    Attributes:
        actor: what answers prompts: the trained policy, or the base policy with logits perturbed by Q values.
    """

    def __init__(
        self,
        model,
        reward_funcs,
        args: DVPOConfig | None = None,
        train_dataset=None,
        processing_class=None,
        critic: Critic | QCritic | None = None,
        log_funcs: dict[str, Callable] | None = None,
        accelerator: Accelerator | None = None,
        reply: Callable | None = None,
    ):
        self.args = args = resolve(args or DVPOConfig())
        self.method = METHODS[args.method]
        self.accelerator = accelerator or Accelerator()
        if self.accelerator.num_processes > 1:
            raise NotImplementedError("several processes are not supported yet: losses are averaged over one process")
        if not train_dataset or processing_class is None:
            raise ValueError("train_dataset (at least one record) and processing_class (the tokenizer) are needed")
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self.log_funcs, self.reply = log_funcs or {}, reply
        self.processing_class = processing_class
        self.columns = list(train_dataset.column_names if hasattr(train_dataset, "column_names") else train_dataset[0])
        if "prompt" not in self.columns:
            raise ValueError(f"train_dataset has no column 'prompt'; it has {self.columns}")
        self.data = train_dataset
        self.reference = copy.deepcopy(model).to(self.accelerator.device).eval().requires_grad_(False)
        self.policy, self.policy_optimizer = self._prepare(model, args.learning_rate)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type, self.policy_optimizer.optimizer, args.warmup_steps, args.max_steps
        )
        self.critic, self.actor = None, self.policy
        if self.method.critic is not None:
            fresh = build_critic(model, args.critic, args.seed)
            if critic is not None and shapes(critic) != shapes(fresh):
                raise ValueError(f"the critic that was passed is none of kind {args.critic.kind} as args.critic has it")
            self.critic, self.critic_optimizer = self._prepare(critic or fresh, args.critic.learning_rate)
        if self.method.offline:
            self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
            if args.extraction == "perturbed":
                self.actor = PerturbedPolicy(self.policy, self.critic, args.perturbation)
        self.state = TrainerState()

    def _prepare(self, module, learning_rate: float):
        return self.accelerator.prepare(module, torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True))

    def _generator(self, purpose: str, device="cpu") -> torch.Generator:
        """A generator that depends on (seed, step, purpose) alone."""
        return generator_for(self.args.seed, purpose, self.state.global_step, device=device)

    # ---- the loop ----

    def train(self, checkpoint: str | Path | None = None, save_steps: int = 20, progress: bool = True) -> TrainerState:
        """Runs to `args.max_steps`.

        Args:
            checkpoint: a file for the whole state, written every `save_steps` steps and where a reward function fails;
                read first where it exists.

        Raises:
            RewardError: of `rewards.call`; with a checkpoint, the same call goes on at the step that failed.
        """
        if checkpoint and Path(checkpoint).exists():
            self.load_state(checkpoint)
        done = self.state.global_step
        for _ in tqdm(
            range(done, self.args.max_steps),
            desc=self.args.method,
            initial=done,
            total=self.args.max_steps,
            disable=not progress,
            mininterval=2,
        ):
            try:
                self.step()
            except RewardError:  # before this step has changed anything: what was learned so far is kept
                if checkpoint:
                    self.save_state(checkpoint)
                raise
            if checkpoint and self.state.global_step % save_steps == 0:
                self.save_state(checkpoint)
        return self.state

    def step(self) -> dict[str, float]:
        """One iteration; returns (and appends to `state.log_history`) its diagnostics.

        Where every reward is missing nothing is learned: `missing` is 1 in the logs, and they hold no losses.
        """
        rollouts, columns = self.sample(self.reference if self.method.offline else self.actor)
        rewards = score(self.reward_funcs, rollouts.prompts, rollouts.completions, columns, self.state)
        logs = {"step": self.state.global_step, "reward": rewards.nanmean().item()}
        without = rewards.isnan()
        if without.all():
            logs |= self.describe(rollouts, columns, None)
        else:
            kept, kept_rewards, places = self.scored(rollouts, rewards)
            x, reference_logprobs = self.examine(kept, kept_rewards, places)
            logs |= self.describe(rollouts, columns, x)
            advantages, targets = self.method.advantage(x, self.args)
            logs |= self.update(kept, advantages.detach(), targets, x.values, reference_logprobs, x.missing)
            if self.method.offline:
                self.follow()
        if self.actor is self.policy:
            self.scheduler.step()  # by iterations, those without any reward included
        logs["missing"] = without.float().mean().item()
        self.state.global_step += 1
        self.state.log_history.append(logs)
        return logs

    def sample(self, policy=None, purpose: str = "sampling") -> tuple[Rollouts, dict[str, list]]:
        """Completions of this step's prompts by `policy` (default: the actor); the other columns of their records."""
        size, group = self.args.generation_batch_size, self.args.num_generations if self.method.groups else 1
        generator = self._generator("prompts")
        picks = torch.randint(len(self.data), (size // group,), generator=generator).tolist()
        records = [record for i in picks for record in [self.data[i]] * group]  # reading a record of a table is slow
        rollouts = sample(
            policy or self.actor,
            self.processing_class,
            records,
            self.args.max_completion_length,
            self.args.temperature,
            self._generator(purpose, self.accelerator.device),
            self.reply,
        )
        return rollouts, {c: [r[c] for r in records] for c in self.columns if c not in ("prompt", "completion")}

    def scored(self, rollouts: Rollouts, rewards: Tensor) -> tuple[Rollouts, Tensor, Tensor | None]:
        """The rollouts that take part in the update, their rewards, and their places if some have dropped out.

        Where `args.missing_rewards` is drop, those take part that have a reward; the others reach no loss and no
        statistic of the batch.
        """
        given = ~rewards.isnan()
        if self.args.missing_rewards == "bootstrap" or given.all():
            return rollouts, rewards, None
        places = given.nonzero().squeeze(-1)
        return rollouts.rows(places), rewards[places], places.to(self.accelerator.device)

    @torch.no_grad()
    def examine(self, rollouts: Rollouts, rewards: Tensor, places: Tensor | None = None) -> tuple[Experience, Tensor]:
        """What the networks say of the rollouts before the update: values and reference log-probabilities.

        Args:
            rewards: (B,); NaN where missing and to be bootstrapped. places: of `scored`.
        """
        tokens, rewards = rollouts.tokens, rewards.to(self.accelerator.device)
        missing = rewards.isnan()
        if self.method.clip_rewards:
            rewards = rewards.masked_scatter(~missing, cut_at_quantiles(rewards[~missing], self.args.reward_clip))
        reference, _ = token_logprobs(self.reference, tokens, self.args.temperature)
        critic = self.target_critic if self.method.offline else self.critic
        values = None if critic is None else monotone_outputs(critic, tokens)
        kl = rollouts.logprobs - reference
        return Experience(
            rewards.nan_to_num(0.0),
            tokens.mask,
            kl,
            values,
            self._generator("targets"),
            places,
            missing if missing.any() else None,
        ), reference

    def update(
        self,
        rollouts: Rollouts,
        advantages: Tensor,
        targets: Tensor | None,
        values: Tensor | QValues | None,
        reference_logprobs: Tensor,
        missing: Tensor | None = None,
    ) -> dict[str, float]:
        """`num_iterations` passes of mini-batches over the rollouts; returns means over the optimiser steps.

        Rollouts whose reward is `missing` teach the policy what the critic says of them, and the critic nothing: a
        target made of its own mean, a single number, would contract the distribution that it predicts.
        """
        tokens, records = rollouts.tokens, []
        device, generator, weights = tokens.mask.device, self._generator("batches"), None
        if self.critic is not None:
            weights = bootstrap_weights(self.args.critic, len(tokens), self._generator("bootstrap"))
            weights = weights if weights is None else weights.to(device)
        old = values if isinstance(values, Tensor) else None
        for _ in range(self.args.num_iterations):
            order = torch.randperm(len(tokens), generator=generator).to(device)
            for rows in order.chunk(self.args.num_mini_batches):
                logs, known = {}, rows if missing is None else rows[~missing[rows]]
                if self.critic is not None and len(known):
                    logs |= self.update_critic(tokens, known, targets, old, weights)
                if self.actor is self.policy:
                    logs |= self.update_policy(tokens, rows, rollouts.logprobs, advantages, reference_logprobs)
                records.append(logs)
        names = dict.fromkeys(name for logs in records for name in logs)
        return {name: float(np.mean([logs[name] for logs in records if name in logs])) for name in names}

    def update_critic(self, *batch) -> dict[str, float]:
        """One optimiser step of the critic; from `tokens` on the arguments of `updates.update_critic`."""
        return updates.update_critic(self.critic, self.critic_optimizer, *batch, self.args, self.accelerator)

    def update_policy(self, *batch) -> dict[str, float]:
        """One optimiser step of the policy; from `tokens` on the arguments of `updates.update_policy`."""
        return updates.update_policy(self.policy, self.policy_optimizer, *batch, self.args, self.accelerator)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the target critic a step towards the critic."""
        for target, source in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(source, self.args.critic.q.target_rate)

    @torch.no_grad()
    def describe(self, rollouts: Rollouts, columns: dict[str, list], x: Experience | None) -> dict[str, float]:
        """Diagnostics of what the actor writes (sampled for this alone, and never scored, where rollouts are the base
        policy's), and of the critic on the rollouts; nan where it does not apply.

        Args:
            rollouts, columns: all of them, those without reward included. x: of those that take part, None if none.
        """
        nan, shown = float("nan"), rollouts
        kl = nan if x is None else masked_mean(x.kl, x.mask).item()
        if self.method.offline:
            shown, columns = self.sample(self.actor, "watching")
            ratio = shown.logprobs - token_logprobs(self.reference, shown.tokens, self.args.temperature)[0]
            kl = masked_mean(ratio, shown.tokens.mask).item()
        logs = {
            name: score([f], shown.prompts, shown.completions, columns, self.state).nanmean().item()
            for name, f in self.log_funcs.items()
        }
        logs |= {
            "kl": kl,
            "length": shown.tokens.mask.sum(1).float().mean().item(),
            "flat_groups": nan,
            "explained_variance": nan,
        }
        if x is not None and self.method.groups:
            size = self.args.num_generations
            groups = x.rewards.view(-1, size) if x.places is None else by_group(x.rewards, size, x.places)
            groups = groups[(~groups.isnan()).any(1)]
            low, high = groups.nan_to_num(math.inf).amin(1), groups.nan_to_num(-math.inf).amax(1)
            logs["flat_groups"] = (high <= low).float().mean().item()
        if x is not None and x.values is not None:
            known = x.mask if x.missing is None else x.mask & ~x.missing[:, None]
            returns = returns_to_go(token_rewards(x, self.args), x.mask, self.args.gamma)[known]
            error = returns - mean_values(x.values)[known]
            logs["explained_variance"] = (1 - error.var() / returns.var().clamp(min=1e-12)).item()
        return logs

    # ---- the state ----

    def state_dict(self) -> dict:
        """Everything that the next step depends on, as one object."""
        parts = {"policy": self.policy, "policy_optimizer": self.policy_optimizer, "scheduler": self.scheduler}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        if self.method.offline:
            parts["target_critic"] = self.target_critic
        return {"state": vars(self.state).copy(), **{k: m.state_dict() for k, m in parts.items()}}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self.state = TrainerState(**copy.deepcopy(state["state"]))
        for name, value in state.items():
            if name != "state":
                getattr(self, name).load_state_dict(value)

    def save_state(self, path: str | Path) -> None:
        """Writes the state so that a file under this name is always whole."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(path).with_suffix(".tmp")
        torch.save(self.state_dict(), scratch)
        os.replace(scratch, path)

    def load_state(self, path: str | Path) -> None:
        self.load_state_dict(torch.load(path, map_location=self.accelerator.device, weights_only=True))
