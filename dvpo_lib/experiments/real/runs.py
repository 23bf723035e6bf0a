"""Specs of the real-data study: a language model as backbone, and critics under label noise.

Paths are inputs: a run's key depends on the bytes of the files, never on where they lie.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from dvpo_lib.experiments.real.data import (
    SOLUTIONS,
    TEST,
    TRAIN,
    RealSettings,
    flipped,
    read_solutions,
    read_worked,
    split,
)
from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import fit_critic, predict_values
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, load_policy, token_logprobs
from dvpo_lib.models.tokens import Tokens


@dataclass(frozen=True)
class RealBaseSpec:
    """Byte-level BPE and language-model warm-up on worked solutions. Stores base/, losses.csv, language_model.csv."""

    policy: PolicySettings
    vocabulary: int
    passes: float
    seed: int
    train: str  # file
    test: str  # file; its loss is measured, nothing is learned from it
    inputs = ("train", "test")
    threads = 2

    def execute(self, folder: Path, scratch: Path) -> None:
        train, test = read_worked(self.train, TRAIN), read_worked(self.test, TEST)
        tokenizer = byte_level_tokenizer(train["prompt"] + train["completion"], self.vocabulary)
        store_backbone(
            folder,
            tokenizer,
            packed(train, tokenizer),
            packed(test, tokenizer),
            self.policy,
            self.passes,
            self.seed,
            progress="language model",
        )


@dataclass(frozen=True)
class RealCriticSpec:
    """One critic on the solutions of the training problems, their labels turned over at `rate`.

    Stores critic.safetensors, history.csv, labels.csv (training: problem, generator, correct, received) and
    held_out.safetensors: `quantiles` (solutions, 3, M) at the first, middle and last token of held-out solutions.
    """

    critic: CriticSettings
    rate: float
    seed: int
    held_out: float
    max_tokens: int
    solutions: str  # file
    base: str  # folder of the backbone
    inputs = ("solutions", "base")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.base)
        table, _ = cut(read_solutions(self.solutions, SOLUTIONS), tokenizer, self.max_tokens)
        training, held = split(table, self.held_out)
        training["reward"] = flipped(training["correct"], self.rate, self.seed)
        store_critic(folder, policy, tokenizer, training, held, self.critic, self.seed)
        labels = training[["problem", "generator", "correct", "reward"]].rename(columns={"reward": "received"})
        labels.to_csv(folder / "labels.csv", index=False)


def store_backbone(
    folder: Path,
    tokenizer,
    train: Tokens,
    test: Tokens,
    policy: PolicySettings,
    passes: float,
    seed: int,
    progress: str | None = None,
) -> None:
    """Trains a language model on `stream_rows` and writes base/, losses.csv and language_model.csv.

    Args:
        test: text whose loss is measured; nothing is learned from it.
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
        "test_loss": mean_loss(model, test),
    }
    pd.DataFrame([summary]).to_csv(folder / "language_model.csv", index=False, float_format="%.6g")
    table = pd.DataFrame({"step": range(1, steps + 1), "loss": losses})
    table.to_csv(folder / "losses.csv", index=False, float_format="%.6g")


def store_critic(
    folder: Path,
    policy,
    tokenizer,
    training: pd.DataFrame,
    held: pd.DataFrame,
    cfg: CriticSettings,
    seed: int,
    batch_size: int = 64,
) -> None:
    """Fits a critic to `training` (with its `reward`) and writes critic.safetensors, history.csv, held_out.safetensors.

    Args:
        batch_size: held-out texts read at a time.
    """
    critic = build_critic(policy, cfg, seed)
    history = fit_critic(critic, training.to_dict("records"), tokenizer, cfg, seed)
    values = predict_values(critic, held.to_dict("records"), tokenizer, batch_size=batch_size)
    places = np.stack([v[[0, round(0.5 * (len(v) - 1)), -1]] for v in values])
    save_file({"quantiles": torch.tensor(places, dtype=torch.float32)}, folder / "held_out.safetensors")
    save_file(critic.state_dict(), folder / "critic.safetensors")
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False, float_format="%.8g")


