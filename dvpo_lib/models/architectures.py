"""Differences between the architectures of `transformers`: inputs, text backbones, output layers, precision.

A policy may be a plain causal LM, a multimodal class with a nested text model, or either with adapters of `peft`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

PROBE = (-1e4, -100.0, -1.0, -0.01, 0.01, 1.0, 100.0, 1e4)  # logits by which a model's treatment of them is found


def without_adapters(model: nn.Module) -> nn.Module:
    """The module inside a `peft` wrapper (its adapters stay in place); other modules are returned as they are."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def text_config(model: nn.Module):
    """Settings of the text model: nested ones of a multimodal class."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def accepted_inputs(model: nn.Module, inputs: dict) -> dict:
    """Those inputs that the model's forward pass takes by name: not all take `position_ids` or `logits_to_keep`."""
    names = _forward_arguments(type(without_adapters(model)))
    return inputs if names is None else {name: x for name, x in inputs.items() if name in names}


@functools.cache
def _forward_arguments(kind: type) -> frozenset[str] | None:
    """Names of the forward pass' arguments; None for a wrapper that hands everything on."""
    parameters = inspect.signature(kind.forward).parameters
    hands_on = "input_ids" not in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if hands_on else frozenset(parameters)


def output_layer(policy: nn.Module) -> nn.Module | None:
    """The layer from hidden states to logits; None if the model does not name it."""
    find = getattr(without_adapters(policy), "get_output_embeddings", None)
    return None if find is None else find()


def hidden_width(policy: nn.Module) -> int:
    """Width of the hidden states that the output layer reads (OPT projects them to its embeddings' width)."""
    layer = output_layer(policy)
    width = getattr(layer, "in_features", None)
    return text_config(policy).hidden_size if width is None else width


def text_backbone(policy: nn.Module) -> nn.Module:
    """The module from tokens to last hidden states, without output layer and vision tower."""
    base = without_adapters(policy)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    return base.base_model if decoder is base else decoder


def hidden_states(backbone: nn.Module, inputs: dict) -> Tensor:
    """(B, T, width) last hidden states.

    Args:
        backbone: By `text_backbone`.
        inputs: Arguments of the forward pass; those that it does not take are left out.
    """
    return backbone(**accepted_inputs(backbone, inputs), use_cache=False).last_hidden_state


def copy_backbone(policy: nn.Module, layers: int | None = None) -> nn.Module:
    """A copy of the policy's text backbone; adapters are merged into it.

    Args:
        policy: Causal LM.
        layers: First layers to keep; None: all. The final norm stays.

    Raises:
        ValueError: If the backbone has fewer layers.
    """
    if hasattr(policy, "merge_and_unload"):
        policy = copy.deepcopy(policy).merge_and_unload()
    backbone = _copy_layers(text_backbone(policy), layers)
    backbone.generation_config = copy.deepcopy(getattr(policy, "generation_config", None))  # it lists ends of turns
    return backbone


def _copy_layers(backbone: nn.Module, layers: int | None) -> nn.Module:
    if layers is None:
        return copy.deepcopy(backbone)
    depth = backbone.config.num_hidden_layers
    if layers > depth:
        raise ValueError(f"critic.layers: the backbone has {depth} layers, not {layers}")
    path, blocks = _layer_list(backbone, depth)
    dropped = {id(block): nn.Identity() for block in blocks[layers:]}
    backbone = copy.deepcopy(backbone, dropped)  # the memory of dropped layers is never taken
    backbone.set_submodule(path, backbone.get_submodule(path)[:layers])
    changes = {"num_hidden_layers": layers}
    if getattr(backbone.config, "layer_types", None):
        changes["layer_types"] = list(backbone.config.layer_types[:layers])
    for name, value in changes.items():  # past the config's checks: until both are set they contradict each other
        vars(backbone.config)[backbone.config.attribute_map.get(name, name)] = value
    return backbone


