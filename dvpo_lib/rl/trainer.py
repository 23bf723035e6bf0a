"""One trainer for every method: sample, score, estimate advantages, update critic and policy.

    trainer = DVPOTrainer(model, reward_funcs, args=DVPOConfig(method="dvpo"), train_dataset=data)
    trainer.train()

It is a `transformers.Trainer` with TRL's arguments: callbacks, schedules, trackers, evaluation, saving and the hub are
the base class's, the loop is this file's. Randomness is derived from (seed, step, purpose), never from global
generators; a resumed run goes on bit for bit. Left out: several processes (refused).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.functional.advantages import clip_at_quantiles
from dvpo_lib.functional.final_states import split_final
from dvpo_lib.models.critic import monotone_outputs
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.diagnostics import batch_metrics, mean_kl
from dvpo_lib.rl.estimators import Experience, advantages_of
from dvpo_lib.rl.rewards import RewardError, Scores, score_completions, warn_of_missing
from dvpo_lib.rl.sampling.rollouts import Rollouts, sample_in_parts
from dvpo_lib.rl.trainer_base.construction import PreparedTrainer
from dvpo_lib.rl.trainer_base.evaluation_loop import evaluate_prompts
from dvpo_lib.rl.updates import Batch, NotFiniteError, batch_of, update_critic, update_policy


class DVPOTrainer(PreparedTrainer):
    """Trains a causal LM by any method of `METHODS`; arguments as of `PreparedTrainer`.

    Example:
        >>> trainer = DVPOTrainer("Qwen/Qwen3-0.6B", reward, DVPOConfig("out", method="ppo"), data)  # doctest: +SKIP
        >>> trainer.train(resume_from_checkpoint=True)  # doctest: +SKIP
    """

    # ---- the loop ----

    def _inner_training_loop(
        self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
    ):
        """Iterations (sample, score, estimate advantages, update) until `max_steps` optimiser steps are done."""
        start, samples = time.time(), self._begin(resume_from_checkpoint, trial)
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            batch = self.pending if self.pending is not None else self.collect_batch()
            for rows in self.rows_of_steps(batch):
                self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
                learning_rate = self._get_learning_rate()
                logs = self.update(batch, rows)
                self._after_step(logs, learning_rate, trial, ignore_keys_for_eval, start)
                if self.control.should_training_stop:
                    break
        self.check_networks()
        return self._finalize_training(trial, samples, start)

    def step(self) -> dict[str, float]:
        """One iteration without callbacks, logs and checkpoints; returns its metrics, means over its updates."""
        self.make_ready()
        batch = self.collect_batch()
        logs = [self.update(batch, rows) for rows in self.rows_of_steps(batch)]
        for record in logs:
            for name, value in record.items():
                self.log_metric(name, value)
        metrics = {name: float(np.mean(values)) for name, values in self._metrics["train"].items()}
        self._metrics["train"].clear()
        return metrics

    def collect_batch(self) -> Batch:
        """Samples, scores and evaluates a generation batch: all that its updates need."""
        with self._divergence_named(), self.scoring_modes():
            with self.behaviour_policy() as policy:
                rollouts, columns = self.sample(policy)
            scores = self._score_or_save(rollouts, columns)
            experience = self.build_experience(rollouts, scores)
            advantages, targets = advantages_of(self.method, experience, self.args)
            self.describe(rollouts, columns, scores, experience, advantages)
        self.pending = self.make_batch(experience, advantages, targets)
        return self.pending

    def make_batch(self, x: Experience, advantages: Tensor, targets: Tensor | None) -> Batch:
        """All that the updates on an experience read (see `batch_of`)."""
        return batch_of(x, advantages, targets, self.args, self._generator("bootstrap"))

    def rows_of_steps(self, batch: Batch) -> Iterator[Tensor]:
        """Rows of each optimiser step on the batch that is still to come; dropped responses are in none."""
        args, generator = self.args, self._generator("batches")
        active = batch.tokens.mask.any(1).nonzero().squeeze(-1)
        steps = args.steps_per_generation // args.gradient_accumulation_steps  # a pass
        orders = [torch.randperm(len(active), generator=generator) for _ in range(args.num_iterations)]
        done = self.state.global_step % args.steps_per_iteration
        plan = [active[part.to(active.device)] for order in orders for part in order.tensor_split(steps)][done:]
        for left, rows in zip(reversed(range(len(plan))), plan, strict=True):
            if not left:
                self.pending = None
            yield rows

    def update(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """One optimiser step of critic and policy on these rows of a batch.

        Responses without reward teach the critic nothing: a target made of its own mean, a single number, would
        contract the distribution that it predicts. An update without any response is skipped, and logged as such.
        """
        logs, scored = {}, rows[batch.known[rows]]
        if not len(rows):
            logs["skipped_update"] = 1.0
        with self._divergence_named(), self.dropout_stream():
            if self.critic is not None and len(scored):
                logs |= update_critic(self.critic, self.critic_optimizer, batch, scored, self.args, self.accelerator)
            if self.trains_policy and len(rows):
                logs |= update_policy(self.policy, self.optimizer, batch, rows, self.args, self.accelerator)
                self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        if self.trains_policy and not isinstance(self.lr_scheduler, ReduceLROnPlateau):  # which evaluations step
            self.lr_scheduler.step()
        self.state.global_step += 1
        if self.target_critic is not None and self.state.global_step % self.args.steps_per_iteration == 0:
            self.update_target_critic()
        if self.args.sync_ref_model and self.state.global_step % self.args.ref_model_sync_steps == 0:
            self.update_reference()
        return logs

    # ---- its parts ----

    def sample(self, policy=None, purpose: str = "sampling", records=None) -> tuple[Rollouts, dict[str, list]]:
        """Completions, and the other columns of their records.

        Args:
            policy: Default: the actor.
            records: Default: this iteration's, each as often as the method has completions a prompt.
        """
        if records is None:
            count = self.args.generation_batch_size // self.group_size
            found = self.prompts.take(self.iteration * count, count)
            records = [record for record in found for _ in range(self.group_size)]
        with self.accelerator.autocast(), self.scoring_modes():
            rollouts = sample_in_parts(
                self.actor if policy is None else policy,
                self.processing_class,
                records,
                self.args.max_completion_length,
                self.args.temperature,
                seed_for(self.args.seed, purpose, self.iteration),
                self.reply,
                part_size=self.args.sampling_batch_size,
                processors=self.filters,
                template=self.prompts.checks.template,
            )
        if not rollouts.logprobs.isfinite().all():
            raise NotFiniteError("log-probabilities of the sampled tokens are not finite")
        names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "completion"))
        return rollouts, {name: [record.get(name) for record in records] for name in names}

    def score(self, rollouts: Rollouts, columns: dict[str, list], funcs: dict[str, Callable] | None = None) -> Scores:
        """Rewards of completions.

        Args:
            funcs: Default: the reward functions, with their weights.
        """
        columns = {"terminated": self.terminated(rollouts).tolist(), **columns}
        columns |= {"completion_ids": rollouts.completion_ids()}
        columns |= {"log_extra": self.table.add_extra, "log_metric": self.log_metric}
        weights = self.args.reward_weights if funcs is None else None
        funcs = dict(zip(self.reward_func_names, self.reward_funcs)) if funcs is None else funcs
        return score_completions(funcs, rollouts.prompts, rollouts.completions, columns, self.state, weights)

    @torch.no_grad()
    def build_experience(self, rollouts: Rollouts, scores: Scores) -> Experience:
        """Values and log-probabilities of scored rollouts before the update, in micro-batches."""
        args, tokens = self.args, rollouts.tokens
        rewards, process = self._method_rewards(scores, tokens)
        with self.scoring_modes():
            old = rollouts.logprobs if args.old_logprobs == "sampler" else self.logprobs_of(self.policy, tokens)
            reference = self.reference_logprobs(tokens)
            critic = self.critic if self.target_critic is None else self.target_critic
            values = final = None
            if critic is not None:
                read = tokens.with_final_state() if args.critic.final_state else tokens
                values = self.by_micro_batch(lambda part: monotone_outputs(critic, part), read)
                values, final = split_final(values, tokens.mask) if args.critic.final_state else (values, None)
        takes_part = torch.full_like(rewards, bool((~rewards.isnan()).any()), dtype=torch.bool)  # none without a reward
        if args.missing_rewards == "drop":
            takes_part &= ~rewards.isnan()
        if args.mask_truncated_completions:
            takes_part &= self.terminated(rollouts).to(takes_part.device)
        tokens = Tokens(tokens.input_ids, tokens.attention_mask, tokens.mask & takes_part[:, None])
        return Experience(
            tokens, old, reference, rewards, values, self._generator("targets"), process, rollouts.logprobs, final
        )

    def _method_rewards(self, scores: Scores, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """(B,) rewards, clipped to quantiles of the batch if the method clips them, and (B, T) those by token."""
        device, rewards, process = tokens.mask.device, scores.rewards, scores.process
        if self.method.clip_rewards:
            rewards = clip_at_quantiles(rewards, self.args.reward_clip)
        return rewards.to(device), process if process is None else process.to(device)

    def reference_logprobs(self, tokens: Tokens) -> Tensor | None:
        """(B, T) log-probabilities under the reference policy; None without one."""
        if not self.has_reference:
            return None
        with self.reference_policy() as policy:
            return self.logprobs_of(policy, tokens)

    def behaviour_policy(self):
        """Context of the policy that rollouts come from: the actor, or the reference for offline methods."""
        return self.reference_policy() if self.method.offline else nullcontext(self.actor)

    def logprobs_of(self, policy, tokens: Tokens) -> Tensor:
        """(B, T) log-probabilities of the completions' tokens, by the forward pass that updates use."""
        return self.by_micro_batch(lambda part: token_logprobs(policy, part, self.args.temperature)[0], tokens)

    @torch.no_grad()
    def update_target_critic(self) -> None:
        """Moves the target critic a share `target_rate` of the way to the critic."""
        for target, source in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(source, self.args.critic.q.target_rate)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Samples, scores and judges completions of a dataset's prompts, for `evaluate`; nothing is learned."""
        with self._divergence_named(), self.separate_logs() as logged:
            output = evaluate_prompts(self, dataloader, metric_key_prefix)
            means = {f"{metric_key_prefix}_{name}": float(np.mean(values)) for name, values in logged.items()}
            return output._replace(metrics=output.metrics | means)

    # ---- bookkeeping ----

    def _score_or_save(self, rollouts: Rollouts, columns: dict[str, list]) -> Scores:
        """Rewards; if a function fails, what was learned so far is saved first."""
        try:
            scores = self.score(rollouts, columns)
        except RewardError:
            if self.is_in_train and self.args.save_strategy != "no":
                self._save_checkpoint(self.model, None)
            raise
        if scores.rewards.isnan().any() and not self._warned_of_missing:
            self._warned_of_missing = True
            warn_of_missing(scores.rewards, rollouts.prompts, rollouts.completions, columns)
        return scores

    def describe(self, rollouts: Rollouts, columns, scores: Scores, x: Experience, advantages: Tensor) -> None:
        """Metrics of a generation batch, and its rows in the table of completions.

        An offline method learns from rollouts of the base policy. Its actor's responses are sampled for the logs alone:
        they are never scored.
        """
        reward = batch_metrics(rollouts, scores, x, self.args, self.terminated(rollouts), self.group_size)
        watched = rollouts
        if self.method.offline:
            watched, columns = self.sample(self.actor, "watching")
            reward |= self._watched(watched)
        for name, value in (reward | self.watched_rewards(watched, columns)).items():
            self.log_metric(name, value)
        if self.args.log_completions:
            mean = torch.where(x.mask, advantages, 0.0).sum(1) / x.mask.sum(1).clamp(min=1)
            rewards = {name: values.tolist() for name, values in scores.by_function.items()}
            self.table.add(rollouts.prompts, rollouts.completions, rewards, mean.tolist())

    def _watched(self, rollouts: Rollouts) -> dict[str, float]:
        """Length and KL of the actor's responses."""
        tokens, reference = rollouts.tokens, self.reference_logprobs(rollouts.tokens)
        return {
            "kl": mean_kl(rollouts.logprobs - reference, tokens.mask),
            "completions/mean_length": tokens.mask.sum(1).float().mean().item(),
            "completions/clipped_ratio": 1 - self.terminated(rollouts).float().mean().item(),
        }

    def watched_rewards(self, rollouts: Rollouts, columns: dict[str, list]) -> dict[str, float]:
        """Means of `log_funcs` over completions."""
        return {
            name: self.score(rollouts, columns, {name: f}).rewards.nanmean().item()
            for name, f in self.log_funcs.items()
        }
