"""Checkpoints that are complete, hashed, and compared with the run that reads them.

A checkpoint is a folder that `from_pretrained` reads (policy and tokenizer), with optimiser, schedule, random states
and progress as `transformers` writes them. Beside these stand critic, target critic, the critic's optimiser, the rest
of an interrupted generation batch, and manifest.json: every file's hash, the settings, the reference's fingerprint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.rl.trainer_base.manifests import (
    ADVICE,
    MANIFEST,
    CheckpointError,
    checkpoint_settings,
    compare_checkpoint_settings,
    damage_named,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from dvpo_lib.rl.trainer_base.networks import adapter_settings, fingerprint, is_peft_model
from dvpo_lib.rl.updates import Batch

logger = logging.getLogger(__name__)


class CheckpointedTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints hold a critic, too, and are whole or not there.

    Subclasses have `critic` and `target_critic` (None if there are none), `critic_optimizer` and `reference`.
    """

    critic: nn.Module | None = None
    target_critic: nn.Module | None = None
    critic_optimizer: Any = None
    reference: nn.Module | None = None
    pending: Batch | None = None  # the generation batch that still has optimiser steps to come
    _fingerprint: str | None = None

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Runs to `max_steps`, or through `num_train_epochs` passes over the prompts.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True: the last one in `output_dir`, if there is one.
            trial, ignore_keys_for_eval: As in `transformers.Trainer`.

        Raises:
            CheckpointError: If the checkpoint is damaged, or of another run.
            RewardError: If a reward function fails. The state is saved before (unless `save_strategy` is "no"), so that
                `train(resume_from_checkpoint=True)` goes on at this step.
            TrainingDiverged: If a loss, gradient, logit or weight is not finite.
        """
        if resume_from_checkpoint is True:
            there = os.path.isdir(self.args.output_dir)
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) if there else None
        if resume_from_checkpoint:
            self._check_checkpoint(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    # ---- writing ----

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = self._get_output_dir(trial=trial)
        place = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        best = Path(run_dir) / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == place or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        with atomic_folder(place) as folder:
            self.save_model(str(folder), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
                self._save_own_state(folder)
            self._export_callback_states()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            write_checkpoint_manifest(folder, settings=self._settings(), reference=self.reference_fingerprint())
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))
        if self.args.should_save:
            rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _export_callback_states(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, state = type(callback).__name__, callback.state()
                if isinstance(self.state.stateful_callbacks[name], list):
                    self.state.stateful_callbacks[name].append(state)
                else:
                    self.state.stateful_callbacks[name] = state

    def _save_own_state(self, folder: Path) -> None:
        if self.critic is not None:
            save_file(trained_weights(self.accelerator.unwrap_model(self.critic)), folder / "critic.safetensors")
            torch.save(self.critic_optimizer.state_dict(), folder / "critic_optimizer.pt")
        if self.target_critic is not None:
            save_file(copied_weights(self.target_critic), folder / "target_critic.safetensors")
        if self.args.sync_ref_model:
            save_file(copied_weights(self.reference), folder / "reference.safetensors")
        if self.pending is not None:
            save_file(self.pending.tensors(), folder / "batch.safetensors")
        since_last_log = {
            "metrics": self._metrics["train"],
            "loss": self._tr_loss.item(),
            "logged_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        (folder / "since_last_log.json").write_text(json.dumps(since_last_log), encoding="utf-8")

    # ---- reading ----

    def _check_checkpoint(self, folder: Path) -> None:
        manifest = read_checkpoint_manifest(folder)
        if not (isinstance(manifest.get("settings"), dict) and "reference" in manifest):
            raise CheckpointError(f"{folder / MANIFEST} is damaged: it holds no settings; {ADVICE}")
        if "since_last_log.json" not in manifest["files"]:
            raise CheckpointError(f"{folder} holds a model alone (save_only_model): it can be loaded, not gone on from")
        compare_checkpoint_settings(folder, manifest["settings"], self._settings())
        if manifest["reference"] != self.reference_fingerprint():
            raise CheckpointError(
                f"{folder}: the reference policy of the checkpoint is another one; pass the model that its training "
                "started from (the checkpoint's own weights are read afterwards)"
            )
        with damage_named(folder / "trainer_state.json") as file:
            state = vars(TrainerState.load_from_json(str(file)))
            if not all(type(state[name]) is int for name in ("global_step", "max_steps")):
                raise ValueError("global_step and max_steps should be whole numbers")
        depends = not str(self.args.lr_scheduler_type.value).startswith("constant")
        if depends and state["max_steps"] != self.args.max_steps > 0:
            logger.warning(
                f"max_steps was {state['max_steps']} in {folder} and is {self.args.max_steps} now: the learning rate's "
                f"schedule ({self.args.lr_scheduler_type.value}) goes on as if it had always been so"
            )

    def _load_own_state(self, folder: Path) -> None:
        """What `transformers` does not read: critics, the rest of a generation batch, metrics that wait for a log."""
        if self.critic is not None:
            load_weights(self.accelerator.unwrap_model(self.critic), folder / "critic.safetensors")
            with damage_named(folder / "critic_optimizer.pt") as file:
                self.critic_optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        if self.target_critic is not None:
            load_weights(self.target_critic, folder / "target_critic.safetensors")
        if self.args.sync_ref_model:
            load_weights(self.reference, folder / "reference.safetensors")
        if (folder / "batch.safetensors").exists():
            with damage_named(folder / "batch.safetensors") as file:
                self.pending = Batch.of_tensors(load_file(file), self.accelerator.device)
        with damage_named(folder / "since_last_log.json") as file:
            waiting = parse_json(file.read_bytes())
            metrics = {name: [float(value) for value in values] for name, values in waiting["metrics"].items()}
            loss, logged_loss = float(waiting["loss"]), float(waiting["logged_loss"])
            last_logged = int(waiting["last_logged"])
        self._metrics["train"].update(metrics)
        self._tr_loss += loss
        self._total_loss_scalar = logged_loss
        self._globalstep_last_logged = last_logged

    def _settings(self) -> dict[str, Any]:
        policy = self.accelerator.unwrap_model(self.model)
        size = f"{type(policy).__name__} of {sum(p.numel() for p in policy.parameters()):,} parameters"
        return checkpoint_settings(self.args) | {"model": size, "peft_config": adapter_settings(policy)}

    def reference_fingerprint(self) -> str | None:
        """Of the reference policy, or of the frozen base under adapters; None if there is neither."""
        policy = self.accelerator.unwrap_model(self.model)
        if self._fingerprint is None:
            if self.reference is not None:
                self._fingerprint = fingerprint(self.reference)
            elif is_peft_model(policy):
                self._fingerprint = fingerprint(policy, frozen=True)
        return self._fingerprint


@contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """A scratch folder that is renamed to `place` once everything in it is written."""
    scratch, old = (place.with_name(f".{place.name}.{end}") for end in ("new", "old"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(place, old)
    os.replace(scratch, place)
    shutil.rmtree(old, ignore_errors=True)


def copied_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights of a module."""
    return {name: x.detach().clone().contiguous() for name, x in module.state_dict().items()}


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights without those of frozen parameters."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: x for name, x in copied_weights(module).items() if name not in frozen}


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads what `trained_weights` or `copied_weights` returned."""
    with damage_named(path):
        stored = load_file(path)
    missing = set(trained_weights(module)) - set(stored)
    unknown = module.load_state_dict(stored, strict=False).unexpected_keys
    if missing or unknown:
        raise CheckpointError(f"{path} holds another network's weights: {sorted(missing or unknown)[0]} does not fit")
