"""The composition of each method in words, read from METHODS and from the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.reporting.names import display_name, setting_text
from dvpo_lib.reporting.prose import number_text
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS, resolve_settings
from dvpo_lib.rl.training_settings import MethodSettings, TrainingSettings, trainer_config, with_changes

AVERAGES = {
    "token_mean": "mean over tokens",
    "sequence_mean": "mean of sequence means",
    "constant": "sum over tokens by a constant length",
}


def critic_text(name: str) -> str:
    """The kind of critic of a method, or "none"."""
    return (METHODS[name].critic or "none").replace("_", " ")


def advantage_text(name: str) -> str:
    """The first line of the docstring of the method's advantage function."""
    return (METHODS[name].advantage.__doc__ or "").strip().splitlines()[0].replace("`", "")


def advantage_unit(name: str) -> str:
    """The unit of a method's advantages."""
    m = METHODS[name]
    if m.offline:
        return "advantage Q - V (reward units)"
    return "advantage, relative to its group" if m.groups else "advantage, whitened over the batch"


def policy_loss_text(cfg: DVPOConfig) -> str:
    """The policy loss, its average and its KL penalty.

    Args:
        cfg: Resolved settings.
    """
    m = METHODS[cfg.method]
    penalty = (
        f"KL penalty {setting_text(cfg.beta)} in the {cfg.kl_placement} ({cfg.kl_estimator})" if cfg.beta else "no KL"
    )
    if not m.offline:
        return f"PPO clip at {setting_text(cfg.epsilon)}, {AVERAGES[m.aggregate]}; {penalty}"
    if cfg.extraction == "perturbed":
        return f"none: logits are perturbed by {setting_text(cfg.perturbation)} (Q - V)"
    return (
        f"advantage-weighted regression at temperature {setting_text(cfg.awr_temperature)}, {AVERAGES[m.aggregate]}"
        + (f"; {penalty}" if cfg.kl_placement == "loss" else "")
    )


def method_card(name: str, cfg: DVPOConfig) -> str:
    """The composition of a method and its main settings, as a Markdown list.

    Args:
        name: The heading: a method, or a row of the ablation.
        cfg: Settings of a run.
    """
    m, cfg = METHODS[cfg.method], resolve_settings(cfg)
    lines = [
        f"## {display_name(name)}",
        "",
        f"Source: {m.source}.",
        "",
        f"- critic: {critic_text(cfg.method)}; advantage: {advantage_text(cfg.method)}",
        f"- policy loss: {policy_loss_text(cfg)}",
        f"- {cfg.max_steps // cfg.steps_per_iteration} iterations of {cfg.generation_batch_size} rollouts"
        + (" of the base policy" if m.offline else "")
        + (f" in groups of {cfg.num_generations}" if m.groups else "")
        + f", learning rate {setting_text(cfg.learning_rate)}",
    ]
    if m.clip_rewards:
        lines.append(f"- rewards are cut at the batch's {cfg.reward_clip:.0%} and {1 - cfg.reward_clip:.0%} quantiles")
    return "\n".join(lines)


def methods_table(training: TrainingSettings, rows: Mapping[str, MethodSettings]) -> pd.DataFrame:
    """One row per method of a run: critic, advantage, policy loss, source, settings of its own.

    Args:
        training: The section `training` of params.yaml.
        rows: The section `methods` of params.yaml.
    """
    found = []
    for name, row in rows.items():
        cfg = resolve_settings(trainer_config(with_changes(training, row.training), max_steps=1, method=name))
        own = "; ".join(f"{k.replace('_', ' ')} {setting_text(v)}" for k, v in row.training.items())
        found.append(
            {
                "method": display_name(name),
                "critic": critic_text(name),
                "advantage": advantage_text(name),
                "policy loss": policy_loss_text(cfg),
                "source": METHODS[name].source,
                "own settings": own or "none",
            }
        )
    return pd.DataFrame(found)


def critic_settings_table(critics: Mapping[str, CriticSettings]) -> pd.DataFrame:
    """One row per critic: heads, quantiles, monotone form and pretraining settings."""
    rows = []
    for name, settings in critics.items():
        point = name == "scalar"
        rows.append(
            {
                "critic": display_name(name),
                "heads": 1 if point else settings.heads,
                "quantiles": 1 if point else settings.quantiles,
                "monotone": "" if point else settings.crossing,
                "scored rollouts": settings.pretrain_rollouts,
                "passes": settings.pretrain_epochs,
                "learning rate": f"{settings.learning_rate:g}",
            }
        )
    return pd.DataFrame(rows)


def critic_kinds_text(kinds: pd.DataFrame) -> pd.DataFrame:
    """The table of `critic_scores.critic_kind_table` as text; noises by their names."""
    noises = [column for column in kinds if column not in ("kind", "parameters", "gigaflops")]
    text = kinds.astype({noise: object for noise in noises})
    for noise in noises:
        text[noise] = [number_text(value, 3) for value in kinds[noise]]
    text["parameters"] = [f"{value:,}" for value in kinds["parameters"]]
    text["gigaflops"] = [number_text(value, 2) for value in kinds["gigaflops"]]
    names = {noise: f"explained, {display_name(noise)}" for noise in noises}
    return text.rename(columns={**names, "parameters": "parameters trained", "gigaflops": "GFLOP a step"})
