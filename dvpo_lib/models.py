"""Policies and critics.

A policy is any causal language model of `transformers`: the embedded default is a small Qwen3 architecture trained from
scratch (`build_policy`, `fit_language_model`); a local folder or a hub name works in its place (`load_policy`).
A critic is the policy's backbone with N heads of M quantiles at every token; one head of one quantile is PPO's scalar.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from tqdm.auto import tqdm

from .quantiles import from_increments, interpolate, levels

PARTS = 3  # of a batch in supervised training


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class PolicySettings:
    """The base policy: architecture and supervised training on demonstrations."""

    name_or_path: str | None = None  # a local folder or hub name instead of the embedded model
    hidden_size: Annotated[int, Field(ge=8)] = 64  # width
    num_hidden_layers: Annotated[int, Field(ge=1)] = 2  # depth
    num_attention_heads: Annotated[int, Field(ge=1)] = 4  # query heads (and key/value heads)
    intermediate_size: Annotated[int, Field(ge=8)] = 256  # feed-forward width
    steps: Annotated[int, Field(ge=0)] = 2_400  # optimiser steps on demonstrations
    batch_size: Annotated[int, Field(ge=1)] = 128  # demonstrations a step
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3  # peak of a cosine schedule with warm-up
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05  # share of steps in which the learning rate rises


@dataclass
class Tokens:
    """Prompts (padded left) and completions (padded right) side by side, B rows of P + T tokens.

    Attributes:
        input_ids: (B, P + T) token ids.
        attention_mask: (B, P + T) 1 on every real token.
        mask: (B, T) bool, true on the policy's own tokens (end of sequence included): the only ones that may be learned
            from. In a dialogue the user's tokens are attended to but not in `mask`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    @property
    def completion_length(self) -> int:
        return self.mask.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device) -> Tokens:
        """The same tokens on a device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device), self.mask.to(device))

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass, positions counted from each row's first real token."""
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return dict(input_ids=self.input_ids, attention_mask=self.attention_mask, position_ids=positions)

    def rows(self, index: Tensor) -> Tokens:
        """The rows `index`, with padding that none of them needs cut away."""
        attention, mask = self.attention_mask[index], self.mask[index]
        prompt = self.attention_mask.shape[1] - mask.shape[1]
        first = int(attention.any(0).int().argmax())
        last = attention.shape[1] - int(attention.any(0).flip(0).int().argmax())
        first, last = min(first, prompt - 1), max(last, prompt + 1)
        return Tokens(self.input_ids[index, first:last], attention[:, first:last], mask[:, : last - prompt])


def padded(rows: Sequence[Sequence], fill, left: bool = False, dtype=torch.long) -> tuple[Tensor, Tensor]:
    """(values, 1 where real and 0 where padded), both (B, longest row)."""
    width = max([1, *map(len, rows)])
    values, real = torch.full((len(rows), width), fill, dtype=dtype), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        values[i, where], real[i, where] = torch.tensor(list(row), dtype=dtype), 1
    return values, real


def pad_id(tokenizer) -> int:
    """The token that padding consists of: the end of sequence where the tokenizer has none of its own for it."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def side_by_side(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer) -> Tokens:
    """Tokens of token ids.

    Every finished turn of a completion ends with the end of sequence, and turns alternate, policy first. So a token is
    the policy's own where an even number of turns has ended before it: all tokens of a single answer are.
    """
    left, seen = padded(prompts, pad_id(tokenizer), left=True)
    right, real = padded(completions, pad_id(tokenizer))
    ended = (right == tokenizer.eos_token_id) & real.bool()
    before = ended.cumsum(1) - ended.long()
    return Tokens(torch.cat([left, right], 1), torch.cat([seen, real], 1), (before % 2 == 0) & real.bool())


def encode(tokenizer, prompts: Sequence[str], completions: Sequence[str | Sequence[int]],
           max_completion_length: int | None = None) -> Tokens:
    """Tokens of prompts and completions, answers and dialogues alike.

    A completion that is a text without the end of sequence is one answer, and is closed by it. A text that holds it is
    a dialogue, in which it closes every finished turn. Token ids, as they were sampled, are taken as they are.

    Raises:
        ValueError: a prompt is empty.
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
    return side_by_side(left, [ids_of(c)[:max_completion_length] for c in completions], tokenizer)


def build_policy(tokenizer, cfg: PolicySettings, seed: int):
    """A randomly initialised Qwen3-architecture causal LM over the vocabulary; global generators untouched."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=cfg.hidden_size, num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads, num_key_value_heads=cfg.num_attention_heads,
        head_dim=cfg.hidden_size // cfg.num_attention_heads, intermediate_size=cfg.intermediate_size,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def load_policy(name_or_path: str):
    """(policy, tokenizer) from a local folder or the hub, ready for left-padded sampling."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    quiet = Path(name_or_path).is_dir() and logging.is_progress_bar_enabled()
    if quiet:  # read in an instant; a bar for each of many small loads would hide the bars that matter
        logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    policy = AutoModelForCausalLM.from_pretrained(name_or_path)
    if quiet:
        with warnings.catch_warnings():  # that the hub's own bars stay off where the environment says so
            warnings.simplefilter("ignore")
            logging.enable_progress_bar()
    return policy, tokenizer


