"""Malformed data files: published data sets in every format, and the files of the project's own readers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pandas as pd
from datasets import Dataset

from dvpo_lib.experiments.real.solutions.data import GENERATORS, read_solutions, read_worked_problems
from dvpo_lib.experiments.real.trajectories.data import read_trajectories
from dvpo_lib.noise.pseudo_labels import load_labels
from dvpo_lib.tasks.published.datasets import load_problems
from dvpo_lib.tasks.published.files import SourceError
from dvpo_lib.tasks.suites import load_suites
from malformed import Case
from malformed.mutations import json_text, mutate_bytes, mutate_tree

TURNS = [
    {
        "speaker": "USER",
        "utterance": "A table for two",
        "frames": [{"service": "R", "actions": [{"act": "INFORM", "slot": "size", "values": ["2"]}]}],
    },
    {"speaker": "SYSTEM", "utterance": "Where?", "frames": [{"service": "R", "actions": []}]},
]
GOOD = {  # source: (split, records)
    "gsm8k": ("train", [{"question": f"What is {i} + 1?", "answer": f"So.\n#### {i + 1}"} for i in range(4)]),
    "math500": ("test", [{"problem": "Halve one.", "answer": r"\frac{1}{2}"}, {"problem": "é ☃", "answer": "3.50"}]),
    "light_r1": (
        "train",
        [{"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": r"\boxed{4}"}]}] * 2,
    ),
    "mmlu": ("test", [{"question": "Mass?", "subject": "astronomy", "choices": ["a", "b", "c", "d"], "answer": 2}] * 2),
    "supergpqa": ("train", [{"question": "Which?", "options": ["a", "b", "c"], "answer_letter": "B"}] * 2),
    "sgd": ("train", [{"services": ["R"], "turns": TURNS}] * 2),
}
NAMED = r"record \d|line \d|header|column|cannot be read|is empty|no problem of|list of records|not valid|nested|twice|"


class DataFileCases:
    """Files of published data sets, given to `load_problems`."""

    def __init__(self, folder: Path):
        self.folder = folder / "data"
        self.folder.mkdir(exist_ok=True)

    def __call__(self, rng: random.Random) -> Case:
        source = rng.choice(list(GOOD))
        split, good = GOOD[source]
        ending = rng.choice((".jsonl", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz"))
        records = mutate_tree(good, rng) if rng.random() < 0.6 else good
        raw = write_records(records, ending, rng)
        if records is good or rng.random() < 0.1:
            raw = mutate_bytes(raw, rng)
        if ending.endswith(".gz"):
            raw = _compressed(raw, rng)
        path = self.folder / f"{split}{ending}"
        path.write_bytes(raw)
        shown = f"{source} {ending} {raw if len(raw) < 400 else raw[:400]!r}"
        names = rf"(?s){path.name}: .*({NAMED}an object is expected)"
        return Case(shown, lambda: load_problems(source, split, path), (SourceError,), names, _are_problems)


def _are_problems(table) -> None:
    assert isinstance(table, Dataset) and len(table)
    for row in table:
        assert row["prompt"].strip() and row["answer"].strip(), row


def write_records(records, ending: str, rng: random.Random) -> bytes:
    """Records in the format of an ending; what the format cannot hold becomes text."""
    kind = ending.removesuffix(".gz")
    rows = records if isinstance(records, list) else [records]
    if kind == ".jsonl":
        end = rng.choice(("\n", "\n", "\r\n", "\n\n", "\r"))
        return "".join(json_text(record, rng) + end for record in rows).encode("utf-8", "surrogatepass")
    if kind == ".json":
        return json_text(records, rng).encode("utf-8", "surrogatepass")
    table = [row if isinstance(row, dict) else {"value": row} for row in rows]
    if kind == ".csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator=rng.choice(("\n", "\r\n")))
        writer.writerow(map(str, table[0]) if table else [])
        for row in table:
            writer.writerow(v if isinstance(v, str) else json.dumps(v, default=str) for v in row.values())
        return out.getvalue().encode("utf-8", "surrogatepass")
    out = io.BytesIO()
    try:
        pd.DataFrame(table).to_parquet(out)
    except Exception:  # pyarrow gives a column one type
        text = [{ascii(k)[1:-1]: json.dumps(v, default=str) for k, v in row.items()} for row in table]
        pd.DataFrame(text).to_parquet(out)
    return out.getvalue()


def _compressed(raw: bytes, rng: random.Random) -> bytes:
    chance = rng.random()
    if chance < 0.1:
        return raw  # no gzip at all
    packed = gzip.compress(raw)
    if chance < 0.13:
        return gzip.compress(raw[:20] + bytes(70 * 2**20))  # a bomb: 70 MB of zeros in 70 kB
    if chance < 0.3:
        return gzip.compress(packed)
    if chance < 0.4:
        return packed + packed[: rng.randrange(len(packed))]
    return mutate_bytes(packed, rng, most=1) if chance < 0.6 else packed


WORKED = {"question": "What is 1 + 1?", "answer": "#### 2"}
SOLVED = {"question": "What is 1 + 1?", "ground_truth": "2"} | {
    name: {"solution": "A: 2", "is_correct": True} for name in GENERATORS
}
CALL = {"function": {"name": "book", "arguments": '{"a": 1}'}}
LOGGED = [
    {
        "task_id": 0,
        "trial": trial,
        "reward": 1.0,
        "traj": [
            {"role": "user", "content": "Book it"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "Booked"},
        ],
    }
    for trial in range(2)
]
LABEL = {"prompt": "math 1 +1 ?", "label": "2", "agreement": 0.5}
PROBLEM = {"prompt": "math 1 +1 ?", "answer": "2", "steps": 1, "family": "math"}


class RealFileCases:
    """Files of real outcomes, pseudo-labels and suites, given to their readers."""

    def __init__(self, folder: Path):
        self.folder = folder / "suites" / "math"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.readers = [
            ("worked.jsonl", [WORKED] * 2, lambda path: read_worked_problems(path, path.name)),
            ("solutions.jsonl", [SOLVED] * 2, lambda path: read_solutions(path, path.name)),
            ("logged.jsonl", LOGGED, lambda path: read_trajectories(path, path.name)),
            ("logged.json", LOGGED, lambda path: read_trajectories(path, path.name)),
            ("labels.jsonl", [LABEL] * 2, load_labels),
            ("train.jsonl", [PROBLEM] * 2, lambda path: load_suites(path.parents[1], ("train",))),
        ]

    def __call__(self, rng: random.Random) -> Case:
        name, good, read = rng.choice(self.readers)
        records = mutate_tree(good, rng) if rng.random() < 0.6 else good
        raw = write_records(records, Path(name).suffix, rng)
        if records is good or rng.random() < 0.1:
            raw = mutate_bytes(raw, rng)
        path = self.folder / name
        path.write_bytes(raw)
        names = rf"{name}(:\d+)?: "
        return Case(f"{name} {raw[:400]!r}", lambda: read(path), (ValueError,), names, lambda table: _has_rows(table))


def _has_rows(table) -> None:
    assert len(table) >= 1
