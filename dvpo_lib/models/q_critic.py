"""Q critics for the offline methods (`cql`, `rfqi`), and the policy with logits perturbed by Q values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.functional.quantiles import midpoint_levels, quantile_at_level, sort_quantiles
from dvpo_lib.functional.token_chunks import map_token_chunks
from dvpo_lib.models.architectures import accepted_inputs, copy_backbone, hidden_states, text_config
from dvpo_lib.models.causal_lm import cache_argument
from dvpo_lib.models.heads import in_float32, small_head
from dvpo_lib.models.tokens import Tokens


class QCritic(nn.Module):
    """Twin Q, V and outcome heads on a copy of the policy's backbone.

    Q is a value of the state plus one of each token (dueling, Wang et al. 2016): a token's own weights see too few
    samples to teach the backbone anything.

    Args:
        policy: Causal LM to copy the backbone from.
        quantiles: M of the outcome; 0 for no outcome head.
        seed: Of the heads' weights.
        layers: First layers of the backbone to keep; None: all.
    """

    def __init__(self, policy, quantiles: int = 0, seed: int = 0, layers: int | None = None):
        super().__init__()
        self.backbone = copy_backbone(policy, layers)
        generator = torch.Generator().manual_seed(seed)
        self.q = small_head(policy, 2 * text_config(policy).vocab_size, generator)
        self.state, self.v = small_head(policy, 2, generator), small_head(policy, 1, generator)
        self.outcome = small_head(policy, quantiles, generator) if quantiles else None

    @torch.no_grad()
    def start_from(self, returns: Tensor) -> None:
        """Sets the heads' biases so that predictions start as mean and distribution of `returns` (n,)."""
        for head in (self.state, self.v):
            head.bias.fill_(returns.mean())
        if self.outcome is not None:
            x, count = returns.flatten().float().sort().values, len(self.outcome.bias)
            self.outcome.bias.copy_(quantile_at_level(x.expand(count, -1), midpoint_levels(count, device=x.device)))

    def state_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(..., width) hidden states to (Q (..., 2, V), V (...)), float32."""
        q = in_float32(self.q, hidden).unflatten(-1, (2, -1))
        return q + in_float32(self.state, hidden)[..., None], in_float32(self.v, hidden).squeeze(-1)

    def forward(self, tokens: Tokens) -> QValues:
        """Predictions at every completion token, float32."""
        length = tokens.completion_length
        hidden = hidden_states(self.backbone, tokens.model_inputs())[:, -length - 1 :]
        numbers = self.q.out_features
        values = map_token_chunks(self._values_of_tokens, numbers, hidden[:, :-1], tokens.input_ids[:, -length:])
        outcome = None if self.outcome is None else sort_quantiles(in_float32(self.outcome, hidden[:, 1:]))
        return QValues(*values, outcome)

    def _values_of_tokens(self, hidden: Tensor, taken: Tensor) -> tuple[Tensor, ...]:
        """All that `QValues` holds but the outcome, for tokens `taken` (...) in states `hidden` (..., width)."""
        q, v = self.state_values(hidden)
        chosen = q.gather(-1, taken[..., None, None].expand(*q.shape[:-1], 1)).squeeze(-1)
        return chosen, q.amin(-2).amax(-1), v, (q.logsumexp(-1) - chosen).mean(-1)


class PairedCaches(NamedTuple):
    """The key/value caches of a policy and of its critic."""

    own: Any
    other: Any

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keeps these rows of both caches."""
        for cache in self:
            cache.batch_select_indices(rows)


class PerturbedPolicy(nn.Module):
    """The base policy with `strength * (Q - V)` added to its logits (Snell et al. 2022). For sampling only.

    Args:
        policy: Causal LM.
        critic: `QCritic` on the same vocabulary; the smaller twin counts.
        strength: Weight of Q - V, per return unit.
    """

    def __init__(self, policy, critic: QCritic, strength: float):
        super().__init__()
        self.policy, self.critic, self.strength = policy, critic, strength

    @property
    def device(self):
        return self.policy.device

    def forward(self, logits_to_keep: int = 1, **inputs):
        """Logits (B, 1, V) of the last position. The caches of both networks travel together."""
        name = cache_argument(self.policy)
        own, other = ({name: cache} for cache in inputs.pop(name, None) or (None, None)) if name else ({}, {})
        out = self.policy(logits_to_keep=1, **own, **inputs)
        read = self.critic.backbone(**other, **accepted_inputs(self.critic.backbone, inputs))
        q, v = self.critic.state_values(read.last_hidden_state[:, -1:])
        out.logits = out.logits + self.strength * (q.amin(-2) - v[..., None])
        if name is not None:
            out[name] = PairedCaches(out[name], read[name])
        return out
