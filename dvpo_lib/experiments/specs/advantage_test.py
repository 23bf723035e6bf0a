"""Run spec of a test of advantages: do they find the step with which a response goes wrong?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from dvpo_lib.experiments.responses import error_auc, first_training_batch
from dvpo_lib.experiments.specs.training import TrainingSpec
from dvpo_lib.models.policy import load_policy
from dvpo_lib.tasks.families import TaskSettings, build_worlds


@dataclass(frozen=True)
class AdvantageTestSpec(TrainingSpec):
    """The first batch of a training, before any update, and what its advantages know. Stores final.csv.

    Its rows have role "advantages", suite "first batch" and the metrics of `error_auc`.
    """

    tasks: TaskSettings = field(default_factory=TaskSettings)  # of the worlds, which know the first wrong step

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        _, tokenizer = load_policy(self.base)
        world = build_worlds(self.tasks, names=[self.family])[self.family]
        scores = error_auc(first_training_batch(self), world, tokenizer)
        rows = [dict(suite="first batch", role="advantages", metric=f"error_{k}", value=v) for k, v in scores.items()]
        pd.DataFrame(rows).to_csv(folder / "final.csv", index=False, float_format="%.8g")
