"""Predictions of critics: calibration, quantiles along a response, quantile curves, token-level advantages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from dvpo_lib.reporting.figures.style import (
    CRITIC_LOOKS,
    PERCENT_AXIS,
    RIGHT,
    WRONG,
    add_caption,
    legend_above,
    look_of,
    new_figure,
)
from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prediction_quality import interval_coverage
from dvpo_lib.reporting.statistics import bootstrap_interval


def calibration_panels(frame: pd.DataFrame, note: str = "") -> Figure:
    """Calibration of the predicted distribution: coverage against level, histogram of the PIT, CRPS.

    Args:
        frame: A row per held-out response at one position: critic, pit (randomised, 0..1; NaN for a critic that
            predicts a point), crps (reward units).
        note: Further text of the caption.
    """
    names = list(dict.fromkeys(frame["critic"]))
    figure, axes = new_figure(9.8, 3.7, 1, 3, width_ratios=[1, 1.1, 0.9])
    cover, hist, bars = axes[0]
    cover.plot([0, 1], [0, 1], color="black", lw=0.9, ls=":")
    drawn = []
    for name in names:
        pit, style = frame.loc[frame["critic"] == name, "pit"].dropna(), look_of(name, names)
        if pit.empty:
            continue
        c = interval_coverage(pit)
        cover.fill_between(c["level"], c["low"], c["high"], color=style.color, alpha=0.18, lw=0)
        drawn += cover.plot(c["level"], c["covered"], color=style.color, marker=style.marker, ms=4, label=style.name)
        density, edges = np.histogram(pit, np.linspace(0, 1, 11), density=True)
        hist.stairs(density, edges, color=style.color, lw=2, fill=False)
        hist.stairs(density, edges, color=style.color, alpha=0.12, fill=True)
    cover.set(xlabel="level of the central interval", ylabel="outcomes inside", title="coverage")
    cover.set(xlim=(0, 1), ylim=(0, 1))
    cover.xaxis.set_major_formatter(PERCENT_AXIS)
    cover.yaxis.set_major_formatter(PERCENT_AXIS)
    hist.axhline(1, color="black", lw=0.9, ls=":")
    hist.set(xlabel="randomised PIT of the outcome", ylabel="density", title="where outcomes fall")
    hist.set(xlim=(0, 1), ylim=(0, None))
    for k, name in enumerate(names):
        values, style = frame.loc[frame["critic"] == name, "crps"].to_numpy(), look_of(name, names)
        e = bootstrap_interval(values, statistic=np.mean, resamples=500)
        bars.bar(k, e.point, color=style.color, width=0.6)
        bars.plot([k, k], [e.low, e.high], color="black", lw=1.3)
        bars.text(k, max(e.point, np.nan_to_num(e.high)), f" {e.point:.3f}\n", ha="center", va="bottom", fontsize=9)
    bars.set(xticks=range(len(names)), title="CRPS (smaller is better)", ylabel="reward units")
    bars.set_xticklabels(
        [textwrap.fill(look_of(n, names).name, 11) for n in names], fontsize=8 if len(names) < 4 else 7
    )
    bars.margins(y=0.18)
    bars.grid(axis="x", visible=False)
    legend_above(figure, drawn)
    text = (
        "A right distribution lies on the dotted lines: as many outcomes inside each interval as its level says, and a "
        "flat histogram (a hump: predicted too wide; a U: too narrow; a slope: biased). The CRPS of a point prediction "
        "is its mean absolute error."
    )
    return add_caption(figure, f"{text} {note}")


def explained_variance_panels(scores: pd.DataFrame, note: str = "") -> Figure:
    """Explained variance of the received and of the true reward at three positions of a response; dots are seeds.

    Args:
        scores: A frame of `critic_score_table`; the row "constant" explains nothing and is left out.
        note: Further text of the caption.
    """
    scores = scores[scores["critic"] != "constant"]
    noises, names, places = (list(dict.fromkeys(scores[c])) for c in ("noise", "critic", "at"))
    figure, axes = new_figure(1.2 + min(2.6 * 2 * len(noises), 8.6), 3.3, 1, 2 * len(noises), sharey=True)
    handles = []
    panels = [(n, c) for n in noises for c in ("ev_received", "ev_true")]
    for ax, (noise, column) in zip(axes[0], panels, strict=True):
        for k, name in enumerate(names):
            own, style = scores[(scores["noise"] == noise) & (scores["critic"] == name)], look_of(name, names)
            at = np.array([places.index(p) for p in own["at"]]) + 0.16 * (k - (len(names) - 1) / 2)
            ax.scatter(at, own[column], s=14, color=style.color, alpha=0.45, lw=0)
            mean = own.groupby("at", sort=False)[column].mean()[places]
            handles += ax.plot(np.unique(at), mean, color=style.color, marker=style.marker, lw=1.6, label=style.name)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(xticks=range(len(places)), xlim=(-0.5, len(places) - 0.5), xlabel="token")
        ax.set_xticklabels(places)
        ax.set_title(
            f"{display_name(noise)}\n{'reward as received' if column == 'ev_received' else 'true reward'}",
            fontsize=11 if len(panels) < 5 else 8.5,
        )
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("explained variance")
    legend_above(figure, handles)
    return add_caption(figure, f"1: perfect, 0: no better than a constant. Dots: seeds, lines: their means. {note}")


def value_along_response(
    quantiles: np.ndarray,
    tokens: Sequence[str],
    reward: float | None = None,
    scalar: np.ndarray | None = None,
    title: str = "",
    marks: Sequence[float] = (),
    limits: tuple[float, float] | None = None,
    note: str = "",
) -> Figure:
    """The predicted return before each token: a fan of quantiles with their mean, and optionally a scalar critic.

    Args:
        quantiles: (T, M), the distribution before token t.
        tokens: T words.
        reward: The received reward, drawn as a star at the end.
        scalar: (T,) values of a scalar critic.
        title: Title of the panel.
        marks: Positions (in tokens) of dotted lines, such as a wrong step.
        limits: Limits of the y axis, if the tails would hide the middle.
        note: Further text of the caption.
    """
    q = np.sort(np.asarray(quantiles, dtype=float), axis=-1)
    steps, m = np.arange(len(q)), q.shape[1]
    figure, axes = new_figure(min(11, max(6.5, 2.5 + 0.33 * len(q))), 3.8)
    ax, color, handles = axes[0, 0], CRITIC_LOOKS["quantile"].color, []
    at = (2 * np.arange(1, m + 1) - 1) / (2 * m)
    for tail, shade in ((0.05, 0.14), (0.1, 0.2), (0.25, 0.28)):
        low, high = (np.array([np.interp(p, at, row) for row in q]) for p in (tail, 1 - tail))
        name = f"central {1 - 2 * tail:.0%}"
        handles.append(ax.fill_between(steps, low, high, color=color, alpha=shade, lw=0, label=name))
    handles += ax.plot(steps, q.mean(1), color=color, marker="o", ms=4, lw=2, label="mean of the quantiles")
    if scalar is not None:
        style = CRITIC_LOOKS["scalar"]
        handles += ax.plot(steps, scalar, color=style.color, marker=style.marker, ms=3.5, lw=1.2, label=style.name)
    if reward is not None:
        handles.append(
            ax.scatter(
                [len(q) - 0.4],
                [reward],
                color=RIGHT if reward >= 0.5 else WRONG,
                marker="*",
                s=110,
                zorder=4,
                label="reward received",
            )
        )
    for mark in marks:
        ax.axvline(mark, color=WRONG, lw=1.2, ls=":")
    ax.set(xticks=steps, xlim=(-0.6, len(q) - 0.1), ylabel="predicted return", title=title)
    ax.set_xticklabels(tokens, rotation=60, ha="right", rotation_mode="anchor", fontsize=9, family="monospace")
    ax.grid(axis="x", visible=False)
    ax.set_ylim(limits)
    beyond = limits is not None and (q.min() < limits[0] or q.max() > limits[1])
    cut = " The bands go on beyond the axis." if beyond else ""
    legend_above(figure, handles)
    return add_caption(figure, f"The value stands over the token it comes before.{cut} {note}")


def token_text(
    responses: Sequence[dict], width: int = 110, title: str = "advantage", least: float = 0.0, note: str = ""
) -> Figure:
    """Token-level numbers as colours over the text: purple for positive, orange for negative ones.

    Args:
        responses: Dicts with `tokens` (words), `values` (one number per token) and `title`.
        width: Characters per line.
        title: Label of the colour bar.
        least: Least reach of the colour scale, so that small numbers look small.
        note: Text of the caption.
    """
    lines = []  # (heading | None, [(column, word, value)])
    for response in responses:
        lines.append((response["title"], []))
        row, column = [], 0
        for word, value in zip(response["tokens"], response["values"], strict=True):
            if column + len(word) > width and row:
                lines.append((None, row))
                row, column = [], 0
            row.append((column, word, value))
            column += len(word) + 1.6  # the coloured box is wider than its word
        lines.append((None, row))
    values = np.concatenate([np.asarray(r["values"], dtype=float) for r in responses])
    reach = max(float(np.quantile(np.abs(values), 0.98)), least, 1e-9)
    norm, colors = TwoSlopeNorm(0, -reach, reach), mpl.colormaps["PuOr"]
    size = 9.5  # points; a letter of the monospaced font is 0.602 of its size wide, a point is 1/72 inch
    figure, axes = new_figure(width * size * 0.602 / 72 + 0.4, 0.27 * len(lines) + 1.0)
    ax = axes[0, 0]
    for k, (heading, row) in enumerate(lines):
        if heading is not None:
            ax.text(0, k + 0.1, heading, fontsize=9, color="0.25", va="center", style="italic")
        for column, word, value in row:
            shade = colors(norm(np.clip(value, -reach, reach)))
            dark = sum(c * w for c, w in zip(shade[:3], (0.3, 0.59, 0.11), strict=True)) < 0.5
            box = {"facecolor": shade, "edgecolor": "none", "boxstyle": "square,pad=0.16"}
            ax.text(
                column,
                k,
                word,
                fontsize=size,
                family="monospace",
                va="center",
                bbox=box,
                color="white" if dark else "black",
            )
    ax.set(xlim=(0, width), ylim=(len(lines) - 0.4, -0.6))
    ax.axis("off")
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(norm, colors),
        ax=ax,
        orientation="horizontal",
        fraction=0.05,
        aspect=50,
        pad=0.02,
        shrink=0.6,
    )
    bar.set_label(title, fontsize=9)
    return add_caption(figure, note) if note else figure


def quantile_curves(
    curves: pd.DataFrame,
    tail: float = 0.1,
    received: np.ndarray | None = None,
    ylabel: str = "predicted return",
    note: str = "",
) -> Figure:
    """Quantile curves of variants: the whole curve and both tails enlarged.

    Args:
        curves: Columns variant, level (0..1), value, and optionally seed (thin lines under their mean).
        tail: Mass of each enlarged tail.
        received: Rewards; their quantile curve is dotted.
        ylabel: Label of the y axis.
        note: Text of the caption.
    """
    variants = list(dict.fromkeys(curves["variant"]))
    figure, axes = new_figure(9.8, 3.9, 1, 3, width_ratios=[1.3, 1, 1])
    parts, handles = (("whole distribution", 0, 1), ("lower tail", 0, tail), ("upper tail", 1 - tail, 1)), []
    for ax, (title, start, end) in zip(axes[0], parts, strict=True):
        if received is not None:
            at = np.linspace(start, end, 201)
            handles += ax.plot(at, np.quantile(received, at), color="black", lw=1.3, ls=":", label="rewards received")
        inside = curves[(curves["level"] >= start - 0.01) & (curves["level"] <= end + 0.01)]
        for variant in variants:
            own, style = inside[inside["variant"] == variant], look_of(variant, variants)
            if "seed" in own:
                for _, run in own.groupby("seed"):
                    ax.plot(run["level"], run["value"], color=style.color, lw=0.5, alpha=0.3)
            mean = own.groupby("level", as_index=False)["value"].mean()
            every = max(1, len(mean) // 5)
            line = ax.plot(
                mean["level"],
                mean["value"],
                color=style.color,
                lw=1.9,
                marker=style.marker,
                ms=4.5,
                markevery=every,
                label=style.name,
            )
            handles += line if ax is axes[0, 0] else []
        ax.set(title=title, xlabel="quantile level", xlim=(start, end))
        ax.xaxis.set_major_formatter(PERCENT_AXIS)
    axes[0, 0].set_ylabel(ylabel)
    legend_above(figure, handles, columns=3)
    return add_caption(figure, note) if note else figure
