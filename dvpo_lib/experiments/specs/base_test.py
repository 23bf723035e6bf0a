"""Run spec of the base policy's test: what the policy can do before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvpo_lib.experiments.specs.training import final_test
from dvpo_lib.models.policy import load_policy
from dvpo_lib.tasks.evaluation import EvaluationSettings
from dvpo_lib.tasks.suites import load_suites


@dataclass(frozen=True)
class BaseTestSpec:
    """Tests the base policy as a trained one is tested. Stores final.csv and answers.csv, as `TrainingSpec` does."""

    evaluation: EvaluationSettings
    family: str  # whose test sets are called ID and OOD
    seed: int
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    inputs = ("base", "suites")

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        policy, tokenizer = load_policy(self.base)
        suites = load_suites(self.suites)
        final, answers = final_test(policy, tokenizer, suites, self.family, self.evaluation, self.seed)
        for name, table in {"final": final, "answers": answers}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g")


def base_test_spec(params, family: str, **folders: str) -> BaseTestSpec:
    """Builds the spec of the base policy's test from params.yaml; `folders` may set base and suites."""
    return BaseTestSpec(params.evaluation, family, params.seed, **folders)
