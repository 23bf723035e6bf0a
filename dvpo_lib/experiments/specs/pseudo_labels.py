"""Majority votes as a run of the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.pseudo_labels import LABELS, VoteSettings, save_labels, vote
from dvpo_lib.tasks.evaluation import sample_table
from dvpo_lib.tasks.families import FAMILIES, load_suites


@dataclass(frozen=True)
class PseudoLabelSpec:
    """The vote on every prompt, trained on or tested, of a family whose `answer_of` is known. Stores labels.jsonl."""

    votes: VoteSettings
    family: str
    seed: int
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    inputs = ("base", "suites")

    def execute(self, folder: Path, scratch: Path) -> None:
        policy, tokenizer = load_policy(self.base)
        family, splits = FAMILIES[self.family], load_suites(self.suites)[self.family]
        records = [record for data in splits.values() for record in data]
        samples = sample_table(policy, tokenizer, records, family, self.votes.k, seed_for(self.seed, "pseudo-labels"))
        save_labels(vote(samples, family.answer_of, self.seed), folder / LABELS)
