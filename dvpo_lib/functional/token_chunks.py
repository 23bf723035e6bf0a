"""Functions of tokens in chunks, so that wide intermediate results, one number per word, stay small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS = 2**20  # numbers of a wide intermediate result at a time ...
CHUNK_TOKENS = 64  # ... but no fewer tokens, or the products of matrices get slow


def fits_one_chunk(tokens: int, numbers: int) -> bool:
    """Whether a function with `numbers` numbers per token needs no chunks."""
    return tokens <= max(CHUNK_TOKENS, CHUNK_NUMBERS // numbers)


def map_token_chunks(
    function: Callable[..., tuple[Tensor | None, ...]], numbers: int, *inputs: Tensor
) -> tuple[Tensor | None, ...]:
    """Outputs of a function of single tokens, computed a chunk of tokens at a time.

    With gradients each chunk is computed again in the backward pass; nothing wide is stored for it.

    Args:
        function: (n, ...) inputs of n tokens to a tuple of (n, ...) outputs; an output may be None.
        numbers: Numbers per token of its widest intermediate result.
        inputs: (B, T, ...) each.

    Returns:
        Tuple of (B, T, ...) outputs.
    """
    shape = inputs[0].shape[:2]
    if fits_one_chunk(shape.numel(), numbers):
        return function(*inputs)
    size = max(CHUNK_TOKENS, CHUNK_NUMBERS // numbers)
    parts = zip(*(x.flatten(0, 1).split(size) for x in inputs))
    if torch.is_grad_enabled():
        found = [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    else:
        found = [function(*part) for part in parts]
    return tuple(None if x[0] is None else torch.cat(x).unflatten(0, shape) for x in zip(*found))
