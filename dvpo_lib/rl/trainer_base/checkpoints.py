"""Checkpoints that are complete, hashed, and compared with the run that reads them.

A checkpoint is a folder that `from_pretrained` reads (policy and tokenizer), with optimiser, schedule, random states
and progress as `transformers` writes them. Beside these stand critic, target critic, the critic's optimiser, the rest
of an interrupted generation batch, and manifest.json: every file's hash, the settings, the reference's fingerprint.
"""

from __future__ import annotations

import hashlib
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
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer_base.networks import adapter_settings, fingerprint, is_peft_model
from dvpo_lib.rl.updates import Batch

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
# What decides a run's results, beside the settings of `DVPOConfig` itself.
DECISIVE = (
    "adam_beta1 adam_beta2 adam_epsilon bf16 fp16 gradient_accumulation_steps learning_rate lr_scheduler_kwargs "
    "lr_scheduler_type max_grad_norm optim optim_args per_device_train_batch_size seed warmup_steps weight_decay"
).split()
FREE = (
    "gradient_checkpointing log_completions logging_steps model_init_kwargs num_completions_to_print "
    "num_generations_eval remove_unused_columns trust_remote_code"
).split()


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the message names the file or setting and says what to do."""


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
        (folder / "since_last_log.json").write_text(json.dumps(since_last_log))

    # ---- reading ----

    def _check_checkpoint(self, folder: Path) -> None:
        manifest = read_checkpoint_manifest(folder)
        if "since_last_log.json" not in manifest["files"]:
            raise CheckpointError(f"{folder} holds a model alone (save_only_model): it can be loaded, not gone on from")
        compare_checkpoint_settings(folder, manifest["settings"], self._settings())
        if manifest["reference"] != self.reference_fingerprint():
            raise CheckpointError(
                f"{folder}: the reference policy of the checkpoint is another one; pass the model that its training "
                "started from (the checkpoint's own weights are read afterwards)"
            )
        state = json.loads((folder / "trainer_state.json").read_text())
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
            state = torch.load(folder / "critic_optimizer.pt", map_location="cpu", weights_only=True)
            self.critic_optimizer.load_state_dict(state)
        if self.target_critic is not None:
            load_weights(self.target_critic, folder / "target_critic.safetensors")
        if self.args.sync_ref_model:
            load_weights(self.reference, folder / "reference.safetensors")
        if (batch := folder / "batch.safetensors").exists():
            self.pending = Batch.of_tensors(load_file(batch), self.accelerator.device)
        waiting = json.loads((folder / "since_last_log.json").read_text())
        self._metrics["train"].update(waiting["metrics"])
        self._tr_loss += waiting["loss"]
        self._total_loss_scalar = waiting["logged_loss"]
        self._globalstep_last_logged = waiting["last_logged"]

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


def write_checkpoint_manifest(folder: Path, **content: Any) -> None:
    """Writes hashes of all files in the folder, and `content` beside them."""
    files = {str(path.relative_to(folder)): _hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    content |= {"files": files}
    (folder / MANIFEST).write_text(json.dumps({**content, "digest": _digest(content)}, indent=1))


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are as they were written.

    Raises:
        CheckpointError: If the folder is no checkpoint, or one of its files is missing or damaged.
    """
    advice = "go on from an earlier checkpoint, or start anew"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.pop("digest") != _digest(manifest):
            raise ValueError
        files = manifest["files"]
    except OSError:
        raise CheckpointError(f"{folder} is no checkpoint of DVPOTrainer: it has no {MANIFEST}; {advice}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder / MANIFEST} is damaged; {advice}") from None
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {advice}")
        if _hash(folder / name) != digest:
            raise CheckpointError(f"{folder / name} is damaged: its content is not what was written; {advice}")
    return manifest


def checkpoint_settings(args: DVPOConfig) -> dict[str, Any]:
    """The settings that decide a run's results, as plain values."""
    names = [*DECISIVE, *(name for name in DVPOConfig.__annotations__ if name not in FREE and name[0] != "_")]
    everything = args.to_dict()
    return json.loads(json.dumps({name: everything[name] for name in names}, default=str))


def compare_checkpoint_settings(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises:
    CheckpointError: If a setting differs; the message names all that do.
    """
    before, now = _flat(there), _flat(here)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in sorted(names))
        raise CheckpointError(
            f"{folder} is of a run with other settings: {differences}. "
            "Set them alike, or start anew in another output_dir"
        )


def copied_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights of a module."""
    return {name: x.detach().clone().contiguous() for name, x in module.state_dict().items()}


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights without those of frozen parameters."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: x for name, x in copied_weights(module).items() if name not in frozen}


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads what `trained_weights` or `copied_weights` returned."""
    stored = load_file(path)
    missing = set(trained_weights(module)) - set(stored)
    unknown = module.load_state_dict(stored, strict=False).unexpected_keys
    if missing or unknown:
        raise CheckpointError(f"{path} holds another network's weights: {sorted(missing or unknown)[0]} does not fit")


def _flat(tree: dict[str, Any], parent: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{parent}{name}.") if isinstance(value, dict) else {f"{parent}{name}": value}
    return flat


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
