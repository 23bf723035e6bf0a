"""Every default of training, critics and losses with its source: one table for the report.

Names, values and meanings are read from the settings classes; only the sources are written here.
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
from dvpo_lib.reporting.names import spelled
from dvpo_lib.rl.config import DVPOConfig

SECTIONS = {  # where params.yaml has them: settings class
    "training": DVPOConfig,
    "training.readout": ReadoutSettings,
    "critics.*": CriticSettings,
    "critics.*.loss": CriticLossSettings,
    "critics.*.q": QSettings,
}
PAPER = "DVPO (summaries)"
MEASURED = "measured here"  # in a notebook of this chain
PROTOTYPE = "measured in a prototype"
CHOSEN = "chosen here"
SET = "set by the chain"
SOURCES = {
    "training": {
        "method": SET,
        "max_steps": SET,
        "critic": SET,
        "seed": SET,
        "generation_batch_size": CHOSEN,
        "num_generations": "Shao et al. 2024 take 64, TRL 8",
        "num_iterations": CHOSEN,
        "num_mini_batches": CHOSEN,
        "gradient_accumulation_steps": "neutral",
        "max_completion_length": SET,
        "temperature": "neutral",
        "learning_rate": "measured in a prototype, where 3e-4 destroyed the policy; `make tune`",
        "lr_scheduler_type": CHOSEN,
        "warmup_steps": CHOSEN,
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
        "readout": PAPER,
        "worst_case": "literal minimum over estimates, neutral at one head",
        "missing_rewards": CHOSEN,
        "reward_clip": PROTOTYPE,
        "extraction": CHOSEN,
        "awr_temperature": CHOSEN,
        "perturbation": CHOSEN,
        "max_grad_norm": "transformers, TRL",
    },
    "training.readout": {
        "kind": PAPER,
        "distortion": "neutral",
        "strength": "neutral",
        "alpha": PAPER,
        "beta": PAPER,
        "level_low": PROTOTYPE,
        "level_up": PROTOTYPE,
    },
    "critics.*": {
        "kind": PAPER,
        "heads": CHOSEN,
        "quantiles": f"{PAPER}: 200 best of 50 to 500",
        "crossing": MEASURED,
        "bootstrap": "Osband et al. 2016, online form",
        "value_clip": "Schulman et al. 2017, TRL",
        "learning_rate": CHOSEN,
        "pretrain_rollouts": CHOSEN,
        "pretrain_epochs": CHOSEN,
        "reward_clip": "neutral",
        "batch_size": CHOSEN,
        "loss": "below",
        "q": "below",
    },
    "critics.*.loss": {
        "kappa": f"{MEASURED}: expectiles otherwise",
        "rho": "neutral",
        "head_consistency": f"{PAPER}: interval weight",
        "tail_calibration": CHOSEN,
        "tail_calibration_form": f"{MEASURED}: the literal form is biased",
        "mean_shift": CHOSEN,
        "tail_shape": CHOSEN,
        "tail_curvature": "its units (M squared)",
        "shape_reference": f"{MEASURED}: the literal form has no upper part",
        "lower_mass": PAPER,
        "upper_mass": PAPER,
    },
    "critics.*.q": {
        "backup": "ILQL (Snell et al. 2022)",
        "expectile": "ILQL in trlX",
        "conservatism": "ILQL in trlX",
        "radius": CHOSEN,
        "target_rate": CHOSEN,
    },
}


def table() -> pd.DataFrame:
    """One row per setting: where it stands in params.yaml, its default, what it is, its source."""
    rows = []
    for section, cls in SECTIONS.items():
        meanings = _comments(cls)
        for field in dataclasses.fields(cls):
            rows.append(
                {
                    "where": section,
                    "setting": field.name,
                    "default": _text(field),
                    "what it is": meanings[field.name],
                    "source": SOURCES[section][field.name],
                }
            )
    return pd.DataFrame(rows)


def _comments(cls: type) -> dict[str, str]:
    """{field: the comment behind it} of a settings class."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), flags=re.MULTILINE))


def _text(field: dataclasses.Field) -> str:
    return "defaults" if dataclasses.is_dataclass(field.default) else spelled(field.default)
