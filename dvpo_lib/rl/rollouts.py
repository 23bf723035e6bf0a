"""Sampling: single answers, and dialogues turn by turn.

`sample_answers` is batched, with a key/value cache, and stops when every row has ended. `sample_rollouts` is the entry
point of the trainer: one completion per record, a dialogue if the records have an environment (a user, a tool) that
replies. As text, a dialogue is all its turns, policy first, with the end of sequence after each finished one.

Not supported: serving engines (any source of `Rollouts`, vLLM for one, could replace `sample_answers`), and a cache
that lives through a whole dialogue: each turn reads the history again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dvpo_lib.models.tokens import Tokens, join_tokens, pad_rows, padding_id

COMPACT_BELOW = 0.9  # share of live rows below which ended rows are dropped; dropping copies the cache


@dataclass
class Rollouts:
    """Sampled completions.

    Attributes:
        tokens: B prompts and completions.
        logprobs: (B, T) log-probability of each sampled token under the sampling distribution; 0 at masked positions.
        prompts: B texts.
        completions: B texts.
    """

    tokens: Tokens
    logprobs: Tensor
    prompts: list[str]
    completions: list[str]

    def rows(self, index: Tensor) -> Rollouts:
        """The rows `index`, without columns that are padding in all of them."""
        tokens, chosen = self.tokens.rows(index.to(self.tokens.mask.device)), index.tolist()
        logprobs = self.logprobs[index.to(self.logprobs.device), : tokens.completion_length]
        return Rollouts(tokens, logprobs, [self.prompts[i] for i in chosen], [self.completions[i] for i in chosen])

    def completion_ids(self) -> list[list[int]]:
        """The tokens of every completion, the environment's included."""
        length = self.tokens.completion_length
        ids, real = self.tokens.input_ids[:, -length:], self.tokens.attention_mask[:, -length:].bool()
        return [row[kept].tolist() for row, kept in zip(ids.cpu(), real.cpu())]


def draw_tokens(logprobs: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,) one token per row of (B, V) log-probabilities, by inverting the distribution function."""
    upto = logprobs.exp().cumsum(-1, dtype=torch.float64)
    u = torch.rand(len(upto), 1, dtype=upto.dtype, device=upto.device, generator=generator) * upto[:, -1:]
    return torch.searchsorted(upto, u, right=True).squeeze(-1).clamp(max=upto.shape[1] - 1)


def sample_rollouts(
    policy,
    tokenizer,
    records: Sequence[Mapping],
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    reply: Callable[[Mapping, str], str | None] | None = None,
) -> Rollouts:
    """Samples one completion per record: an answer, or a dialogue if there is a `reply`.

    Args:
        policy: See `sample_answers`.
        tokenizer: The tokenizer.
        records: B mappings with `prompt`.
        max_completion_length: Most tokens of a completion, end of sequence included.
        temperature: Of sampling; 0 is greedy.
        generator: Random source on the policy's device.
        reply: See `sample_dialogues`.
    """
    if reply is not None:
        return sample_dialogues(policy, tokenizer, records, reply, max_completion_length, temperature, generator)
    prompts = [r["prompt"] for r in records]
    return sample_answers(policy, tokenizer, prompts, max_completion_length, temperature, generator)


def sample_answers(
    policy,
    tokenizer,
    prompts: list[str],
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Samples one completion per prompt from the whole vocabulary: no top-k, no top-p.

    Equal prompts next to each other are read once, and rows that have ended are dropped.

    Args:
        policy: Causal LM of `transformers`; its mode (train/eval) stays as it is.
        tokenizer: The tokenizer.
        prompts: B texts; repeat one for several completions.
        max_completion_length: Most tokens of a completion, end of sequence included.
        temperature: Of sampling; 0 is greedy.
        generator: Random source on the policy's device.

    Returns:
        Rollouts on the policy's device.
    """
    tokens, logprobs = _sample(
        policy, tokenizer, _ids(tokenizer, prompts), max_completion_length, temperature, generator
    )
    texts = tokenizer.batch_decode(tokens.input_ids[:, -tokens.completion_length :], skip_special_tokens=True)
    return Rollouts(tokens, logprobs, list(prompts), texts)


