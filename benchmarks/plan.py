"""Planned against measured peaks of memory, and the plans of the recipes.

    python -m benchmarks.plan              # writes plan.json
    python -m benchmarks.plan --recipes    # writes the plans in recipes/README.md, which takes minutes

Small random models of several architectures train two iterations on a CPU. Measured is the peak of torch's allocations,
the weights included. The plan sees the configuration and the settings alone. The case with LoRA needs `peft`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback

from dvpo_lib.common.marked_text import insert_between_marks
from dvpo_lib.experiments.launch.memory_plan import MemoryPlan
from dvpo_lib.experiments.launch.network_outlines import load_model_config
from dvpo_lib.experiments.launch.recipes import read_recipe
from dvpo_lib.experiments.launch.run_plans import RunOutline, lora_config, plan_text
from dvpo_lib.rl.trainer import DVPOTrainer

from .memory import parity_of_twos, word_tokenizer
from .meters import network_mb, peak_mb

RESULT = Path(__file__).parent / "plan.json"
RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE_MARKS = "<!-- plans: written by `python -m benchmarks.plan --recipes` -->\n", "<!-- end of plans -->"
PROMPT = 16  # tokens
SIZES = dict(vocab_size=4000, pad_token_id=0, eos_token_id=1, bos_token_id=None)
ATTENTION = dict(
    hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256
)
MODELS = {
    "qwen3": dict(model_type="qwen3", head_dim=32, tie_word_embeddings=True, **ATTENTION, **SIZES),
    "llama": dict(model_type="llama", **ATTENTION, **SIZES),
    "gemma3": dict(model_type="gemma3_text", head_dim=32, **ATTENTION, **SIZES),
    "gpt2": dict(model_type="gpt2", n_embd=128, n_layer=2, n_head=4, **SIZES),
}
COMMON = dict(max_completion_length=48, use_cpu=True, max_steps=2, learning_rate=1e-12)  # the policy stays as it is
ACCUMULATED = dict(per_device_train_batch_size=4, gradient_accumulation_steps=4)
CASES: list[dict[str, Any]] = [
    dict(model="qwen3", method="grpo", per_device_train_batch_size=16, gradient_checkpointing=False),
    dict(model="qwen3", method="grpo", **ACCUMULATED, beta=0.04, max_completion_length=128),
    dict(model="qwen3", method="dvpo", per_device_train_batch_size=16, bf16=True),
    dict(model="qwen3", method="dvpo", **ACCUMULATED, critic=dict(backbone="policy", head="mlp")),
    dict(model="qwen3", method="dvpo", **ACCUMULATED, peft=dict(r=8, target_modules="all-linear")),
    dict(model="qwen3", method="cql", **ACCUMULATED),
    dict(model="llama", method="ppo", **ACCUMULATED, beta=0.1),
    dict(model="gemma3", method="reinforce_pp", **ACCUMULATED, beta=0.1),
    dict(model="gpt2", method="dvpo", **ACCUMULATED, gradient_checkpointing=False),
]


def case_run(case: dict[str, Any]) -> RunOutline:
    """The run of one of CASES."""
    settings = {**COMMON, **case}
    model, peft = settings.pop("model"), settings.pop("peft", None)
    if "critic" in settings:
        settings["critic"] = {"learning_rate": 1e-12, **settings["critic"]}
    return RunOutline(model, AutoConfig.for_model(**MODELS[model]), settings, PROMPT, peft=peft)


def measured_mb(run: RunOutline) -> float:
    """Peak of torch's memory in MB over two iterations of a run."""
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(run.config, dtype=torch.float32)
    words = [[f"w{(7 * i + j) % 900}" for j in range(PROMPT - (i % 4 == 1))] for i in range(64)]  # some are shorter
    with tempfile.TemporaryDirectory() as folder:
        args = run.arguments()
        args.output_dir = folder
        trainer = DVPOTrainer(
            policy,
            parity_of_twos,
            args,
            [{"prompt": " ".join(row)} for row in words],
            processing_class=word_tokenizer(MODELS[run.model]["vocab_size"]),
            peft_config=lora_config(run.peft),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.make_ready()
        return network_mb(trainer) + peak_mb(lambda: (trainer.step(), trainer.step()))


def case_row(case: dict[str, Any], plan: MemoryPlan, measured: float) -> dict[str, Any]:
    """One row of plan.json: planned and measured MB, the error in percent, and what the plan says is largest."""
    planned = plan.total / 1e6
    work = sum(plan.phases[plan.largest_phase].values()) / 1e6
    return {
        "case": case,
        "planned_mb": round(planned, 3),
        "measured_mb": round(measured, 3),
        "error_percent": round(100 * (planned / measured - 1), 2),
        "largest_phase": plan.largest_phase,
        "phase_mb": round(work, 3),
    }


def recipe_plans() -> str:
    """The plan of each recipe as Markdown, with its launch line."""
    parts = []
    for file in sorted(RECIPES.glob("*.yaml")):
        own = read_recipe(file).planned()
        run = RunOutline(**{**own, "config": load_model_config(own["config"])})
        title, launch = (line.removeprefix("# ") for line in file.read_text(encoding="utf-8").split("\n")[:2])
        parts.append(
            f"## {file.name}\n\n{title}\n\n```sh\n{launch}\n```\n\n```text\n{plan_text(run, run.plan())}\n```\n"
        )
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Measures all cases that can be measured here and writes plan.json."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", action="store_true", help="plan the recipes instead; LoRA needs peft")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    if given.recipes:
        insert_between_marks(RECIPES / "README.md", *RECIPE_MARKS, recipe_plans())
        return
    rows = []
    for case in CASES:
        if "peft" in case and importlib.util.find_spec("peft") is None:
            print("left out, since peft is not installed:", case)
            continue
        run = case_run(case)
        rows.append(case_row(case, run.plan(), measured_mb(run)))
        print(json.dumps(rows[-1]), flush=True)
    given.out.write_text(json.dumps({"torch": torch.__version__, "cases": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
