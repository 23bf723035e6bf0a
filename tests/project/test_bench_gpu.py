"""The benchmark for GPUs: its whole path at a tiny size on the CPU, and what it says without a GPU."""

import json
import os

import pytest
import torch

from benchmarks import gpu


def test_everything_runs_at_a_tiny_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    monkeypatch.setattr(gpu, "METHODS_MEASURED", ("ppo", "dvpo"))
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["model"] == "tiny" and found["device"].startswith("cpu")
    equal = found["sampling_equal_to_cpu"]
    assert equal["equal_rows"] == equal["rows"] and equal["largest_logprob_gap"] == 0
    for method in ("ppo", "dvpo"):
        own = found["methods"][method]
        assert own["iterations"] == 1 and min(own["sampled_tokens_per_second"], own["trained_tokens_per_second"]) > 0
        assert 0 < own["policy_update_share_of_matmul"] and own["planned_gb"] > 0
    assert found["dvpo_over_ppo"]["seconds"] > 0 and found["dvpo_over_ppo"]["memory"] is None  # counted on CUDA alone


def test_flops_are_two_for_each_weight_and_token():
    work = gpu.TINY | {"prompt": 4, "length": 4}
    run = gpu.planned_run("tiny", "ppo", "cpu", 1.0, work)
    config = run.config
    width, heads = config.hidden_size, config.head_dim * config.num_attention_heads
    keys = config.head_dim * config.num_key_value_heads
    layer = 2 * width * heads + 2 * width * keys + 3 * width * config.intermediate_size
    weights = config.num_hidden_layers * layer + width * config.vocab_size
    attention = config.num_hidden_layers * 2 * 2 * 8 * 8 * heads  # scores and mixtures of 8 tokens
    assert gpu.forward_flops(run, 3) == pytest.approx(3 * (2 * 8 * weights + attention), rel=0.01)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_guide_has_the_committed_result():
    found = json.loads(gpu.RESULT.read_text(encoding="utf-8"))
    assert gpu.MARKS[0] + gpu.gpu_table(found) + gpu.MARKS[1] in gpu.GUIDE.read_text(encoding="utf-8")


def test_the_committed_result_is_of_a_gpu_and_as_planned():
    found = json.loads(gpu.RESULT.read_text(encoding="utf-8"))
    equal = found["sampling_equal_to_cpu"]
    assert "cpu" not in found["device"].lower() and equal["equal_rows"] == equal["rows"] > 0
    for own in found["methods"].values():
        assert own["planned_gb"] == pytest.approx(own["peak_gb"], rel=0.05)
        sampled = own["sampled_tokens_per_second"] * own["seconds_by_part"]["sample"]
        assert sampled == pytest.approx(found["work"]["rows"] * found["work"]["length"], rel=0.01), "equally much"


def test_tests_stay_on_the_cpu():
    """Many compare float32 numbers of CPU tensors; on a GPU the trainer would take bf16, as TRL's does."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()
