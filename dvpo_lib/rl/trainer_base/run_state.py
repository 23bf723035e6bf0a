"""State of a run: optimisers and schedules, progress, modes, randomness and logs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dvpo_lib.common.seeds import generator_for, seed_for
from dvpo_lib.rl.estimators import Experience
from dvpo_lib.rl.methods import Method
from dvpo_lib.rl.sampling.rollouts import Rollouts
from dvpo_lib.rl.trainer_base.completion_table import CompletionTable
from dvpo_lib.rl.trainer_base.network_outputs import ScoringTrainer
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE, Processes
from dvpo_lib.rl.trainer_base.parallel.sharding import add_up_shards, shard_network, without_ddp
from dvpo_lib.rl.trainer_base.parallel.shared_steps import check_weights
from dvpo_lib.rl.trainer_base.prompts import PromptMeans, PromptStream
from dvpo_lib.rl.updates import TrainingDiverged


class RunningTrainer(ScoringTrainer):
    """What a run needs beside its loop; the constructor is `PreparedTrainer`'s.

    Attributes:
        method: The row of METHODS.
        prompts: The training prompts.
        group_size: Completions a prompt.
        table: The latest completions.
        ends: Token ids that end a response.
        processes: Those of the run.
    """

    method: Method
    prompts: PromptStream
    group_size: int
    table: CompletionTable
    ends: list[int]
    processes: Processes = ALONE

    # ---- optimisers and schedules ----

    def make_ready(self, checkpoint: str | None = None) -> None:
        """Optimisers and schedule of `total_steps`, once before the first step of a run; read from a checkpoint."""
        if checkpoint is None and self.lr_scheduler is not None and not self.is_in_train:
            return
        with without_ddp(self.accelerator):
            self._prepare_for_training(self.total_steps(), None, checkpoint)
        if self.critic is not None and self.critic_optimizer is None:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.critic)
            optimizer = kind(self._critic_groups(), **{**arguments, "lr": self.args.critic.learning_rate})
            if self.critic.backbone is None and self.is_fsdp_enabled:  # small heads, the same in all processes
                self.critic_optimizer = self.accelerator.prepare_optimizer(optimizer)
            else:
                with without_ddp(self.accelerator):
                    self.critic, self.critic_optimizer = self.accelerator.prepare(self.critic, optimizer)
        if self.is_fsdp_enabled:
            shard_network(self.accelerator, self.reference)
            add_up_shards(self.model, self.critic, self.reference)

    def _critic_groups(self) -> list[dict]:
        """The critic's trained parameters with `weight_decay` and, of norms and biases, without, as the policy's."""
        decayed = set(self.get_decay_parameter_names(self.critic))
        trained = [(name, p) for name, p in self.critic.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in trained if (name in decayed) == decay], "weight_decay": rate}
            for decay, rate in ((True, self.args.weight_decay), (False, 0.0))
        ]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The schedule of `transformers`, but no step is taken at learning rate 0.

        During warm-up step k has the rate of step k + 1 there; `constant` has a warm-up, too.
        """
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        warmup = self.args.get_warmup_steps(num_training_steps)
        given = self.args.lr_scheduler_type
        if warmup and given == "constant":
            self.args.lr_scheduler_type = type(given)("constant_with_warmup")
        try:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args.lr_scheduler_type = given
        if warmup and isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_without_zero(factor, warmup) for factor in scheduler.lr_lambdas]
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["lr"] = base * factor(0)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
        return scheduler

    @property
    def policy_optimizer(self):
        """Its optimiser."""
        return self.optimizer

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps of one pass over the prompts; of the whole run if their number is not known."""
        if self.prompts.size is None:
            return self.args.max_steps
        prompts = self.args.generation_batch_size // self.group_size
        return self.prompts.size / prompts * self.args.steps_per_iteration

    def total_steps(self) -> int:
        """Optimiser steps of the run: `max_steps`, or whole iterations that cover `num_train_epochs`.

        Raises:
            ValueError: If the dataset has no length and `max_steps` is not set.
        """
        if self.args.max_steps > 0:
            return self.args.max_steps
        iterations = self.args.num_train_epochs * self.steps_per_epoch / self.args.steps_per_iteration
        return math.ceil(iterations - 1e-9) * self.args.steps_per_iteration

    # ---- progress ----

    def _begin(self, checkpoint: str | None, trial) -> float:
        """Progress, optimisers and, from a checkpoint, everything else as it was; returns the number of completions."""
        args, steps = self.args, self.total_steps()
        epochs = math.ceil(steps / self.steps_per_epoch)
        self._init_training_state(steps, max(1, math.ceil(self.steps_per_epoch)), epochs, checkpoint, trial)
        self.make_ready(checkpoint)
        self.pending = None
        self.prompt_means = PromptMeans()
        self.engine.forget_weights()
        self._metrics["train"].clear()
        self._tr_loss, self._total_loss_scalar = torch.tensor(0.0, device=args.device), 0.0
        self._initial_global_step = self._globalstep_last_logged = self.state.global_step
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        if checkpoint is not None:
            self._load_own_state(Path(checkpoint))
            self._load_rng_state(checkpoint)
        return steps / args.steps_per_iteration * args.generation_batch_size

    def _after_step(self, logs: dict[str, float], learning_rate: float, trial, ignore_keys, start: float) -> None:
        """Callbacks, logs, evaluation and checkpoints after an optimiser step, as in `transformers.Trainer`."""
        for name, value in logs.items():
            self.log_metric(name, value)
        self._tr_loss += logs.get("policy_loss", logs.get("critic_loss", 0.0))
        norm = logs.get("policy_grad_norm", logs.get("critic_grad_norm"))
        before = self.state.epoch or 0.0
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self.processes.agree_on_flags(self.control)
        rest = (norm, self.model, trial, self.state.epoch, ignore_keys, start)
        self._maybe_log_save_evaluate(self._tr_loss, *rest, learning_rate=learning_rate)
        done = self.state.global_step >= self.state.max_steps
        if int(self.state.epoch + 1e-9) > int(before + 1e-9) or done:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(self._tr_loss, *rest, learning_rate=learning_rate)
            if not done:
                self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)

    def _finalize_training(self, trial, num_train_samples, start_time):
        """As in `transformers.Trainer`, but `train_loss` is the mean of all steps, before a resumption, too."""
        done, here = self.state.global_step, self.state.global_step - self._initial_global_step
        if 0 < here < done:  # the base class divides the sum by the steps of this call
            rest = self._tr_loss.item()
            self._total_loss_scalar = (self._total_loss_scalar + rest) * here / done - rest
        return super()._finalize_training(trial, num_train_samples, start_time)

    # ---- rewards of earlier iterations ----

    def with_prompt_means(self, x: Experience, rollouts: Rollouts) -> Experience:
        """The experience with the means of its prompts' rewards, these included, if the read-out needs them."""
        if self.args.readout.stand_in != "prompt_mean":
            return x
        for part in self.processes.gather_objects((rollouts.prompts, x.rewards.tolist())):
            self.prompt_means.add(*part)
        return replace(x, prompt_means=x.rewards.new_tensor(self.prompt_means.of(rollouts.prompts)))

    # ---- divergence ----

    @contextmanager
    def _divergence_named(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:  # `NotFiniteError`, or one of the losses' own
            args = self.args
            raise TrainingDiverged(
                f"{args.method}, seed {args.seed}, step {self.state.global_step}: {error}. Training stops before the "
                f"weights are spoilt; lower learning_rate ({args.learning_rate}) or raise beta"
            ) from error

    def check_networks(self) -> None:
        """Raises:
        TrainingDiverged: If a weight of the policy or the critic is not finite.
        """
        with self._divergence_named(), self.processes.together():
            for network in (self.model, self.critic):
                if network is not None:
                    check_weights(network)

    def _save_checkpoint(self, model, trial) -> None:
        self.check_networks()  # no checkpoint holds what cannot be gone on from
        super()._save_checkpoint(model, trial)

    # ---- modes and randomness ----

    @property
    def iteration(self) -> int:
        """Number of the generation batch that is learned from."""
        return self.state.global_step // self.args.steps_per_iteration

    def _generator(self, purpose: str, device="cpu") -> torch.Generator:
        """A generator that depends on (seed, iteration, purpose) alone."""
        return generator_for(self.args.seed, purpose, self.iteration, device=device)

    @contextmanager
    def dropout_stream(self) -> Iterator[None]:
        """Global generators seeded by (seed, step, process) if an update uses dropout; then they are as before."""
        if self.args.disable_dropout:
            yield
            return
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            place = [self.processes.index] if self.processes.index else []
            torch.manual_seed(seed_for(self.args.seed, "dropout", self.state.global_step, *place))
            yield

    def terminated(self, rollouts: Rollouts) -> Tensor:
        """(B,) bool, responses that ended by themselves, not by their length."""
        tokens = rollouts.tokens
        ids, real = (x[:, -tokens.completion_length :].cpu() for x in (tokens.input_ids, tokens.attention_mask))
        last = ids.gather(1, (real.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        return torch.isin(last, torch.tensor(self.ends)) & real.any(1)

    # ---- logs ----

    def log_metric(self, name: str, value: float) -> None:
        """A number that is averaged until the next log, for reward functions, too."""
        self._metrics["train"][name].append(float(value))

    @contextmanager
    def separate_logs(self) -> Iterator[dict[str, list[float]]]:
        """Metrics by name that reward functions log inside, apart from the training's; their columns are dropped."""
        kept = self._metrics, self.table
        self._metrics, self.table = {"train": defaultdict(list)}, CompletionTable(0)
        try:
            yield self._metrics["train"]
        finally:
            self._metrics, self.table = kept

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs with the means of all metrics since the last log; None if a metric applied nowhere."""
        if "loss" in logs or "train_loss" in logs:
            for name, values in self._metrics["train"].items():
                known = [value for value in values if not math.isnan(value)]
                logs[name] = sum(known) / len(known) if known else None
            self._metrics["train"].clear()
            if self.args.log_completions and self.is_world_process_zero():
                folder = Path(self.args.output_dir) / "completions"
                self.table.write(
                    folder, self.state.global_step, self.args.num_completions_to_print, self.args.report_to
                )
        super().log(logs, start_time)

    @property
    def _logs(self) -> dict:
        return self.table.columns


def _without_zero(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    return lambda step: factor(step + 1) if step < warmup else factor(step)
