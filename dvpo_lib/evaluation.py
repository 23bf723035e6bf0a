"""Evaluation of a policy on a suite: accuracy sampled at temperature 1 (avg@k), pass@k and greedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from .rollouts import Rollouts, generate


def sample_all(policy, tokenizer, prompts: list[str], max_completion_length: int, temperature: float,
               seed: int, batch_size: int = 512) -> list[Rollouts]:
    """One completion per prompt, in batches; randomness from `seed` alone."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    return [
        generate(policy, tokenizer, prompts[i : i + batch_size], max_completion_length, temperature, generator)
        for i in range(0, len(prompts), batch_size)
    ]


def sample_table(policy, tokenizer, data, reward_func: Callable, k: int, max_completion_length: int, seed: int,
                 temperature: float = 1.0) -> pd.DataFrame:
    """k completions for each record of `data`, with their true reward.

    Returns:
        One row per completion: prompt, completion, reward, length (tokens), sample (0..k-1), and the record's columns.
    """
    records = pd.DataFrame(data[:] if not isinstance(data, list) else data)
    table = pd.concat([records] * k, ignore_index=True)
    rollouts = sample_all(policy, tokenizer, table["prompt"].tolist(), max_completion_length, temperature, seed)
    table["completion"] = [c for r in rollouts for c in r.completions]
    table["length"] = np.concatenate([r.tokens.mask.sum(1).cpu().numpy() for r in rollouts])
    columns = {name: table[name].tolist() for name in records.columns if name not in ("prompt", "completion")}
    table["reward"] = reward_func(table["prompt"].tolist(), table["completion"].tolist(), **columns)
    table["sample"] = np.repeat(np.arange(k), len(records))
    return table


def evaluate(policy, tokenizer, data, reward_func: Callable, k: int, max_completion_length: int,
             seed: int) -> dict[str, float]:
    """Accuracies (0..1) on a suite: `sampled` (mean over k samples), `pass_at_k` (any of k), `greedy`."""
    sampled = sample_table(policy, tokenizer, data, reward_func, k, max_completion_length, seed)
    greedy = sample_table(policy, tokenizer, data, reward_func, 1, max_completion_length, seed, temperature=0.0)
    return dict(
        sampled=float(sampled["reward"].mean()),
        pass_at_k=float(sampled.groupby("prompt")["reward"].max().mean()),
        greedy=float(greedy["reward"].mean()),
    )
