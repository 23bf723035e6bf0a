"""Tables, metrics and index pages of the notebooks, computed from tidy frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from dvpo_lib.reporting import statistics
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import MISSING, diverged_cells, interval_text, number_text, percent_text
from dvpo_lib.reporting.statistics.comparisons import role_differences

PAGE_FOLDERS = {
    "The method and its mathematics": "00_method",
    "Data, base policy and noise": "01_data_and_noise",
    "Critic pretraining": "02_critic_pretraining",
    "Tail-shaping ablations": "04_tail_shaping_ablations",
}

ROLES = {"ID": "ID", "OOD": "longer problems (OOD)", "transfer": "other families (transfer)", "ALL": "all test sets"}

MANY_COLUMNS = 8  # wider tables are set smaller, to fit a page 1280 pixels wide
TIED_SPACE = r"(?<!,) (?!\()|(?<=,) (?![A-Za-z(])"  # in a cell: no line ends there
UNBROKEN = 20  # characters: of an interval with signs; longer texts may break at every space


def _unbroken(cell):
    """A short text that breaks only before a round bracket and between a comma and a word; signs stay as they are."""
    if not isinstance(cell, str) or len(cell) > UNBROKEN:
        return cell
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", "\N{NON-BREAKING HYPHEN}", cell)
    return re.sub(TIED_SPACE, "\N{NO-BREAK SPACE}", text)


def show_table(
    frame: pd.DataFrame,
    caption: str,
    formats: Mapping[str, str] | None = None,
    first: str = "0",
    marks: Mapping[str, str] | None = None,
):
    """A styled table with a caption and without the index; equal input gives equal HTML.

    Args:
        frame: The rows.
        caption: Text above the table.
        formats: Format strings by column, such as {"rate": "{:.0%}"}.
        first: Least width of the first column, such as "15em", for a table of many columns.
        marks: {first word of a cell: its style}, such as {"refuted": "background-color: #fadcc8"}.
    """
    uuid = "t" + "".join(c for c in caption.lower() if c.isalnum())[:40]
    styles = [
        {"selector": "th, td", "props": "text-align: left; padding: 0.25em 0.9em 0.25em 0"},
        {"selector": "td:first-child", "props": f"min-width: {first}"},
        {"selector": "caption", "props": "text-align: left; color: #555; padding-bottom: 0.4em"},
    ]
    if frame.shape[1] > MANY_COLUMNS:
        styles.append({"selector": "", "props": "font-size: 0.84em"})
    frame = frame.reset_index(drop=True).map(_unbroken)
    formats = {c: f for c, f in (formats or {}).items() if c in frame}
    styler = frame.style.format(formats, na_rep="–", precision=3, escape="html")  # `<user>` is a word, not a tag
    styler = styler.set_uuid(uuid).hide(axis="index").set_caption(caption).set_table_styles(styles)
    if marks:
        styler = styler.map(lambda cell: marks.get(re.split(r"\s", str(cell), maxsplit=1)[0], ""))
    return styler.relabel_index([display_name(str(c)) for c in frame.columns], axis="columns")


def base_by_role(base: pd.DataFrame, families: Iterable[str], metric: str = "sampled") -> dict[str, float]:
    """Score of the base policy by role (ID, OOD, transfer, ALL), averaged over the trained families.

    NaN if a test set of the role has no score; every family should have both of its sets.

    Args:
        base: Columns suite (`<family>_id` or `<family>_ood`), metric, value.
        families: The trained families.
        metric: The metric to keep.
    """
    value = base[base["metric"] == metric].set_index("suite")["value"]
    known = dict.fromkeys([*(suite.rpartition("_")[0] for suite in value.index), *families])
    absent = [s for family in known for s in (f"{family}_id", f"{family}_ood") if s not in value.index]
    value = pd.concat([value, pd.Series(np.nan, absent)]) if absent else value
    rows = [
        {"role": "transfer" if not suite.startswith(family) else "ID" if suite.endswith("_id") else "OOD", "value": v}
        for family in families
        for suite, v in value.items()
    ]
    by_role = statistics.complete_mean(pd.DataFrame(rows).groupby("role")["value"])
    return {**by_role.to_dict(), "ALL": float(value.mean(skipna=False))}


def base_by_family(base: pd.DataFrame, metric: str = "sampled") -> dict[str, float]:
    """In-distribution score of the base policy, by family."""
    own = base[(base["metric"] == metric) & base["suite"].str.endswith("_id")]
    return dict(zip(own["suite"].str.removesuffix("_id"), own["value"], strict=True))


def final_table(
    final: pd.DataFrame, metric: str = "sampled", base: Mapping[str, float] | None = None, overall: bool = True
) -> pd.DataFrame:
    """Scores in per cent, "IQM [low, high]": a row per noise and method, a column per role, the base policy first."""
    s = statistics.summarise_scores(final, metric, overall=overall)
    methods = list(dict.fromkeys(s["method"]))
    lost = diverged_cells(statistics.diverged_runs(final))
    gaps = [lost.get((r.method, r.noise), MISSING) for r in s.itertuples()]
    s["cell"] = [interval_text(r.iqm, r.low, r.high, 1, "", gap) for r, gap in zip(s.itertuples(), gaps, strict=True)]
    s = s.sort_values("noise", key=lambda c: c.map(list(dict.fromkeys(c)).index), kind="stable")
    wide = s.pivot(index=["noise", "method"], columns="role", values="cell")
    wide = wide.reindex(
        index=list(dict.fromkeys(zip(s["noise"], s["method"], strict=True))), columns=list(dict.fromkeys(s["role"]))
    ).reset_index()
    wide.insert(2, "runs", s.groupby(["noise", "method"], sort=False)["n"].max().to_numpy())
    wide["noise"] = wide["noise"].map(display_name)
    wide["method"] = [look_of(m, methods).name for m in wide["method"]]
    if base:
        first = {"noise": "", "method": "base policy", **{r: points_text(v) for r, v in base.items() if r in wide}}
        wide = pd.concat([pd.DataFrame([first]), wide.astype(object)], ignore_index=True)
    return wide.astype(object).fillna("")


def setting_table(runs: pd.DataFrame, paper: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Scores over all test sets in per cent, "IQM [low, high]": a row per setting, a column per noise.

    Args:
        runs: Rows of a study whose settings stand in column `method`.
        paper: {setting: what the paper says of it}; None for no such column.
    """
    table = final_table(runs)
    wide = table.pivot(index="method", columns="noise", values="ALL")
    wide = wide.reindex(index=dict.fromkeys(table["method"]), columns=dict.fromkeys(table["noise"])).fillna("")
    seeds = table.groupby("method")["runs"].agg(["min", "max"]).reindex(wide.index)
    counts = [f"{a}" if a == b else f"{a} to {b}" for a, b in seeds.itertuples(index=False)]
    wide = wide.rename_axis(index="setting", columns=None).reset_index()
    if paper is not None:
        wide.insert(1, "paper", wide["setting"].map(paper).fillna(""))
    return wide.assign(seeds=counts)


