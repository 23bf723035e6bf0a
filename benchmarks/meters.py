"""Time and memory on CPUs and CUDA devices.

Memory is the peak of torch's own allocations. The memory of the process is several times larger for a small model (the
libraries alone take hundreds of MB) and depends on how an allocator reuses freed blocks. On CUDA torch counts itself.
On a CPU its profiler reports every allocation and release. Arrays that numpy passes to torch (the library sorts with
numpy there) are counted, numpy's scratch memory during a sort is not.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch


def device_clock(device: str = "cpu") -> float:
    """Seconds, after the device has finished its work.

    On one thread of a CPU, seconds of the process itself: other programs that wait for the same core take no part.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def median_ms(functions: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median milliseconds of each function.

    Args:
        functions: {name: function}. In each round all run one after the other.
        repeats: Number of rounds.
        device: "cpu" or "cuda".
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = device_clock(device)
            function()
            taken[name].append(1000 * (device_clock(device) - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def network_mb(trainer) -> float:
    """Memory in MB of a trainer's networks: weights and buffers, each counted once."""
    networks = [trainer.policy, trainer.reference, trainer.critic, trainer.target_critic]
    return _size_mb(x for n in networks if n is not None for x in [*n.parameters(), *n.buffers()])


def training_state_mb(trainer) -> float:
    """Memory in MB of the gradients and the optimiser states of a trainer."""
    networks = [n for n in (trainer.policy, trainer.critic) if n is not None]
    optimizers = [o for o in (trainer.policy_optimizer, trainer.critic_optimizer) if o is not None]
    gradients = [p.grad for n in networks for p in n.parameters() if p.grad is not None]
    states = [x for o in optimizers for state in o.optimizer.state.values() for x in state.values()]
    return _size_mb([*gradients, *(x for x in states if isinstance(x, torch.Tensor))])


def _size_mb(tensors) -> float:
    return sum({id(x): x.nbytes for x in tensors}.values()) / 1e6


def peak_mb(function: Callable[[], object], device: str = "cpu") -> float:
    """Peak memory of torch in MB while `function` runs, beyond the memory before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    from_numpy = torch.from_numpy
    counted = mock.patch.object(torch, "from_numpy", lambda array: from_numpy(array).clone())
    activities = [torch.profiler.ProfilerActivity.CPU]
    with silent_stderr(), counted, torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Hides the output of the profiler's native code at start and stop."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
