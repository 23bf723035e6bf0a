"""Tables, metrics and sentences of the study of conversations."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dvpo_lib.experiments.real.files import DOWNLOAD_HINT
from dvpo_lib.experiments.real.score_tables import METRIC_LABELS, metric_tree, score_cells, score_text, seed_count
from dvpo_lib.experiments.real.trajectories.study import TRAJECTORY_DESIGN, TrajectoryStudy
from dvpo_lib.experiments.specs.critic_test import POSITIONS
from dvpo_lib.functional.quantiles import midpoint_levels
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.prose import join_words, percent_text

DRAWN_LEVELS = (0.05, 0.25, 0.75, 0.95)  # of the quantiles in the figure
NO_TRAJECTORIES = f"`real.dir` holds no conversations of tau-bench, so this section is empty. {DOWNLOAD_HINT}."


def task_quantiles(study: TrajectoryStudy, name: str = "quantile") -> pd.DataFrame:
    """Predicted quantiles of each task, averaged over its trials and over seeds, for `figures.task_intervals`.

    Args:
        study: The results.
        name: Critic.

    Returns:
        Columns task, at, success (share of trials), mean, q05, q25, q75, q95.
    """
    rows = []
    for position, at in enumerate(POSITIONS):
        read = study.quantiles[name][:, :, position].mean(0)
        for task, own in study.table.groupby("task"):
            q = read[own.index].mean(0)
            bands = np.interp(DRAWN_LEVELS, midpoint_levels(len(q)).numpy(), q)
            rows.append((task, at, own["correct"].mean(), q.mean(), *bands))
    return pd.DataFrame(rows, columns=["task", "at", "success", "mean", *(f"q{100 * b:02.0f}" for b in DRAWN_LEVELS)])


def trajectory_score_table(study: TrajectoryStudy) -> pd.DataFrame:
    """Scores for a notebook: one row per critic and position, the constant last."""
    keys = ["critic", "at"]
    order = list(dict.fromkeys(zip(study.scores["critic"], study.scores["at"])))
    wide = score_cells(study.scores, keys).loc[order].reset_index()
    wide["critic"] = [look_of(c).name for c in wide["critic"]]
    labels = {**METRIC_LABELS, "auc_within": "AUC inside folds", "at": "token"}
    return wide[[*keys, *TRAJECTORY_DESIGN.metrics]].astype(object).fillna("").rename(columns=labels)


def trajectory_metrics(study: TrajectoryStudy | None) -> dict:
    """For `dvc metrics show`: {"real_trajectories": {critic: {at: {metric: value}}}}, empty without the data."""
    return {} if study is None else {"real_trajectories": metric_tree(study.scores, ["critic", "at"])}


def trajectory_data_findings(study: TrajectoryStudy) -> str:
    """The data, its variation between tasks, and the losses of the backbones, in sentences."""
    table, models = study.table, study.language_model
    share = table.groupby("task")["correct"].mean()
    mixed = int(((share > 0) & (share < 1)).sum())
    known = score_text(dict(value=study.siblings.point, low=study.siblings.low, high=study.siblings.high))
    return (
        f"{len(table)} conversations on {len(share)} tasks; the agent succeeds in "
        f"{percent_text(table['correct'].mean())} of them: in {int((share == 1).sum())} tasks every time, in "
        f"{int((share == 0).sum())} never, in {mixed} now and then. So the task says much: how its *other* trials went "
        f"predicts a trial with an AUC of {known}. {study.cut} conversations were longer than {study.max_tokens:,} "
        f"tokens and lost their beginning. The backbones ({models['parameters'].mean() / 1e6:.2f} M parameters) end at "
        f"a loss of {models['train_loss'].mean():.2f} nats a token on the conversations of their training tasks and at "
        f"{models['test_loss'].mean():.2f} on those of the held-out ones (means over folds)."
    )


def interval_verdict(low: float, high: float, reference: float, words: tuple[str, str, str]) -> str:
    """The first word if an interval is above a reference, the second if below, the third if it contains it."""
    return words[0] if low > reference else words[1] if high < reference else words[2]


def trajectory_findings(study: TrajectoryStudy) -> str:
    """The results, positive or negative, as a Markdown list."""
    s = study.scores.set_index(["critic", "at", "metric"]).sort_index()
    d = study.differences.set_index(["contrast", "at", "metric"]).sort_index()
    names = list(study.quantiles)
    lines = [_discrimination_sentence(s, d, names), _baseline_sentence(s, d, names)]
    if "quantile" in names:
        lines.append(_distribution_sentence(study, s))
    widths = [s.loc[(n, "last", "auc_within"), ["low", "high"]].diff().iloc[-1] for n in names]
    lines.append(
        f"- **What so few tasks can show.** With {int(study.scores['n'].max())} tasks the 95 % interval of an AUC at "
        f"the last token is {np.mean(widths):.2f} wide: only what is about {np.mean(widths) / 2:.2f} away from 0.5 "
        f"can be told from chance. Intervals resample tasks; what another training run would change is not in them "
        f"({seed_count(len(study.quantiles[names[0]]))})."
    )
    return "\n".join(lines)


def _discrimination_sentence(s: pd.DataFrame, d: pd.DataFrame, names: list[str]) -> str:
    """AUC at each position, its verdict, and the gain from reading to the end."""
    parts = []
    for n in names:
        rows = {at: s.loc[(n, at, "auc_within")] for at in POSITIONS}
        told = [f"{score_text(row, 3)} at the {at} token" for at, row in rows.items()]
        beyond = [
            f"{word} chance at the {join_words(found)} token"
            for word, found in (
                ("above", [at for at, row in rows.items() if row["low"] > 0.5]),
                ("below", [at for at, row in rows.items() if row["high"] < 0.5]),
            )
            if found
        ]
        verdict = join_words(beyond) if beyond else "every interval contains 0.5: not told apart from chance"
        gain = d.loc[(f"{n}: last - first", "last", "auc_within")]
        adds = interval_verdict(
            gain["low"],
            gain["high"],
            0,
            (
                "reading the conversation to its end helps",
                "reading the conversation to its end harms",
                "what reading to the end adds is not beyond its interval",
            ),
        )
        parts.append(f"{look_of(n).name} {join_words(told)} ({verdict}); {adds} ({score_text(gain)})")
    return (
        f"- **Is a success told from a failure?** The AUC is, for the {'; for the '.join(parts)}. These are "
        f"{len(names) * len(POSITIONS)} intervals, each for itself: one that only just leaves 0.5 out says little."
    )


def _baseline_sentence(s: pd.DataFrame, d: pd.DataFrame, names: list[str]) -> str:
    """Brier scores at the last token against the constant."""
    parts = []
    for n in names:
        gap = d.loc[(f"{n} - constant", "last", "brier")]
        verdict = interval_verdict(gap["low"], gap["high"], 0, ("worse", "better", "no clear difference"))
        parts.append(
            f"{s.loc[(n, 'last', 'brier'), 'value']:.3f} ({look_of(n).name}; less the constant's "
            f"{score_text(gap, 3)}: {verdict})"
        )
    base = s.loc[("constant", "any", "brier"), "value"]
    return (
        f"- **Against knowing only how often training tasks succeed.** That alone has a Brier score of {base:.3f}; at "
        f"the last token the critics' is {join_words(parts)}."
    )


def _distribution_sentence(study: TrajectoryStudy, s: pd.DataFrame) -> str:
    """Coverage and CRPS of the quantile critic, and spread of its means over tasks."""
    q = s.xs("quantile", level="critic")
    inside = [
        f"{percent_text(q.loc[('last', f'cover{level}'), 'value'])} in the {level} % interval" for level in (50, 80, 90)
    ]
    plain = percent_text(s.loc[("constant", "any", "cover80"), "value"])
    tasks = task_quantiles(study)
    tasks = tasks[tasks["at"] == "last"].set_index("task")[["mean", "success"]]
    fold = study.table.groupby("task")["fold"].first()
    spread = tasks.groupby(fold).std().mean()  # inside folds: between them the training tasks differ as well
    crps, brier = (q.loc[("last", metric), "value"] for metric in ("crps", "brier"))
    return (
        f"- **The distribution.** At the last token there are {join_words(inside)}. Outcomes are 0 or 1, and an "
        f"interval holds a part of either by lot (the randomised transform), so that coverage says whether the "
        f"predicted *share* of successes is right, not whether tasks are told apart: the constant has {plain} in its "
        f"80 % interval. The CRPS is {crps:.3f}; that of a coin with the predicted mean would be the Brier score, "
        f"{brier:.3f}. Inside a fold the predicted means of tasks have a standard deviation of {spread['mean']:.4f}, "
        f"their shares of successes {spread['success']:.2f}."
    )
