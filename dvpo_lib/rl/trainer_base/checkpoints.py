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
import tempfile
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

from dvpo_lib.common.durable_files import atomic_folder
from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.models.architectures import is_sharded
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
from dvpo_lib.rl.trainer_base.parallel.processes import ALONE, OtherProcessError, Processes
from dvpo_lib.rl.trainer_base.parallel.sharding import (
    copied_weights,
    load_optimizer_state,
    load_weights,
    trained_weights,
    whole_tensors,
)
from dvpo_lib.rl.trainer_base.prompts import PromptMeans
from dvpo_lib.rl.updates import Batch

logger = logging.getLogger(__name__)
PROMPT_MEANS = "prompt_means.json"  # rewards of each prompt so far, in checkpoints of runs that need them


class CheckpointedTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints hold a critic, too, and are whole or not there.

    Subclasses have `critic` and `target_critic` (None if there are none), `critic_optimizer` and `reference`.
    """

    critic: nn.Module | None = None
    target_critic: nn.Module | None = None
    critic_optimizer: Any = None
    reference: nn.Module | None = None
    pending: Batch | None = None  # the generation batch that still has optimiser steps to come
    processes: Processes = ALONE
    _fingerprint: str | None = None

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Runs to `max_steps`, or through `num_train_epochs` passes over the prompts.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True: the last one in `output_dir`, if there is one.
            trial, ignore_keys_for_eval: As in `transformers.Trainer`.

        Raises:
            CheckpointError: If the checkpoint is damaged, or of another run.
            RewardError: If a reward function fails.
            EngineError: If the sampling engine fails, a server that has died, say. Before this and the former the state
                is saved (unless `save_strategy` is "no"), so that `train(resume_from_checkpoint=True)` goes on at
                this step.
            TrainingDiverged: If a loss, gradient, logit or weight is not finite.
        """
        if resume_from_checkpoint is True:
            there = os.path.isdir(self.args.output_dir)
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) if there else None
        if resume_from_checkpoint:
            reference = self.reference_fingerprint()
            with self.processes.together():
                self._check_checkpoint(Path(resume_from_checkpoint), reference)
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    # ---- writing ----

    @contextmanager
    def state_saved_on(self, *errors: type[Exception]) -> Iterator[None]:
        """Saves what was learned so far if one of these errors ends training."""
        try:
            yield
        except Exception as error:  # all processes save, or none
            kind = error.kind if isinstance(error, OtherProcessError) else type(error).__name__
            named = kind in {known.__name__ for known in errors}
            if named and self.is_in_train and self.args.save_strategy != "no":
                self._save_checkpoint(self.model, None)
            raise

    def _save_checkpoint(self, model, trial) -> None:
        """Writes a checkpoint, in the main process; first all that other processes hold a part of is put together."""
        own, reference = self._own_state(), self.reference_fingerprint()
        weights = whole_tensors(self.model.state_dict(), self.processes.is_main) if is_sharded(self.model) else None
        random_states = self.processes.gather_objects(self._random_state())
        self._export_callback_states()
        with self.processes.together():
            if self.processes.is_main:
                self._write_checkpoint(trial, weights, own, random_states, reference)

    def _write_checkpoint(self, trial, weights, own: dict[str, Any], random_states: list[bytes], reference) -> None:
        run_dir = self._get_output_dir(trial=trial)
        place = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        best = Path(run_dir) / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == place or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        with atomic_folder(place) as folder:
            self._save(str(folder), state_dict=weights)
            for name, content in own.items():
                (save_file if name.endswith(".safetensors") else torch.save)(content, folder / name)
            if not self.args.save_only_model:
                torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
                self._save_scaler(str(folder))
                for index, content in enumerate(random_states):
                    (folder / self._random_state_name(index)).write_bytes(content)
                self._write_since_last_log(folder)
                if self.prompt_means.sums:
                    (folder / PROMPT_MEANS).write_text(json.dumps(self.prompt_means.sums), encoding="utf-8")
            self.state.save_to_json(str(folder / "trainer_state.json"))
            write_checkpoint_manifest(folder, settings=self._settings(), reference=reference)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))
        rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _random_state_name(self, index: int) -> str:
        return "rng_state.pth" if self.processes.count == 1 else f"rng_state_{index}.pth"  # as `transformers` has it

    def _random_state(self) -> bytes:
        """The file that `transformers` makes of global generators, from which reward functions may draw."""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return (Path(folder) / self._random_state_name(self.processes.index)).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Global generators of this process; those of the first if the checkpoint's run had fewer processes."""
        names = [f"rng_state_{self.processes.index}.pth", "rng_state_0.pth", "rng_state.pth"]
        found = [path for path in (Path(checkpoint or "", name) for name in names) if checkpoint and path.is_file()]
        if found:
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(found[0], Path(folder) / self._random_state_name(self.processes.index))
                super()._load_rng_state(folder)

    def _export_callback_states(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, state = type(callback).__name__, callback.state()
                if isinstance(self.state.stateful_callbacks[name], list):
                    self.state.stateful_callbacks[name].append(state)
                else:
                    self.state.stateful_callbacks[name] = state

    def _own_state(self) -> dict[str, Any]:
        """Content of files by name: optimisers, critics and the rest of a generation batch, for the main process."""
        if self.args.save_only_model:
            return {}
        keep = self.processes.is_main
        files: dict[str, Any] = {"optimizer.pt": whole_tensors(self.optimizer.state_dict(), keep)}
        if self.critic is not None:
            files["critic.safetensors"] = trained_weights(self.accelerator.unwrap_model(self.critic), keep)
            files["critic_optimizer.pt"] = whole_tensors(self.critic_optimizer.state_dict(), keep)
        if self.target_critic is not None:
            files["target_critic.safetensors"] = copied_weights(self.target_critic, keep)
        if self.args.sync_ref_model:
            files["reference.safetensors"] = copied_weights(self.reference, keep)
        if self.pending is not None:
            tensors = self.pending.tensors().items()
            files["batch.safetensors"] = {name: self.processes.gather(x).cpu() for name, x in tensors}
        return files

    def _write_since_last_log(self, folder: Path) -> None:
        since_last_log = {
            "metrics": self._metrics["train"],
            "loss": self._tr_loss.item(),
            "logged_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        (folder / "since_last_log.json").write_text(json.dumps(since_last_log), encoding="utf-8")

    # ---- reading ----

    def _check_checkpoint(self, folder: Path, reference: str | None) -> None:
        manifest = read_checkpoint_manifest(folder)
        if not (isinstance(manifest.get("settings"), dict) and "reference" in manifest):
            raise CheckpointError(f"{folder / MANIFEST} is damaged: it holds no settings; {ADVICE}")
        if "since_last_log.json" not in manifest["files"]:
            raise CheckpointError(f"{folder} holds a model alone (save_only_model): it can be loaded, not gone on from")
        compare_checkpoint_settings(folder, manifest["settings"], self._settings())
        if manifest["reference"] != reference:
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

    def _load_from_checkpoint(self, checkpoint, model=None) -> None:
        """Weights of the policy; `transformers` reads those of sharded models from other files than it writes here."""
        model = self.model if model is None else model
        if not is_sharded(model):
            super()._load_from_checkpoint(checkpoint, model)
            return
        for path in Path(checkpoint).glob("model*.safetensors"):
            load_weights(model, load_file(path))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        load_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_own_state(self, folder: Path) -> None:
        """What `transformers` does not read: critics, the rest of a generation batch, metrics that wait for a log."""
        if self.critic is not None:
            _load_file(self.accelerator.unwrap_model(self.critic), folder / "critic.safetensors")
            with damage_named(folder / "critic_optimizer.pt") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
                load_optimizer_state(self.critic_optimizer, state)
        if self.target_critic is not None:
            _load_file(self.target_critic, folder / "target_critic.safetensors")
        if self.args.sync_ref_model:
            _load_file(self.reference, folder / "reference.safetensors")
        if (folder / "batch.safetensors").exists():
            with damage_named(folder / "batch.safetensors") as file:
                own = {name: self.processes.own_rows(x) for name, x in load_file(file).items()}
                self.pending = Batch.of_tensors(own, self.accelerator.device)
        if (folder / PROMPT_MEANS).exists():
            with damage_named(folder / PROMPT_MEANS) as file:
                self.prompt_means = PromptMeans(parse_json(file.read_bytes()))
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
        kind, size = type(policy).__name__.removeprefix("FSDP"), sum(p.numel() for p in policy.parameters())
        size = f"{kind} of {size:,} parameters"
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


def _load_file(module: nn.Module, path: Path) -> None:
    with damage_named(path):
        stored = load_file(path)
    frozen = {name for name, x in module.named_parameters() if not x.requires_grad}
    names = set(module.state_dict())
    strangers = names - frozen - set(stored) or set(stored) - names
    if strangers:
        raise CheckpointError(f"{path} holds another network's weights: {sorted(strangers)[0]} does not fit")
    load_weights(module, stored)
