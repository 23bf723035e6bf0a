"""A policy's weights for an engine in another process: a folder that `from_pretrained` reads, adapters merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers.utils import logging

from dvpo_lib.models.causal_lm import inner_model


def save_policy_weights(policy: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the weights; every process of a run calls it, since shards are gathered, and the main one writes.

    Args:
        policy: Causal LM, with or without adapters; its weights are as before afterwards, bit for bit.
        folder: Is made if it does not exist.
        dtype: Of the written weights; None: as they are.
    """
    model, main = inner_model(policy), PartialState().is_main_process
    with torch.no_grad(), merged_adapters(model):
        written: dict[str, Tensor] = {}
        places: set[int] = set()
        for name, x in model.state_dict().items():
            x = x.full_tensor() if hasattr(x, "full_tensor") else x
            name = _plain_name(name)
            if not main or name is None:
                continue
            cast = x.to(dtype) if dtype is not None and x.is_floating_point() else x
            # Tied weights are written twice: servers that repack them, as vLLM on CPUs, load them apart.
            written[name] = cast.clone() if cast.data_ptr() in places else cast
            places.add(cast.data_ptr())
        if main:
            with _no_progress_bars():
                model.save_pretrained(folder, state_dict=written)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """The model with its active adapters of `peft` merged into its weights, which come back bit for bit."""
    if not any("lora_" in name or ".base_layer." in name for name, _ in model.named_parameters()):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer) and not module.merged]
    before = [
        {name: x.to("cpu", copy=True) for name, x in layer.get_base_layer().named_parameters()} for layer in layers
    ]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weights in zip(layers, before, strict=True):
            layer.unmerge()
            for name, x in layer.get_base_layer().named_parameters():
                x.copy_(weights[name])  # for a sum and a difference round


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _plain_name(name: str) -> str | None:
    """The name of a weight without its wrappers' parts; None if it is no weight of the merged model."""
    parts = name.split(".")
    if any(part.startswith("lora_") for part in parts) or "original_module" in parts:
        return None
    if "modules_to_save" in parts:
        place = parts.index("modules_to_save")
        del parts[place : place + 2]  # and the adapter's name
    return ".".join(part for part in parts if part != "base_layer")
