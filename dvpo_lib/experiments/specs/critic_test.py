"""Run spec of a pretrained critic's test on held-out responses, and the scores of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from dvpo_lib.common.seeds import seed_for
from dvpo_lib.functional.quantiles import crps, pit
from dvpo_lib.models.critic import Critic, CriticSettings, build_critic
from dvpo_lib.models.critic_training import predict_values
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.proxies import corrupt_table, load_proxies
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting.prediction_quality import explained_variance, interval_coverage, weighted_auc
from dvpo_lib.tasks.evaluation import EvaluationSettings, sample_table
from dvpo_lib.tasks.families import FAMILIES
from dvpo_lib.tasks.suites import first_records, load_suites

POSITIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}  # of a token, as a share of the response
BINS = 10  # of predicted values, equally filled


@dataclass(frozen=True)
class CriticTestSpec:
    """Tests a pretrained critic on responses of the base policy to test prompts. Stores final.csv.

    Its rows have role "critic", a position as suite, and the metrics of `prediction_metrics`.
    """

    critic: CriticSettings
    critic_file: str  # its weights
    noise: NoiseSettings
    family: str
    seed: int
    evaluation: EvaluationSettings
    base: str = "data/base"  # folder of the base policy
    suites: str = "data/suites"  # folder of the suites
    proxies: str | None = None  # folder of the proxies, for noise that needs them
    inputs = ("base", "suites", "critic_file", "proxies")

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        policy, tokenizer = load_policy(self.base)
        data = first_records(load_suites(self.suites)[self.family]["test"], self.evaluation.prompts)
        seed, bf16 = seed_for(self.seed, "critic test"), self.evaluation.bf16
        table = sample_table(policy, tokenizer, data, FAMILIES[self.family], self.evaluation.k, seed, bf16=bf16)
        noise_seed, proxies = seed_for(self.seed, "critic test noise"), load_proxies(self.proxies, self.base)
        received = corrupt_table(table, self.noise, noise_seed, proxies, step=0)
        table = table.assign(received=received).dropna(subset="received")
        critic = load_critic(policy, self.critic, self.critic_file)
        predicted = predict_values(critic, table.to_dict("records"), tokenizer)
        rows = [
            dict(suite=at, role="critic", metric=metric, value=value)
            for at in POSITIONS
            for metric, value in prediction_metrics(predicted, table["received"], table["reward"], at).items()
        ]
        pd.DataFrame(rows).to_csv(folder / "final.csv", index=False, float_format="%.8g")


def load_critic(policy, cfg: CriticSettings, path, seed: int = 0) -> Critic:
    """A critic with the weights of a file, in evaluation mode."""
    critic = build_critic(policy, cfg, seed)
    critic.load_state_dict(load_file(path))
    return critic.eval()


def score_predictions(
    predictions: Sequence[np.ndarray], outcomes, at: str = "first", seed: int = 0, tolerance: float = 0.1
) -> pd.DataFrame:
    """Scores predicted distributions at one token of each response.

    Args:
        predictions: Arrays (T_i, M) of monotone quantiles. M = 1 is a point prediction.
        outcomes: One reward per response.
        at: Position of the token, key of POSITIONS.
        seed: Seed of the randomised PIT.
        tolerance: Quantiles this close to the outcome count as equal to it in the PIT (reward units). A network meets
            an atom at 0 or 1 only approximately, and without a tolerance each such miss would count as an error.

    Returns:
        One row per response: mean, crps (reward units; absolute error of a point), pit (NaN for a point).
    """
    rows = [p[round(POSITIONS[at] * (len(p) - 1))] for p in predictions]
    q, y = torch.tensor(np.stack(rows), dtype=torch.float64), torch.tensor(np.asarray(outcomes, dtype=float))
    point = q.shape[1] == 1
    met = torch.where((q - y[:, None]).abs() <= tolerance, y[:, None], q)
    where = torch.full_like(y, torch.nan) if point else pit(met, y, torch.Generator().manual_seed(seed))
    return pd.DataFrame({"mean": q.mean(1), "crps": (q[:, 0] - y).abs() if point else crps(q, y), "pit": where})


def calibration_error(predicted, outcomes) -> float:
    """Mean over equally filled bins of predictions of |mean prediction - mean outcome|, outcome units.

    Args:
        predicted: (n,) predicted means; n < BINS gives n bins.
        outcomes: (n,).
    """
    order = np.argsort(np.asarray(predicted, dtype=float), kind="stable")
    gaps = np.asarray(predicted, dtype=float)[order] - np.asarray(outcomes, dtype=float)[order]
    return float(np.mean([abs(part.mean()) for part in np.array_split(gaps, min(BINS, len(gaps)))]))


def prediction_metrics(predictions: Sequence[np.ndarray], received, true, at: str) -> dict[str, float]:
    """What predictions at one token say of the received and of the true reward.

    Args:
        predictions: As in `score_predictions`.
        received: One received reward per response.
        true: One true reward per response, 0 to 1; an answer is right from 0.5 on.
        at: Position of the token, key of POSITIONS.

    Returns:
        `explained_received`, `explained_true` (shares of variance); `auc_true`, with which the mean tells right answers
        from wrong ones; `calibration_error` and `crps`, of received rewards; `covered_80`, the share of received
        rewards in the central 80 % interval, NaN for a point prediction.
    """
    scores = score_predictions(predictions, received, at)
    mean = scores["mean"]
    return {
        "explained_received": explained_variance(mean, received),
        "explained_true": explained_variance(mean, true),
        "auc_true": float(weighted_auc(mean, true, np.ones((1, len(mean))))[0]),
        "calibration_error": calibration_error(mean, received),
        "crps": float(scores["crps"].mean(skipna=False)),
        "covered_80": float(interval_coverage(scores["pit"], [0.8])["covered"].iloc[0]),
    }
