"""The processes of a run: what they tell each other, and how all of them end if one fails.

Rows stay with the process that sampled them. What is exchanged is small: numbers by row or by token, gradients, and
whether somebody failed. In one process every call returns its argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

BUCKET = 2**24  # numbers that are summed over processes in one call


class OtherProcessError(RuntimeError):
    """Another process failed; the message is its own, and `kind` the name of its error's class."""

    def __init__(self, index: int, kind: str, text: str):
        super().__init__(f"process {index} failed: {kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Processes:
    """Processes that learn from one batch, each holding an equal number of consecutive rows of it.

    Attributes:
        count: Number of processes.
        index: Number of this one; 0 is the main process, which writes files.
        device: Of what is exchanged.
    """

    count: int = 1
    index: int = 0
    device: torch.device | str = "cpu"

    @property
    def is_main(self) -> bool:
        return self.index == 0

    # ---- rows and numbers ----

    def own_rows(self, whole):
        """The own rows of a tensor, list or range that has those of all processes."""
        if self.count == 1:
            return whole
        size = len(whole) // self.count
        return whole[self.index * size : (self.index + 1) * size]

    def gather(self, x: Tensor) -> Tensor:
        """Rows (B, ...) of all processes one after the other, on x's device; they have equal shapes."""
        if self.count == 1:
            return x
        own = x.detach().to(self.device, torch.uint8 if x.dtype == torch.bool else x.dtype).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        return torch.cat(parts).to(x)

    def gather_objects(self, x: Any) -> list:
        """A small object of every process, in their order."""
        if self.count == 1:
            return [x]
        found: list = [None] * self.count
        dist.all_gather_object(found, x)
        return found

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums of numbers by name; a process may lack some of them. Equal on all processes, bit for bit."""
        total: dict[str, float] = {}
        for own in self.gather_objects(numbers):
            for name, value in own.items():
                total[name] = total[name] + value if name in total else value
        return total

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number over all processes."""
        return tuple(map(max, zip(*self.gather_objects(numbers), strict=True)))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return builtin_any(self.gather_objects(bool(flag)))

    def agree_on_flags(self, control: Any) -> None:
        """Sets the attributes should_... of an object that are set in any process: a clock's limit, say."""
        names = [name for name in vars(control) if name.startswith("should_")]
        for own in self.gather_objects([getattr(control, name) for name in names]):
            for name, flag in zip(names, own, strict=True):
                setattr(control, name, getattr(control, name) or flag)

    # ---- networks ----

    @torch.no_grad()
    def copy_from_main(self, module: nn.Module) -> None:
        """Gives parameters and buffers the values that they have in the main process."""
        if self.count == 1:
            return
        for x in [*module.parameters(), *module.buffers()]:
            sent = x.detach().to(self.device)
            dist.broadcast(sent, 0)
            x.copy_(sent)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over processes, but those of shards, which FSDP2 sums.

        A parameter that has a gradient in no process stays without one.
        """
        own = [x for x in parameters if x.requires_grad and not hasattr(x, "device_mesh")]
        if self.count == 1 or not own:
            return
        used = torch.tensor([parameter.grad is not None for parameter in own], device=self.device, dtype=torch.int32)
        dist.all_reduce(used)
        bucket: list[Tensor] = []
        for parameter, uses in zip(own, used.tolist(), strict=True):
            if not uses:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (
                sum(x.numel() for x in bucket) + parameter.numel() > BUCKET or bucket[0].dtype != parameter.grad.dtype
            ):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            _sum_bucket(bucket)

    # ---- failures ----

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part that no process leaves before all have ended theirs; if one raises, all do.

        Nothing may be exchanged inside of it: a process that failed would not take part.

        Raises:
            OtherProcessError: If another process failed, and this one did not.
        """
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as own:
            error = own
        told = self.gather_objects(None if error is None else (type(error).__name__, str(error)))
        if error is not None:
            raise error
        for index, failure in enumerate(told):
            if failure is not None:
                raise OtherProcessError(index, *failure)


ALONE = Processes()
builtin_any = any  # the method of this name hides it


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([x.reshape(-1) for x in gradients])
    dist.all_reduce(flat)
    for x, summed in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
        x.copy_(summed.view_as(x))
