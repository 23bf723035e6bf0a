"""Modes of networks as contexts: a network leaves each with the flags that it had before.

Sampling and scoring run in `inference_mode_of`: eval mode, no dropout, no checkpointing. Updates run in
`learning_mode_of`: gradient checkpointing if it is enabled, dropout only on request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    are in eval mode but those that checkpoint, and these lose their own dropout rates meanwhile.

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
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, name, rate in rates:
            setattr(module, name, rate)


def _is_dropout_rate(name: str, value) -> bool:
    return isinstance(value, float) and value > 0 and "drop" in name
