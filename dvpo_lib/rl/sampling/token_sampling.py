"""The built-in sampler: prompts as token ids in; tokens, log-probabilities and masks out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dvpo_lib.common.seeds import row_uniforms
from dvpo_lib.models.causal_lm import CachedReader, ignores_padding, inner_model
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.tokens import Tokens, pad_rows

COMPACT_BELOW = 0.9  # rows that have ended are dropped once fewer than this share go on, for dropping copies the cache
BLOCK = 64  # random numbers that are drawn for a row at once
CHUNK = 2**24  # probabilities that are summed at once in drawing


@dataclass
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_completion_length: Tokens at most, ends included; of a dialogue, the environment's too.
        temperature: Of the softmax; 0: the most likely token.
        seed: Of all rows' streams, such as `seed_for(run's seed, purpose, step)`.
        rows: Number of each row's stream; None: 0, 1, 2 ...
        processors: `LogitsProcessor`s of `transformers` after the temperature, see `sampling_filters`.
        template: Further arguments of the chat template.
    """

    max_completion_length: int
    temperature: float = 1.0
    seed: int = 0
    rows: Sequence[int] | None = None
    processors: Sequence[Callable] = ()
    template: Mapping[str, Any] = field(default_factory=dict)


def sampling_filters(
    top_p: float = 1.0, top_k: int = 0, min_p: float | None = None, repetition_penalty: float = 1.0
) -> list[Callable]:
    """The `LogitsProcessor`s of `transformers` for these settings; none by default."""
    from transformers import generation

    found: list[Callable] = []
    if repetition_penalty != 1.0:
        found.append(generation.RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
    if top_k:
        found.append(generation.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        found.append(generation.TopPLogitsWarper(float(top_p)))
    if min_p:
        found.append(generation.MinPLogitsWarper(min_p))
    return found


def draw_tokens(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) a token for each row of (B, V) log-probabilities, by the inverse of the distribution function.

    Args:
        logprobs: (B, V).
        uniforms: (B,) float64 in [0, 1).
    """
    rows, vocabulary = logprobs.shape
    if rows * vocabulary > CHUNK and rows > 1:
        parts = logprobs.split(max(1, CHUNK // vocabulary)), uniforms.split(max(1, CHUNK // vocabulary))
        return torch.cat([draw_tokens(*part) for part in zip(*parts, strict=True)])
    upto = logprobs.exp().cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(upto, uniforms[:, None] * upto[:, -1:], right=True)
    return found.squeeze(-1).clamp(max=vocabulary - 1)


def sample_tokens(
    policy, pad: int, ends: Sequence[int], prompts: Sequence[tuple[int, ...]], how: Sampling, starts: Sequence[int]
) -> tuple[Tokens, Tensor]:
    """One completion for each prompt, in eval mode whatever mode the policy is in.

    Args:
        policy: Causal LM.
        pad: Token of the padding.
        ends: Tokens that end a completion.
        prompts: Token ids; equal ones next to each other are read once.
        how: Settings of sampling.
        starts: Index in each row's stream from which numbers are drawn: the tokens of its completion so far.

    Returns:
        Tokens of prompts and completions, and the (B, T) log-probabilities of the sampled tokens, 0 where masked.
    """
    streams = list(range(len(prompts)) if how.rows is None else how.rows)
    groups = [list(range(len(prompts)))]
    if ignores_padding(policy):  # prompts of one length at a time
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(prompts):
            by_length.setdefault(len(ids), []).append(i)
        groups = list(by_length.values())
    device = inner_model(policy).device
    length = 0
    completion = torch.full((len(prompts), how.max_completion_length), pad, device=device)
    logprobs = torch.zeros(completion.shape, device=device)
    mask = torch.zeros(completion.shape, dtype=torch.bool, device=device)
    with inference_mode_of(policy):
        for rows in groups:
            own = [prompts[i] for i in rows], [streams[i] for i in rows], [starts[i] for i in rows]
            found = _complete(policy, pad, ends, *own, how, device)
            place, size = torch.tensor(rows, device=device), found[0].shape[1]
            for whole, part in zip((completion, logprobs, mask), found, strict=True):
                whole[place, :size] = part  # a copy outside of inference mode, to be learned from
            length = max(length, size)
    torch.clear_autocast_cache()  # weights cast without gradients must not meet an update
    ids, attention = (x.to(device) for x in pad_rows(prompts, pad, left=True))
    completion, logprobs, mask = completion[:, :length], logprobs[:, :length], mask[:, :length]
    tokens = Tokens(torch.cat([ids, completion], 1), torch.cat([attention, mask.to(attention)], 1), mask)
    return tokens, logprobs


@torch.inference_mode()
def _complete(
    policy,
    pad: int,
    ends: Sequence[int],
    prompts: Sequence[tuple[int, ...]],
    streams: Sequence[int],
    starts: Sequence[int],
    how: Sampling,
    device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Completions, log-probabilities and mask, each (B, T)."""
    reader, logits, seen, history = _read_prompts(policy, pad, prompts, device, bool(how.processors))
    end_ids = torch.tensor(ends, device=device)
    rows = torch.arange(len(prompts), device=device)  # the rows still read
    alive = torch.ones_like(rows, dtype=torch.bool)  # those of them that have not ended
    uniforms = torch.empty(len(prompts), 0, device=device)
    completion = torch.full((len(prompts), how.max_completion_length), pad, device=device)
    logprobs = torch.zeros(completion.shape, device=device)
    mask = torch.zeros(completion.shape, dtype=torch.bool, device=device)
    for t in range(how.max_completion_length):
        logits = logits.float() / (how.temperature or 1.0)
        for processor in how.processors:
            logits = processor(history, logits)
        logp = logits.log_softmax(-1)
        if how.temperature == 0:
            token = logp.argmax(-1)
        else:
            if t % BLOCK == 0:
                count, left = min(BLOCK, how.max_completion_length - t), rows.tolist()
                numbers = row_uniforms(how.seed, [streams[i] for i in left], [starts[i] + t for i in left], count)
                uniforms = torch.from_numpy(numbers).to(device)
            token = draw_tokens(logp, uniforms[:, t % BLOCK])
        completion[rows, t], mask[rows, t] = torch.where(alive, token, pad), alive
        logprobs[rows, t] = torch.where(alive, logp.gather(-1, token[:, None]).squeeze(-1), 0.0)
        alive = alive & ~torch.isin(token, end_ids)
        left = int(alive.sum())
        if left == 0 or t + 1 == how.max_completion_length:
            break
        if left < COMPACT_BELOW * len(rows) and reader.can_select():
            rows, token, seen, uniforms = rows[alive], token[alive], seen[alive], uniforms[alive]
            history = history if history is None else history[alive]
            reader.select(alive.nonzero().squeeze(-1))
            alive = alive[alive]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
        history = history if history is None else torch.cat([history, token[:, None]], 1)
        logits = reader.step(token, seen)
    return completion[:, : t + 1], logprobs[:, : t + 1], mask[:, : t + 1]


def _read_prompts(policy, pad: int, prompts: Sequence[tuple[int, ...]], device, keep_text: bool):
    """Reads prompts, equal neighbours once if the model's cache can be copied.

    Returns:
        The reader, the (B, V) logits of the first tokens, the (B, P) attention mask, and the (B, P) prompts if their
        text is kept, with each row's first token in place of its padding.
    """
    reader, runs = CachedReader(policy), [(ids, len(list(run))) for ids, run in itertools.groupby(prompts)]
    ids, attention = (x.to(device) for x in pad_rows([ids for ids, _ in runs], pad, left=True))
    origin = torch.arange(len(runs), device=device).repeat_interleave(torch.tensor([n for _, n in runs], device=device))
    logits = reader.start(ids, attention)
    whole, seen = ids[origin], attention[origin]
    if len(runs) < len(prompts):
        if reader.can_select():
            reader.select(origin)
            logits = logits[origin]
        else:
            logits = reader.start(whole, seen)
    if not keep_text:
        return reader, logits, seen, None
    first = whole.gather(1, seen.argmax(1, keepdim=True))
    return reader, logits, seen, torch.where(seen.bool(), whole, first)
