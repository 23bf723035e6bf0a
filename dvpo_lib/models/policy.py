"""Policies: causal language models of `transformers`.

The embedded default is a small Qwen3 architecture trained from scratch (`build_policy`, `fit_language_model`); a local
folder or a hub name works in its place (`load_policy`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from tqdm.auto import tqdm

from dvpo_lib.functional.token_chunks import fits_one_chunk, map_token_chunks
from dvpo_lib.models.architectures import accepted_inputs, hidden_states_and_head, is_sharded, text_config
from dvpo_lib.models.modes import without_cudnn_attention
from dvpo_lib.models.tokens import Tokens, shuffled_batches

MICRO_BATCHES = 3  # per batch of supervised training


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class PolicySettings:
    """The base policy: architecture and supervised training on demonstrations."""

    name_or_path: str | None = None  # a local folder or hub name: that model, warmed up for `steps` (0: as it is)
    hidden_size: Annotated[int, Field(ge=8)] = 64  # width
    num_hidden_layers: Annotated[int, Field(ge=1)] = 2  # depth
    num_attention_heads: Annotated[int, Field(ge=1)] = 4  # query heads (and key/value heads)
    intermediate_size: Annotated[int, Field(ge=8)] = 256  # feed-forward width
    steps: Annotated[int, Field(ge=0)] = 2_400  # optimiser steps on demonstrations
    batch_size: Annotated[int, Field(ge=1)] = 128  # demonstrations a step
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3  # peak of a cosine schedule with warm-up
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05  # share of steps with a rising learning rate

    def missing(self, root: Path) -> dict[str, str]:
        """{setting: problem} if the model is a folder below `root` that does not exist; hub names have one slash."""
        name = self.name_or_path
        if name is None or name.count("/") < 2 or (root / name).is_dir():
            return {}
        return {"name_or_path": f"there is no folder {name}; `make base-model` brings the model of profile `real`"}


def build_policy(tokenizer, cfg: PolicySettings, seed: int):
    """A randomly initialised Qwen3-architecture causal LM over the tokenizer's vocabulary.

    Args:
        tokenizer: Tokenizer with pad and end-of-sequence tokens.
        cfg: Architecture.
        seed: Of the weights. Global generators are left alone.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_hidden_layers,
        num_attention_heads=cfg.num_attention_heads,
        num_key_value_heads=cfg.num_attention_heads,
        head_dim=cfg.hidden_size // cfg.num_attention_heads,
        intermediate_size=cfg.intermediate_size,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def load_policy(name_or_path: str):
    """(policy, tokenizer) from a local folder or the hub, ready for left-padded sampling, on `fastest_device()`."""
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
        with warnings.catch_warnings():  # of the hub, if the environment keeps its bars off
            warnings.simplefilter("ignore")
            logging.enable_progress_bar()
    return policy.to(fastest_device()), tokenizer


def fastest_device() -> torch.device:
    """The machine's accelerator, on which the trainer puts its networks too; the CPU if there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def token_logits(policy, tokens: Tokens) -> Tensor:
    """(B, T, V) logits that predict each completion token, from the position before it."""
    inputs = _forward_inputs(policy, tokens)
    return policy(**inputs, use_cache=False).logits[:, -tokens.completion_length :]


def _forward_inputs(policy, tokens: Tokens) -> dict:
    """Inputs up to the last token but one: nothing is read at the last."""
    inputs = {name: x[:, :-1] for name, x in tokens.model_inputs().items()}
    return accepted_inputs(policy, inputs | dict(logits_to_keep=tokens.completion_length))


def token_logprobs(
    policy, tokens: Tokens, temperature: float = 1.0, with_entropy: bool = False, learn_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(log-probabilities, entropies) of the completion tokens, both (B, T), float32, in nats.

    Logits of a large vocabulary are computed from hidden states, a chunk of tokens at a time, in the backward pass
    again: no (B, T, V) tensor is made. If a model's logits are no known function of its hidden states, its own logits
    are read in chunks.

    Args:
        policy: Causal LM.
        tokens: B prompts and completions.
        temperature: Of the distribution, as in sampling.
        with_entropy: Entropies are None if false.
        learn_entropy: Gradients flow through the entropies if true.
    """

    length, numbers = tokens.completion_length, getattr(text_config(policy), "vocab_size", 0)
    found = None
    # Shards are exchanged in the order of a model's layers, which must not depend on the size of a process' part.
    if is_sharded(policy) or not fits_one_chunk(tokens.mask.numel(), max(1, numbers)):
        found = hidden_states_and_head(policy, _forward_inputs(policy, tokens))
    states, logits_of = found or (token_logits(policy, tokens), lambda logits: logits)
    read_chunk = logprob_reader(logits_of, temperature, with_entropy, learn_entropy)
    return map_token_chunks(read_chunk, numbers or states.shape[-1], states[:, -length:], tokens.input_ids[:, -length:])


