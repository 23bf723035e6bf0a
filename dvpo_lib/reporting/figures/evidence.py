"""Figures of the evidence: scores against a setting, the breakdown of winsorising, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence

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
from dvpo_lib.reporting.statistics.comparisons import performance_profile
from dvpo_lib.reporting.statistics.runs import summarise_scores

INTERVALS = "Symbols: interquartile means over runs; bars: bootstrap 95 % intervals"
TICK_GAP = 0.15  # share of an axis: settings that are further apart have a tick each


def setting_curves(
    runs: pd.DataFrame,
    x: str,
    line: str,
    panel: str,
    xlabel: str,
    metric: str = "sampled",
    role: str = "ALL",
    base: float | None = None,
    note: str = "",
) -> Figure:
    """Score against a setting: a panel for each value of one column, a line for each value of another.

    Args:
        runs: As in `statistics.run_scores`, with columns `x` (numbers), `line` and `panel`.
        x: Column on the x axis, which is logarithmic if it spans more than a factor of 20.
        line: Column whose values are lines.
        panel: Column whose values are panels.
        xlabel: Label of the x axis.
        metric: The metric.
        role: Role of the test sets; ALL for the mean of all of them.
        base: Score of the base policy, drawn as a dotted line; None: not drawn.
        note: Further text of the caption.
    """
    cell = runs["method"] + "|" + runs["variant"]
    places = pd.DataFrame(
        {"method": cell, "noise": runs["noise"], "x": runs[x], "line": runs[line], "panel": runs[panel]}
    )
    table = summarise_scores(runs.assign(method=cell), metric, overall=role == "ALL")
    table = table[table["role"] == role].merge(places.drop_duplicates(), on=["method", "noise"])
    panels, lines = ([*dict.fromkeys(table[column])] for column in ("panel", "line"))
    figure, axes = new_figure(min(3.4 * len(panels), 10.5) + 0.6, 3.5, 1, len(panels), sharey=True)
    handles, unknown = [], []
    for ax, name in zip(axes[0], panels, strict=True):
        for own in lines:
            points = table[(table["panel"] == name) & (table["line"] == own)].sort_values("x")
            if points.empty:
                continue
            style = look_of(str(own), [str(n) for n in lines])
            known = points.dropna(subset="iqm")
            spread = np.clip([known["iqm"] - known["low"], known["high"] - known["iqm"]], 0, None)
            spread = np.where(np.isfinite(spread), spread, 0)
            drawn = dict(color=style.color, marker=style.marker, ms=6, lw=1.6, capsize=2, label=style.name)
            handles.append(ax.errorbar(known["x"], known["iqm"], spread, **drawn))
            for lost in points[points["iqm"].isna()].itertuples():
                unknown.append(f"{style.name}, {drawn_name(name)}, {lost.x:g}")
                mark_missing(ax, lost.x, 0.5, transform=ax.get_xaxis_transform())
        ax.set(title=data_text(drawn_name(name)), xlabel=xlabel)
        if base is not None:
            ax.axhline(base, color="0.5", ls=":", lw=1.2)
        places = sorted(set(table.loc[table["panel"] == name, "x"]))
        logarithmic = 0 < 20 * places[0] < places[-1]  # else small settings would lie on one another
        if logarithmic:
            ax.set_xscale("log")
        if logarithmic or np.diff(places).min(initial=np.inf) > TICK_GAP * np.ptp(places):
            ax.set_xticks(places, [f"{place:g}" for place in places])
            ax.minorticks_off()
        ax.yaxis.set_major_formatter(PERCENT_AXIS)
    axes[0, 0].set_ylabel(f"{drawn_name(metric)} score, {drawn_name(role)}")
    legend_above(figure, handles, columns=int(figure.get_figwidth() / 1.9))
    started = "" if base is None else " Dotted: the base policy."
    return add_caption(figure, f"{INTERVALS} ({_seeds(table)}).{started}{missing_note(unknown)} {note}")


def breakdown_curves(runs: pd.DataFrame, **settings) -> Figure:
    """Score against the rate of spikes, for each winsorising level, beside the control that clips rewards.

    Args:
        runs: Rows of study `breakdown`.
        settings: Further arguments of `setting_curves`.
    """
    rate = runs["noise"].str.removeprefix("spikes ").astype(float)
    level = runs["variant"].str.replace("level ", "cut at ")
    cut = runs["method"].replace({"dvpo": "dvpo_winsorised", "ppo": "ppo_clip_reward"})  # what is cut at other levels
    return setting_curves(
        runs.assign(rate=rate, level=level, cut=cut),
        "rate",
        "level",
        "cut",
        "rate of spikes",
        note="A cut at the level q holds values between the quantiles q and 1 - q: of the critic's distribution at "
        "this token (DVPO winsorised), or of the batch's rewards (PPO, clipped reward). Not cut: DVPO, and PPO.",
        **settings,
    )


def denoised_curves(runs: pd.DataFrame, **settings) -> Figure:
    """Score against the weight of the received reward in the denoised read-out, for each kind of critic.

    Args:
        runs: Rows of study `denoised`.
        settings: Further arguments of `setting_curves`.
    """
    parts = runs["variant"].str.extract(r"^(?P<kind>\w+), (?P<centre>[\w ]+), weight (?P<weight>[\d.]+)$")
    centre = parts["kind"] + " critic" + (", " + parts["centre"]).where(parts["centre"] != "median", "")
    return setting_curves(
        runs.assign(weight=parts["weight"].astype(float), centre=centre),
        "weight",
        "centre",
        "noise",
        "weight of the received reward",
        note="At weight 1 a run learns from rewards as received, at 0 from the critic's view of the finished response: "
        "the median of its distribution where no other statistic is named. Control: the mean of the prompt's rewards.",
        **settings,
    )


VIEWS = "The policy learns from the reward as received, or from the critic's view of it in its place."


def denoised_rate_curves(runs: pd.DataFrame, **settings) -> Figure:
    """Score against the rate of noise, with the reward as received and with the critic's view in its place.

    Args:
        runs: Rows of study `denoised_rates`.
        settings: Further arguments of `setting_curves`.
    """
    parts = runs["noise"].str.rsplit(" ", n=1, expand=True)
    rated = runs.assign(kind=parts[0], rate=parts[1].astype(float), line=runs["variant"].map(_weighted))
    return setting_curves(rated, "rate", "line", "kind", "rate of noise", note=VIEWS, **settings)


def denoised_critic_curves(runs: pd.DataFrame, **settings) -> Figure:
    """The same against the critic's pretraining and its size.

    Args:
        runs: Rows of study `denoised_critics`.
        settings: Further arguments of `setting_curves`.
    """
    parts = runs["variant"].str.extract(r"^(?P<setting>\D+) (?P<number>\d+), (?P<weight>weight [\d.]+)$")
    lines = runs["noise"].map(drawn_name) + ", " + parts["weight"].map(_weighted)
    swept = runs.assign(setting=parts["setting"], number=parts["number"].astype(float), line=lines)
    return setting_curves(swept, "number", "line", "setting", "", note=VIEWS, **settings)


def _weighted(text: str) -> str:
    """ "quantile, weight 0" -> "quantile, its view": the weight is that of the reward as received."""
    kind, _, weight = text.rpartition(", ")
    words = {"weight 0": "its view", "weight 1": "as received"}[weight]
    return f"{kind}, {words}" if kind else words


def swept_curves(runs: pd.DataFrame, line: str, **settings) -> Figure:
    """Score against a setting: a panel for each setting that a study sweeps.

    Args:
        runs: Rows of a study whose variants are a name and a number, such as "M = 200" or "512 pretraining rollouts".
        line: Column whose values are lines.
        settings: Further arguments of `setting_curves`.
    """
    parts = runs["variant"].str.extract(r"^(?P<before>\D*)(?P<number>[\d.]+)(?P<after>\D*)$")
    name = (parts["before"].str.rstrip(" =x") + parts["after"]).str.strip()
    swept = runs.assign(setting=name, number=parts["number"].astype(float))
    return setting_curves(swept, "number", line, "setting", "", **settings)


def performance_profiles(
    runs: pd.DataFrame, noises: Sequence[str] | None = None, metric: str = "sampled", role: str = "ALL", note: str = ""
) -> Figure:
    """Share of runs that reach each score (Agarwal et al. 2021): a panel for each noise, a line for each method.

    Args:
        runs: As in `statistics.run_scores`.
        noises: The panels; default: all noises.
        metric: The metric.
        role: Role of the test sets; ALL for the mean of all of them.
        note: Further text of the caption.
    """
    noises = [*dict.fromkeys(runs["noise"])] if noises is None else list(noises)
    table = performance_profile(runs[runs["noise"].isin(noises)], np.linspace(0, 1, 101), metric)
    table = table[table["role"] == role]
    figure, axes = _panels(noises)
    handles = []
    for ax, noise in zip(axes.flat, noises, strict=False):
        for method, own in table[table["noise"] == noise].groupby("method", sort=False):
            style = look_of(method, table["method"].unique())
            handles += ax.step(
                own["threshold"], own["share"], color=style.color, lw=1.6, label=style.name, where="post"
            )
        ax.set_title(drawn_name(noise))
        ax.xaxis.set_major_formatter(PERCENT_AXIS)
        ax.yaxis.set_major_formatter(PERCENT_AXIS)
    for ax in axes[:, 0]:
        ax.set_ylabel("share of runs that reach it")
    legend_above(figure, handles, columns=int(figure.get_figwidth() / 1.9))
    start = f"Across: {drawn_name(metric)} score, {drawn_name(role)}. A curve further right is better."
    return add_caption(figure, f"{start} {note}")


def run_scatter(
    runs: pd.DataFrame, x: tuple[str, str], y: tuple[str, str], xlabel: str, ylabel: str, note=""
) -> Figure:
    """One number of a run against another: a panel for each noise, a symbol for each run, coloured by method.

    Args:
        runs: Rows of a study.
        x: (metric, role) on the x axis, averaged over the role's test sets.
        y: The same for the y axis.
        xlabel: Label of the x axis.
        ylabel: Label of the y axis.
        note: Further text of the caption.
    """
    keys = ["method", "noise", "family", "seed"]
    numbers = {}
    for axis, (metric, role) in (("x", x), ("y", y)):
        numbers[axis] = (
            runs[(runs["metric"] == metric) & (runs["role"] == role)].groupby(keys, sort=False)["value"].mean()
        )
    table = pd.DataFrame(numbers).dropna().reset_index()
    noises = [noise for noise in dict.fromkeys(runs["noise"]) if noise in set(table["noise"])]
    figure, axes = _panels(noises)
    handles = []
    for ax, noise in zip(axes.flat, noises, strict=False):
        for method, own in table[table["noise"] == noise].groupby("method", sort=False):
            style = look_of(method, table["method"].unique())
            drawn = dict(color=style.color, marker=style.marker, s=22, alpha=0.75, label=style.name)
            handles.append(ax.scatter(own["x"], own["y"], **drawn))
        ax.set_title(drawn_name(noise))
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    legend_above(figure, handles, columns=int(figure.get_figwidth() / 1.9))
    return add_caption(figure, f"A symbol is a run. {note}")


def _panels(names: Sequence[str]):
    """A figure with a panel for each name, at most four side by side, on common axes."""
    columns = min(4, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    figure, axes = new_figure(2.7 * columns + 0.6, 2.5 * rows + 1.1, rows, columns, sharex=True, sharey=True)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    return figure, axes


def _seeds(table: pd.DataFrame) -> str:
    counts = sorted(set(table["n"]))
    return f"{counts[0]} runs each" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs each"
