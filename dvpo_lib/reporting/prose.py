"""Numbers, names and lists as text. Notebooks compute every number that they state; none is typed.

The sentences are in `reporting.findings` and `experiments.real`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dvpo_lib.reporting.names import display_name

MISSING = "missing"  # stands for a number that is not known


def number_text(value: float, digits: int = 2) -> str:
    """0.415 -> "0.41"; "missing" if it is not known, as in all functions here."""
    return MISSING if pd.isna(value) else f"{value:.{digits}f}"


def percent_text(share: float, digits: int = 0) -> str:
    """0.415 -> "42 %"."""
    return MISSING if pd.isna(share) else f"{100 * share:.{digits}f} %"


def signed_points(difference: float) -> str:
    """A difference of shares in signed percentage points: -0.034 -> "-3 points"."""
    return MISSING if pd.isna(difference) else f"{100 * difference:+.0f} points"


def interval_text(point: float, low: float, high: float, digits: int = 0, unit: str = " %") -> str:
    """A share with its interval, "87 % [83, 90]", without line breaks; no brackets if `low` is not finite."""
    if pd.isna(point):
        return MISSING
    span = f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{100 * point:.{digits}f}{unit}{span}".replace(" ", "\N{NO-BREAK SPACE}")


def noise_phrase(noise: str, capital: bool = False) -> str:
    """The noise in a sentence, "without noise" or "under flipped labels"; `capital` for the start of a sentence."""
    text = "without noise" if noise == "none" else f"under {display_name(noise)}"
    return text[:1].upper() + text[1:] if capital else text


def join_words(items) -> str:
    """A list in words: "a, b and c"; "none" if it is empty."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"


def missing_text(missing: pd.DataFrame, most: int = 8) -> str:
    """Names the runs and test sets of `statistics.missing_scores`; empty if nothing is missing.

    Args:
        missing: Columns method, noise, family, seed, suite.
        most: Number of runs that are named; the rest are counted.
    """
    runs = [
        f"{display_name(method)} {noise_phrase(noise)}, trained on {family}, seed {seed} "
        f"({join_words(display_name(suite) for suite in own['suite'])})"
        for (method, noise, family, seed), own in missing.groupby(["method", "noise", "family", "seed"], sort=False)
    ]
    if len(runs) > most:
        runs = [*runs[:most], f"{len(runs) - most} more runs"]
    return f"**Missing scores**: {'; '.join(runs)}." if runs else ""


def show_text(*sentences: str):
    """Markdown for a notebook: one paragraph of all non-empty sentences, or a list if each begins with "- "."""
    from IPython.display import Markdown

    sentences = tuple(filter(None, sentences))
    return Markdown("\n".join(sentences) if all(s.startswith("- ") for s in sentences) else " ".join(sentences))
