"""The tuning grid: one small heat map a method."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from .style import caption, legend_above, look, new

SETTINGS = {
    "training.lam": "λ of the advantages", "training.epsilon": "clip range ε", "training.beta": "KL weight β",
    "critic.loss.tail_calibration": "weight of tail calibration", "critic.q.conservatism": "conservatism α",
    "critic.q.radius": "radius of the worst case",
}  # fmt: skip
FRAMES = {  # of a cell: (label, inset in cells, style)
    "stood": ("where params.yaml stood", 0.13, dict(edgecolor="white", lw=1.6, ls=(0, (2, 1.5)))),
    "winner": ("winner", 0.04, dict(edgecolor="#D55E00", lw=2.8)),
}


def setting_name(dotted: str) -> str:
    """What people read for a setting that is tuned."""
    return SETTINGS.get(dotted, dotted.rpartition(".")[2].replace("_", " "))


def spelled(value: float) -> str:
    """A number as params.yaml spells it: 5e-05 -> "5e-5", 0.95 -> "0.95", 1.0 -> "1.0"."""
    if value == 0 or 1e-3 < abs(value) < 1e4:
        return str(float(value))
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def tuning_grid(grid: pd.DataFrame, winners: pd.DataFrame, note: str = "") -> Figure:
    """Scores over learning rate and sensitive setting, a panel a method, one colour scale for all of them.

    Args:
        grid: of `tuning.tune`. winners: of `tuning.choose`.
    """
    methods = list(dict.fromkeys(grid["method"]))
    wide = min(4, len(methods))
    tall = -(-len(methods) // wide)
    figure, axes = new(2.35 * wide + 1.1, 2.05 * tall + 0.9, tall, wide)
    cells = grid.groupby(["method", "learning_rate", "value"], sort=False)["score"].mean()
    scale, colours = Normalize(cells.min(), cells.max()), mpl.colormaps["cividis"]
    handles: list = []
    for ax, method in zip(axes.flat, methods, strict=False):
        table = cells[method].unstack("value").sort_index().sort_index(axis="columns")
        won = winners[winners["method"] == method].iloc[0]
        ax.pcolormesh(table.to_numpy(), cmap=colours, norm=scale, edgecolors="white", lw=1)
        for row, rate in enumerate(table.index):
            for column, value in enumerate(table.columns):
                score = table.loc[rate, value]
                ink = "white" if scale(score) < 0.55 else "black"
                ax.text(column + 0.5, row + 0.5, f"{100 * score:.1f}", ha="center", va="center", color=ink, fontsize=9)
        places = {"stood": (won["stood_learning_rate"], won["stood_value"]),
                  "winner": (won["learning_rate"], won["value"])}  # fmt: skip
        for name, (text, inset, frame) in FRAMES.items():
            rate, value = places[name]
            if rate in table.index and value in table.columns:
                corner = (table.columns.get_loc(value) + inset, table.index.get_loc(rate) + inset)
                side = 1 - 2 * inset
                ax.add_patch(Rectangle(corner, side, side, fill=False, **frame))
                shown = {**frame, "edgecolor": "#777777"} if name == "stood" else frame  # white would not show
                handles.append(Rectangle((0, 0), 1, 1, fill=False, label=text, **shown))
        ax.set_title(look(method).name, fontsize=10)
        ax.set_xticks([k + 0.5 for k in range(len(table.columns))], [spelled(v) for v in table.columns])
        ax.set_yticks([k + 0.5 for k in range(len(table.index))], [spelled(v) for v in table.index])
        ax.set_xlabel(setting_name(won["setting"]), fontsize=9)
        ax.grid(visible=False)
        ax.tick_params(length=0, labelsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate", fontsize=9)
    for ax in axes.flat[len(methods) :]:
        ax.set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, aspect=30, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label("true reward late in training")
    legend_above(figure, handles)
    seeds = grid.groupby(["method", "learning_rate", "value"])["seed"].nunique().max()
    each = f"means over {seeds} development seeds" if seeds > 1 else "one development seed each"
    return caption(figure, f"In each cell: true reward over the last quarter of training in per cent, {each}. The "
                           f"colour scale is the same in all panels. {note}")  # fmt: skip
