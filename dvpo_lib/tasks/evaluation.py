"""Evaluation of a policy on a suite: avg@k and pass@k at temperature 1, and greedy decoding."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.models.causal_lm import inner_model
from dvpo_lib.rl.sampling.rollouts import Rollouts, sample_rollouts
from dvpo_lib.tasks.families import Family

SAMPLED_COLUMNS = ("prompt", "completion", "completion_ids", "length", "sample", "reward")  # added by `sample_table`
ANSWERS_KEPT = 64  # of each test set
ANSWER_COLUMNS = ("prompt", "answer", "completion", "reward", "question", "domain", "kind")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """Size of the final tests, and what is kept of a run."""

    prompts: Annotated[int, Field(ge=1)] = 256  # of each test set, the first ones
    k: Annotated[int, Field(ge=1)] = 4  # samples a prompt
    bf16: bool = False  # autocast of tests and of critic pretraining
    keep_weights: bool = True  # store the weights of trained policies and critics; off for large ones


def sample_batches(
    policy,
    tokenizer,
    records: list[dict],
    family: Family,
    temperature: float,
    seed: int,
    batch_size: int = 512,
    bf16: bool = False,
) -> list[Rollouts]:
    """Samples one completion per record, batch by batch; all randomness comes from `seed`.

    Args:
        policy: The causal LM.
        tokenizer: Its tokenizer.
        records: Problems of one family.
        family: The family, for its token limit and its user's replies.
        temperature: Of sampling; 0 decodes greedily.
        seed: Of sampling.
        batch_size: Completions sampled at a time.
        bf16: Autocast.

    Returns:
        The rollouts of each batch, in the order of the records.
    """
    length = family.max_completion_length(records)
    with torch.autocast(inner_model(policy).device.type, torch.bfloat16, enabled=bf16):
        return [
            sample_rollouts(
                policy,
                tokenizer,
                records[i : i + batch_size],
                length,
                temperature,
                seed,
                family.reply,
                rows=range(i, min(i + batch_size, len(records))),
            )
            for i in range(0, len(records), batch_size)
        ]


def sample_table(
    policy, tokenizer, data, family: Family, k: int, seed: int, temperature: float = 1.0, bf16: bool = False
) -> pd.DataFrame:
    """Samples k completions for each record and scores them with the true reward.

    Args:
        policy: The causal LM.
        tokenizer: Its tokenizer.
        data: Records of one family.
        family: The family.
        k: Completions per record.
        seed: Of sampling.
        temperature: Of sampling; 0 decodes greedily.
        bf16: Autocast.

    Returns:
        One row per completion: the record's columns (prompt among them), completion, completion_ids (as sampled;
        truncated completions lack the end of sequence), length (tokens of the policy), reward, sample (0..k-1).
    """
    records = [record for record in data for _ in range(k)]  # equal prompts side by side are read once
    rollouts = sample_batches(policy, tokenizer, records, family, temperature, seed, bf16=bf16)
    table = pd.DataFrame(records)
    table["completion"] = [c for r in rollouts for c in r.completions]
    table["completion_ids"] = [ids for r in rollouts for ids in r.completion_ids()]
    table["length"] = np.concatenate([r.tokens.mask.sum(1).cpu().numpy() for r in rollouts])
    table["reward"] = family.reward(table["prompt"].tolist(), table["completion"].tolist(), **record_columns(table))
    table["sample"] = np.tile(np.arange(k), len(records) // k)
    return table


def record_columns(table: pd.DataFrame) -> dict[str, list]:
    """The columns of the records in a `sample_table`, as keyword arguments of a reward function."""
    return {name: table[name].tolist() for name in table.columns if name not in SAMPLED_COLUMNS}


def evaluate_policy(
    policy, tokenizer, data, family: Family, k: int, seed: int, bf16: bool = False
) -> tuple[dict[str, float], pd.DataFrame]:
    """Scores a policy on a test set by true rewards (0..1).

    Args:
        policy: The causal LM.
        tokenizer: Its tokenizer.
        data: Records of one family.
        family: The family.
        k: Samples per prompt.
        seed: Of sampling.
        bf16: Autocast.

    Returns:
        Scores and greedy answers (a `sample_table`). The scores: `sampled`, mean reward of k samples; `pass_at_k`, mean
        over prompts of the best of k rewards, with 0/1 rewards the share of prompts solved at least once; `greedy`,
        mean reward of greedy decoding; then `family.details`.
    """
    sampled = sample_table(policy, tokenizer, data, family, k, seed, bf16=bf16)
    greedy = sample_table(policy, tokenizer, data, family, 1, seed, temperature=0.0, bf16=bf16)
    scores = dict(
        sampled=float(sampled["reward"].mean()),
        pass_at_k=float(sampled.groupby("prompt")["reward"].max().mean()),
        greedy=float(greedy["reward"].mean()),
        **family.details(sampled),
    )
    return scores, greedy


def kept_answers(greedy: pd.DataFrame) -> pd.DataFrame:
    """The first greedy answers of a test set: prompt, answer, completion, reward, question, domain, kind.

    The question is the prompt without a template. The kind of a question is its record's, or its number of steps.
    """
    first = greedy.head(ANSWERS_KEPT)
    own = {"question": first["prompt"], "domain": first["family"], "kind": first["steps"].map("{} steps".format)}
    shown = first[["prompt", "answer", "completion", "reward"]]
    return shown.assign(**{name: first.get(name, usual) for name, usual in own.items()})
