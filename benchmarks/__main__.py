"""Measures speed and memory and writes results.json, results.png and costs.md (default: benchmarks/).

Times hold for one machine at one moment. Compare rows of one file, never rows of two. On one thread of a CPU they are
the process's own seconds, and forms and methods take turns, so that other load on the machine affects them little. The
costs.md in the default folder also appears in docs/guide/costs.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import pandas as pd
import torch

from .costs import publish_costs
from .iterations import BENCHMARK_MODELS, benchmark_configurations, iteration_rows, memory_ratios, time_ratios
from .kernels import gae_rows, loss_rows, sort_rows
from .pictures import benchmark_figure, write_results


def loss_speedups(losses: pd.DataFrame) -> list[dict]:
    """Table form over sorted form of the loss.

    Args:
        losses: Rows of `loss_rows`.

    Returns:
        One dictionary per kappa and M: kappa, quantiles, faster and smaller (ratios of time and of memory).
    """
    wide = losses.pivot(index=["kappa", "quantiles"], columns="form", values=["ms", "peak_mb"])
    found = pd.DataFrame(
        {
            "faster": wide["ms", "table"] / wide["ms", "sorted"],
            "smaller": wide["peak_mb", "table"] / wide["peak_mb", "sorted"],
        }
    )
    return found.round(1).reset_index().to_dict("records")


def summarize_iterations(iterations: pd.DataFrame) -> dict:
    """The part of results.json on iterations: medians over rounds, and time and memory relative to ppo.

    Args:
        iterations: Rows of `iteration_rows`.
    """
    groups = iterations.groupby(["model", "method"], sort=False)
    medians = groups.median().round(4).drop(columns="round").reset_index()
    return {
        "iteration_seconds": medians.assign(rounds=groups.size().to_numpy()).to_dict("records"),
        "iteration_over_ppo": time_ratios(iterations),
        "iteration_without_diagnostics_over_ppo": time_ratios(iterations, without="describe"),
        "memory_over_ppo": memory_ratios(iterations),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    methods = list(benchmark_configurations())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, as in training (default 1)")
    parser.add_argument("--quantiles", type=int, nargs="+", default=[50, 100, 200, 400, 800], help="M of the loss")
    parser.add_argument("--rows", type=int, default=384, help="tokens times heads of the loss")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of losses and advantages")
    parser.add_argument("--rounds", type=int, default=11, help="iterations of each method on the default model")
    parser.add_argument(
        "--models", nargs="*", choices=list(BENCHMARK_MODELS), default=list(BENCHMARK_MODELS), help="models to train"
    )
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="ppo must be among them")
    parser.add_argument(
        "--large",
        nargs="+",
        choices=methods,
        default=["ppo", "dvpo", "grpo"],
        help="methods on the 20M model, which takes minutes an iteration (default: ppo dvpo grpo)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure (default cpu)")
    chosen = parser.parse_args(arguments)
    for name, listed in (("methods", chosen.methods), ("large", chosen.large)):
        if "ppo" not in listed:
            parser.error(f"--{name}: times are given relative to ppo, which is not among them")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no CUDA device here")
    torch.set_num_threads(chosen.threads)
    device = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"

    print("loss and advantages ...", flush=True)
    losses = pd.DataFrame(loss_rows(chosen.quantiles, chosen.rows, chosen.repeats, chosen.device))
    shapes = [(128, 32, 1), (128, 32, 200), (16, 1024, 1), (16, 1024, 200)]
    gaes = pd.DataFrame(gae_rows(shapes, chosen.repeats, chosen.device))
    found = {
        "machine": {
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "threads": chosen.threads,
            "device": device,
            "torch": torch.__version__,
        },
        "loss": losses.to_dict("records"),
        "loss_table_over_sorted": loss_speedups(losses),
        "gae": gaes.to_dict("records"),
        "sort": list(sort_rows(chosen.quantiles, chosen.rows, chosen.repeats)),
    }
    rows = []
    for model in chosen.models:
        small = model == "default"
        rows += iteration_rows(
            model,
            chosen.methods if small else chosen.large,
            chosen.rounds if small else max(1, chosen.rounds // 4),
            chosen.device,
        )
    if rows:
        found |= summarize_iterations(pd.DataFrame(rows))
        print(json.dumps(found["iteration_over_ppo"], indent=2))
    print(pd.DataFrame(found["loss_table_over_sorted"]).to_string(index=False))
    write_results(chosen.out, found, benchmark_figure(found))
    publish_costs(chosen.out)


if __name__ == "__main__":
    main()
