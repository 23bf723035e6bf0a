"""An agent's logged conversations with one real outcome each (tau-bench, airline): reading, tokens, folds by task.

A conversation is the dialogue of an agent with a user and with tools. Its messages become turns that alternate between
the policy (the agent) and its environment. Turns of users and tools are attended to but never valued.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dvpo_lib.common.jsonl import record_problem
from dvpo_lib.common.tables import short_repr
from dvpo_lib.experiments.real.files import TRAJECTORY_FILES, read_checked_lines, read_checked_list

MESSAGE_CHARACTERS = {"user": 600, "assistant": 600, "tool": 100}  # read per message; tools answer at length
CALL_CHARACTERS = 300  # read of the arguments of a tool call


def find_trajectories(folder: str | Path | None) -> Path | None:
    """The file of conversations in `real.dir`. None if there is none, since the file is optional."""
    paths = [Path(folder) / name for name in TRAJECTORY_FILES] if folder is not None else []
    return next((path for path in paths if path.is_file()), None)


# ---- reading ----


def _messages_problem(traj: Any) -> str | None:
    """Problem with a list of messages, or None."""
    if not isinstance(traj, list) or not traj:
        return f"`traj` should be a list of messages, not {str(traj)[:40]!r}"
    for number, message in enumerate(traj, start=1):
        problem = record_problem(message)
        if problem:
            return f"traj, message {number}: {problem}"
        role = message.get("role")
        if role not in [*MESSAGE_CHARACTERS] and (number, role) != (
            1,
            "system",
        ):  # published files open with the instructions
            return f"traj, message {number}: `role` should be user, assistant or tool, not {short_repr(role)}"
        if not isinstance(message.get("content"), str | None):
            return f"traj, message {number}: `content` should be a text or null, not {short_repr(message['content'])}"
        try:
            tool_calls(message)
        except (TypeError, KeyError, AttributeError):
            return f"traj, message {number}: `tool_calls` should be records with `name` and `arguments`"
    said = [m for m in traj if m["role"] != "system"]
    if not said or said[0]["role"] != "user" or not (said[0].get("content") or "").strip():
        return "`traj` should begin with a user's message that is not empty"
    return None if any(m["role"] == "assistant" for m in said) else "`traj` holds no message of the assistant"


def _record_problem(record: Any) -> str | None:
    """Problem with a record, or None."""
    problem = record_problem(record, "task_id", "trial", "reward", "traj")
    if problem:
        return problem
    for field in ("task_id", "trial"):
        if type(record[field]) is not int:
            return f"`{field}` should be a whole number, not {short_repr(record[field])}"
    if isinstance(record["reward"], bool) or record["reward"] not in (0, 1):
        return f"`reward` should be 0 or 1, not {short_repr(record['reward'])}"
    return _messages_problem(record["traj"])


def tool_calls(message: Mapping) -> list[str]:
    """Tool calls of a message, one line of text each. Published files nest them one level deeper."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    return [f"call {call['name']} {call['arguments'][:CALL_CHARACTERS]}" for call in calls]


def _message_text(message: Mapping) -> str:
    """Text and tool calls of a message, truncated."""
    said = (message.get("content") or "")[: MESSAGE_CHARACTERS[message["role"]]]
    return "\n".join([said] * bool(said) + tool_calls(message))


def conversation_turns(traj: Sequence[Mapping]) -> tuple[str, list[str]]:
    """Messages as a prompt and alternating turns.

    Consecutive messages of one side are joined by newlines. Tool calls belong to the agent's text. Messages after the
    agent's last one are dropped, because no valued token follows them.

    Args:
        traj: Messages of a record.

    Returns:
        The first message of the user, and texts that alternate between policy and environment, policy first and last.
    """
    said = [(m["role"], _message_text(m)) for m in traj if m["role"] != "system"]
    sides = [
        (own, [text if own else (role, text) for role, text in group])
        for own, group in itertools.groupby(said, lambda m: m[0] == "assistant")
    ]
    (_, first), *rest = sides if sides[-1][0] else sides[:-1]
    prompt = "\n".join(text for _, text in first) + "\n"
    turns = ["\n".join(texts if own else (f"{role}: {text}" for role, text in texts)) for own, texts in rest]
    return prompt, turns


