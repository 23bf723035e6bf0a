"""Small runs of many methods, for comparison between numbers of processes; one launch makes all of them.

torchrun --nproc_per_node 2 tests/rl/process_runs.py FOLDER      writes FOLDER/2.pt and checkpoints
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from dvpo_lib.functional import token_chunks
from dvpo_lib.models.architectures import is_sharded
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.rl.trainer_base.parallel.sharding import whole_tensors

ROWS = 16  # of a generation batch
WORDS = "<pad> <eos> one two three four five six say".split()
PROMPTS = [{"prompt": "say" + " one" * (i % 3) + f" {WORDS[2 + i % 5]}"} for i in range(10)]
HARD = dict(num_iterations=2, steps=2, missing=True, mask_truncated_completions=True)  # rows drop out of every step
METHOD_RUNS = {m: dict(method=m) for m in ("ppo", "dvpo", "dvpo_winsorised", "grpo", "reinforce_pp")}
HARD_RUNS = {
    "dvpo, dropped": dict(method="dvpo", beta=0.1, **HARD),
    "grpo, dropped": dict(method="grpo", beta=0.1, scale_rewards="batch", **HARD),
}
FOUR_RUNS = {  # in four processes, which share two cores: with a critic, without one, with rows that drop out
    name: (METHOD_RUNS | HARD_RUNS)[name] for name in ("ppo", "grpo", "dvpo, dropped")
}
MORE_RUNS = {
    "dvpo, bootstrapped": dict(
        method="dvpo", missing_rewards="bootstrap", target="mixture", lam_critic=0.8, entropy_coef=0.01, **HARD
    ),
    "ppo, by token": dict(method="ppo", process=True, lam_critic=0.9, **HARD),
    "ppo, prompt means": dict(method="ppo", readout=dict(kind="denoised", centre="prompt_mean", weight=0.5), **HARD),
    "reinforce_pp, dropped": dict(method="reinforce_pp", beta=0.1, **HARD),
    "dvpo, chunks": dict(method="dvpo", chunks=True, tied=False, gradient_checkpointing=False),
    "grpo, chunks": dict(method="grpo", chunks=True),
    "dvpo, backbone": dict(method="dvpo", backbone="policy"),
}
UNSHARDED_RUNS = {
    "robust_ppo": dict(method="robust_ppo"),
    "ppo_clip_reward": dict(method="ppo_clip_reward", rewards_on_main=True, missing=True),
    "cql": dict(method="cql"),
    "rfqi": dict(method="rfqi", extraction="perturbed"),
}


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Few words, so that the end of sequence is often sampled."""
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>")


