"""Figures: functions of tidy frames and arrays that return matplotlib Figures, equal bytes for equal input.

`theme()` once in a notebook; colours and markers of methods come from one table (`style.METHODS`), everywhere the same.
"""

from dvpo_lib.reporting.figures.comparison import (
    breakdown,
    final_comparison,
    improvement_intervals,
    learning_curves,
    paper_beside_ours,
)
from dvpo_lib.reporting.figures.critic import (
    calibration,
    explained_variance,
    quantile_curves,
    token_text,
    value_along_response,
)
from dvpo_lib.reporting.figures.diagnostics import diagnostics
from dvpo_lib.reporting.figures.method import kappa_curves, lab_curve, readouts, term_curves, walk_widths
from dvpo_lib.reporting.figures.real import auc_against_noise, task_intervals, value_over_text
from dvpo_lib.reporting.figures.style import look, save, theme
from dvpo_lib.reporting.figures.tuning import tuning_grid
from dvpo_lib.reporting.figures.world import (
    base_skill,
    confusion_bars,
    loss_curve,
    reward_histograms,
    reward_model_quality,
    vote_quality,
)
from dvpo_lib.reporting.names import NAMES, label

__all__ = [
    "NAMES",
    "auc_against_noise",
    "base_skill",
    "breakdown",
    "calibration",
    "confusion_bars",
    "diagnostics",
    "explained_variance",
    "final_comparison",
    "improvement_intervals",
    "kappa_curves",
    "lab_curve",
    "label",
    "learning_curves",
    "look",
    "loss_curve",
    "paper_beside_ours",
    "quantile_curves",
    "readouts",
    "reward_histograms",
    "reward_model_quality",
    "save",
    "task_intervals",
    "term_curves",
    "theme",
    "token_text",
    "tuning_grid",
    "value_along_response",
    "value_over_text",
    "vote_quality",
    "walk_widths",
]
