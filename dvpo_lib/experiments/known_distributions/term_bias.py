"""The bias of every term of the critic's loss, on small distributions whose truth is known.

A critic of free quantiles sees one state. Its loss is minimised against a dense grid of the return's distribution, each
target a point as at lambda = 1, through the very functions of `losses`: what the minimiser differs in from the truth is
the bias of a term. Backs notebooks/00_method; nothing is trained, all is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial

import pandas as pd
import torch
from torch import Tensor

from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.functional.quantiles import ensemble, levels, lower_tail_mean, monotone, upper_tail_mean
from dvpo_lib.reporting.prose import join_words

DEFAULTS = CriticLossSettings()
MASSES = (DEFAULTS.lower_mass, DEFAULTS.upper_mass)
M, K = 50, 4000  # quantiles of the critic; points of the grid that stands for a distribution
STEPS = 2500  # of the minimiser
STRONG = 10.0  # the stronger weights of the bias table, as a multiple of the default ones
RHO = 2.0  # of the risk weights that are shown; their default is off
# First steps, return units. Only the mean is pushed: one quantile may have to go M times as far; second differences are
# M^2 times as stiff.
RATES = {"mean_shift": 0.5, "tail_curvature": 0.05}
BATCH = 64  # of the finite batches of `mean_shift`
STARTS = {"from the truth": 1.0, "from too narrow": 0.25, "from too wide": 1.5}  # width of the critic before the update
SHOWN = "0/1, 20 % spikes"  # the distribution of the pictures

# ---- distributions ----


def bernoulli(p: float, tau: Tensor) -> Tensor:
    """Quantiles of a reward that is 1 with probability p, else 0."""
    return (tau > 1 - p).to(tau.dtype)


@cache
def _spikes(m: int, p: float, rate: float, scale: float) -> Tensor:
    """(m,) quantiles of Bernoulli(p) with a share `rate` replaced by N(0, scale^2), by bisection of the CDF."""
    tau = levels(m, dtype=torch.float64)
    low, high = torch.full_like(tau, -20 * scale), torch.full_like(tau, 20 * scale)
    for _ in range(90):
        x = (low + high) / 2
        atoms = (1 - p) * (x >= 0) + p * (x >= 1)
        above = (1 - rate) * atoms + rate * torch.special.ndtr(x / scale) >= tau
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    return torch.where((high - high.round()).abs() < 1e-9, high.round(), high)  # the atoms themselves


DISTRIBUTIONS: Mapping[str, Callable[[int], Tensor]] = {  # name: M -> (M,) exact quantiles at the midpoint levels
    "Bernoulli(0.2)": lambda m: bernoulli(0.2, levels(m, dtype=torch.float64)),
    "Gaussian N(0, 1)": lambda m: torch.special.ndtri(levels(m, dtype=torch.float64)),
    SHOWN: lambda m: _spikes(m, 0.5, 0.2, 5.0),
}


# ---- minimisers ----


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, rate: float | Tensor = 0.1, steps: int = STEPS) -> Tensor:
    """Monotone quantiles (..., M) that minimise the sum of `loss(q)`.

    Adam, with a rate that falls from `rate` to a thousandth of it; the result is the mean of the last quarter's steps.
    Rates are in return units: no quantile moves further in a step.
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
    return monotone(mean)


