"""Final states: the position after the last own token of a response, where its reward is all that is to come."""

from __future__ import annotations

import torch
from torch import Tensor


def final_positions(mask: Tensor) -> Tensor:
    """(B, T) own tokens to (B, T + 1) bool, true right after each row's last own token, if it has any."""
    none = torch.zeros_like(mask[:, :1])
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.cat([none, last], 1)


def join_final(x: Tensor, last: Tensor, mask: Tensor) -> Tensor:
    """Numbers of tokens and of final states in one tensor, as `Tokens.with_final_state` orders them.

    Args:
        x: (B, T, ...) of tokens.
        last: (B, ...) of final states.
        mask: (B, T) own tokens.

    Returns:
        (B, T + 1, ...).
    """
    place = final_positions(mask).view(*mask.shape[:1], -1, *[1] * (x.dim() - 2))
    return torch.where(place, last[:, None], torch.cat([x, torch.zeros_like(x[:, :1])], 1))


def split_final(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `join_final`: (B, T, ...) and (B, ...), which is 0 for rows without tokens."""
    place = final_positions(mask).view(*mask.shape[:1], -1, *[1] * (x.dim() - 2))
    return x[:, :-1], torch.where(place, x, 0.0).sum(1)
