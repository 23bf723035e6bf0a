"""Findings after training (notebooks 02 to 05): critics, methods, ablations, failures.

Every function returns Markdown and chooses its sentences by the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dvpo_lib.reporting import statistics
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.prose import (
    MISSING,
    diverged_cells,
    interval_text,
    join_words,
    missing_text,
    noise_phrase,
    number_text,
    percent_text,
    signed_points,
    unsigned_points,
)
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, equal_methods

ROLE_PHRASES = {
    "ID": "in distribution (ID)",
    "OOD": "out of distribution (OOD)",
    "ALL": "over all test sets",
    "transfer": "in the untrained families (transfer)",
}


def critic_findings(scores: pd.DataFrame) -> str:
    """Explained variance, CRPS and coverage of the quantile critic, against the scalar one and a constant.

    Args:
        scores: A frame of `critic_score_table`: a row per critic, noise, family, seed and position (`at`).
    """
    lines = []
    for noise, cell in scores[scores["at"] == "last"].groupby("noise", sort=False):
        names = ["quantile", "scalar", "constant"]
        rows = statistics.complete_mean(cell.groupby("critic")[["ev_true", "crps", "cover80"]]).reindex(names)
        q, s, c = (rows.loc[name] for name in names)
        knows = f": it knows {'more than' if q['crps'] < c['crps'] else 'no more than'} that"
        knows = "" if np.isnan(q["crps"] - c["crps"]) else knows
        lines.append(
            f"- **{noise_phrase(noise, capital=True)}** the quantile critic explains, at the last token, "
            f"{number_text(q['ev_true'])} of the variance of the *true* outcome, the scalar one "
            f"{number_text(s['ev_true'])}. Its distribution has a CRPS of {number_text(q['crps'], 3)}, against "
            f"{number_text(c['crps'], 3)} of the rewards' overall distribution (no critic){knows}. Of the received "
            f"rewards, {percent_text(q['cover80'])} fall inside the predicted 80 % interval."
        )
    return "\n".join(lines)


def step_findings(changes: Mapping[str, Mapping[str, float]], noise: str) -> str:
    """Whether critics notice the first wrong word or judge by the first one alone, which names a chain's style.

    Args:
        changes: Results of `responses.value_change_at_error`, by critic.
        noise: The noise of the critics' training rewards.
    """
    parts = [
        f"the {look_of(c).name} by {d['wrong']:+.2f} (its values differ by {d['style']:.2f} after the first word)"
        for c, d in changes.items()
    ]
    count = next(iter(changes.values()))["count"]
    text = (
        f"Over {count} held-out responses with a wrong step, {noise_phrase(noise)}, the predicted mean moves at the "
        f"first wrong word: {join_words(parts)}. "
    )
    quantile = changes.get("quantile", next(iter(changes.values())))
    if quantile["wrong"] > -0.1 and quantile["style"] > 0.1:
        text += "The quantile critic judges by the first word and does not check the rest."
    elif quantile["wrong"] > -0.1:
        text += "The quantile critic judges neither by the first word nor by the wrong one."
    else:
        text += "The quantile critic sees that something went wrong."
    return text


def training_findings(final: pd.DataFrame, base: Mapping[str, float], metric: str = "sampled") -> str:
    """Scores of one method under each noise, against the base policy and its own noise-free result.

    Args:
        final: As in `statistics.run_scores`, of one method.
        base: Scores of the base policy, by role.
        metric: The metric to report.
    """
    s = statistics.summarise_scores(final, metric).set_index(["noise", "role"])
    base = {role: base.get(role, np.nan) for role in dict.fromkeys([*final["role"], "ID"])}
    name = look_of(final["method"].iloc[0]).name
    lines, lost = [], diverged_cells(statistics.diverged_runs(final))
    for noise in dict.fromkeys(final["noise"]):
        parts = []
        for role in dict.fromkeys(final["role"]):
            r = s.loc[(noise, role)]
            score, change = interval_text(r["iqm"], r["low"], r["high"]), signed_points(r["iqm"] - base[role])
            parts.append(f"{score} {ROLE_PHRASES[role]} ({change})")
        gap = lost.get((final["method"].iloc[0], noise))
        reached = f"has no score: {gap}" if gap else f"reaches {join_words(parts)}"
        lines.append(f"- **{noise_phrase(noise, capital=True)}** {name} {reached}.")
    if "none" in s.index and len(set(final["noise"])) > 1:
        free = s.loc[("none", "ID"), "iqm"] - base["ID"]
        for noise in dict.fromkeys(n for n in final["noise"] if n != "none"):
            kept = s.loc[(noise, "ID"), "iqm"] - base["ID"]
            under = noise_phrase(noise, capital=True)
            if np.isnan(free) or np.isnan(kept):
                lines.append(f"- {under} the share of the noise-free gain (ID) that is left is missing.")
            elif free > 0.02:
                lines.append(f"- {under} {percent_text(kept / free)} of the noise-free gain (ID) is left.")
            else:
                lines.append("- There is no noise-free gain of which a share could be kept.")
    n = int(s["n"].min())
    bands = "In brackets: 95 % bootstrap intervals" if n != 1 else "One seed, so no intervals"
    lines.append(f"- {bands}; in parentheses: the change over the base policy.")
    lines += _missing_line(final, metric)
    return "\n".join(lines)


def _missing_line(final: pd.DataFrame, metric: str) -> list[str]:
    """One list item that names runs that diverged and missing scores, or nothing."""
    text = missing_text(statistics.missing_scores(final, metric), statistics.diverged_runs(final))
    return [f"- {text}"] if text else []


def comparison_findings(final: pd.DataFrame, baseline: str = "ppo", metric: str = "sampled") -> str:
    """Ranking of methods under each noise (ID) and, with ten seeds, those that differ from the baseline."""
    s, p = statistics.summarise_scores(final, metric), statistics.improvement_table(final, baseline, metric)
    lines, lost = [], diverged_cells(statistics.diverged_runs(final))
    n = final.groupby(["noise", "method"])["seed"].nunique().min()
    p = p.head(0 if n < FEWEST_SEEDS else None)
    for noise in dict.fromkeys(s["noise"]):
        own = s[(s["noise"] == noise) & (s["role"] == "ID")].sort_values("iqm", ascending=False)
        own["gap"] = [lost.get((method, noise), MISSING) for method in own["method"]]
        order = join_words(
            f"{display_name(r.method)} {interval_text(r.iqm, r.low, r.high, gap=r.gap)}" for r in own.itertuples()
        )
        versus = p[(p["noise"] == noise) & (p["role"] == "ID")]
        up = [f"{display_name(r.method)} (P = {r.probability:.2f})" for r in versus.itertuples() if r.low > 0.5]
        down = [f"{display_name(r.method)} (P = {r.probability:.2f})" for r in versus.itertuples() if r.high < 0.5]
        unknown = [display_name(r.method) for r in versus.itertuples() if np.isnan(r.probability)]
        text = f"- **{noise_phrase(noise, capital=True)}** (ID): {order}. "
        if up:
            text += f"Better than {display_name(baseline)} beyond the interval: {join_words(up)}. "
        if down:
            text += f"Worse than {display_name(baseline)}: {join_words(down)}. "
        if unknown:
            text += f"Not comparable with {display_name(baseline)}, since scores are missing: {join_words(unknown)}. "
        if len(versus) and not up and not down and len(unknown) < len(versus):
            text += f"None differs from {display_name(baseline)} beyond its interval."
        pairs = [map(display_name, pair) for pair in equal_methods(final, noise)]
        text += "".join(f" {join_words(pair)} have equal scores in every run." for pair in pairs)
        lines.append(text.strip())
    if n < FEWEST_SEEDS:
        lines.append(f"- {_too_few(n, 'method is better')}")
    lines += _missing_line(final, metric)
    return "\n".join(lines)


def failure_findings(
    final: pd.DataFrame, base: Mapping[str, float], baseline: str = "ppo", metric: str = "sampled"
) -> str:
    """Failures: no gain over the base policy; DVPO behind the baseline or behind clipped rewards, with ten seeds."""
    n = final.groupby(["noise", "method"])["seed"].nunique().min()
    if n < FEWEST_SEEDS:
        return "\n".join([f"- {_too_few(n, 'method fails')}", *_missing_line(final, metric)])
    s = statistics.summarise_scores(final, metric).set_index(["noise", "method", "role"])["iqm"]
    methods, lines = list(dict.fromkeys(final["method"])), []
    for noise in dict.fromkeys(final["noise"]):
        idle = [
            display_name(m) for m in methods if (noise, m, "ID") in s.index and s[noise, m, "ID"] < base["ID"] + 0.02
        ]
        under = noise_phrase(noise, capital=True)
        if idle:
            lines.append(f"- {under} these do not improve on the base policy (ID): {join_words(idle)}.")
        for method in ("dvpo", "dvpo_winsorised"):
            for other in (baseline, "ppo_clip_reward"):
                if {(noise, method, "ID"), (noise, other, "ID")} <= set(s.index):
                    behind = s[noise, other, "ID"] - s[noise, method, "ID"]
                    if behind > 0.01:
                        gap = f"{unsigned_points(behind)} behind {display_name(other)}"
                        lines.append(f"- {under} {display_name(method)} is {gap} (ID).")
    lines += _missing_line(final, metric)
    return "\n".join(lines) or "- Nothing of this kind: every method improved, and none of ours is behind a baseline."


def clip_cost(final: pd.DataFrame, level: float, baseline: str = "ppo", metric: str = "sampled") -> str:
    """Cost of the clipped control without noise, with nothing to clip; "" on too few seeds.

    Args:
        final: As in `statistics.run_scores`.
        level: The batch quantile at which rewards are cut.
        baseline: The method without the clip.
        metric: The metric to report.
    """
    s = statistics.summarise_scores(final, metric).set_index(["noise", "method", "role"])["iqm"]
    keys = [("none", m, "ID") for m in (baseline, "ppo_clip_reward")]
    own = final[(final["noise"] == "none") & final["method"].isin([baseline, "ppo_clip_reward"])]
    if not set(keys) <= set(s.index) or own.groupby("method")["seed"].nunique().min() < FEWEST_SEEDS:
        return ""
    cost = s[keys[0]] - s[keys[1]]
    if np.isnan(cost):
        return "- The cost of clipped rewards without noise is missing, since scores are missing."
    if cost < 0.01:
        return f"- Without noise {display_name('ppo_clip_reward')} loses nothing against {display_name(baseline)} (ID)."
    return (
        f"- Without noise {display_name('ppo_clip_reward')} ends {unsigned_points(cost)} behind "
        f"{display_name(baseline)} (ID). Rewards are cut at the batch's {percent_text(level)} quantiles: once fewer "
        f"than {percent_text(level)} of a batch are wrong, all its clipped rewards are equal, and nothing more is "
        "learned."
    )


def report_findings(final: pd.DataFrame, base: Mapping[str, float], ablation: pd.DataFrame, reward_clip: float) -> str:
    """Comparison, failures and ablation in a few lines of Markdown, for README.md."""
    noise = noise_phrase(ablation["noise"].iloc[0])
    failed = "\n".join(filter(None, [failure_findings(final, base), clip_cost(final, reward_clip)]))
    return (
        f"**Comparison** (sampled score; the base policy has {percent_text(base['ID'])} ID)\n\n"
        f"{comparison_findings(final)}\n\n**What did not work**\n\n{failed}\n\n"
        f"**Terms of the critic's loss** {noise}, each row against the one before it\n\n{ablation_findings(ablation)}\n"
    )


def ablation_findings(final: pd.DataFrame, metric: str = "sampled") -> str:
    """Each ablation row against the previous one, "without" rows against the full one, paired by seed."""
    rows, lines, separate = list(dict.fromkeys(final["method"])), [], 0
    full, n = [r for r in rows if r.startswith("+")][-1], final.groupby("method")["seed"].nunique().min()
    steps = [(a, b) for a, b in zip(rows, rows[1:], strict=False) if b.startswith("+")]
    for before, row in [*steps, *((full, r) for r in rows if r.startswith("without"))]:
        two = final[final["method"].isin([before, row])]
        changes = statistics.paired_differences(two, before, metric, overall=True).set_index("role")
        d = changes.reindex(["ALL"]).loc["ALL"]
        if np.isnan(d["difference"]):
            lines.append(f"- **{row}**: the change is missing.")
            continue
        clear = np.isfinite(d["low"]) and (d["low"] > 0 or d["high"] < 0)
        separate += clear
        span = f" [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" if np.isfinite(d["low"]) else ""
        doubt = "" if clear or n < FEWEST_SEEDS else " (not separable from zero)"
        lines.append(f"- **{row}**: {100 * d['difference']:+.1f} points{span} over all test sets{doubt}.")
    told = f"In all, {separate} of {len(lines)} changes differ from zero beyond the interval ({n} seeds each)."
    lines.append(f"- {told if n >= FEWEST_SEEDS else _too_few(n, 'change is real')}")
    lines += _missing_line(final, metric)
    return "\n".join(lines)


def _too_few(seeds: int, what: str) -> str:
    return f"{seeds} seed{'s are' if seeds > 1 else ' is'} too few to say which {what}: claims rest on {FEWEST_SEEDS}."


def budget_findings(curves: pd.DataFrame, final: pd.DataFrame) -> str:
    """Scored rollouts and seeds of every method, with a warning if budgets are unequal."""
    spent = curves.groupby("method", sort=False)["rollouts"].max()
    seeds = final.groupby("method", sort=False)["seed"].nunique()
    if spent.nunique() == 1:
        text = f"**Budget.** Every method got {spent.iloc[0]:,} scored rollouts a run, critic pretraining included"
    else:
        each = join_words(f"{display_name(m)} {n:,}" for m, n in spent.items())
        text = f"**Budget.** The scored rollouts a run, critic pretraining included, are **not equal**: {each}"
    each = join_words(f"{display_name(m)} {n} seeds" for m, n in seeds.items())
    runs = f"{seeds.iloc[0]} seeds" if seeds.nunique() == 1 else each
    return (
        f"{text}; {runs} for each noise. All start from the same base policy and share one trainer and its "
        "settings, but for what the table of methods names."
    )


def noise_strength(final: pd.DataFrame, base: Mapping[str, float], baseline: str = "ppo") -> str:
    """How much of its noise-free gain (ID) each noise costs the baseline."""
    s = statistics.summarise_scores(final[final["method"] == baseline]).set_index(["noise", "role"])["iqm"]
    if ("none", "ID") not in s.index:
        return ""
    gain, lines = s["none", "ID"] - base["ID"], []
    for noise in dict.fromkeys(n for n in final["noise"] if n != "none"):
        if np.isnan(gain) or np.isnan(s[noise, "ID"]):
            lines.append(f"{display_name(noise)}: missing")
            continue
        if gain <= 0.02:
            return f"{display_name(baseline)} gains nothing without noise, so no strength of noise can be judged."
        lost = 1 - (s[noise, "ID"] - base["ID"]) / gain
        lines.append(f"{display_name(noise)} {percent_text(lost)}")
    start = f"**Strength of the noise**, as the share of its noise-free gain that {display_name(baseline)} loses (ID)"
    return f"{start}: {join_words(lines)}." if lines else ""