def byte_level_tokenizer(texts: Iterable[str], vocabulary: int):
    """A `PreTrainedTokenizerFast`: byte-level BPE (any text can be written) trained on `texts`, prompts padded left."""
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


def cut(table: pd.DataFrame, tokenizer, max_tokens: int) -> tuple[pd.DataFrame, int]:
    """Texts of at most `max_tokens` tokens: prompts lose their beginning, completions their end.

    Returns:
        The table, and how many of its rows were cut.
    """

    def spans(column: str) -> list[list[tuple[int, int]]]:
        found = tokenizer(table[column].tolist(), add_special_tokens=False, return_offsets_mapping=True)
        return found["offset_mapping"]

    prompts = [t[s[-max_tokens][0] :] if len(s) > max_tokens else t for t, s in zip(table["prompt"], spans("prompt"))]
    completions = [
        t[: s[max_tokens - 1][1]] if len(s) > max_tokens else t
        for t, s in zip(table["completion"], spans("completion"))
    ]
    changed = (table["prompt"] != prompts) | (table["completion"] != completions)
    return table.assign(prompt=prompts, completion=completions), int(changed.sum())


def packed(table: pd.DataFrame, tokenizer, length: int = 256) -> Tokens:
    """`stream_rows` of prompts and completions; the end-of-sequence token divides texts."""
    texts = (table["prompt"] + table["completion"] + tokenizer.eos_token).tolist()
    return stream_rows(tokenizer(texts, add_special_tokens=False).input_ids, length)


def stream_rows(texts: Iterable[Sequence[int]], length: int = 256) -> Tokens:
    """Token ids of all texts in one stream, cut into rows of `length` + 1 tokens: nothing is padded.

    The first token of a row stands for a prompt, all others are learned.
    """
    stream = torch.tensor(list(itertools.chain(*texts)))
    width = min(length + 1, len(stream))
    ids = stream[: len(stream) // width * width].view(-1, width)
    return Tokens(ids, torch.ones_like(ids), torch.ones(len(ids), width - 1, dtype=torch.bool))


@torch.no_grad()
def mean_loss(policy, tokens: Tokens, batch_size: int = 32) -> float:
    """Mean loss of a language model on `packed` text (nats a token)."""
    batches = torch.arange(len(tokens)).split(batch_size)
    total = sum(token_logprobs(policy, tokens.rows(i))[0].double().sum() for i in batches)
    return -float(total) / int(tokens.mask.sum())


# ---- specs from params.yaml ----


def base_spec(cfg: RealSettings, seed: int) -> RealBaseSpec:
    """The backbone's training, by params.yaml."""
    policy = PolicySettings(
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_hidden_layers,
        intermediate_size=4 * cfg.hidden_size,
        batch_size=cfg.batch_size,
        learning_rate=cfg.language_model_learning_rate,
    )
    folder = Path(cfg.dir)
    return RealBaseSpec(
        policy, cfg.vocabulary, cfg.language_model_passes, seed, str(folder / TRAIN), str(folder / TEST)
    )


def critic_specs(
    cfg: RealSettings, critics: Mapping[str, CriticSettings], seed: int, base: Path
) -> dict[tuple[str, float, int], RealCriticSpec]:
    """{(critic, noise rate, seed): spec}: the tracked critics, their training as `cfg` says."""
    own = dict(
        learning_rate=cfg.critic_learning_rate,
        batch_size=cfg.batch_size,
        pretrain_epochs=cfg.critic_passes,
        pretrain_rollouts=0,
    )
    return {
        (name, rate, s): RealCriticSpec(
            dataclasses.replace(critic, **own),
            rate,
            s,
            cfg.held_out,
            cfg.max_tokens,
            str(Path(cfg.dir) / SOLUTIONS),
            str(base),
        )
        for name, critic in critics.items()
        for rate in cfg.noise_rates
        for s in range(seed, seed + cfg.seeds)
    }
