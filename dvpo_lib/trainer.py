"""One trainer for every method: sample, score, estimate advantages, update critic and policy.

    trainer = DVPOTrainer(model, reward_funcs, args=DVPOConfig(method="dvpo"), train_dataset=data,
                          processing_class=tokenizer)
    trainer.train()

Randomness is derived from (seed, step, purpose), never from global generators; the whole state is `state_dict()`: a
restored trainer goes on bit for bit. Left out: several processes (refused), checkpoint rotation, logging services.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from .advantages import returns_to_go
from .critics import bootstrap_weights, build_critic, critic_objective
from .methods import METHODS, DVPOConfig, Experience, token_rewards
from .models import Critic, Tokens, token_logprobs
from .policy_losses import aggregate, kl_estimate, masked_mean, policy_loss
from .quantiles import monotone
from .rollouts import Rollouts, generate

PURPOSES = ("prompts", "sampling", "targets", "bootstrap", "batches")


@dataclass
class TrainerState:
    """Where a run stands: `global_step` iterations are done; `log_history` holds one record for each."""

    global_step: int = 0
    log_history: list[dict] = field(default_factory=list)


def score(reward_funcs: Iterable[Callable], prompts: list[str], completions: list[str], columns: dict[str, list],
          state: TrainerState) -> Tensor:
    """(B,) sum of all reward functions.

    Raises:
        ValueError: a reward function returns the wrong number of rewards, or one that is not a finite number; the
            message names the function and the record.
        RuntimeError: a reward function raises; its error is chained.
    """
    total = np.zeros(len(prompts))
    for func in reward_funcs:
        name = getattr(func, "__name__", repr(func))
        try:
            rewards = list(func(prompts=prompts, completions=completions, trainer_state=state, **columns))
        except Exception as error:
            raise RuntimeError(f"reward function {name} raised at step {state.global_step}: {error!r}") from error
        if len(rewards) != len(prompts):
            raise ValueError(f"reward function {name} returned {len(rewards)} rewards for {len(prompts)} completions")
        for i, r in enumerate(rewards):
            if not isinstance(r, (int, float, np.number)) or not np.isfinite(r):
                raise ValueError(f"reward function {name} returned {r!r} for record {i} at step {state.global_step} "
                                 f"(prompt {prompts[i][:80]!r})")
        total += np.asarray(rewards, dtype=float)
    return torch.tensor(total, dtype=torch.float32)


class DVPOTrainer:
    """Trains a causal LM by any method of `METHODS`.

    Args:
        model: causal LM of `transformers`; trained in place. A frozen copy becomes the reference policy.
        reward_funcs: one function or several, f(prompts, completions, **columns) -> list of floats; several are summed.
        args: settings. train_dataset: `datasets.Dataset` (or list of records) with a column `prompt`; every other
            column reaches the reward functions.
        processing_class: the tokenizer. critic: a pretrained critic (default: a new one by `args.critic`).
        log_funcs: {name: reward function} that are scored and logged, never learned from (the truth under noise).
        accelerator: default: one on the device that Accelerate finds.
    """

    def __init__(self, model, reward_funcs, args: DVPOConfig | None = None, train_dataset=None, processing_class=None,
                 critic: Critic | None = None, log_funcs: dict[str, Callable] | None = None,
                 accelerator: Accelerator | None = None):
        self.args = args = args or DVPOConfig()
        if args.method not in METHODS:
            raise ValueError(f"unknown method {args.method!r}; there are {', '.join(METHODS)}")
        self.method = METHODS[args.method]
        self.accelerator = accelerator or Accelerator()
        if self.accelerator.num_processes > 1:
            raise NotImplementedError("several processes are not supported yet: losses are averaged over one process")
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self.log_funcs = log_funcs or {}
        self.processing_class = processing_class
        self.columns = list(train_dataset.column_names if hasattr(train_dataset, "column_names") else train_dataset[0])
        if "prompt" not in self.columns:
            raise ValueError(f"train_dataset has no column 'prompt'; it has {self.columns}")
        self.data = train_dataset
        if self.method.groups and args.generation_batch_size % args.num_generations:
            raise ValueError(f"generation_batch_size {args.generation_batch_size} is not a multiple of "
                             f"num_generations {args.num_generations}")
        self.reference = copy.deepcopy(model).to(self.accelerator.device).eval().requires_grad_(False)
        self.policy, self.policy_optimizer = self._prepare(model, args.learning_rate)
        self.critic = None
        if self.method.critic is not None:
            if args.critic.kind != self.method.critic:
                raise ValueError(f"method {args.method} needs a {self.method.critic} critic; critic.kind is "
                                 f"{args.critic.kind!r}")
            critic = critic or build_critic(model, args.critic, args.seed)
            self.critic, self.critic_optimizer = self._prepare(critic, args.critic.learning_rate)
        self.state = TrainerState()

    def _prepare(self, module, learning_rate: float):
        return self.accelerator.prepare(module, torch.optim.Adam(module.parameters(), lr=learning_rate))

    def _generator(self, purpose: str, device="cpu") -> torch.Generator:
        """A generator that depends on (seed, step, purpose) alone."""
        entropy = np.random.SeedSequence([self.args.seed, self.state.global_step, PURPOSES.index(purpose)])
        return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    # ---- the loop ----

    def train(self, checkpoint: str | Path | None = None, save_steps: int = 20, progress: bool = True) -> TrainerState:
        """Runs to `args.max_steps`.

        Args:
            checkpoint: a file for the whole state, written every `save_steps` steps; read first where it exists.
        """
        if checkpoint and Path(checkpoint).exists():
            self.load_state(checkpoint)
        done = self.state.global_step
        for _ in tqdm(range(done, self.args.max_steps), desc=self.args.method, initial=done,
                      total=self.args.max_steps, disable=not progress, mininterval=2):
            self.step()
            if checkpoint and self.state.global_step % save_steps == 0:
                self.save_state(checkpoint)
        return self.state

    def step(self) -> dict[str, float]:
        """One iteration; returns (and appends to `state.log_history`) its diagnostics."""
        rollouts, columns = self.sample()
        rewards = score(self.reward_funcs, rollouts.prompts, rollouts.completions, columns, self.state)
        truths = {name: score([f], rollouts.prompts, rollouts.completions, columns, self.state).mean().item()
                  for name, f in self.log_funcs.items()}
        experience, reference_logprobs = self.examine(rollouts, rewards)
        advantages, targets = self.method.advantage(experience, self.args)
        logs = self.update(rollouts, advantages.detach(), targets, experience.values, reference_logprobs)
        logs = {"step": self.state.global_step, "reward": rewards.mean().item(), **truths,
                **self.describe(rollouts, experience), **logs}
        self.state.global_step += 1
        self.state.log_history.append(logs)
        return logs

    def sample(self) -> tuple[Rollouts, dict[str, list]]:
        """Completions of this step's prompts, and the other columns of their records."""
        size, group = self.args.generation_batch_size, self.args.num_generations if self.method.groups else 1
        generator = self._generator("prompts")
        picks = torch.randint(len(self.data), (size // group,), generator=generator).repeat_interleave(group).tolist()
        records = [self.data[i] for i in picks]
        rollouts = generate(self.policy, self.processing_class, [r["prompt"] for r in records],
                            self.args.max_completion_length, self.args.temperature,
                            self._generator("sampling", self.accelerator.device))
        return rollouts, {c: [r[c] for r in records] for c in self.columns if c not in ("prompt", "completion")}

    @torch.no_grad()
    def examine(self, rollouts: Rollouts, rewards: Tensor) -> tuple[Experience, Tensor]:
        """What the frozen networks say of the rollouts: values and reference log-probabilities."""
        tokens, rewards = rollouts.tokens, rewards.to(self.accelerator.device)
        if self.method.clip_rewards:
            level = self.args.reward_clip
            rewards = rewards.clamp(rewards.quantile(level), rewards.quantile(1 - level))
        reference, _ = token_logprobs(self.reference, tokens, self.args.temperature)
        values = None if self.critic is None else monotone(self.critic(tokens))
        kl = rollouts.logprobs - reference
        return Experience(rewards, tokens.mask, kl, values, self._generator("targets")), reference

    def update(self, rollouts: Rollouts, advantages: Tensor, targets: Tensor | None, values: Tensor | None,
               reference_logprobs: Tensor) -> dict[str, float]:
        """`num_iterations` passes of mini-batches over the rollouts; returns means over the optimiser steps."""
        tokens, records = rollouts.tokens, []
        generator = self._generator("batches")
        weights = None
        if self.critic is not None:
            weights = bootstrap_weights(self.args.critic, len(tokens), self._generator("bootstrap"))
        for _ in range(self.args.num_iterations):
            order = torch.randperm(len(tokens), generator=generator).to(tokens.mask.device)
            for rows in order.chunk(self.args.num_mini_batches):
                batch = tokens.rows(rows)
                t = batch.completion_length
                logs = {}
                if self.critic is not None:
                    logs |= self.update_critic(batch, targets[rows, :t], values[rows, :t],
                                               None if weights is None else weights[rows])
                logs |= self.update_policy(batch, rollouts.logprobs[rows, :t], advantages[rows, :t],
                                           reference_logprobs[rows, :t])
                records.append(logs)
        return {k: float(np.mean([r[k] for r in records])) for k in records[0]}

    def update_critic(self, batch: Tokens, targets: Tensor, old: Tensor, weights: Tensor | None) -> dict[str, float]:
        """One optimiser step of the critic; arguments of `critics.critic_objective` for the rows of `batch`."""
        loss, terms = critic_objective(self.critic(batch), targets, batch.mask, self.args.critic, old, weights)
        norm = self._descend(loss, self.critic, self.critic_optimizer)
        return {"critic_loss": loss.item(), **{f"critic/{k}": float(v) for k, v in terms.items()},
                "critic_grad_norm": norm}

    def update_policy(self, batch: Tokens, old_logprobs: Tensor, advantages: Tensor,
                      reference_logprobs: Tensor) -> dict[str, float]:
        """One optimiser step of the policy on (B, T) tensors for the rows of `batch`."""
        args, how = self.args, self.method.aggregate
        logprobs, entropy = token_logprobs(self.policy, batch, args.temperature)
        loss, stats = policy_loss(logprobs, old_logprobs, advantages, batch.mask, args.epsilon, how=how,
                                  max_length=args.max_completion_length)
        if self.method.kl == "loss" and args.beta:
            penalty = kl_estimate(logprobs, reference_logprobs, self.method.estimator)
            loss = loss + args.beta * aggregate(penalty, batch.mask, how, args.max_completion_length)
        norm = self._descend(loss, self.policy, self.policy_optimizer)
        return {"policy_loss": loss.item(), "entropy": masked_mean(entropy, batch.mask).item(),
                **{k: float(v) for k, v in stats.items()}, "policy_grad_norm": norm}

    def _descend(self, loss: Tensor, module, optimizer) -> float:
        """One optimiser step; returns the gradient norm before clipping."""
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
        optimizer.step()
        return float(norm)

    def describe(self, rollouts: Rollouts, x: Experience) -> dict[str, float]:
        """Diagnostics of the rollouts themselves."""
        group = self.args.num_generations if self.method.groups else 1
        logs = {"kl": masked_mean(x.kl, x.mask).item(), "length": x.mask.sum(1).float().mean().item(),
                "flat_groups": float("nan"), "explained_variance": float("nan")}
        if group > 1:
            logs["flat_groups"] = (x.rewards.view(-1, group).std(1) == 0).float().mean().item()
        if x.values is not None:
            returns = returns_to_go(token_rewards(x, self.args), x.mask, self.args.gamma)[x.mask]
            error = returns - x.values.mean((-2, -1))[x.mask]
            logs["explained_variance"] = (1 - error.var() / returns.var().clamp(min=1e-12)).item()
        return logs

    # ---- the state ----

    def state_dict(self) -> dict:
        """Everything that the next step depends on, as one object."""
        modules = {"policy": self.policy, "policy_optimizer": self.policy_optimizer}
        if self.critic is not None:
            modules |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        return {"state": vars(self.state).copy(), **{k: m.state_dict() for k, m in modules.items()}}

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
