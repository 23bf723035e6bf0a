"""The tuning grid: a small heat map for each method."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dvpo_lib.reporting.figures.style import add_caption, data_text, legend_above, look_of, new_figure
from dvpo_lib.reporting.names import setting_text
from dvpo_lib.reporting.prose import number_text
from dvpo_lib.reporting.statistics import complete_mean

SETTING_NAMES = {
    "training.lam": "λ of the advantages",
    "training.epsilon": "clip range ε",
    "training.beta": "KL weight β",
    "critic.loss.tail_calibration": "weight of tail calibration",
    "critic.q.conservatism": "conservatism α",
    "critic.q.radius": "radius of the worst case",
}
CELL_FRAMES = {  # frame of a cell: (label, inset in cells, style)
    "stood": ("where params.yaml stood", 0.13, dict(lw=1.6, ls=(0, (2, 1.5)))),
    "winner": ("winner", 0.04, dict(ec="#D55E00", lw=2.8)),
}


def setting_name(dotted: str) -> str:
    """Display name of a tuned setting."""
    return SETTING_NAMES.get(dotted, dotted.rpartition(".")[2].replace("_", " "))


def tuning_grid(grid: pd.DataFrame, winners: pd.DataFrame, note: str = "") -> Figure:
    """Scores over learning rate and sensitive setting, a panel for each method, with one colour scale.

    Args:
        grid: The grid of `experiments.grids.tuning`: a row per method, point and seed.
        winners: A row per method.
        note: Further text of the caption.
    """
    methods = list(dict.fromkeys(grid["method"]))
    wide = min(4, len(methods))
    tall = -(-len(methods) // wide)
    figure, axes = new_figure(2.35 * wide + 1.1, 2.05 * tall + 0.9, tall, wide)
    cells = complete_mean(grid.groupby(["method", "learning_rate", "value"], sort=False)["score"])
    scale, colours = Normalize(cells.min(), cells.max()), mpl.colormaps["cividis"]
    handles: list = []

    def ink(score: float) -> str:
        return "black" if pd.isna(score) else "white" if scale(score) < 0.55 else "black"

    for ax, method in zip(axes.flat, methods, strict=False):
        table = cells[method].unstack("value").sort_index().sort_index(axis="columns")
        won = winners[winners["method"] == method].iloc[0]
        ax.pcolormesh(table.to_numpy(), cmap=colours, norm=scale, edgecolors="white", lw=1)
        for row, rate in enumerate(table.index):
            for column, value in enumerate(table.columns):
                score = table.loc[rate, value]
                ax.text(
                    column + 0.5,
                    row + 0.5,
                    number_text(100 * score, 1),
                    ha="center",
                    va="center",
                    color=ink(score),
                    fontsize=9,
                )
        places = {
            "stood": (won["stood_learning_rate"], won["stood_value"]),
            "winner": (won["learning_rate"], won["value"]),
        }
        for name, (text, inset, frame) in CELL_FRAMES.items():
            rate, value = places[name]
            if rate in table.index and value in table.columns:
                corner = (table.columns.get_loc(value) + inset, table.index.get_loc(rate) + inset)
                side = 1 - 2 * inset
                ax.add_patch(Rectangle(corner, side, side, **{"ec": ink(table.loc[rate, value]), **frame}, fill=False))
                handles.append(Rectangle((0, 0), 1, 1, **{"ec": "black", **frame}, fill=False, label=text))
        ax.set_title(look_of(method).name, fontsize=10)
        ax.set_xticks([k + 0.5 for k in range(len(table.columns))], [data_text(setting_text(v)) for v in table.columns])
        ax.set_yticks([k + 0.5 for k in range(len(table.index))], [data_text(setting_text(v)) for v in table.index])
        ax.set_xlabel(data_text(setting_name(won["setting"])), fontsize=9)
        ax.grid(visible=False)
        ax.tick_params(length=0, labelsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate", fontsize=9)
    for ax in axes.flat[len(methods) :]:
        ax.set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, aspect=30, pad=0.02)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    bar.set_label("true reward late in training")
    legend_above(figure, handles)
    seeds = grid.groupby(["method", "learning_rate", "value"])["seed"].nunique().max()
    each = f"means over {seeds} development seeds" if seeds > 1 else "one development seed each"
    return add_caption(
        figure,
        f"In each cell: true reward over the last quarter of training in per cent, {each}. The "
        f"colour scale is the same in all panels. {note}",
    )
