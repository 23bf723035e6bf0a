"""Predictions of critics: calibration, quantiles along a response, quantile curves, token-level advantages."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dvpo_lib.reporting.figures.style import (
    PERCENT_AXIS,
    add_caption,
    data_text,
    drawn_name,
    legend_above,
    look_of,
    mark_missing,
    missing_note,
    new_figure,
)
from dvpo_lib.reporting.prediction_quality import interval_coverage
from dvpo_lib.reporting.statistics import bootstrap_interval, complete_mean


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
    drawn, unknown = [], []
    for name in names:
        pit, style = frame.loc[frame["critic"] == name, "pit"], look_of(name, names)
        if pit.isna().all():  # a critic that predicts a point
            continue
        if pit.isna().any():
            unknown.append(f"{style.name} ({pit.isna().sum()} of {len(pit)} PIT values)")
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
        if np.isnan(values).any():
            unknown.append(f"{style.name} ({np.isnan(values).sum()} of {len(values)} CRPS values)")
            mark_missing(bars, k, 0.5, transform=bars.get_xaxis_transform())
            continue
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
    return add_caption(figure, f"{text}{missing_note(unknown)} {note}")


def explained_variance_panels(scores: pd.DataFrame, note: str = "") -> Figure:
    """Explained variance of the received and of the true reward at three positions of a response; dots are seeds.

    Args:
        scores: A frame of `critic_score_table`; the row "constant" explains nothing and is left out.
        note: Further text of the caption.
    """
    scores = scores[scores["critic"] != "constant"]
    noises, names, places = (list(dict.fromkeys(scores[c])) for c in ("noise", "critic", "at"))
    figure, axes = new_figure(1.2 + min(2.6 * 2 * len(noises), 8.6), 3.3, 1, 2 * len(noises), sharey=True)
    handles, unknown = [], []
    panels = [(n, c) for n in noises for c in ("ev_received", "ev_true")]
    for ax, (noise, column) in zip(axes[0], panels, strict=True):
        for k, name in enumerate(names):
            own, style = scores[(scores["noise"] == noise) & (scores["critic"] == name)], look_of(name, names)
            at = np.array([places.index(p) for p in own["at"]]) + 0.16 * (k - (len(names) - 1) / 2)
            ax.scatter(at, own[column], s=14, color=style.color, alpha=0.45, lw=0)
            mean = complete_mean(own.groupby("at", sort=False)[column])[places]
            if mean.isna().any():
                unknown.append(f"{style.name}, {drawn_name(noise)}")
            handles += ax.plot(np.unique(at), mean, color=style.color, marker=style.marker, lw=1.6, label=style.name)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(xticks=range(len(places)), xlim=(-0.5, len(places) - 0.5), xlabel="token")
        ax.set_xticklabels([data_text(place) for place in places])
        ax.set_title(
            f"{drawn_name(noise)}\n{'reward as received' if column == 'ev_received' else 'true reward'}",
            fontsize=11 if len(panels) < 5 else 8.5,
        )
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("explained variance")
    legend_above(figure, handles)
    return add_caption(
        figure,
        f"1: perfect, 0: no better than a constant. Dots: seeds, lines: their means.{missing_note(unknown)} {note}",
    )


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
    unknown = []
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
            mean = complete_mean(own.groupby("level")["value"]).reset_index()
            if mean["value"].isna().any():
                unknown.append(style.name)
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
    return add_caption(figure, f"{note}{missing_note(unknown)}")


CRITIC_PANELS = {  # metric of `prediction_metrics`: its label
    "auc_true": "AUC of right answers",
    "explained_true": "explained variance, true reward",
    "calibration_error": "calibration error, received reward",
    "covered_80": "coverage of the 80 % interval",
}


def critic_quality_curves(runs: pd.DataFrame, at: str = "last", note: str = "") -> Figure:
    """What pretrained critics know at each rate of noise: a row of panels for each noise, a column for each metric.

    Args:
        runs: Rows of study `calibration`; DVPO's critic is the quantile critic, PPO's the scalar one.
        at: Position of the token.
        note: Further text of the caption.
    """
    own = runs[(runs["role"] == "critic") & (runs["suite"] == at) & runs["metric"].isin(CRITIC_PANELS)]
    parts = own["noise"].str.rsplit(" ", n=1, expand=True)
    own = own.assign(kind=parts[0], rate=parts[1].astype(float))
    own = own.assign(critic=own["method"].map({"dvpo": "quantile", "ppo": "scalar"}).fillna(own["method"]))
    kinds = list(dict.fromkeys(own["kind"]))
    figure, axes = new_figure(10.8, 2.5 * len(kinds) + 0.9, len(kinds), len(CRITIC_PANELS))
    handles = []
    for row, kind in zip(axes, kinds, strict=True):
        for ax, (metric, label) in zip(row, CRITIC_PANELS.items(), strict=True):
            cell = own[(own["kind"] == kind) & (own["metric"] == metric)].dropna(subset="value")
            for critic, points in cell.groupby("critic", sort=False):
                style = look_of(critic)
                ax.plot(points["rate"], points["value"], ls="", marker=style.marker, ms=3, color=style.color, alpha=0.4)
                mean = points.groupby("rate")["value"].mean()
                handles += ax.plot(mean.index, mean, color=style.color, marker=style.marker, ms=6, label=style.name)
            if metric == "covered_80":
                ax.axhline(0.8, color="0.5", ls=":", lw=1.2)
            ax.set_title(label, fontsize=9)
        row[0].set_ylabel(drawn_name(kind))
    for ax in axes[-1]:
        ax.set_xlabel("rate")
    legend_above(figure, handles)
    counts = sorted({*own.groupby(["critic", "noise"])["seed"].nunique()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unknown = own[own["value"].isna() & (own["metric"] != "covered_80")]
    lost = missing_note(f"{look_of(r.critic).name}, {drawn_name(r.noise)}" for r in unknown.itertuples())
    text = f"At the {at} token of held-out responses. Small symbols: seeds; lines: means of {seeds} seeds."
    return add_caption(figure, f"{text} A point prediction has no interval.{lost} {note}")
