"""Networks of a run without weights: built as the trainer builds them, on PyTorch's meta device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.models.architectures import train_in_float32
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.trainer_base import networks


def load_model_config(name: str | Path):
    """The configuration of a model: a `config.json`, a folder with one, or a name on the hub.

    Raises:
        ConfigError: If there is none, or `transformers` does not know the model type.
    """
    from transformers import AutoConfig

    file = Path(name)
    try:
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**values)
        if file.suffix == ".json":
            raise OSError("no such file")
        return AutoConfig.from_pretrained(str(name))
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"model {name}: no configuration can be read: {reason}") from None


@dataclass
class NetworkOutlines:
    """Networks that have shapes and no numbers.

    Attributes:
        policy: With adapters, if the run has them.
        critic: None for a method without a critic.
        reference: Frozen copy of the policy; None without KL penalty, and with adapters, which are switched off.
        target_critic: Of an offline method.
    """

    policy: nn.Module
    critic: nn.Module | None
    reference: nn.Module | None
    target_critic: nn.Module | None


def outline_networks(config, args: DVPOConfig, peft_config=None) -> NetworkOutlines:
    """Outlines of all networks of a run.

    Args:
        config: Of the model, by `load_model_config`.
        args: Resolved settings.
        peft_config: Adapters of `peft`.
    """
    from transformers import AutoModelForCausalLM

    method = METHODS[args.method]
    dtype = (args.model_init_kwargs or {}).get("dtype", torch.float32)
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if peft_config is None:
        train_in_float32(policy)
    critic = None
    if method.critic is not None:
        critic = networks.critic_of(policy, None, args.critic, args, peft_config if args.critic_peft else None)
    reference = None
    if peft_config is not None:
        policy = networks.with_adapters(policy, peft_config, args)
    elif args.beta > 0 or method.offline:
        reference = networks.frozen_copy(policy)
    return NetworkOutlines(policy, critic, reference, networks.frozen_copy(critic) if method.offline else None)


def make_fake(network: nn.Module | None) -> None:
    """Replaces weights and buffers by fake tensors on a CPU; to be called in a `FakeTensorMode`."""
    made: dict[int, torch.Tensor] = {}
    for module in [] if network is None else network.modules():
        for own in (module._parameters, module._buffers):
            for name, x in own.items():
                if x is None:
                    continue
                if id(x) not in made:
                    fake = torch.empty(x.shape, dtype=x.dtype)
                    made[id(x)] = nn.Parameter(fake, x.requires_grad) if isinstance(x, nn.Parameter) else fake
                own[name] = made[id(x)]
