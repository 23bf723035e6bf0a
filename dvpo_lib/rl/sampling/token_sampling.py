"""The built-in sampler: token ids of prompts in; tokens and log-probabilities of completions out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dvpo_lib.common.seeds import row_uniforms
from dvpo_lib.models.causal_lm import CachedReader, ignores_padding, inner_model
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.tokens import pad_rows
from dvpo_lib.rl.sampling.engines import Completions, Sampling, SamplingEngine

COMPACT_BELOW = 0.9  # rows that have ended are dropped once fewer than this share go on, for dropping copies the cache
BLOCK = 64  # random numbers that are drawn for a row at once
CHUNK = 2**24  # probabilities that are summed at once in drawing


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


class BuiltinSampler(SamplingEngine):
    """The default: batched, with the model's cache; it stops when every row has ended."""

    def complete(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        how: Sampling,
        starts: Sequence[int],
    ) -> Completions:
        device, streams = inner_model(policy).device, how.streams(len(prompts))
        groups = [list(range(len(prompts)))]
        if ignores_padding(policy):  # prompts of one length at a time
            by_length: dict[int, list[int]] = {}
            for i, ids in enumerate(prompts):
                by_length.setdefault(len(ids), []).append(i)
            groups = list(by_length.values())
        limits = [how.max_completion_length - start for start in starts]
        answers = Completions([[]] * len(prompts), [[]] * len(prompts))
        with inference_mode_of(policy):
            for rows in groups:
                own = [prompts[i] for i in rows], [streams[i] for i in rows], [starts[i] for i in rows]
                longest = replace(how, max_completion_length=max(limits[i] for i in rows))
                completion, logprobs, mask = self.complete_rows(policy, pad, ends, *own, longest, device)
                lengths = mask.sum(1).tolist()
                for i, length, ids, chances in zip(rows, lengths, completion.tolist(), logprobs.tolist(), strict=True):
                    length = min(length, limits[i])
                    answers.ids[i], answers.logprobs[i] = ids[:length], chances[:length]
        torch.clear_autocast_cache()  # weights cast without gradients must not meet an update
        return answers

    @torch.no_grad()  # not `inference_mode`, in which autocast casts all weights anew for every token
    def complete_rows(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        streams: Sequence[int],
        starts: Sequence[int],
        how: Sampling,
        device,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Completions, log-probabilities and mask, each (B, T), of prompts that are read together."""
        reader, logits, seen, history = _read_prompts(policy, pad, prompts, device, bool(how.cuts))
        end_ids = torch.tensor(ends, device=device)
        rows = torch.arange(len(prompts), device=device)  # the rows still read
        alive = torch.ones_like(rows, dtype=torch.bool)  # those of them that have not ended
        uniforms = torch.empty(len(prompts), 0, device=device)
        completion = torch.full((len(prompts), how.max_completion_length), pad, device=device)
        logprobs = torch.zeros(completion.shape, device=device)
        mask = torch.zeros(completion.shape, dtype=torch.bool, device=device)
        processors = how.cuts.processors()
        for t in range(how.max_completion_length):
            logits = logits.float() / (how.temperature or 1.0)
            for processor in processors:
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
