"""Figures: functions of tidy frames and arrays that return matplotlib Figures, with equal bytes for equal input.

Call `set_figure_theme()` once in a notebook. All figures take colours and markers of methods from `style.METHOD_LOOKS`.
"""

from dvpo_lib.reporting.figures.comparison import (
    final_comparison,
    improvement_intervals,
    learning_curves,
    paper_beside_ours,
    scores_by_noise,
)
from dvpo_lib.reporting.figures.critic import (
    calibration_panels,
    critic_quality_curves,
    explained_variance_panels,
    quantile_curves,
)
from dvpo_lib.reporting.figures.data_and_noise import (
    base_skill,
    confusion_bars,
    loss_curve,
    reward_histograms,
    reward_model_quality,
    vote_quality,
)
from dvpo_lib.reporting.figures.diagnostics import diagnostic_panels, tail_panels
from dvpo_lib.reporting.figures.evidence import (
    breakdown_curves,
    denoised_critic_curves,
    denoised_curves,
    denoised_rate_curves,
    performance_profiles,
    run_scatter,
    swept_curves,
)
from dvpo_lib.reporting.figures.method import kappa_panels, lab_curve, readout_panels, term_curves, walk_panels
from dvpo_lib.reporting.figures.real_outcomes import auc_against_noise, task_intervals, value_over_text
from dvpo_lib.reporting.figures.style import look_of, save_figure, set_figure_theme
from dvpo_lib.reporting.figures.tokens import token_text, value_along_response
from dvpo_lib.reporting.figures.tuning import tuning_grid
from dvpo_lib.reporting.names import DISPLAY_NAMES, display_name

__all__ = [
    "DISPLAY_NAMES",
    "auc_against_noise",
    "base_skill",
    "breakdown_curves",
    "calibration_panels",
    "confusion_bars",
    "critic_quality_curves",
    "denoised_critic_curves",
    "denoised_curves",
    "denoised_rate_curves",
    "diagnostic_panels",
    "display_name",
    "explained_variance_panels",
    "final_comparison",
    "improvement_intervals",
    "kappa_panels",
    "lab_curve",
    "learning_curves",
    "look_of",
    "loss_curve",
    "paper_beside_ours",
    "performance_profiles",
    "quantile_curves",
    "readout_panels",
    "reward_histograms",
    "reward_model_quality",
    "run_scatter",
    "save_figure",
    "scores_by_noise",
    "set_figure_theme",
    "swept_curves",
    "tail_panels",
    "task_intervals",
    "term_curves",
    "token_text",
    "tuning_grid",
    "value_along_response",
    "value_over_text",
    "vote_quality",
    "walk_panels",
]
