"""Tables, metrics and sentences about the bias of each term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from dvpo_lib.experiments.known_distributions.distributions import (
    DISTRIBUTIONS,
    QUANTILE_COUNT,
    SHOWN_DISTRIBUTION,
    curve_statistics,
)
from dvpo_lib.experiments.known_distributions.term_bias import START_WIDTHS, find_minimisers
from dvpo_lib.functional.quantiles import ensemble_quantiles, midpoint_levels
from dvpo_lib.reporting.prose import join_words


def bias_frames(
    q: Tensor, cases: Sequence[Mapping[tuple[str, str], float]], names: Iterable[str] = tuple(DISTRIBUTIONS)
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Quantile curves of minimisers, and their errors.

    Args:
        q: (D, C, 2, M) quantiles of `find_minimisers`.
        cases: The cases of `find_minimisers`, of at most one term each; the first one is the core alone.
        names: Keys of DISTRIBUTIONS.

    Returns:
        curves: Columns distribution, term, form, weight, level, value (ensemble of the heads).
        bias: Columns distribution, term, form, weight; for mean, lower and upper (tail means) the value, `*_error`
            against the exact distribution and `*_change` against the core; `apart`, the largest distance of the
            heads. Return units.
    """
    curves, rows = [], []
    for d, name in enumerate(names):
        exact = DISTRIBUTIONS[name](100_000)
        truth, base = curve_statistics(exact), {}
        for c, case in enumerate(cases):  # of one term at most
            [((term, form), w)] = case.items() or [(("core", ""), 0.0)]
            z, key = ensemble_quantiles(q[d, c]), {"distribution": name, "term": term, "form": form, "weight": w}
            found = curve_statistics(z)
            base = base or found
            row = key | found | {f"{k}_error": v - truth[k] for k, v in found.items()}
            row |= {f"{k}_change": v - base[k] for k, v in found.items()}
            rows.append({**row, "apart": (q[d, c, 0] - q[d, c, 1]).abs().max().item()})
            curves.append(pd.DataFrame({**key, "level": midpoint_levels(z.shape[-1], dtype=z.dtype), "value": z}))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(rows)


def bias_table(bias: pd.DataFrame, apart: float = 0.1) -> pd.DataFrame:
    """Errors for a notebook: rows term, form and weight, one column per distribution, "mean / lower / upper" cells.

    Args:
        bias: Table of `bias_frames`.
        apart: A weight gets a star if its two heads end further apart than this in some quantile, return units.
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


def bias_findings(bias: pd.DataFrame, name: str = SHOWN_DISTRIBUTION, tolerance: float = 0.03) -> str:
    """The effect of each form alone on one distribution at its default weight, as a Markdown list.

    Args:
        bias: Table of `bias_frames`.
        name: Key of DISTRIBUTIONS.
        tolerance: Smallest change that counts, as a share of the distance between the tail means.
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
    """Errors at default weights for `dvc metrics show`: {distribution: {term: {form: {mean, lower, upper}}}}."""
    tree: dict = {}
    for r in bias.drop_duplicates(["distribution", "term", "form"]).itertuples():
        node = tree.setdefault(r.distribution, {}).setdefault(r.term, {})
        node = node.setdefault(r.form, {}) if r.form else node
        node.update(mean=r.mean_error, lower=r.lower_error, upper=r.upper_error)
    return tree


def truth_and_starts(name: str = SHOWN_DISTRIBUTION) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A distribution and the critics before the update, for figures.

    Returns:
        truth: Columns level, value.
        starts: Columns form, level, value.
    """
    z, tau = DISTRIBUTIONS[name](QUANTILE_COUNT), midpoint_levels(QUANTILE_COUNT, dtype=torch.float64)
    starts = [
        pd.DataFrame({"form": f"previous, {s}", "level": tau, "value": z.mean() + width * (z - z.mean())})
        for s, width in START_WIDTHS.items()
        if width != 1
    ]
    return pd.DataFrame({"level": tau, "value": z}), pd.concat(starts)


def learned_curve(
    kappa: float, weights: Mapping[tuple[str, str], float], name: str = SHOWN_DISTRIBUTION
) -> tuple[pd.DataFrame, str]:
    """The minimiser of the core plus some terms, for the sliders of the notebook.

    Args:
        kappa: Threshold of the Huber loss, return units.
        weights: {(term, form): weight}, keys of TERM_FORMS.
        name: Key of DISTRIBUTIONS.

    Returns:
        The curve (columns level, value, truth) and a sentence.
    """
    q = ensemble_quantiles(find_minimisers([weights], [name], kappa, steps=800)[0, 0])
    truth = DISTRIBUTIONS[name](QUANTILE_COUNT)
    found, right = curve_statistics(q), curve_statistics(truth)
    titles = {"mean": "mean", "lower": "lower tail", "upper": "upper tail"}
    parts = [f"{title} {found[k]:.2f} (truth {right[k]:.2f})" for k, title in titles.items()]
    return pd.DataFrame(
        {"level": midpoint_levels(QUANTILE_COUNT, dtype=q.dtype), "value": q, "truth": truth}
    ), f"Learned: {join_words(parts)}."
