"""How numbers, names and lists are said in text: no number in a notebook is typed in.

The sentences themselves are those of `world_findings`, `run_findings`, `tuning_report` and `real/`.
"""

from __future__ import annotations

import numpy as np

from dvpo_lib.reporting.names import display_name


def percent_text(share: float, digits: int = 0) -> str:
    """0.415 -> "42 %"."""
    return f"{100 * share:.{digits}f} %"


def signed_points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.0f} points"


def interval_text(point: float, low: float, high: float, digits: int = 0, unit: str = " %") -> str:
    """ "87 % [83, 90]", never broken over two lines; without the brackets where there is no interval."""
    span = f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]" if np.isfinite(low) else ""
    return f"{100 * point:.{digits}f}{unit}{span}".replace(" ", "\N{NO-BREAK SPACE}")


def noise_phrase(noise: str, capital: bool = False) -> str:
    """ "without noise" or "under flipped labels", with a capital letter at the start of a sentence."""
    text = "without noise" if noise == "none" else f"under {display_name(noise)}"
    return text[:1].upper() + text[1:] if capital else text


def join_words(items) -> str:
    """ "a, b and c"."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"


def show_text(*sentences: str):
    """Sentences (or a list item each, where they begin with "- ") as Markdown for a notebook."""
    from IPython.display import Markdown

    sentences = tuple(filter(None, sentences))
    return Markdown("\n".join(sentences) if all(s.startswith("- ") for s in sentences) else " ".join(sentences))
