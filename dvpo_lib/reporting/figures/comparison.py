"""Comparisons of methods: learning curves, final scores, probability of improvement, the paper's changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dvpo_lib.reporting.figures.style import (
    BASE_LOOK,
    PERCENT_AXIS,
    add_caption,
    data_text,
    drawn_name,
    jitter_offsets,
    legend_above,
    look_of,
    mark_missing,
    missing_note,
    new_figure,
)
from dvpo_lib.reporting.names import DISPLAY_NAMES
from dvpo_lib.reporting.prose import missing_text
from dvpo_lib.reporting.statistics import curve_bands, diverged_runs, missing_scores, run_scores, summarise_scores


def _in_order(values) -> list:
    """Each value once, in the order of display names; values without one follow as they come."""
    place = {name: k for k, name in enumerate(DISPLAY_NAMES)}
    return sorted(dict.fromkeys(values), key=lambda value: place.get(value, len(place)))


def learning_curves(
    curves: pd.DataFrame,
    y: str = "reward_true",
    x: str = "rollouts",
    base: Mapping[str, float] | None = None,
    smooth: int = 1,
    note: str = "",
) -> Figure:
    """Training curves: a thin line per seed, a thick one for the interquartile mean, a band for its bootstrap interval.

    Args:
        curves: Tidy frame with method, noise, family, seed, iteration, rollouts, ...; noises become columns of panels,
            families rows.
        y: Column on the y axis.
        x: Column on the x axis.
        base: Value of the base policy by family, drawn as a dashed line.
        smooth: Iterations of a running mean over each seed's line; 1 for none.
        note: Further text of the caption.
    """
    curves = curves.copy()
    runs = curves.groupby(["method", "noise", "family", "seed"], sort=False)[y]
    gaps = runs.transform(lambda s: s.isna().rolling(smooth, min_periods=1).max()) > 0
    curves[y] = runs.transform(lambda s: s.rolling(smooth, min_periods=1).mean()).mask(gaps)
    families, noises, methods = (_in_order(curves[c]) for c in ("family", "noise", "method"))
    width = min(3.9, 9.6 / len(noises)) if len(noises) > 1 else 5.6
    figure, axes = new_figure(
        width * len(noises) + 0.4, 0.9 + 2.8 * len(families), len(families), len(noises), sharex=True, sharey="row"
    )
    handles, unknown = [], []
    for ax, (family, noise) in zip(axes.flat, itertools.product(families, noises), strict=True):
        cell = curves[(curves["family"] == family) & (curves["noise"] == noise)]
        for method in methods:
            own = cell[cell["method"] == method]
            if own[y].isna().all():
                continue
            style = look_of(method, methods)
            for _, run in own.groupby("seed"):
                ax.plot(run[x], run[y], color=style.color, lw=0.6, alpha=0.35)
            band = curve_bands(own, y, by=["method"], x=x)
            ax.fill_between(band[x], band["low"], band["high"], color=style.color, alpha=0.18, lw=0)
            if band["iqm"].isna().any():
                unknown.append(f"{style.name}, {drawn_name(noise)}, trained on {data_text(family)}")
            every = max(1, len(band) // 6)
            handles += ax.plot(
                band[x],
                band["iqm"],
                color=style.color,
                lw=2,
                marker=style.marker,
                ms=5,
                markevery=every,
                label=style.name,
            )
        if base is not None and family in base:
            handles.append(ax.axhline(base[family], color=BASE_LOOK.color, ls="--", lw=1.2, label=BASE_LOOK.name))
        if family == families[0]:
            ax.set_title(drawn_name(noise))
        if family == families[-1]:
            ax.set_xlabel(drawn_name(x))
        if noise == noises[0]:
            ax.set_ylabel(drawn_name(y) + (f", trained on {data_text(family)}" if len(families) > 1 else ""))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend_above(figure, handles, columns=int(figure.get_figwidth() / 1.7))
    seeds = curves["seed"].nunique()
    spread = f", bands: 95 % bootstrap intervals over {seeds} seeds" if seeds > 1 else " (one seed: no interval)"
    running = f" Running mean over {smooth} iterations." if smooth > 1 else ""
    running += missing_note(unknown)
    return add_caption(figure, f"Thin lines: single seeds. Thick lines: interquartile means{spread}.{running} {note}")


def _interval(ax, low: float, point: float, high: float, height: float, style) -> None:
    if pd.isna(point):
        mark_missing(ax, 0.5, height, transform=ax.get_yaxis_transform())
        return
    ax.plot([low, high], [height] * 2, color=style.color, lw=2.4, solid_capstyle="butt")
    ax.plot(point, height, color=style.color, marker=style.marker, ms=6.5, mec="white", mew=0.8)


def _rows(ax, names: list[str]) -> None:
    """Named rows on the y axis, the first on top."""
    ax.set(ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.grid(axis="y", visible=False)


def _grid(roles: list, noises: list, methods: list, height: float):
    """Panels for roles (columns) and noises (rows); a single method gets its noises as rows of one panel.

    Returns:
        The figure, axes (R, C), and a list of (noise, method, row name) for each row of panels.
    """
    if len(methods) == 1:
        rows = [[(n, methods[0], drawn_name(n)) for n in noises]]
    else:
        rows = [[(n, m, look_of(m, methods).name) for m in methods] for n in noises]
    tall = sum(0.55 + height * len(r) for r in rows)
    figure, axes = new_figure(
        2.0 + min(2.7 * len(roles), 8.0),
        1.15 + tall,
        len(rows),
        len(roles),
        sharey="row",
        sharex="col",
        height_ratios=[0.6 + len(r) for r in rows],
    )
    for ax, role in zip(axes[0], roles, strict=True):
        ax.set_title(drawn_name(role), fontsize=11 if len(roles) < 4 else 9)
    for row, panels in zip(rows, axes, strict=True):
        for ax in panels:
            _rows(ax, [name for _, _, name in row])
        if len(methods) > 1:
            panels[-1].annotate(
                data_text(drawn_name(row[0][0]), 24), (1.03, 0.5), xycoords="axes fraction", rotation=-90, va="center"
            )
    return figure, axes, rows


def final_comparison(
    final: pd.DataFrame,
    metric: str = "sampled",
    base: dict[str, float] | None = None,
    overall: bool = False,
    note: str = "",
) -> Figure:
    """Scores after training: point and interval of each method, a dot per seed; a column per role.

    Args:
        final: As in `statistics.run_scores`.
        metric: The metric to draw.
        base: Score of the base policy by role, drawn as a dashed line.
        overall: Adds a column for all test sets.
        note: Further text of the caption.
    """
    table, runs = summarise_scores(final, metric, overall), run_scores(final, metric, overall)
    dashed = " Dashed: the base policy." if base else ""
    return _score_panels(table, runs, metric, base or {}, f"{dashed}{_lost_text(final, metric)} {note}")


def scores_by_noise(
    final: pd.DataFrame, role: str = "ID", metric: str = "sampled", base: float = math.nan, note: str = ""
) -> Figure:
    """Scores after training as in `final_comparison`, of one role, with a column for each noise.

    Args:
        final: As in `statistics.run_scores`.
        role: Role of the test sets.
        metric: The metric to draw.
        base: Score of the base policy, drawn as a dashed line; NaN for none.
        note: Further text of the caption.
    """
    own = final[final["role"] == role]
    table, runs = (
        scores.assign(role=scores["noise"], noise=role)
        for scores in (summarise_scores(own, metric), run_scores(own, metric))
    )
    lines = {} if math.isnan(base) else dict.fromkeys(table["role"], base)
    dashed = " Dashed: the base policy." if lines else ""
    return _score_panels(table, runs, metric, lines, f"{dashed}{_lost_text(own, metric)} {note}")


def _lost_text(final: pd.DataFrame, metric: str) -> str:
    lost = missing_text(missing_scores(final, metric), diverged_runs(final)).replace("**", "")
    return data_text(f" {lost}", 600).rstrip()


def _score_panels(table: pd.DataFrame, runs: pd.DataFrame, metric: str, base: Mapping[str, float], note: str) -> Figure:
    """Panels of `final_comparison`: columns are roles, rows are noises.

    Args:
        table: Of `summarise_scores`.
        runs: Of `run_scores`.
        metric: The metric's name.
        base: Score of the base policy by role.
        note: The end of the caption.
    """
    keys = ["noise", "method", "role"]
    table, runs = table.set_index(keys), runs.set_index(keys)["value"].sort_index()
    methods, noises, roles = (_in_order(table.index.get_level_values(c)) for c in ("method", "noise", "role"))
    figure, axes, rows = _grid(roles, noises, methods, 0.27)
    for row, panels in zip(rows, axes, strict=True):
        for role, ax in zip(roles, panels, strict=True):
            for k, (noise, method, _) in enumerate(row):
                if (noise, method, role) not in table.index:
                    continue
                style, p = look_of(method, methods), table.loc[(noise, method, role)]
                dots = runs.loc[[(noise, method, role)]]
                heights = [k + 0.24 + d for d in jitter_offsets(len(dots), 0.16)]
                ax.scatter(dots, heights, s=11, color=style.color, alpha=0.55, lw=0, zorder=2)
                _interval(ax, p["low"], p["iqm"], p["high"], k - 0.08, style)
            if role in base:
                ax.axvline(base[role], color=BASE_LOOK.color, ls="--", lw=1.2)
    for ax in axes[-1]:
        ax.set_xlabel(f"{drawn_name(metric)} score")
        ax.xaxis.set_major_formatter(PERCENT_AXIS)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.set_xlim(left=max(ax.get_xlim()[0], -0.015))
    return add_caption(
        figure,
        "Symbols: interquartile mean over runs with its stratified bootstrap 95 % interval; "
        f"small dots: every seed.{note}",
    )


def improvement_intervals(table: pd.DataFrame, baseline: str = "ppo", note: str = "") -> Figure:
    """Probability that a run beats a run of the baseline, with intervals; columns are roles, rows noises.

    Args:
        table: A frame of `statistics.improvement_table`.
        baseline: The method of comparison.
        note: Further text of the caption.
    """
    methods, noises, roles = (_in_order(table[c]) for c in ("method", "noise", "role"))
    cells = table.set_index(["noise", "method", "role"])
    figure, axes, rows = _grid(roles, noises, methods, 0.23)
    for row, panels in zip(rows, axes, strict=True):
        for role, ax in zip(roles, panels, strict=True):
            ax.axvline(0.5, color=BASE_LOOK.color, lw=1.2, ls="--")
            ax.set_xlim(-0.04, 1.04)
            for k, key in enumerate(row):
                if (*key[:2], role) in cells.index:
                    p = cells.loc[(*key[:2], role)]
                    _interval(ax, p["low"], p["probability"], p["high"], k, look_of(key[1], methods))
    unknown = table[table["probability"].isna()]
    note += missing_note(f"{drawn_name(r.method)}, {drawn_name(r.noise)}" for r in unknown.itertuples())
    for ax in axes[-1]:
        ax.set_xlabel(f"P(a run beats one of\n{drawn_name(baseline)})")
    return add_caption(
        figure,
        "Probability of improvement with its stratified bootstrap 95 % interval; dashed: 0.5, "
        f"no better and no worse. {note}",
    )


def paper_beside_ours(table: pd.DataFrame, note: str = "") -> Figure:
    """Change over the base policy in points, the paper's beside ours: compare directions, not sizes.

    Args:
        table: Columns row, source ("paper" or "here"), change (points), low, high (NaN if not given).
        note: Text of the caption.
    """
    rows, sources = list(dict.fromkeys(table["row"])), ["paper", "here"]
    figure, axes = new_figure(9, 1.3 + 0.3 * len(rows), 1, 2, sharey=True)
    for ax, source in zip(axes[0], sources, strict=True):
        own = table[table["source"] == source].set_index("row")
        for k, row in enumerate(rows):
            if row not in own.index:
                continue
            if pd.isna(own.loc[row, "change"]):
                mark_missing(ax, 0.5, k, transform=ax.get_yaxis_transform())
                continue
            p, color = own.loc[row], "#666666" if source == "paper" else "#0072B2"
            ax.barh(k, p["change"], color=color, height=0.62, alpha=0.85)
            if pd.notna(p["low"]):
                ax.plot([p["low"], p["high"]], [k, k], color="black", lw=1.5)
        ax.axvline(0, color="black", lw=0.8)
        ax.set(title="paper (taken from summaries)" if source == "paper" else "here", ylim=(len(rows) - 0.4, -0.6))
        ax.set(yticks=range(len(rows)), xlabel="change over the base (points)")
        ax.set_yticklabels([look_of(r).name if r == "dvpo" else drawn_name(r) for r in rows])
        ax.grid(axis="y", visible=False)
    return add_caption(figure, note)
