"""Experiments on small distributions: what each formula of the method does where the answer is known.

A critic of free quantiles sees one state whose return distribution is known. Its loss is minimised against a dense grid
of that distribution, each target a point as at lambda = 1, through the very functions of `losses`: what differs from
the truth in the minimiser is the bias of a term. Backs notebooks/00_method; nothing is trained, all is deterministic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial

import pandas as pd
import torch
from torch import Tensor

from . import losses
from .advantages import ReadoutSettings, actor_advantages, gae, quantile_targets
from .losses import CriticLossSettings
from .quantiles import distortion_weights, ensemble, interpolate, levels, lower_tail_mean, monotone, upper_tail_mean
from .words import listing

DEFAULTS = CriticLossSettings()
MASSES = (DEFAULTS.lower_mass, DEFAULTS.upper_mass)
M, K = 50, 4000  # quantiles of the critic; points of the grid that stands for a distribution
STEPS = 1500  # of the minimiser
STRONG = 10.0  # the stronger weights of the bias table, as a multiple of the default ones
RHO = 2.0  # of the risk weights that are shown; their default is off
BATCH = 64  # of the finite batches of `mean_shift`
STARTS = {"from the truth": 1.0, "from too narrow": 0.25, "from too wide": 2.0}  # width of the critic before the update
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
    return losses.tail_calibration(monotone(q)[..., None, :], points, *MASSES, form).mean((-2, -1))


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
    **{(term, form): partial(_against_sample if form == "sample" else _against, getattr(losses, term))
       for term in ("tail_shape", "tail_curvature") for form in ("sample", *(f"previous, {s}" for s in STARTS))},
}  # fmt: skip


def weight(term: str, strength: float = 1.0) -> float:
    """The default weight of a term times `strength`; risk weights replace the core and have none."""
    return 1.0 if term == "risk_weight" else strength * getattr(DEFAULTS, term)


def minimisers(cases: Iterable[tuple[str, str, float]], names: Iterable[str] = tuple(DISTRIBUTIONS), m: int = M,
               kappa: float = 0.0, steps: int = STEPS) -> Tensor:
    """Minimisers of core + weight * term, all cases in one batch.

    Two heads start apart, so that they show whether the minimum depends on the start.

    Args:
        cases: (term, form, weight); ("", "", 0) is the core alone. names: of DISTRIBUTIONS.

    Returns:
        (D, C, 2, M).
    """
    return combined([{(term, form): w} for term, form, w in cases], names, m, kappa, steps)


def combined(cases: list[dict[tuple[str, str], float]], names: Iterable[str], m: int = M, kappa: float = 0.0,
             steps: int = STEPS) -> Tensor:
    """`minimisers` of core + any number of terms, each case {(term, form): weight}."""
    truth = torch.stack([DISTRIBUTIONS[n](m) for n in names])[:, None]  # (D, 1, M)
    g = torch.stack([DISTRIBUTIONS[n](K) for n in names])
    heads = torch.cat([truth, truth + 0.2], 1)  # (D, 2, M)
    centre = heads.mean(-1, keepdim=True)
    starts = {s: centre + width * (heads - centre) for s, width in STARTS.items()}
    own = ["".join(s for s in STARTS if any(form.endswith(s) for _, form in case)) for case in cases]
    start = torch.stack([starts[s or "from the truth"] for s in own], 1)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        for key in (k for k, w in case.items() if w):
            groups.setdefault(key, []).append(i)

    def loss(q: Tensor) -> Tensor:
        total = core(q, g, kappa)
        for key, rows in groups.items():
            w = torch.tensor([cases[i][key] for i in rows], dtype=q.dtype)
            ref = starts[own[rows[0]] or "from the truth"]
            total = total.index_add(1, torch.tensor(rows), w * FORMS[key](q[:, rows], g, ref))
        return total

    # Only the mean is pushed: one quantile may have to go M times as far. Second differences: M^2 times as stiff.
    rates = [{"mean_shift": 0.5, "tail_shape": 0.05, "tail_curvature": 0.02}.get(next(iter(case))[0], 0.1) for case in cases]
    return minimise(loss, start, torch.tensor(rates, dtype=g.dtype)[:, None, None], steps)


def table_cases() -> list[tuple[str, str, float]]:
    """The core, and every term and form at its default weight and at STRONG times it."""
    strengths = {"risk_weight": (1.0,)}
    return [("", "", 0.0), *((t, f, weight(t, s)) for t, f in FORMS for s in strengths.get(t, (1.0, STRONG)))]


def case_frame(q: Tensor, cases: list[tuple[str, str, float]], names: Iterable[str] = tuple(DISTRIBUTIONS),
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
        truth = {"mean": exact.mean(), "lower": lower_tail_mean(exact, MASSES[0]), "upper": upper_tail_mean(exact, MASSES[1])}
        base: dict[str, Tensor] = {}
        for c, (term, form, w) in enumerate(cases):
            z, key = ensemble(q[d, c]), {"distribution": name, "term": term or "core", "form": form, "weight": w}
            found = {"mean": z.mean(), "lower": lower_tail_mean(z, MASSES[0]), "upper": upper_tail_mean(z, MASSES[1])}
            base = base or found
            row = {**key, **{k: v.item() for k, v in found.items()}}
            row |= {f"{k}_error": (v - truth[k]).item() for k, v in found.items()}
            row |= {f"{k}_change": (v - base[k]).item() for k, v in found.items()}
            rows.append({**row, "apart": (q[d, c, 0] - q[d, c, 1]).abs().max().item()})
            curves.append(pd.DataFrame({**key, "level": levels(z.shape[-1], dtype=z.dtype), "value": z}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


# ---- kappa ----


def closed_form(p: float, kappa: float, tau: Tensor) -> Tensor:
    """What `quantile_huber` learns at the levels tau from Bernoulli(p).

    Its slope at q in [0, 1] vanishes where (1 - p)(1 - tau) min(q / kappa, 1) = p tau min((1 - q) / kappa, 1). With
    r = p tau / ((1 - p)(1 - tau)): the expectile r / (1 + r) where both errors are within kappa (all of them at
    kappa >= 1), kappa r where only that to 0 is, 1 - kappa / r where only that to 1 is; the quantile at kappa = 0.
    """
    r = p * tau / ((1 - p) * (1 - tau))
    to_zero, to_one = kappa * r, 1 - kappa / r
    both = r / (1 + r)
    inside = (both <= kappa) & (1 - both <= kappa)
    return torch.where(inside, both, torch.where(r <= 1, to_zero, to_one))


def each_minimiser(g: Tensor, kappa: float, m: int) -> Tensor:
    """(m,) quantiles that minimise `quantile_huber` against targets g (K,): bisection on the sign of its gradient."""
    low, high = g.min().expand(m), g.max().expand(m)
    for _ in range(50):
        q = ((low + high) / 2).requires_grad_()
        [slope] = torch.autograd.grad(losses.quantile_huber(q, g, kappa), q)
        low, high = torch.where(slope < 0, q.detach(), low), torch.where(slope < 0, high, q.detach())
    return (low + high) / 2


def kappa_curves(ps: Iterable[float] = (0.2, 0.05), kappas: Iterable[float] = (0.0, 0.1, 0.25, 0.5, 1.0),
                 m: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(curves: p, kappa, level, value, truth; table: p, kappa, found, closed, truth) of Bernoulli(p).

    `found` is the mean read-out of what the library's gradient leads to, `closed` that of the closed form; kappa in
    return units.
    """
    tau, curves, rows = levels(m, dtype=torch.float64), [], []
    for p, kappa in itertools.product(ps, kappas):
        q, truth = each_minimiser(bernoulli(p, levels(K, dtype=torch.float64)), kappa, m), bernoulli(p, tau)
        rows.append({"p": p, "kappa": kappa, "found": q.mean().item(),
                     "closed": closed_form(p, kappa, tau).mean().item(), "truth": p})  # fmt: skip
        curves.append(pd.DataFrame({"p": p, "kappa": kappa, "level": tau, "value": q, "truth": truth}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


# ---- advantages ----


def gae_identity(seed: int = 0) -> pd.DataFrame:
    """Largest |mean_j A_j - scalar GAE of the mean|, over random rewards, quantiles and masks with gaps: precision, lam,
    difference (return units, where returns have a standard deviation of about 1)."""
    rows = []
    for dtype, lam in itertools.product((torch.float32, torch.float64), (0.0, 0.5, 0.95, 1.0)):
        generator = torch.Generator().manual_seed(seed)
        r, z = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((64, 24), (64, 24, 200)))
        mask = torch.rand(64, 24, generator=generator) < 0.8
        distributional, scalar = gae(r, monotone(z), mask, 1.0, lam)[0].mean(-1), gae(r, z.mean(-1), mask, 1.0, lam)[0]
        rows.append({"precision": str(dtype).removeprefix("torch."), "lambda": lam,
                     "difference": (distributional - scalar).abs().max().item()})  # fmt: skip
    return pd.DataFrame(rows)


def walk_returns(steps: int = 5, noise: int = 31) -> tuple[Tensor, Tensor]:
    """A Markov reward process whose returns are known: a walk of +-1 steps, paid once at its end with N(0, 1) on top.

    Returns:
        position (B, T) before each step and return (B,), all B = 2^T * noise outcomes, equally likely.
    """
    path = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=steps)), dtype=torch.float64)
    extra = torch.special.ndtri(levels(noise, dtype=torch.float64)).repeat(len(path))
    path = path.repeat_interleave(noise, 0)
    return path.cumsum(1) - path, path.sum(1) + extra


