"""One figure of all measurements."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dvpo_lib.reporting.figures.style import THEME, save_figure

from .costs import method_title
from .iterations import REST_LABEL, STEP_PARTS

FORMS = {"sorted": ("#0072B2", "sorting and prefix sums"), "table": ("#CC79A7", "M × M table")}
SHADES = ["#C8C8C8", "#AACCEE", "#0072B2", "#222222", "#E69F00", "#F2E6B6"]  # of STEP_PARTS and the rest


def benchmark_figure(found: dict) -> Figure:
    """Time and memory of the loss against M, and advantages against the loop. Below, per model, the time of each
    method's iteration by part and its memory, relative to PPO's.

    Args:
        found: Content of results.json.
    """
    iterations = pd.DataFrame(found.get("iteration_seconds", []))
    models = list(dict.fromkeys(iterations["model"])) if len(iterations) else []
    methods = iterations["method"].nunique() if models else 0
    with mpl.rc_context({**sns.axes_style("whitegrid"), **THEME}):
        figure = Figure(figsize=(13, 3.6 + (1.6 + 0.33 * methods if models else 0)), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[3.6, 1.6 + 0.33 * methods]) if models else (figure, None)
        axes = above.subplots(1, 3)
        if models:
            lower = below.subplots(1, 2 * len(models), width_ratios=[2.4, 1] * len(models), sharey=True, squeeze=False)
    for ax, column, unit in zip(axes, ("ms", "peak_mb"), ("milliseconds", "MB at most"), strict=False):
        draw_loss(ax, pd.DataFrame(found["loss"]), column, unit)
    axes[0].legend(fontsize=8)
    draw_gae(axes[2], pd.DataFrame(found["gae"]))
    if models:
        draw_costs(below, lower[0], iterations, models, found)
    threads, rows = found["machine"]["threads"], found["loss"][0]["rows"]
    text = (
        f"Medians over rounds in which all take turns, {threads} thread(s). Loss: {rows} rows. GAE: responses x "
        "tokens x quantiles. Times relative to PPO are medians of ratios inside a round; memory is what torch "
        "holds at most, the weights with gradients and optimiser states. Diagnostics of CQL and RFQI: their policy "
        "answers only to be watched."
    )
    (below or figure).supxlabel("\n".join(textwrap.wrap(text, 215)), x=0.005, ha="left", fontsize=8.5, color="0.35")
    return figure


def draw_loss(ax, losses: pd.DataFrame, column: str, unit: str) -> None:
    """One line per form and kappa, over M."""
    for (form, kappa), own in losses.groupby(["form", "kappa"], sort=False):
        color, name = FORMS[form]
        ax.loglog(
            own["quantiles"],
            own[column],
            color=color,
            marker="o" if kappa == 0 else "s",
            ms=5,
            ls="-" if kappa == 0 else "--",
            label=f"{name}, κ = {kappa:g}",
        )
    sizes = sorted(set(losses["quantiles"]))
    ax.set(xlabel="quantiles M (as many targets)", ylabel=unit, title=f"quantile loss and gradient: {unit}")
    ax.set_xticks(sizes, [str(m) for m in sizes], minor=False)
    ax.minorticks_off()


def draw_gae(ax, gaes: pd.DataFrame) -> None:
    """One bar per shape and form."""
    shapes = gaes.groupby(["responses", "tokens", "quantiles"], sort=False)
    for k, (_, own) in enumerate(shapes):
        for row in own.itertuples():
            color = FORMS["sorted" if row.form == "matrix" else "table"][0]
            name = "matrix products" if row.form == "matrix" else "loop over tokens"
            ax.barh(
                k + (0.19 if row.form == "loop" else -0.19), row.ms, 0.36, color=color, label=name if k == 0 else None
            )
    ax.set(yticks=range(len(shapes)), xscale="log", xlabel="milliseconds", title="advantages (GAE)")
    ax.set_yticklabels([" x ".join(map(str, shape)) for shape, _ in shapes])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=8)


def draw_costs(part, axes, iterations: pd.DataFrame, models: list[str], found: dict) -> None:
    """Two panels per model, with methods sorted by their time in the first one."""
    order = sorted(found["iteration_over_ppo"][models[0]].items(), key=lambda row: row[1])
    for k, model in enumerate(models):
        own = iterations[iterations["model"] == model].set_index("method").reindex([name for name, _ in order])
        ppo = own.loc["ppo"]
        size = f"{model} model ({ppo['parameters'] / 1e6:.2g} M parameters)"
        seconds = {name: own[column] for column, name in STEP_PARTS.items()}
        seconds[REST_LABEL] = own["step"] - sum(seconds.values())
        time, memory = axes[2 * k], axes[2 * k + 1]
        draw_stacks(time, seconds, ppo["step"], SHADES, found["iteration_over_ppo"][model])
        time.set(title=f"time, {size}", xlabel=f"PPO = 1 ({ppo['step']:.3g} s)")
        held = {"weights": own["held_mb"], "activations and the rest": own["peak_mb"] - own["held_mb"]}
        draw_stacks(memory, held, ppo["peak_mb"], ["#CC79A7", "#F3DCE9"], found["memory_over_ppo"][model])
        memory.set(title="memory", xlabel=f"PPO = 1 ({ppo['peak_mb']:.3g} MB)")
    axes[0].set(yticks=range(len(order)), ylim=(len(order) - 0.4, -0.6))
    axes[0].set_yticklabels([method_title(name) for name, _ in order])
    handles = [h for ax in axes[:2] for h in ax.get_legend_handles_labels()[0]]
    part.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8.5, columnspacing=1.2)


def draw_stacks(ax, parts: dict[str, pd.Series], unit: float, colors: list[str], ratio: dict) -> None:
    """One stacked bar per method (the index of `parts`) in units of PPO's, with its ratio at the end."""
    left = 0.0 * next(iter(parts.values()))
    for (name, amount), color in zip(parts.items(), colors, strict=True):
        ax.barh(range(len(left)), amount / unit, left=left, color=color, ec="white", lw=0.5, label=name)
        left = left + amount / unit
    for k, (method, end) in enumerate(left.items()):
        if method in ratio:
            ax.text(end, k, f" {ratio[method]:.2f}", va="center", fontsize=8.5)
    ax.axvline(1, color="#222222", lw=0.8, ls=":")
    ax.set_xlim(0, 1.25 * left.max())
    ax.grid(axis="y", visible=False)


def write_results(folder: Path, found: dict, figure: Figure) -> None:
    """Writes results.json and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    save_figure(figure, folder / "results.png")