def role_difference_table(differences: pd.DataFrame) -> pd.DataFrame:
    """Rows of `role_differences` as they are shown: a row for each noise and rival, a column for each role."""
    rows = []
    for (noise, rival), own in differences.groupby(["noise", "method"], sort=False):
        own = own.set_index("role")
        row = {"noise": display_name(noise), "DVPO minus": display_name(rival)}
        for role in (role for role in ROLES if role in own.index):
            d, low, high = 100 * own.loc[role, ["difference", "low", "high"]].astype(float)
            row[ROLES[role]] = MISSING if np.isnan(d) else f"{d:+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def size_difference_table(sizes: Mapping[str, pd.DataFrame], rivals: Iterable[str]) -> pd.DataFrame:
    """DVPO's score minus that of each rival over all test sets, a column for each size of the policy.

    Args:
        sizes: {size: rows of runs with a policy of that size, of one family}.
        rivals: The methods to compare with.
    """
    columns = {}
    for size, runs in sizes.items():
        own = role_differences(runs, "dvpo", rivals)
        shown = role_difference_table(own[own["role"] == "ALL"]).set_index(["noise", "DVPO minus"])
        seeds = runs["seed"].nunique()
        columns[f"{size} ({seeds} seeds)"] = shown[ROLES["ALL"]]
    order = next(iter(columns.values())).index
    return pd.DataFrame(columns).reindex(order).dropna().reset_index()


def points_text(share: float) -> str:
    """A share in per cent without its unit, or "missing"."""
    return number_text(100 * share, 1)


def summarise_metrics(final: pd.DataFrame) -> pd.DataFrame:
    """Interquartile mean and interval of every metric: method, noise, role, iqm, low, high, n, metric."""
    metrics = list(dict.fromkeys(final["metric"]))
    found = [statistics.summarise_scores(final, m, overall=True).assign(metric=m) for m in metrics]
    return pd.concat(found, ignore_index=True)


def final_metrics(final: pd.DataFrame, curves: pd.DataFrame) -> dict:
    """For `dvc metrics show`: {noise: {role: {iqm, low, high}}}, by method if there are several, and rollouts.

    A single seed has no interval: low and high are left out. A missing score is null. Runs that diverged are counted.
    """
    s = statistics.summarise_scores(final, overall=True)
    tree: dict = {}
    for r in s.itertuples():
        cell = {"iqm": _or_null(r.iqm), **({"low": r.low, "high": r.high} if np.isfinite(r.low) else {})}
        keys = (r.noise, r.role) if s["method"].nunique() == 1 else (r.method, r.noise, r.role)
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node.update(cell)
    diverged = {"diverged": n} if (n := len(statistics.diverged_runs(final))) else {}
    return {"accuracy": tree, "rollouts": int(curves["rollouts"].max()), "seeds": final["seed"].nunique(), **diverged}


