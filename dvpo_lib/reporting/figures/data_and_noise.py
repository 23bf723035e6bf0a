"""Base policy, noise sources, pseudo-labels and reward model before training."""

from __future__ import annotations

import itertools
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from dvpo_lib.reporting.figures.style import (
    PERCENT_AXIS,
    RIGHT,
    WRONG,
    add_caption,
    data_text,
    drawn_name,
    legend_above,
    mark_missing,
    new_figure,
)
from dvpo_lib.reporting.statistics import bootstrap_interval, complete_mean


def _bars(ax, frame: pd.DataFrame, by: str, value: str, color: str) -> None:
    """Mean of `value` for each group with a bootstrap interval over prompts; the group's share is below its bar."""
    groups = list(dict.fromkeys(frame[by])) if frame[by].dtype == object else sorted(frame[by].unique())
    for k, group in enumerate(groups):
        own = frame[frame[by] == group]
        if own[value].isna().any():
            mark_missing(ax, k, 0.5)
            continue
        e = bootstrap_interval(own.groupby("prompt")[value].mean().to_numpy(), statistic=np.mean, resamples=500)
        ax.bar(k, own[value].mean(), color=color, width=0.65)
        ax.plot([k, k], [e.low, e.high], color="black", lw=1.3)
    names = [textwrap.fill(data_text(g, 20), max(6, 40 // len(groups))) for g in groups]  # side by side on the axis
    shares = [f"{name}\n{(frame[by] == group).mean():.0%}" for name, group in zip(names, groups, strict=True)]
    ax.set(xticks=range(len(groups)), xticklabels=shares, ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(PERCENT_AXIS)
    ax.grid(axis="x", visible=False)


def loss_curve(losses: pd.DataFrame, note: str = "") -> Figure:
    """Training loss of the base policy against steps.

    Args:
        losses: Columns step, loss (nats a token).
        note: Further text of the caption.
    """
    figure, axes = new_figure(6.5, 3)
    ax = axes[0, 0]
    ax.plot(losses["step"], losses["loss"], color=RIGHT, lw=0.5, alpha=0.4)
    smooth = losses["loss"].rolling(max(1, len(losses) // 50), min_periods=1).mean()
    ax.plot(losses["step"], smooth, color=RIGHT, lw=2)
    ax.set(xlabel="optimiser step", ylabel="loss (nats a token)", ylim=(0, None))
    return add_caption(figure, f"Thin: every step; thick: running mean. {note}")


def base_skill(samples: dict[str, pd.DataFrame], styles: tuple[str, ...] = (), note: str = "") -> Figure:
    """Reward of the base policy by suite, by style or kind of question, by number of steps and by response length.

    Args:
        samples: Completions by suite: prompt, completion, reward (0 to 1), length (tokens), steps, sample, and, if
            questions have kinds, kind.
        styles: The style words; the first word of a completion is its style.
        note: Further text of the caption.
    """
    table = pd.concat([s.assign(suite=name) for name, s in samples.items()], ignore_index=True)
    first = table["completion"].str.split().str[0].fillna("")
    table["style"] = np.where(first.isin(list(styles)), first, "other")
    kinds = "kind" in table
    if kinds:
        table["style"], styles = table["kind"], tuple(dict.fromkeys(table["kind"]))
    k = int(table["sample"].max()) + 1
    figure, axes = new_figure(11.5, 3.6, 1, 4, sharey=True, width_ratios=[0.42 * len(samples), 1.1, 1.1, 1.25])
    suites = list(samples)
    each = table.groupby(["suite", "prompt"])["reward"]
    any_, mean = (
        complete_mean(each.agg(how).where(complete_mean(each).notna()).groupby("suite")) for how in ("max", "mean")
    )
    for place in np.flatnonzero(mean[suites].isna()):
        mark_missing(axes[0, 0], place, 0.5)
    axes[0, 0].bar(np.arange(len(suites)) - 0.19, mean[suites], 0.36, color=RIGHT)
    axes[0, 0].bar(np.arange(len(suites)) + 0.19, any_[suites], 0.36, color="#BBCCEE")
    names = [textwrap.fill(drawn_name(suite), 13) for suite in suites]
    axes[0, 0].set(xticks=range(len(suites)), xticklabels=names, title="by suite", ylabel="mean reward", ylim=(0, 1.02))
    axes[0, 0].yaxis.set_major_formatter(PERCENT_AXIS)
    axes[0, 0].grid(axis="x", visible=False)
    legend_above(figure, [Patch(color=RIGHT, label="sampled"), Patch(color="#BBCCEE", label=f"best of {k} samples")])
    order = [s for s in (*styles, "other") if (table["style"] == s).mean() > 0.005]
    by_style = table[table["style"].isin(order)].astype({"style": object})
    _bars(axes[0, 1], by_style.sort_values("style", key=lambda c: c.map(order.index)), "style", "reward", RIGHT)
    axes[0, 1].set(title="by kind of question" if kinds else "by style chosen")
    axes[0, 1].tick_params(axis="x", labelsize=8)
    _bars(axes[0, 2], table, "steps", "reward", RIGHT)
    axes[0, 2].set(title="by steps")
    cuts = np.unique(np.quantile(table["length"], np.linspace(0, 1, 5)).astype(int))
    names = [f"{a + (i > 0)}-{b}" for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    groups = pd.cut(table["length"], cuts, labels=names, include_lowest=True) if len(cuts) > 2 else table["length"]
    _bars(axes[0, 3], table.assign(bin=groups.astype(object)).sort_values("length"), "bin", "reward", RIGHT)
    axes[0, 3].set(title="by length (tokens)")
    axes[0, 3].tick_params(axis="x", labelsize=8)
    text = (
        f"Sampled at temperature 1, {k} completions a prompt, all suites together in the three right panels. Black "
        "lines: bootstrap 95 % intervals over prompts. Under each bar: its share of all responses."
    )
    return add_caption(figure, f"{text} {note}")


def confusion_bars(table: pd.DataFrame, note: str = "") -> Figure:
    """Errors of each noise source: shares of true and false positives and negatives, a bar per source.

    Args:
        table: Rows of one family of `noise_effects.confusion_table`: noise, tp, fn, fp, tn, missing (shares, sum 1),
            corrupted, accuracy, length_error.
        note: Further text of the caption.
    """
    parts = [
        ("tp", RIGHT, "right, rewarded"),
        ("fn", "#AFC6E0", "right, not rewarded"),
        ("fp", "#F7BFC6", "wrong, rewarded"),
        ("tn", WRONG, "wrong, not rewarded"),
        ("missing", "#D9D9D9", "no reward"),
    ]
    figure, axes = new_figure(9.6, 1.5 + 0.42 * len(table))
    ax = axes[0, 0]
    for k, row in enumerate(table.itertuples()):
        left = 0.0
        for name, color, _ in parts:
            share = getattr(row, name)
            ax.barh(k, share, left=left, color=color, height=0.7)
            if share >= 0.035:
                ax.text(
                    left + share / 2,
                    k,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if name in ("tp", "tn") else "black",
                )
            left += share
        text = f"label right {row.accuracy:.1%}, not the truth {row.corrupted:.1%}, by length {row.length_error:+.2f}"
        ax.text(1.01, k, text, va="center", fontsize=8.5)
    ax.set(ylim=(len(table) - 0.4, -0.6), yticks=range(len(table)), xlim=(0, 1.62), xlabel="share of responses")
    ax.set_yticklabels([drawn_name(n) for n in table["noise"]])
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.xaxis.set_major_formatter(PERCENT_AXIS)
    ax.grid(visible=False)
    sns.despine(ax=ax, left=True, right=True, top=True)
    ax.spines["bottom"].set_bounds(0, 1)
    legend_above(figure, [Patch(color=c, label=n) for _, c, n in parts])
    text = "The reward read as a label at 0.5. By length: correlation of its error with the number of words."
    return add_caption(figure, f"{text} {note}")


def reward_histograms(rewards: pd.DataFrame, limit: float | None = None, note: str = "") -> Figure:
    """Received rewards of truly right and truly wrong responses, a panel per noise source.

    Args:
        rewards: Columns noise, true (0 to 1; right from 0.5 on), received.
        limit: The x axis runs from -limit to 1 + limit; by default from the panel's 0.2 % to its 99.8 % quantile.
        note: Text of the caption.
    """
    noises = list(dict.fromkeys(rewards["noise"]))
    rows = -(-len(noises) // 5)
    columns = -(-len(noises) // rows)
    figure, axes = new_figure(min(10.0, max(6.0, 3.1 * columns)), 0.5 + 2.7 * rows, rows, columns, sharey=True)
    for ax in axes.flat[len(noises) :]:
        ax.set_visible(False)
    for ax, noise in zip(axes.flat, noises, strict=False):
        every = rewards[rewards["noise"] == noise]
        own = every.dropna(subset="received")
        if own.empty:
            ax.set_title(f"{drawn_name(noise)}\nno reward at all", fontsize=9.5)
            continue
        low, high = own["received"].quantile([0.002, 0.998])
        reach = max(0.25, limit if limit is not None else max(-low, high - 1))
        bins = np.linspace(-reach, 1 + reach, 42)
        clipped = own["received"].clip(bins[0], bins[-1])
        for truth, color in ((1, RIGHT), (0, WRONG)):
            chosen = clipped[(own["true"] >= 0.5) == bool(truth)]
            ax.hist(chosen, bins, weights=np.full(len(chosen), 1 / len(every)), color=color, alpha=0.75)
        mean, spread = own["received"].mean(), own["received"].std()
        ax.set(yscale="log")
        ax.set_title(f"{drawn_name(noise)}\nmean {mean:.2f}, s.d. {spread:.2f}", fontsize=9.5)
    for ax in axes[-1]:
        ax.set_xlabel("received reward")
    figure.supylabel("share of responses (log scale)", fontsize=10)
    axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}%"))
    legend_above(figure, [Patch(color=RIGHT, label="truly right"), Patch(color=WRONG, label="truly wrong")])
    return add_caption(figure, note)


def vote_quality(votes: pd.DataFrame, note: str = "") -> Figure:
    """Share of right majority votes, by agreement of the answers and by number of steps.

    Args:
        votes: A row per prompt, from `pseudo_label_quality`: prompt, agreement (0..1), steps, right (bool).
        note: Further text of the caption.
    """
    figure, axes = new_figure(8.4, 3.3, 1, 2, sharey=True, width_ratios=[2, 1])
    by_share = votes.sort_values("agreement", kind="stable")
    shown = (
        by_share["agreement"].map("{:.0%}".format).astype(object)
    )  # `_bars` sorts numbers and keeps the order of strings
    _bars(axes[0, 0], by_share.assign(agreement=shown), "agreement", "right", RIGHT)
    axes[0, 0].set(xlabel="share of the answers that agree with the label", ylabel="labels that are right")
    axes[0, 0].tick_params(axis="x", labelsize=8)
    _bars(axes[0, 1], votes, "steps", "right", RIGHT)
    axes[0, 1].set(xlabel="steps of the problem")
    text = f"{len(votes)} prompts. Black lines: bootstrap 95 % intervals. Under each bar: its share of all prompts."
    return add_caption(figure, f"{text} {note}")


def reward_model_quality(search: pd.DataFrame, calibrated: pd.DataFrame, target: float, note: str = "") -> Figure:
    """Held-out accuracy of a reward model during training, and its calibration.

    Args:
        search: Columns step, accuracy, taken.
        calibrated: A frame of `reward_model.calibration_table`: predicted, right, count.
        target: The requested accuracy.
        note: Further text of the caption.
    """
    figure, axes = new_figure(8.4, 3.4, 1, 2)
    left, right = axes[0]
    looks = search.sort_values("step")
    left.plot(looks["step"], looks["accuracy"], color=RIGHT, marker="o", ms=3.5, lw=1.5)
    left.axhline(target, color="0.4", ls="--", lw=1)
    [chosen] = search[search["taken"]].to_dict("records")
    left.plot(chosen["step"], chosen["accuracy"], marker="*", ms=13, color=WRONG)
    left.set(xlabel="optimiser step", ylabel="held-out accuracy", ylim=(min(0.4, looks["accuracy"].min()), 0.9))
    left.yaxis.set_major_formatter(PERCENT_AXIS)
    deviation = np.sqrt(calibrated["right"] * (1 - calibrated["right"]) / calibrated["count"])
    right.plot([0, 1], [0, 1], color="0.4", ls="--", lw=1)
    right.errorbar(calibrated["predicted"], calibrated["right"], 1.96 * deviation, color=RIGHT, marker="o", ms=4, lw=1)
    right.set(
        xlabel="predicted probability that an answer is right",
        ylabel="share of answers that are right",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    text = (
        "Left: line, accuracy on the search's answers; dashed, the target; star, the model taken. Right: answers "
        "used neither for training nor for the search, in tenths by predicted probability, with 95 % intervals; "
        "dashed, perfect calibration."
    )
    return add_caption(figure, f"{text} {note}")
