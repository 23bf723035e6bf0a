"""Random seeds: each purpose gets a generator of its own, derived from the run's seed."""

from __future__ import annotations

import zlib

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
