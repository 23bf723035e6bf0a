"""Rules between several sections of params.yaml, checked before anything runs.

The range of a single setting is part of its settings class.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic

from dvpo_lib.common.settings_tree import cut_text
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.training_settings import TrainingSettings, with_changes
from dvpo_lib.tasks.chains import STEP_LETTERS
from dvpo_lib.tasks.families import FAMILIES

SET_BY_THE_CHAIN = {  # settings of a training run that have another place in params.yaml
    "method": "rows of `methods`",
    "critic": "rows of `critics`",
    "seed": "`seed` and `seeds`",
    "max_steps": "`budget` divided by `training.generation_batch_size`",
    "max_completion_length": "the length of the family's problems",
}

ROW_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
UNREADABLE_NAMES = {"none", "null", "nan", "na", "inf", "infinity", "true", "false"}  # by readers of CSV files
NONE_MEANS = {"noises": "the row without noise", "critics": "the row of methods without a critic, null"}

Problem = tuple[tuple, str]  # location (keys from the root) and message


def unusable_values(values: Mapping[str, Any], tables: Iterable[str]) -> Iterator[Problem]:
    """Yields values that no settings class could hold, and rows that no file or report could name.

    Args:
        values: The settings before validation.
        tables: The sections that are tables of named rows.
    """
    for name, value in values.items():
        if value is None:
            yield (name,), "this section is empty; {} stands for its defaults"
        if name in tables and isinstance(value, Mapping):
            for row in value:
                if problem := _name_problem(name, row, value[row]):
                    yield (name, row), problem
        yield from _unusable(value, (name,))


def _unusable(value: Any, location: tuple) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _unusable(below, (*location, key))
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from _unusable(below, (*location, place))
    elif not isinstance(value, (str, int, float, bool, type(None))):
        yield location, f"a {type(value).__name__} is no setting: {cut_text(str(value))}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield location, f"should be a finite number, not {value}"
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        yield location, f"holds a lone surrogate: {cut_text(ascii(value))}"


def _name_problem(table: str, row: str, value: Any) -> str | None:
    """Why a row cannot bear its name in files and reports; None if it can."""
    if not ROW_NAME.fullmatch(row):
        return "a row is named by at most 40 letters, digits and underscores, the first of them a letter"
    if row == "none":  # in reports, "without noise" and "no critic"
        kind = value.get("kind", "none") if isinstance(value, Mapping) else value
        wanted = {"noises": "none", "critics": None}.get(table)
        return None if kind in (wanted, None) else f"the name `none` belongs to {NONE_MEANS.get(table, 'no row here')}"
    if row.lower() in UNREADABLE_NAMES:
        return f"tables would read the name `{row}` as a missing value, a number or a truth value"
    if (table, row) == ("critics", "constant"):
        return "the name `constant` belongs to the baseline without a critic"
    return None


def contradictions(params: Any) -> Iterator[Problem]:
    """Yields every problem.

    Args:
        params: All sections, validated one by one.
    """
    yield from _lists(params)
    yield from _methods(params)
    yield from _critics(params)
    yield from _budget(params)
    yield from _tasks(params)
    yield from _noises(params)


def _lists(params) -> Iterator[Problem]:
    for key in ("families", "train_noises"):
        listed = getattr(params, key)
        for i, name in enumerate(listed):
            if name in listed[:i]:
                yield (key,), f"`{name}` is listed twice"


def _noises(params) -> Iterator[Problem]:
    for name, noise in params.noises.items():
        if noise is None:
            yield ("noises", name), "this row is empty: give it a `kind` or delete it"
    used = {name: ("train_noises",) for name in params.train_noises} | {params.ablation.noise: ("ablation", "noise")}
    for name, where in used.items():
        noise = params.noises.get(name)
        for family in params.families if noise is not None and "majority_vote" in noise.proxies else ():
            if FAMILIES[family].answer_of is None:
                yield where, f"`{name}` needs a majority vote, but {family} has no single answers to vote on"


def _methods(params) -> Iterator[Problem]:
    for name, row in params.methods.items():
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else f"; known methods: {', '.join(METHODS)}"
            yield ("methods", name), f"unknown method{hint}"
            continue
        critic, needed = params.critics.get(row.critic), METHODS[name].critic
        kind = critic.kind if critic is not None else None
        if kind != needed:
            yield (
                ("methods", name, "critic"),
                f"{name} needs {f'a {needed} critic' if needed else 'no critic'}; "
                f"critics.{row.critic} is {f'a {kind} one' if kind else 'null'}",
            )
            continue
        for key in row.training.keys() & SET_BY_THE_CHAIN:
            yield ("methods", name, "training", key), f"is not set here but by {SET_BY_THE_CHAIN[key]}"
        try:
            config = with_changes(params.training, row.training)
        except ValueError as error:  # pydantic's own errors are ValueErrors too
            yield ("methods", name, "training"), _first_line(error)
            continue
        clip = config.reward_clip if METHODS[name].clip_rewards else 0.0
        if critic is not None and critic.reward_clip != clip:
            yield (
                ("critics", row.critic, "reward_clip"),
                f"should be {clip:g}, because {name} {'clips rewards so' if clip else 'does not clip rewards'}",
            )


def _first_line(error: ValueError) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {cut_text(repr(first['input']))}"
    return cut_text(str(error), 400)


def _critics(params) -> Iterator[Problem]:
    for name in ("scalar", "quantile"):  # compared by notebooks 02 and 04
        critic = params.critics.get(name) if name in params.critics else None
        if critic is None or critic.kind != name:
            yield ("critics", name), f"notebooks 02 and 04 need this row, with kind {name}"
    for name, critic in params.critics.items():
        for key in ("pretrain_rollouts", "pretrain_epochs"):
            if critic is not None and getattr(critic, key) < 1:
                yield ("critics", name, key), "should be at least 1: notebook 02 pretrains every critic"


def _budget(params) -> Iterator[Problem]:
    configs = dict(_configs(params))
    for method, config in configs.items():
        size, group = config.generation_batch_size, config.num_generations
        if size % group and METHODS[method].groups:
            own = {"generation_batch_size", "num_generations"} & params.methods[method].training.keys()
            where = ("methods", method, "training") if own else ("training", "generation_batch_size")
            yield where, f"{size} is not a multiple of num_generations {group}"
        parts = config.num_mini_batches * config.gradient_accumulation_steps
        if size % parts:
            where = ("training", "generation_batch_size")
            yield where, f"{size} is not a multiple of num_mini_batches * gradient_accumulation_steps {parts}"
    for method, config in configs.items():
        name, size = params.methods[method].critic, config.generation_batch_size
        critic = params.critics.get(name) if name in params.critics else None
        left = params.budget - (critic.pretrain_rollouts if critic else 0)
        if left < size or left % size:
            spent = f"the budget less the {critic.pretrain_rollouts} of critics.{name}" if critic else "the budget"
            yield ("budget",), f"{spent} is {left} rollouts, not a multiple of the batch size {size}"


def _configs(params) -> Iterator[tuple[str, TrainingSettings]]:
    """The training settings of every method that has valid ones."""
    for method, row in params.methods.items():
        with contextlib.suppress(ValueError):  # `_methods` reports it
            if method in METHODS:
                yield method, with_changes(params.training, row.training)


def _tasks(params) -> Iterator[Problem]:
    taking_part = params.tasks.families
    for i, family in enumerate(params.families):
        if family not in taking_part:
            yield ("families", i), f"{family} does not take part: tasks.{family} is null"
    kinds = {FAMILIES[family].published for family in taking_part}
    if len(kinds) != 1:
        yield ("tasks",), "generated and published families do not go together: set those of one kind to null"
    elif kinds == {True} and params.policy.name_or_path is None:
        yield ("policy", "name_or_path"), f"{', '.join(taking_part)}: published families need a pretrained policy"
    for family in ("math", "science"):
        cfg = getattr(params.tasks, family)
        for key in ("short", "long") if cfg else ():
            first, last = getattr(cfg, key)
            if not 1 <= first <= last <= len(STEP_LETTERS):
                most = len(STEP_LETTERS)
                yield ("tasks", family, key), f"should be 1 <= first <= last <= {most} steps, not {first}, {last}"