def settings(method: str, steps: int = 1, backbone: str = "own", **changes) -> DVPOConfig:
    """Three iterations of one optimiser step, or one and a half of four; the same batches in 1, 2 and 4 processes."""
    kind = METHODS[method].critic or "quantile"
    critic = CriticSettings(kind=kind, heads=2, quantiles=16, learning_rate=1e-3, backbone=backbone)
    own = dict(
        output_dir="unused",
        method=method,
        critic=critic,
        max_steps=3 if steps == 1 else 6,
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ROWS // 2 // int(os.environ.get("WORLD_SIZE", "1")) // steps,
        generation_batch_size=ROWS,
        num_generations=4,
        max_completion_length=5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    return DVPOConfig(**own | changes)


def reward_of(missing: bool, process: bool, seen: list):
    """Every second word pays; a reward may be missing, or lie on single tokens."""

    def words(prompts, completions, completion_ids, log_metric, log_extra, **columns):
        seen.append(completion_ids)
        log_metric("words", sum(len(text.split()) for text in completions) / len(completions))
        log_extra("words", [len(text.split()) for text in completions])
        paid = [[float(token % 2) for token in ids] for ids in completion_ids]
        rewards = paid if process else [sum(row) / 2 for row in paid]
        return [None if missing and sum(ids) % 4 == 0 else x for x, ids in zip(rewards, completion_ids, strict=True)]

    return words


def small_trainer(reward=None, seen=None, missing=False, process=False, tied=True, callbacks=None, **changes):
    """A trainer of a Llama of two layers."""
    policy = tiny_model("Llama", vocab_size=len(WORDS), eos_token_id=1, tie_word_embeddings=tied)
    reward = reward or reward_of(missing, process, [] if seen is None else seen)
    data = dict(train_dataset=PROMPTS, eval_dataset=PROMPTS[:5], processing_class=small_tokenizer())
    t = DVPOTrainer(policy, reward, settings(**changes), **data, callbacks=callbacks)
    t.remove_callback(PrinterCallback)
    return t


def outcome_of(resume=None, chunks=False, save_to=None, **changes) -> dict:
    """Sampled tokens of all rows, whole weights before and after, and logs of a run."""
    seen: list = []
    small = mock.patch.multiple(token_chunks, CHUNK_NUMBERS=1, CHUNK_TOKENS=4) if chunks else mock.MagicMock()
    with small:
        t = small_trainer(seen=seen, **changes)
        before = {name: x.clone() for name, x in t.policy.state_dict().items()}
        t.train(resume_from_checkpoint=resume)
        assert is_sharded(t.policy) == bool(t.args.fsdp)
        calls = itertools.zip_longest(*t.processes.gather_objects(list(seen)), fillvalue=[])
        t.evaluate()
    if save_to is not None:
        t.save_model(str(save_to))
    networks = {"policy": t.policy} | ({"critic": t.critic} if t.critic is not None else {})
    weights = {k: {n: x.clone() for n, x in whole_tensors(m.state_dict()).items()} for k, m in networks.items()}
    logs = [
        {name: x for name, x in record.items() if "time" not in name and "per_second" not in name}
        for record in t.state.log_history
    ]
    return dict(tokens=[sum(call, []) for call in calls], before=before, weights=weights, logs=logs)


def saving(folder: Path, **changes) -> dict:
    """Settings of a run that leaves a checkpoint in the middle of a generation batch."""
    return HARD_RUNS["dvpo, dropped"] | dict(output_dir=str(folder), save_strategy="steps", save_steps=2) | changes


def failures() -> dict[str, list[str]]:
    """What each process raises if process 1 alone fails."""
    rank, found = int(os.environ["RANK"]), {}

    def raises(prompts, **columns):
        if rank == 1:
            raise ValueError("no judge here")
        return [0.5] * len(prompts)

    def spoils(prompts, **columns):
        if rank == 1:
            next(t.policy.parameters()).data.fill_(float("nan"))
        return [0.1 * i for i in range(len(prompts))]

    for name, reward in (("reward", raises), ("not finite", spoils)):
        t = small_trainer(reward, method="ppo")
        try:
            t.train()
            error = None
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        found[name] = t.processes.gather_objects(error)
    return found


class Crash(TrainerCallback):
    """Ends process 1 where nobody expects it; the others wait in their next exchange."""

    def on_step_begin(self, args, state, control, **others):
        if int(os.environ["RANK"]) == 1:
            raise ValueError("process 1 has crashed")


def main(folder: Path) -> None:
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    many = METHOD_RUNS | HARD_RUNS | MORE_RUNS
    runs, sharded = (many | UNSHARDED_RUNS, many) if world == 2 else (FOUR_RUNS, FOUR_RUNS)
    table = dict(log_completions=True, output_dir=str(folder / f"table-{world}"))
    found = {name: outcome_of(**changes, **(table if name == "grpo" else {})) for name, changes in runs.items()}
    if world == 2:
        found["failures"] = failures()
        outcome_of(**saving(folder / "of-2"))
        found["resumed"] = outcome_of(folder / "of-1" / "checkpoint-2", **HARD_RUNS["dvpo, dropped"])
        found["bf16"] = outcome_of(method="dvpo", bf16=True)
    AcceleratorState._reset_state()
    for name, changes in sharded.items():
        found[f"{name}, sharded"] = outcome_of(**changes, fsdp=True)
    if world == 2:
        outcome_of(**saving(folder / "of-2-sharded"), fsdp=True, save_to=folder / "saved")
        found["resumed, sharded"] = outcome_of(
            folder / "of-1" / "checkpoint-2", **HARD_RUNS["dvpo, dropped"], fsdp=True
        )
        found["bf16, sharded"] = outcome_of(method="dvpo", bf16=True, fsdp=True)
    if rank == 0:
        torch.save(found, folder / f"{world}.pt")
    if world == 2:
        (folder / "crash").write_text(str(time.time()))
        small_trainer(method="ppo", fsdp=True, callbacks=[Crash()]).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
