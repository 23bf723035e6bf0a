"""The command `plan`: the memory of a run before its start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dvpo_lib.common.settings_tree import ConfigError, merge_trees, nest_dotted
from dvpo_lib.common.settings_yaml import read_yaml_assignment

# Settings that decide about memory: an option each. All others: -p NAME=VALUE.
PLANNED_SETTINGS = (
    "bf16",
    "gradient_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "sampling_batch_size",
    "use_vllm",
    "max_completion_length",
    "num_generations",
    "beta",
    "optim",
    "fsdp",
)


def add_plan_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `plan`."""
    command.add_argument("--args", metavar="FILE", help="a recipe: model, settings and GPUs; options replace its own")
    command.add_argument("--model", metavar="CONFIG", help="config.json, a folder with one, or a name on the hub")
    command.add_argument("--method", help="a row of METHODS (default: dvpo)")
    command.add_argument("--gpus", type=int, help="number of GPUs, one process each (default: 1)")
    command.add_argument("--memory", type=float, metavar="GB", help="memory of a GPU (default: 80)")
    command.add_argument("--prompt_length", type=int, metavar="TOKENS", help="tokens of a prompt (default: 512)")
    for name in PLANNED_SETTINGS:
        command.add_argument(f"--{name}", metavar="VALUE", help="as in DVPOConfig")
    command.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, its value in YAML: critic.layers=8, peft.r=32 (LoRA); may be repeated",
    )


def plan_command(chosen: argparse.Namespace) -> int:
    """Prints the plan of a run; exit code 0 if it fits.

    Args:
        chosen: Parsed arguments.
    """
    from dvpo_lib.experiments.launch.run_plans import find_savings, plan_text, savings_text

    run = planned_run(chosen)
    plan = run.plan()
    print(plan_text(run, plan))
    if plan.fits(run.memory_gb):
        return 0
    print(savings_text(run, find_savings(run, plan)))
    return 1


def planned_run(chosen: argparse.Namespace):
    """The run that the arguments describe.

    Raises:
        ConfigError: If no model is named, or a setting does not exist.
    """
    from dvpo_lib.experiments.launch.network_outlines import load_model_config
    from dvpo_lib.experiments.launch.recipes import read_recipe
    from dvpo_lib.experiments.launch.run_plans import RunOutline

    own = dict(
        model=None, config=None, settings={}, sharded=False, peft=None, gpus=1, memory_gb=80.0, prompt_length=512
    )
    if chosen.args is not None:
        own |= read_recipe(chosen.args).planned()
    if chosen.model is not None:
        own |= {"model": Path(chosen.model).stem if Path(chosen.model).is_file() else chosen.model}
        own["config"] = chosen.model
    if own["config"] is None:
        raise ConfigError("--model is missing: a config.json, a folder or a name on the hub")
    for name, value in (("gpus", chosen.gpus), ("memory_gb", chosen.memory), ("prompt_length", chosen.prompt_length)):
        own[name] = own[name] if value is None else value
    changes = _changes(chosen)
    if "fsdp" in changes:
        own["sharded"] = changes.pop("fsdp") not in (None, False, "")
    if "peft" in changes:
        own["peft"] = {**(own["peft"] or {}), **changes.pop("peft")}
    return RunOutline(
        **{**own, "config": load_model_config(own["config"]), "settings": _merged(own["settings"], changes)}
    )


def _changes(chosen: argparse.Namespace) -> dict[str, Any]:
    texts = [f"{name}={getattr(chosen, name)}" for name in ("method", *PLANNED_SETTINGS) if getattr(chosen, name)]
    return nest_dotted(dict(read_yaml_assignment(text, "plan") for text in [*texts, *chosen.parameter]))


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return merge_trees({**settings}, changes)
