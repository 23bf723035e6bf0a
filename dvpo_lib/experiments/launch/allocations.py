"""Counts the memory of tensors, real or fake.

Fake tensors of PyTorch have shapes and no numbers: a forward and backward pass of any size runs on them in seconds and
takes no memory, but makes the same tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class AllocationTrace(TorchDispatchMode):
    """Context that counts the memory of all tensors that are made inside it.

    Memory that an operation frees before it returns is not seen.

    Args:
        given: Tensors that count 0. Others that no operation has made come from numpy and count. None: all tensors that
            no operation has made count 0.

    Attributes:
        held: Bytes of the tensors that still live.
        peak: Largest `held` since the start, or since `restart_peak`.

    Example:
        >>> with AllocationTrace() as trace:
        ...     total = torch.ones(1000).cumsum(0)[-1]
        >>> trace.peak
        8000
    """

    def __init__(self, given: Iterable[Tensor] | None = None):
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()
        self._others_count = given is not None
        for x in given or ():
            self._add(x, counts=False)

    def restart_peak(self) -> None:
        """Counts the peak from here on."""
        self.peak = self.held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor):
                self._add(x, self._others_count)
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype == torch.float32:
            found = func(*(x.bfloat16() for x in args[:2]), *args[2:], **(kwargs or {})).float()  # fake in bf16 alone
        else:
            found = func(*args, **(kwargs or {}))
        for x in tree_iter(found):
            if isinstance(x, Tensor):
                self._add(x)
        return found

    def _add(self, x: Tensor, counts: bool = True) -> None:
        storage = x.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        self._known.add(address)
        size = storage.nbytes() if counts else 0
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.held -= size


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared ones once."""
    return sum({id(x): x.nbytes for x in tensors}.values())


def network_bytes(network: nn.Module | None) -> int:
    """Bytes of a network's weights and buffers."""
    return 0 if network is None else bytes_of([*network.parameters(), *network.buffers()])


def gradient_bytes(network: nn.Module | None) -> int:
    """Bytes of the gradients of a network's trained weights."""
    return 0 if network is None else bytes_of(p for p in network.parameters() if p.requires_grad)


def largest_layer_bytes(network: nn.Module) -> int:
    """Bytes of the largest layer of a network: the largest member of its lists of modules."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max((network_bytes(layer) for layers in lists for layer in layers), default=network_bytes(network))
