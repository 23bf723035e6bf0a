"""Batches of tokens: prompts padded left, completions padded right, and the mask of the policy's own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tokens:
    """Prompts (padded left) and completions (padded right) side by side, B rows of P + T tokens.

    Attributes:
        input_ids: (B, P + T) token ids.
        attention_mask: (B, P + T) 1 on every real token.
        mask: (B, T) bool, true on the policy's own tokens (end of sequence included), the only ones to learn from. In a
            dialogue the user's tokens are attended to but not in `mask`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    @property
    def completion_length(self) -> int:
        """T, padding included."""
        return self.mask.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device) -> Tokens:
        """The same tokens on a device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device), self.mask.to(device))

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass; positions count from each row's first real token."""
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return dict(input_ids=self.input_ids, attention_mask=self.attention_mask, position_ids=positions)

    def rows(self, index: Tensor) -> Tokens:
        """The rows `index`, without columns that are padding in all of them."""
        attention, mask = self.attention_mask[index], self.mask[index]
        prompt = self.attention_mask.shape[1] - mask.shape[1]
        first = int(attention.any(0).int().argmax())
        last = attention.shape[1] - int(attention.any(0).flip(0).int().argmax())
        first, last = min(first, prompt - 1), max(last, prompt + 1)
        return Tokens(self.input_ids[index, first:last], attention[:, first:last], mask[:, : last - prompt])


def pad_rows(rows: Sequence[Sequence], fill, left: bool = False, dtype=torch.long) -> tuple[Tensor, Tensor]:
    """(values, 1 if real and 0 if padded), both (B, longest row)."""
    width = max([1, *map(len, rows)])
    values, real = torch.full((len(rows), width), fill, dtype=dtype), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        values[i, where], real[i, where] = torch.tensor(list(row), dtype=dtype), 1
    return values, real


def padding_id(tokenizer) -> int:
    """The padding token, or the end of sequence if the tokenizer has none."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def join_tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer) -> Tokens:
    """Tokens from token ids of prompts and completions.

    Every finished turn of a completion ends with the end of sequence, and turns alternate, policy first. So a token is
    the policy's own if an even number of turns has ended before it: all tokens of a single answer are.
    """
    left, seen = pad_rows(prompts, padding_id(tokenizer), left=True)
    right, real = pad_rows(completions, padding_id(tokenizer))
    ended = (right == tokenizer.eos_token_id) & real.bool()
    before = ended.cumsum(1) - ended.long()
    return Tokens(torch.cat([left, right], 1), torch.cat([seen, real], 1), (before % 2 == 0) & real.bool())


def encode_completions(
    tokenizer,
    prompts: Sequence[str],
    completions: Sequence[str | Sequence[int]],
    max_completion_length: int | None = None,
) -> Tokens:
    """Tokens of prompts and completions, answers and dialogues alike.

    A text without the end of sequence is one answer and gets one. A text that holds it is a dialogue, in which it
    closes every finished turn. Token ids are taken as they were sampled.

    Args:
        tokenizer: The tokenizer.
        prompts: B texts.
        completions: B texts or lists of token ids.
        max_completion_length: Tokens to keep of a completion; None for all.

    Raises:
        ValueError: If a prompt is empty.
    """
    eos = tokenizer.eos_token_id

    def ids_of(completion: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(completion, str):
            return completion
        ids = tokenizer(completion, add_special_tokens=False).input_ids
        return ids if eos in ids else [*ids, eos]

    left = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    for i, ids in enumerate(left):
        if not ids:
            raise ValueError(f"record {i}: the prompt is empty")
    return join_tokens(left, [ids_of(c)[:max_completion_length] for c in completions], tokenizer)


def shuffled_batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row indices, a new order each epoch. An epoch's rest opens the next one's first batch."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]