def _or_null(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def headline_metrics(final: pd.DataFrame) -> dict:
    """For `dvc exp show`: the sampled score in distribution (ID), {method: {noise: value or null}}."""
    scores: dict = {}
    for r in statistics.summarise_scores(final).itertuples():
        if r.role == "ID":
            scores.setdefault(r.method, {})[r.noise] = _or_null(r.iqm)
    return scores


def critic_table(scores: pd.DataFrame, at: str = "last") -> pd.DataFrame:
    """Explained variance (received, true), CRPS and coverage of 50, 80 and 90 %: means over families and seeds."""
    own = scores[scores["at"] == at]
    own = own.sort_values("noise", key=lambda c: c.map(list(dict.fromkeys(c)).index), kind="stable")
    columns = ["ev_received", "ev_true", "crps", "cover50", "cover80", "cover90"]
    groups = own.groupby(["noise", "critic"], sort=False)[columns]
    wide, points = statistics.complete_mean(groups).reset_index(), groups.count().reset_index()
    wide["noise"], wide["critic"] = wide["noise"].map(display_name), [look_of(c).name for c in wide["critic"]]
    for c in columns:
        if c.startswith("cover"):  # a critic that predicts points has no intervals
            wide[c] = [percent_text(v) if n else "" for v, n in zip(wide[c], points[c], strict=True)]
        else:
            wide[c] = [number_text(v, 3) for v in wide[c]]
    return wide.rename(
        columns={
            "ev_received": "explained variance, received",
            "ev_true": "explained variance, true",
            "crps": "CRPS (of a point: its error)",
            "cover50": "inside 50%",
            "cover80": "inside 80%",
            "cover90": "inside 90%",
        }
    )


def error_auc_table(found: pd.DataFrame) -> pd.DataFrame:
    """AUCs of the first wrong step as text: rows method and of (advantages, TD errors), a column for each noise.

    Args:
        found: Columns method, noise, seed, auc and td_auc.
    """
    named = found.assign(**{name: found[name].map(display_name) for name in ("method", "noise")})
    long = named.rename(columns={"auc": "advantages", "td_auc": "TD errors"}).melt(
        ["method", "noise", "seed"], ["advantages", "TD errors"], var_name="of", value_name="auc"
    )
    cells = long.groupby(["of", "method", "noise"], sort=False)["auc"]
    shown = cells.agg(_mean_and_range)
    return shown.unstack(sort=False).reset_index() if len(shown) else pd.DataFrame(columns=["of", "method"])


def _mean_and_range(values: pd.Series) -> str:
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def critic_auc_table(runs: pd.DataFrame, at: str = "last") -> pd.DataFrame:
    """AUC with which pretrained critics tell right answers from wrong ones: a row for each noise and rate.

    Args:
        runs: Rows of study `calibration`.
        at: Position of the token.
    """
    own = runs[(runs["metric"] == "auc_true") & (runs["suite"] == at)]
    cells = own.groupby(["noise", "method"], sort=False)["value"]
    table = (
        cells.agg(_mean_and_range)
        .unstack(sort=False)
        .rename(columns={"dvpo": "quantile critic", "ppo": "scalar critic"})
    )
    return table.rename_axis(columns=None).reset_index()


def critic_metrics(scores: pd.DataFrame) -> dict:
    """For `dvc metrics show`: explained variance, CRPS and coverage, {critic: {noise: {at: ...}}}, means over seeds."""
    tree: dict = {}
    columns = ["ev_received", "ev_true", "crps", "cover50", "cover80", "cover90"]
    groups = scores.groupby(["critic", "noise", "at"], sort=False)[columns]
    counts = groups.count()
    for key, row in statistics.complete_mean(groups).iterrows():
        critic, noise, at = key
        known = {k: _or_null(v) for k, v in row.items() if counts.loc[key, k]}  # null: missing in some of the runs
        tree.setdefault(critic, {}).setdefault(noise, {})[at] = known
    return tree


def page_addresses(methods: Iterable[str]) -> dict[str, str]:
    """{title: address} of all rendered notebooks, relative to the report's folder."""
    found = {title: f"../{name}/notebook.html" for title, name in PAGE_FOLDERS.items()}
    training = {f"Training: {display_name(m)}": f"../03_dvpo_training/{m}/notebook.html" for m in methods}
    ablations = found.popitem()
    last = {"The report": "notebook.html", "The evidence": "../06_evidence/notebook.html"}
    return {**found, **training, ablations[0]: ablations[1], **last}


def page_links(addresses: Mapping[str, str]) -> str:
    """Links as a Markdown list."""
    return "\n".join(f"- [{title}]({address})" for title, address in addresses.items())
