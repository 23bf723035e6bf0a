"""Run spec of the base policy: supervised training on the demonstrations of every family."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, load_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer


@dataclass(frozen=True)
class BasePolicySpec:
    """Trains the base policy. Stores base/ (`save_pretrained`) and losses.csv (step, loss in nats a token).

    If `policy.name_or_path` is set, that model is stored as it is, without training.
    """

    tasks: TaskSettings
    policy: PolicySettings
    seed: int
    folder: str | None = field(init=False, default=None)  # of a local model
    inputs = ("folder",)
    threads = 2

    def __post_init__(self):
        if self.policy.name_or_path and Path(self.policy.name_or_path).is_dir():
            object.__setattr__(self, "folder", self.policy.name_or_path)

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        losses: list[float] = []
        if self.policy.name_or_path:
            policy, tokenizer = load_policy(self.policy.name_or_path)
        else:
            tokenizer = build_tokenizer(self.tasks)
            shown = [r for splits in build_suites(self.tasks).values() for r in splits["demonstrations"]]
            tokens = encode_completions(tokenizer, [r["prompt"] for r in shown], [r["completion"] for r in shown])
            policy = build_policy(tokenizer, self.policy, self.seed)
            losses = fit_language_model(policy, tokens, self.policy, self.seed, progress="base policy")
        policy.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        table = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
        table.to_csv(folder / "losses.csv", index=False, float_format="%.6g")


def base_policy_spec(params) -> BasePolicySpec:
    """Builds the spec of the base policy from params.yaml."""
    return BasePolicySpec(params.tasks, params.policy, params.seed)