def read_trajectories(path: str | Path, name: str | None = None) -> pd.DataFrame:
    """Conversations sorted by task and trial, one row each.

    Args:
        path: One JSON list (.json, as published) or one record per line (.jsonl).
        name: Name of the file in error messages. Folder and file name of `path` if None.

    Returns:
        Columns task, trial, prompt, turns (of `conversation_turns`), correct (0 or 1).

    Raises:
        ValueError: If a record is malformed or a trial occurs twice. The message names file, line (or record of the
            list) and field.
    """
    path, seen = Path(path), set()

    def check(record: Any) -> str | None:
        problem = _record_problem(record)
        if problem:
            return problem
        key = (record["task_id"], record["trial"])
        if key in seen:
            return "`task_id` and `trial`: trial {1} of task {0} occurs twice".format(*key)
        seen.add(key)
        return None

    read = read_checked_list if path.suffix == ".json" else read_checked_lines
    rows = []
    for record in read(path, name or f"{path.parent.name}/{path.name}", check):
        prompt, turns = conversation_turns(record["traj"])
        rows.append(
            {
                "task": record["task_id"],
                "trial": record["trial"],
                "prompt": prompt,
                "turns": turns,
                "correct": float(record["reward"]),
            }
        )
    return pd.DataFrame(rows).sort_values(["task", "trial"], ignore_index=True)


# ---- tokens ----


def last_tokens(turns: Sequence[Sequence[int]], limit: int | None) -> list[int]:
    """The last tokens of alternating turns, policy first and last.

    The result starts inside a turn of the policy, even if it is shorter than `limit`. So every token keeps its side.

    Args:
        turns: Token ids of each turn.
        limit: Tokens at most. No limit if None.
    """
    ids = list(itertools.chain(*turns))
    own = np.repeat(np.arange(len(turns)) % 2 == 0, [len(t) for t in turns])
    first = max(0, len(ids) - limit) if limit is not None else 0
    return ids[first + int(own[first:].argmax()) :]


def tokenize_turns(table: pd.DataFrame, tokenizer, max_tokens: int | None = None) -> tuple[pd.DataFrame, int]:
    """Adds `completion_ids` to a table of conversations: turns, each closed by the end-of-sequence token.

    A text that spells "<eos>" does not end a turn, because special tokens in texts are split into letters.

    Args:
        table: Table of `read_trajectories`.
        tokenizer: Tokenizer of the backbone.
        max_tokens: Tokens of a conversation at most. No limit if None.

    Returns:
        The table and the number of truncated rows.
    """
    eos, rows, changed = tokenizer.eos_token_id, [], 0
    for turns in table["turns"]:
        found = tokenizer(list(turns), add_special_tokens=False, split_special_tokens=True).input_ids
        closed = [[*ids, eos] for ids in found]
        rows.append(last_tokens(closed, max_tokens))
        changed += len(rows[-1]) < sum(map(len, closed))
    return table.assign(completion="", completion_ids=rows), changed


# ---- folds ----


def assign_folds(tasks, folds: int, seed: int) -> np.ndarray:
    """The fold in which each record's task is held out: a seeded permutation of tasks into folds of similar size.

    Args:
        tasks: (n,) task of each record.
        folds: Number of folds.
        seed: Seed of the permutation.

    Returns:
        (n,) fold of each record.

    Raises:
        ValueError: If there are fewer tasks than folds.
    """
    names, codes = np.unique(np.asarray(tasks), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"real.trajectories.folds = {folds}, but there are {len(names)} tasks")
    place = np.empty(len(names), dtype=int)
    place[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return place[codes]


def split_by_task(table: pd.DataFrame, folds: int, fold: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records of training tasks and of tasks held out in a fold. Trials of a task stay together."""
    held = assign_folds(table["task"], folds, seed) == fold
    return table[~held].reset_index(drop=True), table[held].reset_index(drop=True)
