"""Time and memory, on CPUs and on CUDA devices.

Memory is what torch holds at most at a time, not what the system has given the process: that is several times more for
a small model (the libraries alone take hundreds of MB) and depends on how an allocator reuses what is freed. On CUDA
torch counts by itself. On a CPU its profiler reports every allocation and release; arrays that numpy makes and hands to
torch (the library sorts by numpy there) are counted as well, numpy's scratch while it sorts is not.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch


def clock(device: str = "cpu") -> float:
    """Seconds, once the device has done what it was told to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median_ms(functions: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Milliseconds of each function, the median of `repeats` rounds in which all are run one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock(device)
            function()
            taken[name].append(1000 * (clock(device) - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_mb(function: Callable[[], object], device: str = "cpu") -> float:
    """The most that torch holds at a time while `function` runs, beyond what it held before, in MB."""
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
    """Without what the profiler's native code prints at every start and stop."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
