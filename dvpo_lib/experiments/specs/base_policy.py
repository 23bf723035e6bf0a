"""Run spec of the base policy: supervised training on the demonstrations of every family."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from dvpo_lib.models.architectures import train_in_float32
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, load_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.tasks.families import FAMILIES, TaskSettings, build_suites, build_tokenizer


@dataclass(frozen=True)
class BasePolicySpec:
    """Trains the base policy. Stores base/ (`save_pretrained`) and losses.csv (step, loss in nats a token).

    The policy is `policy.name_or_path`, or, without one, a new one over the words of generated families. It learns
    from demonstrations for `policy.steps`, from which a pretrained policy learns the form of an answer.
    """

    tasks: TaskSettings
    policy: PolicySettings
    seed: int
    data: str | None = None  # folder of real data, for published families
    folder: str | None = field(init=False, default=None)  # of a local model
    inputs = ("folder", "data")

    @property
    def threads(self) -> int:
        """A new policy is trained alone; the short warm-up of a pretrained one shares the machine with other runs."""
        return 1 if self.folder or self.policy.name_or_path else 2

    def __post_init__(self):  # of a local model the bytes count, not the path
        if self.policy.name_or_path and Path(self.policy.name_or_path).is_dir():
            object.__setattr__(self, "folder", self.policy.name_or_path)
            object.__setattr__(self, "policy", replace(self.policy, name_or_path=None))

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        losses: list[float] = []
        pretrained = self.folder or self.policy.name_or_path
        policy, tokenizer = load_policy(pretrained) if pretrained else (None, build_tokenizer(self.tasks))
        if self.policy.steps or not pretrained:
            suites = build_suites(self.tasks, self.data, pretrained)
            shown = [r for splits in suites.values() for r in splits["demonstrations"]]
            tokens = encode_completions(tokenizer, [r["prompt"] for r in shown], [r["completion"] for r in shown])
            if policy is None:
                policy = build_policy(tokenizer, self.policy, self.seed)
            train_in_float32(policy)
            losses = fit_language_model(policy, tokens, self.policy, self.seed, progress="base policy")
        policy.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        table = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
        table.to_csv(folder / "losses.csv", index=False, float_format="%.6g")


def base_policy_spec(params) -> BasePolicySpec:
    """Builds the spec of the base policy from params.yaml."""
    reads = any(FAMILIES[name].published for name in params.tasks.families)
    return BasePolicySpec(params.tasks, params.policy, params.seed, params.real.dir if reads else None)
