"""An agent's logged conversations with a real outcome each (tau-bench, airline): reading, folds by task, specs.

A conversation is an agent's dialogue with a user and with tools. Its messages become turns that alternate between the
policy (the agent) and its environment, as in `models.side_by_side`: user and tools are attended to, never valued.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dvpo_lib.common.jsonl import record_problem
from dvpo_lib.experiments.real.data import RealSettings, read_list, read_records
from dvpo_lib.experiments.real.runs import byte_level_tokenizer, store_backbone, store_critic, stream_rows
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, load_policy

TRAJECTORIES = (  # names inside `real.dir`
    "taubench/gpt-4o-airline.json",  # as published, a JSON list
    "taubench/airline_gpt4o_trajectories.jsonl",  # a record a line, messages cut at 600 characters
)
LONGEST = {"user": 600, "assistant": 600, "tool": 100}  # characters of a message that are read: tools answer at length
LONGEST_CALL = 300  # characters of what an agent passes to a tool


def find(folder: str | Path | None) -> Path | None:
    """The file of conversations in `real.dir`, or None: it is optional."""
    paths = [Path(folder) / name for name in TRAJECTORIES] if folder is not None else []
    return next((path for path in paths if path.is_file()), None)


# ---- reading ----


def _messages(traj: Any) -> str | None:
    """What is wrong with a list of messages, or None."""
    if not isinstance(traj, list) or not traj:
        return f"`traj` should be a list of messages, not {str(traj)[:40]!r}"
    for number, message in enumerate(traj, start=1):
        problem = record_problem(message)
        if problem:
            return f"traj, message {number}: {problem}"
        role = message.get("role")
        if role not in [*LONGEST] and (number, role) != (1, "system"):  # published files open with the instructions
            return f"traj, message {number}: `role` should be user, assistant or tool, not {role!r}"
        if not isinstance(message.get("content"), str | None):
            return f"traj, message {number}: `content` should be a text or null, not {message['content']!r}"
        try:
            calls_of(message)
        except (TypeError, KeyError, AttributeError):
            return f"traj, message {number}: `tool_calls` should be records with `name` and `arguments`"
    said = [m for m in traj if m["role"] != "system"]
    if not said or said[0]["role"] != "user" or not (said[0].get("content") or "").strip():
        return "`traj` should begin with a user's message that is not empty"
    return None if any(m["role"] == "assistant" for m in said) else "`traj` holds no message of the assistant"


def _logged(record: Any) -> str | None:
    """What is wrong with a record, or None."""
    problem = record_problem(record, "task_id", "trial", "reward", "traj")
    if problem:
        return problem
    for field in ("task_id", "trial"):
        if type(record[field]) is not int:
            return f"`{field}` should be a whole number, not {record[field]!r}"
    if isinstance(record["reward"], bool) or record["reward"] not in (0, 1):
        return f"`reward` should be 0 or 1, not {record['reward']!r}"
    return _messages(record["traj"])


def calls_of(message: Mapping) -> list[str]:
    """The calls of tools in a message, each as a line of text; published files have them one level deeper."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    return [f"call {call['name']} {call['arguments'][:LONGEST_CALL]}" for call in calls]


def _text(message: Mapping) -> str:
    """What is read of a message: its text and the calls of tools, a line each."""
    said = (message.get("content") or "")[: LONGEST[message["role"]]]
    return "\n".join([said] * bool(said) + calls_of(message))


def turns_of(traj: Sequence[Mapping]) -> tuple[str, list[str]]:
    """(prompt, turns): what a user says first, then texts that alternate between policy and environment, policy first.

    Consecutive messages of one side are joined by a newline. What is said after the agent's last word is left out: no
    token of the agent's comes after it. What the agent asks of tools is a part of what it says.
    """
    said = [(m["role"], _text(m)) for m in traj if m["role"] != "system"]
    sides = [
        (own, [text if own else (role, text) for role, text in group])
        for own, group in itertools.groupby(said, lambda m: m[0] == "assistant")
    ]
    (_, first), *rest = sides if sides[-1][0] else sides[:-1]
    prompt = "\n".join(text for _, text in first) + "\n"
    turns = ["\n".join(texts if own else (f"{role}: {text}" for role, text in texts)) for own, texts in rest]
    return prompt, turns


def read_trajectories(path: str | Path, name: str | None = None) -> pd.DataFrame:
    """Conversations by task and trial, one row each: task, trial, prompt, turns (of `turns_of`), correct (0 or 1).

    Args:
        path: a JSON list (.json) as published, or a record a line (.jsonl); both say the same.

    Raises:
        ValueError: a file or record that cannot be used, or a trial that stands there twice; the message names file,
            line (record of a list) and field.
    """
    path, seen = Path(path), set()

    def check(record: Any) -> str | None:
        problem = _logged(record)
        if problem:
            return problem
        key = (record["task_id"], record["trial"])
        if key in seen:
            return "`task_id` and `trial`: trial {1} of task {0} stands there twice".format(*key)
        seen.add(key)
        return None

    read = read_list if path.suffix == ".json" else read_records
    rows = []
    for record in read(path, name or f"{path.parent.name}/{path.name}", check):
        prompt, turns = turns_of(record["traj"])
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


