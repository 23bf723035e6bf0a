"""The table of sampled completions: the last generation batch with its rewards, printed and written with the logs."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable
from numbers import Number
from pathlib import Path
from typing import Any

import pandas as pd


class CompletionTable:
    """The latest completions, their rewards and advantages.

    Args:
        size: Rows that are kept.

    Attributes:
        columns: prompt, completion, advantages; `rewards` and `extra` hold further columns by name.
    """

    def __init__(self, size: int):
        def column():
            return deque(maxlen=size)

        self.columns: dict[str, Any] = {name: column() for name in ("prompt", "completion", "advantages")}
        self.columns |= {"rewards": defaultdict(column), "extra": defaultdict(column)}

    def add(self, prompts: Iterable, completions: Iterable, rewards: dict[str, Iterable], advantages: Iterable) -> None:
        """One generation batch, or a part of it."""
        for name, values in (("prompt", prompts), ("completion", completions), ("advantages", advantages)):
            self.columns[name].extend(values)
        for name, values in rewards.items():
            self.columns["rewards"][name].extend(values)

    def add_extra(self, name: str, values: Iterable) -> None:
        """A further column, for reward functions (`log_extra`)."""
        self.columns["extra"][name].extend(values)

    def table(self, step: int) -> pd.DataFrame:
        """One row per completion; conversations as JSON."""
        texts = {name: [_text(x) for x in self.columns[name]] for name in ("prompt", "completion")}
        others = {**self.columns["rewards"], **self.columns["extra"], "advantage": self.columns["advantages"]}
        rows = len(texts["prompt"])
        others = {
            name: [None] * (rows - len(values)) + _one_kind(list(values)[-rows:]) for name, values in others.items()
        }
        return pd.DataFrame({"step": [step] * rows, **texts, **others})

    def write(self, folder: Path, step: int, shown: int | None, trackers: Iterable[str]) -> None:
        """Prints the table and writes completions_STEP.parquet.

        Args:
            shown: Rows that are printed; None: all.
            trackers: Of `report_to`; wandb gets the table, too.
        """
        table = self.table(step)
        if table.empty:
            return
        print(table.head(shown).to_string(index=False, max_colwidth=60))
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"completions_{step:05d}.parquet")
        if "wandb" in trackers:
            import wandb

            if wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=table)})


def _one_kind(values: list) -> list:
    """Numbers as they are, else texts: a column of several kinds cannot be written."""
    return values if all(isinstance(x, Number | None) for x in values) else [_text(x) for x in values]


def _text(x) -> str:
    return x if isinstance(x, str) else json.dumps(x, ensure_ascii=False, default=str)