def _layer_list(backbone: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ValueError(f"critic.layers: no list of {depth} layers in {type(backbone).__name__}")


def hidden_states_and_head(policy: nn.Module, inputs: dict) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """Inputs of the output layer in a forward pass, and a function from them to logits; logits are never computed.

    The forward pass is the model's own, with a few known numbers in place of the layer's output. What the model makes
    of them shows how it treats logits: not at all, by a factor (Cohere), by a soft cap (Gemma 2).

    Returns:
        (hidden (B, T, width), function), or None if the output layer is unknown or logits are treated in another way.
    """
    layer = output_layer(policy)
    if layer is None:
        return None
    given, seen = layer.forward, []
    own = "forward" in vars(layer)

    def record(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return torch.tensor(PROBE, device=hidden.device).view(1, 1, -1)

    layer.forward = record
    try:
        treated = policy(**accepted_inputs(policy, inputs), use_cache=False).logits
    finally:
        if own:
            layer.forward = given
        else:
            del layer.forward
    if len(seen) != 1 or treated.numel() != len(PROBE):
        return None
    treatment = _treatment(treated.flatten().double().cpu())
    if treatment is None:
        return None
    # Past the layer's hooks: those of FSDP would drop its weights after the first chunk's backward pass.
    return seen[0], lambda hidden: treatment(layer.forward(hidden))


def shards_of(*modules: nn.Module | None) -> list[nn.Module]:
    """The modules, and modules in them, whose parameters FSDP2 holds in shards; None is skipped."""
    if not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [
        part for module in modules if module is not None for part in module.modules() if isinstance(part, FSDPModule)
    ]


def is_sharded(module: nn.Module | None) -> bool:
    """Whether FSDP2 holds parameters of a module in shards."""
    return bool(shards_of(module))


def _treatment(treated: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The function that makes `treated` of the probe, if it is a factor, a soft cap or both."""
    probe = torch.tensor(PROBE, dtype=torch.float64)
    cap, factor, slope = treated[-1].item(), treated[5].item(), treated[4].item() / PROBE[4]  # logits 1e4, 1 and 0.01
    if torch.allclose(treated, factor * probe, rtol=1e-4):
        return (lambda logits: logits) if factor == 1 else lambda logits: logits * factor
    slope = 1.0 if abs(slope - 1) < 1e-5 else slope
    if cap > 0 and torch.allclose(treated, cap * torch.tanh(slope * probe / cap), rtol=1e-4):
        return lambda logits: cap * torch.tanh(logits * (slope / cap))
    return None


def train_in_float32(model: nn.Module, autocast: bool = False) -> None:
    """Makes the master weights float32, whatever the file held: at usual learning rates steps vanish in bf16.

    Of a model with adapters only what is trained: its base stays as it is. If whole layers are trained beside the
    adapters (`modules_to_save`), a base in 16 bits can read their outputs under autocast alone.

    Args:
        model: Policy or critic.
        autocast: Whether forwards run under autocast.
    """
    half = (torch.float16, torch.bfloat16)
    layers = any("modules_to_save" in name and p.requires_grad for name, p in model.named_parameters())
    if any(hasattr(module, "peft_config") for module in model.modules()) and (autocast or not layers):
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype in half:
                parameter.data = parameter.data.float()
    elif any(parameter.dtype in half for parameter in model.parameters()):
        model.float()


class PolicyReference:
    """A policy that a module reads without owning it: neither copied nor saved with the module."""

    def __init__(self, policy: nn.Module | None):
        self._policy = policy

    def __call__(self) -> nn.Module:
        """The policy.

        Raises:
            RuntimeError: If the module was read from a file, which does not hold the policy.
        """
        if self._policy is None:
            raise RuntimeError("the critic reads the hidden states of a policy that was not saved with it")
        return self._policy

    def __deepcopy__(self, memo) -> PolicyReference:
        return self

    def __reduce__(self):
        return PolicyReference, (None,)
