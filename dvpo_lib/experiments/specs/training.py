"""Run spec of a policy's training and its final test."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.proxies import load_proxies, proxies_folder
from dvpo_lib.noise.sources import NoiseSettings, corrupt
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.rl.trainer_base.manifests import CheckpointError, read_checkpoint_manifest
from dvpo_lib.rl.training_settings import TrainingSettings, trainer_config, with_changes
from dvpo_lib.rl.updates import TrainingDiverged
from dvpo_lib.tasks.evaluation import ANSWER_COLUMNS, EvaluationSettings, evaluate_policy, kept_answers
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import first_records, load_suites

logger = logging.getLogger(__name__)
CURVE_NAMES = {  # the trainer's names of metrics: those of curves.csv
    "reward": "reward_noisy",
    "completions/mean_length": "length",
    "frac_reward_zero_std": "flat_groups",
}
UNUSED_LOGS = {"step", "loss", "grad_norm", "learning_rate", "epoch", "reward_std", "completions/clipped_ratio"}


@dataclass(frozen=True)
class TrainingSpec:
    """Trains one policy and tests it. Stores curves.csv, final.csv and answers.csv (greedy ones of every test set).

    With `evaluation.keep_weights` also policy.safetensors and, if there is one, critic.safetensors.

    A spec holds everything that its run depends on, so that the run store can key the result by it. A run that diverges
    stores diverged.json in place of weights; its scores are missing, and column `diverged` of final.csv has the step.
    """

    name: str  # row in tables: a method, or a row of the ablation
    noise_name: str  # row of `noises`
    method: str  # row of METHODS
    training: TrainingSettings
    max_steps: int  # iterations
    critic: CriticSettings | None  # None for methods without one
    noise: NoiseSettings
    family: str
    seed: int
    evaluation: EvaluationSettings
    critic_file: str | None = None  # weights of the pretrained critic; None: a new critic
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of the proxies, for noise that needs them
    inputs = ("base", "suites", "critic_file", "proxies")
    not_hashed = ("name", "noise_name")  # labels that change no result

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that identify this run in tables."""
        return dict(method=self.name, noise=self.noise_name, family=self.family, seed=self.seed)

    def config(self, **more: Any) -> DVPOConfig:
        """The trainer's settings. Responses may be as long as the family's training problems need."""
        data = load_suites(self.suites)[self.family]["train"]
        return trainer_config(
            self.training,
            method=self.method,
            max_steps=self.max_steps,
            max_completion_length=FAMILIES[self.family].max_completion_length(data),
            critic=self.critic,
            seed=self.seed,
            **more,
        )

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`; keeps resumable state in `scratch`."""
        drop_damaged_checkpoints(scratch / "checkpoints")
        trainer, suites, diverged = build_trainer(self, scratch / "checkpoints"), load_suites(self.suites), None
        try:
            trainer.train(resume_from_checkpoint=True)
        except TrainingDiverged as error:
            diverged = {"method": self.method, "seed": self.seed, "step": trainer.state.global_step}
            (folder / "diverged.json").write_text(json.dumps({**diverged, "error": str(error)}) + "\n", "utf-8")
        curves, tokenizer = learning_curve(trainer), trainer.processing_class
        if diverged:
            final, answers = untested_policy(suites, self.family, diverged["step"])
        else:
            final, answers = final_test(trainer.actor, tokenizer, suites, self.family, self.evaluation, self.seed)
            if self.evaluation.keep_weights:
                save_networks(trainer, folder)
        if self.critic_file:
            curves["rollouts"] += self.critic.pretrain_rollouts
        for name, table in {"curves": curves, "final": final, "answers": answers}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g")


def save_networks(trainer: DVPOTrainer, folder: Path) -> None:
    """Writes policy.safetensors and, if there is a critic, critic.safetensors."""
    state = trainer.policy.state_dict()
    if trainer.policy.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # the embeddings once more: safetensors refuses shared memory
    save_file(state, folder / "policy.safetensors")
    if trainer.critic is not None:
        save_file(trainer.critic.state_dict(), folder / "critic.safetensors")


def drop_damaged_checkpoints(folder: Path) -> None:
    """Deletes checkpoints that a crash has damaged, so that the run goes on from an earlier one or starts anew."""
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            read_checkpoint_manifest(checkpoint)
        except CheckpointError as error:
            logger.warning(f"{error}; it is deleted")
            shutil.rmtree(checkpoint)


def build_trainer(spec: TrainingSpec, checkpoints: Path | None = None) -> DVPOTrainer:
    """Builds the trainer of a run, before its first step.

    Args:
        spec: The run.
        checkpoints: Their folder; None: nothing is written.
    """
    places = dict(output_dir=tempfile.gettempdir(), save_strategy="no")
    config = spec.config(**(places if checkpoints is None else dict(output_dir=str(checkpoints))))
    policy, tokenizer = load_policy(spec.base)
    family, data = FAMILIES[spec.family], load_suites(spec.suites)[spec.family]["train"]
    trainer = DVPOTrainer(
        policy,
        by_iteration(training_reward(spec), config.steps_per_iteration),
        config,
        data,
        processing_class=tokenizer,
        critic=pretrained_critic(spec, policy),
        log_funcs={"reward_true": family.reward},
        reply=family.reply,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def learning_curve(trainer: DVPOTrainer) -> pd.DataFrame:
    """The logs of a run, one row per iteration, under the names of curves.csv.

    A run that stopped early has a last row without rewards, for the iteration in which it stopped.
    """
    args = trainer.args
    logs = [record for record in trainer.state.log_history if "reward" in record and "train_loss" not in record]
    step = (trainer.state.global_step // args.steps_per_iteration + 1) * args.steps_per_iteration
    if step <= trainer.state.max_steps:
        logs.append({"step": step, "reward": None, "reward_true": None})
    curves = pd.DataFrame(logs).rename(columns=CURVE_NAMES)
    curves["iteration"] = curves["step"] // args.steps_per_iteration - 1
    curves["rollouts"] = (curves["iteration"] + 1) * args.generation_batch_size
    unused = [name for name in curves if name in UNUSED_LOGS or name.startswith("rewards/")]
    curves = curves.drop(columns=unused)
    first = ["iteration", "rollouts", "reward_noisy", "reward_true"]
    return curves[[*first, *sorted(name for name in curves if name not in first)]]


def by_iteration(func: Callable, steps: int) -> Callable:
    """A reward function whose `trainer_state.global_step` counts iterations of `steps` optimiser steps."""

    @functools.wraps(func)
    def counted(prompts, completions, trainer_state=None, **columns):
        state = SimpleNamespace(global_step=getattr(trainer_state, "global_step", 0) // steps)
        return func(prompts=prompts, completions=completions, trainer_state=state, **columns)

    return counted


def training_reward(spec: TrainingSpec) -> Callable:
    """The reward function that a run learns from: the family's true reward under the run's noise."""
    noise_seed, proxies = seed_for(spec.seed, "training noise"), load_proxies(spec.proxies, spec.base)
    return corrupt(FAMILIES[spec.family].reward, spec.noise, noise_seed, proxies)


def pretrained_critic(spec: TrainingSpec, policy) -> Critic | None:
    """The run's critic with pretrained weights; None if the spec names no file of them."""
    if spec.critic_file is None:
        return None
    critic = build_critic(policy, spec.critic, spec.seed)
    critic.load_state_dict(load_file(spec.critic_file))
    return critic


def final_test(
    policy, tokenizer, suites, family: str, cfg: EvaluationSettings, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluates a policy on every test set.

    Args:
        policy: The causal LM.
        tokenizer: Its tokenizer.
        suites: {family: splits}, from `load_suites`.
        family: The family that the policy was trained on.
        cfg: Size of the tests.
        seed: Of sampling.

    Returns:
        Scores (suite, role, metric, value) and `kept_answers` (suite, role, ...). The role is ID (trained family), OOD
        (its out-of-distribution test) or transfer (others).
    """
    rows, answers = [], []
    for name, split, suite, role in _test_sets(suites, family):
        data = first_records(suites[name][split], cfg.prompts)
        scores, greedy = evaluate_policy(
            policy, tokenizer, data, FAMILIES[name], cfg.k, seed_for(seed, "final test", suite), cfg.bf16
        )
        rows += (dict(suite=suite, role=role, metric=metric, value=v) for metric, v in scores.items())
        answers.append(kept_answers(greedy).assign(suite=suite, role=role))
    return pd.DataFrame(rows), pd.concat(answers, ignore_index=True)[["suite", "role", *ANSWER_COLUMNS]]


def untested_policy(suites, family: str, step: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `final_test` for a run that diverged: values are missing, `diverged` is the step, no answers."""
    rows = [
        dict(suite=suite, role=role, metric=metric, value=None, diverged=step)
        for *_, suite, role in _test_sets(suites, family)
        for metric in ("sampled", "pass_at_k", "greedy")
    ]
    return pd.DataFrame(rows), pd.DataFrame(columns=["suite", "role", *ANSWER_COLUMNS])


def _test_sets(suites, family: str) -> Iterator[tuple[str, str, str, str]]:
    """(family, split, name of the test set, role) of every test set for a policy trained on `family`."""
    for name in suites:
        for split in ("test", "ood"):
            role = "transfer" if name != family else "ID" if split == "test" else "OOD"
            yield name, split, f"{name}_{'id' if split == 'test' else 'ood'}", role


def training_spec(
    params,
    name: str,
    method: str,
    noise: str,
    family: str,
    seed: int,
    critic: CriticSettings | None,
    critic_file: str | Path | None,
    changes: Mapping[str, Any] | None = None,
) -> TrainingSpec:
    """Builds the spec of one training from params.yaml.

    Every method has the same budget of scored rollouts (`params.budget`): training gets what critic pretraining leaves.

    Args:
        params: The settings.
        name: Row in tables.
        method: A row of METHODS.
        noise: A row of `noises`.
        family: A row of FAMILIES.
        seed: Of the run.
        critic: The critic; None for methods without one.
        critic_file: Weights of the pretrained critic.
        changes: Changes to the section `training`; by default those of the method's row in `methods`.
    """
    training = with_changes(params.training, params.methods[method].training if changes is None else changes)
    spent = critic.pretrain_rollouts if critic else 0
    return TrainingSpec(
        name,
        noise,
        method,
        training,
        max(1, (params.budget - spent) // training.generation_batch_size),
        critic,
        params.noises[noise],
        family,
        seed,
        params.evaluation,
        str(critic_file) if critic_file else None,
        proxies=proxies_folder(params.noises[noise], family),
    )
