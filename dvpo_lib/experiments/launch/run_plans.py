"""Runs to plan, what saves memory in them, and plans as text."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.launch.memory_plan import GIB, USABLE, MemoryPlan, plan_memory
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
FEW_SAMPLED_TOGETHER = 16


@dataclass(frozen=True)
class RunOutline:
    """A run as far as its memory depends on it.

    Attributes:
        model: Name of the model.
        config: Its configuration.
        settings: Of `DVPOConfig`, nested ones as mappings; those that are not named have their defaults.
        prompt_length: Tokens of a prompt.
        gpus: Number of processes.
        memory_gb: Memory of each GPU.
        sharded: Whether FSDP spreads the networks over the GPUs.
        peft: Arguments of `peft.LoraConfig`; None: all weights are trained.
    """

    model: str
    config: Any
    settings: Mapping[str, Any]
    prompt_length: int = 512
    gpus: int = 1
    memory_gb: float = 80.0
    sharded: bool = False
    peft: Mapping[str, Any] | None = None

    def arguments(self) -> DVPOConfig:
        """Settings of one of its processes.

        Raises:
            ConfigError: If a setting does not exist or contradicts others.
        """
        own = dict(self.settings)
        size = own.get("generation_batch_size")
        if size is not None and size % self.gpus:
            raise ConfigError(f"generation_batch_size {size} is not a multiple of the {self.gpus} GPUs")
        if size is not None:
            own["generation_batch_size"] = size // self.gpus
        try:
            return DVPOConfig(**{"output_dir": "plan", "report_to": "none", **own})
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error).replace("DVPOConfig.__init__() got an", "settings:")) from None

    def plan(self) -> MemoryPlan:
        """Its memory on each GPU."""
        arguments, config = self.arguments(), copy.deepcopy(self.config)
        try:
            return plan_memory(config, arguments, self.prompt_length, self.gpus, self.sharded, lora_config(self.peft))
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(str(error)) from None


def lora_config(peft: Mapping[str, Any] | None):
    """`peft.LoraConfig` of these arguments; None for none.

    Raises:
        ConfigError: If `peft` is not installed, or does not know an argument.
    """
    if peft is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError("peft: the package is not installed: pip install 'dvpo-lib[peft]'") from None
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **peft})
    except TypeError as error:
        raise ConfigError(f"peft: {error}") from None


def find_savings(run: RunOutline, plan: MemoryPlan) -> list[tuple[str, MemoryPlan]]:
    """Changes that make a run fit, each on top of those before it, with the plan after it.

    Changes that cost the result nothing come first; those that lower nothing are left out. If the last plan does not
    fit either, all changes together are not enough.

    Args:
        run: A run that does not fit.
        plan: Its plan.
    """
    found = []
    for change in (_autocast, _shards, _checkpoints, _sampling_parts, _small_micro_batch, _adapters, _shared_backbone):
        if plan.fits(run.memory_gb):
            break
        label, changed = change(run, run.arguments()) or (None, run)
        smaller = plan if label is None else changed.plan()
        if smaller.total < plan.total:
            run, plan = changed, smaller
            found.append((label, plan))
    return found


def _with_settings(run: RunOutline, **settings: Any) -> RunOutline:
    return replace(run, settings={**run.settings, **settings})


def _autocast(run: RunOutline, args: DVPOConfig):
    return None if args.bf16 or args.fp16 else ("bf16=true", _with_settings(run, bf16=True))


def _shards(run: RunOutline, args: DVPOConfig):
    if run.gpus > 1 and not (run.sharded or run.peft or METHODS[args.method].offline):
        return "fsdp=full_shard", replace(run, sharded=True)


def _checkpoints(run: RunOutline, args: DVPOConfig):
    if not args.activation_checkpointing:
        return "gradient_checkpointing=true", _with_settings(run, gradient_checkpointing=True)


def _sampling_parts(run: RunOutline, args: DVPOConfig):
    if (args.sampling_batch_size or args.generation_batch_size) > FEW_SAMPLED_TOGETHER:
        name = f"sampling_batch_size={FEW_SAMPLED_TOGETHER}"
        return name, _with_settings(run, sampling_batch_size=FEW_SAMPLED_TOGETHER)


def _small_micro_batch(run: RunOutline, args: DVPOConfig):
    rows = args.per_device_train_batch_size
    if rows > 1:
        steps, size = args.gradient_accumulation_steps * rows, args.generation_batch_size * run.gpus
        sizes = dict(per_device_train_batch_size=1, gradient_accumulation_steps=steps, generation_batch_size=size)
        changed = _with_settings(run, **sizes, steps_per_generation=None)
        return f"per_device_train_batch_size=1, gradient_accumulation_steps={steps}", changed


def _adapters(run: RunOutline, args: DVPOConfig):
    if run.peft is None and not run.sharded:
        kwargs = {**(args.model_init_kwargs or {}), "dtype": "bfloat16"}
        changed = replace(_with_settings(run, model_init_kwargs=kwargs), peft=LORA)
        return f"peft.r={LORA['r']} (LoRA) on a base in model_init_kwargs.dtype=bfloat16", changed


def _shared_backbone(run: RunOutline, args: DVPOConfig):
    kind, own = METHODS[args.method].critic, run.settings.get("critic") or {}
    if kind in ("scalar", "quantile") and own.get("backbone", "own") == "own":
        critic = {"kind": kind, **own, "backbone": "policy", "layers": None}
        return "critic.backbone=policy (a cheaper, weaker critic)", _with_settings(run, critic=critic)


def plan_heading(run: RunOutline) -> str:
    """The run in two lines."""
    args = run.arguments()
    return (
        f"{run.model}, {args.method}, {run.gpus} x {run.memory_gb:g} GB{', FSDP' if run.sharded else ''}"
        f"{', LoRA' if run.peft else ''}\n"
        f"{args.per_device_train_batch_size} rows a micro-batch of {run.prompt_length} + {args.max_completion_length} "
        f"tokens, {args.gradient_accumulation_steps} micro-batches a step, {args.generation_batch_size} rows sampled"
        f"{f', {args.sampling_batch_size} at a time' if args.sampling_batch_size else ''}"
        f"{', bf16' if args.bf16 else ''}{', gradient checkpointing' if args.activation_checkpointing else ''}"
    )


def plan_text(run: RunOutline, plan: MemoryPlan) -> str:
    """A plan as a table, in GB of 2^30 bytes."""
    counts = ", ".join(f"{name} {number / 1e9:.3g}" for name, number in plan.parameters.items() if number)
    shown = [
        plan_heading(run),
        f"billions of parameters: {counts}",
        "",
        "each GPU, all the time" + "GB".rjust(32),
        *(_line(name, size) for name, size in plan.standing.items()),
        "one of these at a time",
    ]
    for phase, parts in plan.phases.items():
        mark = " *" if phase == plan.largest_phase else ""
        shown += [_line(f"{phase}: {name}", size, mark) for name, size in parts.items()]
    verdict = "fits" if plan.fits(run.memory_gb) else "does not fit"
    usable = USABLE * run.memory_gb
    return "\n".join([*shown, _line("sum at the peak (*)", plan.total, f"  {verdict}: {usable:g} GB are usable")])


def savings_text(run: RunOutline, savings: list[tuple[str, MemoryPlan]]) -> str:
    """What to switch on, line by line, with the sum after each change."""
    lines = ["To make it fit, switch on, one after the other:", *(_line(label, plan.total) for label, plan in savings)]
    if not savings or not savings[-1][1].fits(run.memory_gb):
        lines.append("These are not enough: take more or larger GPUs, or shorter responses (max_completion_length).")
    return "\n".join(lines)


def _line(name: str, size: int, mark: str = "") -> str:
    return f"  {name:<42}{size / GIB:>10.2f}{mark}"
