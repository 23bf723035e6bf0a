"""Where randomness comes from: every purpose has a generator of its own, derived from the run's seed."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and on what it is for, and is unrelated to that of any other."""
    words = [p if isinstance(p, int) else zlib.crc32(p.encode()) for p in purpose]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, *purpose: str | int, device="cpu") -> torch.Generator:
    """A generator seeded by `seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, *purpose))
