"""The studies of the evidence: which cells each has, and the run of a cell as specs.

A *cell* is all that a run has but its seed. Cells that a claim rests on get `CLAIMED` seeds: those of a study that
decides claims, in the first family. All others get `SHOWN`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dvpo_lib.common.settings_tree import merge_trees
from dvpo_lib.experiments.grids.ablation import ablation_rows
from dvpo_lib.experiments.specs.base_test import BaseTestSpec, base_test_spec
from dvpo_lib.experiments.specs.critic_pretraining import CriticPretrainingSpec, critic_pretraining_spec
from dvpo_lib.experiments.specs.critic_test import CriticTestSpec
from dvpo_lib.experiments.specs.training import TrainingSpec, training_spec
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.noise.proxies import proxies_folder
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting.names import BASE, setting_text

NOISES = ("spikes", "none", "reward_model", "flip", "prompt_spikes", "missing", "majority_vote")
NOISY = ("spikes", "reward_model")  # of the ablations
CLAIMED = 10  # seeds of a cell that a claim rests on
SHOWN = 5  # seeds of a cell that is only shown


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
        critic_alone: The run tests the pretrained critic, and trains no policy.
    """

    method: str
    noise: str
    family: str
    variant: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    critic: CriticSettings | None = None
    source: NoiseSettings | None = None
    critic_alone: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """The columns that identify the cell in tables."""
        return dict(method=self.method, variant=self.variant, noise=self.noise, family=self.family)


@dataclass(frozen=True)
class Study:
    """A question, and the cells that answer it.

    Attributes:
        question: What it asks.
        cells: (params) -> its cells.
        decides: Whether claims rest on its cells in the first family.
        profile: The file profiles/NAME.yaml that holds its settings and its base policy.
    """

    question: str
    cells: Callable[[Any], Iterator[Cell]]
    decides: bool = False
    profile: str = "full"


def cell_critic(params, cell: Cell) -> CriticSettings | None:
    """Settings of a cell's critic; None for a method without one."""
    return cell.critic or params.critics[params.methods[cell.method].critic]


def pretraining_of(params, cell: Cell, seed: int) -> CriticPretrainingSpec | None:
    """The pretraining of a cell's critic; None for a method without one."""
    critic = None if cell.method == BASE else cell_critic(params, cell)
    if critic is None:
        return None
    spec = critic_pretraining_spec(params, critic, _known_noise(params, cell), cell.family, seed)
    return spec if cell.source is None else dataclasses.replace(spec, noise=cell.source)


def run_of(params, cell: Cell, seed: int, critic_file: Path | None) -> TrainingSpec | BaseTestSpec | CriticTestSpec:
    """The run of a cell: its training, or the test of the base policy or of a critic; arguments as of `training_of`."""
    if cell.method == BASE:
        return dataclasses.replace(base_test_spec(params, cell.family), seed=seed)
    if cell.critic_alone:
        noise, critic = cell.source or params.noises[cell.noise], cell_critic(params, cell)
        proxies = proxies_folder(noise, cell.family)
        return CriticTestSpec(critic, str(critic_file), noise, cell.family, seed, params.evaluation, proxies=proxies)
    return training_of(params, cell, seed, critic_file)


