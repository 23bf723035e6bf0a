"""Carries the study of an agent's conversations out: scores of its critics on held-out tasks, tables and sentences.

Every task is held out in one fold and predicted by the critics of that fold. A score is a mean over seeds; its interval
comes from resampling tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from dvpo_lib.experiments.critic_scores import POSITIONS, overall_distribution, score_predictions
from dvpo_lib.experiments.real.data import HOW, RealSettings, sha256
from dvpo_lib.experiments.real.report import NAMES, number
from dvpo_lib.experiments.real.study import estimate
from dvpo_lib.experiments.real.trajectories import (
    base_specs,
    critic_specs,
    find,
    fold_of,
    read_trajectories,
    with_tokens,
)
from dvpo_lib.experiments.run_store import collect, execute
from dvpo_lib.functional.quantiles import levels
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import load_policy
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.prose import join_words, percent_text
from dvpo_lib.reporting.statistics import Estimate

METRICS = ("auc_within", "brier", "crps", "cover50", "cover80", "cover90")
BANDS = (0.05, 0.25, 0.75, 0.95)  # levels of the quantiles that are drawn
WITHOUT = f"`real.dir` holds no conversations of tau-bench, so this section is empty. {HOW}."

Predictions = Mapping[tuple[str, str], list[pd.DataFrame]]


@dataclass(frozen=True)
class TrajectoryStudy:
    """What notebook 02 shows.

    Attributes:
        file: one row: file, SHA-256 (the first 12 digits), records.
        table: of `trajectories.read_trajectories`, with the fold that each one is held out in.
        cut: conversations that were longer than `max_tokens`, by any fold's tokenizer; max_tokens: of a conversation.
        language_model: a row a fold.
        quantiles: {critic: (seeds, n, 3, M)} predicted at the first, middle and last token.
        scores: critic, at ("any" without a critic), metric, value, low, high, n (tasks).
        differences: contrast, at, metric, value, low, high, n.
        siblings: the AUC of knowing how the task's other trials went.
    """

    file: pd.DataFrame
    table: pd.DataFrame
    cut: int
    max_tokens: int
    language_model: pd.DataFrame
    quantiles: Mapping[str, np.ndarray]
    scores: pd.DataFrame
    differences: pd.DataFrame
    siblings: Estimate


def run(
    cfg: RealSettings,
    critics: Mapping[str, CriticSettings],
    seed: int,
    workers: int | None = None,
    progress: str | None = "critics on conversations",
    resamples: int = 1000,
) -> TrajectoryStudy | None:
    """The study with the critics of params.yaml; None where `real.dir` is not set or holds no conversations.

    Raises:
        ValueError: the file cannot be used; the message names file and line.
    """
    path, own = find(cfg.dir), cfg.trajectories
    if path is None:
        return None
    table = read_trajectories(path)
    table["fold"] = fold_of(table["task"], own.folds, seed)  # too few tasks are found before anything is trained
    bases = execute(base_specs(cfg, seed, path), workers, progress and "language models of the folds")
    specs = critic_specs(cfg, critics, seed, path, [base / "base" for base in bases])
    folders = dict(zip(specs, execute(list(specs.values()), workers, progress), strict=True))
    quantiles = {
        name: np.stack([held_out_quantiles(table, folders, name, s) for s in range(seed, seed + own.seeds)])
        for name in critics
    }
    predictions = scored(quantiles, table)
    cut = max(with_tokens(table, load_policy(str(base / "base"))[1], own.max_tokens)[1] for base in bases)
    file = pd.DataFrame(
        [{"file": f"{path.parent.name}/{path.name}", "SHA-256": sha256(path)[:12], "records": len(table)}]
    )
    return TrajectoryStudy(
        file,
        table,
        cut,
        own.max_tokens,
        collect(bases, "language_model"),
        quantiles,
        score_table(predictions, table, resamples),
        difference_table(predictions, table, resamples),
        of_conversations("auc_within", [siblings(table)], table, resamples),
    )


# ---- predictions and scores ----


def held_out_quantiles(
    table: pd.DataFrame, folders: Mapping[tuple[str, int, int], Path], name: str, seed: int
) -> np.ndarray:
    """(n, 3, M): every conversation as predicted by the critic of the fold that holds its task out."""
    parts = {
        fold: load_file(folders[name, seed, fold] / "held_out.safetensors")["quantiles"].numpy()
        for fold in np.unique(table["fold"])
    }
    found = np.empty((len(table), *parts[0].shape[1:]), dtype=np.float32)
    for fold, part in parts.items():
        found[table["fold"] == fold] = part  # both in the table's order
    return found


def constant(table: pd.DataFrame) -> list[np.ndarray]:
    """The prediction that reads nothing: the distribution of the outcomes of the fold's training tasks."""
    rows = {f: overall_distribution(table.loc[table["fold"] != f, "correct"], 1)[0] for f in table["fold"].unique()}
    return [rows[f] for f in table["fold"]]


