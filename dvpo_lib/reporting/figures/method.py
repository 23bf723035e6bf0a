"""The method on small distributions: effects of kappa, loss terms, targets and read-outs."""

from __future__ import annotations

import math

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import norm

from dvpo_lib.reporting.figures.style import PERCENT_AXIS, add_caption, data_text, drawn_name, legend_above, new_figure

TRUTH_LINE = {"color": "black", "lw": 1.4, "ls": ":"}
WEAK, STRONG, CORE = "#56B4E9", "#D55E00", "#8C8C8C"
TARGET_COLORS = {"true": "black", "comonotone": "#D55E00", "mixture": "#0072B2"}


LEVEL_TICKS = (0.01, 0.1, 0.5, 0.9, 0.99)


def _probability_axis(ax) -> None:
    """A probit x axis: it turns a Gaussian's quantile curve into a straight line and stretches the tails."""
    ax.set_xscale("function", functions=(norm.ppf, norm.cdf))
    ax.set(xlim=(0.007, 0.993), xticks=LEVEL_TICKS)
    ax.set_xticklabels([f"{100 * t:g}" for t in LEVEL_TICKS])
    ax.set_xticks([], minor=True)
    for start, end in ((0.007, 0.1), (0.9, 0.993)):
        ax.axvspan(start, end, color="0.5", alpha=0.08, lw=0)


def _shades(count: int) -> list[str]:
    return sns.color_palette("viridis", count + 1).as_hex()[:count]


def kappa_panels(curves: pd.DataFrame, note: str = "") -> Figure:
    """Learned quantile curves of 0/1 rewards for several Huber thresholds, beside the true curve.

    Args:
        curves: Columns p, kappa, level, value, truth (return units).
        note: Further text of the caption.
    """
    ps, kappas = (list(dict.fromkeys(curves[c])) for c in ("p", "kappa"))
    figure, axes = new_figure(9.6, 3.9, 1, len(ps), sharey=True)
    handles = []
    for ax, p in zip(axes[0], ps):
        own = curves[curves["p"] == p]
        for kappa, color in zip(kappas, _shades(len(kappas))):
            line = own[own["kappa"] == kappa]
            handles += ax.plot(line["level"], line["value"], color=color, lw=2.2, label=f"kappa = {kappa:g}")
        handles += ax.plot(line["level"], line["truth"], **TRUTH_LINE, label="truth")
        ax.set(title=f"right in {p:.0%} of cases", xlabel="quantile level", xlim=(0.5, 1))
        ax.xaxis.set_major_formatter(PERCENT_AXIS)
    axes[0, 0].set_ylabel("return (reward units)")
    legend_above(figure, handles, columns=6)
    return add_caption(
        figure,
        "The area under a curve is its mean read-out. The larger kappa, the more of the step turns "
        f"into a slope that starts far too early. {note}",
    )


def term_curves(
    curves: pd.DataFrame, truth: pd.DataFrame, starts: pd.DataFrame | None = None, note: str = ""
) -> Figure:
    """Quantile curves learned by the core plus one term, a panel per term and form.

    Args:
        curves: Columns term ("core" is in every panel), form, weight, level, value (return units).
        truth: Columns level, value.
        starts: Columns form, level, value: the curve before the update, for the forms that depend on it.
        note: Further text of the caption.
    """
    cells = [(t, f) for t, f in dict.fromkeys(zip(curves["term"], curves["form"])) if t != "core"]
    columns = 4
    rows = math.ceil(len(cells) / columns)
    figure, axes = new_figure(10.4, 0.9 + 2.3 * rows, rows, columns, sharex=True, sharey=True)
    core, handles = curves[curves["term"] == "core"], []
    for ax in axes.flat[len(cells) :]:
        ax.axis("off")
    for ax, (term, form) in zip(axes.flat, cells):
        own = curves[(curves["term"] == term) & (curves["form"] == form)]
        handles += ax.plot(core["level"], core["value"], color=CORE, lw=3.2, alpha=0.6, label="core alone")
        before = starts[starts["form"] == form] if starts is not None else ()
        if len(before):
            handles += ax.plot(before["level"], before["value"], color=CORE, lw=1.1, ls="--", label="before the update")
        weights = sorted(own["weight"].unique())
        for k, weight in enumerate(weights):
            line = own[own["weight"] == weight]
            handles += ax.plot(
                line["level"],
                line["value"],
                color=(WEAK, STRONG)[k],
                lw=(2.2, 1.7)[k],
                label=("default weight", "stronger weight")[k],
            )
        handles += ax.plot(truth["level"], truth["value"], **TRUTH_LINE, label="truth")
        ax.set_title(f"{drawn_name(term)}\n{data_text(form)}" if form else drawn_name(term), fontsize=9)
        ax.text(
            0.03,
            0.95,
            "weight " + ", ".join(f"{w:g}" for w in weights),
            transform=ax.transAxes,
            fontsize=7.5,
            va="top",
            color="0.35",
        )
        _probability_axis(ax)
        ax.set_ylim(truth["value"].min() * 1.25, truth["value"].max() * 1.5)
    for ax in axes[:, 0]:
        ax.set_ylabel("return")
    for k, ax in enumerate(axes.flat[: len(cells)]):
        if k + columns >= len(cells):
            ax.set_xlabel("quantile level (%)")
            ax.tick_params(labelbottom=True)
    legend_above(figure, handles, columns=5)
    return add_caption(
        figure,
        "A term is harmless where its curve lies on the dotted one and biased where it leaves it: "
        f"look at both ends. The axis stretches the tails; shaded: 10 % each. {note}",
    )