def training_of(params, cell: Cell, seed: int, critic_file: Path | None) -> TrainingSpec:
    """The training of a cell.

    Args:
        params: The settings.
        cell: The cell.
        seed: Of the run.
        critic_file: Weights of the pretrained critic; None for a method without one.
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


# ---- the cells of each study ----


def _at_one_rate(cells: Callable[[Any], Iterator[Cell]]) -> Callable[[Any], Iterator[Cell]]:
    """The same cells, all with the learning rate of `training`: those that tuning chose differ between methods."""

    def held(params) -> Iterator[Cell]:
        rate = {"learning_rate": params.training.learning_rate}
        yield from (dataclasses.replace(cell, training=rate | dict(cell.training)) for cell in cells(params))

    return held


def _comparison(params) -> Iterator[Cell]:
    for noise in NOISES:
        for family in params.families:
            if noise == "none":
                yield Cell(BASE, noise, family)
            if (noise, family) == ("majority_vote", "dialogue"):
                continue  # a dialogue has no answer to vote on
            yield from (Cell(method, noise, family) for method in params.methods)


def _sizes(params) -> Iterator[Cell]:
    for noise in ("none", *NOISY):
        yield from (Cell(method, noise, params.families[0]) for method in params.methods)


def _learning_rates(params) -> Iterator[Cell]:
    for noise in ("none", "flip", *NOISY):
        for method in ("dvpo", "ppo", "grpo"):
            for rate in (1e-4, 2e-4):
                changes = {"learning_rate": rate}
                yield Cell(method, noise, params.families[0], f"learning rate {setting_text(rate)}", changes)


def _ablation(params) -> Iterator[Cell]:
    for variant, critic in ablation_rows(params.critics["quantile"], leave_one_out=True).items():
        yield from (Cell("dvpo", noise, params.families[0], variant, critic=critic) for noise in NOISY)


def _critic_variants(params, changes: Mapping[str, Mapping[str, Any]], noises=NOISY, method="dvpo") -> Iterator[Cell]:
    own = params.critics[params.methods[method].critic]
    for variant, change in changes.items():
        critic = changed_critic(own, change)
        yield from (Cell(method, noise, params.families[0], variant, critic=critic) for noise in noises)


def _quantile_counts(params) -> Iterator[Cell]:
    return _critic_variants(params, {f"M = {m}": {"quantiles": m} for m in (10, 25, 50, 100, 200, 500)})


def _risk_weights(params) -> Iterator[Cell]:
    terms = ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
    loss = dataclasses.asdict(params.critics["quantile"].loss)
    masses = {f"tail mass {w}": {"loss": {"lower_mass": w, "upper_mass": w}} for w in (0.05, 0.1, 0.2, 0.45)}
    weights = {
        f"term weights x {w / 0.1:g}": {"loss": {term: loss[term] * w / 0.1 for term in terms}}
        for w in (0.0, 0.05, 0.1, 0.2, 0.5)
    }
    return _critic_variants(params, masses | weights)


def _heads(params) -> Iterator[Cell]:
    changes = {f"{n} head{'s' * (n > 1)}": {"heads": n} for n in (1, 2, 3, 5)} | {
        "3 heads, equal weights": {"bootstrap": "equal"}
    }
    return _critic_variants(params, changes)


def _breakdown(params) -> Iterator[Cell]:
    family, spikes = params.families[0], params.noises["spikes"]
    for rate in (0.05, 0.1, 0.2, 0.3, 0.4):
        noise = dict(noise=f"spikes {rate:g}", family=family, source=dataclasses.replace(spikes, rate=rate))
        for level in (0.02, 0.05, 0.1, 0.2, 0.3):
            readout = {"readout": {"level_low": level, "level_up": level}}
            yield Cell("dvpo_winsorised", variant=f"level {level:g}", training=readout, **noise)
            yield Cell("ppo_clip_reward", variant=f"level {level:g}", training={"reward_clip": level}, **noise)


def _lambdas(params) -> Iterator[Cell]:
    family, budget = params.families[0], (0, 512, 1024, 2048)
    for method in ("dvpo", "ppo"):
        own = params.critics[params.methods[method].critic]
        for lam in (0.0, 0.5, 0.8, 0.95, 1.0):
            yield Cell(method, "flip", family, f"lambda of the actor {lam:g}", {"lam": lam})
        for lam in (0.8, 0.95, 1.0):
            yield Cell(method, "flip", family, f"lambda of the critic {lam:g}", {"lam_critic": lam})
        for rollouts in budget:
            critic = changed_critic(own, {"pretrain_rollouts": rollouts})
            yield Cell(method, "flip", family, f"{rollouts} pretraining rollouts", critic=critic)


def _targets(params) -> Iterator[Cell]:
    for noise in NOISY:
        for target in ("comonotone", "mixture"):
            for lam in (0.8, 0.95):
                changes = {"target": target, "lam_critic": lam}
                yield Cell("dvpo", noise, params.families[0], f"{target}, lambda {lam:g}", changes)


def _readouts(params) -> Iterator[Cell]:
    distorted = {
        "CVaR 0.5": {"kind": "distorted", "distortion": "cvar", "alpha": 0.5},
        "Wang 0.5": {"kind": "distorted", "distortion": "wang", "strength": 0.5},
        "Wang -0.5": {"kind": "distorted", "distortion": "wang", "strength": -0.5},
    }
    for noise in ("none", "flip", *NOISY):
        for variant, readout in {"mean": {"kind": "mean"}, **distorted}.items():
            yield Cell("dvpo", noise, params.families[0], variant, {"readout": readout})


def _denoised(params) -> Iterator[Cell]:
    critics = {
        ("dvpo", "quantile"): changed_critic(params.critics["quantile"], {"final_state": True}),
        ("ppo", "scalar"): changed_critic(params.critics["scalar"], {"final_state": True}),
    }
    for noise in ("none", "flip", "spikes", "reward_model"):
        for (method, kind), critic in critics.items():
            for weight in (0.0, 0.2, 0.5, 1.0):
                for centre in ("median", "trimmed_mean", "mean") if method == "dvpo" and weight == 0 else ("median",):
                    readout = {"readout": {"kind": "denoised", "weight": weight, "centre": centre}}
                    variant = f"{kind}, {centre.replace('_', ' ')}, weight {weight:g}"
                    yield Cell(method, noise, params.families[0], variant, readout, critic)
        for weight in (0.0, 0.2, 0.5):  # a control without a critic's view; at weight 1 it is ppo
            readout = {"readout": {"kind": "denoised", "weight": weight, "centre": "prompt_mean"}}
            yield Cell("ppo", noise, params.families[0], f"scalar, prompt mean, weight {weight:g}", readout)


def _critic_kinds(params) -> Iterator[Cell]:
    own = params.critics["quantile"]
    bins = {"kind": "categorical", "bins": 201, "loss": {}}
    for noise in ("none", "flip", *NOISY):
        yield Cell("dvpo", noise, params.families[0], "quantiles")
        yield Cell("dvpo", noise, params.families[0], "categorical", critic=changed_critic(own, bins))
        yield Cell("ppo", noise, params.families[0], "scalar")


def _calibration(params) -> Iterator[Cell]:
    rates = {"flip": (0.0, 0.1, 0.2, 0.3, 0.4, 0.45), "spikes": (0.05, 0.1, 0.2, 0.3, 0.4)}
    for noise, own in rates.items():
        for rate in own:
            source = dataclasses.replace(params.noises[noise], rate=rate)
            for method in ("dvpo", "ppo"):
                yield Cell(method, f"{noise} {rate:g}", params.families[0], source=source, critic_alone=True)


STUDIES: dict[str, Study] = {
    "comparison": Study("Which method learns best under which noise, in every family?", _comparison, decides=True),
    "sizes": Study("Does the order of methods hold for a larger policy?", _sizes, profile="large"),
    "learning_rates": Study("Is a lead over PPO or GRPO a matter of the learning rate?", _learning_rates, decides=True),
    "ablation": Study("Does each term of the critic's loss help?", _ablation, decides=True),
    "quantile_counts": Study("How many quantiles are needed?", _quantile_counts, decides=True),
    "risk_weights": Study("Is a risk interval weight of 0.1 best, in either reading?", _risk_weights, decides=True),
    "heads": Study("How many heads, and how should they be weighted?", _heads),
    "breakdown": Study("Which winsorising level survives which rate of spikes?", _at_one_rate(_breakdown)),
    "lambdas": Study(
        "Does a lower lambda pay under flips, and how much pretraining does it take?", _at_one_rate(_lambdas)
    ),
    "targets": Study("Comonotone or mixture targets?", _targets),
    "readouts": Study("Which statistic of the distribution should the actor see?", _readouts),
    "denoised": Study("When does it pay to learn from the critic's view of a reward?", _at_one_rate(_denoised)),
    "critic_kinds": Study("Is it quantiles, or distributions, or the loss?", _at_one_rate(_critic_kinds), decides=True),
    "calibration": Study("What do critics know before training, at which rate of noise?", _calibration),
}
