"""Findings before training (notebook 01): base policy, noise, pseudo-labels, reward model.

Every function returns Markdown and chooses its sentences by the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import join_words, percent_text


def greedy_findings(base: pd.DataFrame) -> str:
    """Greedy against sampled reward of the base policy.

    Args:
        base: Columns suite, metric ("sampled" and "greedy"), value (mean reward, 0..1).
    """
    wide = base.pivot(index="suite", columns="metric", values="value")
    sampled, greedy = wide["sampled"].mean(skipna=False), wide["greedy"].mean(skipna=False)
    return f"Decoded greedily, it gets {percent_text(greedy)} of the possible reward, sampled {percent_text(sampled)}."


def base_findings(samples: Mapping[str, pd.DataFrame], styles: tuple[str, ...]) -> str:
    """Skill of the base policy by suite and style, and the gain from always choosing the best style.

    Args:
        samples: {suite: completions}, with columns prompt, completion, reward, sample.
        styles: The style words, in order.
    """
    k = int(next(iter(samples.values()))["sample"].max()) + 1
    parts = []
    for name, s in samples.items():
        known = s["reward"].notna().all()
        mean, solved = s["reward"].mean(skipna=False), s.groupby("prompt")["reward"].max().mean() if known else None
        parts.append(f"{display_name(name)} {percent_text(mean)} (best of {k}: {percent_text(solved)})")
    every = pd.concat(samples.values())
    by = every.groupby(every["completion"].str.split().str[0].fillna(""))["reward"].agg(["mean", "size"])
    by = by.reindex([s for s in styles if s in by.index])
    text = f"Sampled at temperature 1, the base policy gets these shares of the possible reward: {join_words(parts)}. "
    if every["reward"].isna().any():
        return f"{text}Some rewards are missing, so they are not compared further."
    if "kind" in every:
        by = every.groupby("kind")["reward"].mean().sort_values(ascending=False)
        return text + f"By kind of question: {join_words(f'{k} {percent_text(v)}' for k, v in by.items())}."
    if len(by) < 2:
        return text + "It does not open its answers with an annotator's style: too little training for that to show."
    best, worst, top = by["mean"].idxmax(), by["mean"].idxmin(), percent_text(by["mean"].max())
    return text + (
        f"Answers in the {best} style get {top}, those in the {worst} style "
        f"{percent_text(by['mean'].min())}; it chooses the {best} style {percent_text(by['size'][best] / len(every))} "
        f"of the time. Choosing it always would lift the sampled reward from {percent_text(every['reward'].mean())} to "
        f"about {top}, averaged over these suites: that is what can be elicited, and transferred."
    )


def noise_findings(confusion: pd.DataFrame, rewards: pd.DataFrame) -> str:
    """Measured error of each noise source.

    Args:
        confusion: Rows of one family of `noise_effects.confusion_table`.
        rewards: Columns noise, true, received.
    """
    spread = rewards.groupby("noise")["received"].std()
    lines = []
    for row in confusion.itertuples():
        if row.corrupted == 0:
            continue
        if row.missing == 1:
            lines.append(f"- **{display_name(row.noise)}**: no response gets a reward.")
            continue
        lines.append(
            f"- **{display_name(row.noise)}**: {percent_text(row.corrupted, 1)} of the rewards are not the true ones; "
            f"read as a label, the reward is right in {percent_text(row.accuracy, 1)} of all cases: "
            f"{percent_text(row.false_negatives)} of the right answers go unrewarded and "
            f"{percent_text(row.false_positives)} of the wrong ones are rewarded. The standard deviation of the "
            f"reward is {spread[row.noise]:.2f}."
            + (f" {percent_text(row.missing, 1)} of all responses get no reward." if row.missing else "")
            + (
                f" Its error goes with the length of the response (correlation {row.length_error:+.2f})."
                if abs(row.length_error) >= 0.1
                else ""
            )
        )
    return "\n".join(lines) or "No source changes any reward."


def vote_findings(votes: pd.DataFrame, k: int) -> str:
    """Error rate of the majority vote, by agreement and by steps of the problem.

    Args:
        votes: A frame of `noise_effects.pseudo_label_quality`.
        k: Answers to each prompt.
    """
    sure, wrong = votes["agreement"] >= 0.75, 1 - votes["right"].astype(float)
    text = f"The majority of {k} answers is wrong on {percent_text(wrong.mean(), 1)} of the prompts. "
    if 0 < sure.mean() < 1:
        text += (
            f"Where at least three quarters of the answers agree ({percent_text(sure.mean())} of the prompts) it is "
            f"wrong on {percent_text(wrong[sure].mean(), 1)}, elsewhere on {percent_text(wrong[~sure].mean(), 1)}. "
        )
    by = wrong.groupby(votes["steps"]).mean()
    if len(by) > 1:
        text += f"By steps of the problem: {join_words(f'{s} steps {percent_text(e)}' for s, e in by.items())}. "
    return text + (
        "Unlike the other label noises, this one is the same whenever a prompt is answered: no average over "
        "visits removes it."
    )


def reward_model_findings(predictions: pd.DataFrame, search: pd.DataFrame, target: float) -> str:
    """Accuracy of the reward model against its target, and the bias of its probabilities.

    Args:
        predictions: Columns probability, right, words; answers used neither for training nor for the search.
        search: Columns step, accuracy.
        target: The requested accuracy.
    """
    if unknown := int(predictions[["probability", "right"]].isna().any(axis=1).sum()):
        return f"The accuracy is **missing**: {unknown} of {len(predictions)} answers have no prediction or no outcome."
    called = predictions["probability"] >= 0.5
    accuracy = float((called == (predictions["right"] >= 0.5)).mean())
    off = abs(accuracy - target)
    best = search["accuracy"].max()
    gap = float((predictions["probability"] - predictions["right"]).mean())
    return (
        f"Asked for: {percent_text(target, 1)}. Measured on {len(predictions)} answers used neither for training nor "
        f"for the search: **{percent_text(accuracy, 1)}**, {100 * off:.1f} points off"
        f"{'' if off <= 0.015 else ', **more than the 1.5 points that are allowed**'}. On its way it reached "
        f"{percent_text(best, 1)}. It calls {percent_text(called.mean())} of the answers right, where "
        f"{percent_text(predictions['right'].mean())} are; its probabilities are on average {100 * abs(gap):.1f} "
        f"points too {'high' if gap > 0 else 'low'}."
    )
