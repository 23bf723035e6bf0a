"""Progress of a training run, and its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class TrainerState:
    """Progress of a run: `global_step` iterations are done, `log_history` holds one record for each."""

    global_step: int = 0
    log_history: list[dict] = field(default_factory=list)


def write_whole(state: dict, path: str | Path) -> None:
    """Writes a state beside `path` and renames it, so that a file under this name is always whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(path).with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)
