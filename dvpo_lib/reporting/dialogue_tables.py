"""What is shown of sampled dialogues: one turn by turn, and the metrics by domain and style."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dvpo_lib.tasks.dialogue_rules import END, follow, judge, mean_scores, metrics, split_turns
from dvpo_lib.tasks.suites import STYLES


def telling_dialogue(samples: pd.DataFrame) -> dict:
    """The record of a long sampled dialogue that went neither quite right nor quite wrong, if there is one.

    Args:
        samples: of `evaluation.sample_table`, of dialogues.
    """
    half = samples[samples["reward"].between(0, 1, inclusive="neither")]
    half = half if len(half) else samples
    return half.loc[half["completion"].str.split().str.len().idxmax()].to_dict()


def verdict_text(record: Mapping) -> str:
    """The metrics of a sampled dialogue and its reward, as text."""
    scores = judge(record, record["completion"])
    parts = ", ".join(f"{name.upper()} {value:.2f}" for name, value in scores._asdict().items())
    return f"{parts}: reward {scores.mean:.2f}"


def turn_by_turn(record: Mapping, completion: str) -> pd.DataFrame:
    """A dialogue as it went: turn, who speaks, what is said, and what of it the metrics count."""
    turns, before, rows = split_turns(completion), follow(record, "")[0], []
    for i, words in enumerate(turns):
        state, _ = follow(record, " ".join(f"{' '.join(turn)} {END}" for turn in turns[: i + 1]))
        changes = {"right acts": state.done - before.done, "needless acts": state.needless - before.needless}
        counts = [f"{name}: {n}" for name, n in changes.items() if n]
        counts += ["booked"] * (state.booking is not None) + ["not understood"] * state.failed
        rows.append(
            {"turn": i + 1, "who": ("policy", "user")[i % 2], "says": " ".join(words), "counts": ", ".join(counts)}
        )
        before = state
    return pd.DataFrame(rows)


def scores_by_group(samples: pd.DataFrame) -> pd.DataFrame:
    """TCR, ACR, GCR and their mean, by domain, by the style that opens the dialogue, and overall.

    Args:
        samples: of `evaluation.sample_table`, of dialogues.
    """
    scores = metrics(samples["prompt"], samples["completion"], samples["answer"], samples["user"])
    styles = samples["completion"].str.split().str[0].where(lambda first: first.isin(STYLES), "other").fillna("other")
    groups = {"domain": mean_scores(samples["domain"], scores), "style": mean_scores(styles, scores)}
    rows = [
        {"by": by if name != "overall" else "", "dialogues": name, **own._asdict(), "mean": own.mean}
        for by, found in groups.items()
        for name, own in found.items()
        if name != "overall" or by == "style"
    ]
    return pd.DataFrame(rows)
