"""Heads on the hidden states of a backbone, in float32 whatever the backbone computes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvpo_lib.models.architectures import hidden_width


def small_head(policy, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer on the hidden states of `policy`: weights N(0, 0.01 / width) from `generator`, bias 0.

    Args:
        policy: Causal LM; the layer lies on its device.
        outputs: Number of outputs.
        generator: CPU source of the weights. Global generators are left alone.
    """
    return _linear(hidden_width(policy), outputs, 0.1, generator).to(policy.device)


def _linear(width: int, outputs: int, size: float, generator: torch.Generator) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, width, outputs)  # the default initialisation draws from a global generator
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * size / width**0.5)
        linear.bias.zero_()
    return linear


class LightHeads(nn.Module):
    """N independent networks with one hidden layer each (SiLU) on the same hidden states, M outputs each.

    Args:
        policy: Causal LM; the heads lie on its device.
        heads: N.
        outputs: M.
        width: Width of each hidden layer.
        generator: CPU source of the weights.
    """

    def __init__(self, policy, heads: int, outputs: int, width: int, generator: torch.Generator):
        super().__init__()
        self.hidden = _linear(hidden_width(policy), heads * width, 1.0, generator)
        weight = torch.randn(heads, width, outputs, generator=generator) * 0.1 / width**0.5
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(heads * outputs))
        self.to(policy.device)

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) hidden states to (..., N * M)."""
        inner = F.silu(self.hidden(states)).unflatten(-1, (len(self.weight), -1))  # (..., N, W)
        return torch.einsum("...nw,nwm->...nm", inner, self.weight).flatten(-2) + self.bias


def in_float32(head: nn.Module, states: Tensor) -> Tensor:
    """Outputs of a head in float32: bf16 autocast ends here, since values need more digits than it has."""
    with torch.autocast(states.device.type, enabled=False):
        return head(states.to(next(head.parameters()).dtype)).float()
