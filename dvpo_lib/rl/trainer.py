"""One trainer for every method: sample, score, clip, build experience, estimate advantages, update critic and policy.

Randomness derives from (seed, step, purpose), never from global generators. `state_dict()` is the whole state: a
restored trainer continues bit for bit. Not supported: several processes, checkpoint rotation, logging services.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_scheduler

from dvpo_lib.common.seeds import generator_for
from dvpo_lib.functional.advantages import clip_at_quantiles
from dvpo_lib.models.critic import Critic, build_critic, parameter_shapes
from dvpo_lib.models.critic_training import monotone_outputs
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.q_critic import PerturbedPolicy, QCritic
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.diagnostics import NOT_APPLICABLE, critic_explained_variance, flat_group_share, mean_kl
from dvpo_lib.rl.estimators import Experience
from dvpo_lib.rl.methods import METHODS, resolve_settings
from dvpo_lib.rl.rewards import RewardError, score_completions
from dvpo_lib.rl.rollouts import Rollouts, sample_rollouts
from dvpo_lib.rl.state import TrainerState, write_whole
from dvpo_lib.rl.updates import mean_records, response_weights, update_critic, update_policy


class DVPOTrainer:
    """Trains a causal LM by any method of `METHODS`.

    Args:
        model: Causal LM of `transformers`; trained in place. A frozen copy becomes the reference policy.
        reward_funcs: One function or several, f(prompts, completions, **columns) -> list of floats, which are summed.
            None is a missing reward, left out of the sum; NaN is an error. `args.missing_rewards` decides about
            responses for which every function returns None.
        args: Settings; default `DVPOConfig()`.
        train_dataset: `datasets.Dataset` or list of records with `prompt`; other columns reach the reward functions.
        processing_class: The tokenizer.
        critic: A pretrained critic; default a new one by `args.critic`.
        log_funcs: {name: reward function} to log and never learn from (the truth under noise).
        accelerator: Default: one on the device that Accelerate finds.
        reply: (record, transcript so far) -> the next turn of a user or tool, None at the end of a dialogue. Makes
            completions dialogues (see `sample_dialogues`); only the policy's own tokens are learned from.

    Attributes:
        actor: The policy that answers prompts: the trained one, or the base policy with logits perturbed by Q values.

    Example:
        >>> trainer = DVPOTrainer(model, reward, DVPOConfig(method="dvpo"), records, tokenizer)
        >>> trainer.train().log_history[-1]["reward"]
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
        self.args = args = resolve_settings(args or DVPOConfig())
        self.method = METHODS[args.method]
        self.accelerator = accelerator or Accelerator()
        if self.accelerator.num_processes > 1:
            raise NotImplementedError("several processes are not supported: losses are averaged over one process")
        if not train_dataset or processing_class is None:
            raise ValueError("train_dataset (at least one record) and processing_class (the tokenizer) are required")
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
            if critic is not None and parameter_shapes(critic) != parameter_shapes(fresh):
                raise ValueError(f"the critic does not fit args.critic (kind {args.critic.kind})")
            self.critic, self.critic_optimizer = self._prepare(critic or fresh, args.critic.learning_rate)
        if self.method.offline:
            self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
            if args.extraction == "perturbed":
                self.actor = PerturbedPolicy(self.policy, self.critic, args.perturbation)
        self.state = TrainerState()

    def _prepare(self, module, learning_rate: float):
        """The module and its Adam optimiser on the accelerator."""
        return self.accelerator.prepare(module, torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True))

    def _generator(self, purpose: str, device="cpu") -> torch.Generator:
        """A generator that depends on (seed, step, purpose) alone."""
        return generator_for(self.args.seed, purpose, self.state.global_step, device=device)

    # ---- the loop ----

    def train(self, checkpoint: str | Path | None = None, save_steps: int = 20, progress: bool = True) -> TrainerState:
        """Trains until `args.max_steps`.

        Args:
            checkpoint: File of the whole state, written every `save_steps` steps and when a reward function fails.
                Training continues from it if it exists.
            save_steps: Steps between two checkpoints.
            progress: Shows a progress bar if true.

        Raises:
            RewardError: If a reward function fails. With a checkpoint, the same call continues at that step.
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
            except RewardError:  # this step has changed nothing yet
                if checkpoint:
                    self.save_state(checkpoint)
                raise
            if checkpoint and self.state.global_step % save_steps == 0:
                self.save_state(checkpoint)
        return self.state

    def step(self) -> dict[str, float]:
        """One iteration; returns its diagnostics and appends them to `state.log_history`.

        If every reward is missing, nothing is learned: `missing` is 1 in the logs, and they hold no losses.
        """
        rollouts, columns = self.sample(self.reference if self.method.offline else self.actor)
        texts = (rollouts.prompts, rollouts.completions, columns)
        rewards = score_completions(self.reward_funcs, *texts, self.state)  # (B,), NaN if missing
        logs = {"step": self.state.global_step, "reward": rewards.nanmean().item()}
        rewards = self.clip_rewards(rewards)
        experience = self.build_experience(rollouts, rewards)
        logs |= self.describe(rollouts, columns, experience)
        if experience.known.any():
            advantages, targets = self.method.advantage(experience, self.args)
            logs |= self.update(experience, advantages.detach(), targets)
            if self.method.offline:
                self.update_target_critic()
        if self.actor is self.policy:
            self.scheduler.step()  # counts iterations, those without any reward included
        logs["missing"] = rewards.isnan().float().mean().item()
        self.state.global_step += 1
        self.state.log_history.append(logs)
        return logs

    def sample(self, policy=None, purpose: str = "sampling") -> tuple[Rollouts, dict[str, list]]:
        """Samples completions of this step's prompts.

        Args:
            policy: Default: the actor.
            purpose: Name of the random stream.

        Returns:
            (rollouts, {name: B values} of the records' other columns).
        """
        size, group = self.args.generation_batch_size, self.args.num_generations if self.method.groups else 1
        generator = self._generator("prompts")
        picks = torch.randint(len(self.data), (size // group,), generator=generator).tolist()
        records = [record for i in picks for record in [self.data[i]] * group]  # a record of a table is slow to read
        rollouts = sample_rollouts(
            policy or self.actor,
            self.processing_class,
            records,
            self.args.max_completion_length,
            self.args.temperature,
            self._generator(purpose, self.accelerator.device),
            self.reply,
        )
        return rollouts, {c: [r[c] for r in records] for c in self.columns if c not in ("prompt", "completion")}

    def clip_rewards(self, rewards: Tensor) -> Tensor:
        """(B,) rewards, clipped to quantiles of the batch if the method clips rewards. NaN stays NaN."""
        return clip_at_quantiles(rewards, self.args.reward_clip) if self.method.clip_rewards else rewards

    @torch.no_grad()
    def build_experience(self, rollouts: Rollouts, rewards: Tensor) -> Experience:
        """Values and reference log-probabilities of scored rollouts, before the update.

        Args:
            rewards: (B,) as the method sees them; NaN if missing.
        """
        tokens, rewards = rollouts.tokens, rewards.to(self.accelerator.device)
        reference, _ = token_logprobs(self.reference, tokens, self.args.temperature)
        critic = self.target_critic if self.method.offline else self.critic
        values = None if critic is None else monotone_outputs(critic, tokens)
        if self.args.missing_rewards == "drop":
            tokens = replace(tokens, mask=tokens.mask & ~rewards.isnan()[:, None])
        return Experience(tokens, rollouts.logprobs, reference, rewards, values, self._generator("targets"))

    def update(self, experience: Experience, advantages: Tensor, targets: Tensor | None) -> dict[str, float]:
        """`num_iterations` passes of mini-batches over the batch; returns means over the optimiser steps.

        A response without reward teaches the critic nothing: a target made of the critic's own mean, a single number,
        would contract the distribution that it predicts.

        Args:
            experience: The batch before the update.
            advantages: (B, T).
            targets: (B, T, K) of the critic; None without a critic.
        """
        args, accelerator, x, records = self.args, self.accelerator, experience, []
        active, generator, weights = x.active, self._generator("batches"), None
        if self.critic is not None:
            weights = response_weights(x, args.critic, self._generator("bootstrap"))
        for _ in range(args.num_iterations):
            order = active[torch.randperm(len(active), generator=generator).to(active.device)]
            for rows in order.chunk(args.num_mini_batches):
                logs, scored = {}, rows[x.known[rows]]
                if self.critic is not None and len(scored):
                    logs |= update_critic(
                        self.critic, self.critic_optimizer, x, scored, targets, weights, args, accelerator
                    )
                if self.actor is self.policy:
                    logs |= update_policy(self.policy, self.policy_optimizer, x, rows, advantages, args, accelerator)
                records.append(logs)
        return mean_records(records)

    @torch.no_grad()
    def update_target_critic(self) -> None:
        """Moves the target critic a share `target_rate` of the way to the critic."""
        for target, source in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(source, self.args.critic.q.target_rate)

    @torch.no_grad()
    def describe(self, rollouts: Rollouts, columns: dict[str, list], experience: Experience) -> dict[str, float]:
        """Diagnostics of the actor's responses and of the critic.

        An offline method learns from rollouts of the base policy. Its actor's responses are sampled for the logs alone.

        Args:
            rollouts: The batch of `sample`.
            columns: Its other columns.
            experience: The batch before the update.
        """
        kl, mask = experience.kl, experience.mask
        if self.method.offline:
            rollouts, columns = self.sample(self.actor, "watching")
            reference, _ = token_logprobs(self.reference, rollouts.tokens, self.args.temperature)
            kl, mask = rollouts.logprobs - reference, rollouts.tokens.mask
        texts = (rollouts.prompts, rollouts.completions, columns)
        logged = {name: score_completions([f], *texts, self.state) for name, f in self.log_funcs.items()}
        groups = self.args.num_generations if self.method.groups else None
        return {name: rewards.nanmean().item() for name, rewards in logged.items()} | {
            "kl": mean_kl(kl, mask),
            "length": rollouts.tokens.mask.sum(1).float().mean().item(),
            "flat_groups": flat_group_share(experience.rewards, groups) if groups else NOT_APPLICABLE,
            "explained_variance": critic_explained_variance(experience, self.args),
        }

    # ---- the state ----

    def state_dict(self) -> dict:
        """The state that the next step depends on, as one object."""
        parts = {"policy": self.policy, "policy_optimizer": self.policy_optimizer, "scheduler": self.scheduler}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        if self.method.offline:
            parts["target_critic"] = self.target_critic
        return {"state": vars(self.state).copy(), **{k: m.state_dict() for k, m in parts.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Restores a state of `state_dict`."""
        self.state = TrainerState(**copy.deepcopy(state["state"]))
        for name, value in state.items():
            if name != "state":
                getattr(self, name).load_state_dict(value)

    def save_state(self, path: str | Path) -> None:
        """Writes `state_dict` to a file, whole or not at all."""
        write_whole(self.state_dict(), path)

    def load_state(self, path: str | Path) -> None:
        """Restores the state from a file of `save_state`."""
        self.load_state_dict(torch.load(path, map_location=self.accelerator.device, weights_only=True))
