"""The benchmarks: arithmetic on made-up frames, counts of memory, a small real round, and the page of costs."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import ROOT

from benchmarks import __main__ as command
from benchmarks import costs
from benchmarks.iterations import (
    DVPO_VARIANTS,
    STEP_PARTS,
    benchmark_configurations,
    iteration_rows,
    memory_ratios,
    time_ratios,
)
from benchmarks.meters import peak_mb
from dvpo_lib.functional.quantiles import sort_quantiles
from dvpo_lib.models.policy import PolicySettings
from dvpo_lib.rl.methods import METHODS

FRAME = pd.DataFrame(
    [
        ("default", "ppo", 0, 1.0, 0.0, 50.0),
        ("default", "cql", 0, 3.0, 1.0, 100.0),
        ("default", "ppo", 1, 2.0, 1.0, 50.0),
        ("default", "cql", 1, 2.0, 1.5, 100.0),
        ("default", "ppo", 2, 1.0, 0.5, 50.0),
        ("default", "cql", 2, 2.0, 1.0, 100.0),
        ("20M", "ppo", 0, 10.0, 0.0, 3000.0),
    ],
    columns=["model", "method", "round", "step", "describe", "peak_mb"],
)
TRL = {"trl_over_ours": {"seconds": {"median": 1.5, "min": 1.25, "max": 2.0}}, "rounds": [{}] * 4}


def found(**changes) -> dict:
    """A results.json that is made up."""
    seconds = [
        dict(model=model, method="ppo", step=step, parameters=parameters, peak_mb=peak)
        for model, step, parameters, peak in (("default", 0.5, 140_000, 51.3), ("20M", 33.0, 21e6, 1234.0))
    ]
    return {
        "machine": {"threads": 1},
        "loss_table_over_sorted": [
            {"kappa": 0.0, "quantiles": 50, "faster": 3.0, "smaller": 9.0},
            {"kappa": 0.0, "quantiles": 200, "faster": 46.2, "smaller": 108.4},
            {"kappa": 1.0, "quantiles": 200, "faster": 1.0, "smaller": 1.0},
        ],
        "iteration_seconds": seconds,
        "iteration_over_ppo": {"default": {"cql": 1.6, "ppo": 1.0, "grpo": 0.57}, "20M": {"cql": 1.2, "ppo": 1.0}},
        "iteration_without_diagnostics_over_ppo": {"default": {"cql": 1.3, "ppo": 1.0}, "20M": {"cql": 1.1}},
        "memory_over_ppo": {"default": {"cql": 1.08, "ppo": 1.0, "grpo": 0.5}, "20M": {"cql": 1.5, "ppo": 1.0}},
        **changes,
    }


def test_ratios_are_medians_of_ratios_inside_a_round():
    assert time_ratios(FRAME) == {"default": {"ppo": 1.0, "cql": 2.0}, "20M": {"ppo": 1.0}}  # of 3, 1 and 2
    assert time_ratios(FRAME, without="describe")["default"] == {"ppo": 1.0, "cql": 2.0}  # of 2, 0.5 and 2
    assert memory_ratios(FRAME) == {"default": {"ppo": 1.0, "cql": 2.0}, "20M": {"ppo": 1.0}}


def test_rounds_are_summarised_by_medians():
    summary = command.summarize_iterations(FRAME)
    row = next(r for r in summary["iteration_seconds"] if r["model"] == "default" and r["method"] == "cql")
    assert row == {"model": "default", "method": "cql", "step": 2.0, "describe": 1.0, "peak_mb": 100.0, "rounds": 3}


def test_sorted_loss_is_compared_with_the_table():
    losses = pd.DataFrame([("table", 8.0, 10.0), ("sorted", 2.0, 4.0)], columns=["form", "ms", "peak_mb"])
    assert command.loss_speedups(losses.assign(kappa=0.0, quantiles=50)) == [
        {"kappa": 0.0, "quantiles": 50, "faster": 4.0, "smaller": 2.5}
    ]


def test_every_method_is_measured_as_it_is_compared():
    rows = benchmark_configurations()
    assert set(rows) == {*METHODS, *DVPO_VARIANTS} and next(iter(rows)) == "ppo"
    assert all(getattr(critic, "kind", None) == METHODS[method].critic for _, method, critic in rows.values())
    terms = ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
    assert all(getattr(rows["robust_ppo"][2].loss, t) == 0 for t in terms)
    assert all(getattr(rows["dvpo"][2].loss, t) > 0 for t in terms)
    assert rows["dvpo, mixture targets"][0].target == "mixture" and rows["dvpo"][0].lam_critic == 1


def test_peak_counts_torch_and_what_numpy_hands_to_it():
    def two_at_a_time():
        a = torch.empty(250_000)  # 1 MB
        b = a + 1
        del a
        return b + 1

    assert peak_mb(two_at_a_time) == pytest.approx(2.0, rel=0.01)
    z = torch.randn(1000, 250)
    assert peak_mb(lambda: sort_quantiles(z)) == pytest.approx(1.0, rel=0.01)  # values
    assert peak_mb(lambda: sort_quantiles(z.requires_grad_())) == pytest.approx(3.0, rel=0.01)  # 64-bit order, values


def test_a_round_measures_time_and_memory_of_its_parts():
    small = PolicySettings(hidden_size=32, num_hidden_layers=1)
    rows = pd.DataFrame(
        iteration_rows(
            "default", ["ppo", "cql", "reinforce_pp"], 2, size=small, generation_batch_size=8, max_completion_length=8
        )
    )
    assert rows["method"].tolist() == ["ppo", "cql", "reinforce_pp"] * 2 and rows["round"].tolist() == [0] * 3 + [1] * 3
    assert (rows[list(STEP_PARTS)].sum(axis=1) <= rows["step"]).all()
    assert (rows["held_mb"] < rows["peak_mb"]).all()
    ppo, cql, plain = (rows[rows["method"] == m].reset_index() for m in ("ppo", "cql", "reinforce_pp"))
    assert ppo["length"].equals(plain["length"])  # the same responses
    assert (ppo[list(STEP_PARTS)] > 0).all(axis=None) and (plain["update_critic"] == 0).all()
    assert (cql["describe"] > ppo["describe"]).all()  # cql samples to be watched
    one = 4 * ppo["parameters"].iloc[0] / 1e6  # MB of a network: policy and critic with gradient and two moments
    assert 9 * one * 0.8 < ppo["held_mb"].iloc[0] < 9 * one * 1.2  # ... and the frozen copy; heads differ
    assert cql["held_mb"].iloc[0] > ppo["held_mb"].iloc[0]  # and the critic that follows


def test_results_elsewhere_leave_the_page_alone(tmp_path):
    page = costs.COSTS_PAGE.read_bytes()
    command.main(
        [
            "--models",
            "default",
            "--methods",
            "ppo",
            "grpo",
            "--rounds",
            "1",
            "--repeats",
            "1",
            "--rows",
            "4",
            "--quantiles",
            "8",
            "16",
            "--out",
            str(tmp_path),
        ]
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 < results["iteration_over_ppo"]["default"]["grpo"] < 1
    assert 0 < results["memory_over_ppo"]["default"]["grpo"] < 1
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert (tmp_path / "costs.md").read_text(encoding="utf-8") == costs.costs_text(results, {})
    assert costs.COSTS_PAGE.read_bytes() == page  # results elsewhere are not shown there


def test_command_refuses_what_it_cannot_measure(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, name in ((["--methods", "dvpo"], "--methods"), (["--device", "cuda"], "--device")):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert f"error: {name}" in capsys.readouterr().err


def test_costs_are_told_from_the_results():
    text = costs.costs_text(found(), {"trained": {**TRL, "response_length": {"dvpo": 15.4}}})
    assert "46 × faster by sorting than by the 200 × 200 table, in 108 × less memory" in text
    assert "0.5 s and 51 MB at the default model (0.14 M parameters), 33 s and 1234 MB at the 20M model" in text
    table = [line for line in text.split("\n") if line.startswith("|")]
    assert table == [
        "| method | time, default | memory, default | time, 20M | memory, 20M |",
        "|---|---|---|---|---|",
        "| GRPO | 0.57 | 0.50 | – | – |",
        "| PPO | 1.00 | 1.00 | 1.00 | 1.00 |",
        "| CQL | 1.60 | 1.08 | 1.20 | 1.50 |",
    ]
    assert "CQL 1.30 and 1.10 × the time" in text and "Variants of DVPO" not in text
    assert "1.50 × (1.25 to 2.00 in 4 rounds) with the trained base policy, whose responses have 15 tokens" in text


def test_costs_that_were_not_measured_are_left_out():
    part = {k: v for k, v in found().items() if k in ("machine", "loss_table_over_sorted")}
    assert costs.costs_text(part, {}).count("\n") == 1


def test_costs_are_put_between_their_marks(tmp_path):
    page = tmp_path / "costs_page.md"
    page.write_text(f"before\n{costs.COSTS_START}old\n{costs.COSTS_END}\nafter\n", encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(found()))
    for _ in range(2):
        costs.publish_costs(tmp_path, page)
    text = (tmp_path / "costs.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == f"before\n{costs.COSTS_START}{text}{costs.COSTS_END}\nafter\n"


def test_the_page_shows_what_was_measured():
    """After a change of the text: `python -m benchmarks.costs`."""
    files = (ROOT / "benchmarks" / name for name in ("results.json", "against_trl.json"))
    text = costs.costs_text(*(json.loads(file.read_text(encoding="utf-8")) for file in files))
    assert (ROOT / "benchmarks" / "costs.md").read_text(encoding="utf-8") == text
    assert costs.COSTS_START + text + costs.COSTS_END in costs.COSTS_PAGE.read_text(encoding="utf-8")
