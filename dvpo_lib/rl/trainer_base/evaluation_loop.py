"""Evaluation loop: a test of the trainer's policy on the prompts of a dataset."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from transformers.trainer_utils import EvalLoopOutput

from dvpo_lib.rl.config import DVPOConfig, changed_settings
from dvpo_lib.rl.diagnostics import batch_metrics
from dvpo_lib.rl.estimators import Experience, advantages_of
from dvpo_lib.rl.updates import Batch, policy_objective


@torch.no_grad()
def evaluate_prompts(trainer, dataloader: Iterable[list[Mapping]], prefix: str) -> EvalLoopOutput:
    """Means over all completions of the metrics of training, of `log_funcs` and of the policy's loss.

    Args:
        trainer: A `DVPOTrainer`.
        dataloader: Lists of records.
        prefix: Of the metrics' names.
    """
    group = trainer.args.num_generations_eval or trainer.group_size
    args = changed_settings(trainer.args, num_generations=group)
    count = max(1, args.per_device_eval_batch_size // group)  # prompts sampled together
    totals, prompts, part = defaultdict(list), 0, 0
    for records in dataloader:
        for start in range(0, len(records), count):
            own = [record for record in records[start : start + count] for _ in range(group)]
            rollouts, columns = trainer.sample(None, f"evaluation {part}", own)
            scores = trainer.score(rollouts, columns)
            x = trainer.build_experience(rollouts, scores)
            metrics = batch_metrics(rollouts, scores, x, args, trainer.terminated(rollouts), group)
            metrics |= trainer.watched_rewards(rollouts, columns) | {"loss": _policy_loss(trainer, x, args)}
            for name, value in metrics.items():
                totals[name].append((value, len(own)))
            part, prompts = part + 1, prompts + len(own) // group
    metrics = {f"{prefix}_{name}": _mean_of_parts(parts) for name, parts in totals.items()}
    return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=prompts)


def _policy_loss(trainer, x: Experience, args: DVPOConfig) -> float:
    """The policy's loss on scored rollouts; NaN if no policy is trained or no response takes part."""
    if not x.mask.any() or not trainer.trains_policy:
        return math.nan
    advantages, _ = advantages_of(trainer.method, x, args)
    batch, total = Batch(x.tokens, x.logprobs, advantages, x.known, x.reference_logprobs), 0.0
    active = x.mask.any(1).nonzero().squeeze(-1)
    for rows in active.split(args.per_device_train_batch_size):
        with trainer.accelerator.autocast(), trainer.scoring_modes():
            total += len(rows) * policy_objective(trainer.policy, batch, x.tokens.rows(rows), rows, args)[0].item()
    return total / len(active)


def _mean_of_parts(parts: list[tuple[float, int]]) -> float:
    known = [(value, rows) for value, rows in parts if not math.isnan(value)]
    return sum(value * rows for value, rows in known) / sum(rows for _, rows in known) if known else math.nan
