"""Dialogues: multi-turn sampling, and tokens of which only the policy's own may be learned from.

A dialogue alternates turns of the policy and of its environment (a user, a tool), policy first; every finished turn is
closed by the end-of-sequence token. So a token's author is known from its place: it is the policy's where an even
number of turns has ended before it. As text, a completion is all turns with `<eos>` (the tokenizer's own) after each.

Left out: a key/value cache that lives through a whole dialogue. Each turn reads the history again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from .models import Tokens
from .rollouts import Rollouts, generate


class _Ids:
    """Stands for the tokenizer where prompts are tuples of token ids: what was sampled is read again as it is."""

    def __init__(self, tokenizer):
        self.eos_token_id = tokenizer.eos_token_id
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, prompts: list[tuple[int, ...]], **settings) -> SimpleNamespace:
        ids, attention = _pad(prompts, self.pad_token_id, left=True)
        return SimpleNamespace(input_ids=ids, attention_mask=attention)

    def batch_decode(self, ids: Tensor, **settings) -> list[str]:
        return [""] * len(ids)


def _pad(rows: Sequence[Sequence], fill, left: bool = False, dtype=torch.long) -> tuple[Tensor, Tensor]:
    """(values, 1 where real and 0 where padded), both (B, longest row)."""
    width = max([1, *map(len, rows)])
    values, real = torch.full((len(rows), width), fill, dtype=dtype), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        values[i, where], real[i, where] = torch.tensor(list(row), dtype=dtype), 1
    return values, real


def _side_by_side(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer) -> Tokens:
    """Tokens of ids, the policy's own told from the environment's by the ends of sequence before them."""
    pad, eos = _Ids(tokenizer).pad_token_id, tokenizer.eos_token_id
    left, seen = _pad(prompts, pad, left=True)
    right, real = _pad(completions, pad)
    ended = ((right == eos) & real.bool()).cumsum(1)
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    return Tokens(torch.cat([left, right], 1), torch.cat([seen, real], 1), (before % 2 == 0) & real.bool())


def encode_dialogues(tokenizer, prompts: list[str], completions: list[str],
                     max_completion_length: int | None = None) -> Tokens:
    """Tokens of (prompt, transcript) texts: the environment's turns are attended to and masked.

    A completion without any end of sequence in its text is one answer: it is closed by one, as `models.encode` does,
    so that records of all families can be encoded together.

    Raises:
        ValueError: a prompt is empty.
    """
    eos = tokenizer.eos_token_id
    left = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    right = [tokenizer(c, add_special_tokens=False).input_ids for c in completions]
    right = [(ids if eos in ids else [*ids, eos])[:max_completion_length] for ids in right]
    for i, ids in enumerate(left):
        if not ids:
            raise ValueError(f"record {i}: the prompt is empty")
    return _side_by_side(left, right, tokenizer)


def converse(policy, tokenizer, records: Sequence[Mapping], reply: Callable[[Mapping, str], str | None],
             max_completion_length: int, max_turns: int, temperature: float = 1.0,
             generator: torch.Generator | None = None) -> Rollouts:
    """Samples one dialogue for each record, all side by side: a turn of the policy, the environment's, and so on.

    A dialogue ends where `reply` says so, after `max_turns` turns of the policy, or where its tokens are used up: then
    its last turn may lack the end of sequence, in the tokens and in the text alike.

    Args:
        policy: as in `generate`. records: with prompt; equal ones next to each other are read once.
        reply: (record, transcript so far) -> the environment's next turn, None where the dialogue is over.
        max_completion_length: tokens of a dialogue at most, the environment's and all ends of sequence included.
        max_turns: turns of the policy at most. temperature, generator: as in `generate`.

    Returns:
        Rollouts on the policy's device; `logprobs` is 0 on the environment's tokens.

    Raises:
        ValueError: there are no records, or a reply holds the end of sequence.
    """
    if not records:
        raise ValueError("no records to converse about")
    eos, codec = tokenizer.eos_token_id, _Ids(tokenizer)
    prompts = [tuple(tokenizer(r["prompt"], add_special_tokens=False).input_ids) for r in records]
    ids: list[list[int]] = [[] for _ in records]
    logprobs: list[list[float]] = [[] for _ in records]
    texts: list[list[str]] = [[] for _ in records]
    going = list(range(len(records)))
    for turn in range(max_turns):
        if not going:
            break
        histories = [(*prompts[i], *ids[i]) for i in going]
        longest = max(max_completion_length - len(ids[i]) for i in going)
        said = generate(policy, codec, histories, longest, temperature, generator)
        lengths = said.tokens.mask.sum(1).tolist()
        own = said.tokens.input_ids[:, -said.tokens.completion_length :].tolist()
        chances, still = said.logprobs.tolist(), []
        for row, i in enumerate(going):
            length = min(lengths[row], max_completion_length - len(ids[i]))
            spoken = own[row][:length]
            ids[i] += spoken
            logprobs[i] += chances[row][:length]
            finished = spoken[-1] == eos
            words = tokenizer.decode(spoken[:-1] if finished else spoken)
            texts[i] += [words, tokenizer.eos_token] if finished else [words]
            if not finished or turn + 1 == max_turns:
                continue
            heard = reply(records[i], _joined(texts[i]))
            if heard is None:
                continue
            answer = tokenizer(heard, add_special_tokens=False).input_ids
            if eos in answer:
                raise ValueError(f"record {i}: a reply must not hold the end of sequence: {heard!r}")
            answer.append(eos)
            if len(ids[i]) + len(answer) >= max_completion_length:  # nothing could be said after it
                continue
            ids[i] += answer
            logprobs[i] += [0.0] * len(answer)
            texts[i] += [heard, tokenizer.eos_token]
            still.append(i)
        going = still
    tokens = _side_by_side(prompts, ids, tokenizer).to(policy.device)
    sampled = _pad(logprobs, 0.0, dtype=torch.float32)[0].to(policy.device)
    return Rollouts(tokens, sampled, [r["prompt"] for r in records], [_joined(text) for text in texts])


def _joined(pieces: list[str]) -> str:
    return " ".join(piece for piece in pieces if piece)
