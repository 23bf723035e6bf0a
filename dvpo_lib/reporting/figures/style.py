"""Shared style of all figures: colours, markers and names of methods, theme, captions, deterministic files."""

from __future__ import annotations

import functools
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from dvpo_lib.reporting.names import DISPLAY_NAMES, display_name
from dvpo_lib.reporting.prose import MISSING


class Look(NamedTuple):
    """Colour, marker and display name of a method or critic."""

    color: str
    marker: str
    name: str


# After Okabe-Ito and Tol's muted palette; tests/reporting/test_figures.py checks them for colour-blind readers.
METHOD_LOOKS = {
    "dvpo": Look("#0072B2", "o", DISPLAY_NAMES["dvpo"]),
    "dvpo_winsorised": Look("#D55E00", "D", DISPLAY_NAMES["dvpo_winsorised"]),
    "ppo": Look("#222222", "s", DISPLAY_NAMES["ppo"]),
    "ppo_clip_reward": Look("#CC79A7", "p", DISPLAY_NAMES["ppo_clip_reward"]),
    "robust_ppo": Look("#7F7F3F", "P", DISPLAY_NAMES["robust_ppo"]),
    "grpo": Look("#11B070", "^", DISPLAY_NAMES["grpo"]),
    "grpo_clip_reward": Look("#8DD3A8", "v", DISPLAY_NAMES["grpo_clip_reward"]),
    "dr_grpo": Look("#56B4E9", "<", DISPLAY_NAMES["dr_grpo"]),
    "reinforce_pp": Look("#E69F00", ">", DISPLAY_NAMES["reinforce_pp"]),
    "cql": Look("#882255", "X", DISPLAY_NAMES["cql"]),
    "rfqi": Look("#4B3F9E", "h", DISPLAY_NAMES["rfqi"]),
}
BASE_LOOK = Look("#8C8C8C", "|", "base policy")
CRITIC_LOOKS = {
    "quantile": Look("#0072B2", "o", "quantile critic"),
    "scalar": Look("#222222", "s", "scalar critic"),
    "quantile_increments": Look("#56B4E9", "v", "quantile critic, increments"),
    "constant": Look("#8C8C8C", "d", "training rewards (no critic)"),
    "generator": Look("#CC79A7", "^", "generator's own rewards (no critic)"),
}
PERCENT_AXIS = PercentFormatter(1.0, decimals=0)  # axes of shares: 0.4 -> 40%
RIGHT, WRONG = "#4477AA", "#EE6677"  # answers that are truly right, truly wrong
THEME = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "dvpo",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "DejaVu Sans",
}


@functools.cache
def _is_drawable(character: str) -> bool:
    """If both fonts of the figures have a glyph for a character, and it is no control or format character."""
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return False
    fonts = (get_font(findfont(FontProperties(family=f"DejaVu Sans{kind}"))) for kind in ("", " Mono"))
    return all(font.get_char_index(ord(character)) for font in fonts)


def data_text(text, limit: int = 40) -> str:
    """Text of the data, such as a prompt, a token or a name, in a form that can be drawn.

    Characters that cannot be drawn are written as Python's escapes: control characters, line feeds, marks of the
    writing direction, lone surrogates, and characters that the fonts lack. `add_caption` sees to it that no dollar sign
    begins a formula.

    Args:
        text: The text, or any value.
        limit: Most characters; a longer text is cut and ends with an ellipsis.
    """
    shown, length = [], 0
    for character in str(text):
        part = character if _is_drawable(character) else character.encode("unicode_escape").decode("ascii")
        if length + len(part) > limit:
            while shown and length > limit - 1:
                length -= len(shown.pop())
            return "".join(shown) + "\N{HORIZONTAL ELLIPSIS}"
        shown.append(part)
        length += len(part)
    return "".join(shown)


def drawn_name(name) -> str:
    """The display name of a method, noise, suite or column, as it is drawn."""
    return data_text(display_name(str(name)), 32)


def look_of(name: str, among: Iterable[str] = ()) -> Look:
    """The look of a method, a critic or another series, such as a row of the ablation.

    Args:
        name: The series.
        among: All series of the figure; those without a fixed look share a sequential colour scale.
    """
    if name in METHOD_LOOKS or name in CRITIC_LOOKS:
        return METHOD_LOOKS.get(name) or CRITIC_LOOKS[name]
    rows = [n for n in dict.fromkeys(among) if n not in METHOD_LOOKS]
    if name not in rows:
        return Look("#555555", "o", drawn_name(name))
    place = rows.index(name)
    scale = sns.color_palette("viridis", len(rows) + 1).as_hex()  # without the palest colour
    return Look(scale[place], "os^DvP<X>p*h"[place % 12], drawn_name(name))


def set_figure_theme() -> None:
    """Sets seaborn's theme and, in a notebook, PNGs without metadata: equal figures give equal bytes."""
    sns.set_theme(context="notebook", style="whitegrid", rc=THEME)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"}, metadata={"Software": None}, bbox_inches="tight")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **axes):
    """A figure and its 2-D array of axes, sizes in inches; not registered with pyplot, so it is never drawn twice."""
    with mpl.rc_context({**sns.axes_style("whitegrid"), **THEME}):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **axes)


def add_caption(figure: Figure, text: str = "") -> Figure:
    """Finishes a figure: a wrapped caption below it, if there is one, and no text that is read as a formula.

    A caption that would fill more than about a fifth of the figure is cut.
    """
    if text:
        width, lines = int(figure.get_figwidth() * 17), max(3, int(figure.get_figheight() * 1.5))
        text = data_text(re.sub(r"[\t-\r]", " ", text), width * lines)
        figure.supxlabel("\n".join(textwrap.wrap(text, width)), x=0.005, ha="left", fontsize=8.5, color="0.35")
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    numbers = {text for axis in axes if axis.get_scale() == "log" for text in axis.findobj(Text)}  # powers of ten
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
    return figure


def legend_above(figure: Figure, handles, columns: int = 6) -> None:
    """Adds one legend above the figure, with each entry once; none for a single entry."""
    unique = {h.get_label(): h for h in handles}
    if len(unique) > 1:
        figure.legend(
            handles=list(unique.values()), loc="outside upper center", ncols=min(columns, len(unique)), frameon=False
        )


def missing_note(names: Iterable[str]) -> str:
    """The end of a caption that names the series with missing values; empty if there are none."""
    names = list(dict.fromkeys(names))
    return f" Missing values, which are not averaged away: {'; '.join(names)}." if names else ""


def mark_missing(ax, x: float, y: float, **transform) -> None:
    """Writes "missing" at the place of a value that is not known."""
    ax.text(x, y, MISSING, ha="center", va="center", fontsize=7.5, color="0.35", style="italic", **transform)


def jitter_offsets(count: int, width: float = 0.2):
    """Small deterministic offsets that keep equal dots apart."""
    return [width * (((i * 0.618034) % 1) - 0.5) for i in range(count)]


def save_figure(figure: Figure, path) -> None:
    """Writes PNG or SVG without dates or version numbers: equal figures give equal bytes."""
    metadata = {"Date": None} if str(path).endswith(".svg") else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "dvpo"}):
        figure.savefig(path, metadata=metadata, bbox_inches="tight")
