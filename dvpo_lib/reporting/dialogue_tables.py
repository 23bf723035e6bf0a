"""Sampled dialogues as tables: one dialogue turn by turn, and the metrics by domain and style."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dvpo_lib.tasks.dialogue_rules import END_OF_TURN, split_turns, track_dialogue
from dvpo_lib.tasks.dialogue_scores import mean_scores, score_dialogue, score_dialogues
from dvpo_lib.tasks.suites import STYLES


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
