"""Recipes: a run as one YAML file, with model, data, reward, settings of the trainer, and the GPUs that it is made for.

accelerate launch --config_file recipes/accelerate/one_gpu.yaml -m dvpo_lib train recipes/lora_24gb.yaml
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.settings_tree import ConfigError, merge_trees, nest_dotted, to_builtins
from dvpo_lib.common.settings_yaml import read_yaml, read_yaml_assignment


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class RecipeData:
    """Published problems, as of `load_problems`."""

    name: str
    split: str = "train"
    path: str | None = None  # of files; null: the hub
    limit: int | None = None  # problems at most


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class RecipeHardware:
    """The GPUs that a recipe is made for, and what its plan needs to know beside the settings."""

    accelerate: str  # file of `accelerate launch`, beside the recipe
    memory_gb: float  # of each GPU
    prompt_length: int  # tokens of a long prompt
    config: str | None = None  # file of the model's configuration, beside the recipe; null: the model's own


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """A run as a file describes it."""

    model: str  # name on the hub, or a folder
    data: RecipeData
    training: dict[str, Any]  # settings of DVPOConfig
    hardware: RecipeHardware
    reward: str = "dvpo_lib:answer_reward"  # module:function
    peft: dict[str, Any] | None = None  # arguments of peft.LoraConfig; null: all weights are trained
    folder: str = "."  # of the file

    def planned(self) -> dict[str, Any]:
        """Arguments of `RunOutline`; `config` is a name that `load_model_config` takes.

        Raises:
            ConfigError: If the accelerate file is missing or does not say how many processes there are.
        """
        hardware, folder = self.hardware, Path(self.folder)
        launch = read_yaml(folder / hardware.accelerate)
        if not isinstance(launch.get("num_processes"), int):
            raise ConfigError(f"{hardware.accelerate}: num_processes is missing")
        return dict(
            model=self.model,
            config=self.model if hardware.config is None else str(folder / hardware.config),
            settings=dict(self.training),
            prompt_length=hardware.prompt_length,
            gpus=launch["num_processes"],
            memory_gb=hardware.memory_gb,
            sharded=launch.get("distributed_type") == "FSDP",
            peft=self.peft,
        )


def read_recipe(file: str | Path, changes: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        file: YAML.
        changes: Nested values that replace those of the file.

    Raises:
        ConfigError: If the file is missing or a key is wrong; the message names both.
    """
    tree = merge_trees(to_builtins(read_yaml(file)), changes or {})
    try:
        return TypeAdapter(Recipe).validate_python({**tree, "folder": str(Path(file).parent)})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{Path(file).name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def reward_of(name: str) -> Callable:
    """The reward function `module:function`.

    Raises:
        ConfigError: If there is none of this name.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"reward {name}: {error}") from None


def trainer_of(recipe: Recipe):
    """The trainer of a recipe, ready to train.

    Raises:
        ConfigError: If data, reward, adapters or settings are wrong.
    """
    from transformers import AutoTokenizer

    from dvpo_lib.experiments.launch.run_plans import lora_config
    from dvpo_lib.rl.config import DVPOConfig
    from dvpo_lib.rl.trainer import DVPOTrainer
    from dvpo_lib.tasks.published.datasets import load_problems
    from dvpo_lib.tasks.published.files import SourceError

    reward, adapters, data = reward_of(recipe.reward), lora_config(recipe.peft), recipe.data
    tokenizer = AutoTokenizer.from_pretrained(recipe.model, padding_side="left")
    try:
        args = DVPOConfig(**recipe.training)
        problems = load_problems(data.name, data.split, data.path, tokenizer, data.limit)
    except (TypeError, ValueError, SourceError) as error:
        raise ConfigError(str(error)) from None
    return DVPOTrainer(recipe.model, reward, args, problems, processing_class=tokenizer, peft_config=adapters)


def add_train_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `train`."""
    command.add_argument("recipe", metavar="FILE", help="a recipe, such as recipes/lora_24gb.yaml")
    command.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value of the recipe, in YAML: training.learning_rate=1e-6; may be repeated",
    )


def train_command(chosen: argparse.Namespace) -> None:
    """Trains by a recipe, from its last checkpoint if there is one, and saves the model in `output_dir`.

    Args:
        chosen: Parsed arguments.
    """
    changes = nest_dotted(dict(read_yaml_assignment(text, "-p") for text in chosen.parameter))
    trainer = trainer_of(read_recipe(chosen.recipe, changes))
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
