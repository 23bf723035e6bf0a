"""Malformed checkpoints: files cut, altered or gone, and JSON of other types, with and without a hash that fits."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from conftest import run_settings

from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.rl.trainer_base.manifests import CheckpointError, write_checkpoint_manifest
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer
from malformed import Case
from malformed.mutations import mutate_bytes, mutate_tree, nonsense


class CheckpointCases:
    """Copies of one checkpoint of a small PPO run, each given to the trainer that wrote it."""

    def __init__(self, folder: Path):
        self.good, self.copy = folder / "runs" / "checkpoint-2", folder / "copies" / "checkpoint-2"
        tokenizer = build_tokenizer(TaskSettings())
        args = run_settings(
            1, method="ppo", generation_batch_size=4, num_mini_batches=2, num_iterations=1, max_completion_length=4,
            save_strategy="steps", save_steps=2, output_dir=str(self.good.parent),
        )  # fmt: skip
        policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), seed=0)
        rows = [{"prompt": "math 1 +1 ?"}] * 4
        reward = lambda completions, **columns: [float(len(c)) for c in completions]  # noqa: E731
        self.trainer = DVPOTrainer(policy, reward, args, rows, processing_class=tokenizer)
        self.trainer.train()
        self.files = sorted(path.name for path in self.good.iterdir())

    def __call__(self, rng: random.Random) -> Case:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.good, self.copy)
        name = rng.choice(["manifest.json"] * 8 + self.files)
        file = self.copy / name
        action = rng.choice(("drop", "folder", "bytes", "tree", "tree", "tree"))
        own = name in ("manifest.json", "trainer_state.json", "since_last_log.json")
        if action == "drop":
            file.unlink()
        elif action == "folder":
            file.unlink()
            file.mkdir()
        elif action == "tree" and file.suffix == ".json":
            tree = nonsense(rng) if rng.random() < 0.1 else mutate_tree(json.loads(file.read_text()), rng)
            file.write_bytes(json.dumps(tree, default=str).encode("utf-8", "surrogatepass"))
        else:
            file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        vouched = own and name != "manifest.json" and file.is_file() and rng.random() < 0.7
        if vouched:  # as if the run had written it so
            manifest = json.loads((self.copy / "manifest.json").read_text())
            (self.copy / "manifest.json").unlink()
            write_checkpoint_manifest(self.copy, settings=manifest["settings"], reference=manifest["reference"])
        shown = f"{action} {name}, its hash {'fits' if vouched else 'does not'}"
        return Case(shown, self._resume, (CheckpointError,), r"checkpoint-2", lambda result: None)

    def _resume(self) -> None:
        self.trainer._check_checkpoint(self.copy, self.trainer.reference_fingerprint())
        self.trainer._load_own_state(self.copy)
