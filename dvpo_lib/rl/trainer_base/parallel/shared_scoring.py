"""Scoring by several processes: each its own rows, or the main process all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from dvpo_lib.rl.rewards import Scores, score_completions
from dvpo_lib.rl.trainer_base.parallel.processes import Processes

Note = tuple[str, str, Any]  # what a reward function logs: log_metric or log_extra, name, value


def score_on_processes(
    processes: Processes,
    once: bool,
    heard: bool,
    funcs: Mapping[str, Callable],
    prompts: list,
    completions: list,
    columns: dict[str, Any],
    state: Any = None,
    weights: Sequence[float] | None = None,
) -> tuple[Scores, list[Note]]:
    """`score_completions` of this process' rows, and what functions log in all processes.

    Args:
        processes: All take part.
        once: The main process scores the rows of all.
        heard: Whether what functions log for these rows counts.
        funcs, prompts, completions, columns, state, weights: As of `score_completions`.

    Raises (if a function fails in one process, all do):
        RewardError: If a function raises, or returns anything but a reward for each completion.
        OtherProcessError: If that happened in another process.
    """
    notes: list[Note] = []
    helpers = {
        "log_metric": lambda name, value: notes.append(("log_metric", name, float(value))),
        "log_extra": lambda name, values: notes.append(("log_extra", name, list(values))),
    }
    if not once or processes.count == 1:
        with processes.together():
            scores = score_completions(funcs, prompts, completions, columns | helpers, state, weights)
        return scores, [note for own in processes.gather_objects(notes if heard else []) for note in own]
    parts = processes.gather_objects((prompts, completions, columns))
    ends, scores = list(accumulate(len(part[0]) for part in parts)), None
    with processes.together():
        if processes.is_main:
            joined = {name: [x for part in parts for x in part[2][name]] for name in columns}
            texts = ([x for part in parts for x in part[place]] for place in (0, 1))
            scores = score_completions(funcs, *texts, joined | helpers, state, weights)
    scores, notes = processes.gather_objects((scores, notes))[0]
    rows = slice(ends[processes.index] - len(prompts), ends[processes.index])
    process = None if scores.process is None else scores.process[rows]
    return Scores(scores.rewards[rows], {name: x[rows] for name, x in scores.by_function.items()}, process), notes
