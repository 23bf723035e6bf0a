"""Numbers along a response: predicted quantiles before each token, and numbers as colours over the text."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from dvpo_lib.reporting.figures.style import (
    CRITIC_LOOKS,
    RIGHT,
    WRONG,
    add_caption,
    data_text,
    legend_above,
    new_figure,
)


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
    ax.set(xticks=steps, xlim=(-0.6, len(q) - 0.1), ylabel="predicted return")
    ax.set_title(data_text(title, 100))
    ax.set_xticklabels(
        [data_text(token, 24) for token in tokens],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
        fontsize=9,
        family="monospace",
    )
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
        responses: Dicts with `tokens` (words), `values` (one number per token), `title` and, optionally, `mark`: the
            number of a token to draw a frame around.
        width: Characters per line.
        title: Label of the colour bar.
        least: Least reach of the colour scale, so that small numbers look small.
        note: Text of the caption.
    """
    lines = []  # (heading | None, [(column, word, value, marked)])
    for response in responses:
        lines.append((data_text(response["title"], int(1.1 * width)), []))
        row, column = [], 0
        words = [data_text(token, min(40, width)) for token in response["tokens"]]
        for i, (word, value) in enumerate(zip(words, response["values"], strict=True)):
            if column + len(word) > width and row:
                lines.append((None, row))
                row, column = [], 0
            row.append((column, word, value, i == response.get("mark")))
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
            ax.text(0, k + 0.1, heading, fontsize=9, color="0.25", va="center", style="italic", in_layout=False)
        for column, word, value, marked in row:
            shade = colors(norm(np.clip(value, -reach, reach)))
            dark = sum(c * w for c, w in zip(shade[:3], (0.3, 0.59, 0.11), strict=True)) < 0.5
            edge = {"edgecolor": WRONG, "linewidth": 1.6} if marked else {"edgecolor": "none"}
            box = {"facecolor": shade, "boxstyle": "square,pad=0.16", **edge}
            ax.text(
                column,
                k,
                word,
                fontsize=size,
                family="monospace",
                va="center",
                bbox=box,
                color="white" if dark else "black",
                in_layout=False,  # else the axes shrink until the words cover each other
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
    bar.set_label(data_text(title, 100), fontsize=9)
    return add_caption(figure, note)