def sample_dialogues(
    policy,
    tokenizer,
    records: Sequence[Mapping],
    reply: Callable[[Mapping, str], str | None],
    max_completion_length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Samples one dialogue per record, all side by side: the policy's turn, the environment's, and so on.

    A dialogue ends if `reply` says so or its tokens are used up. In the second case its last turn may lack the end of
    sequence, in the tokens and in the text alike.

    Args:
        policy: See `sample_answers`.
        tokenizer: The tokenizer.
        records: B mappings with `prompt`; equal ones next to each other are read once.
        reply: (record, transcript so far) -> the environment's next turn; None ends the dialogue.
        max_completion_length: Most tokens of a dialogue, the environment's and all ends of sequence included.
        temperature: Of sampling; 0 is greedy.
        generator: Random source on the policy's device.

    Returns:
        Rollouts on the policy's device; `logprobs` is 0 on the environment's tokens.

    Raises:
        ValueError: If there are no records, or a reply contains the end of sequence.
    """
    if not records:
        raise ValueError("there are no records")
    eos, prompts = tokenizer.eos_token_id, _ids(tokenizer, [r["prompt"] for r in records])
    ids: list[list[int]] = [[] for _ in records]
    logprobs: list[list[float]] = [[] for _ in records]
    texts = [""] * len(records)
    going = list(range(len(records)))
    while going:
        longest = max(max_completion_length - len(ids[i]) for i in going)
        said, chances = _sample(
            policy, tokenizer, [(*prompts[i], *ids[i]) for i in going], longest, temperature, generator
        )
        lengths, own, still = said.mask.sum(1).tolist(), said.input_ids[:, -said.completion_length :].tolist(), []
        for row, (i, chance) in enumerate(zip(going, chances.tolist(), strict=True)):
            length = min(lengths[row], max_completion_length - len(ids[i]))
            spoken = own[row][:length]
            ids[i] += spoken
            logprobs[i] += chance[:length]
            finished = spoken[-1] == eos
            texts[i] = _joined(texts[i], tokenizer.decode(spoken[:-1] if finished else spoken))
            if not finished:
                continue
            texts[i] = _joined(texts[i], tokenizer.eos_token)
            heard = reply(records[i], texts[i])
            if heard is None:
                continue
            answer = tokenizer(heard, add_special_tokens=False).input_ids
            if eos in answer:
                raise ValueError(f"record {i}: the reply contains the end of sequence: {heard!r}")
            if len(ids[i]) + len(answer) + 1 >= max_completion_length:  # no room for another turn
                continue
            ids[i] += [*answer, eos]
            logprobs[i] += [0.0] * (len(answer) + 1)
            texts[i] = _joined(texts[i], heard, tokenizer.eos_token)
            still.append(i)
        going = still
    tokens = join_tokens(prompts, ids, tokenizer).to(policy.device)
    sampled = pad_rows(logprobs, 0.0, dtype=torch.float32)[0].to(policy.device)
    return Rollouts(tokens, sampled, [r["prompt"] for r in records], texts)


def _joined(*pieces: str) -> str:
    """Non-empty pieces, separated by spaces."""
    return " ".join(piece for piece in pieces if piece)


def _ids(tokenizer, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of texts."""
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


def _sample(*arguments) -> tuple[Tokens, Tensor]:
    """Tokens of prompts and completions, and log-probabilities (B, T); arguments as for `_read_and_write`."""
    sampled = (x.clone() for x in _read_and_write(*arguments))  # inference tensors cannot be learned from
    ids, attention, completion, logprobs, mask = sampled
    return Tokens(torch.cat([ids, completion], 1), torch.cat([attention, mask.to(attention)], 1), mask), logprobs


@torch.inference_mode()
def _read_and_write(
    policy,
    tokenizer,
    prompts: Sequence[tuple[int, ...]],
    max_completion_length: int,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, ...]:
    """Ids and attention mask of the prompts (B, P); completions, log-probabilities and mask (B, T)."""
    device, eos, pad = policy.device, tokenizer.eos_token_id, padding_id(tokenizer)
    runs = [(ids, len(list(run))) for ids, run in itertools.groupby(prompts)]
    ids, attention = (x.to(device) for x in pad_rows([ids for ids, _ in runs], pad, left=True))
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    out = policy(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
    origin = torch.arange(len(runs), device=device).repeat_interleave(torch.tensor([n for _, n in runs], device=device))
    ids, attention, cache = ids[origin], attention[origin], out.past_key_values
    cache.batch_select_indices(origin)
    logits, positions = out.logits[origin, -1], positions[origin, -1:]

    rows, seen = torch.arange(len(prompts), device=device), attention  # the rows still read, and their attention mask
    alive = torch.ones_like(rows, dtype=torch.bool)  # rows that have not ended
    completion = torch.full((len(prompts), max_completion_length), pad, device=device)
    logprobs = torch.zeros(completion.shape, device=device)
    mask = torch.zeros(completion.shape, dtype=torch.bool, device=device)
    for t in range(max_completion_length):
        logp = (logits.float() / (temperature or 1.0)).log_softmax(-1)
        token = logp.argmax(-1) if temperature == 0 else draw_tokens(logp, generator)
        completion[rows, t], mask[rows, t] = torch.where(alive, token, pad), alive
        logprobs[rows, t] = torch.where(alive, logp.gather(-1, token[:, None]).squeeze(-1), 0.0)
        alive = alive & (token != eos)
        left = int(alive.sum())
        if left == 0 or t + 1 == max_completion_length:
            break
        if left < COMPACT_BELOW * len(rows):
            rows, token, positions, seen = rows[alive], token[alive], positions[alive], seen[alive]
            cache.batch_select_indices(alive.nonzero().squeeze(-1))
            alive = alive[alive]
        positions, seen = positions + 1, torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
        out = policy(
            input_ids=token[:, None],
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1]
    return ids, attention, completion[:, : t + 1], logprobs[:, : t + 1], mask[:, : t + 1]
