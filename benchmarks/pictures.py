"""One figure of everything that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dvpo_lib.figures.style import caption, look, new, save

from .iterations import PARTS

FORMS = {"sorted": ("#0072B2", "sorting and prefix sums"), "table": ("#CC79A7", "M × M table")}
SHADES = ["#DDDDDD", "#AACCEE", "#0072B2", "#222222", "#F2E6B6"]


def picture(found: dict) -> Figure:
    """Time and memory of the loss against M; seconds of an iteration by part, for each model."""
    losses = pd.DataFrame(found["loss"])
    iterations = pd.DataFrame(found.get("iteration_seconds", []))
    models = list(dict.fromkeys(iterations["model"])) if len(iterations) else []
    figure, axes = new(9.8, 6.4 if models else 3.4, 2 if models else 1, 2)
    for ax, column, unit in zip(axes[0], ("ms", "peak_mb"), ("milliseconds", "MB at most"), strict=True):
        for (form, kappa), own in losses.groupby(["form", "kappa"], sort=False):
            color, name = FORMS[form]
            ax.loglog(own["quantiles"], own[column], color=color, marker="o" if kappa == 0 else "s", ms=5,
                      ls="-" if kappa == 0 else "--", label=f"{name}, κ = {kappa:g}")  # fmt: skip
        ax.set(xlabel="quantiles M (as many targets)", ylabel=unit, title=f"quantile loss and gradient: {unit}")
        ax.set_xticks(sorted(set(losses["quantiles"])), [str(m) for m in sorted(set(losses["quantiles"]))], minor=False)
        ax.minorticks_off()
    axes[0, 0].legend(fontsize=8)
    for ax, model in zip(axes[-1], models, strict=False):
        own, ratio = iterations[iterations["model"] == model], found["iteration_over_ppo"][model]
        for k, row in enumerate(own.to_dict("records")):
            parts = {name: row[part] for part, name in PARTS.items()}
            parts["advantages and the rest"] = row["step"] - sum(parts.values())
            left = 0.0
            for (name, seconds), color in zip(parts.items(), SHADES, strict=True):
                ax.barh(k, seconds, left=left, color=color, ec="white", label=name if k == 0 else None)
                left += seconds
            ax.text(left, k, f"  {ratio[row['method']]:.2f} × PPO", va="center", fontsize=9)
        ax.set(yticks=range(len(own)), xlabel="seconds an iteration", ylim=(len(own) - 0.4, -0.6),
               title=f"iteration, {model} model ({own['parameters'].iloc[0] / 1e6:.2g} M parameters)")
        ax.set_yticklabels([look(m).name for m in own["method"]])
        ax.set_xlim(0, 1.28 * own["step"].max())
        ax.grid(axis="y", visible=False)
    if models:
        axes[-1, 0].legend(fontsize=7.5, loc="lower right")
    if len(models) == 1:
        axes[-1, 1].set_visible(False)
    threads = found["machine"]["threads"]
    return caption(figure, f"Medians over rounds in which all take turns, {threads} thread(s). Loss: "
                           f"{losses['rows'].iloc[0]} rows. Ratios are medians of ratios inside a round.")


def write(folder: Path, found: dict, figure: Figure) -> None:
    """results.json and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    save(figure, folder / "results.png")
