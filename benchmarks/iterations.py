"""Whole training iterations of several methods, side by side, with the time of each part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

from tqdm import tqdm

from dvpo_lib.critics import CriticSettings
from dvpo_lib.methods import METHODS, DVPOConfig
from dvpo_lib.models import PolicySettings, build_policy
from dvpo_lib.tasks import TaskSettings, accuracy_reward, build_suites, build_tokenizer
from dvpo_lib.trainer import DVPOTrainer

MODELS = {  # both untrained: their responses have nearly the full length
    "default": PolicySettings(),
    "20M": PolicySettings(hidden_size=512, num_hidden_layers=5, num_attention_heads=8, intermediate_size=2048),
}
ROWS = {  # name: method, further settings
    "ppo": ("ppo", {}),
    "dvpo": ("dvpo", {}),
    "dvpo, comonotone targets": ("dvpo", {"lam_critic": 0.95}),  # below lambda 1 a target is M numbers, not one
    "dvpo, mixture targets": ("dvpo", {"lam_critic": 0.95, "target": "mixture"}),
    "grpo": ("grpo", {}),
}
PARTS = {"sample": "sampling", "examine": "values and log-probabilities", "update_critic": "critic update",
         "update_policy": "policy update"}  # fmt: skip


class TimedTrainer(DVPOTrainer):
    """The trainer, with the seconds spent in each of its parts."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seconds: dict[str, float] = defaultdict(float)
        for part in PARTS:
            setattr(self, part, self._timed(part, getattr(self, part)))
        self.step = self._timed("step", self.step)

    def _timed(self, name, function):
        def timed(*arguments, **keywords):
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def iteration_rows(model: str, rows: list[str], rounds: int) -> Iterator[dict]:
    """A row for each of ROWS and each round: model, method (the row's name), round, parameters, length, step (seconds),
    and a column per part."""
    tasks = TaskSettings()
    tokenizer, prompts = build_tokenizer(tasks), build_suites(tasks)["math"]["train"]
    trainers = {}
    for name in rows:
        method, settings = ROWS[name]
        policy = build_policy(tokenizer, MODELS[model], seed=0)
        args = DVPOConfig(method=method, critic=CriticSettings(kind=METHODS[method].critic or "quantile"), **settings)
        trainers[name] = TimedTrainer(policy, accuracy_reward, args, prompts, tokenizer)
    parameters = policy.num_parameters()
    for number in tqdm(range(-1, rounds), desc=f"iterations, {model} model"):
        for name, trainer in trainers.items():
            trainer.seconds.clear()
            length = trainer.step()["length"]
            if number >= 0:  # the first round warms up
                yield dict(model=model, method=name, round=number, parameters=parameters, length=length,
                           **{k: trainer.seconds[k] for k in ("step", *PARTS)})
