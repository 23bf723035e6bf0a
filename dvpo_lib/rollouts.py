"""Sampling: batched generation with a key/value cache that stops when every row has ended.

Left out: serving engines. Whatever returns a `Rollouts` (vLLM, say) can stand behind `generate`'s place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .models import Tokens


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


@torch.no_grad()
def generate(policy, tokenizer, prompts: list[str], max_completion_length: int, temperature: float = 1.0,
             generator: torch.Generator | None = None) -> Rollouts:
    """Samples one completion for each prompt (greedy at temperature 0) from the whole vocabulary: no top-k, no top-p.

    Args:
        policy: causal LM of `transformers`; its mode (train/eval) is left as it is.
        prompts: texts; repeat one for several completions.
        max_completion_length: tokens at most, end of sequence included.
        generator: source of randomness on the policy's device.

    Returns:
        Rollouts on the policy's device.
    """
    device = policy.device
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids, attention = batch.input_ids.to(device), batch.attention_mask.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sampled, logprobs, masks, cache, step_ids = [], [], [], None, ids
    for _ in range(max_completion_length):
        out = policy(input_ids=step_ids, attention_mask=attention, position_ids=positions, past_key_values=cache,
                     use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logp = (out.logits[:, -1].float() / (temperature or 1.0)).log_softmax(-1)
        if temperature == 0:
            token = logp.argmax(-1)
        else:
            token = torch.multinomial(logp.exp(), 1, generator=generator).squeeze(-1)
        sampled.append(torch.where(alive, token, pad))
        logprobs.append(torch.where(alive, logp.gather(-1, token[:, None]).squeeze(-1), 0.0))
        masks.append(alive)
        attention = torch.cat([attention, alive[:, None].to(attention)], 1)
        positions = positions[:, -1:] + 1
        alive = alive & (token != tokenizer.eos_token_id)
        step_ids = token[:, None]
        if not alive.any():
            break
    completion, mask = torch.stack(sampled, 1), torch.stack(masks, 1)
    texts = tokenizer.batch_decode(torch.where(mask, completion, pad), skip_special_tokens=True)
    tokens = Tokens(torch.cat([ids, completion], 1), attention, mask)
    return Rollouts(tokens, torch.stack(logprobs, 1), list(prompts), texts)