def walk_fixed_point(lam: float, kind: str, m: int = M, seed: int = 0) -> Tensor:
    """(m,) quantiles of the first state that a critic without error learns from its own lambda-return targets.

    State by state from the end: quantile regression (kappa = 0) on all targets of a state gives their quantiles.
    """
    position, returns = walk_returns()
    length = position.shape[1]
    rewards = torch.cat([torch.zeros_like(position[:, 1:]), returns[:, None]], 1)
    z, mask = torch.zeros(*position.shape, m, dtype=torch.float64), torch.ones_like(position, dtype=torch.bool)
    for t in reversed(range(length)):
        targets = quantile_targets(rewards, z, mask, 1.0, lam, kind, torch.Generator().manual_seed(seed + t))[:, t]
        for state in position[:, t].unique():
            here = position[:, t] == state
            pool = targets[here].flatten().sort().values
            z[here, t] = pool[(levels(m, dtype=torch.float64) * len(pool)).long()]
    return z[0, 0]


def walk_widths(lams: Iterable[float] = tuple(i / 10 for i in range(11))) -> pd.DataFrame:
    """Quantile curves of the walk's first state: kind (true, comonotone, mixture), lambda, level, value (return units)."""
    returns = walk_returns()[1].sort().values
    tau = levels(M, dtype=torch.float64)
    true = returns[(tau * len(returns)).long()]
    frames = [pd.DataFrame({"kind": "true", "lambda": lam, "level": tau, "value": true}) for lam in lams]
    frames += [pd.DataFrame({"kind": kind, "lambda": lam, "level": tau, "value": walk_fixed_point(lam, kind)})
               for kind in ("comonotone", "mixture") for lam in lams]
    return pd.concat(frames, ignore_index=True)


