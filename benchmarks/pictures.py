"""One figure of everything that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dvpo_lib.figures.style import caption, label, look, new, save

from .iterations import PARTS

FORMS = {"sorted": ("#0072B2", "sorting and prefix sums"), "table": ("#CC79A7", "M × M table")}
SHADES = ["#DDDDDD", "#AACCEE", "#0072B2", "#222222", "#F2E6B6"]


def picture(found: dict) -> Figure:
    """Time and memory of the loss against M, advantages beside the loop; seconds of an iteration by part and model."""
    iterations = pd.DataFrame(found.get("iteration_seconds", []))
    models = list(dict.fromkeys(iterations["model"])) if len(iterations) else []
    figure, axes = new(12.5, 7.2 if models else 3.6, 2 if models else 1, 3, width_ratios=[1, 1, 1])
    for ax, column, unit in zip(axes[0], ("ms", "peak_mb"), ("milliseconds", "MB at most"), strict=False):
        draw_loss(ax, pd.DataFrame(found["loss"]), column, unit)
    axes[0, 0].legend(fontsize=8)
    draw_gae(axes[0, 2], pd.DataFrame(found["gae"]))
    for ax, model in zip(axes[-1], models, strict=False):
        draw_iteration(ax, iterations[iterations["model"] == model], found["iteration_over_ppo"][model])
    if models:
        handles, labels = axes[-1, 0].get_legend_handles_labels()
        axes[-1, 2].legend(handles, labels, title="part of an iteration", loc="center left")
        for ax in axes[-1, len(models) :]:
            ax.axis("off")
    threads, rows = found["machine"]["threads"], found["loss"][0]["rows"]
    return caption(figure, f"Medians over rounds in which all take turns, {threads} thread(s). Loss: {rows} rows. "
                           "Ratios are medians of ratios inside a round. GAE: responses x tokens x quantiles.")


def draw_loss(ax, losses: pd.DataFrame, column: str, unit: str) -> None:
    for (form, kappa), own in losses.groupby(["form", "kappa"], sort=False):
        color, name = FORMS[form]
        ax.loglog(own["quantiles"], own[column], color=color, marker="o" if kappa == 0 else "s", ms=5,
                  ls="-" if kappa == 0 else "--", label=f"{name}, κ = {kappa:g}")  # fmt: skip
    sizes = sorted(set(losses["quantiles"]))
    ax.set(xlabel="quantiles M (as many targets)", ylabel=unit, title=f"quantile loss and gradient: {unit}")
    ax.set_xticks(sizes, [str(m) for m in sizes], minor=False)
    ax.minorticks_off()


def draw_gae(ax, gaes: pd.DataFrame) -> None:
    shapes = gaes.groupby(["responses", "tokens", "quantiles"], sort=False)
    for k, (_, own) in enumerate(shapes):
        for row in own.itertuples():
            color = FORMS["sorted" if row.form == "matrix" else "table"][0]
            name = "matrix products" if row.form == "matrix" else "loop over tokens"
            ax.barh(k + (0.19 if row.form == "loop" else -0.19), row.ms, 0.36, color=color,
                    label=name if k == 0 else None)  # fmt: skip
    ax.set(yticks=range(len(shapes)), xscale="log", xlabel="milliseconds", title="advantages (GAE)")
    ax.set_yticklabels([" x ".join(map(str, shape)) for shape, _ in shapes])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=8)


def draw_iteration(ax, own: pd.DataFrame, ratio: dict) -> None:
    for k, row in enumerate(own.to_dict("records")):
        parts = {name: row[part] for part, name in PARTS.items()}
        parts["advantages and the rest"] = row["step"] - sum(parts.values())
        left = 0.0
        for (name, seconds), color in zip(parts.items(), SHADES, strict=True):
            ax.barh(k, seconds, left=left, color=color, ec="white", label=name if k == 0 else None)
            left += seconds
        ax.text(left, k, f" {ratio[row['method']]:.2f} × PPO", va="center", fontsize=9)
    ax.set(yticks=range(len(own)), xlabel="seconds an iteration", ylim=(len(own) - 0.4, -0.6),
           title=f"iteration, {own['model'].iloc[0]} model ({own['parameters'].iloc[0] / 1e6:.2g} M parameters)")
    ax.set_yticklabels([label(m).replace("dvpo", look("dvpo").name).replace(", ", ",\n") for m in own["method"]])
    ax.set_xlim(0, 1.35 * own["step"].max())
    ax.grid(axis="y", visible=False)


def write(folder: Path, found: dict, figure: Figure) -> None:
    """results.json and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    save(figure, folder / "results.png")
