"""Run spec of the pseudo-labels: majority votes of the base policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.pseudo_labels import LABELS_FILE, VoteSettings, majority_labels, save_labels
from dvpo_lib.tasks.evaluation import sample_table
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import load_suites


@dataclass(frozen=True)
class PseudoLabelSpec:
    """Labels every training and test prompt of a family that has `answer_of`. Stores labels.jsonl."""

    votes: VoteSettings
    family: str
    seed: int
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    inputs = ("base", "suites")

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        policy, tokenizer = load_policy(self.base)
        family, splits = FAMILIES[self.family], load_suites(self.suites)[self.family]
        records = [record for data in splits.values() for record in data]
        samples = sample_table(policy, tokenizer, records, family, self.votes.k, seed_for(self.seed, "pseudo-labels"))
        save_labels(majority_labels(samples, family.answer_of, self.seed), folder / LABELS_FILE)


def pseudo_label_spec(params, family: str, **folders: str) -> PseudoLabelSpec:
    """Builds the spec of a family's pseudo-labels from params.yaml; `folders` may set base and suites."""
    return PseudoLabelSpec(params.pseudo_labels, family, params.seed, **folders)
