"""Whole training iterations of each method: the time of each part, and peak memory.

Methods, critics and settings are those of the large profile. All trainers start from the same untrained policy with a
learning rate near zero, so that in each round all have responses of the same, nearly full length to the same prompts
(methods with groups: as many responses to fewer prompts). The remaining differences are those of the methods. All
trainers are in memory at once, which takes about 11 GB with the 20M model.

Memory is measured in the first round, which is not timed: the trainer's memory before it (policy, frozen copy, critics)
and the peak of torch beyond that during the iteration (`meters.peak_mb`). It is a count, independent of other load.
"""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pandas as pd
from tqdm import tqdm

from dvpo_lib.chain.params import load_params
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl import trainer as trainer_module
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.rl.training_settings import TrainingSettings, trainer_config, with_changes
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer

from .meters import device_clock, network_mb, peak_mb, training_state_mb

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK_MODELS = {
    "default": PolicySettings(),
    "20M": PolicySettings(hidden_size=512, num_hidden_layers=5, num_attention_heads=8, intermediate_size=2048),
}
DVPO_VARIANTS = {  # {name: (method, changes)}; below lambda 1 a target has M numbers instead of one
    "dvpo, comonotone targets": ("dvpo", {"lam_critic": 0.95}),
    "dvpo, mixture targets": ("dvpo", {"lam_critic": 0.95, "target": "mixture"}),
}
STEP_PARTS = {
    "sample": "sampling",
    "build_experience": "values and log-probabilities",
    "update_critic": "critic update",
    "update_policy": "policy update",
    "describe": "diagnostics",
}
UPDATES = {"update_critic", "update_policy"}  # functions of the trainer's module, not methods of the trainer
REST_LABEL = "advantages and the rest"
FROZEN_LEARNING_RATE = 1e-12  # leaves the policy unchanged in practice


@functools.cache
def benchmark_configurations() -> dict[str, tuple[TrainingSettings, str, CriticSettings | None]]:
    """(training, method, critic) of each method and variant, by params.yaml and profiles/full.yaml; ppo first."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    found = {}
    for name in sorted(params.methods, key=lambda name: name != "ppo"):
        row = params.methods[name]
        critic = params.critics[row.critic]
        found[name] = with_changes(params.training, row.training), name, critic
    for name, (method, changes) in DVPO_VARIANTS.items():
        training, _, critic = found[method]
        found[name] = with_changes(training, changes), method, critic
    return found


def benchmark_config(name: str, device: str, **changes) -> DVPOConfig:
    """The trainer's settings for a row of `benchmark_configurations` with a policy that stays as it is."""
    training, method, critic = benchmark_configurations()[name]
    own = {key: changes.pop(key) for key in list(changes) if key in TrainingSettings.__dataclass_fields__}
    training = with_changes(training, own | {"learning_rate": FROZEN_LEARNING_RATE})
    run = dict(max_completion_length=32, output_dir=tempfile.gettempdir(), use_cpu=device == "cpu", seed=0)
    return trainer_config(training, max_steps=40, method=method, critic=critic, **run | changes)


class TimedTrainer(DVPOTrainer):
    """A trainer that records the seconds of each of its parts. A nested part counts as the outer one."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.make_ready()
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = False
        self.updates = {part: self._timed(part, getattr(trainer_module, part)) for part in UPDATES}
        for part in STEP_PARTS.keys() - UPDATES:
            setattr(self, part, self._timed(part, getattr(self, part)))

    def step(self) -> dict[str, float]:
        """One iteration of the trainer, with timed optimiser steps."""
        with patch.multiple(trainer_module, **self.updates):
            return super().step()

    def _timed(self, part, function):
        """The function with its time added to `seconds[part]`."""

        def timed(*arguments, **keywords):
            if self.inside:
                return function(*arguments, **keywords)
            self.inside, start = True, self.now()
            result = function(*arguments, **keywords)
            self.inside, self.seconds[part] = False, self.seconds[part] + self.now() - start
            return result

        return timed

    def now(self) -> float:
        """Seconds of a clock that waits for the device."""
        return device_clock(self.accelerator.device.type)

    def held_mb(self) -> float:
        """Memory in MB of all networks, their gradients and the optimiser states."""
        return network_mb(self) + training_state_mb(self)

    def rest(self) -> None:
        """Frees the gradients while other trainers run. The next step would clear them anyway."""
        for network in (self.policy, self.critic):
            if network is not None:
                network.zero_grad()


def iteration_rows(
    model: str, names: list[str], rounds: int, device: str = "cpu", size: PolicySettings | None = None, **changes
) -> Iterator[dict]:
    """Measures rounds of one iteration per method.

    Args:
        model: Key of BENCHMARK_MODELS.
        names: Keys of `benchmark_configurations`.
        rounds: Timed rounds.
        device: "cpu" or "cuda".
        size: Another model, for tests.
        **changes: Other settings, for tests.

    Yields:
        One row per round and method: model, method (the row's name), round, parameters (of the policy), length (tokens
        per response), step (seconds), seconds of each of STEP_PARTS, held_mb (weights, gradients, optimiser states),
        peak_mb.
    """
    tasks = TaskSettings()
    tokenizer, prompts = build_tokenizer(tasks), build_suites(tasks)["math"]["train"]
    trainers, memory = {}, {}
    for name in names:
        policy = build_policy(tokenizer, size or BENCHMARK_MODELS[model], seed=0).to(device)
        args = benchmark_config(name, device, **changes)
        trainers[name] = TimedTrainer(policy, accuracy_reward, args, prompts, processing_class=tokenizer)
    parameters = policy.num_parameters()
    for number in tqdm(range(-1, rounds), desc=f"iterations, {model} model"):
        for name, trainer in trainers.items():
            if number < 0:
                before = trainer.held_mb()
                peak = before + peak_mb(trainer.step, device)
                memory[name] = dict(held_mb=trainer.held_mb(), peak_mb=peak)
                trainer.rest()
                continue
            trainer.seconds.clear()
            start = trainer.now()
            length = trainer.step()["completions/mean_length"]
            step = trainer.now() - start
            trainer.rest()
            yield dict(
                model=model,
                method=name,
                round=number,
                parameters=parameters,
                length=length,
                step=step,
                **{part: trainer.seconds[part] for part in STEP_PARTS},
                **memory[name],
            )


def time_ratios(iterations: pd.DataFrame, baseline: str = "ppo", without: str | None = None) -> dict:
    """{model: {method: median over rounds of its time over the baseline's in the same round}}.

    Args:
        iterations: Rows of `iteration_rows`.
        baseline: Method with ratio 1.
        without: A part whose time is subtracted from both methods.
    """
    seconds = iterations["step"] - (iterations[without] if without else 0.0)
    wide = iterations.assign(seconds=seconds).pivot(index=["model", "round"], columns="method", values="seconds")
    return _to_dict(wide.div(wide[baseline], axis=0).groupby("model").median())


def memory_ratios(iterations: pd.DataFrame, baseline: str = "ppo") -> dict:
    """{model: {method: its peak memory over the baseline's}}."""
    wide = iterations.groupby(["model", "method"])["peak_mb"].first().unstack()
    return _to_dict(wide.div(wide[baseline], axis=0))


def _to_dict(wide: pd.DataFrame) -> dict:
    return {model: row.dropna().round(3).to_dict() for model, row in wide.iterrows()}
