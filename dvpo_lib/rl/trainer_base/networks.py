"""Networks of a run from what the user passes: names or modules, in any precision, with or without adapters."""

from __future__ import annotations

import copy
import hashlib
import json
import logging

import torch
from torch import nn

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.architectures import train_in_float32
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.q_critic import QCritic
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer_base.parallel.sharding import whole_tensors

logger = logging.getLogger(__name__)


def load_causal_lm(model: str | nn.Module, args: DVPOConfig) -> nn.Module:
    """The policy: a module as it is, or the model of that name (hub or folder), in float32 unless settings say else."""
    if not isinstance(model, str):
        if args.model_init_kwargs is not None:
            logger.warning("model_init_kwargs are ignored: the model was passed as a module, not by name")
        return model
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, **_load_arguments(args))


def load_classifier(name: str, args: DVPOConfig) -> nn.Module:
    """A sequence classifier with one output, by name."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **_load_arguments(args))


def load_tokenizer(model: nn.Module, args: DVPOConfig):
    """The tokenizer that belongs to a model, by the name that the model was loaded from."""
    from transformers import AutoTokenizer

    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("processing_class is missing, and the model has no name to load its tokenizer by")
    return AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=args.trust_remote_code)


def _load_arguments(args: DVPOConfig) -> dict:
    defaults = dict(dtype=torch.float32, trust_remote_code=args.trust_remote_code)
    return {**defaults, **(args.model_init_kwargs or {})}


def check_special_tokens(tokenizer, model: nn.Module) -> None:
    """Sets a missing padding token to the end of sequence.

    Raises:
        ValueError: If neither tokenizer nor model has an end of sequence: no response could end.
    """
    generation = getattr(model, "generation_config", None)
    if tokenizer.eos_token_id is None and getattr(generation, "eos_token_id", None) is None:
        raise ValueError(
            "the tokenizer has no end of sequence (eos_token), nor has the model's generation_config: set one of them"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has neither a padding token nor an end of sequence: set pad_token")
        tokenizer.pad_token = tokenizer.eos_token


def is_peft_model(model: nn.Module) -> bool:
    """Whether a model has adapters of `peft`."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def with_adapters(model: nn.Module, peft_config, args: DVPOConfig) -> nn.Module:
    """The model with new adapters, which alone are trained.

    Args:
        model: Without adapters.
        peft_config: Of the package `peft`.
        args: Its seed decides the adapters' first weights; global generators are left alone.

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the model has adapters already.
    """
    try:
        import peft
    except ImportError:
        raise ImportError("peft_config needs the package peft: pip install 'dvpo-lib[peft]'") from None
    if not isinstance(peft_config, peft.PeftConfig):
        raise TypeError(f"peft_config must be a peft.PeftConfig, LoraConfig say, not {type(peft_config).__name__}")
    if is_peft_model(model):
        raise ValueError("peft_config was passed with a model that has adapters already: merge and unload them first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(args.seed, "adapters"))
        model = peft.get_peft_model(model, peft_config)
    train_in_float32(model, args.bf16 or args.fp16)
    return model


def adapter_settings(model: nn.Module) -> dict[str, dict]:
    """Plain values of a model's adapters by name, less those that name a place or a version; empty without adapters."""
    free = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
    configs = model.peft_config if is_peft_model(model) else {}
    plain = {name: {k: v for k, v in config.to_dict().items() if k not in free} for name, config in configs.items()}
    return json.loads(json.dumps(plain, default=lambda x: sorted(x) if isinstance(x, set) else str(x)))


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, for a reference policy or a target critic."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def adapters_change_nothing(model: nn.Module) -> bool:
    """Whether a model with fresh LoRA adapters equals its base: their second matrices are 0."""
    second = [p for name, p in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(second) and not any(p.any() for p in second)


def critic_of(
    policy: nn.Module, critic: Critic | QCritic | None, cfg: CriticSettings, args: DVPOConfig, peft_config=None
) -> Critic | QCritic:
    """The critic of a run: the one that was passed, or a new one on a copy of the policy's backbone.

    Args:
        policy: Before it gets new adapters; adapters that it has are merged into the copy.
        peft_config: Adapters of the backbone; None: all weights are trained.

    Raises:
        ValueError: If the passed critic is not built as the settings have it.
    """
    if critic is None or not is_peft_model(policy):
        fresh = build_critic(policy, cfg, args.seed)
        if critic is not None and _shapes(critic) != _shapes(fresh):
            raise ValueError(f"the critic that was passed is none of kind {cfg.kind} as args.critic has it")
        critic = fresh if critic is None else critic
    critic.requires_grad_(True)
    if peft_config is not None and critic.backbone is not None:
        own = copy.deepcopy(peft_config)
        own.task_type, own.modules_to_save, own.inference_mode = None, None, False
        critic.backbone = with_adapters(critic.backbone, own, args)
    train_in_float32(critic)
    return critic


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def fingerprint(module: nn.Module, frozen: bool = False) -> str:
    """A hash of all weights, or of the frozen parameters alone; all processes call it if there are shards."""
    digest = hashlib.sha256()
    named = (
        [(n, p) for n, p in module.named_parameters() if not p.requires_grad] if frozen else module.state_dict().items()
    )
    for name, x in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(whole_tensors(x.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
