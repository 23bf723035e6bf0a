"""Linear heads on a policy's backbone."""

from __future__ import annotations

import torch
from torch import nn


def small_head(policy, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer on the hidden states of `policy`: weights N(0, 0.01 / width) from `generator`, bias 0.

    Args:
        policy: Causal LM with hidden states of `hidden_size`; the layer lies on its device.
        outputs: Number of outputs.
        generator: CPU source of the weights. Global generators are left alone.
    """
    width = policy.config.hidden_size
    linear = nn.utils.skip_init(nn.Linear, width, outputs)  # the default initialisation draws from a global generator
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * 0.1 / width**0.5)
        linear.bias.zero_()
    return linear.to(policy.device)
