"""Random seeds: each purpose gets a generator of its own, derived from the run's seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """Derives the seed for one purpose of a run; seeds of different purposes are independent.

    Args:
        seed: The run's seed.
        *purpose: What the randomness is for, such as "rollouts" and a step number.

    Returns:
        A 63-bit seed.
    """
    words = [p if isinstance(p, int) else zlib.crc32(p.encode()) for p in purpose]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, *purpose: str | int, device="cpu") -> torch.Generator:
    """A torch generator on `device` that starts from `seed_for(seed, *purpose)`."""
    return torch.Generator(device).manual_seed(seed_for(seed, *purpose))


def row_uniforms(seed: int, rows: Sequence[int], starts: Sequence[int], count: int) -> np.ndarray:
    """Uniform numbers of independent streams, one for each row; any part of a stream can be drawn by itself.

    Args:
        seed: Common to all rows, such as `seed_for(seed, purpose, step)`.
        rows: Numbers of the streams: a row's numbers depend on `seed` and its own number alone.
        starts: Index of the first number of each stream.
        count: Numbers drawn from each.

    Returns:
        (len(rows), count) float64 in [0, 1).
    """
    table, philox = np.empty((len(rows), count)), np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        step, skip = divmod(start, 4)  # Philox makes four numbers a step
        state["state"] = {"key": np.array([seed, row], np.uint64), "counter": np.array([step, 0, 0, 0], np.uint64)}
        philox.state = state  # far quicker than a new generator
        table[place] = generator.random(skip + count)[skip:]
    return table
