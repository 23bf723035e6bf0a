"""One trainer for every method: sample, score, estimate advantages, update critic and policy.

    trainer = DVPOTrainer(model, reward_funcs, args=DVPOConfig(method="dvpo"), train_dataset=data)
    trainer.train()

It is a `transformers.Trainer` with TRL's arguments: callbacks, schedules, trackers, evaluation, saving and the hub are
the base class's, the loop is this file's. Randomness is derived from (seed, step, purpose), never from global
generators; a resumed run goes on bit for bit. Any number of processes learns the same from the same batch: each holds
the rows that it sampled, statistics and losses are of the rows of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.functional.advantages import clip_at_quantiles
from dvpo_lib.models.tokens import Tokens, padding_id
from dvpo_lib.rl.diagnostics import batch_metrics, mean_kl
from dvpo_lib.rl.estimators import Experience, advantages_of
from dvpo_lib.rl.rewards import RewardError, Scores, warn_of_missing
from dvpo_lib.rl.sampling.engines import EngineError
from dvpo_lib.rl.sampling.rollouts import Rollouts, sample_in_parts
from dvpo_lib.rl.trainer_base.construction import PreparedTrainer
from dvpo_lib.rl.trainer_base.evaluation_loop import evaluate_prompts
from dvpo_lib.rl.trainer_base.parallel.processes import Processes
from dvpo_lib.rl.trainer_base.parallel.sharding import whole_weights
from dvpo_lib.rl.trainer_base.parallel.shared_scoring import score_on_processes
from dvpo_lib.rl.trainer_base.parallel.shared_steps import NotFiniteError
from dvpo_lib.rl.updates import Batch, batch_of, update_critic, update_policy


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
            experience = self.with_prompt_means(self.build_experience(rollouts, scores), rollouts)
            advantages, targets = advantages_of(self.method, experience, self.args)
            self.describe(rollouts, columns, scores, experience, advantages)
        self.pending = self.make_batch(experience, advantages, targets)
        return self.pending

    def make_batch(self, x: Experience, advantages: Tensor, targets: Tensor | None) -> Batch:
        """All that the updates on an experience read (see `batch_of`)."""
        return batch_of(x, advantages, targets, self.args, self._generator("bootstrap"))

    def rows_of_steps(self, batch: Batch) -> Iterator[Tensor]:
        """Rows of each optimiser step on the batch that is still to come; dropped responses are in none.

        Each run of S rows that take part gives one of them, drawn by lot, to each of the S steps of a pass: so every
        process, which holds such runs, has its share of every step.
        """
        args, generator, plan = self.args, self._generator("batches"), []
        steps = args.steps_per_generation // args.gradient_accumulation_steps  # a pass
        active = self.processes.gather(batch.tokens.mask.any(1))
        for _ in range(args.num_iterations):
            lots = torch.rand(-(-int(active.sum()) // steps), steps, generator=generator).argsort(1).flatten()
            drawn = torch.full(active.shape, -1, device=active.device)
            drawn[active] = lots[: active.sum()].to(active.device)
            plan += [(self.processes.own_rows(drawn) == step).nonzero().squeeze(-1) for step in range(steps)]
        plan = plan[self.state.global_step % args.steps_per_iteration :]
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
        some_scored, some = map(bool, self.processes.largest(len(scored), len(rows)))
        shared = (self.args, self.accelerator, self.processes)
        if not some:
            logs["skipped_update"] = 1.0
        with self._divergence_named(), self.dropout_stream():
            if self.critic is not None and some_scored:
                with whole_weights(self.read_by(self.critic)):
                    logs |= update_critic(self.critic, self.critic_optimizer, batch, scored, *shared)
            if self.trains_policy and some:
                logs |= update_policy(self.policy, self.optimizer, batch, rows, *shared)
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
            records: Default: this process' part of this iteration's, each as often as the method has completions a
                prompt.
        """
        policy, shared, rows = self.actor if policy is None else policy, records is None, range(len(records or ()))
        if shared:
            count = self.args.generation_batch_size // self.group_size
            found = self.processes.own_rows(self.prompts.take(self.iteration * count, count))
            records = [record for record in found for _ in range(self.group_size)]
            rows = self.processes.own_rows(range(self.args.generation_batch_size))
        with self.state_saved_on(EngineError), whole_weights(policy):
            with self.processes.together():
                self.engine.update_weights(policy, self.state.global_step)
            with self.accelerator.autocast(), self.scoring_modes(), self.processes.together():
                rollouts = sample_in_parts(
                    policy,
                    self.processing_class,
                    records,
                    self.args.max_completion_length,
                    self.args.temperature,
                    seed_for(self.args.seed, purpose, self.iteration),
                    self.reply,
                    part_size=self.args.sampling_batch_size,
                    rows=rows,
                    engine=self.engine,
                    cuts=self.args.sampling_cuts,
                    template=self.prompts.checks.template,
                )
                if not rollouts.logprobs.isfinite().all():
                    raise NotFiniteError("log-probabilities of the sampled tokens are not finite")
        if shared and self.processes.count > 1:  # one shape everywhere
            size = self.processes.largest(rollouts.tokens.prompt_length, rollouts.tokens.completion_length)
            rollouts = rollouts.padded(*size, padding_id(self.processing_class))
        names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "completion"))
        return rollouts, {name: [record.get(name) for record in records] for name in names}

    def score(
        self, rollouts: Rollouts, columns: dict[str, list], funcs: dict[str, Callable] | None = None, heard: bool = True
    ) -> Scores:
        """Rewards of completions.

        Args:
            funcs: Default: the reward functions, with their weights.
            heard: Whether what they log in this process counts.
        """
        columns = {"terminated": self.terminated(rollouts).tolist(), **columns}
        columns |= {"completion_ids": rollouts.completion_ids()}
        weights = self.args.reward_weights if funcs is None else None
        funcs = dict(zip(self.reward_func_names, self.reward_funcs)) if funcs is None else funcs
        how = (self.processes, self.args.rewards_on_main, heard)
        texts = (rollouts.prompts, rollouts.completions)
        scores, notes = score_on_processes(*how, funcs, *texts, columns, self.state, weights)
        for kind, name, value in notes:
            self.log_metric(name, value) if kind == "log_metric" else self.table.add_extra(name, value)
        return scores

    @torch.no_grad()
    def build_experience(self, rollouts: Rollouts, scores: Scores, processes: Processes | None = None) -> Experience:
        """Values and log-probabilities of scored rollouts before the update, in micro-batches.

        Args:
            processes: Whose rows make a batch with these; default: those of the run.
        """
        args, tokens, processes = self.args, rollouts.tokens, self.processes if processes is None else processes
        rewards, process = self._method_rewards(scores, tokens, processes)
        with self.scoring_modes():
            old = rollouts.logprobs if args.old_logprobs == "sampler" else self.logprobs_of(self.policy, tokens)
            reference = self.reference_logprobs(tokens)
            critic = self.critic if self.target_critic is None else self.target_critic
            values, final = (None, None) if critic is None else self.values_of(critic, tokens)
        known = bool((~processes.gather(rewards).isnan()).any())
        takes_part = torch.full_like(rewards, known, dtype=torch.bool)  # none without a reward
        if args.missing_rewards == "drop":
            takes_part &= ~rewards.isnan()
        if args.mask_truncated_completions:
            takes_part &= self.terminated(rollouts).to(takes_part.device)
        tokens = Tokens(tokens.input_ids, tokens.attention_mask, tokens.mask & takes_part[:, None])
        seed, sampled = seed_for(args.seed, "targets", self.iteration), rollouts.logprobs
        return Experience(tokens, old, reference, rewards, values, seed, process, sampled, final, processes)

    def _method_rewards(self, scores: Scores, tokens: Tokens, processes: Processes) -> tuple[Tensor, Tensor | None]:
        """(B,) rewards, clipped to quantiles of the batch if the method clips them, and (B, T) those by token."""
        device, rewards, process = tokens.mask.device, scores.rewards, scores.process
        if self.method.clip_rewards:
            rewards = processes.own_rows(clip_at_quantiles(processes.gather(rewards), self.args.reward_clip))
        if process is not None:  # the longest completion may be another process'
            process = pad(process, (0, tokens.completion_length - process.shape[1])).to(device)
        return rewards.to(device), process

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
        with self.state_saved_on(RewardError):
            scores = self.score(rollouts, columns)
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
            own = (rollouts.prompts, rollouts.completions, rewards, mean.tolist())
            for part in self.processes.gather_objects(own):
                self.table.add(*part)

    def _watched(self, rollouts: Rollouts) -> dict[str, float]:
        """Length and KL of the actor's responses."""
        tokens, everywhere = rollouts.tokens, self.processes.gather
        kl = rollouts.logprobs - self.reference_logprobs(tokens)
        return {
            "kl": mean_kl(everywhere(kl), everywhere(tokens.mask)),
            "completions/mean_length": everywhere(tokens.mask.sum(1)).float().mean().item(),
            "completions/clipped_ratio": 1 - everywhere(self.terminated(rollouts)).float().mean().item(),
        }

    def watched_rewards(self, rollouts: Rollouts, columns, processes: Processes | None = None) -> dict[str, float]:
        """Means of `log_funcs` over completions of these processes, by default of the run's."""
        everywhere = (self.processes if processes is None else processes).gather
        return {
            name: everywhere(self.score(rollouts, columns, {name: f}).rewards).nanmean().item()
            for name, f in self.log_funcs.items()
        }
