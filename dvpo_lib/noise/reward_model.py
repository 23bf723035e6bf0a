"""A trained reward model of a chosen accuracy: a noise source whose errors depend on what the response says.

A classifier on the policy's backbone learns from answers of the base policy whether they are right, some of its labels
being turned over, and is trained for as long as its accuracy, on prompts that it has not seen, is the one asked for:
the search is over training length. Then it is measured on further prompts, seen neither in training nor in the search.
"""

from __future__ import annotations

import copy
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
from dvpo_lib.models.tokens import Tokens, encode, shuffled_batches

WEIGHTS = "reward_model.safetensors"
TOLERANCE = 0.001  # of the accuracy that the search reaches on its own answers


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RewardModelSettings:
    """A reward model and the search for its accuracy."""

    accuracy: Annotated[float, Field(gt=0.5, lt=1)] = 0.718  # on held-out answers; the paper's for dialogue
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.2  # share of its training labels that are turned over
    examples: Annotated[int, Field(ge=1)] = 1024  # labelled answers of the base policy that it learns from
    held_out: Annotated[int, Field(ge=1)] = 12_288  # answers that the search looks at, and as many to measure it on
    steps: Annotated[int, Field(ge=1)] = 1024  # optimiser steps at most
    check_every: Annotated[int, Field(ge=1)] = 24  # steps between two looks at the accuracy
    batch_size: Annotated[int, Field(ge=1)] = 64  # answers a step
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3


class RewardModel(nn.Module):
    """P(right) of a whole response, read at its last token, on a copy of the policy's backbone.

    Args:
        policy: the causal LM whose backbone is copied. seed: of the head's weights.
    """

    def __init__(self, policy, seed: int = 0):
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        width, generator = policy.config.hidden_size, torch.Generator().manual_seed(seed)
        self.head = nn.utils.skip_init(nn.Linear, width, 1)  # the default init draws globally
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, width, generator=generator) * 0.1 / width**0.5)
            self.head.bias.zero_()
        self.head.to(policy.device)

    def forward(self, tokens: Tokens) -> Tensor:
        """(B,) logits."""
        hidden = self.backbone(**tokens.model_inputs(), use_cache=False).last_hidden_state
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = torch.where(tokens.attention_mask.bool(), places, -1).amax(1)  # the last real token
        return self.head(hidden[torch.arange(len(last), device=last.device), last].float()).squeeze(-1)


@torch.no_grad()
def probabilities(model: RewardModel, tokens: Tokens, batch_size: int = 512) -> np.ndarray:
    """(B,) P(right) of encoded responses."""
    order, device = tokens.attention_mask.sum(1).argsort(stable=True), next(model.parameters()).device
    found = torch.empty(len(tokens))
    for rows in order.split(batch_size):  # of like length, so that little is padded
        found[rows] = model(tokens.rows(rows).to(device)).sigmoid().cpu()
    return found.numpy()


class Look(NamedTuple):
    """A model on its way: its place among all looks, step, by how much its accuracy exceeds the target, weights."""

    place: int
    step: float
    error: float
    weights: list[Tensor]

    def distance(self) -> float:
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
    """Trains `model`, in place, for as long as its accuracy on `held` is the one asked for.

    The accuracy rises while the model learns what right answers look like, and falls while it learns its wrong labels
    by heart. Training is broken off where it falls to the target; where it never falls that far, the last place counts
    at which it rises to it. (At first everything is called what answers are more rarely, right or wrong: there is such
    a place wherever the accuracy is reached at all.) Between the two looks around that place the length is refined by
    bisection on the straight line between their weights, along which the accuracy passes the target too.

    Args:
        labels: (B,) 0 or 1, noise included, of `tokens`. truth: (B',) 0 or 1, of `held`.

    Returns:
        One record for each look: step (a fraction of steps where refined), accuracy, taken (bool, one of them).

    Raises:
        ValueError: the accuracy is never reached.
    """
    looks: list[dict] = []

    def look(step: float) -> Look:
        accuracy = float(((probabilities(model, held) >= 0.5) == (truth >= 0.5)).mean())
        looks.append({"step": step, "accuracy": accuracy, "taken": False})
        return Look(len(looks) - 1, step, accuracy - cfg.accuracy, [p.detach().clone() for p in model.parameters()])

    with torch.no_grad():
        model.head.bias.fill_(1.0 if truth.mean() < 0.5 else -1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.learning_rate)
    batches = shuffled_batches(len(tokens), cfg.batch_size, generator_for(seed, "reward model batches"))
    before, around = look(0), None
    for step in range(1, cfg.steps + 1):
        rows = next(batches)
        loss = nn.functional.binary_cross_entropy_with_logits(model(tokens.rows(rows)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % cfg.check_every and step < cfg.steps:
            continue
        now = look(step)
        if (before.error < 0) != (now.error < 0):
            around = before, now
        if before.error >= 0 > now.error:
            break
        before = now
    if around is None:
        best = max(x["accuracy"] for x in looks)
        raise ValueError(
            f"reward_model.accuracy: {cfg.accuracy:.1%} is not reached in {cfg.steps} steps (at most "
            f"{best:.1%}): more examples or steps, or less label_noise, are needed"
        )
    first, last = around
    nearest = min(around, key=Look.distance)
    low, high = 0.0, 1.0  # places on the line from the first to the last
    while nearest.distance() > TOLERANCE and high - low > 1e-3:
        share = (low + high) / 2
        move(model, [a + share * (b - a) for a, b in zip(first.weights, last.weights, strict=True)])
        between = look(first.step + share * (last.step - first.step))
        low, high = (share, high) if (between.error < 0) == (first.error < 0) else (low, share)
        nearest = min(nearest, between, key=Look.distance)
    move(model, nearest.weights)
    looks[nearest.place]["taken"] = True
    return looks


@torch.no_grad()
def move(model: nn.Module, weights: list[Tensor]) -> None:
    """Gives a model other weights, in the order of its parameters."""
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.copy_(value)


def calibration_table(predictions: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Predicted against actual shares of right answers, a row for each tenth of all answers: predicted, right, count.

    Args:
        predictions: probability, right (0/1).
    """
    place = predictions["probability"].rank(method="first").sub(1) * bins // len(predictions)
    by = predictions.groupby(place.astype(int))
    return pd.DataFrame({"predicted": by["probability"].mean(), "right": by["right"].mean(), "count": by.size()})


def model_reward(model: RewardModel, tokenizer) -> Callable:
    """A reward function: the model's probability that a response is right."""

    def judged(prompts, completions, **columns):
        return probabilities(model, encode(tokenizer, list(prompts), list(completions))).astype(float).tolist()

    return judged


def load_reward_model(path: str | Path, policy) -> RewardModel:
    """A trained reward model from its file of weights; `policy` is the one whose backbone it has."""
    model = RewardModel(policy)
    model.load_state_dict(load_file(path))
    return model.eval()
