"""Training shared by the two studies: tokenizer, language model as backbone, critic on top of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import fit_critic, predict_values
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, token_logprobs
from dvpo_lib.models.tokens import Tokens


def byte_level_tokenizer(texts: Iterable[str], vocabulary: int):
    """Trains a byte-level BPE, which can encode any text.

    Args:
        texts: Training texts.
        vocabulary: Number of tokens at most.

    Returns:
        A `PreTrainedTokenizerFast` with <pad> and <eos> that pads on the left.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def pack_token_stream(texts: Iterable[Sequence[int]], length: int = 256) -> Tokens:
    """Joins token ids into one stream and cuts it into rows without padding.

    The first token of a row serves as prompt, all others are learned.

    Args:
        texts: Token ids of each text.
        length: Learned tokens per row.
    """
    stream = torch.tensor(list(itertools.chain(*texts)))
    width = min(length + 1, len(stream))
    ids = stream[: len(stream) // width * width].view(-1, width)  # (rows, length + 1)
    return Tokens(ids, torch.ones_like(ids), torch.ones(len(ids), width - 1, dtype=torch.bool))


def pack_texts(table: pd.DataFrame, tokenizer, length: int = 256) -> Tokens:
    """`pack_token_stream` of prompts and completions, separated by the end-of-sequence token."""
    texts = (table["prompt"] + table["completion"] + tokenizer.eos_token).tolist()
    return pack_token_stream(tokenizer(texts, add_special_tokens=False).input_ids, length)


@torch.no_grad()
def mean_token_loss(policy, tokens: Tokens, batch_size: int = 32) -> float:
    """Mean loss of a language model on packed text, in nats per token."""
    batches = torch.arange(len(tokens)).split(batch_size)
    total = sum(token_logprobs(policy, tokens.rows(i))[0].double().sum() for i in batches)
    return -float(total) / int(tokens.mask.sum())


def train_backbone(
    folder: Path,
    tokenizer,
    train: Tokens,
    test: Tokens,
    policy: PolicySettings,
    passes: float,
    seed: int,
    progress: str | None = None,
) -> None:
    """Trains a language model from scratch and writes base/, losses.csv and language_model.csv.

    Args:
        folder: Folder of the results.
        tokenizer: Tokenizer, saved next to the model.
        train: Packed training text.
        test: Packed text for the test loss. Nothing is learned from it.
        policy: Architecture and optimiser. `steps` follows from `passes`.
        passes: Passes over the training text.
        seed: Seed of weights and batches.
        progress: Label of the progress bar. No bar if None.
    """
    steps = max(1, round(passes * len(train) / policy.batch_size))
    cfg = dataclasses.replace(policy, steps=steps)
    model = build_policy(tokenizer, cfg, seed)
    losses = fit_language_model(model, train, cfg, seed, progress=progress)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    summary = {
        "vocabulary": len(tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": int(train.mask.sum()),
        "train_loss": np.mean(losses[-steps // 10 :]),
        "test_loss": mean_token_loss(model, test),
    }
    pd.DataFrame([summary]).to_csv(folder / "language_model.csv", index=False, float_format="%.6g")
    table = pd.DataFrame({"step": range(1, steps + 1), "loss": losses})
    table.to_csv(folder / "losses.csv", index=False, float_format="%.6g")


def train_critic(
    folder: Path,
    policy,
    tokenizer,
    training: pd.DataFrame,
    held: pd.DataFrame,
    cfg: CriticSettings,
    seed: int,
    batch_size: int = 64,
) -> None:
    """Fits a critic and writes critic.safetensors, history.csv and held_out.safetensors.

    held_out.safetensors holds `quantiles` (n, 3, M) at the first, middle and last token of each held-out text.

    Args:
        folder: Folder of the results.
        policy: Backbone.
        tokenizer: Tokenizer of the backbone.
        training: Training texts with their `reward`.
        held: Held-out texts.
        cfg: Architecture, loss and optimiser of the critic.
        seed: Seed of weights and batches.
        batch_size: Held-out texts per forward pass.
    """
    critic = build_critic(policy, cfg, seed)
    history = fit_critic(critic, training.to_dict("records"), tokenizer, cfg, seed)
    values = predict_values(critic, held.to_dict("records"), tokenizer, batch_size=batch_size)
    places = np.stack([v[[0, round(0.5 * (len(v) - 1)), -1]] for v in values])  # (n, 3, M)
    save_file({"quantiles": torch.tensor(places, dtype=torch.float32)}, folder / "held_out.safetensors")
    save_file(critic.state_dict(), folder / "critic.safetensors")
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.8g")


def with_study_training(critic: CriticSettings, learning_rate: float, passes: int, batch_size: int) -> CriticSettings:
    """A tracked critic with the training of a study. It learns from logged texts alone, so it samples no rollouts."""
    return dataclasses.replace(
        critic, learning_rate=learning_rate, batch_size=batch_size, pretrain_epochs=passes, pretrain_rollouts=0
    )
