"""Modes of networks as contexts: a network leaves each with the flags that it had before.

Sampling and scoring run in `inference_mode_of`: eval mode, no dropout, no checkpointing. Updates run in
`learning_mode_of`: gradient checkpointing if it is enabled, dropout only on request, attention that has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference_mode_of(*networks: nn.Module | None) -> Iterator[None]:
    """Eval mode of all networks (None is skipped); each module's own flag comes back afterwards."""
    modules = [module for network in networks if network is not None for module in network.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


@contextmanager
def learning_mode_of(network: nn.Module, dropout: bool = False) -> Iterator[None]:
    """The mode of an update: gradient checkpointing if enabled, dropout only if asked for.

    `transformers` checkpoints a layer only in train mode, which also switches dropout on. Without dropout, all modules
    are in eval mode but those that checkpoint, and these lose their own dropout rates meanwhile. Attention runs
    `without_cudnn_attention`; the backward pass belongs into the context too, since it computes a checkpoint again.

    Args:
        network: Policy or critic.
        dropout: Whether dropout acts.
    """
    modules = list(network.modules())
    flags, rates = [module.training for module in modules], []
    try:
        for module in modules:
            module.training = dropout or getattr(module, "gradient_checkpointing", False)
            if module.training and not dropout:
                rates += [(module, name, rate) for name, rate in vars(module).items() if _is_dropout_rate(name, rate)]
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        with without_cudnn_attention():
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, name, rate in rates:
            setattr(module, name, rate)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keeps PyTorch from cuDNN's attention, whose gradients are now and then NaN if a row may attend to nothing.

    Left padding makes such rows. Seen on an H200 with PyTorch 2.11, in bf16; the memory-efficient and the plain kernel
    gave none there.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _is_dropout_rate(name: str, value) -> bool:
    return isinstance(value, float) and value > 0 and "drop" in name
