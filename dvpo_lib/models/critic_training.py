"""Training of critics alone on logs, without a training loop.

Any table of (prompt, completion, reward) gives a critic that predicts the distribution of the final reward at every
token. The loss is `critic_objective`, as in the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dvpo_lib.common.seeds import generator_for
from dvpo_lib.common.tables import number_problem, plain_number, short_repr, table_columns
from dvpo_lib.functional.advantages import clip_at_quantiles
from dvpo_lib.functional.final_states import join_final
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.functional.quantiles import sort_quantiles
from dvpo_lib.models.architectures import train_in_float32
from dvpo_lib.models.causal_lm import end_tokens, position_limit
from dvpo_lib.models.chat_templates import is_messages
from dvpo_lib.models.critic import Critic, CriticSettings, bootstrap_weights, critic_objective, monotone_outputs
from dvpo_lib.models.modes import inference_mode_of, learning_mode_of
from dvpo_lib.models.q_critic import QCritic
from dvpo_lib.models.tokens import Tokens, encode_completions, shuffled_batches


def return_targets(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """(B, T, 1) discounted return of a reward (B,) paid on the last real token."""
    to_go = mask.flip(1).cumsum(1).flip(1) - 1
    return torch.where(mask, rewards[:, None] * gamma ** to_go.clamp(min=0), 0.0)[..., None]


@dataclass
class CriticTable:
    """A table of (prompt, completion, reward) as tensors.

    Attributes:
        tokens: B prompts and completions.
        rewards: (B,).
    """

    tokens: Tokens
    rewards: Tensor


def encode_table(
    table,
    processing_class,
    max_completion_length: int | None = None,
    ends: Sequence[int] | None = None,
    positions: int | None = None,
) -> CriticTable:
    """Encodes a table with columns prompt, completion, reward. Records with reward None are left out.

    Args:
        table: `datasets.Dataset`, data frame of pandas, list of records, or lists by column name. A column
            `completion_ids` (token ids as sampled) replaces the texts of the records that have it.
        processing_class: The tokenizer.
        max_completion_length: Tokens to keep of a completion; None for all.
        ends: Tokens that end a turn, by `end_tokens`; None: the tokenizer's.
        positions: Tokens of prompt and completion that the model has positions for; None for no limit.

    Raises:
        ValueError: If a column is missing, no record has a reward, or a record (named by its index) has an empty
            prompt, a prompt or completion that is neither a text nor messages, more tokens than positions, or a reward
            other than None or a number that float32 can hold.
    """
    rows = table_columns(table, ("prompt", "completion", "reward"), ("completion_ids",))
    rewards = [plain_number(reward) for reward in rows["reward"]]
    for i, reward in enumerate(rewards):
        if reward is not None and (problem := number_problem(reward)):
            raise ValueError(f"record {i}: reward {short_repr(reward)} {problem}")
    tokens = _encode_rows(rows, processing_class, max_completion_length, ends, positions)
    given = [i for i, reward in enumerate(rewards) if reward is not None]
    if not given:
        raise ValueError("the table has no record with a reward")
    if len(given) < len(rewards):
        tokens, rewards = tokens.rows(torch.tensor(given)), [rewards[i] for i in given]
    return CriticTable(tokens, torch.tensor(rewards, dtype=torch.float32))


def _encode_rows(
    rows: Mapping[str, list],
    processing_class,
    longest: int | None,
    ends: Sequence[int] | None = None,
    positions: int | None = None,
) -> Tokens:
    completions = table_completions(rows)
    for i, (prompt, completion) in enumerate(zip(rows["prompt"], completions, strict=True)):
        for name, text in (("prompt", prompt), ("completion", completion)):
            known = isinstance(text, str) or is_messages(text)
            if not known and (name == "prompt" or completion is rows["completion"][i]):
                raise ValueError(f"record {i}: {name} {short_repr(text)} is neither a text nor a list of messages")
    tokens = encode_completions(processing_class, rows["prompt"], completions, longest, ends)
    check_positions(tokens, positions)
    return tokens


def _network_read_by(critic: Critic | QCritic):
    """The network whose hidden states a critic's heads read."""
    return critic.policy() if critic.backbone is None else critic.backbone


def _limits_of(critic: Critic | QCritic, processing_class) -> dict:
    network = _network_read_by(critic)
    return dict(ends=end_tokens(network, processing_class), positions=position_limit(network))


def check_positions(tokens: Tokens, positions: int | None) -> None:
    """Checks that a model has a position for every token of prompt and completion.

    Raises:
        ValueError: If it has not; the message names the record by its index.
    """
    lengths = tokens.attention_mask.sum(1)
    if positions is not None and (lengths > positions).any():
        i = int((lengths > positions).nonzero()[0])
        raise ValueError(f"record {i}: {int(lengths[i])} tokens do not fit into the model's {positions} positions")


def table_completions(rows: Mapping[str, list]) -> list[str | list[int]]:
    """Completions of a table by column: token ids if a record has them, else its text."""
    ids = rows.get("completion_ids", [None] * len(rows["completion"]))
    return [text if own is None else own for own, text in zip(ids, rows["completion"], strict=True)]


