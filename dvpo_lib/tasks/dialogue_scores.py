"""Metrics of task-oriented dialogues (TCR, ACR, GCR) and their mean, the reward.

The metrics of a dialogue follow from its transcript. What they demand depends on the record alone, so a booking that
cuts the user short gains nothing.

    TCR  task completion rate: 1 if the dialogue ends with a booking of exactly the slots that the service needs, each
         named once and each told by the user before, whatever the values.
    ACR  ask completion rate: done / (due + needless). Due are an `ask` for every slot that the service needs and the
         prompt does not give, and the right `say` for every question of the script. Needless are an `ask` for a slot
         already told or not needed, and a `say` without an open question. The first answer closes a question; a wrong
         one is not done.
    GCR  goal completion rate: 1 if the dialogue ends with a booking of the right slots and no others, with the values
         that the user wants in the end, even if its script had no turn left to say so.

All three are 0 in a failed dialogue. Without a booking (truncated, or out of turns), TCR and GCR are 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from dvpo_lib.tasks.dialogue_rules import END_OF_TURN, FACTS, parse_turn, split_turns, track_dialogue, word_pairs


class DialogueScores(NamedTuple):
    """TCR, ACR and GCR of one dialogue, or their means over dialogues; all in 0..1."""

    tcr: float
    acr: float
    gcr: float

    @property
    def mean(self) -> float:
        """The reward."""
        return sum(self) / 3


def score_dialogue(record: Mapping, completion: str) -> DialogueScores:
    """Scores one dialogue.

    Args:
        record: With prompt, answer and user.
        completion: The whole transcript.
    """
    state, _ = track_dialogue(record, completion)
    if state.failed:
        return DialogueScores(0.0, 0.0, 0.0)
    goal, booking = dict(word_pairs(record["answer"].split())), state.booking
    questions = sum(word in FACTS for turn in record["user"] for word in turn.split())
    completed = booking is not None and booking.keys() == goal.keys() <= state.known.keys()
    acr = state.done / (len(record["user"]) + questions + state.needless)
    return DialogueScores(float(completed), acr, float(booking == goal))


def first_wrong_turn(record: Mapping, completion: str) -> int | None:
    """Finds the policy's first wrong turn. Omissions have no position and are not found.

    A turn is wrong if it breaks the grammar, asks or says something needless, answers wrongly, or books slots or values
    that the user does not want in the end.

    Returns:
        Index of the last word of that turn, counted over the policy's words and its ends of sequence; None if all
        turns are right.
    """
    turns, goal, done, place = split_turns(completion), dict(word_pairs(record["answer"].split())), 0, 0
    for i in range(0, len(turns), 2):
        state, _ = track_dialogue(record, " ".join(f"{' '.join(words)} {END_OF_TURN}" for words in turns[: i + 1]))
        turn = parse_turn(turns[i], first=i == 0)
        due = done + len(turn.says) + (turn.ask is not None) if turn else done
        if state.failed or state.done < due or state.booking not in (None, goal):
            return place + max(0, len(turns[i]) - 1)
        done, place = state.done, place + len(turns[i]) + 1
    return None


def score_dialogues(
    prompts: Iterable[str], completions: Iterable[str], answer: Iterable[str], user: Iterable[list[str]]
) -> list[DialogueScores]:
    """Scores a batch of dialogues; arguments as those of `dialogue_reward`."""
    rows = zip(prompts, completions, answer, user, strict=True)
    return [score_dialogue(dict(prompt=p, answer=a, user=u), c) for p, c, a, u in rows]


def dialogue_reward(
    prompts: list[str], completions: list[str], answer: list[str], user: list[list[str]], **columns
) -> list[float]:
    """The mean of TCR, ACR and GCR of every dialogue (a reward function in TRL's signature)."""
    return [scores.mean for scores in score_dialogues(prompts, completions, answer, user)]


def mean_scores(groups: Iterable[str], scores: Iterable[DialogueScores]) -> dict[str, DialogueScores]:
    """Averages scores by group.

    Args:
        groups: The group of each dialogue, e.g. its domain.
        scores: The scores of each dialogue.

    Returns:
        {group: mean scores}, with the group "overall" for all dialogues.
    """
    found: dict[str, list[DialogueScores]] = {"overall": []}
    for group, own in zip(groups, scores, strict=True):
        found.setdefault(group, []).append(own)
        found["overall"].append(own)
    return {name: DialogueScores(*np.mean(rows, axis=0).tolist()) for name, rows in sorted(found.items())}


def dialogue_details(table) -> dict[str, float]:
    """Mean TCR, ACR and GCR of all dialogues, and the mean reward of each domain.

    Args:
        table: Columns prompt, completion, answer, user, domain.
    """
    scores = score_dialogues(table["prompt"], table["completion"], table["answer"], table["user"])
    means = mean_scores(table["domain"], scores)
    return {**means.pop("overall")._asdict(), **{domain: own.mean for domain, own in means.items()}}
