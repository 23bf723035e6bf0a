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
    return MISSING if pd.isna(difference) else _points(f"{100 * difference:+.0f}")


def unsigned_points(difference: float) -> str:
    """The size of a difference of shares in percentage points: 0.012 -> "1 point"."""
    return MISSING if pd.isna(difference) else _points(f"{100 * abs(difference):.0f}")


def _points(number: str) -> str:
    return f"{number} point{'s' * (number.lstrip('+-') != '1')}"


def interval_text(point: float, low: float, high: float, digits: int = 0, unit: str = " %", gap: str = MISSING) -> str:
    """A share with its interval, "87 % [83, 90]", without line breaks; no brackets if `low` is not finite.

    Args:
        point: The share; `gap` stands for one that is not known.
        low: Lower end of the interval; `high` is the upper one.
        digits: After the decimal point.
        unit: Behind the share.
    """
    if pd.isna(point):
        return gap.replace(" ", "\N{NO-BREAK SPACE}")
    span = f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{100 * point:.{digits}f}{unit}{span}".replace(" ", "\N{NO-BREAK SPACE}")


THE = {"reward_model": "the "}  # noises that are one thing


def noise_phrase(noise: str, capital: bool = False) -> str:
    """The noise in a sentence, "without noise" or "under flipped labels"; `capital` for the start of a sentence."""
    text = "without noise" if noise == "none" else f"under {THE.get(noise, '')}{display_name(noise)}"
    return text[:1].upper() + text[1:] if capital else text


def join_words(items) -> str:
    """A list in words: "a, b and c"; "none" if it is empty."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"


def diverged_cells(diverged: pd.DataFrame) -> dict[tuple[str, str], str]:
    """{(method, noise): "1 of 3 diverged"} of the rows of `statistics.diverged_runs`, in place of a score."""
    cells = diverged.groupby(["method", "noise"], sort=False)
    return {cell: f"{len(own)} of {own['runs'].iloc[0]} diverged" for cell, own in cells}


def missing_text(missing: pd.DataFrame, diverged: pd.DataFrame | None = None, most: int = 8) -> str:
    """Names runs that diverged, and runs and test sets without a score; empty if there are none.

    Args:
        missing: Rows of `statistics.missing_scores`.
        diverged: Rows of `statistics.diverged_runs`; None for none.
        most: Number of runs with missing scores that are named; the rest are counted.
    """
    sentences = []
    for (method, noise), text in ({} if diverged is None else diverged_cells(diverged)).items():
        own = diverged[(diverged["method"] == method) & (diverged["noise"] == noise)]
        which = [f"{r.family}, seed {r.seed}, at step {r.diverged:.0f}" for r in own.head(3).itertuples()]
        which += [f"{len(own) - 3} more"] if len(own) > 3 else []
        sentences.append(f"{display_name(method)} {noise_phrase(noise)}: {text} ({'; '.join(which)})")
    text = f"**Diverged**, so without a score: {'; '.join(sentences)}. " if sentences else ""
    runs = [
        f"{display_name(method)} {noise_phrase(noise)}, trained on {family}, seed {seed} "
        f"({join_words(display_name(suite) for suite in own['suite'])})"
        for (method, noise, family, seed), own in missing.groupby(["method", "noise", "family", "seed"], sort=False)
    ]
    if len(runs) > most:
        runs = [*runs[:most], f"{len(runs) - most} more runs"]
    return (text + (f"**Missing scores**: {'; '.join(runs)}." if runs else "")).strip()


def show_text(*sentences: str):
    """Markdown for a notebook: one paragraph of all non-empty sentences, or a list if each begins with "- "."""
    from IPython.display import Markdown

    sentences = tuple(filter(None, sentences))
    return Markdown("\n".join(sentences) if all(s.startswith("- ") for s in sentences) else " ".join(sentences))


def markdown_table(frame) -> str:
    """A table of texts as Markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
