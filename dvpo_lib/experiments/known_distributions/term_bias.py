"""The bias of each term of the critic's loss on distributions with a known truth.

The critic is a set of free quantiles in one state. Its loss is minimised against a dense grid of the return
distribution, one point per target as at lambda = 1, with the functions of `critic_losses`. The difference between
minimiser and truth is the bias of a term. Everything is deterministic. Used by notebooks/00_method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from dvpo_lib.experiments.known_distributions.distributions import (
    DEFAULT_LOSS,
    DISTRIBUTIONS,
    GRID_POINTS,
    QUANTILE_COUNT,
    TAIL_MASSES,
)
from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.quantiles import midpoint_levels, sort_quantiles

MINIMISER_STEPS = 2500
STRONG_FACTOR = 10.0  # the strong weights of the bias table, in multiples of the default ones
SHOWN_RHO = 2.0  # of the risk weights; their default is 0
# First steps of the minimiser, return units. `mean_shift` pushes the mean alone, so one quantile may have to move M
# times as far; second differences are M^2 times as stiff.
FIRST_RATES = {"mean_shift": 0.5, "tail_curvature": 0.05}
FINITE_BATCH = 64  # size of the finite batches of `mean_shift`
# Width of the critic before the update, relative to the truth.
START_WIDTHS = {"from the truth": 1.0, "from too narrow": 0.25, "from too wide": 1.5}


def minimise_by_adam(
    loss: Callable[[Tensor], Tensor], start: Tensor, rate: float | Tensor = 0.1, steps: int = MINIMISER_STEPS
) -> Tensor:
    """Minimises the sum of `loss(q)` over quantiles by Adam with an exponentially decaying rate.

    Args:
        loss: Function of the quantiles.
        start: (..., M) first quantiles.
        rate: First step size in return units, the most a quantile moves in a step. The last one is a thousandth of it.
        steps: Number of steps.

    Returns:
        (..., M) monotone quantiles, the mean over the last quarter of the steps.
    """
    q = start.clone().requires_grad_()
    first, second, mean = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(q)
    kept = steps // 4
    for step in range(steps):
        [slope] = torch.autograd.grad(loss(q).sum(), q)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        scale = rate * 1e-3 ** (step / (steps - 1)) / (1 - 0.9 ** (step + 1))
        with torch.no_grad():
            q -= scale * first / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
            mean += q / kept * (step >= steps - kept)
    return sort_quantiles(mean)


def bias_core_loss(q: Tensor, g: Tensor, kappa: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean over heads of `quantile_huber`.

    Args:
        q: (D, C, N, M) quantiles of D distributions, C cases, N heads.
        g: (D, K) targets.
        kappa: Threshold of the Huber loss, return units.
        weights: (M,) weights of the levels. Equal weights if None.

    Returns:
        (D, C).
    """
    loss = losses.quantile_huber(
        q.flatten(1, 2), g[:, None], kappa, weights
    )  # cases of a distribution share its targets
    return loss.unflatten(1, q.shape[1:3]).mean(-1)


