"""The source of every default of training, critics and losses, as one table for the report.

Names, defaults and meanings come from the settings classes; only the sources are written here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re

import pandas as pd

from dvpo_lib.functional.advantages import ReadoutSettings
from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.functional.q_losses import QSettings
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.reporting.names import setting_text
from dvpo_lib.rl.training_settings import TrainingSettings

SETTING_SECTIONS = {  # place in params.yaml -> settings class
    "training": TrainingSettings,
    "training.readout": ReadoutSettings,
    "critics.*": CriticSettings,
    "critics.*.loss": CriticLossSettings,
    "critics.*.q": QSettings,
}
PAPER_SUMMARIES = "DVPO (summaries)"
MEASURED_HERE = "measured here"  # in a notebook of this chain
CHOSEN_HERE = "chosen here"
SETTING_SOURCES = {
    "training": {
        "generation_batch_size": CHOSEN_HERE,
        "num_generations": "Shao et al. 2024 take 64, TRL 8",
        "num_iterations": CHOSEN_HERE,
        "num_mini_batches": CHOSEN_HERE,
        "gradient_accumulation_steps": "neutral",
        "temperature": "neutral",
        "learning_rate": f"{CHOSEN_HERE}; by method, `make tune`",
        "lr_scheduler_type": CHOSEN_HERE,
        "warmup_steps": CHOSEN_HERE,
        "beta": "between Shao et al. 2024 (0.04) and 0",
        "kl_placement": "by method, see METHODS",
        "kl_estimator": "by method, see METHODS",
        "epsilon": "Schulman et al. 2017",
        "epsilon_high": "neutral",
        "entropy_coef": "neutral",
        "whiten_advantages": "Ouyang et al. 2022, TRL's PPO",
        "gamma": "Ouyang et al. 2022",
        "lam": "Schulman et al. 2017",
        "lam_critic": "VC-PPO (Yuan et al. 2025)",
        "lam_adaptive": "neutral; VAPO",
        "target": "literal reading of DVPO",
        "readout": PAPER_SUMMARIES,
        "worst_case": "literal minimum over estimates, neutral at one head",
        "missing_rewards": CHOSEN_HERE,
        "reward_clip": CHOSEN_HERE,
        "extraction": CHOSEN_HERE,
        "awr_temperature": CHOSEN_HERE,
        "perturbation": CHOSEN_HERE,
        "max_grad_norm": "transformers, TRL",
        "bf16": "neutral on CPUs",
    },
    "training.readout": {
        "kind": PAPER_SUMMARIES,
        "distortion": "neutral",
        "strength": "neutral",
        "alpha": PAPER_SUMMARIES,
        "beta": PAPER_SUMMARIES,
        "level_low": CHOSEN_HERE,
        "level_up": CHOSEN_HERE,
        "centre": CHOSEN_HERE,
        "trim": CHOSEN_HERE,
        "weight": CHOSEN_HERE,
    },
    "critics.*": {
        "kind": PAPER_SUMMARIES,
        "heads": CHOSEN_HERE,
        "quantiles": f"{PAPER_SUMMARIES}: 200 best of 50 to 500",
        "bins": "Farebrother et al. 2024",
        "support": CHOSEN_HERE,
        "final_state": "neutral",
        "crossing": MEASURED_HERE,
        "backbone": CHOSEN_HERE,
        "layers": "neutral",
        "head": f"{CHOSEN_HERE}; {PAPER_SUMMARIES}: light networks",
        "head_width": CHOSEN_HERE,
        "bootstrap": "Osband et al. 2016, online form",
        "value_clip": "Schulman et al. 2017, TRL",
        "learning_rate": CHOSEN_HERE,
        "pretrain_rollouts": CHOSEN_HERE,
        "pretrain_epochs": CHOSEN_HERE,
        "reward_clip": "neutral",
        "batch_size": CHOSEN_HERE,
        "loss": "below",
        "q": "below",
    },
    "critics.*.loss": {
        "kappa": f"{MEASURED_HERE}: expectiles otherwise",
        "rho": "neutral",
        "head_consistency": CHOSEN_HERE,
        "tail_calibration": f"{CHOSEN_HERE}, one reading of the paper's risk interval weight",
        "tail_calibration_form": f"{MEASURED_HERE}: the literal form is biased",
        "mean_shift": CHOSEN_HERE,
        "tail_shape": CHOSEN_HERE,
        "tail_curvature": "its units (M squared)",
        "shape_reference": f"{MEASURED_HERE}: the literal form has no upper part",
        "lower_mass": PAPER_SUMMARIES,
        "upper_mass": PAPER_SUMMARIES,
    },
    "critics.*.q": {
        "backup": "ILQL (Snell et al. 2022)",
        "expectile": "ILQL in trlX",
        "conservatism": "ILQL in trlX",
        "radius": CHOSEN_HERE,
        "target_rate": CHOSEN_HERE,
    },
}


def settings_table() -> pd.DataFrame:
    """One row per setting: place in params.yaml, name, default, meaning, source."""
    rows = []
    for section, cls in SETTING_SECTIONS.items():
        meanings = _comments(cls)
        for field in dataclasses.fields(cls):
            rows.append(
                {
                    "where": section,
                    "setting": field.name,
                    "default": _text(field),
                    "what it is": meanings[field.name],
                    "source": SETTING_SOURCES[section][field.name],
                }
            )
    return pd.DataFrame(rows)


def _comments(cls: type) -> dict[str, str]:
    """The trailing comment of each field of a settings class."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), flags=re.MULTILINE))


def _text(field: dataclasses.Field) -> str:
    return "defaults" if dataclasses.is_dataclass(field.default) else setting_text(field.default)
