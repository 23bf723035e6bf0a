"""Evaluation loop: a test of the trainer's policy on the prompts of a dataset."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from dvpo_lib.models.architectures import is_sharded
from dvpo_lib.rl.config import DVPOConfig, changed_settings
from dvpo_lib.rl.diagnostics import batch_metrics
from dvpo_lib.rl.estimators import Experience, advantages_of
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE
from dvpo_lib.rl.trainer_base.parallel.sharding import whole_weights
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
    processes = trainer.processes
    if not trainer.is_in_train:
        trainer.engine.forget_weights()  # which may have been changed by hand
    if processes.count > 1:  # all records, where Accelerate's loader has some of them
        dataloader = DataLoader(dataloader.dataset, batch_size=args.eval_batch_size, collate_fn=list)
    if trainer.is_fsdp_enabled and not is_sharded(trainer.model):
        trainer.make_ready()
    batches = [records[start : start + count] for records in dataloader for start in range(0, len(records), count)]
    totals = defaultdict(list)
    for first in range(0, len(batches), processes.count):  # a part for each process
        part = min(first + processes.index, len(batches) - 1)
        own = [record for record in batches[part] for _ in range(group)]
        rollouts, columns = trainer.sample(None, f"evaluation {part}", own)
        scores = trainer.score(rollouts, columns, heard=first + processes.index < len(batches))
        x = trainer.build_experience(rollouts, scores, ALONE)
        metrics = batch_metrics(rollouts, scores, x, args, trainer.terminated(rollouts), group)
        metrics |= trainer.watched_rewards(rollouts, columns, ALONE)
        with whole_weights(trainer.policy):
            metrics["loss"] = _policy_loss(trainer, x, args)
        for found, rows in processes.gather_objects((metrics, len(own)))[: len(batches) - first]:
            for name, value in found.items():
                totals[name].append((value, rows))
    metrics = {f"{prefix}_{name}": _mean_of_parts(parts) for name, parts in totals.items()}
    return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=sum(map(len, batches)))


def _policy_loss(trainer, x: Experience, args: DVPOConfig) -> float:
    """The policy's loss on scored rollouts; NaN if no policy is trained or no response takes part."""
    if not x.mask.any() or not trainer.trains_policy:
        return math.nan
    advantages, _ = advantages_of(trainer.method, x, args)
    batch, total = Batch(x.tokens, x.logprobs, advantages, x.known, x.reference_logprobs), 0.0
    active = x.mask.any(1).nonzero().squeeze(-1)
    with trainer.accelerator.autocast(), trainer.scoring_modes():
        for rows in active.split(args.per_device_train_batch_size):
            total += len(rows) * policy_objective(trainer.policy, batch, x.tokens.rows(rows), rows, args)[0].item()
    return total / len(active)


def _mean_of_parts(parts: list[tuple[float, int]]) -> float:
    known = [(value, rows) for value, rows in parts if not math.isnan(value)]
    return sum(value * rows for value, rows in known) / sum(rows for _, rows in known) if known else math.nan