def _risk_weight_form(q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    """Change of the loss if risk weights replace the equal ones."""
    return bias_core_loss(q, g, weights=losses.risk_weights(q.shape[-1], SHOWN_RHO, dtype=q.dtype)) - bias_core_loss(
        q, g
    )


def _calibration_form(q: Tensor, g: Tensor, ref: Tensor, form: str) -> Tensor:
    """Tail calibration, mean over heads."""
    points = g[:, None, None, :, None] if form == "sample" else g[:, None, None, None]  # the score is linear in samples
    scale = torch.stack([losses.return_scale(x) for x in g], 1)[..., None, None, None]  # of each distribution
    return losses.tail_calibration(sort_quantiles(q)[..., None, :], points, *TAIL_MASSES, form, scale).mean((-2, -1))


def _shift_form(q: Tensor, g: Tensor, ref: Tensor, batch: float) -> Tensor:
    """Expectation of `mean_shift` over batches, whose means are normal by the central limit theorem."""
    means = g.mean(-1, keepdim=True)
    if batch == 1:
        means = g
    elif batch < float("inf"):
        normal = torch.special.ndtri(midpoint_levels(201, dtype=g.dtype))
        means = means + g.std(-1, correction=0, keepdim=True) * normal / batch**0.5
    values = q.mean(-1)[..., None, None].expand(*q.shape[:-1], 1, means.shape[-1])  # the head axis holds batches
    means = means[:, None, None, None].expand_as(values)
    rows = torch.func.vmap(losses.mean_shift)(values.flatten(0, 2), means.flatten(0, 2))
    return rows.view(q.shape[:-1]).mean(-1)


def _reference_form(term: Callable, q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    """A tail term against the critic before the update, mean over heads."""
    return term(sort_quantiles(q), ref[:, None], *TAIL_MASSES).mean(-1)


def _sample_form(term: Callable, q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    """A tail term against one sample, mean over heads."""
    point = g[:, :1][:, None, None]  # a point has neither width nor curvature, so any one will do
    return term(sort_quantiles(q), point, *TAIL_MASSES).mean(-1)


# {(term, form): (quantiles (D, C, N, M), targets (D, K), heads before the update (D, N, M)) -> (D, C)}
TERM_FORMS: dict[tuple[str, str], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    ("risk_weight", f"rho = {SHOWN_RHO:g}"): _risk_weight_form,
    ("head_consistency", ""): lambda q, g, ref: losses.head_consistency(sort_quantiles(q)),
    ("tail_calibration", "sample"): partial(_calibration_form, form="sample"),
    ("tail_calibration", "elicitable"): partial(_calibration_form, form="elicitable"),
    ("mean_shift", "all data"): partial(_shift_form, batch=float("inf")),
    ("mean_shift", f"batches of {FINITE_BATCH}"): partial(_shift_form, batch=FINITE_BATCH),
    ("mean_shift", "per sample"): partial(_shift_form, batch=1),
    **{
        (term, form): partial(_sample_form if form == "sample" else _reference_form, getattr(losses, term))
        for term in ("tail_shape", "tail_curvature")
        for form in ("sample", *(f"previous, {s}" for s in START_WIDTHS))
    },
}


def term_weight(term: str, strength: float = 1.0) -> float:
    """The default weight of a term times `strength`. Risk weights replace the core, so their weight is 1."""
    return 1.0 if term == "risk_weight" else strength * getattr(DEFAULT_LOSS, term)


def find_minimisers(
    cases: Sequence[Mapping[tuple[str, str], float]],
    names: Iterable[str] = tuple(DISTRIBUTIONS),
    kappa: float = 0.0,
    m: int = QUANTILE_COUNT,
    steps: int = MINIMISER_STEPS,
) -> Tensor:
    """Minimisers of the core plus weighted terms, all cases and distributions in one batch.

    Two heads start apart and so show if the minimum depends on the start. A form that refers to the critic before the
    update also starts from there.

    Args:
        cases: {(term, form): weight} each, with keys of TERM_FORMS and at most one of START_WIDTHS.
        names: Keys of DISTRIBUTIONS.
        kappa: Threshold of the Huber loss, return units.
        m: Quantiles per head.
        steps: Steps of the minimiser.

    Returns:
        (D, C, 2, m) monotone quantiles, return units.
    """
    truth, g = (torch.stack([DISTRIBUTIONS[n](size) for n in names]) for size in (m, GRID_POINTS))
    heads = torch.stack([truth, truth + 0.2], 1)  # (D, 2, m)
    centre = heads.mean(-1, keepdim=True)
    starts = {s: centre + width * (heads - centre) for s, width in START_WIDTHS.items()}
    own = [next((s for s in START_WIDTHS for _, form in case if form.endswith(s)), "from the truth") for case in cases]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        for key in (k for k, w in case.items() if w):
            groups.setdefault(key, []).append(i)

    def loss(q: Tensor) -> Tensor:
        total = bias_core_loss(q, g, kappa)
        for key, rows in groups.items():
            w = torch.tensor([cases[i][key] for i in rows], dtype=q.dtype)
            total = total.index_add(1, torch.tensor(rows), w * TERM_FORMS[key](q[:, rows], g, starts[own[rows[0]]]))
        return total

    rates = [min((FIRST_RATES.get(term, 0.1) for (term, _), w in case.items() if w), default=0.1) for case in cases]
    start = torch.stack([starts[s] for s in own], 1)
    return minimise_by_adam(loss, start, torch.tensor(rates, dtype=g.dtype)[:, None, None], steps)


def bias_cases() -> list[dict[tuple[str, str], float]]:
    """The core alone, and each form of each term at its default weight and at STRONG_FACTOR times that weight."""
    strengths = {"risk_weight": (1.0,)}
    return [{}, *({(t, f): term_weight(t, s)} for t, f in TERM_FORMS for s in strengths.get(t, (1.0, STRONG_FACTOR)))]
