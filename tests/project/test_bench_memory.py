"""Memory of an iteration: it follows the micro-batch, not the batch."""

import json

import pytest
from conftest import ROOT
from transformers import PrinterCallback

from benchmarks import memory
from benchmarks.meters import peak_mb
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.trainer import DVPOTrainer


@pytest.mark.parametrize("method", ["grpo", "dvpo"])
def test_measured_peaks_follow_the_micro_batch(method):
    """A 20M model, 50,000 words, 256 tokens; peaks beyond the networks, gradients and Adam's states included."""
    found = json.loads((ROOT / "benchmarks" / "memory.json").read_text(encoding="utf-8"))
    rows = [row for row in found["cases"] if row["method"] == method]
    assert [(row["responses"], row["micro_batch"]) for row in rows] == [(64, 64), (64, 4), (16, 4)]
    assert found["vocabulary"] == 50_000 and all(row["length"] == found["tokens"] == 256 for row in rows)
    assert all(19e6 < row["parameters"] < 21e6 for row in rows)
    one, sixteen, quarter = (row["peak_mb"] for row in rows)
    assert sixteen < one / 2  # 16 micro-batches in place of one; gradients and states alone take state_mb
    assert sixteen < 1.3 * rows[1]["state_mb"]
    kept = 0.0 if method == "grpo" else 48 * 256 * 3 * 200 * 4 / 1e6  # quantiles of the 48 further responses, MB
    assert sixteen < 1.05 * (quarter + kept)  # four times the responses in micro-batches of one size


def test_peaks_follow_the_micro_batch(tmp_path):
    """Torch's own count of a second iteration, when gradients and optimiser states stand; 3000 words, 16 tokens."""
    tokenizer, peaks = memory.word_tokenizer(3000), {}
    for responses, micro_batch in ((8, 4), (32, 4), (32, 32)):
        args = DVPOConfig(
            output_dir=str(tmp_path),
            method="dvpo",
            max_steps=2,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=responses // micro_batch,
            max_completion_length=16,
            sampling_batch_size=4,
            critic=CriticSettings(heads=2, quantiles=16),
            beta=0.1,
            report_to="none",
            use_cpu=True,
        )
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=2), 0)
        prompts = [{"prompt": f"w{i} w{i + 1}"} for i in range(responses)]
        trainer = DVPOTrainer(policy, memory.parity_of_twos, args, prompts, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.step()
        peaks[responses, micro_batch] = peak_mb(trainer.step)
    assert peaks[32, 4] < 1.3 * peaks[8, 4]
    assert peaks[32, 32] > 1.5 * peaks[32, 4]


def test_a_case_is_measured():
    found = memory.measure_iteration("grpo", 8, 4, words=100, length=4)
    assert found["peak_mb"] > 0 and found["held_mb"] > 100 and found["length"] <= 4
    assert found["state_mb"] >= 3 * 4 * found["parameters"] / 1e6  # a gradient and two moments a weight
