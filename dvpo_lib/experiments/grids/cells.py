"""Cells of the studies of the evidence, and the run of a cell as specs. A *cell* is all that a run has but its seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from dvpo_lib.common.settings_tree import merge_trees
from dvpo_lib.experiments.specs.advantage_test import AdvantageTestSpec
from dvpo_lib.experiments.specs.base_test import BaseTestSpec, base_test_spec
from dvpo_lib.experiments.specs.critic_pretraining import CriticPretrainingSpec, critic_pretraining_spec
from dvpo_lib.experiments.specs.critic_test import CriticTestSpec
from dvpo_lib.experiments.specs.training import TrainingSpec, training_spec
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.noise.proxies import proxies_folder
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting.names import BASE


@dataclass(frozen=True)
class Cell:
    """All that a run has but its seed.

    Attributes:
        method: A row of `methods`, or BASE.
        noise: A row of `noises`, or the label of `source`.
        family: The family to train on.
        variant: Name of a change of the method; "" for none.
        training: Changes to `training`, on top of those of the method's row.
        critic: Settings of the critic; None for those of the method's row.
        source: The noise, if it is no row of `noises`.
        test: What the run tests: the trained policy; or, without training, the critic or the first batch's advantages.
    """

    method: str
    noise: str
    family: str
    variant: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    critic: CriticSettings | None = None
    source: NoiseSettings | None = None
    test: Literal["policy", "critic", "advantages"] = "policy"

    @property
    def labels(self) -> dict[str, str]:
        """The columns that identify the cell in tables."""
        return dict(method=self.method, variant=self.variant, noise=self.noise, family=self.family)


def cell_critic(params, cell: Cell) -> CriticSettings | None:
    """Settings of a cell's critic; None for a method without one."""
    return cell.critic or params.critics[params.methods[cell.method].critic]


def pretraining_of(params, cell: Cell, seed: int) -> CriticPretrainingSpec | None:
    """The pretraining of a cell's critic; None for a method without one, or for a critic that starts untrained."""
    critic = None if cell.method == BASE else cell_critic(params, cell)
    if critic is None or not critic.pretrain_rollouts:
        return None
    spec = critic_pretraining_spec(params, critic, _known_noise(params, cell), cell.family, seed)
    return spec if cell.source is None else dataclasses.replace(spec, noise=cell.source)


def run_of(params, cell: Cell, seed: int, critic_file: Path | None) -> TrainingSpec | BaseTestSpec | CriticTestSpec:
    """The run of a cell: its training, or the test that `cell.test` names; arguments as of `training_of`."""
    if cell.method == BASE:
        return dataclasses.replace(base_test_spec(params, cell.family), seed=seed)
    if cell.test == "critic":
        noise, critic = cell.source or params.noises[cell.noise], cell_critic(params, cell)
        proxies = proxies_folder(noise, cell.family)
        file = None if critic_file is None else str(critic_file)
        return CriticTestSpec(critic, file, noise, cell.family, seed, params.evaluation, proxies=proxies)
    spec = training_of(params, cell, seed, critic_file)
    return AdvantageTestSpec(**vars(spec), tasks=params.tasks) if cell.test == "advantages" else spec


def training_of(params, cell: Cell, seed: int, critic_file: Path | None) -> TrainingSpec:
    """The training of a cell.

    Args:
        params: The settings.
        cell: The cell.
        seed: Of the run.
        critic_file: Weights of the pretrained critic; None for a method without one, or an untrained critic.
    """
    changes = merge_trees(dict(params.methods[cell.method].training), dict(cell.training))
    noise, critic = _known_noise(params, cell), cell_critic(params, cell)
    spec = training_spec(params, cell.method, cell.method, noise, cell.family, seed, critic, critic_file, changes)
    return spec if cell.source is None else dataclasses.replace(spec, noise=cell.source, noise_name=cell.noise)


def _known_noise(params, cell: Cell) -> str:
    return cell.noise if cell.source is None else next(iter(params.noises))


def changed_critic(critic: CriticSettings, changes: Mapping[str, Any]) -> CriticSettings:
    """A critic with some settings replaced, nested ones by nested mappings."""
    return TypeAdapter(CriticSettings).validate_python(merge_trees(dataclasses.asdict(critic), dict(changes)))
