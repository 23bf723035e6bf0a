"""Figures of critics on real outcomes: AUC under label noise, values along a text, intervals of an agent's tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dvpo_lib.reporting.figures.style import (
    PERCENT_AXIS,
    RIGHT,
    WRONG,
    add_caption,
    data_text,
    legend_above,
    look_of,
    new_figure,
)
from dvpo_lib.reporting.figures.tokens import token_text

AUC_ROWS = {"auc": "all solutions", "auc_within": "within one generator"}


def auc_against_noise(scores: pd.DataFrame, note: str = "") -> Figure:
    """AUC on clean held-out labels against the noise rate of the training labels.

    A column per position; the upper row has all solutions, the lower row compares within one generator.

    Args:
        scores: From `run_solution_study`: critic, noise (rate), at ("any" for baselines), metric, value, low, high.
    """
    places = [at for at in dict.fromkeys(scores["at"]) if at != "any"]
    names = list(dict.fromkeys(scores.loc[scores["at"] != "any", "critic"]))
    rates = np.array(sorted(scores["noise"].unique()))
    shift = 0.02 * max(np.ptp(rates), 0.1)
    figure, axes = new_figure(9.6, 5.2, len(AUC_ROWS), len(places), sharex=True, sharey="row")
    handles = []
    for line, (metric, text) in zip(axes, AUC_ROWS.items(), strict=True):
        own = scores[scores["metric"] == metric]
        for ax, at in zip(line, places, strict=True):
            ax.axhline(0.5, color="black", lw=0.9, ls=":")
            for k, name in enumerate(names):
                row, style = own[(own["critic"] == name) & (own["at"] == at)].sort_values("noise"), look_of(name)
                x = row["noise"] + shift * (k - (len(names) - 1) / 2)
                ax.vlines(x, row["low"], row["high"], color=style.color, lw=1.6)
                handles += ax.plot(
                    x, row["value"], color=style.color, marker=style.marker, ms=5, lw=1.6, label=style.name
                )
            base = own[own["critic"] == "generator"].sort_values("noise")
            if metric == "auc" and len(base):
                style = look_of("generator")
                handles += ax.plot(
                    base["noise"],
                    base["value"],
                    color=style.color,
                    marker=style.marker,
                    ms=4,
                    lw=1.2,
                    ls="--",
                    label=style.name,
                )
            ax.set(xticks=rates)
            ax.xaxis.set_major_formatter(PERCENT_AXIS)
            if metric == next(iter(AUC_ROWS)):
                ax.set_title(f"{data_text(at)} token")
            else:
                ax.set_xlabel("training labels turned over")
        line[0].set_ylabel(f"AUC, {text}")
    legend_above(figure, handles)
    text = (
        "Clean labels of held-out problems; bars: 95 % bootstrap intervals over problems; dotted: chance. At the first "
        "token a critic has read the problem only; at the last one the whole solution."
    )
    return add_caption(figure, f"{text} {note}")


def value_over_text(responses: Sequence[dict], base: float, first: int = 150, note: str = "") -> Figure:
    """The predicted mean over the text of solutions, as colours: purple above `base`, orange below.

    Args:
        responses: From `values_along_solutions`: tokens, quantiles (T, M), correct, generator.
        base: The neutral value: the share of right training solutions.
        first: Number of tokens to show of each solution.
        note: Further text of the caption.
    """
    shown = [
        {
            "tokens": [*r["tokens"][:first], *(["..."] if len(r["tokens"]) > first else [])],
            "values": [*(r["quantiles"].mean(1)[:first] - base), *([0.0] if len(r["tokens"]) > first else [])],
            "title": f"{'right' if r['correct'] >= 0.5 else 'wrong'} solution of {data_text(r['generator'])}: "
            f"predicted {r['quantiles'][0].mean():.2f} before it, {r['quantiles'][-1].mean():.2f} at its end",
        }
        for r in responses
    ]
    text = "Each colour stands on the token that the value comes before."
    return token_text(
        shown, title=f"predicted chance of being right, minus {base:.2f}", least=0.2, note=f"{text} {note}"
    )


def task_intervals(tasks: pd.DataFrame, note: str = "") -> Figure:
    """Predicted return of every task beside the real share of successes, a row per token.

    Args:
        tasks: From `task_quantiles`: task, at, success (share of trials), mean, q05, q25, q75, q95 (return
            units). The middle token is left out.
    """
    places = [at for at in dict.fromkeys(tasks["at"]) if at != "middle"]
    figure, axes = new_figure(9.6, 5.6, len(places), 1, sharex=True, sharey=True)
    color, handles = look_of("quantile").color, []
    share = tasks["success"]
    kinds = [
        ("mostly successes", RIGHT, "o", share > 0.5),
        ("half of each", "0.35", "D", share == 0.5),
        ("mostly failures", WRONG, "s", share < 0.5),
    ]
    for ax, at in zip(axes[:, 0], places, strict=True):
        own = tasks[tasks["at"] == at].sort_values(["mean", "task"]).assign(x=lambda t: np.arange(1, len(t) + 1))
        bars = dict(color=color, width=0.86, lw=0)
        handles.append(
            ax.bar(
                own["x"],
                own["q95"] - own["q05"],
                bottom=own["q05"],
                alpha=0.18,
                **bars,
                label="predicted, 90 % interval",
            )
        )
        handles.append(
            ax.bar(
                own["x"],
                own["q75"] - own["q25"],
                bottom=own["q25"],
                alpha=0.32,
                **bars,
                label="predicted, 50 % interval",
            )
        )
        handles += ax.step(own["x"], own["mean"], where="mid", color=color, lw=1.8, label="predicted mean")
        for name, shade, marker, chosen in kinds:
            row = own[chosen.loc[own.index]]
            handles += ax.plot(
                row["x"], row["success"], marker, color=shade, ms=4.5, mec="white", mew=0.5, label=f"trials: {name}"
            )
        ax.set(
            title=f"{data_text(at)} token of the agent",
            ylabel="return (share of successes)",
            xlim=(0.2, len(own) + 0.8),
        )
        ax.grid(axis="x", visible=False)
    axes[-1, 0].set_xlabel("held-out tasks, in the order of their predicted mean (in each row its own)")
    legend_above(figure, handles, columns=3)
    text = (
        "Each column is a task, predicted by the quantile critic of the fold that holds it out (quantiles averaged "
        "over its trials and seeds). A critic that knows tasks apart has its dots rise from left to right. Steps of "
        "the mean that many tasks share are folds: each knows only how its training tasks went."
    )
    return add_caption(figure, f"{text} {note}")
