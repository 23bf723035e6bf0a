"""The paper's own figures beside ours: families, domains of dialogue, and the ablation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from dvpo_lib.reporting import statistics, tables
from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import MISSING, diverged_cells, interval_text
from dvpo_lib.reporting.tables import points_text

# The paper's own scores (per cent), as far as its summaries give them: other models, tasks and scale.
PAPER_NOTE = (
    "The paper's figures are **taken from summaries of the paper** (arXiv 2512.03847): Qwen3-8B trained for 500 steps "
    "on real science and math sets. Ours are smaller policies on other problems. "
    "Compare directions and orders, never sizes."
)
PAPER_COLUMNS = ("paper: ID", "paper: other family", "paper: ALL")  # the paper's OOD is the other family
PAPER_SCORES = {  # trained family: {row: PAPER_COLUMNS}
    "science": {"base": (2.96, 58.40, 34.64), "ppo": (2.76, 63.27, 37.34), "dvpo": (3.83, 66.48, 39.63)},
    "math": {"base": (58.40, 2.96, 34.64), "ppo": (58.40, 3.16, 34.72), "dvpo": (66.45, 4.04, 39.70)},
    "dialogue": {
        "base": (86.26,),
        "ppo": (85.20,),
        "dvpo": (86.79,),
    },  # mean over domains; the summaries report no transfer
}
PAPER_ABLATION = {  # trained on science
    "base": (2.96, 58.40, 34.64),
    "core": (3.65, 61.37, 36.63),
    "+ consistency": (3.73, 63.73, 38.02),
    "+ tail calibration": (3.74, 64.42, 38.42),
    "+ mean shift": (3.29, 65.17, 38.65),
    "+ tail shape and curvature": (3.83, 66.48, 39.63),
}
PAPER_DOMAINS = {  # dialogue: mean over domains, and those domains that the summaries give
    "base": {"mean": 86.26},
    "ppo": {"mean": 85.20, "health": 90.87, "finance": 83.87},
    "grpo": {"mean": 28.75},
    "reinforce_pp": {"mean": 83.85},
    "dvpo": {"mean": 86.79, "life": 88.13, "transport": 87.73, "health": 87.67, "social": 87.67, "finance": 82.73},
}
PAPER_BEST = {  # study: {setting: what the summaries say of it}
    "quantile_counts": {f"M = {m}": "best" if m == 200 else "worse" for m in (50, 100, 200, 500)},
    # The risk interval weight: of 0, 0.05, 0.1, 0.2 and 0.5, 0.1 is best; the summaries call 0 and larger ones worse.
    "risk_weights": {
        "tail mass 0.1": "best",
        "tail mass 0.2": "worse",
        "tail mass 0.45": "worse",
        "term weights x 0": "worse",
        "term weights x 1": "best",
        "term weights x 2": "worse",
        "term weights x 5": "worse",
    },
}
DOMAINS = ("life", "transport", "health", "social", "finance")


def paper_table(final: pd.DataFrame, start: pd.DataFrame, families: Iterable[str], noise: str = "none") -> pd.DataFrame:
    """Base, PPO and DVPO after training on each family, the paper's scores beside ours, if there are any.

    Args:
        final: As in `statistics.run_scores`.
        start: Scores of the base policy: suite, metric, value.
        families: The trained families.
        noise: The noise of our runs; the paper's have none.
    """
    rows = []
    for family in families:
        own = final[(final["noise"] == noise) & (final["family"] == family)]
        s = pd.DataFrame()
        if len(own):
            s = statistics.summarise_scores(own, overall=True).set_index(["method", "role"])
        base = tables.base_by_role(start, [family])
        for name, paper in PAPER_SCORES.get(family, {"base": (), "ppo": (), "dvpo": ()}).items():
            ours = {}
            for role in ("ID", "OOD", "transfer", "ALL"):
                if name == "base":
                    ours[f"here: {role}"] = points_text(base[role])
                elif (name, role) in s.index:
                    r = s.loc[(name, role)]
                    ours[f"here: {role}"] = interval_text(r["iqm"], r["low"], r["high"], 1, unit="")
            given = dict(itertools.zip_longest(PAPER_COLUMNS, (f"{v:.2f}" for v in paper), fillvalue=""))
            rows.append(
                {"trained on": family, "": "base policy" if name == "base" else display_name(name), **given, **ours}
            )
    return pd.DataFrame(rows).fillna("")


def ablation_table(final: pd.DataFrame, base: Mapping[str, float]) -> pd.DataFrame:
    """Ablation rows: the paper's scores after training on science, beside ours."""
    s, rows = statistics.summarise_scores(final, overall=True).set_index(["method", "role"]), []
    lost = {method: gap for (method, _), gap in diverged_cells(statistics.diverged_runs(final)).items()}
    for name in ["base", *dict.fromkeys(final["method"])]:
        paper = dict.fromkeys(PAPER_COLUMNS, "")
        if name in PAPER_ABLATION:
            paper = dict(zip(paper, (f"{v:.2f}" for v in PAPER_ABLATION[name]), strict=True))
        ours = {
            f"here: {role}": points_text(base[role])
            if name == "base"
            else interval_text(*s.loc[(name, role)][["iqm", "low", "high"]], 1, "", lost.get(name, MISSING))
            for role in ("ID", "OOD", "transfer", "ALL")
        }
        rows.append({"": "base policy" if name == "base" else name, **paper, **ours})
    return pd.DataFrame(rows)


def beside_paper(final: pd.DataFrame, base: Mapping[str, float], metric: str = "sampled") -> pd.DataFrame:
    """Change over the base policy on all test sets, for the paper's ablation rows and for ours.

    Returns:
        Columns row, source, change, low, high (points), for `figures.paper_beside_ours`.
    """
    zero = PAPER_ABLATION["base"][2]
    rows = [(n, "paper", v[2] - zero, np.nan, np.nan) for n, v in PAPER_ABLATION.items() if n != "base"]
    s = statistics.summarise_scores(final, metric, overall=True)
    for r in s[s["role"] == "ALL"].itertuples():
        rows.append((r.method, "here", *(100 * (v - base["ALL"]) for v in (r.iqm, r.low, r.high))))
    return pd.DataFrame(rows, columns=["row", "source", "change", "low", "high"])


def domain_table(final: pd.DataFrame, base: pd.DataFrame, noise: str = "none") -> pd.DataFrame:
    """Dialogues by domain after training on dialogues: our mean score over runs, if any, the paper's in brackets.

    Args:
        final: As in `statistics.run_scores`, with a metric for each domain.
        base: Scores of the base policy: suite, metric, value.
        noise: The noise of our runs; the paper's have none.
    """
    own = final[(final["noise"] == noise) & (final["family"] == "dialogue")]
    own = pd.concat([base.assign(method="base"), own])
    own = own[(own["suite"] == "dialogue_id") & own["metric"].isin([*DOMAINS, "sampled"])]
    means = own.replace({"metric": {"sampled": "mean"}}).groupby(["method", "metric"], sort=False)["value"].mean()
    rows = []
    for method in dict.fromkeys([*own["method"], *PAPER_DOMAINS]):
        row = {"": "base policy" if method == "base" else display_name(method)}
        for column in (*DOMAINS, "mean"):
            ours = points_text(means[method, column]) if (method, column) in means else "–"
            paper = PAPER_DOMAINS.get(method, {}).get(column)
            row[column] = ours + (f" ({paper:.2f})" if paper else "")
        rows.append(row)
    return pd.DataFrame(rows)
