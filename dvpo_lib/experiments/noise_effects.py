"""What noise makes of the rewards of sampled responses, source by source, beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from dvpo_lib.noise.proxies import received
from dvpo_lib.noise.sources import NOISES, NoiseSettings, confusion
from dvpo_lib.reporting.names import display_name


def received_rewards(
    samples: pd.DataFrame,
    noises: Mapping[str, NoiseSettings],
    seed: int,
    proxies: Mapping[str, Callable] | None = None,
    step: int = 10**9,
) -> pd.DataFrame:
    """The same scored responses under every noise source: `samples` with noise, true, received and words.

    A missing reward is NaN in `received`. Sources that need a proxy which is not there are left out.

    Args:
        samples: of `evaluation.sample_table`. proxies: of `noise.corrupt`. step: of training; by default one at which
            every drift has ended.
    """
    frames = [
        samples.assign(noise=name, true=samples["reward"], received=received(samples, cfg, seed, proxies, step))
        for name, cfg in noises.items()
        if {*cfg.proxies} <= {*(proxies or {})}
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(words=table["completion"].str.split().str.len())


def confusion_table(rewards: pd.DataFrame) -> pd.DataFrame:
    """`noise.confusion` of every noise source in tables of `received_rewards`: a row for each family and source."""
    return pd.DataFrame(
        [
            {"family": family, "noise": name, **confusion(own["true"], own["received"], own["words"])}
            for (family, name), own in rewards.groupby(["family", "noise"], sort=False)
        ]
    )


def noise_table(noises: Mapping[str, NoiseSettings]) -> pd.DataFrame:
    """What each noise source does, a row for each of the sources that it is put together from: rate, scale, drift."""
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


def votes_on(samples: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Pseudo-labels beside the truth, a row for each prompt of `samples`: prompt, steps, agreement, right (bool).

    Args:
        samples: prompt, answer, steps. labels: of `pseudo_labels.load_labels`.
    """
    known = samples[["prompt", "answer", "steps"]].drop_duplicates("prompt").merge(labels, on="prompt")
    return known.assign(right=known["label"] == known["answer"])[["prompt", "steps", "agreement", "right"]]


def examples(
    samples: pd.DataFrame, noises: Mapping[str, NoiseSettings], seed: int, proxies: Mapping[str, Callable] | None = None
) -> pd.DataFrame:
    """The best and the worst answer to one prompt (where they differ), with the reward under every noise.

    Of all prompts one is taken at which as many noises as possible strike. NaN stands for a reward that is missing, and
    under sources that need a proxy which is not there.

    Args:
        samples: of `evaluation.sample_table`.
    """
    table = samples[["prompt", "answer", "completion", "reward"]].reset_index(drop=True)
    for name, cfg in noises.items():
        there = {*cfg.proxies} <= {*(proxies or {})}
        table[name] = received(samples, cfg, seed, proxies).to_numpy() if there else np.nan
    table = table.drop_duplicates(["prompt", "reward"])
    struck = table[list(noises)].ne(table["reward"], axis=0).groupby(table["prompt"], sort=False).any().sum(axis=1)
    both = table.groupby("prompt", sort=False).size().gt(1)
    best = (struck + both * (len(noises) + 1)).idxmax()
    table = table[table["prompt"] == best].sort_values("reward", ascending=False).drop(columns="reward")
    table = table.iloc[[0, -1]] if len(table) > 1 else table
    return table.rename(columns={"answer": "right answer"})


def examples_beside(found: pd.DataFrame) -> pd.DataFrame:
    """A table of `examples` turned on its side: a column for each answer, a row for prompt, texts and each noise."""
    columns = {
        which: {
            display_name(k): v if isinstance(v, str) else "–" if np.isnan(v) else f"{v:.2f}" for k, v in row.items()
        }
        for which, row in zip(("the best answer", "the worst"), found.to_dict("records"))
    }
    return pd.DataFrame(columns).rename_axis("what").reset_index().rename(columns={"what": ""})
