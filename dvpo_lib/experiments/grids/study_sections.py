"""Sections of the evidence page: the figure of a study, and its best settings if it has enough seeds to tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from dvpo_lib.experiments.grids.studies import CLAIMED, SHOWN
from dvpo_lib.reporting import figures, tables
from dvpo_lib.reporting.findings.recommended import recommendation_table, recommended_methods, spread_findings
from dvpo_lib.reporting.names import BASE, display_name
from dvpo_lib.reporting.prose import show_text
from dvpo_lib.reporting.statistics.study_rows import as_methods, covered_cells, run_count


def variant_figure(runs: pd.DataFrame) -> Figure:
    """Scores of all methods or variants of a study.

    Args:
        runs: Rows of the study.
    """
    return figures.final_comparison(as_methods(runs), overall=True)


def study_section(
    study: str,
    runs: pd.DataFrame,
    draw: Callable[[pd.DataFrame], Figure] = variant_figure,
    numbers: bool = True,
    paper: Mapping[str, str] | None = None,
) -> list:
    """What the page shows of a study: its figure, scores and best settings, or a sentence in their place.

    Args:
        study: A key of STUDIES.
        runs: Its rows, of `read_studies`.
        draw: The figure of those rows whose noise and family have SHOWN seeds of every setting.
        numbers: Whether the scores follow, and the best settings under noises with CLAIMED seeds of every setting.
        paper: As in `tables.setting_table`.

    Returns:
        Objects for `display(*...)`.
    """
    shown = covered_cells(runs[runs["method"] != BASE], SHOWN)
    if shown.empty:
        return [
            show_text(
                f"Not computed yet: a figure needs {SHOWN} seeds of every setting, and so far there are "
                f"{run_count(runs)} runs. `make evidence STUDY={study}` computes the others."
            )
        ]
    section, judged = [draw(shown)], covered_cells(shown, CLAIMED)
    if numbers:
        caption = f"{display_name(study)}: score over all test sets in per cent, interquartile mean and 95 % interval"
        section.append(tables.show_table(tables.setting_table(as_methods(shown), paper), caption))
    if numbers and len(judged):
        settings = recommendation_table(recommended_methods(as_methods(judged)))
        section.append(tables.show_table(settings, f"{display_name(study)}: the best setting under each noise"))
    elif numbers:
        section.append(show_text(spread_findings(as_methods(shown))))
    return section
