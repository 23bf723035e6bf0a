"""Findings about a published language model, from the rows of its runs: what it learned, and from which method."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.reporting.findings.after_training import comparison_findings
from dvpo_lib.reporting.names import BASE, BY_KIND, display_name
from dvpo_lib.reporting.prose import join_words, noise_phrase, percent_text

ROLES = ("ID", "OOD")
COMPARED = 3  # seeds that a comparison takes


def published_findings(runs: pd.DataFrame) -> str:
    """The findings as a list in Markdown.

    Args:
        runs: Rows of `experiments.real.pieces`, of the base policy and of methods.
    """
    base, trained = runs[runs["method"] == BASE], runs[(runs["method"] != BASE) & (runs["variant"] == "")]
    lines = []
    if len(base):
        parts = [f"{_mean(base, 'sampled', r)} sampled and {_mean(base, 'greedy', r)} greedy ({r})" for r in ROLES]
        lines.append(f"- **Before training** the policy answers right: {'; '.join(parts)}.")
    clean = trained[trained["noise"] == "none"]
    if len(base) and len(clean):
        lines.append(_learned(base, clean))
    lines += _comparison(trained)
    count = runs[["method", "variant", "noise", "seed", "machine"]].drop_duplicates()["machine"].value_counts()
    lines.append(
        "- Computed on: " + join_words(f"{machine} ({n} run{'s' * (n > 1)})" for machine, n in count.items()) + "."
    )
    return "\n".join(lines) + "\n"


def _comparison(trained: pd.DataFrame) -> list[str]:
    """The comparison of methods with enough seeds, and the scores of the others."""
    seeds = trained.groupby(["noise", "method"])["seed"].transform("nunique")
    several, few = trained[seeds >= COMPARED], trained[seeds < COMPARED]
    judged = [noise for noise, own in several.groupby("noise", sort=False) if (own["method"] == "ppo").any()]
    lines = [comparison_findings(several[several["noise"].isin(judged)])] if judged else []
    rest = pd.concat([few, several[~several["noise"].isin(judged)]])
    scores = rest[(rest["metric"] == "sampled") & (rest["role"] == "ID")].sort_values("method", kind="stable")
    for noise, own in scores.groupby("noise", sort=False):
        means = (
            own.groupby("method", sort=False)["value"]
            .agg(score="mean", runs="size")
            .sort_values("score", ascending=False)
        )
        told = join_words(f"{display_name(r.Index)} {percent_text(r.score)} ({r.runs})" for r in means.itertuples())
        lines.append(
            f"- {noise_phrase(noise, capital=True)}, not compared (ID; in brackets the number of seeds): {told}."
        )
    return lines


def _mean(runs: pd.DataFrame, metric: str, role: str) -> str:
    return percent_text(runs[(runs["metric"] == metric) & (runs["role"] == role)]["value"].mean())


def _learned(base: pd.DataFrame, clean: pd.DataFrame) -> str:
    count = len(clean[["method", "seed"]].drop_duplicates())
    kinds = [m for m in dict.fromkeys(base["metric"]) if m.startswith(BY_KIND)]
    changes = {
        "all questions": ("greedy", "ID"),
        **{kind.removeprefix(BY_KIND): (kind, "ID") for kind in kinds},
        "all questions about unseen services": ("greedy", "OOD"),
    }
    told = [f"{name} {_mean(base, *where)} → {_mean(clean, *where)}" for name, where in changes.items()]
    start = f"- **What is learned** without noise, in greedy answers (mean of {count} runs of all methods): "
    return f"{start}{join_words(told)}."