# ---- read-outs ----

READOUTS = {  # what is shown: (kind, settings of `distortion_weights`)
    "mean": ("mean", {}), "CVaR, 25 %": ("cvar", {"alpha": 0.25}), "Wang, 0.5": ("wang", {"strength": 0.5}),
    "Wang, -0.5": ("wang", {"strength": -0.5}), "CPW, 0.3": ("cpw", {"strength": 0.3}),
    "blend, 0.5": ("blend", {"strength": 0.5}),
}  # fmt: skip


def readout_weights(m: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(curves: readout, level, weight relative to the mean's; table: readout and its value for every distribution)."""
    curves, rows = [], []
    for name, (kind, settings) in READOUTS.items():
        w = distortion_weights(kind, m, dtype=torch.float64, **settings)
        curves.append(pd.DataFrame({"readout": name, "level": levels(m, dtype=torch.float64), "weight": w * m}))
        rows.append({"readout": name, **{n: (f(m) @ w).item() for n, f in DISTRIBUTIONS.items()}})
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


def winsorised(band: Iterable[float] = (0.0, 0.05, 0.1, 0.2), name: str = SHOWN, reach: float = 12.0) -> pd.DataFrame:
    """The reward that reaches the actor: level (of either side), reward, used (reward units), at the last token.

    `used` is the advantage of `actor_advantages` plus the baseline that it is measured from.
    """
    z, r = DISTRIBUTIONS[name](200), torch.linspace(-reach, reach, 241, dtype=torch.float64)[:, None]
    rows, mask = [], torch.ones(len(r), 1, dtype=torch.bool)
    for level in band:
        readout = ReadoutSettings(kind="winsorised", level_low=level, level_up=level)
        a = actor_advantages(r, z.expand(len(r), 1, -1), mask, 1.0, 1.0, readout)[:, 0]
        low, up = (interpolate(z, level), interpolate(z, 1 - level)) if level else (-torch.inf, torch.inf)
        rows.append(pd.DataFrame({"level": level, "reward": r[:, 0], "used": a + z.clamp(low, up).mean()}))
    return pd.concat(rows, ignore_index=True)


# ---- tables and sentences ----


def bias_table(bias: pd.DataFrame, columns: Iterable[str] = ("mean", "lower", "upper")) -> pd.DataFrame:
    """Rows term, form and weight; for every distribution the errors of mean, lower and upper tail (return units)."""
    wide = bias.pivot(index=["term", "form", "weight"], columns="distribution", values=[f"{c}_error" for c in columns])
    order = list(dict.fromkeys(zip(bias["term"], bias["form"], bias["weight"])))
    wide = wide.reindex(order)
    names = list(dict.fromkeys(bias["distribution"]))
    flat = pd.DataFrame({f"{n}: {c}": wide[f"{c}_error", n].to_numpy() for n in names for c in columns})
    keys = pd.DataFrame(order, columns=["term", "form", "weight"])
    keys["term"], keys["weight"] = keys["term"].str.replace("_", " "), keys["weight"].map("{:g}".format)
    return pd.concat([keys, flat], axis=1)


def lab(kappa: float = 0.0, name: str = SHOWN, **weights: float) -> pd.DataFrame:
    """The curve that the sliders show: level, value, truth. weights: of terms, as in CriticLossSettings."""
    forms = {"tail_calibration": "sample", "mean_shift": f"batches of {BATCH}", "tail_shape": "previous, from too narrow",
             "tail_curvature": "previous, from too narrow"}  # fmt: skip
    case = {(term, forms[term]): w for term, w in weights.items()}
    q = ensemble(combined([case], [name], kappa=kappa, steps=300)[0, 0])
    return pd.DataFrame({"level": levels(M), "value": q, "truth": DISTRIBUTIONS[name](M)})


def tidy_truth(name: str = SHOWN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(truth: level, value; starts: form, level, value) of a distribution, as `minimisers` uses them."""
    z, tau = DISTRIBUTIONS[name](M), levels(M, dtype=torch.float64)
    starts = [pd.DataFrame({"form": f"previous, {s}", "level": tau, "value": z.mean() + width * (z - z.mean())})
              for s, width in STARTS.items() if width != 1]
    return pd.DataFrame({"level": tau, "value": z}), pd.concat(starts)


def bias_findings(bias: pd.DataFrame, name: str = SHOWN, tolerance: float = 0.03) -> str:
    """What each term and form does by itself to one distribution at its default weight, against the core alone.

    Args:
        tolerance: changes below this share of the distance between the tails' means count as none.
    """
    rows = bias[bias["distribution"] == name]
    base = rows[rows["term"] == "core"].iloc[0]
    least = tolerance * (base["upper"] - base["lower"])
    idle, lines = [], []
    for (term, form), own in rows[rows["term"] != "core"].groupby(["term", "form"], sort=False):
        r, title = own.sort_values("weight").iloc[0], ", ".join(filter(None, [term.replace("_", " "), form]))
        words = {"mean": ("raises the mean", "lowers the mean"), "lower": ("pulls the lower tail up", "pushes the lower tail down"),
                 "upper": ("pushes the upper tail up", "pulls the upper tail down")}  # fmt: skip
        parts = [f"{words[k][int(r[f'{k}_change'] < 0)]} ({base[k]:.2f} to {r[k]:.2f})"
                 for k in words if abs(r[f"{k}_change"]) > (least / 5 if k == "mean" else least)]  # fmt: skip
        if parts:
            lines.append(f"- **{title}** (weight {r['weight']:g}) {listing(parts)}.")
        else:
            idle.append(title)
    return "\n".join([*lines, f"- No bias to speak of: {listing(f'*{title}*' for title in idle)}."])


def walk_findings(widths: pd.DataFrame) -> str:
    """How far each kind of target misses the true width, where it does so most."""
    std = widths.groupby(["kind", "lambda"])["value"].std(ddof=0).unstack("kind")
    std = std[(std.index > 0) & (std.index < 1)]
    parts = []
    for kind in ("comonotone", "mixture"):
        off = std[kind] / std["true"] - 1
        worst = off.abs().idxmax()
        parts.append(f"with *{kind}* targets its width is off by up to {100 * off[worst]:+.0f} % (at lambda {worst:g})")
    return "What a critic without error learns of the first state, for 0 < lambda < 1: " + listing(parts) + "."


def metrics(bias: pd.DataFrame, kappa: pd.DataFrame) -> dict:
    """For `dvc metrics show`: errors at default weights by distribution, term and form; mean read-outs by p and kappa."""
    tree: dict = {"bias": {}, "kappa": {}}
    for r in bias.drop_duplicates(["distribution", "term", "form"]).itertuples():
        node = tree["bias"].setdefault(r.distribution, {}).setdefault(r.term, {})
        node = node.setdefault(r.form, {}) if r.form else node
        node.update(mean=r.mean_error, lower=r.lower_error, upper=r.upper_error)
    for r in kappa.itertuples():
        tree["kappa"].setdefault(f"p = {r.p:g}", {})[f"{r.kappa:g}"] = r.found
    return tree
