"""Plans of memory: against measured peaks, in their parts, and what they advise."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from conftest import ROOT
from tiny_models import tiny_model

from benchmarks.plan import CASES, case_row, case_run, measured_mb
from dvpo_lib.__main__ import command_line
from dvpo_lib.experiments.launch import run_plans
from dvpo_lib.experiments.launch.allocations import AllocationTrace
from dvpo_lib.experiments.launch.memory_plan import GIB, plan_memory
from dvpo_lib.experiments.launch.run_plans import RunOutline, find_savings, plan_text, savings_text
from dvpo_lib.rl.config import DVPOConfig

ROWS = json.loads((ROOT / "benchmarks" / "plan.json").read_text(encoding="utf-8"))["cases"]


def test_a_trace_counts_what_is_made_and_what_lives():
    given = torch.zeros(1000)
    with AllocationTrace() as trace:
        kept = given + 1  # 4 kB
        kept.add_(given).view(10, 100)  # no memory of their own
        (kept * 2).sum()  # 4 kB and 4 bytes for a moment
        assert trace.held == 4000
    assert trace.peak == 8004
    with AllocationTrace([given]) as trace:
        torch.from_numpy(given.numpy().copy()) + given  # numpy's memory counts, that of `given` does not
    assert trace.peak == 8000


def test_measured_peaks_are_within_the_promise():
    assert [row["case"] for row in ROWS] == CASES, "python -m benchmarks.plan"
    assert max(abs(row["error_percent"]) for row in ROWS) < 15
    assert {"sampling", "policy update", "critic update"} >= {row["largest_phase"] for row in ROWS}
    assert all(row["phase_mb"] > 0.15 * row["planned_mb"] for row in ROWS)  # not the weights alone


@pytest.mark.parametrize("number", [i for i, case in enumerate(CASES) if i in (0, 4)])
def test_plans_are_as_they_were_when_peaks_were_measured(number):
    if "peft" in CASES[number] and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    assert case_run(CASES[number]).plan().total / 1e6 == pytest.approx(ROWS[number]["planned_mb"], rel=0.01)


def test_a_peak_that_is_measured_now():
    case = {**CASES[-1], "max_completion_length": 16}
    run = case_run(case)
    row = case_row(case, run.plan(), measured_mb(run))
    assert abs(row["error_percent"]) < 15


@pytest.mark.parametrize("name", ["Mamba2", "Gemma 3, multimodal", "Qwen3-MoE"])
def test_any_architecture_can_be_planned(name):
    model = tiny_model(name)
    args = DVPOConfig(
        "out", method="reinforce_pp", per_device_train_batch_size=2, max_completion_length=8, use_cpu=True
    )
    plan = plan_memory(model.config, args, 8)
    assert plan.parameters["policy"] == model.num_parameters()
    assert min(plan.phases["sampling"].values()) > 0 and plan.phases["policy update"]["logits"] > 0


def small_run(**changes) -> RunOutline:
    run = case_run(CASES[0])
    run.config.update({"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    return RunOutline(**{**vars(run), **changes})


def test_savings_are_added_until_the_run_fits():
    run = small_run(settings={"method": "grpo", "per_device_train_batch_size": 16, "gradient_checkpointing": False})
    plan = run.plan()
    assert not find_savings(RunOutline(**{**vars(run), "memory_gb": 1.2 * plan.total / GIB}), plan)  # it fits
    tight = RunOutline(**{**vars(run), "memory_gb": 0.6 * plan.total / GIB})
    savings = find_savings(tight, plan)
    sums = [plan.total, *(smaller.total for _, smaller in savings)]
    assert sums == sorted(sums, reverse=True) and savings[-1][1].fits(tight.memory_gb)
    assert not any(smaller.fits(tight.memory_gb) for _, smaller in savings[:-1])
    assert any("gradient_checkpointing" in label or "per_device_train" in label for label, _ in savings)
    assert "not enough" in savings_text(RunOutline(**{**vars(run), "memory_gb": 1e-4}), savings)
    assert "does not fit" in plan_text(tight, plan) and "fits: " in plan_text(run, plan)


def test_shards_share_what_stands():
    run = small_run(settings={"method": "grpo", "generation_batch_size": 32}, gpus=2)
    whole, sharded = run.plan(), RunOutline(**{**vars(run), "sharded": True}).plan()
    assert run.arguments().generation_batch_size == 16
    for name in ("weights of the policy", "gradients", "optimiser states"):
        assert sharded.standing[name] == whole.standing[name] // 2
    assert sharded.phases["sampling"]["gathered weights"] == whole.standing["weights of the policy"]


def test_a_server_that_samples_takes_the_cache_elsewhere():
    settings = {"method": "grpo", "per_device_train_batch_size": 8}
    phases = small_run(settings={**settings, "use_vllm": True}).plan().phases
    assert phases == {"policy update": small_run(settings=settings).plan().phases["policy update"]}


def test_the_command(tmp_path, capsys, monkeypatch):
    config = tmp_path / "config.json"
    small_run().config.to_json_file(config)
    words = [
        "plan",
        "--model",
        str(config),
        "--method",
        "ppo",
        "--prompt_length",
        "8",
        *"-p critic.kind=scalar -p critic.layers=1".split(),
    ]
    sizes = ["--max_completion_length", "8", "--per_device_train_batch_size", "2", "--bf16", "true"]
    monkeypatch.setattr(run_plans, "find_savings", lambda run, plan: [("peft.r=16 (LoRA)", plan)])
    for memory, code in (("1", 0), ("0.001", 1)):
        monkeypatch.setattr("sys.argv", ["dvpo", *words, *sizes, "--memory", memory])
        assert command_line() == code
    shown = capsys.readouterr().out
    for part in (
        "weights of the policy",
        "gradients",
        "optimiser states",
        "KV cache",
        "logits",
        "quantile heads",
        "sum",
    ):
        assert part in shown
    assert "bf16" in shown and "fits: 0.9 GB" in shown and "LoRA" in shown
    for wrong, message in (
        (["--method", "ppoo"], "unknown method 'ppoo'"),
        (["-p", "learning_rat=1"], "learning_rat"),
        (["--model", "nowhere.json"], "model nowhere.json"),
    ):
        monkeypatch.setattr("sys.argv", ["dvpo", *words, *sizes, *wrong])
        assert command_line() == 1
        assert message in capsys.readouterr().err
