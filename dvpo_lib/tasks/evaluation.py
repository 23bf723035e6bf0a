"""Evaluation of a policy on a suite: rewards sampled at temperature 1 (avg@k), pass@k and greedy."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.rl.rollouts import Rollouts, sample
from dvpo_lib.tasks.families import Family

TEXTS = ("prompt", "completion", "completion_ids", "length", "sample", "reward")  # columns that no record brings


def sample_all(
    policy, tokenizer, records: list[dict], family: Family, temperature: float, seed: int, batch_size: int = 512
) -> list[Rollouts]:
    """One completion per record, in batches; randomness from `seed` alone."""
    generator, length = torch.Generator(policy.device).manual_seed(seed), family.max_completion_length(records)
    return [
        sample(policy, tokenizer, records[i : i + batch_size], length, temperature, generator, family.reply)
        for i in range(0, len(records), batch_size)
    ]


def sample_table(policy, tokenizer, data, family: Family, k: int, seed: int, temperature: float = 1.0) -> pd.DataFrame:
    """k completions for each record of `data`, with their true reward.

    Returns:
        One row per completion: prompt, completion, completion_ids (as sampled, cut ones without end of sequence),
        reward, length (tokens of the policy), sample (0..k-1), and the record's columns.
    """
    records = list(data) * k
    rollouts = sample_all(policy, tokenizer, records, family, temperature, seed)
    table = pd.DataFrame(records)
    table["completion"] = [c for r in rollouts for c in r.completions]
    table["completion_ids"] = [ids for r in rollouts for ids in r.completion_ids()]
    table["length"] = np.concatenate([r.tokens.mask.sum(1).cpu().numpy() for r in rollouts])
    table["reward"] = family.reward(table["prompt"].tolist(), table["completion"].tolist(), **columns_of(table))
    table["sample"] = np.repeat(np.arange(k), len(records) // k)
    return table


def columns_of(table: pd.DataFrame) -> dict[str, list]:
    """What reward functions are told of a table's records beside prompts and completions."""
    return {name: table[name].tolist() for name in table.columns if name not in TEXTS}


def evaluate(policy, tokenizer, data, family: Family, k: int, seed: int) -> dict[str, float]:
    """True rewards (0..1) on a suite: `sampled` (mean over k samples), `pass_at_k` and `greedy`.

    `pass_at_k` is the mean over prompts of the best of k rewards: where rewards are 0 or 1, the share of prompts that
    are solved at least once. What `family.details` tells of the k samples follows under names of its own.
    """
    sampled = sample_table(policy, tokenizer, data, family, k, seed)
    greedy = sample_table(policy, tokenizer, data, family, 1, seed, temperature=0.0)
    return dict(
        sampled=float(sampled["reward"].mean()),
        pass_at_k=float(sampled.groupby("prompt")["reward"].max().mean()),
        greedy=float(greedy["reward"].mean()),
        **family.details(sampled),
    )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How policies are tested."""

    prompts: Annotated[int, Field(ge=1)] = 256  # of each test set, the first ones
    k: Annotated[int, Field(ge=1)] = 4  # samples a prompt