def walk_panels(widths: pd.DataFrame, lam: float, note: str = "") -> Figure:
    """Comonotone against mixture targets: learned quantile curves at one lambda, and their width against lambda.

    Args:
        widths: Columns kind (true, comonotone, mixture), lambda, level, value (return units).
        lam: The lambda of the left panel.
        note: Further text of the caption.
    """
    figure, axes = new_figure(9.6, 3.9, 1, 2)
    curve, spread = axes[0]
    handles = []
    for kind, color in TARGET_COLORS.items():
        own = widths[widths["kind"] == kind]
        line = {"lw": 2, "color": color, "label": kind, "ls": ":" if kind == "true" else "-"}
        one = own[own["lambda"] == lam]
        curve.plot(one["level"], one["value"], **line, zorder=3 if kind == "true" else 2)
        std = own.groupby("lambda")["value"].std(ddof=0)
        handles += spread.plot(std.index, std, **line, marker={"comonotone": "o", "mixture": "s"}.get(kind), ms=5)
    curve.set(title=f"lambda = {lam:g}", xlabel="quantile level", ylabel="return of the first state")
    curve.xaxis.set_major_formatter(PERCENT_AXIS)
    spread.set(title="width", xlabel="lambda", ylabel="standard deviation (return units)", ylim=(0, None))
    legend_above(figure, handles)
    return add_caption(
        figure, f"Look at the lines between lambda 0 and 1: which of them keeps the dotted width? {note}"
    )


def readout_panels(weights: pd.DataFrame, band: pd.DataFrame, note: str = "") -> Figure:
    """Weights of quantile levels in each read-out, and the reward used after winsorising.

    Args:
        weights: Columns readout, level, weight (1 for the mean).
        band: Columns level (0: no bound), reward, used (reward units).
        note: Text of the caption.
    """
    figure, axes = new_figure(10.2, 4.1, 1, 2)
    left, right = axes[0]
    names, bands = list(dict.fromkeys(weights["readout"])), list(dict.fromkeys(band["level"]))
    palette = ["black", "#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73"]
    for name, color, dash in zip(names, palette, ["-", "--", "-.", "-.", "-", "--"]):
        own = weights[weights["readout"] == name]
        left.plot(own["level"], own["weight"], color=color, ls=dash, lw=2, label=data_text(name))
    left.set(title="weight of a quantile", xlabel="quantile level", ylabel="weight (1: that of the mean)", ylim=(0, 6))
    left.xaxis.set_major_formatter(PERCENT_AXIS)
    left.legend(loc="upper center", ncols=2)
    for level, color in zip(bands, _shades(len(bands))):
        own = band[band["level"] == level]
        right.plot(own["reward"], own["used"], color=color, lw=2.2, label=f"level {level:.0%}" if level else "no bound")
    right.set(title="winsorised: reward in, reward used", xlabel="reward received", ylabel="reward used by the actor")
    right.legend()
    return add_caption(figure, note)


def lab_curve(found: pd.DataFrame, note: str = "") -> Figure:
    """One learned quantile curve against the true one.

    Args:
        found: Columns level, value, truth (return units).
        note: Text of the caption.
    """
    figure, axes = new_figure(6.4, 3.6)
    ax = axes[0, 0]
    ax.plot(found["level"], found["value"], color=STRONG, lw=2.2, label="learned")
    ax.plot(found["level"], found["truth"], **TRUTH_LINE, label="truth")
    ax.set(xlabel="quantile level (%)", ylabel="return (reward units)")
    _probability_axis(ax)
    ax.legend(loc="upper left")
    return add_caption(figure, note)
