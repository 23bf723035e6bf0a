"""Measures grpo beside TRL's GRPOTrainer and writes against_trl.json (default: benchmarks/).

    python -m benchmarks.against_trl                       # an untrained policy: responses of nearly full length
    python -m benchmarks.against_trl --policy data/base    # the chain's base policy: shorter ones

The file has one part for each of the two; a run replaces its own part. Both trainers start from the same model and
train on the same prompts with equal rewards, settings and threads. They take turns in one process, one iteration each
(a batch of rollouts and all its optimiser steps), so that other load on the machine affects both equally. Only the
ratio of their times carries over to other machines. If other programs compete for the cores, the ratio of CPU seconds
is the steadier one; otherwise the two ratios agree.

Extra work of TRL: it samples with `generate` of `transformers`, which supports any sampling method; it computes the
log-probabilities of the old policy in a separate pass, while ours keeps those of the sampling; and it converts tokens
to lists and back for its other engines. Its optimiser is its default one (fused AdamW, here without decay). All other
changes to its settings make the comparison fair or save time on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dvpo_lib.models.policy import PolicySettings, build_policy, load_policy
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.rl.training_settings import TrainingSettings, trainer_config
from dvpo_lib.tasks.chains import accuracy_reward
from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer

from .costs import publish_costs

GRPO_SETTINGS = trainer_config(
    TrainingSettings(),
    max_steps=40,
    method="grpo",
    max_completion_length=32,
    seed=0,
    use_cpu=True,
    output_dir=tempfile.gettempdir(),
    save_strategy="no",
)
POLICY_PARTS = ("untrained", "trained")  # of the file, by initial policy
UPDATES_PER_ITERATION = GRPO_SETTINGS.steps_per_iteration  # optimiser steps
TRL_MISSING = "TRL is not installed here: `make bench-trl` sets up an environment with it (pip install '.[trl]')"


def trl_settings(args: DVPOConfig, iterations: int, folder: str):
    """TRL's settings for `iterations` iterations of `args`."""
    from trl import GRPOConfig

    return GRPOConfig(
        # equal for both trainers
        per_device_train_batch_size=args.per_device_train_batch_size,
        generation_batch_size=args.generation_batch_size,
        num_generations=args.num_generations,
        num_iterations=args.num_iterations,
        max_steps=iterations * args.steps_per_iteration,
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        top_k=0,
        top_p=1.0,
        beta=args.beta,
        epsilon=args.epsilon,
        loss_type="grpo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        bf16=False,
        use_cpu=True,
        logging_steps=args.steps_per_iteration,  # one record per iteration, as ours
        # irrelevant features that cost time
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        output_dir=folder,
    )


def wall_and_cpu_seconds() -> np.ndarray:
    """(2,) seconds of the wall clock and of the process."""
    return np.array([time.perf_counter(), time.process_time()])


def take_turns(rounds: int, warmup: int, base: Path | None = None) -> list[dict]:
    """Measures both trainers in alternation.

    TRL's trainer runs a loop and has no step to call, so the rounds run inside that loop: after each iteration of TRL
    its clock stops and ours does one step.

    Args:
        rounds: Measured iterations of each trainer.
        warmup: Iterations before them that are dropped.
        base: Folder of the policy and its tokenizer. The untrained default model if None.

    Returns:
        One row per round: seconds, CPU seconds and mean response length of each trainer.
    """
    from huggingface_hub import constants
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOTrainer

    constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports its use otherwise
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # of settings that TRL itself still uses
    tasks = TaskSettings()
    prompts, rows = build_suites(tasks)["math"]["train"], []

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **others):
            if state.global_step == 0:
                self.start = wall_and_cpu_seconds()

        def on_step_end(self, args, state, control, **others):
            if state.global_step % UPDATES_PER_ITERATION == 0:
                theirs, start = wall_and_cpu_seconds() - self.start, wall_and_cpu_seconds()
                length = ours.step()["completions/mean_length"]
                (seconds, cpu), (own_seconds, own_cpu) = theirs, wall_and_cpu_seconds() - start
                rows.append(
                    {
                        "trl_seconds": seconds,
                        "dvpo_seconds": own_seconds,
                        "trl_cpu": cpu,
                        "dvpo_cpu": own_cpu,
                        "dvpo_length": length,
                    }
                )
                self.start = wall_and_cpu_seconds()

    with tempfile.TemporaryDirectory() as folder:
        if base is None:  # saved to a folder, because TRL loads its reference policy by name
            base, tokenizer = Path(folder) / "base", build_tokenizer(tasks)
            tokenizer.save_pretrained(base)
            build_policy(tokenizer, PolicySettings(), seed=0).save_pretrained(base)
        (policy, tokenizer), (policy_of_trl, _) = load_policy(str(base)), load_policy(str(base))
        trl = GRPOTrainer(
            policy_of_trl,
            accuracy_reward,
            trl_settings(GRPO_SETTINGS, warmup + rounds, folder),
            prompts,
            processing_class=tokenizer,
            callbacks=[Turns()],
        )
        trl.remove_callback(PrinterCallback)
        # Created after TRL's trainer, which resets the state that accelerators share.
        ours = DVPOTrainer(policy, accuracy_reward, GRPO_SETTINGS, prompts, processing_class=tokenizer)
        trl.train()
    lengths = [log["completions/mean_length"] for log in trl.state.log_history if "completions/mean_length" in log]
    rows = [{**row, "trl_length": length} for row, length in zip(rows, lengths, strict=True)]
    return [{"round": n, **row} for n, row in enumerate(rows[warmup:])]


