"""Speed and memory on a GPU, without network: `make gpu-bench`, or `python -m benchmarks.gpu`.

It writes gpu.json, and a table of it into docs/guide/scale.md.

A Qwen3-architecture model with random weights, the largest whose plan fits the card, trains by ppo, grpo and dvpo. A
small model samples the same prompts on the card and on the CPU, in float32: the tokens should be equal. The whole takes
less than `--minutes`. `--device cpu` runs everything at a tiny size, to try the program; its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PrinterCallback, Qwen3Config

from dvpo_lib.common.marked_text import insert_between_marks
from dvpo_lib.experiments.launch.network_outlines import make_fake
from dvpo_lib.experiments.launch.run_plans import RunOutline
from dvpo_lib.rl.sampling.rollouts import sample_answers

from .iterations import TimedTrainer
from .memory import parity_of_twos, word_tokenizer

RESULT = Path(__file__).parent / "gpu.json"
GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "scale.md"
MARKS = "<!-- GPU: written by `make gpu-bench` -->\n", "<!-- end of GPU -->"
GIB = 2**30
ROUNDS, WARM_UP = 3, 1  # iterations of each method
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}  # bf16, dense, by the data sheets
METHODS_MEASURED = ("ppo", "dvpo", "grpo")
SIZES = {  # of the Qwen3 family: width, layers, query heads, key/value heads, feed-forward width, tied embeddings
    "8B": (4096, 36, 32, 8, 12288, False),
    "4B": (2560, 36, 32, 8, 9728, True),
    "1.7B": (2048, 28, 16, 8, 6144, True),
    "0.6B": (1024, 28, 16, 8, 3072, True),
    "tiny": (64, 2, 4, 2, 128, True),
}
LARGE = dict(vocabulary=151_936, prompt=128, length=256, rows=64, micro_batch=8)
TINY = dict(vocabulary=500, prompt=8, length=8, rows=8, micro_batch=4)


def qwen3_config(size: str, vocabulary: int) -> Qwen3Config:
    """The configuration of a row of SIZES, for `word_tokenizer`."""
    width, layers, heads, key_heads, inner, tied = SIZES[size]
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=128 if width > 64 else 16,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def planned_run(size: str, method: str, device: str, memory_gb: float, work: dict[str, int]) -> RunOutline:
    """The run of a method with a model of this size."""
    settings = dict(
        method=method,
        per_device_train_batch_size=work["micro_batch"],
        gradient_accumulation_steps=work["rows"] // work["micro_batch"],
        max_completion_length=work["length"],
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        max_steps=WARM_UP + ROUNDS,
        learning_rate=1e-12,  # the policy stays as it is
        seed=0,
    )
    config = qwen3_config(size, work["vocabulary"])
    return RunOutline(f"Qwen3 {size}", config, settings, work["prompt"], memory_gb=memory_gb)


def fitting_sizes(device: str, memory_gb: float, work: dict[str, int]) -> Iterator[str]:
    """Models whose dvpo fits the card by its plan, the largest first."""
    for size in SIZES if device == "cuda" else ["tiny"]:
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(qwen3_config(size, work["vocabulary"])).num_parameters()
        standing = 2 * 16 * parameters  # weights, gradients and two moments in float32, of policy and critic
        run = planned_run(size, "dvpo", device, memory_gb, work)
        if standing <= memory_gb * GIB and run.plan().fits(memory_gb):
            yield size


def equality_with_cpu(device: str) -> dict[str, Any]:
    """Tokens that a small model samples on the device and on the CPU, in float32, from the same streams."""
    tokenizer = word_tokenizer(TINY["vocabulary"])
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(qwen3_config("tiny", TINY["vocabulary"]), dtype=torch.float32).eval()
    prompts = [f"w{i} w{2 * i + 1}" for i in range(16)]
    found = {}
    for place in ("cpu", device):
        found[place] = sample_answers(policy.to(place), tokenizer, prompts, 64, seed=1)
    rows = [one == other for one, other in zip(found["cpu"].completion_ids(), found[device].completion_ids())]
    result = {"rows": len(rows), "equal_rows": sum(rows), "tokens": sum(map(len, found["cpu"].completion_ids()))}
    if all(rows):
        gap = (found["cpu"].logprobs - found[device].logprobs.cpu()).abs().max().item()
        result["largest_logprob_gap"] = gap
    return result


def matmul_tflops(device: str) -> float:
    """Rate of a large product of matrices in bf16, the practical peak: the best of ten."""
    n = 8192 if device == "cuda" else 256
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    best = math.inf
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e12


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def forward_flops(run: RunOutline, rows: int) -> int:
    """Floating-point operations of a forward pass of the policy over whole rows; a training step counts as three."""
    length = run.prompt_length + run.settings["max_completion_length"]
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(run.config, attn_implementation="eager")  # products that are counted
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        make_fake(policy)
        policy(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    return rows * counter.get_total_flops()


def measure_method(run: RunOutline, device: str, until: float) -> dict[str, Any]:
    """Iterations of one method, until ROUNDS are done or the time is up (one is done in any case)."""
    args, length = run.arguments(), run.settings["max_completion_length"]
    torch.manual_seed(0)
    with torch.device(device):
        policy = AutoModelForCausalLM.from_config(run.config, dtype=torch.float32)
    words = [[f"w{(31 * i + j) % 400}" for j in range(run.prompt_length)] for i in range(args.generation_batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        tokenizer = word_tokenizer(run.config.vocab_size)
        prompts = [{"prompt": " ".join(row)} for row in words]
        trainer = TimedTrainer(policy, parity_of_twos, args, prompts, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for number in range(WARM_UP + ROUNDS):
            if number == WARM_UP:
                trainer.seconds.clear()
            start = trainer.now()
            completion = trainer.step()["completions/mean_length"]
            seconds += [trainer.now() - start] if number >= WARM_UP else []
            if seconds and time.monotonic() > until:
                break
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        parts = {name: value / len(seconds) for name, value in trainer.seconds.items()}
    rows, updates = args.generation_batch_size, parts["update_policy"] + parts.get("update_critic", 0.0)
    return {
        "iterations": len(seconds),
        "seconds": sum(seconds) / len(seconds),
        "seconds_by_part": parts,
        "sampled_tokens_per_second": rows * completion / parts["sample"],
        "trained_tokens_per_second": rows * completion / updates,
        "policy_update_tflops": 3 * forward_flops(run, rows) * completion / length / parts["update_policy"] / 1e12,
        "peak_gb": None if peak is None else peak / GIB,
    }


def measure(device: str, minutes: float) -> dict[str, Any]:
    """Everything that gpu.json holds."""
    begin, work = time.monotonic(), LARGE if device == "cuda" else TINY
    properties = torch.cuda.get_device_properties(0) if device == "cuda" else None
    memory_gb = properties.total_memory / GIB if properties else 1.0
    name = properties.name if properties else "cpu, tiny size: times mean nothing"
    found: dict[str, Any] = {"device": name, "memory_gb": memory_gb, "torch": torch.__version__, "work": work}
    found["sampling_equal_to_cpu"] = equality_with_cpu(device)
    found["matmul_tflops"] = matmul_tflops(device)
    found["peak_tflops"] = next((peak for card, peak in PEAK_TFLOPS.items() if card in name), None)
    for size in fitting_sizes(device, memory_gb, work):
        print(f"{name}: Qwen3 {size}", flush=True)
        try:
            found |= {"model": size, "methods": measure_methods(size, device, memory_gb, work, begin + 60 * minutes)}
            break
        except torch.OutOfMemoryError as error:  # the plan was wrong, which the result should say
            found.setdefault("out_of_memory", {})[size] = str(error)
        _free(device)
    for own in found["methods"].values():
        for share, rate in (("of_matmul", found["matmul_tflops"]), ("of_peak", found["peak_tflops"])):
            own[f"policy_update_share_{share}"] = rate and own["policy_update_tflops"] / rate
    dvpo, ppo = found["methods"]["dvpo"], found["methods"]["ppo"]
    memory = dvpo["peak_gb"] / ppo["peak_gb"] if ppo["peak_gb"] else None
    found["dvpo_over_ppo"] = {"seconds": dvpo["seconds"] / ppo["seconds"], "memory": memory}
    return found | {"minutes": (time.monotonic() - begin) / 60}


def measure_methods(size: str, device: str, memory_gb: float, work: dict[str, int], end: float) -> dict[str, dict]:
    """`measure_method` of each method in turn, all before the time `end`."""
    found: dict[str, dict] = {}
    for number, method in enumerate(METHODS_MEASURED):
        run = planned_run(size, method, device, memory_gb, work)
        planned = {"planned_gb": run.plan().total / GIB}
        share = 0.8 * (end - time.monotonic()) / (len(METHODS_MEASURED) - number)
        found[method] = measure_method(run, device, time.monotonic() + share) | planned
        print(method, json.dumps(found[method]), flush=True)
        _free(device)
    return found


def gpu_table(found: dict[str, Any]) -> str:
    """The passage of docs/guide/scale.md that a result of `measure` says.

    Args:
        found: The content of gpu.json.
    """
    work, equal, size = found["work"], found["sampling_equal_to_cpu"], found["model"]
    batch, rounds = work["micro_batch"], max(own["iterations"] for own in found["methods"].values())
    lines = [
        f"Measured on one {found['device']} with PyTorch {found['torch']}: a random Qwen3 model of {size},",
        f"bf16, {work['rows']} rows of {work['prompt']} + {work['length']} tokens, micro-batches of {batch}.",
        f"In float32, {equal['equal_rows']} of {equal['rows']} rows have the tokens that a CPU samples.",
        f"Times are means of {rounds} iterations. All methods sample equally much: differences there are chance.",
        "",
        "| method | iteration | sampling | policy update | critic update | peak | planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, own in found["methods"].items():
        parts = [own["seconds_by_part"].get(part) for part in ("sample", "update_policy", "update_critic")]
        times = " | ".join("" if part is None else f"{part:.1f} s" for part in [own["seconds"], *parts])
        memory = f"{own['peak_gb']:.1f} GB | {own['planned_gb']:.1f} GB"
        lines.append(f"| `{method}` | {times} | {memory} |")
    return "\n".join(lines) + "\n"


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 2 without a device."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a tiny size, to try the program"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit (default 9)")
    parser.add_argument("--out", type=Path, help="file of the results (default: benchmarks/gpu.json; none for cpu)")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here; --device cpu tries the program at a tiny size", file=sys.stderr)
        return 2
    out = chosen.out or (RESULT if chosen.device == "cuda" else None)
    found = _rounded(measure(chosen.device, chosen.minutes))
    print(text := json.dumps(found, indent=1))
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if out is RESULT:  # the default, which only a GPU has
        insert_between_marks(GUIDE, *MARKS, gpu_table(found))
    return 0


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    return float(f"{tree:.4g}") if isinstance(tree, float) else tree


if __name__ == "__main__":
    sys.exit(main())
