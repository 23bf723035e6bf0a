"""Diagnostic curves: the first place to look if a training run misbehaves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dvpo_lib.reporting.figures.style import add_caption, drawn_name, legend_above, look_of, missing_note, new_figure
from dvpo_lib.reporting.names import TAIL_COLUMNS
from dvpo_lib.reporting.statistics import curve_bands

DIAGNOSTIC_COLUMNS = (
    "reward_noisy",
    "reward_true",
    "kl",
    "entropy",
    "length",
    "clip_fraction",
    "approx_kl",
    "explained_variance",
    *TAIL_COLUMNS,
    "policy_grad_norm",
    "critic_grad_norm",
    "flat_groups",
)
DASHES = ("-", "--", ":", "-.")


def noise_shade(color: str, step: int) -> tuple[float, float, float]:
    """The method's colour at step 0, then shades of it: towards black, or towards white if the colour is dark."""
    rgb = np.array(to_rgb(color))
    other = np.zeros(3) if rgb.mean() > 0.25 else np.ones(3)
    return tuple(rgb + (other - rgb) * min(0.55 * step, 0.8))


def diagnostic_panels(
    curves: pd.DataFrame, columns=DIAGNOSTIC_COLUMNS, color: str = "#0072B2", note: str = ""
) -> Figure:
    """A small panel per diagnostic of one method: a line style for each noise, thin lines for seeds.

    Args:
        curves: Tidy frame of one method.
        columns: Diagnostics to draw; columns without values are left out.
        color: The method's colour.
        note: Further text of the caption.
    """
    columns = [c for c in columns if c in curves and curves[c].notna().any()]
    noises = list(dict.fromkeys(curves["noise"]))
    if not columns:  # every run diverged in its first iteration
        return _nothing_drawn(note)
    wide = min(4, len(columns))
    tall = -(-len(columns) // wide)
    figure, axes = new_figure(2.4 * wide, 2.25 * tall + 0.7, tall, wide, sharex=True)
    handles, unknown = [], []
    for ax, column in zip(axes.flat, columns, strict=False):
        for noise, dash in zip(noises, DASHES * len(noises), strict=False):
            own = curves[curves["noise"] == noise]
            if own[column].isna().all():
                continue
            shade = noise_shade(color, noises.index(noise))
            for _, run in own.groupby(["family", "seed"]):
                ax.plot(run["rollouts"], run[column], color=shade, lw=0.5, alpha=0.3)
            band = curve_bands(own, column, by=["noise"], x="rollouts")
            if band["iqm"].isna().any():
                unknown.append(f"{drawn_name(column)}, {drawn_name(noise)}")
            handles += ax.plot(band["rollouts"], band["iqm"], color=shade, ls=dash, lw=1.9, label=drawn_name(noise))
        ax.set_title(drawn_name(column), fontsize=9.5)
        if column == "explained_variance":
            ax.set_ylim(max(-1.0, ax.get_ylim()[0]), min(1.0, ax.get_ylim()[1]))  # the first steps may lie far below
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.tick_params(labelsize=8)
    for ax in axes.flat[len(columns) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(drawn_name("rollouts"), fontsize=9)
    legend_above(figure, handles)
    return add_caption(
        figure, f"Thin lines: single seeds; thick lines: interquartile means.{missing_note(unknown)} {note}"
    )


def tail_panels(curves: pd.DataFrame, x: str = "rollouts", note: str = "") -> Figure:
    """Widths of the predicted tails during training: the lower one at the left, the upper one at the right.

    Args:
        curves: Tidy frame with method, noise, family, seed, `x` and TAIL_COLUMNS; noises become rows of panels. Methods
            whose critic predicts no distribution are left out.
        x: Column on the x axis.
        note: Further text of the caption.
    """
    curves = curves.reindex(columns=["method", "noise", "family", "seed", x, *TAIL_COLUMNS])
    curves = curves.dropna(subset=list(TAIL_COLUMNS), how="all")
    if curves.empty:
        return _nothing_drawn(note)
    methods, noises = (list(dict.fromkeys(curves[column])) for column in ("method", "noise"))
    figure, axes = new_figure(9.6, 0.9 + 2.8 * len(noises), len(noises), 2, sharex=True)
    handles, unknown = [], []
    for row, noise in zip(axes, noises, strict=True):
        for ax, column in zip(row, TAIL_COLUMNS, strict=True):
            own = curves[curves["noise"] == noise]
            band = curve_bands(own, column, by=["method"], x=x)
            for method, points in band.groupby("method", sort=False):
                style = look_of(method, methods)
                ax.fill_between(points[x], points["low"], points["high"], color=style.color, alpha=0.15, lw=0)
                line = dict(color=style.color, marker=style.marker, ms=5, lw=1.9, label=style.name)
                handles += ax.plot(points[x], points["iqm"], markevery=max(1, len(points) // 6), **line)
                if points["iqm"].isna().any():
                    unknown.append(f"{style.name}, {drawn_name(noise)}")
            ax.set_title(f"{drawn_name(column)}, {drawn_name(noise)}", fontsize=9.5)
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    for ax in axes[-1]:
        ax.set_xlabel(drawn_name(x))
    axes[0, 0].set_ylabel("distance from the median (return units)")
    legend_above(figure, handles, columns=4)
    lines = "Lines: interquartile means over seeds; bands: bootstrap 95 % intervals"
    return add_caption(figure, f"{lines}.{missing_note(unknown)} {note}")


def _nothing_drawn(note: str) -> Figure:
    figure, [[ax]] = new_figure(6, 1)
    ax.set_axis_off()
    return add_caption(figure, f"There is nothing to draw: no run has logged a diagnostic. {note}")
