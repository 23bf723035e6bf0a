"""The commands `plan` and `train`. They need no package of the chain of notebooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.launch.plan_command import add_plan_arguments, plan_command
from dvpo_lib.experiments.launch.recipes import add_train_arguments, train_command


@dataclass(frozen=True)
class LaunchCommand:
    """A command of `python -m dvpo_lib`.

    Attributes:
        summary: What it does.
        details: Further sentences.
        examples: Lines of a shell.
        add_arguments: Adds its arguments to a parser.
        run: From parsed arguments to the exit code; None is 0.
    """

    summary: str
    details: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


LAUNCH_COMMANDS = {
    "plan": LaunchCommand(
        "plan the memory of a run",
        "Counts weights, gradients, optimiser states, activations, caches and logits\n"
        "of a run from the model's configuration and the settings alone, and says what to switch on if a GPU is too\n"
        "small. No GPU and no weights are needed. The exit code is 1 if the run does not fit.",
        "python -m dvpo_lib plan --args recipes/lora_24gb.yaml\n"
        "python -m dvpo_lib plan --model recipes/models/qwen3_8b.json --method dvpo --gpus 8 --fsdp full_shard\n"
        "python -m dvpo_lib plan --model config.json --method ppo --bf16 true -p critic.kind=scalar -p critic.layers=8",
        add_plan_arguments,
        plan_command,
    ),
    "train": LaunchCommand(
        "train by a recipe",
        "One process; several by\n`accelerate launch --config_file recipes/accelerate/eight_gpus.yaml -m dvpo_lib "
        "train FILE`.\nA run that was interrupted goes on at its last checkpoint.",
        "python -m dvpo_lib train recipes/lora_24gb.yaml\n"
        "python -m dvpo_lib train recipes/full_80gb.yaml -p training.learning_rate=5e-7",
        add_train_arguments,
        train_command,
    ),
}


def run_launch_command(arguments: Sequence[str]) -> int:
    """Runs one of these commands; returns the exit code.

    Args:
        arguments: The command and its words.
    """
    command = LAUNCH_COMMANDS[arguments[0]]
    parser = argparse.ArgumentParser(
        prog=f"python -m dvpo_lib {arguments[0]}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}. {command.details}",
        epilog="examples:\n  " + command.examples.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(arguments[1:])) or 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
