"""Weights of networks that may be sharded (FSDP2): whole ones for sampling and scoring, and as files hold them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor, nn

from dvpo_lib.models.architectures import shards_of


def shard_on_cpus(accelerator: Accelerator, plugin_args: dict | None) -> None:
    """Switches FSDP on for processes on CPUs, where Accelerate ignores the wish for it.

    Args:
        plugin_args: Of `TrainingArguments.fsdp`; None: as `accelerate launch` says.
    """
    asked = plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_args or {}))
        for state in (accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP


@contextmanager
def without_ddp(accelerator: Accelerator) -> Iterator[None]:
    """Accelerate prepares networks without DDP around them: `optimizer_step` sums gradients itself."""
    if accelerator.num_processes == 1:
        yield
        return
    accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
    try:
        yield
    finally:
        del accelerator.prepare_model


@contextmanager
def whole_weights(*modules: nn.Module | None) -> Iterator[None]:
    """All weights of sharded modules on every process: forwards without gradients then wait for no other process.

    So processes may sample for different numbers of steps. FSDP2 would fetch weights for the next backward in the order
    of these forwards, which may be another one on each process: what it has noted of them is dropped. None and modules
    without shards are skipped.
    """
    parts = shards_of(*modules)
    groups = [group for part in parts for group in part._get_fsdp_state()._fsdp_param_groups]
    after_forward = [group.post_forward_mesh_info for group in groups]  # by what FSDP decides to drop them again
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        for group, info in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = info
            group._post_forward_indices.clear()
            group.comm_ctx.post_forward_order.clear()


def shard_network(accelerator: Accelerator, network: nn.Module | None) -> None:
    """Shards a frozen network in place as `Accelerator.prepare` does those with an optimiser."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    if network is not None:
        fsdp2_prepare_model(accelerator, network)


def add_up_shards(*modules: nn.Module | None) -> None:
    """Sums gradients over processes where FSDP2 averages them: losses are shares of the whole batch's mean."""
    for module in modules:
        for part in shards_of(module):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            if part is module:
                part._get_fsdp_state()._lazy_init()  # its parts may be used before it


def own_part(x: Tensor) -> Tensor:
    """This process' shard of a tensor; other tensors are returned as they are."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole_tensors(tree: Any, keep: bool = True) -> Any:
    """A tensor, or a nested structure of them, in which shards of all processes are put together, on the CPU.

    All processes call it. One that does not `keep` them gets None in their place: only one is whole at a time.
    """
    if isinstance(tree, Tensor):
        whole = tree.full_tensor() if hasattr(tree, "full_tensor") else None
        return tree if whole is None else whole.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {name: whole_tensors(x, keep) for name, x in tree.items()}
    return [whole_tensors(x, keep) for x in tree] if isinstance(tree, list) else tree


def copied_weights(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Copies of all weights of a module; `keep` as of `whole_tensors`."""
    state = {name: x.detach() for name, x in module.state_dict().items()}
    return {name: x.clone().contiguous() for name, x in whole_tensors(state, keep).items() if x is not None}


def trained_weights(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The weights without those of frozen parameters."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: x for name, x in copied_weights(module, keep).items() if name not in frozen}


@torch.no_grad()
def load_weights(module: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Loads whole weights, some or all, into a module that may be sharded."""
    targets = module.state_dict()
    for name, value in stored.items():
        targets[name].copy_(_sharded_like(targets[name], value))


def load_optimizer_state(optimizer, state: dict) -> None:
    """Loads the state of an optimiser of whole tensors into one whose parameters may be sharded."""
    optimizer.load_state_dict(state)
    for parameter, own in getattr(optimizer, "optimizer", optimizer).state.items():
        for name, x in own.items():
            if isinstance(x, Tensor) and x.shape == parameter.shape:
                own[name] = _sharded_like(parameter, x)


def _sharded_like(target: Tensor, value: Tensor) -> Tensor:
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