def core(q: Tensor, g: Tensor, kappa: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """(D, C, N, M) quantiles against (D, K) targets to (D, C): the mean over the N heads of `quantile_huber`."""
    loss = losses.quantile_huber(q.flatten(1, 2), g[:, None], kappa, weights)  # all cases of a row share its targets
    return loss.unflatten(1, q.shape[1:3]).mean(-1)


def _risk(q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    """What replacing the core by the risk-weighted one adds."""
    return core(q, g, weights=losses.risk_weights(q.shape[-1], RHO, dtype=q.dtype)) - core(q, g)


def _calibration(q: Tensor, g: Tensor, ref: Tensor, form: str) -> Tensor:
    points = g[:, None, None, :, None] if form == "sample" else g[:, None, None, None]  # the score is linear in samples
    scale = torch.stack([losses.return_scale(x) for x in g], 1)[..., None, None, None]  # of each distribution
    return losses.tail_calibration(monotone(q)[..., None, :], points, *MASSES, form, scale).mean((-2, -1))


def _shift(q: Tensor, g: Tensor, ref: Tensor, batch: float) -> Tensor:
    """The mean over batches of `mean_shift`. Means of finite batches follow the central limit theorem."""
    means = g.mean(-1, keepdim=True)
    if batch == 1:
        means = g
    elif batch < float("inf"):
        normal = torch.special.ndtri(levels(201, dtype=g.dtype))
        means = means + g.std(-1, correction=0, keepdim=True) * normal / batch**0.5
    values = q.mean(-1)[..., None, None].expand(*q.shape[:-1], 1, means.shape[-1])  # batches in the place of heads
    means = means[:, None, None, None].expand_as(values)
    rows = torch.func.vmap(losses.mean_shift)(values.flatten(0, 2), means.flatten(0, 2))
    return rows.view(q.shape[:-1]).mean(-1)


def _against(term: Callable, q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    return term(monotone(q), ref[:, None], *MASSES).mean(-1)


def _against_sample(term: Callable, q: Tensor, g: Tensor, ref: Tensor) -> Tensor:
    return term(monotone(q), g[:, :1][:, None, None], *MASSES).mean(-1)  # any point: a point has neither width nor bend


# (term, form): (quantiles (D, C, N, M), targets (D, K), heads before the update (D, N, M)) -> (D, C)
FORMS: dict[tuple[str, str], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    ("risk_weight", f"rho = {RHO:g}"): _risk,
    ("head_consistency", ""): lambda q, g, ref: losses.head_consistency(monotone(q)),
    ("tail_calibration", "sample"): partial(_calibration, form="sample"),
    ("tail_calibration", "elicitable"): partial(_calibration, form="elicitable"),
    ("mean_shift", "all data"): partial(_shift, batch=float("inf")),
    ("mean_shift", f"batches of {BATCH}"): partial(_shift, batch=BATCH),
    ("mean_shift", "per sample"): partial(_shift, batch=1),
    **{
        (term, form): partial(_against_sample if form == "sample" else _against, getattr(losses, term))
        for term in ("tail_shape", "tail_curvature")
        for form in ("sample", *(f"previous, {s}" for s in STARTS))
    },
}


def weight(term: str, strength: float = 1.0) -> float:
    """The default weight of a term times `strength`; risk weights replace the core and have none."""
    return 1.0 if term == "risk_weight" else strength * getattr(DEFAULTS, term)


def minimisers(
    cases: Sequence[Mapping[tuple[str, str], float]],
    names: Iterable[str] = tuple(DISTRIBUTIONS),
    kappa: float = 0.0,
    m: int = M,
    steps: int = STEPS,
) -> Tensor:
    """Minimisers of core + weighted terms, all cases and distributions in one batch.

    Two heads start apart, so that they show whether the minimum depends on the start; a form that compares with the
    critic before the update starts from there.

    Args:
        cases: {(term, form): weight} each, keys of FORMS; at most one of `STARTS` a case. names: of DISTRIBUTIONS.

    Returns:
        (D, C, 2, m) monotone quantiles, return units.
    """
    truth, g = (torch.stack([DISTRIBUTIONS[n](size) for n in names]) for size in (m, K))
    heads = torch.stack([truth, truth + 0.2], 1)  # (D, 2, m)
    centre = heads.mean(-1, keepdim=True)
    starts = {s: centre + width * (heads - centre) for s, width in STARTS.items()}
    own = [next((s for s in STARTS for _, form in case if form.endswith(s)), "from the truth") for case in cases]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        for key in (k for k, w in case.items() if w):
            groups.setdefault(key, []).append(i)

    def loss(q: Tensor) -> Tensor:
        total = core(q, g, kappa)
        for key, rows in groups.items():
            w = torch.tensor([cases[i][key] for i in rows], dtype=q.dtype)
            total = total.index_add(1, torch.tensor(rows), w * FORMS[key](q[:, rows], g, starts[own[rows[0]]]))
        return total

    rates = [min((RATES.get(term, 0.1) for (term, _), w in case.items() if w), default=0.1) for case in cases]
    start = torch.stack([starts[s] for s in own], 1)
    return minimise(loss, start, torch.tensor(rates, dtype=g.dtype)[:, None, None], steps)


def table_cases() -> list[dict[tuple[str, str], float]]:
    """The core, and every term and form at its default weight and at STRONG times it; risk weights have none."""
    strengths = {"risk_weight": (1.0,)}
    return [{}, *({(t, f): weight(t, s)} for t, f in FORMS for s in strengths.get(t, (1.0, STRONG)))]


def statistics_of(z: Tensor) -> dict[str, float]:
    """(M,) quantiles to their mean and the means of their lower and upper tail, return units."""
    tails = lower_tail_mean(z, MASSES[0]), upper_tail_mean(z, MASSES[1])
    return {"mean": z.mean().item(), "lower": tails[0].item(), "upper": tails[1].item()}


def case_frame(
    q: Tensor, cases: Sequence[Mapping[tuple[str, str], float]], names: Iterable[str] = tuple(DISTRIBUTIONS)
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tidy frames of `minimisers`: quantile curves of the ensemble, and its mean and tails against the truth.

    Returns:
        curves: distribution, term, form, weight, level, value. bias: distribution, term, form, weight, and for mean,
        lower and upper (tail means, mass 10 %) the value, `*_error` against the distribution itself (not its M
        quantiles) and `*_change` against the core alone; `apart`: largest distance of the two heads. Return units.
    """
    curves, rows = [], []
    for d, name in enumerate(names):
        exact = DISTRIBUTIONS[name](100_000)
        truth, base = statistics_of(exact), {}
        for c, case in enumerate(cases):  # of one term at most
            [((term, form), w)] = case.items() or [(("core", ""), 0.0)]
            z, key = ensemble(q[d, c]), {"distribution": name, "term": term, "form": form, "weight": w}
            found = statistics_of(z)
            base = base or found
            row = key | found | {f"{k}_error": v - truth[k] for k, v in found.items()}
            row |= {f"{k}_change": v - base[k] for k, v in found.items()}
            rows.append({**row, "apart": (q[d, c, 0] - q[d, c, 1]).abs().max().item()})
            curves.append(pd.DataFrame({**key, "level": levels(z.shape[-1], dtype=z.dtype), "value": z}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


# ---- tables and sentences ----


def bias_table(bias: pd.DataFrame, apart: float = 0.1) -> pd.DataFrame:
    """Rows term, form and weight; a column a distribution, its cells "mean / lower / upper" errors (return units).

    A weight gets a star where the two heads, which start apart, end more than `apart` from each other in some quantile.
    """
    bias = bias.copy()
    errors = [[f"{round(v, 2) + 0:+.2f}" for v in bias[f"{c}_error"]] for c in ("mean", "lower", "upper")]  # no -0.00
    bias["cell"] = [" / ".join(e) for e in zip(*errors)]
    keys = ["term", "form", "weight"]
    order = list(dict.fromkeys(zip(*(bias[k] for k in keys))))
    wide = bias.pivot(index=keys, columns="distribution", values="cell")
    wide = wide.reindex(index=order, columns=list(dict.fromkeys(bias["distribution"])))
    loose = bias.groupby(keys)["apart"].max().reindex(order) > apart
    wide = wide.reset_index()
    wide["term"] = wide["term"].str.replace("_", " ")
    weights = ("" if t == "core" else f"{w:g}" for t, w in zip(wide["term"], wide["weight"]))
    wide["weight"] = [w + "*" * star for w, star in zip(weights, loose)]
    return wide.rename_axis(columns=None)


def bias_findings(bias: pd.DataFrame, name: str = SHOWN, tolerance: float = 0.03) -> str:
    """What each term and form does by itself to one distribution at its default weight, against the core alone.

    Args:
        tolerance: changes below this share of the distance between the tails' means count as none.
    """
    rows = bias[bias["distribution"] == name]
    base = rows[rows["term"] == "core"].iloc[0]
    least = tolerance * (base["upper"] - base["lower"])
    words = {
        "mean": ("raises the mean", "lowers the mean"),
        "lower": ("pulls the lower tail up", "pushes the lower tail down"),
        "upper": ("pushes the upper tail up", "pulls the upper tail down"),
    }
    idle, lines = [], []
    for (term, form), own in rows[rows["term"] != "core"].groupby(["term", "form"], sort=False):
        r, title = own.sort_values("weight").iloc[0], ", ".join(filter(None, [term.replace("_", " "), form]))
        parts = [
            f"{words[k][int(r[f'{k}_change'] < 0)]} ({base[k]:.2f} to {r[k]:.2f})"
            for k in words
            if abs(r[f"{k}_change"]) > (least / 5 if k == "mean" else least)
        ]
        if parts:
            lines.append(f"- **{title}** (weight {r['weight']:g}) {join_words(parts)}.")
        else:
            idle.append(title)
    return "\n".join([*lines, f"- No bias to speak of: {join_words(f'*{title}*' for title in idle)}."])


def bias_metrics(bias: pd.DataFrame) -> dict:
    """For `dvc metrics show`: errors at default weights, {distribution: {term: {form: {mean, lower, upper}}}}."""
    tree: dict = {}
    for r in bias.drop_duplicates(["distribution", "term", "form"]).itertuples():
        node = tree.setdefault(r.distribution, {}).setdefault(r.term, {})
        node = node.setdefault(r.form, {}) if r.form else node
        node.update(mean=r.mean_error, lower=r.lower_error, upper=r.upper_error)
    return tree


def tidy_truth(name: str = SHOWN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(truth: level, value; starts: form, level, value) of a distribution, as `minimisers` uses them."""
    z, tau = DISTRIBUTIONS[name](M), levels(M, dtype=torch.float64)
    starts = [
        pd.DataFrame({"form": f"previous, {s}", "level": tau, "value": z.mean() + width * (z - z.mean())})
        for s, width in STARTS.items()
        if width != 1
    ]
    return pd.DataFrame({"level": tau, "value": z}), pd.concat(starts)


def lab(kappa: float, weights: Mapping[tuple[str, str], float], name: str = SHOWN) -> tuple[pd.DataFrame, str]:
    """What the sliders show: the curve (level, value, truth) of core + terms, keys as in FORMS, and a sentence."""
    q = ensemble(minimisers([weights], [name], kappa, steps=800)[0, 0])
    truth = DISTRIBUTIONS[name](M)
    found, right = statistics_of(q), statistics_of(truth)
    titles = {"mean": "mean", "lower": "lower tail", "upper": "upper tail"}
    parts = [f"{title} {found[k]:.2f} (truth {right[k]:.2f})" for k, title in titles.items()]
    return pd.DataFrame(
        {"level": levels(M, dtype=q.dtype), "value": q, "truth": truth}
    ), f"Learned: {join_words(parts)}."
