"""Critics: N heads of M quantiles at every response token, on a backbone of their own or the policy's, and their loss.

One head of one quantile is PPO's scalar critic. Heads of bins in place of quantiles make a categorical critic.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from dvpo_lib.functional.categorical import (
    BinLogits,
    bin_edges,
    categorical_loss,
    gaussian_bin_masses,
    quantiles_of_bins,
)
from dvpo_lib.functional.critic_losses import CriticLossSettings, critic_loss
from dvpo_lib.functional.policy_losses import value_loss
from dvpo_lib.functional.q_losses import QSettings, QValues, q_loss
from dvpo_lib.functional.quantiles import midpoint_levels, quantile_at_level, quantiles_from_increments, sort_quantiles
from dvpo_lib.models.architectures import PolicyReference, copy_backbone, hidden_states, text_backbone
from dvpo_lib.models.heads import LightHeads, in_float32, small_head
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.q_critic import QCritic
from dvpo_lib.models.tokens import Tokens

CriticKind = Literal["scalar", "quantile", "categorical", "conservative_q", "robust_q"]


class Critic(nn.Module):
    """N heads of M quantiles of the return at every completion token.

    The heads read the hidden states of a backbone: a copy of the policy's, the first layers of it, or the policy
    itself, whose hidden states then carry no gradient. The value at token t is that of the state before it, so it is
    read at the previous position. Heads start from independent random weights: equal heads would stay equal.

    Args:
        policy: Causal LM to copy the backbone from, or to read.
        heads: N.
        quantiles: M; one head of one quantile is a scalar critic.
        crossing: "rearrange" leaves head outputs free (losses and read-outs sort them), "increments" builds monotone
            heads from positive steps.
        seed: Of the heads' weights.
        backbone: "own", a copy, or "policy": the policy is neither trained nor saved with the critic.
        layers: First layers of a backbone of its own to keep; None: all.
        head: "linear", or "mlp": each head a network with one hidden layer.
        head_width: Width of that layer.
    """

    def __init__(
        self,
        policy,
        heads: int = 1,
        quantiles: int = 1,
        crossing: Literal["rearrange", "increments"] = "rearrange",
        seed: int = 0,
        *,
        backbone: Literal["own", "policy"] = "own",
        layers: int | None = None,
        head: Literal["linear", "mlp"] = "linear",
        head_width: int = 64,
    ):
        super().__init__()
        self.backbone = copy_backbone(policy, layers) if backbone == "own" else None
        self.policy = PolicyReference(policy if backbone == "policy" else None)
        self.heads, self.quantiles, self.crossing = heads, quantiles, crossing
        generator = torch.Generator().manual_seed(seed)
        if head == "linear":
            self.head = small_head(policy, heads * quantiles, generator)
        else:
            self.head = LightHeads(policy, heads, quantiles, head_width, generator)
        with torch.no_grad():
            # Quantiles start in order and each head in its own place, so that heads differ from the first step on.
            offset = torch.randn(heads, 1, generator=generator) * 0.1 * (heads > 1)
            start = (midpoint_levels(quantiles) - 0.5) if crossing == "rearrange" else torch.zeros(quantiles)
            self.head.bias.copy_((start * (quantiles > 1) + offset).flatten())

    @torch.no_grad()
    def start_from(self, returns: Tensor) -> None:
        """Sets the head's bias so that predictions at every token start as the distribution of `returns` (n,)."""
        if self.quantiles == 1:
            self.head.bias.fill_(returns.mean())
            return
        x = returns.flatten().float().sort().values  # torch.quantile refuses more than 2^24 numbers
        q = quantile_at_level(x.expand(self.quantiles, -1), midpoint_levels(self.quantiles, device=x.device))
        if self.crossing == "increments":  # the inverse of `quantiles_from_increments`
            steps = (q.diff() * self.quantiles).clamp(min=1e-3)
            q = torch.cat([q.mean()[None], steps + torch.log(-torch.expm1(-steps))])
        self.head.bias.copy_(q.repeat(self.heads))

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, T, N, M) head outputs, float32, return units; monotone in M if built from increments."""
        z = in_float32(self.head, self._states(tokens)[:, -tokens.completion_length :])
        z = z.unflatten(-1, (self.heads, self.quantiles))
        return quantiles_from_increments(z) if self.crossing == "increments" and self.quantiles > 1 else z

    def _states(self, tokens: Tokens) -> Tensor:
        """Hidden states up to the last token but one: nothing is read at the last."""
        inputs = {name: x[:, :-1] for name, x in tokens.model_inputs().items()}
        if self.backbone is not None:
            return hidden_states(self.backbone, inputs)
        policy = self.policy()
        with torch.no_grad(), inference_mode_of(policy):
            return hidden_states(text_backbone(policy), inputs)


class CategoricalCritic(Critic):
    """N heads of K bins of the return at every completion token (HL-Gauss, Farebrother et al. 2024).

    Arguments as of `Critic`, and:

    Args:
        bins: K.
        support: Lower and upper end of the bins, return units; `start_from` sets them from data if they are None.
    """

    def __init__(self, policy, heads: int, quantiles: int, bins: int, support, seed: int = 0, **parts):
        super().__init__(policy, heads, bins, seed=seed, **parts)
        self.read_as, self.given = quantiles, support is not None
        self.register_buffer("support", torch.tensor(support or (0.0, 1.0), device=policy.device))
        with torch.no_grad():
            self.head.bias.zero_()

    @torch.no_grad()
    def start_from(self, returns: Tensor) -> None:
        """Sets the support, unless the settings do, and the bias so that predictions start as those of `returns`."""
        if not self.given:
            low, high = returns.min().item(), returns.max().item()
            margin = 0.1 * (high - low) or 1.0
            self.support.copy_(torch.tensor([low - margin, high + margin]))
        edges = bin_edges(self.support, self.quantiles)
        parts = returns.flatten().float().split(4096)
        masses = sum(gaussian_bin_masses(part, edges).sum(0) for part in parts) / returns.numel()
        self.head.bias.copy_(masses.clamp(min=1e-4).log().repeat(self.heads))

    def forward(self, tokens: Tokens) -> BinLogits:
        """Logits of the bins, float32."""
        return BinLogits(super().forward(tokens), self.support, self.read_as)


@settings(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CriticSettings:
    """A critic and its training.

    Example:
        >>> CriticSettings(kind="quantile", heads=5, loss={"kappa": 0.1}).loss.kappa
        0.1
    """

    kind: CriticKind = "quantile"  # PPO's scalar, DVPO's quantiles, bins in their place, CQL's and RFQI's Q functions
    heads: Annotated[int, Field(ge=1)] = 3  # N, of a quantile or categorical critic
    quantiles: Annotated[int, Field(ge=8)] = 200  # M, of a quantile critic, read-outs of bins and robust_q's outcome
    bins: Annotated[int, Field(ge=8)] = 101  # K, of a categorical critic
    support: tuple[float, float] | None = None  # ends of its bins, return units; null: pretraining rewards and a margin
    final_state: bool = False  # also learns the value after the whole response, which the denoised read-out needs
    crossing: Literal["rearrange", "increments"] = "rearrange"  # sorted afterwards, or built monotone (smooth returns)
    backbone: Literal["own", "policy"] = "own"  # a copy of the policy's, or its hidden states without gradients
    layers: Annotated[int, Field(ge=1)] | None = None  # first layers of a backbone of its own to keep; null: all
    head: Literal["linear", "mlp"] = "linear"  # or networks with one hidden layer, a critic's only
    head_width: Annotated[int, Field(ge=1)] = 64  # width of that layer
    bootstrap: Literal["poisson", "equal"] = "poisson"  # per-head weights of responses: they keep heads different
    loss: CriticLossSettings = CriticLossSettings()  # the terms of the quantile critic's loss
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2  # PPO's value clip, of a scalar critic
    q: QSettings = QSettings()  # of conservative_q and robust_q
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # of the critic's optimiser
    pretrain_rollouts: Annotated[int, Field(ge=0)] = 1024  # of the chain: scored rollouts before training
    pretrain_epochs: Annotated[int, Field(ge=0)] = 4  # passes over a fitted table; trainers fit none
    reward_clip: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # quantile at which their rewards are clipped; 0: off
    batch_size: Annotated[int, Field(ge=1)] = 32  # responses a step in pretraining

    @model_validator(mode="after")
    def _parts_fit(self):
        if self.backbone == "policy" and self.layers is not None:
            raise ValueError("layers: only a backbone of its own can be cut, not the policy's (backbone: policy)")
        if self.support is not None and not self.support[0] < self.support[1]:
            raise ValueError(f"support: {self.support[0]} is not below {self.support[1]}")
        if self.final_state and self.kind.endswith("_q"):
            raise ValueError(f"final_state is not possible for critics of kind {self.kind}")
        for name in ("backbone", "head"):
            if self.kind.endswith("_q") and getattr(self, name) not in ("own", "linear"):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not possible for critics of kind {self.kind}")
        return self


def build_critic(policy, cfg: CriticSettings, seed: int) -> Critic | QCritic:
    """Builds a critic on a copy of the policy's backbone, or on the policy's hidden states.

    Args:
        policy: Causal LM of `transformers`.
        cfg: Kind and sizes of the critic.
        seed: Of the heads' weights.

    Returns:
        A `QCritic` for kinds conservative_q and robust_q, else a `Critic`.

    Example:
        >>> critic = build_critic(policy, CriticSettings(heads=3, quantiles=50), seed=0)
        >>> critic(encode_completions(tokenizer, ["2 + 2 ="], ["4"])).shape  # (B, T, N, M)
        torch.Size([1, 2, 3, 50])
    """
    if cfg.kind.endswith("_q"):
        return QCritic(policy, cfg.quantiles if cfg.kind == "robust_q" else 0, seed, cfg.layers)
    parts = dict(backbone=cfg.backbone, layers=cfg.layers, head=cfg.head, head_width=cfg.head_width)
    if cfg.kind == "scalar":
        return Critic(policy, seed=seed, **parts)
    if cfg.kind == "categorical":
        return CategoricalCritic(policy, cfg.heads, cfg.quantiles, cfg.bins, cfg.support, seed, **parts)
    return Critic(policy, cfg.heads, cfg.quantiles, cfg.crossing, seed, **parts)


def bootstrap_weights(cfg: CriticSettings, rows: int, generator: torch.Generator) -> Tensor | None:
    """(B, N) weights of responses by head: Poisson(1) counts, the online bootstrap; None if all heads weigh alike."""
    if cfg.kind not in ("quantile", "categorical") or cfg.heads == 1 or cfg.bootstrap == "equal":
        return None
    return torch.poisson(torch.ones(rows, cfg.heads), generator=generator)


def monotone_outputs(critic: Critic | QCritic, tokens: Tokens) -> Tensor | QValues:
    """(B, T, N, M) quantiles of a critic with each head sorted, or the `QValues` of a Q critic."""
    out = critic(tokens)
    if isinstance(out, BinLogits):
        return quantiles_of_bins(out)
    return out if isinstance(out, QValues) else sort_quantiles(out)


def mean_values(values: Tensor | QValues) -> Tensor:
    """(B, T) value of the state before each token, from `monotone_outputs`."""
    return values.v if isinstance(values, QValues) else values.mean((-2, -1))


def critic_objective(
    z: Tensor | QValues | BinLogits,
    targets: Tensor,
    mask: Tensor,
    cfg: CriticSettings,
    old: Tensor | None = None,
    weights: Tensor | None = None,
    **whole: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The critic's loss and its named terms.

    Args:
        z: (B, T, N, M) outputs of the critic, its `QValues` or its `BinLogits`.
        targets: (B, T, K) samples of the return; for a Q critic the targets of `q_loss`.
        mask: (B, T).
        cfg: Settings of the critic.
        old: (B, T, N, M) monotone outputs before this update, for the value clip and the tail ratchet.
        weights: (B, N) bootstrap weights.
        **whole: Statistics of the full batch for `critic_loss`, if this is a micro-batch of it.

    Returns:
        (loss, {name: 0-dim term, detached}).
    """
    if isinstance(z, QValues):
        return q_loss(z, targets, mask, cfg.q, cfg.kind)
    if isinstance(z, BinLogits):
        losses = categorical_loss(BinLogits(z.logits[mask], z.support, z.quantiles), targets[mask])  # (R, N)
        if weights is not None:
            losses = losses * weights[:, None].expand(*mask.shape, -1)[mask].to(losses)
        loss = losses.sum() / max(1, losses.numel())
        return loss, {"categorical": loss.detach()}
    if cfg.kind == "scalar":
        old_value = None if old is None else old[..., 0, 0]
        loss = value_loss(z[..., 0, 0], targets.mean(-1), mask, old_value, None if old is None else cfg.value_clip)
        return loss, {"value": loss.detach()}
    return critic_loss(
        z, targets, mask, cfg.loss, reference=old, response_weights=weights, crossing=cfg.crossing, **whole
    )


def parameter_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shape of every parameter of a module by name."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}
