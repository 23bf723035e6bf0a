"""Run spec of the reward model: training, search for its accuracy, measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from dvpo_lib.common.seeds import generator_for, seed_for
from dvpo_lib.models.policy import load_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.noise.reward_model import (
    WEIGHTS_FILE,
    RewardModel,
    RewardModelSettings,
    predict_probabilities,
    search_accuracy,
)
from dvpo_lib.tasks.evaluation import sample_table
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import load_suites


@dataclass(frozen=True)
class RewardModelSpec:
    """Trains one family's reward model and measures it. A response is right if its true reward is at least 0.5.

    The prompts are those of demonstrations with the steps of training problems: half of them for training, a quarter
    each for the search and the measurement. Stores reward_model.safetensors, search.csv (step, accuracy, taken) and
    predictions.csv (probability, right, words), one row per answer of the measurement.
    """

    model: RewardModelSettings
    family: str
    seed: int
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    inputs = ("base", "suites")

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        cfg, (policy, tokenizer) = self.model, load_policy(self.base)
        policy.eval()
        parts = self.examples(policy, tokenizer)
        tokens = {
            name: encode_completions(tokenizer, t["prompt"].tolist(), t["completion"].tolist())
            for name, t in parts.items()
        }
        right = {name: (table["reward"] >= 0.5).to_numpy(dtype=float) for name, table in parts.items()}
        labels = torch.tensor(right["training"], dtype=torch.float32)
        flipped = torch.rand(len(labels), generator=generator_for(self.seed, "reward model labels")) < cfg.label_noise
        model = RewardModel(policy, self.seed, cfg.layers)
        log = search_accuracy(
            model,
            tokens["training"],
            torch.where(flipped, 1 - labels, labels),
            tokens["search"],
            right["search"],
            cfg,
            self.seed,
        )
        measured = pd.DataFrame(
            {
                "probability": predict_probabilities(model, tokens["measurement"], bf16=cfg.bf16),
                "right": right["measurement"],
                "words": parts["measurement"]["completion"].str.split().str.len(),
            }
        )
        save_file(model.state_dict(), folder / WEIGHTS_FILE)
        for name, table in {"search": pd.DataFrame(log), "predictions": measured}.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")

    def examples(self, policy, tokenizer) -> dict[str, pd.DataFrame]:
        """Samples and scores answers of the base policy: {part: table} for training, search and measurement.

        No two parts share a prompt.
        """
        splits = load_suites(self.suites, ("demonstrations", "train"))[self.family]
        usual, family = set(splits["train"]["steps"]), FAMILIES[self.family]
        shown = [r for r in splits["demonstrations"] if r["steps"] in usual]
        records = list({r["prompt"]: r for r in shown}.values())
        order = torch.randperm(len(records), generator=generator_for(self.seed, "reward model prompts")).tolist()
        half, quarter = len(order) // 2, len(order) // 4
        places = {
            "training": order[:half],
            "search": order[half : half + quarter],
            "measurement": order[half + quarter :],
        }
        parts = {}
        for name, own in places.items():
            size = self.model.examples if name == "training" else self.model.held_out
            chosen = [records[own[i % len(own)]] for i in range(size)]
            seed = seed_for(self.seed, "reward model", name)
            parts[name] = sample_table(policy, tokenizer, chosen, family, 1, seed, bf16=self.model.bf16)
        return parts


def reward_model_spec(params, family: str, **folders: str) -> RewardModelSpec:
    """Builds the spec of a family's reward model from params.yaml; `folders` may set base and suites."""
    return RewardModelSpec(params.reward_model, family, params.seed, **folders)
