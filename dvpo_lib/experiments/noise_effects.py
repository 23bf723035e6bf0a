"""Effects of each noise source on the rewards of sampled responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from dvpo_lib.noise.confusion import confusion_rates
from dvpo_lib.noise.proxies import corrupt_table
from dvpo_lib.noise.sources import NOISES, NoiseSettings
from dvpo_lib.reporting.names import display_name


def received_rewards(
    samples: pd.DataFrame,
    noises: Mapping[str, NoiseSettings],
    seed: int,
    proxies: Mapping[str, Callable] | None = None,
    step: int = 10**9,
) -> pd.DataFrame:
    """Rewards of the same responses under each noise source.

    Args:
        samples: Table of `sample_table`.
        noises: {name: noise source}. A source whose proxies are absent is left out.
        seed: Seed of the noise.
        proxies: Proxy rewards, as in `corrupt`.
        step: Training step. By default, every drift has ended.

    Returns:
        `samples` for each source, with columns noise, true, received (NaN if missing) and words.
    """
    frames = [
        samples.assign(noise=name, true=samples["reward"], received=corrupt_table(samples, cfg, seed, proxies, step))
        for name, cfg in noises.items()
        if {*cfg.proxies} <= {*(proxies or {})}
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(words=table["completion"].str.split().str.len())


def confusion_table(rewards: pd.DataFrame) -> pd.DataFrame:
    """Confusion of received and true rewards, one row per family and source.

    Args:
        rewards: Table of `received_rewards`, of one or more families.
    """
    return pd.DataFrame(
        [
            {"family": family, "noise": name, **confusion_rates(own["true"], own["received"], own["words"])}
            for (family, name), own in rewards.groupby(["family", "noise"], sort=False)
        ]
    )


def noise_table(noises: Mapping[str, NoiseSettings]) -> pd.DataFrame:
    """Effect, rate, scale and drift of each noise source, one row per part of a composed source."""
    rows = []
    for name, cfg in noises.items():
        for part in cfg.chain:
            scaled = part.kind in ("spikes", "prompt_spikes", "length_bias")
            rows.append(
                {
                    "noise": display_name(name) if part is cfg else "... then",
                    "what happens to the reward r": (NOISES[part.kind].__doc__ or "").strip(),
                    "rate": f"{part.rate:g}" if part.kind != "none" else "",
                    "scale": f"{part.scale:g}" if scaled else "",
                    "rate rises in steps": "{} to {}".format(*part.drift) if part.drift else "",
                }
            )
    return pd.DataFrame(rows)


def pseudo_label_quality(samples: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Pseudo-labels against the truth.

    Args:
        samples: Table with prompt, answer, steps.
        labels: Table of `load_labels`.

    Returns:
        One row per prompt: prompt, steps, agreement, right (bool).
    """
    known = samples[["prompt", "answer", "steps"]].drop_duplicates("prompt").merge(labels, on="prompt")
    return known.assign(right=known["label"] == known["answer"])[["prompt", "steps", "agreement", "right"]]


def no_pseudo_labels() -> pd.DataFrame:
    """A table of `pseudo_label_quality` with its family, without rows."""
    return pd.DataFrame(columns=["prompt", "steps", "agreement", "right", "family"])


def noise_examples(
    samples: pd.DataFrame, noises: Mapping[str, NoiseSettings], seed: int, proxies: Mapping[str, Callable] | None = None
) -> pd.DataFrame:
    """The best and the worst answer to one prompt, with their rewards under each noise source.

    The prompt is one at which as many sources as possible change a reward.

    Args:
        samples: Table of `sample_table`.
        noises: {name: noise source}.
        seed: Seed of the noise.
        proxies: Proxy rewards, as in `corrupt`.

    Returns:
        One row per answer (one row if all rewards are equal). NaN marks a missing reward or a source whose proxies
        are absent.
    """
    table = samples[["prompt", "answer", "completion", "reward"]].reset_index(drop=True)
    for name, cfg in noises.items():
        there = {*cfg.proxies} <= {*(proxies or {})}
        table[name] = corrupt_table(samples, cfg, seed, proxies).to_numpy() if there else np.nan
    table = table.drop_duplicates(["prompt", "reward"])
    struck = table[list(noises)].ne(table["reward"], axis=0).groupby(table["prompt"], sort=False).any().sum(axis=1)
    both = table.groupby("prompt", sort=False).size().gt(1)
    best = (struck + both * (len(noises) + 1)).idxmax()
    table = table[table["prompt"] == best].sort_values("reward", ascending=False).drop(columns="reward")
    table = table.iloc[[0, -1]] if len(table) > 1 else table
    return table.rename(columns={"answer": "right answer"})


def transpose_examples(found: pd.DataFrame) -> pd.DataFrame:
    """`noise_examples` with one column per answer, for a notebook."""
    columns = {
        which: {
            display_name(k): v if isinstance(v, str) else "–" if np.isnan(v) else f"{v:.2f}" for k, v in row.items()
        }
        for which, row in zip(("the best answer", "the worst"), found.to_dict("records"))
    }
    return pd.DataFrame(columns).rename_axis("what").reset_index().rename(columns={"what": ""})
