"""Whole training iterations of every method, side by side: the time of each part, and the most memory.

The methods, their critics and settings are those of the large profile. All start from the same untrained policy, and
its learning rate is next to nothing: in every round all have responses of the same, nearly full length to the same
prompts (methods with groups: as many responses to fewer prompts), so what differs is the method. All trainers are there
at once, which at the 20M model takes about 11 GB of memory.

Memory is measured in the first round, which is not timed: what the trainer held before it (the policy, its frozen copy,
critics) and the most that torch held beyond that during the iteration (`meters.peak_mb`). It is a count: what else the
machine does makes no difference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm

from dvpo_lib.chain.params import load_params
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.config import DVPOConfig, with_changes
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer

from .meters import clock, peak_mb

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "default": PolicySettings(),
    "20M": PolicySettings(hidden_size=512, num_hidden_layers=5, num_attention_heads=8, intermediate_size=2048),
}
VARIANTS = {  # name: method, what differs: below lambda 1 a target is M numbers, not one
    "dvpo, comonotone targets": ("dvpo", {"lam_critic": 0.95}),
    "dvpo, mixture targets": ("dvpo", {"lam_critic": 0.95, "target": "mixture"}),
}
PARTS = {
    "sample": "sampling",
    "examine": "values and log-probabilities",
    "update_critic": "critic update",
    "update_policy": "policy update",
    "describe": "diagnostics",
}
REST = "advantages and the rest"
STILL = 1e-12  # a learning rate at which a policy stays what it is


@functools.cache
def configurations() -> dict[str, DVPOConfig]:
    """Every method as params.yaml and profiles/full.yaml set it up, and variants of DVPO; ppo first."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    found = {}
    for name in sorted(params.methods, key=lambda name: name != "ppo"):
        row = params.methods[name]
        critic = params.critics[row.critic]
        found[name] = dataclasses.replace(with_changes(params.training, row.training), method=name, critic=critic)
    return found | {name: with_changes(found[method], changes) for name, (method, changes) in VARIANTS.items()}


class TimedTrainer(DVPOTrainer):
    """The trainer, with the seconds spent in each of its parts; a part inside another counts as the outer one."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = False
        for part in PARTS:
            setattr(self, part, self._timed(part, getattr(self, part)))

    def _timed(self, part, function):
        def timed(*arguments, **keywords):
            if self.inside:
                return function(*arguments, **keywords)
            self.inside, start = True, self.now()
            result = function(*arguments, **keywords)
            self.inside, self.seconds[part] = False, self.seconds[part] + self.now() - start
            return result

        return timed

    def now(self) -> float:
        return clock(self.accelerator.device.type)

    def held_mb(self) -> float:
        """Weights and buffers of all networks, their gradients, and the optimisers' states, in MB."""
        networks = [self.policy, self.reference, self.critic, getattr(self, "target_critic", None)]
        optimizers = [self.policy_optimizer, getattr(self, "critic_optimizer", None)]
        tensors = [x for n in networks if n is not None for x in [*n.parameters(), *n.buffers()]]
        tensors += [x.grad for x in tensors if x.grad is not None]
        states = [state for o in optimizers if o is not None for state in o.optimizer.state.values()]
        tensors += [x for state in states for x in state.values() if isinstance(x, torch.Tensor)]
        return sum({id(x): x.nbytes for x in tensors}.values()) / 1e6

    def rest(self) -> None:
        """Gives gradients back while others have their turn; the next step would do so first."""
        for network in filter(None, (self.policy, self.critic)):
            network.zero_grad()


def iteration_rows(
    model: str, names: list[str], rounds: int, device: str = "cpu", size: PolicySettings | None = None, **changes
) -> Iterator[dict]:
    """A row for each of `names` and each round.

    Args:
        model: one of MODELS. names: of `configurations()`. size, changes: another model, other settings, for tests.

    Returns:
        model, method (the row's name), round, parameters (of the policy), length (tokens of a response), step
        (seconds), a column of seconds for each of PARTS, held_mb (weights, gradients, optimisers' states), peak_mb.
    """
    tasks = TaskSettings()
    tokenizer, prompts = build_tokenizer(tasks), build_suites(tasks)["math"]["train"]
    trainers, memory = {}, {}
    for name in names:
        policy = build_policy(tokenizer, size or MODELS[model], seed=0).to(device)
        args = with_changes(configurations()[name], {**changes, "learning_rate": STILL})
        trainers[name] = TimedTrainer(
            policy, accuracy_reward, args, prompts, tokenizer, accelerator=Accelerator(cpu=device == "cpu")
        )
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
            length = trainer.step()["length"]
            step = trainer.now() - start
            trainer.rest()
            yield dict(
                model=model,
                method=name,
                round=number,
                parameters=parameters,
                length=length,
                step=step,
                **{part: trainer.seconds[part] for part in PARTS},
                **memory[name],
            )


def ratios(iterations: pd.DataFrame, baseline: str = "ppo", without: str | None = None) -> dict:
    """{model: {method: median over rounds of its time over the baseline's in the same round}}.

    Args:
        without: a part whose time is taken off, of the method and of the baseline.
    """
    seconds = iterations["step"] - (iterations[without] if without else 0.0)
    wide = iterations.assign(seconds=seconds).pivot(index=["model", "round"], columns="method", values="seconds")
    return _nested(wide.div(wide[baseline], axis=0).groupby("model").median())


def memory_ratios(iterations: pd.DataFrame, baseline: str = "ppo") -> dict:
    """{model: {method: its most memory over the baseline's}}."""
    wide = iterations.groupby(["model", "method"])["peak_mb"].first().unstack()
    return _nested(wide.div(wide[baseline], axis=0))


def _nested(wide: pd.DataFrame) -> dict:
    return {model: row.dropna().round(3).to_dict() for model, row in wide.iterrows()}
