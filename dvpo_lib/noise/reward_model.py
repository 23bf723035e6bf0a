"""A trained reward model of a chosen accuracy: a noise source whose errors depend on the response.

A classifier on the policy's backbone learns from answers of the base policy whether they are right; some of its labels
are flipped. A search over the length of training brings its accuracy on unseen prompts to the target. The final
accuracy is measured on further prompts, used neither in training nor in the search.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from safetensors.torch import load_file
from torch import Tensor, nn

from dvpo_lib.common.seeds import generator_for
from dvpo_lib.models.architectures import copy_backbone, hidden_states
from dvpo_lib.models.heads import in_float32, small_head
from dvpo_lib.models.modes import learning_mode_of
from dvpo_lib.models.tokens import Tokens, encode_completions, shuffled_batches

WEIGHTS_FILE = "reward_model.safetensors"
ACCURACY_TOLERANCE = 0.001  # of the search, on its own answers


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RewardModelSettings:
    """Settings of the reward model and of the search for its accuracy."""

    accuracy: Annotated[float, Field(gt=0.5, lt=1)] = 0.718  # on held-out answers; the paper's for dialogue
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.2  # share of its training labels that are flipped
    examples: Annotated[int, Field(ge=1)] = 1024  # labelled answers of the base policy to learn from
    held_out: Annotated[int, Field(ge=1)] = 12_288  # answers for the search, and as many for the measurement
    steps: Annotated[int, Field(ge=1)] = 1024  # optimiser steps at most
    check_every: Annotated[int, Field(ge=1)] = 24  # steps between two checks of the accuracy
    batch_size: Annotated[int, Field(ge=1)] = 64  # answers a step
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layers: Annotated[int, Field(ge=1)] | None = None  # first layers of the policy's backbone to keep; null: all
    bf16: bool = False  # autocast


class RewardModel(nn.Module):
    """P(right) of a whole response, read at its last token, on a copy of the policy's backbone.

    Args:
        policy: The causal LM to copy the backbone from.
        seed: Of the head's weights.
        layers: First layers of the backbone to keep; None: all.
    """

    def __init__(self, policy, seed: int = 0, layers: int | None = None):
        super().__init__()
        self.backbone = copy_backbone(policy, layers)
        self.head = small_head(policy, 1, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tokens) -> Tensor:
        """(B,) logits."""
        hidden = hidden_states(self.backbone, tokens.model_inputs())  # (B, T, width)
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        last = torch.where(tokens.attention_mask.bool(), positions, -1).amax(1)  # (B,) the last real token
        return in_float32(self.head, hidden[torch.arange(len(last), device=last.device), last]).squeeze(-1)


@torch.no_grad()
def predict_probabilities(model: RewardModel, tokens: Tokens, batch_size: int = 512, bf16: bool = False) -> np.ndarray:
    """(B,) P(right) of encoded responses; `bf16` for autocast."""
    device, every = next(model.parameters()).device, torch.arange(len(tokens), device=tokens.mask.device)
    found = torch.empty(len(tokens))
    for rows in tokens.by_length(every).split(batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found[rows] = model(tokens.rows(rows).to(device)).sigmoid().cpu()
    return found.numpy()


class Snapshot(NamedTuple):
    """The model at one check of the search: row of the log, step, accuracy minus target, weights."""

    row: int
    step: float
    error: float
    weights: list[Tensor]

    def distance(self) -> float:
        """Distance of the accuracy from the target."""
        return abs(self.error)


def search_accuracy(
    model: RewardModel,
    tokens: Tokens,
    labels: Tensor,
    held: Tokens,
    truth: np.ndarray,
    cfg: RewardModelSettings,
    seed: int,
) -> list[dict]:
    """Trains a model in place until its accuracy on held-out answers equals the target.

    The accuracy rises while the model learns the form of right answers, and falls once it memorises wrong labels.
    Training stops when the accuracy falls to the target; if it never does, the last rise through the target counts.
    (The model starts by predicting the rarer class for every answer, so the accuracy rises through every target that it
    reaches.) Bisection then refines the length between the two checks around the crossing, on the straight line between
    their weights, along which the accuracy crosses the target too.

    Args:
        model: The model to train.
        tokens: (B, T) answers to learn from.
        labels: (B,) their labels, 0 or 1, noise included.
        held: (B', T') held-out answers.
        truth: (B',) whether they are right, 0 or 1.
        cfg: Settings of training and search.
        seed: Of the order of batches.

    Returns:
        One record per check: step (a fraction after bisection), accuracy, taken (True for the model returned).

    Raises:
        ValueError: If the accuracy is never reached.
    """
    log: list[dict] = []
    device = model.head.weight.device
    tokens, labels = tokens.to(device), labels.to(device)

    def check(step: float) -> Snapshot:
        accuracy = float(((predict_probabilities(model, held, bf16=cfg.bf16) >= 0.5) == (truth >= 0.5)).mean())
        log.append({"step": step, "accuracy": accuracy, "taken": False})
        return Snapshot(len(log) - 1, step, accuracy - cfg.accuracy, [p.detach().clone() for p in model.parameters()])

    with torch.no_grad():
        model.head.bias.fill_(1.0 if truth.mean() < 0.5 else -1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.learning_rate)
    batches = shuffled_batches(len(tokens), cfg.batch_size, generator_for(seed, "reward model batches"))
    previous, crossing = check(0), None
    for step in range(1, cfg.steps + 1):
        rows = next(batches)
        optimizer.zero_grad()
        with learning_mode_of(model):
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.bf16):
                loss = nn.functional.binary_cross_entropy_with_logits(model(tokens.rows(rows)), labels[rows])
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % cfg.check_every and step < cfg.steps:
            continue
        current = check(step)
        if (previous.error < 0) != (current.error < 0):
            crossing = previous, current
        if previous.error >= 0 > current.error:
            break
        previous = current
    if crossing is None:
        best = max(record["accuracy"] for record in log)
        raise ValueError(
            f"reward_model.accuracy: {cfg.accuracy:.1%} is not reached in {cfg.steps} steps (at most {best:.1%}): "
            "use more examples or steps, or less label_noise"
        )
    first, last = crossing
    nearest = min(crossing, key=Snapshot.distance)
    low, high = 0.0, 1.0  # positions on the line between the two weights
    while nearest.distance() > ACCURACY_TOLERANCE and high - low > 1e-3:
        share = (low + high) / 2
        set_weights(model, [a + share * (b - a) for a, b in zip(first.weights, last.weights, strict=True)])
        between = check(first.step + share * (last.step - first.step))
        low, high = (share, high) if (between.error < 0) == (first.error < 0) else (low, share)
        nearest = min(nearest, between, key=Snapshot.distance)
    set_weights(model, nearest.weights)
    log[nearest.row]["taken"] = True
    return log


@torch.no_grad()
def set_weights(model: nn.Module, weights: list[Tensor]) -> None:
    """Copies weights into a model, in the order of its parameters."""
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.copy_(value)


def calibration_table(predictions: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Predicted and actual shares of right answers, by bins of equal size.

    Args:
        predictions: Columns probability, right (0/1).
        bins: Number of bins, from the smallest to the largest probability.

    Returns:
        One row per bin: predicted, right (means), count.
    """
    place = predictions["probability"].rank(method="first").sub(1) * bins // len(predictions)
    by = predictions.groupby(place.astype(int))
    return pd.DataFrame({"predicted": by["probability"].mean(), "right": by["right"].mean(), "count": by.size()})


def model_reward(model: RewardModel, tokenizer) -> Callable:
    """Builds a reward function: the model's probability that a response is right."""

    def right_probability(prompts, completions, **columns):
        tokens = encode_completions(tokenizer, list(prompts), list(completions))
        return predict_probabilities(model, tokens).astype(float).tolist()

    return right_probability


def load_reward_model(path: str | Path, policy) -> RewardModel:
    """Loads a trained reward model.

    Args:
        path: The file of weights.
        policy: The policy whose backbone the model was built on.
    """
    weights = load_file(path)
    numbers = (next((int(part) for part in name.split(".") if part.isdigit()), 0) for name in weights)
    model = RewardModel(policy, layers=1 + max(numbers))
    model.load_state_dict(weights)
    return model.eval()