def logprob_reader(
    logits_of: Callable[[Tensor], Tensor], temperature: float, with_entropy: bool, learn_entropy: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """The function of a chunk of tokens that `token_logprobs` maps.

    Args:
        logits_of: From the states of a chunk to its logits; other arguments as of `token_logprobs`.

    Returns:
        (states (n, ...), tokens (n,)) -> (log-probabilities, entropies).
    """

    def read_chunk(states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        logp = (logits_of(states).float() / temperature).log_softmax(-1)
        entropy = None
        if with_entropy or learn_entropy:
            with torch.set_grad_enabled(torch.is_grad_enabled() and learn_entropy):
                entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, chosen[..., None]).squeeze(-1), entropy

    return read_chunk


@contextmanager
def router_losses(policy: nn.Module, coefficient: float | None) -> Iterator[list[Tensor]]:
    """Collects the load-balancing losses that a mixture of experts computes in forward passes inside the context."""
    found: list[Tensor] = []
    if not coefficient:
        yield found
        return
    config = policy.config.get_text_config()
    before, config.output_router_logits = config.output_router_logits, True
    handle = policy.register_forward_hook(lambda module, inputs, outputs: found.append(outputs.aux_loss))
    try:
        yield found
    finally:
        handle.remove()
        config.output_router_logits = before


def fit_language_model(
    policy, tokens: Tokens, cfg: PolicySettings, seed: int, progress: str | None = None
) -> list[float]:
    """Supervised training of `policy` on completions, in place: AdamW, cosine schedule with warm-up.

    The loss of a step is the mean over all tokens of its batch. The batch is read in parts of similar length: less
    padding.

    Args:
        policy: Causal LM.
        tokens: Demonstrations.
        cfg: Steps, batch size and learning rate.
        seed: Of the order of batches.
        progress: Label of a progress bar; None for no bar.

    Returns:
        The loss (nats per token) of every step.

    Raises:
        FloatingPointError: If a loss or a gradient is not finite.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.learning_rate, weight_decay=0.01, foreach=True)
    warm = max(1, int(cfg.warmup * cfg.steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, 1.0, warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, cfg.steps - warm), cfg.learning_rate / 50),
        ],
        milestones=[warm],
    )
    batches, losses = shuffled_batches(len(tokens), cfg.batch_size, torch.Generator().manual_seed(seed)), []
    lengths, tokens = tokens.attention_mask.sum(1), tokens.to(policy.device)
    policy.train()
    for step in tqdm(range(cfg.steps), desc=progress, disable=progress is None, mininterval=2):
        rows = next(batches)
        rows, count = rows[lengths[rows].argsort(stable=True)], tokens.mask[rows].sum()
        optimizer.zero_grad()
        losses.append(0.0)
        for part in rows.chunk(MICRO_BATCHES):
            batch = tokens.rows(part)
            target = batch.input_ids[:, -batch.completion_length :][batch.mask]
            with without_cudnn_attention():
                logits = token_logits(policy, batch)[batch.mask].float()
                loss = nn.functional.cross_entropy(logits, target, reduction="sum") / count
                loss.backward()
            losses[-1] += loss.item()
        norm = float(nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
        if not math.isfinite(losses[-1] + norm):
            problem = f"loss {losses[-1]}, gradient {norm}; lower learning_rate ({cfg.learning_rate})"
            raise FloatingPointError(f"supervised training, seed {seed}, step {step}: {problem}")
        optimizer.step()
        schedule.step()
    policy.eval()
    return losses
