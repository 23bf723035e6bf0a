"""Manifests of checkpoints: the hash of every file, and the settings that decide a run's results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvpo_lib.common.durable_files import file_digest, folder_digests
from dvpo_lib.common.jsonl import parse_json
from dvpo_lib.common.settings_tree import cut_text
from dvpo_lib.common.tables import short_repr
from dvpo_lib.rl.config import DVPOConfig

MANIFEST = "manifest.json"
ADVICE = "go on from an earlier checkpoint, or start anew"
# What decides a run's results, beside the settings of `DVPOConfig` itself.
DECISIVE = (
    "adam_beta1 adam_beta2 adam_epsilon bf16 fp16 learning_rate lr_scheduler_kwargs "
    "lr_scheduler_type max_grad_norm optim optim_args seed warmup_steps weight_decay"
).split()
FREE = (  # micro-batches and processes change no result but by rounding; `steps_per_iteration` is compared
    "gradient_checkpointing log_completions logging_steps model_init_kwargs num_completions_to_print "
    "num_generations_eval remove_unused_columns rewards_on_main sampling_batch_size steps_per_generation "
    "trust_remote_code vllm_response_timeout vllm_server_base_url vllm_server_host vllm_server_port "
    "vllm_server_timeout vllm_weights_dir"
).split()


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the message names the file or setting and says what to do."""


@contextmanager
def damage_named(file: Path) -> Iterator[Path]:
    """Errors while a file of a checkpoint is read become a CheckpointError that names it."""
    try:
        yield file
    except CheckpointError:
        raise
    except Exception as error:  # of JSON, safetensors, torch, the file system
        raise CheckpointError(f"{file} is damaged: {short_repr(error, 200)}; {ADVICE}") from error


def write_checkpoint_manifest(folder: Path, **content: Any) -> None:
    """Writes hashes of all files in the folder, and `content` beside them."""
    content |= {"files": folder_digests(folder)}
    text = json.dumps({**content, "digest": _digest(content)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are as they were written.

    Raises:
        CheckpointError: If the folder is no checkpoint, or one of its files is missing or damaged.
    """
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} is no checkpoint of DVPOTrainer: it has no {MANIFEST}; {ADVICE}")
    with damage_named(folder / MANIFEST) as file:
        manifest = parse_json(file.read_bytes())
        if manifest.pop("digest") != _digest(manifest):
            raise ValueError("its content is not what was written")
        for name, digest in manifest["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"it lists the file {short_repr(name)}, which is not in the folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name} is missing; {ADVICE}")
            if file_digest(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is damaged: its content is not what was written; {ADVICE}")
    return manifest


def checkpoint_settings(args: DVPOConfig) -> dict[str, Any]:
    """The settings that decide a run's results, as plain values."""
    own = [name for name in DVPOConfig.__annotations__ if name not in FREE and name[0] != "_"]
    names = [*DECISIVE, "steps_per_iteration", *own]
    everything = args.to_dict() | {"steps_per_iteration": args.steps_per_iteration}
    return json.loads(json.dumps({name: everything[name] for name in names}, default=str))


def compare_checkpoint_settings(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises:
    CheckpointError: If a setting differs; the message names them, at most ten.
    """
    before, now = _flat(there), _flat(here)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    names.sort(key=lambda name: (name.count("."), name))  # method before critic.kind
    if names:
        shown = [f"{name} was {cut_text(before.get(name), 60)} and is {cut_text(now.get(name), 60)}" for name in names]
        differences = "; ".join(shown[:10]) + f"; and {len(shown) - 10} more" * (len(shown) > 10)
        raise CheckpointError(
            f"{folder} is of a run with other settings: {differences}. "
            "Set them alike, or start anew in another output_dir"
        )


def _flat(tree: dict[str, Any], parent: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{parent}{name}.") if isinstance(value, dict) else {f"{parent}{name}": value}
    return flat


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
