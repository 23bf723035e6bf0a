"""Answers as tables: a dialogue turn by turn, metrics by domain and style, answers before and after training."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dvpo_lib.reporting.names import display_name
from dvpo_lib.tasks.dialogue_rules import END_OF_TURN, split_turns, track_dialogue
from dvpo_lib.tasks.dialogue_scores import mean_scores, score_dialogue, score_dialogues
from dvpo_lib.tasks.suites import STYLES

SHOWN_ANSWERS = (("completion", "reward"), ("completion after", "reward after"))


def telling_dialogue(samples: pd.DataFrame) -> dict:
    """The longest sampled dialogue with a reward strictly between 0 and 1, or the longest of all if none has one.

    Args:
        samples: Dialogues in a frame of `evaluation.sample_table`.
    """
    half = samples[samples["reward"].between(0, 1, inclusive="neither")]
    half = half if len(half) else samples
    return half.loc[half["completion"].str.split().str.len().idxmax()].to_dict()


def verdict_text(record: Mapping) -> str:
    """The metrics and the reward of a sampled dialogue, as text."""
    scores = score_dialogue(record, record["completion"])
    parts = ", ".join(f"{name.upper()} {value:.2f}" for name, value in scores._asdict().items())
    return f"{parts}: reward {scores.mean:.2f}"


def turn_by_turn(record: Mapping, completion: str) -> pd.DataFrame:
    """One row per turn of a dialogue: number, speaker, words and the acts that the metrics count."""
    turns, before, rows = split_turns(completion), track_dialogue(record, "")[0], []
    for i, words in enumerate(turns):
        state, _ = track_dialogue(record, " ".join(f"{' '.join(turn)} {END_OF_TURN}" for turn in turns[: i + 1]))
        changes = {"right acts": state.done - before.done, "needless acts": state.needless - before.needless}
        counts = [f"{name}: {n}" for name, n in changes.items() if n]
        counts += ["booked"] * (state.booking is not None) + ["not understood"] * state.failed
        rows.append(
            {"turn": i + 1, "who": ("policy", "user")[i % 2], "says": " ".join(words), "counts": ", ".join(counts)}
        )
        before = state
    return pd.DataFrame(rows)


def scores_by_group(samples: pd.DataFrame) -> pd.DataFrame:
    """TCR, ACR, GCR and their mean: by domain, by opening style, and overall.

    Args:
        samples: Dialogues in a frame of `evaluation.sample_table`.
    """
    scores = score_dialogues(samples["prompt"], samples["completion"], samples["answer"], samples["user"])
    styles = samples["completion"].str.split().str[0].where(lambda first: first.isin(STYLES), "other").fillna("other")
    groups = {"domain": mean_scores(samples["domain"], scores), "style": mean_scores(styles, scores)}
    rows = [
        {"by": by if name != "overall" else "", "dialogues": name, **own._asdict(), "mean": own.mean}
        for by, found in groups.items()
        for name, own in found.items()
        if name != "overall" or by == "style"
    ]
    return pd.DataFrame(rows)


def answers_by_kind(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Mean reward of greedy answers by test set and kind of question, before and after training.

    Args:
        before: Answers of the base policy: suite, prompt, kind, reward.
        after: Answers of trained policies to the same prompts, with the columns method, noise and seed too.

    Returns:
        One row per test set and kind: test set, kind, questions, base policy, one column per noise (mean over runs).
    """
    keys = ["suite", "kind"]
    start = before.groupby(keys, sort=False)["reward"].agg(["size", "mean"])
    wide = after.pivot_table("reward", keys, "noise", sort=False, dropna=False).reindex(start.index)
    wide.columns = [display_name(noise) for noise in wide.columns]
    table = start.rename(columns={"size": "questions", "mean": "base policy"}).join(wide).reset_index()
    return table.assign(suite=table["suite"].map(display_name)).rename(columns={"suite": "test set"})


def changed_answers(before: pd.DataFrame, after: pd.DataFrame, each: int = 2) -> pd.DataFrame:
    """Examples of greedy answers before and after training, for every domain those whose reward changed most.

    Args:
        before: Answers of the base policy: suite, prompt, question, answer, completion, reward, domain.
        after: Answers of one trained policy to the same prompts.
        each: Examples of a domain; the first rose, the others fell if any did.

    Returns:
        Columns domain, question, right answer, before, after.
    """
    both = before.merge(
        after[["suite", "prompt", "completion", "reward"]], on=["suite", "prompt"], suffixes=("", " after")
    )
    both["change"] = both["reward after"] - both["reward"]
    rows = []
    for domain, own in both.groupby("domain", sort=False):
        rose = own.nlargest(each, "change")
        fell = own[own["change"] < 0].nsmallest(each - 1, "change")
        for r in pd.concat([rose.head(each - len(fell)), fell]).to_dict("records"):
            texts = (f"{r[name]} ({r[reward]:.2g})" for name, reward in SHOWN_ANSWERS)
            rows.append((domain, r["question"], r["answer"], *texts))
    return pd.DataFrame(rows, columns=["domain", "question", "right answer", "before", "after"])