def siblings(table: pd.DataFrame) -> pd.DataFrame:
    """The share of successes among the task's *other* trials: what is to be known of a task, beyond any critic."""
    group = table.groupby("task")["correct"]
    others = group.transform("size") - 1
    return pd.DataFrame({"mean": (group.transform("sum") - table["correct"]) / others.clip(lower=1)})


def scored(quantiles: Mapping[str, np.ndarray], table: pd.DataFrame) -> Predictions:
    """{(critic, position): a frame of `inspection.score_predictions` a seed}; the constant's position is "any"."""
    found = {
        (name, at): [score_predictions(places, table["correct"], at) for places in seeds]
        for name, seeds in quantiles.items()
        for at in POSITIONS
    }
    return {**found, ("constant", "any"): [score_predictions(constant(table), table["correct"])]}


def of_conversations(
    metric: str, frames: list[pd.DataFrame], table: pd.DataFrame, resamples: int, minus: list[pd.DataFrame] | tuple = ()
) -> Estimate:
    """`study.estimate` over resampled tasks. The AUC is the mean of the AUCs inside the folds: each fold's constant
    is low where its held-out tasks are good, so that pooled over folds a constant would score below 0.5."""
    return estimate(metric, frames, table, resamples, minus, unit="task", within="fold")


def score_table(predictions: Predictions, table: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Every metric of `scored`: critic, at, metric, value, low, high, n (tasks)."""
    rows = [
        (*key, metric, *of_conversations(metric, frames, table, resamples))
        for key, frames in predictions.items()
        for metric in METRICS
        if not metric.startswith("cover") or frames[0]["pit"].notna().all()
    ]
    return pd.DataFrame(rows, columns=["critic", "at", "metric", "value", "low", "high", "n"])


def difference_table(predictions: Predictions, table: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Differences on the same conversations: contrast, at, metric, value, low, high, n.

    Contrasts: "<critic>: last - first", what reading a conversation adds, and "<critic> - constant".
    """
    pairs = []
    for name in dict.fromkeys(name for name, at in predictions if at != "any"):
        pairs += [(f"{name}: last - first", "last", m, (name, "last"), (name, "first")) for m in METRICS[:2]]
        pairs += [(f"{name} - constant", at, "brier", (name, at), ("constant", "any")) for at in POSITIONS]
    rows = [
        (contrast, at, metric, *of_conversations(metric, predictions[plus], table, resamples, predictions[less]))
        for contrast, at, metric, plus, less in pairs
    ]
    return pd.DataFrame(rows, columns=["contrast", "at", "metric", "value", "low", "high", "n"])


# ---- tables, metrics and sentences ----


def by_task(study: TrajectoryStudy, name: str = "quantile") -> pd.DataFrame:
    """For `figures.task_intervals`: task, at, success (share of trials), mean, and q05, q25, q75, q95.

    Predicted quantiles are averaged over a task's trials and over seeds.
    """
    rows = []
    for position, at in enumerate(POSITIONS):
        read = study.quantiles[name][:, :, position].mean(0)
        for task, own in study.table.groupby("task"):
            q = read[own.index].mean(0)
            bands = np.interp(BANDS, levels(len(q)).numpy(), q)
            rows.append((task, at, own["correct"].mean(), q.mean(), *bands))
    return pd.DataFrame(rows, columns=["task", "at", "success", "mean", *(f"q{100 * b:02.0f}" for b in BANDS)])


def score_cells(study: TrajectoryStudy) -> pd.DataFrame:
    """One row per critic and position, the constant last: metrics with intervals, coverage as a share."""
    own = study.scores.copy()
    own["cell"] = [
        percent_text(r["value"])
        if r["metric"].startswith("cover")
        else number(r, 2 if r["metric"].startswith("auc") else 3)
        for _, r in own.iterrows()
    ]
    wide = own.pivot(index=["critic", "at"], columns="metric", values="cell")
    wide = wide.loc[list(dict.fromkeys(zip(own["critic"], own["at"])))].reset_index()
    wide["critic"] = [look_of(c).name for c in wide["critic"]]
    names = {**NAMES, "auc_within": "AUC inside folds", "at": "token"}
    return wide[["critic", "at", *METRICS]].astype(object).fillna("").rename(columns=names)


def metrics(study: TrajectoryStudy | None) -> dict:
    """For `dvc metrics show`: {"real_trajectories": {critic: {at: {metric: value}}}}; empty without the data."""
    tree: dict = {}
    for r in study.scores.itertuples() if study else ():
        tree.setdefault(r.critic, {}).setdefault(r.at, {})[r.metric] = r.value
    return {"real_trajectories": tree} if tree else {}


def data_findings(study: TrajectoryStudy) -> str:
    """What was read, how it was split, and what the backbones have learned."""
    table, models = study.table, study.language_model
    share = table.groupby("task")["correct"].mean()
    mixed = int(((share > 0) & (share < 1)).sum())
    known = number(dict(value=study.siblings.point, low=study.siblings.low, high=study.siblings.high))
    return (
        f"{len(table)} conversations on {len(share)} tasks; the agent succeeds in "
        f"{percent_text(table['correct'].mean())} of them: in {int((share == 1).sum())} tasks every time, in "
        f"{int((share == 0).sum())} never, in {mixed} now and then. So the task says much: how its *other* trials went "
        f"predicts a trial with an AUC of {known}. {study.cut} conversations were longer than {study.max_tokens:,} "
        f"tokens and lost their beginning. The backbones ({models['parameters'].mean() / 1e6:.2f} M parameters) end at "
        f"a loss of {models['train_loss'].mean():.2f} nats a token on the conversations of their training tasks and at "
        f"{models['test_loss'].mean():.2f} on those of the held-out ones (means over folds)."
    )


def _beside(low: float, high: float, reference: float, words: tuple[str, str, str]) -> str:
    """The first word where an interval is above a reference, the second below, the third where it contains it."""
    return words[0] if low > reference else words[1] if high < reference else words[2]


def findings(study: TrajectoryStudy) -> str:
    """What critics learn from so few real conversations, whichever way it falls, as a list."""
    s = study.scores.set_index(["critic", "at", "metric"]).sort_index()
    d = study.differences.set_index(["contrast", "at", "metric"]).sort_index()
    names = list(study.quantiles)
    lines = [_discrimination(s, d, names), _against_constant(s, d, names)]
    if "quantile" in names:
        lines.append(_distribution(study, s))
    widths = [s.loc[(n, "last", "auc_within"), ["low", "high"]].diff().iloc[-1] for n in names]
    seeds = len(study.quantiles[names[0]])
    lines.append(
        f"- **What so few tasks can show.** With {int(study.scores['n'].max())} tasks the 95 % interval of an AUC at "
        f"the last token is {np.mean(widths):.2f} wide: only what is about {np.mean(widths) / 2:.2f} away from 0.5 "
        f"can be told from chance. Intervals resample tasks; what another training run would change is not in them "
        f"({seeds} seed{'s' * (seeds > 1)})."
    )
    return "\n".join(lines)


def _discrimination(s: pd.DataFrame, d: pd.DataFrame, names: list[str]) -> str:
    parts = []
    for n in names:
        rows = {at: s.loc[(n, at, "auc_within")] for at in POSITIONS}
        told = [f"{number(row, 3)} at the {at} token" for at, row in rows.items()]
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
        adds = _beside(
            gain["low"],
            gain["high"],
            0,
            (
                "reading the conversation to its end helps",
                "reading the conversation to its end harms",
                "what reading to the end adds is not beyond its interval",
            ),
        )
        parts.append(f"{look_of(n).name} {join_words(told)} ({verdict}); {adds} ({number(gain)})")
    return (
        f"- **Is a success told from a failure?** The AUC is, for the {'; for the '.join(parts)}. These are "
        f"{len(names) * len(POSITIONS)} intervals, each for itself: one that only just leaves 0.5 out says little."
    )


def _against_constant(s: pd.DataFrame, d: pd.DataFrame, names: list[str]) -> str:
    parts = []
    for n in names:
        gap = d.loc[(f"{n} - constant", "last", "brier")]
        verdict = _beside(gap["low"], gap["high"], 0, ("worse", "better", "no clear difference"))
        parts.append(
            f"{s.loc[(n, 'last', 'brier'), 'value']:.3f} ({look_of(n).name}; less the constant's "
            f"{number(gap, 3)}: {verdict})"
        )
    base = s.loc[("constant", "any", "brier"), "value"]
    return (
        f"- **Against knowing only how often training tasks succeed.** That alone has a Brier score of {base:.3f}; at "
        f"the last token the critics' is {join_words(parts)}."
    )


def _distribution(study: TrajectoryStudy, s: pd.DataFrame) -> str:
    q = s.xs("quantile", level="critic")
    inside = [
        f"{percent_text(q.loc[('last', f'cover{level}'), 'value'])} in the {level} % interval" for level in (50, 80, 90)
    ]
    plain = percent_text(s.loc[("constant", "any", "cover80"), "value"])
    tasks = by_task(study)
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