def kept_tokens(turns: Sequence[Sequence[int]], limit: int | None) -> list[int]:
    """The last `limit` tokens (None: all) of turns that alternate, policy first and last.

    What is kept begins in a turn of the policy, even if it is a little less for that: so every token belongs to the
    side that it belonged to before the cut.
    """
    ids = list(itertools.chain(*turns))
    own = np.repeat(np.arange(len(turns)) % 2 == 0, [len(t) for t in turns])
    first = max(0, len(ids) - limit) if limit is not None else 0
    return ids[first + int(own[first:].argmax()) :]


def with_tokens(table: pd.DataFrame, tokenizer, max_tokens: int | None = None) -> tuple[pd.DataFrame, int]:
    """The table with `completion_ids` (turns, each closed by the end of sequence), and how many rows were cut.

    A text that spells the end of sequence does not end a turn: it is read as letters.
    """
    eos, rows, changed = tokenizer.eos_token_id, [], 0
    for turns in table["turns"]:
        found = tokenizer(list(turns), add_special_tokens=False, split_special_tokens=True).input_ids
        closed = [[*ids, eos] for ids in found]
        rows.append(kept_tokens(closed, max_tokens))
        changed += len(rows[-1]) < sum(map(len, closed))
    return table.assign(completion="", completion_ids=rows), changed


# ---- folds ----


def fold_of(tasks, folds: int, seed: int) -> np.ndarray:
    """(n,) the fold that each record's task is held out in: a seeded permutation of the tasks, folds of like size.

    Raises:
        ValueError: there are fewer tasks than folds.
    """
    names, codes = np.unique(np.asarray(tasks), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"real.trajectories.folds = {folds}, but there are {len(names)} tasks")
    place = np.empty(len(names), dtype=int)
    place[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return place[codes]


def split_by_task(table: pd.DataFrame, folds: int, fold: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records of training tasks and of those held out in a fold; all trials of a task go the same way."""
    held = fold_of(table["task"], folds, seed) == fold
    return table[~held].reset_index(drop=True), table[held].reset_index(drop=True)


# ---- what is run ----


@dataclass(frozen=True)
class TrajectoryBaseSpec:
    """Byte-level BPE and language-model warm-up on the training tasks of a fold; stores what `RealBaseSpec` stores."""

    policy: PolicySettings
    vocabulary: int
    passes: float
    seed: int  # of weights and folds
    folds: int
    fold: int
    trajectories: str  # file
    inputs = ("trajectories",)

    def execute(self, folder: Path, scratch: Path) -> None:
        training, held = split_by_task(read_trajectories(self.trajectories), self.folds, self.fold, self.seed)
        texts = itertools.chain(training["prompt"], *training["turns"])
        tokenizer = byte_level_tokenizer(texts, self.vocabulary)
        train, test = (stream_rows(whole(table, tokenizer)) for table in (training, held))
        store_backbone(folder, tokenizer, train, test, self.policy, self.passes, self.seed)


def whole(table: pd.DataFrame, tokenizer) -> list[list[int]]:
    """Token ids of whole conversations, prompt and all turns, nothing cut."""
    prompts = tokenizer(table["prompt"].tolist(), add_special_tokens=False, split_special_tokens=True).input_ids
    return [a + b for a, b in zip(prompts, with_tokens(table, tokenizer)[0]["completion_ids"], strict=True)]


@dataclass(frozen=True)
class TrajectoryCriticSpec:
    """A critic on the training tasks of a fold, outcomes as they are.

    Stores critic.safetensors, history.csv and held_out.safetensors: `quantiles` (conversations, 3, M) at the first,
    middle and last token of the agent's in held-out conversations.
    """

    critic: CriticSettings
    seed: int
    split_seed: int  # of the folds
    folds: int
    fold: int
    max_tokens: int
    trajectories: str  # file
    base: str  # folder of the fold's backbone
    inputs = ("trajectories", "base")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.base)
        table, _ = with_tokens(read_trajectories(self.trajectories), tokenizer, self.max_tokens)
        table["reward"] = table["correct"]
        training, held = split_by_task(table, self.folds, self.fold, self.split_seed)
        store_critic(folder, policy, tokenizer, training, held, self.critic, self.seed, batch_size=8)


def base_specs(cfg: RealSettings, seed: int, path: Path) -> list[TrajectoryBaseSpec]:
    """The backbone of every fold, by params.yaml."""
    own = cfg.trajectories
    policy = PolicySettings(
        hidden_size=own.hidden_size,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=2,
        intermediate_size=4 * own.hidden_size,
        batch_size=cfg.batch_size,
        learning_rate=cfg.language_model_learning_rate,
    )
    return [
        TrajectoryBaseSpec(policy, cfg.vocabulary, cfg.language_model_passes, seed, own.folds, fold, str(path))
        for fold in range(own.folds)
    ]


def critic_specs(
    cfg: RealSettings, critics: Mapping[str, CriticSettings], seed: int, path: Path, bases: Sequence[Path]
) -> dict[tuple[str, int, int], TrajectoryCriticSpec]:
    """{(critic, seed, fold): spec}: the tracked critics, their training as `cfg` says."""
    own = cfg.trajectories
    training = dict(
        learning_rate=cfg.critic_learning_rate,
        batch_size=own.batch_size,
        pretrain_epochs=own.critic_passes,
        pretrain_rollouts=0,
    )
    return {
        (name, s, fold): TrajectoryCriticSpec(
            dataclasses.replace(critic, **training), s, seed, own.folds, fold, own.max_tokens, str(path), str(base)
        )
        for name, critic in critics.items()
        for s in range(seed, seed + own.seeds)
        for fold, base in enumerate(bases)
    }
