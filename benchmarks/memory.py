"""Peak memory of a whole iteration against micro-batch and batch: `python -m benchmarks.memory`, writes memory.json.

A 20M model with a vocabulary of 50,000 words trains its first iteration (sampling, values, log-probabilities,
reference, updates) on responses of 256 tokens. Each case is a process of its own: its peak of resident memory, less
that before the iteration, when the networks stand. Gradients and optimiser states are made in it: the peak lies in an
update, beside the gradients, or at the end, beside both. It should follow the micro-batch, not the batch. The sampler's
cache is bounded by `sampling_batch_size` in all cases.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VOCABULARY, LENGTH = 50_000, 256
SAMPLED_TOGETHER = 16  # responses in the sampler's cache
CASES = [  # (method, responses of an iteration, responses of a micro-batch)
    (method, responses, micro_batch)
    for method in ("grpo", "dvpo")
    for responses, micro_batch in ((64, 64), (64, 4), (16, 4))
]
RESULT = Path(__file__).parent / "memory.json"


def resident_mb(kind: str = "VmRSS") -> float:
    """Resident memory of this process in MB, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {kind}")


def word_tokenizer(words: int):
    """A tokenizer of made-up words: w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    names = [*special.values(), *(f"w{i}" for i in range(words - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def parity_of_twos(completions, **columns) -> list[float]:
    """A reward that differs between responses."""
    return [float(text.count("2") % 2) for text in completions]


def measure_iteration(method: str, responses: int, micro_batch: int, words: int, length: int) -> dict[str, float]:
    """Memory and time of one iteration in this process.

    Args:
        method: A row of METHODS.
        responses: Responses of the iteration; all of them make one optimiser step.
        micro_batch: Responses that go through a network together.
        words: Size of the vocabulary.
        length: Tokens of a response.

    Returns:
        held_mb (before the iteration), peak_mb (beyond it), state_mb (gradients and optimiser states after it),
        seconds, parameters, length (tokens per response).
    """
    from dvpo_lib.models.policy import PolicySettings, build_policy
    from dvpo_lib.rl.config import DVPOConfig
    from dvpo_lib.rl.trainer import DVPOTrainer

    from .meters import training_state_mb

    tokenizer = word_tokenizer(words)
    size = PolicySettings(hidden_size=256, num_hidden_layers=7, num_attention_heads=4, intermediate_size=1024)
    args = DVPOConfig(
        output_dir=tempfile.mkdtemp(),
        method=method,
        max_steps=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=responses // micro_batch,
        max_completion_length=length,
        sampling_batch_size=SAMPLED_TOGETHER,
        beta=0.04,
        report_to="none",
        use_cpu=True,
    )
    prompts = [{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(responses)]
    trainer = DVPOTrainer(build_policy(tokenizer, size, 0), parity_of_twos, args, prompts, processing_class=tokenizer)
    trainer.make_ready()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here on
    held, start = resident_mb(), time.perf_counter()
    metrics = trainer.step()
    peak, state = resident_mb("VmHWM") - held, training_state_mb(trainer)
    return {
        "held_mb": held,
        "peak_mb": peak,
        "state_mb": state,
        "seconds": time.perf_counter() - start,
        "parameters": trainer.policy.num_parameters(),
        "length": metrics["completions/mean_length"],
    }


def measure_case(method: str, responses: int, micro_batch: int, words: int = VOCABULARY, length: int = LENGTH) -> dict:
    """`measure_iteration` in a process of its own, one thread, with memory given back to the system at once."""
    arguments = [str(x) for x in (method, responses, micro_batch, words, length)]
    own = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    command = [sys.executable, "-m", "benchmarks.memory", "--case", *arguments]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    found = {name: round(value, 1) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return {"method": method, "responses": responses, "micro_batch": micro_batch, **found}


def main(arguments: list[str] | None = None) -> None:
    """Measures all cases and writes memory.json, or one of them and prints it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--case", nargs=5, metavar=("METHOD", "RESPONSES", "MICRO_BATCH", "WORDS", "LENGTH"))
    parser.add_argument("--workers", type=int, default=2, help="cases side by side: memory does not depend on load")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    if given.case:
        method, *numbers = given.case
        print(json.dumps(measure_iteration(method, *map(int, numbers))))
        return
    with ThreadPoolExecutor(given.workers) as pool:
        rows = list(pool.map(lambda case: measure_case(*case), CASES))
    for row in rows:
        print(row)
    sizes = {"vocabulary": VOCABULARY, "tokens": LENGTH, "sampled_together": SAMPLED_TOGETHER}
    given.out.write_text(json.dumps({**sizes, "cases": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