def summarize_rounds(rows: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summary of the rounds.

    Args:
        rows: Rows of `take_turns`.

    Returns:
        For each trainer median seconds, rates and mean response length; and median, minimum and maximum over rounds of
        TRL's seconds over ours.
    """
    rounds = pd.DataFrame(rows)
    names = ["dvpo", "trl"]
    seconds = pd.Series({name: rounds[f"{name}_seconds"].median() for name in names})
    table = pd.DataFrame(
        {
            "seconds": seconds,
            "rollouts_per_second": GRPO_SETTINGS.generation_batch_size / seconds,
            "updates_per_second": UPDATES_PER_ITERATION / seconds,
            "response_length": {name: rounds[f"{name}_length"].mean() for name in names},
        }
    )
    ratios = pd.DataFrame({of: rounds[f"trl_{of}"] / rounds[f"dvpo_{of}"] for of in ("seconds", "cpu")})
    return table, ratios.agg(["median", "min", "max"])


def replace_part(file: Path, part: str, found: dict) -> dict:
    """Replaces one part of the file, keeps the other, and returns both."""
    everything = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    everything[part] = found
    everything = {name: everything[name] for name in POLICY_PARTS if name in everything}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return everything


def overview_table(everything: dict) -> pd.DataFrame:
    """Seconds, response lengths and ratios of time (median, minimum, maximum), one column per part of the file."""
    rows = {}
    for part, found in everything.items():
        row = {
            f"{column}, {name}": found[column][name]
            for column in ("seconds", "response_length")
            for name in ("dvpo", "trl")
        }
        row |= {f"TRL over ours, {of}, {k}": x for of, r in found["trl_over_ours"].items() for k, x in r.items()}
        rows[part] = {**row, "rounds": len(found["rounds"])}
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_trl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for both (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="iterations of each that count (default 15)")
    parser.add_argument("--warmup", type=int, default=3, help="iterations of each before them (default 3)")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="PATH",
        help="folder of a trained policy to start from, such as data/base (default: the default model, untrained)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.policy and not (chosen.policy / "config.json").is_file():
        parser.error(f"--policy: {chosen.policy} is no folder of a saved policy")
    try:
        versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch", "accelerate")}
    except importlib.metadata.PackageNotFoundError:
        parser.error(TRL_MISSING)
    torch.set_num_threads(chosen.threads)

    rows = take_turns(chosen.rounds, chosen.warmup, chosen.policy)
    table, ratios = summarize_rounds(rows)
    found = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": chosen.threads},
        "versions": {"python": platform.python_version(), **versions},
        "iteration": {"rollouts": GRPO_SETTINGS.generation_batch_size, "updates": UPDATES_PER_ITERATION},
        **{name: column.round(3).to_dict() for name, column in table.items()},
        "trl_over_ours": ratios.round(3).to_dict(),
        "rounds": [{name: round(value, 4) for name, value in row.items()} for row in rows],
    }
    everything = replace_part(chosen.out / "against_trl.json", "trained" if chosen.policy else "untrained", found)
    publish_costs(chosen.out)
    print(overview_table(everything).round(2).to_string())


if __name__ == "__main__":
    main()
