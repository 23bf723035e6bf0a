"""The studies of the evidence: what each asks, and which cells answer it.

Cells that a claim rests on get `CLAIMED` seeds: those that a study names, in the first family. All others get `SHOWN`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from dvpo_lib.experiments.grids.ablation import ablation_rows
from dvpo_lib.experiments.grids.cells import Cell, changed_critic
from dvpo_lib.reporting.names import BASE, setting_text

NOISES = ("spikes", "none", "reward_model", "flip", "prompt_spikes", "missing", "majority_vote")
FOUR_NOISES = ("none", "flip", "spikes", "reward_model")  # of studies that ask about kinds of noise
NOISY = ("spikes", "reward_model")  # of the ablations
CLAIMED = 10  # seeds of a cell that a claim rests on
SHOWN = 5  # seeds of a cell that is only shown


def every_cell(cell: Cell) -> bool:
    """Claims rest on all cells of a study."""
    return True


def no_cell(cell: Cell) -> bool:
    """No claim rests on a study."""
    return False


@dataclass(frozen=True)
class Study:
    """A question, and the cells that answer it.

    Attributes:
        question: What it asks.
        cells: (params) -> its cells.
        decides: (cell) -> whether a claim rests on it, if it is of the first family.
        profile: The file profiles/NAME.yaml that holds its settings and its base policy.
    """

    question: str
    cells: Callable[[Any], Iterator[Cell]]
    decides: Callable[[Cell], bool] = no_cell
    profile: str = "full"


def with_equal_updates(cells: Callable[[Any], Iterator[Cell]]) -> Callable[[Any], Iterator[Cell]]:
    """The same cells, all with the learning rate and clip range of `training`: tuning chose them for each method."""

    def held(params) -> Iterator[Cell]:
        own = {name: getattr(params.training, name) for name in ("learning_rate", "epsilon")}
        yield from (dataclasses.replace(cell, training=own | dict(cell.training)) for cell in cells(params))

    return held


# ---- which method learns best ----


def _comparison(params) -> Iterator[Cell]:
    for noise in NOISES:
        for family in params.families:
            if noise == "none":
                yield Cell(BASE, noise, family)
            if (noise, family) == ("majority_vote", "dialogue"):
                continue  # a dialogue has no answer to vote on
            yield from (Cell(method, noise, family) for method in params.methods)


def _sizes(params) -> Iterator[Cell]:
    yield Cell(BASE, "none", params.families[0])
    for noise in ("none", *NOISY):
        yield from (Cell(method, noise, params.families[0]) for method in params.methods)


def _learning_rates(params) -> Iterator[Cell]:
    for noise, method, rate in product(FOUR_NOISES, ("dvpo", "ppo", "grpo"), (1e-4, 2e-4)):
        changes = {"learning_rate": rate}
        yield Cell(method, noise, params.families[0], f"learning rate {setting_text(rate)}", changes)


# ---- the critic ----


def _ablation(params) -> Iterator[Cell]:
    for variant, critic in ablation_rows(params.critics["quantile"], leave_one_out=True).items():
        yield from (Cell("dvpo", noise, params.families[0], variant, critic=critic) for noise in NOISY)


def _critic_variants(params, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
    for variant, change in changes.items():
        critic = changed_critic(params.critics["quantile"], change)
        yield from (Cell("dvpo", noise, params.families[0], variant, critic=critic) for noise in NOISY)


def _quantile_counts(params) -> Iterator[Cell]:
    return _critic_variants(params, {f"M = {m}": {"quantiles": m} for m in (10, 25, 50, 100, 200, 500)})


def _risk_weights(params) -> Iterator[Cell]:
    terms = ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
    loss = dataclasses.asdict(params.critics["quantile"].loss)
    masses = {f"tail mass {w}": {"loss": {"lower_mass": w, "upper_mass": w}} for w in (0.05, 0.1, 0.2, 0.45)}
    weights = {
        f"term weights x {w / 0.1:g}": {"loss": {term: loss[term] * w / 0.1 for term in terms}}
        for w in (0.0, 0.05, 0.2, 0.5)
    }
    return _critic_variants(params, masses | weights | {"term weights x 1": {}})  # the default, to the last bit


def _heads(params) -> Iterator[Cell]:
    changes = {f"{n} head{'s' * (n > 1)}": {"heads": n} for n in (1, 2, 3, 5)} | {
        "3 heads, equal weights": {"bootstrap": "equal"}
    }
    return _critic_variants(params, changes)


def _critic_kinds(params) -> Iterator[Cell]:
    own = params.critics["quantile"]
    bins = {"kind": "categorical", "bins": 201, "loss": {}}
    for noise in FOUR_NOISES:
        yield Cell("dvpo", noise, params.families[0], "quantiles")
        yield Cell("dvpo", noise, params.families[0], "categorical", critic=changed_critic(own, bins))
        yield Cell("ppo", noise, params.families[0], "scalar")


def _calibration(params) -> Iterator[Cell]:
    rates = {"flip": (0.0, 0.1, 0.2, 0.3, 0.4, 0.45), "spikes": (0.05, 0.1, 0.2, 0.3, 0.4)}
    for noise, own in rates.items():
        for rate, method in product(own, ("dvpo", "ppo")):
            yield Cell(method, **_at_rate(params, noise, rate), test="critic")


def _wrong_steps(params) -> Iterator[Cell]:
    for noise, method in product(FOUR_NOISES, ("dvpo", "ppo", "robust_ppo")):
        yield Cell(method, noise, params.families[0], test="advantages")


def _at_rate(params, noise: str, rate: float) -> dict[str, Any]:
    source = dataclasses.replace(params.noises[noise], rate=rate)
    return dict(noise=f"{noise} {rate:g}", family=params.families[0], source=source)


# ---- estimators: lambda, targets, read-outs, denoised rewards ----


def _breakdown(params) -> Iterator[Cell]:
    for rate in (0.05, 0.1, 0.2, 0.3, 0.4):
        noise = _at_rate(params, "spikes", rate)
        yield Cell("dvpo", variant="not cut", **noise)
        yield Cell("ppo", variant="not cut", **noise)
        for level in (0.05, 0.1, 0.2, 0.3):
            readout = {"readout": {"level_low": level, "level_up": level}}
            yield Cell("dvpo_winsorised", variant=f"level {level:g}", training=readout, **noise)
            critic = changed_critic(params.critics["scalar_clipped"], {"reward_clip": level})
            clip = {"reward_clip": level}
            yield Cell("ppo_clip_reward", variant=f"level {level:g}", training=clip, critic=critic, **noise)


def _lambdas(params) -> Iterator[Cell]:
    family = params.families[0]
    for method in ("dvpo", "ppo"):
        own = params.critics[params.methods[method].critic]
        for lam in (0.0, 0.5, 0.8, 0.95, 1.0):
            yield Cell(method, "flip", family, f"lambda of the actor {lam:g}", {"lam": lam})
        for lam in (0.8, 0.95, 1.0):
            yield Cell(method, "flip", family, f"lambda of the critic {lam:g}", {"lam_critic": lam})
        for rollouts in (0, 512, 1024, 2048):
            critic = changed_critic(own, {"pretrain_rollouts": rollouts})
            yield Cell(method, "flip", family, f"{rollouts} pretraining rollouts", critic=critic)


def _targets(params) -> Iterator[Cell]:
    for noise in NOISY:
        for target, lam in product(("comonotone", "mixture"), (0.8, 0.95)):
            changes = {"target": target, "lam_critic": lam}
            yield Cell("dvpo", noise, params.families[0], f"{target}, lambda {lam:g}", changes)
        yield Cell("dvpo", noise, params.families[0], "either, lambda 1", {"lam_critic": 1.0})


def _readouts(params) -> Iterator[Cell]:
    of_the_value = {
        "mean": {"kind": "mean"},
        "CVaR 0.5": {"kind": "distorted", "distortion": "cvar", "alpha": 0.5},
        "Wang 0.5": {"kind": "distorted", "distortion": "wang", "strength": 0.5},
        "Wang -0.5": {"kind": "distorted", "distortion": "wang", "strength": -0.5},
    }
    for noise in FOUR_NOISES:
        for variant, readout in of_the_value.items():
            yield Cell("dvpo", noise, params.families[0], variant, {"readout": readout})
        yield Cell("dvpo_winsorised", noise, params.families[0], "winsorised")
        for centre in ("mean", "trimmed_mean", "median"):
            name = f"{centre.replace('_', ' ')}, final state"
            yield dataclasses.replace(_denoised_cell(params, noise, "quantile", 0.0, centre), variant=name)


LEARNERS = {"quantile": "dvpo", "scalar": "ppo"}  # {kind of critic: its method}


def _denoised_cell(params, noise: str, kind: str, weight: float, centre: str = "median") -> Cell:
    """A run whose rewards are mixed with the critic's view of the finished response, or with the prompt's mean."""
    critic = None if centre == "prompt_mean" else changed_critic(params.critics[kind], {"final_state": True})
    readout = {"readout": {"kind": "denoised", "weight": weight, "centre": centre}}
    variant = f"{kind}, {centre.replace('_', ' ')}, weight {weight:g}"
    return Cell(LEARNERS[kind], noise, params.families[0], variant, readout, critic)


def _denoised(params) -> Iterator[Cell]:
    for noise in FOUR_NOISES:
        for kind, weight in product(LEARNERS, (0.0, 0.2, 1.0)):
            yield _denoised_cell(params, noise, kind, weight)
        for centre in ("trimmed_mean", "mean"):
            yield _denoised_cell(params, noise, "quantile", 0.0, centre)
        for weight in (0.0, 0.2):  # a control without a critic's view; at weight 1 it is ppo
            yield _denoised_cell(params, noise, "scalar", weight, "prompt_mean")
        yield Cell("dvpo_winsorised", noise, params.families[0], "quantile, winsorised, weight 1")


def _denoised_claims(cell: Cell) -> bool:
    kind, centre, weight = cell.variant.split(", ")
    return weight == "weight 0" and centre in ("median", "prompt mean") or cell.variant == "quantile, median, weight 1"


def _denoised_rates(params) -> Iterator[Cell]:
    for noise, rates in {"flip": (0.1, 0.3, 0.45), "spikes": (0.05, 0.2, 0.4)}.items():
        for rate, kind, weight in product(rates, LEARNERS, (0.0, 1.0)):
            own = _denoised_cell(params, noise, kind, weight)
            variant = f"{kind}, weight {weight:g}"
            yield dataclasses.replace(own, variant=variant, **_at_rate(params, noise, rate))


def _denoised_critics(params) -> Iterator[Cell]:
    changes = {f"pretraining {n}": {"pretrain_rollouts": n} for n in (512, 1024, 2048)}
    changes |= {f"layers {n}": {"layers": n} for n in range(1, params.policy.num_hidden_layers + 1)}
    for noise, weight, (name, change) in product(("flip", "spikes"), (0.0, 1.0), changes.items()):
        own = _denoised_cell(params, noise, "quantile", weight)
        critic = changed_critic(own.critic, change)
        yield dataclasses.replace(own, variant=f"{name}, weight {weight:g}", critic=critic)


STUDIES: dict[str, Study] = {
    "comparison": Study("Which method learns best under which noise, in every family?", _comparison, every_cell),
    "sizes": Study("Does the order of methods hold for a larger policy?", _sizes, profile="large"),
    "learning_rates": Study("Is a lead over PPO or GRPO a matter of the learning rate?", _learning_rates, every_cell),
    "ablation": Study("Does each term of the critic's loss help?", _ablation, every_cell),
    "quantile_counts": Study("How many quantiles are needed?", _quantile_counts, every_cell),
    "risk_weights": Study("Is a risk interval weight of 0.1 best, in either reading?", _risk_weights, every_cell),
    "heads": Study("How many heads, and how should they be weighted?", _heads),
    "breakdown": Study("Which winsorising level survives which rate of spikes?", with_equal_updates(_breakdown)),
    "lambdas": Study(
        "Does a lower lambda pay under flips, and how much pretraining does it take?", with_equal_updates(_lambdas)
    ),
    "targets": Study("Comonotone or mixture targets?", _targets),
    "readouts": Study("Which statistic of the distribution should the actor see?", with_equal_updates(_readouts)),
    "denoised": Study(
        "When does it pay to learn from the critic's view of a reward?", with_equal_updates(_denoised), _denoised_claims
    ),
    "denoised_rates": Study("Does that depend on the rate of noise?", with_equal_updates(_denoised_rates)),
    "denoised_critics": Study(
        "Does that depend on the critic's pretraining, or on its size?", with_equal_updates(_denoised_critics)
    ),
    "critic_kinds": Study(
        "Is it quantiles, or distributions, or the loss?", with_equal_updates(_critic_kinds), every_cell
    ),
    "calibration": Study("What do critics know before training, at which rate of noise?", _calibration),
    "wrong_steps": Study("Whose advantages find the step that is wrong?", _wrong_steps, every_cell),
}
