"""Findings of the tuning appendix (notebooks/A1_tuning): table of winners and sentences."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from dvpo_lib.reporting.figures.tuning import setting_name
from dvpo_lib.reporting.names import display_name, setting_text
from dvpo_lib.reporting.prose import join_words, percent_text
from dvpo_lib.reporting.statistics import complete_mean


def winner_table(winners: pd.DataFrame) -> pd.DataFrame:
    """Winners with display names and formatted values."""
    return pd.DataFrame(
        [
            {
                "method": display_name(w.method),
                "tuned beside the learning rate": setting_name(w.setting),
                "winner": f"{setting_text(w.learning_rate)}, {setting_text(w.value)}",
                "its score": percent_text(w.score, 1),
                "previous setting": f"{setting_text(w.stood_learning_rate)}, {setting_text(w.stood_value)}",
                "score of the previous one": "not on the grid" if pd.isna(w.stood) else percent_text(w.stood, 1),
                "changed": "yes" if w.changed else "no",
            }
            for w in winners.itertuples()
        ]
    )


def tuned_rates(winners: pd.DataFrame, methods: Iterable[str]) -> str:
    """A sentence: the learning rate that tuning chose for each method.

    Args:
        winners: The file of winners, columns method and learning_rate.
        methods: The methods to name.
    """
    rates = winners.drop_duplicates("method").set_index("method")["learning_rate"]
    parts = [f"{display_name(method)} learns at {setting_text(rates[method])}" for method in methods]
    return f"As tuned, {join_words(parts)}."


def effort_findings(table: pd.DataFrame) -> str:
    """Points, seeds and rollouts of each method, with a warning if they are unequal."""
    by = table.groupby("method", sort=False)
    points = by.apply(lambda t: len(t[["learning_rate", "value"]].drop_duplicates()), include_groups=False)
    counts = pd.DataFrame(
        {
            "points a method": points,
            "development seeds a point": by["seed"].nunique(),
            "scored rollouts a run": by["rollouts"].max(),
        }
    )
    text = (
        f"**Effort.** {len(table)} runs of {len(counts)} methods, trained on {join_words(table['family'].unique())}. "
    )
    for name, column in counts.items():
        same = column.nunique() == 1
        each = f"{column.iloc[0]:,}" if same else join_words(f"{display_name(m)} {n:,}" for m, n in column.items())
        text += f"{name[0].upper()}{name[1:]}: {each}{'' if same else ' (**not equal**)'}. "
    return text + "Critic pretraining is part of the rollouts."


def tuning_findings(table: pd.DataFrame, winners: pd.DataFrame, margin: float) -> str:
    """Changed settings, flatness of the grid, winners at its edge, and noise between seeds.

    Args:
        table: The grid of `experiments.grids.tuning`: a row per method, point and seed.
        winners: A row per method.
        margin: Least lead in reward that counts as better.
    """

    def in_points(share: float) -> str:
        return f"{100 * share:.1f} points"

    changed = [display_name(m) for m in winners.loc[winners["changed"], "method"]]
    text = f"- **Changed**: {len(changed)} of {len(winners)} methods" + (f" ({'; '.join(changed)})" if changed else "")
    if len(changed) < len(winners):
        text += f". {'Elsewhere no' if changed else 'No'} point is ahead of the previous setting by {in_points(margin)}"
    lines = [f"{text}."]
    cells = table.groupby(["method", "learning_rate", "value"])["score"]
    means = complete_mean(cells).groupby("method")
    ahead = (means.max() - winners.set_index("method")["stood"]).dropna()
    spread = means.max() - means.min()
    text = "- **How flat the grid is**: "
    if len(ahead):
        text += (
            f"the best point is ahead of the one that stood by {in_points(ahead.median())} (median over methods; at "
            f"most {in_points(ahead.max())}, {display_name(ahead.idxmax())}). "
        )
    lines.append(
        f"{text}From the worst point to the best it is {in_points(spread.median())} (median; at most "
        f"{in_points(spread.max())}, {display_name(spread.idxmax())})."
    )
    low, high = table["learning_rate"].min(), table["learning_rate"].max()
    top, bottom = (int((winners["learning_rate"] == rate).sum()) for rate in (high, low))
    lines.append(
        f"- **Edge**: of {len(winners)} winners {top} at the highest learning rate of the grid, {bottom} at "
        "the lowest; the grid does not say what lies beyond."
    )
    seeds = int(cells.size().min())
    if seeds > 1:
        error = float(cells.var().mean() ** 0.5)
        lines.append(
            f"- **Seeds**: at the same point, {seeds} development seeds differ by a standard deviation of "
            f"{in_points(error)}, so a difference of two points of the grid is known to about "
            f"{in_points(error * (2 / seeds) ** 0.5)} (one standard error)."
        )
    else:
        lines.append(
            "- **Seeds**: one development seed a point. One seed cannot tell small differences, and the best "
            "of several points looks better than it is: hence the margin."
        )
    gaps = table[table["score"].isna()]
    if len(gaps):
        runs = [f"{display_name(r.method)} seed {r.seed}" for r in gaps.itertuples()]
        lines.append(f"- **Missing scores**, whose points count as missing: {join_words(dict.fromkeys(runs))}.")
    return "\n".join(lines)
