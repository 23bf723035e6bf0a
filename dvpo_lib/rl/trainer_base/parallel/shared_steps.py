"""One optimiser step that processes take together, each on rows of its own, in micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dvpo_lib.models.architectures import is_sharded
from dvpo_lib.models.modes import learning_mode_of
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE, Processes
from dvpo_lib.rl.trainer_base.parallel.sharding import own_part, whole_tensors


class NotFiniteError(FloatingPointError):
    """A loss, gradient, log-probability or weight is not finite."""


def micro_batches(
    module: nn.Module, tokens: Tokens, rows: Tensor, size: int, processes: Processes
) -> Iterator[tuple[Tokens, Tensor]]:
    """Tokens and row numbers of at most `size` of the rows at a time, short rows first.

    The forwards of a sharded module wait for each other: there all processes have the same number of micro-batches, the
    last ones with nothing to learn from.
    """
    parts = tokens.by_length(rows).split(size) if len(rows) else ()
    missing = processes.largest(len(parts))[0] - len(parts) if is_sharded(module) else 0
    for part in parts:
        yield tokens.rows(part), part
    for first in rows.new_zeros(missing, 1):
        idle = tokens.rows(first)
        yield replace(idle, mask=torch.zeros_like(idle.mask)), first


def optimizer_step(
    module: nn.Module,
    optimizer,
    objective: Callable,
    tokens: Tokens,
    rows: Tensor,
    args: DVPOConfig,
    accelerator: Accelerator,
    processes: Processes = ALONE,
    by_token: bool = True,
) -> tuple[float, dict[str, float], float]:
    """One optimiser step on `rows`, in micro-batches of `args.per_device_train_batch_size`.

    Losses are shares of the mean over all processes' rows, so gradients are summed over processes, after the last
    micro-batch. It is done here and not by a wrapper such as DDP: that sees only forwards that go through its own.

    Args:
        objective: (micro-batch, its rows) -> (loss, named values), means over the micro-batch.
        by_token: A micro-batch's share of the loss is its share of tokens if true, of responses if false.

    Returns:
        (loss, named values, norm of the gradient before clipping).

    Raises:
        NotFiniteError: If the loss or the gradient is not finite; the weights are as they were.
    """
    optimizer.zero_grad()
    totals, whole = {"": 0.0}, processes.sum({"tokens": tokens.mask[rows].sum().item(), "rows": len(rows)})
    together = nullcontext() if is_sharded(module) else processes.together()  # nothing but shards is exchanged inside
    with learning_mode_of(module, dropout=not args.disable_dropout), together:
        for own, part in micro_batches(module, tokens, rows, args.per_device_train_batch_size, processes):
            with accelerator.autocast():
                loss, values = objective(own, part)
            of_tokens = (own.mask.sum() / whole["tokens"]).item()
            share = of_tokens if by_token else len(part) * bool(own.mask.any()) / whole["rows"]
            totals[""] += share * loss.item()
            # Accelerate divides by its own number of accumulation steps; shares are all the scaling wanted.
            accelerator.backward(loss * (share * accelerator.gradient_accumulation_steps))
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + of_tokens * value.item()
    named = processes.sum(totals)
    total = named.pop("")
    if not math.isfinite(total):  # in any process
        raise NotFiniteError(f"the loss is {total}")
    processes.sum_gradients(module.parameters())
    accelerator.unscale_gradients()
    norm = nn.utils.clip_grad_norm_(module.parameters(), args.max_grad_norm or math.inf)
    norm = float(whole_tensors(norm))
    if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler of fp16 skips such a step itself
        raise NotFiniteError(f"the gradient's norm is {norm}")
    optimizer.step()
    return total, named, norm


def check_weights(module: nn.Module) -> None:
    """Raises:
    NotFiniteError: If a weight is not finite.
    """
    for name, parameter in module.named_parameters():
        if not own_part(parameter).isfinite().all():
            raise NotFiniteError(f"{name} is not finite")