def fit_critic(
    critic: Critic,
    table,
    processing_class,
    cfg: CriticSettings,
    seed: int,
    gamma: float = 1.0,
    progress: str | None = None,
    refresh: int = 8,
    bf16: bool = False,
) -> list[dict[str, float]]:
    """Fits a critic to logged outcomes, in place. The target of every token is the discounted return of its response.

    Heads start from the distribution of all targets, so that the data's tails are there from the first step.

    Args:
        critic: Critic of `build_critic`.
        table: `datasets.Dataset`, data frame, list of records or lists by column, with prompt, completion and reward;
            or an encoded `CriticTable`.
        processing_class: The tokenizer.
        cfg: Settings of the critic: loss, learning rate, batch size, epochs.
        seed: Of the order of batches and of the bootstrap.
        gamma: Discount.
        progress: Label of a progress bar; None for no bar.
        refresh: Largest age, in steps, of the critic that the tail ratchet refers to.
        bf16: Autocast.

    Returns:
        One record of named losses per step.

    Raises:
        ValueError: If the table cannot be encoded (see `encode_table`).
        FloatingPointError: If a loss or a gradient is not finite.

    Example:
        >>> logs = [{"prompt": "2 + 2 =", "completion": "4", "reward": 1.0}]
        >>> history = fit_critic(critic, logs, tokenizer, CriticSettings(batch_size=1), seed=0)
        >>> history[-1]["loss"]
    """
    data = table
    if not isinstance(table, CriticTable):
        data = encode_table(table, processing_class, **_limits_of(critic, processing_class))
    check_positions(data.tokens, position_limit(_network_read_by(critic)))
    device = next(critic.parameters()).device
    tokens, rewards = data.tokens.to(device), clip_at_quantiles(data.rewards, cfg.reward_clip).to(device)
    targets = return_targets(rewards, tokens.mask, gamma)
    if cfg.final_state:
        tokens, targets = tokens.with_final_state(), join_final(targets, rewards[:, None], tokens.mask)
    critic.start_from(targets[tokens.mask])
    generator = generator_for(seed, "critic fitting")
    weights = bootstrap_weights(cfg, len(tokens), generator)
    train_in_float32(critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=cfg.learning_rate)
    steps = cfg.pretrain_epochs * max(1, len(tokens) // cfg.batch_size)
    batches, history, pending = shuffled_batches(len(tokens), cfg.batch_size, generator), [], []
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with_reference = cfg.kind == "quantile" and cfg.loss.uses_reference
    for step in tqdm(range(steps), desc=progress, disable=progress is None, mininterval=2):
        if not pending:
            pending = [next(batches) for _ in range(min(refresh, steps - step))]
            with torch.no_grad(), inference_mode_of(critic), autocast:
                old = [sort_quantiles(critic(tokens.rows(i.to(device)))) if with_reference else None for i in pending]
        rows, reference = pending.pop(0).to(device), old.pop(0)
        batch = tokens.rows(rows)
        try:
            with learning_mode_of(critic):  # dropout off: it would draw from global generators
                with autocast:
                    loss, terms = critic_objective(
                        critic(batch),
                        targets[rows, : batch.completion_length],
                        batch.mask,
                        cfg,
                        reference,
                        None if weights is None else weights.to(device)[rows],
                    )
                optimizer.zero_grad()
                loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0))
            if not math.isfinite(loss.item() + norm):
                raise FloatingPointError(f"the loss is {loss.item()}, the gradient's norm {norm}")
        except FloatingPointError as error:
            advice = f"lower learning_rate ({cfg.learning_rate})"
            raise FloatingPointError(f"{cfg.kind} critic, seed {seed}, step {step}: {error}; {advice}") from error
        optimizer.step()
        history.append({"loss": loss.item(), **{k: float(v) for k, v in terms.items()}})
    critic.eval()
    return history


@torch.no_grad()
def predict_values(critic: Critic, table, processing_class, batch_size: int = 256) -> list[np.ndarray]:
    """Predicts the distribution of the return at every token of the policy.

    Args:
        critic: A fitted critic.
        table: `datasets.Dataset`, data frame, list of records or lists by column, with prompt and completion (or
            completion_ids, which are preferred).
        processing_class: The tokenizer.
        batch_size: Responses per forward pass.

    Returns:
        One array (T_i, M) of monotone quantiles per response, the mean over heads. M = 1 for a scalar critic and for
        the V of a Q critic. In a dialogue only the policy's own tokens have a row.

    Raises:
        ValueError: If the table cannot be encoded (see `encode_table`).

    Example:
        >>> [quantiles] = predict_values(critic, [{"prompt": "2 + 2 =", "completion": "4"}], tokenizer)
        >>> quantiles.mean(1)  # expected reward before each token
    """
    rows = table_columns(table, ("prompt", "completion"), ("completion_ids",))
    tokens = _encode_rows(rows, processing_class, None, **_limits_of(critic, processing_class))
    tokens, values = tokens.to(next(critic.parameters()).device), []
    for index in torch.arange(len(tokens)).split(batch_size):
        batch = tokens.rows(index.to(tokens.mask.device))
        with inference_mode_of(critic):
            out = monotone_outputs(critic, batch)
        z = (out.v[..., None] if isinstance(out, QValues) else out.mean(-2)).cpu()
        values += [z[i, mask].numpy() for i, mask in enumerate(batch.mask.cpu())]
    return values
