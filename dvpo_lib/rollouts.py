"""Sampling: batched generation with a key/value cache that stops when every row has ended.

Left out: serving engines. Whatever returns a `Rollouts` (vLLM, say) can stand behind `generate`'s place.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .models import Tokens

KEPT = 0.9  # rows that have ended are dropped once fewer than this share go on, for dropping copies the cache


@dataclass
class Rollouts:
    """Sampled completions.

    Attributes:
        tokens: prompts and completions, B rows.
        logprobs: (B, T) log-probability of each sampled token under the sampling distribution; 0 where masked.
        prompts, completions: the texts.
    """

    tokens: Tokens
    logprobs: Tensor
    prompts: list[str]
    completions: list[str]

    def rows(self, index: Tensor) -> Rollouts:
        """The rows `index`, with padding that none of them needs cut away."""
        tokens, chosen = self.tokens.rows(index.to(self.tokens.mask.device)), index.tolist()
        logprobs = self.logprobs[index.to(self.logprobs.device), : tokens.completion_length]
        return Rollouts(tokens, logprobs, [self.prompts[i] for i in chosen], [self.completions[i] for i in chosen])


def draw(logprobs: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,) a token for each row of (B, V) log-probabilities, by the inverse of the distribution function."""
    upto = logprobs.exp().cumsum(-1, dtype=torch.float64)
    u = torch.rand(len(upto), 1, dtype=upto.dtype, device=upto.device, generator=generator) * upto[:, -1:]
    return torch.searchsorted(upto, u, right=True).squeeze(-1).clamp(max=upto.shape[1] - 1)


def generate(policy, tokenizer, prompts: list[str], max_completion_length: int, temperature: float = 1.0,
             generator: torch.Generator | None = None) -> Rollouts:
    """Samples one completion for each prompt (greedy at temperature 0) from the whole vocabulary: no top-k, no top-p.

    Prompts that stand several times one after the other are read once, and rows that have ended are dropped.

    Args:
        policy: causal LM of `transformers`; its mode (train/eval) is left as it is.
        prompts: texts; repeat one for several completions.
        max_completion_length: tokens at most, end of sequence included.
        generator: source of randomness on the policy's device.

    Returns:
        Rollouts on the policy's device.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    found = _sample(policy, tokenizer, pad, prompts, max_completion_length, temperature, generator)
    ids, attention, completion, logprobs, mask = (x.clone() for x in found)  # inference tensors cannot be learned from
    texts = tokenizer.batch_decode(completion, skip_special_tokens=True)
    tokens = Tokens(torch.cat([ids, completion], 1), torch.cat([attention, mask.to(attention)], 1), mask)
    return Rollouts(tokens, logprobs, list(prompts), texts)


@torch.inference_mode()
def _sample(policy, tokenizer, pad: int, prompts: list[str], max_completion_length: int, temperature: float,
            generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Prompts' ids and attention mask (B, P); completions, log-probabilities and mask (B, T)."""
    device, eos = policy.device, tokenizer.eos_token_id
    runs = [(text, len(list(run))) for text, run in itertools.groupby(prompts)]
    batch = tokenizer([text for text, _ in runs], return_tensors="pt", padding=True, padding_side="left",
                      add_special_tokens=False)
    ids, attention = batch.input_ids.to(device), batch.attention_mask.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    out = policy(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
    origin = torch.arange(len(runs), device=device).repeat_interleave(torch.tensor([n for _, n in runs], device=device))
    ids, attention, cache = ids[origin], attention[origin], out.past_key_values
    cache.batch_select_indices(origin)
    logits, positions = out.logits[origin, -1], positions[origin, -1:]

    rows, seen = torch.arange(len(prompts), device=device), attention  # the rows still read, and what they attend to
    alive = torch.ones_like(rows, dtype=torch.bool)  # those of them that have not ended
    completion = torch.full((len(prompts), max_completion_length), pad, device=device)
    logprobs = torch.zeros(completion.shape, device=device)
    mask = torch.zeros(completion.shape, dtype=torch.bool, device=device)
    for t in range(max_completion_length):
        logp = (logits.float() / (temperature or 1.0)).log_softmax(-1)
        token = logp.argmax(-1) if temperature == 0 else draw(logp, generator)
        completion[rows, t], mask[rows, t] = torch.where(alive, token, pad), alive
        logprobs[rows, t] = torch.where(alive, logp.gather(-1, token[:, None]).squeeze(-1), 0.0)
        alive = alive & (token != eos)
        left = int(alive.sum())
        if left == 0 or t + 1 == max_completion_length:
            break
        if left < KEPT * len(rows):
            rows, token, positions, seen = rows[alive], token[alive], positions[alive], seen[alive]
            cache.batch_select_indices(alive.nonzero().squeeze(-1))
            alive = alive[alive]
        positions, seen = positions + 1, torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
        out = policy(input_ids=token[:, None], attention_mask=seen, position_ids=positions, past_key_values=cache,
                     use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]
    return ids, attention, completion[:, : t + 1], logprobs[:, : t + 1], mask[:, : t + 1]