def token_logits(policy, tokens: Tokens) -> Tensor:
    """(B, T, V) logits that predict each completion token, from the position before it."""
    keep = tokens.completion_length
    inputs = {name: x[:, :-1] for name, x in tokens.model_inputs().items()}  # nothing is read at the last token
    return policy(**inputs, logits_to_keep=keep, use_cache=False).logits[:, -keep:]


def token_logprobs(policy, tokens: Tokens, temperature: float = 1.0,
                   learn_entropy: bool = False) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies) of the completion tokens, both (B, T), in nats, at the sampling temperature.

    Gradients flow through the entropies only where `learn_entropy`.
    """
    logp = (token_logits(policy, tokens).float() / temperature).log_softmax(-1)
    chosen = tokens.input_ids[:, -tokens.completion_length :, None]
    with torch.set_grad_enabled(torch.is_grad_enabled() and learn_entropy):
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, chosen).squeeze(-1), entropy


def shuffled_batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row indices, each epoch in a new order; its rest opens the next one's first batch."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def fit_language_model(policy, tokens: Tokens, cfg: PolicySettings, seed: int,
                       progress: str | None = None) -> list[float]:
    """Supervised training of `policy` on completions, in place: AdamW, cosine schedule with warm-up.

    The loss of a step is the mean over all tokens of its batch, which is read in parts of like length: less padding.

    Returns:
        The loss (nats a token) of every step.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.learning_rate, weight_decay=0.01, foreach=True)
    warm = max(1, int(cfg.warmup * cfg.steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, warm),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, cfg.steps - warm), cfg.learning_rate / 50),
    ], milestones=[warm])  # fmt: skip
    batches, losses = shuffled_batches(len(tokens), cfg.batch_size, torch.Generator().manual_seed(seed)), []
    lengths = tokens.attention_mask.sum(1)
    policy.train()
    for _ in tqdm(range(cfg.steps), desc=progress, disable=progress is None, mininterval=2):
        rows = next(batches)
        rows, count = rows[lengths[rows].argsort(stable=True)], tokens.mask[rows].sum()
        optimizer.zero_grad()
        losses.append(0.0)
        for part in rows.chunk(PARTS):
            batch = tokens.rows(part)
            logits, target = token_logits(policy, batch), batch.input_ids[:, -batch.completion_length :]
            loss = nn.functional.cross_entropy(logits[batch.mask].float(), target[batch.mask], reduction="sum") / count
            loss.backward()
            losses[-1] += loss.item()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    policy.eval()
    return losses


class Critic(nn.Module):
    """N heads of M quantiles of the return at every completion token, on a copy of the policy's backbone.

    The value at token t is that of the state before it: it is read at the previous position. Heads start from
    independent random weights, for equal heads would stay equal.

    Args:
        policy: the causal LM whose backbone is copied.
        heads, quantiles: N and M; 1 and 1 is a scalar critic.
        crossing: "rearrange" leaves head outputs free (losses and read-outs sort them), "increments" builds monotone
            heads from positive steps.
        seed: of the heads' weights.
    """

    def __init__(self, policy, heads: int = 1, quantiles: int = 1,
                 crossing: Literal["rearrange", "increments"] = "rearrange", seed: int = 0):
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        self.heads, self.quantiles, self.crossing = heads, quantiles, crossing
        width = policy.config.hidden_size
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.utils.skip_init(nn.Linear, width, heads * quantiles)  # the default init draws globally
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) * 0.1 / width**0.5)
            # Quantiles start in order and each head in its own place, so that heads differ from the first step on.
            offset = torch.randn(heads, 1, generator=generator) * 0.1 * (heads > 1)
            start = (levels(quantiles) - 0.5) if crossing == "rearrange" else torch.zeros(quantiles)
            self.head.bias.copy_((start * (quantiles > 1) + offset).flatten())
        self.head.to(policy.device)

    @torch.no_grad()
    def start_from(self, returns: Tensor) -> None:
        """Sets the head's bias so that predictions start as the distribution of `returns` (n,), whatever the token."""
        if self.quantiles == 1:
            self.head.bias.fill_(returns.mean())
            return
        x = returns.flatten().float().sort().values  # torch.quantile refuses more than 2^24 numbers
        q = interpolate(x.expand(self.quantiles, -1), levels(self.quantiles, device=x.device))
        if self.crossing == "increments":  # the inverse of `from_increments`
            steps = (q.diff() * self.quantiles).clamp(min=1e-3)
            q = torch.cat([q.mean()[None], steps + torch.log(-torch.expm1(-steps))])
        self.head.bias.copy_(q.repeat(self.heads))

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, T, N, M) head outputs (return units); monotone in M where built by increments."""
        inputs = {name: x[:, :-1] for name, x in tokens.model_inputs().items()}  # nothing is read at the last token
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        z = self.head(hidden[:, -tokens.completion_length :].float())
        z = z.unflatten(-1, (self.heads, self.quantiles))
        return from_increments(z) if self.crossing == "increments" and self.quantiles > 1 else z
