"""Chosen responses with the value predicted at each token: examples for notebooks 02 and 04."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from dvpo_lib.experiments.specs.training import start
from dvpo_lib.models.tokens import encode
from dvpo_lib.rl.rewards import score
from dvpo_lib.tasks.suites import World


def first_batch(spec) -> pd.DataFrame:
    """The first batch of a training run, before any update: what a method makes of it.

    Args:
        spec: `runs.TrainSpec`. Methods that draw single completions see the same responses under one seed.

    Returns:
        One row per response: prompt, completion, tokens (list of words), advantages (list, one a token), reward (as
        received) and reward_true.
    """
    trainer = start(spec)
    rollouts, columns = trainer.sample()  # before any update the base policy's, offline methods' too
    rewards, true = (
        score(funcs, rollouts.prompts, rollouts.completions, columns, trainer.state)
        for funcs in (trainer.reward_funcs, trainer.log_funcs.values())
    )
    rollouts, rewards, places = trainer.scored(rollouts, rewards)  # without those whose reward is missing
    true = true if places is None else true[places.cpu()]
    experience, _ = trainer.examine(rollouts, rewards, places)
    with torch.no_grad():
        advantages, _ = trainer.method.advantage(experience, trainer.args)
    ids = rollouts.tokens.input_ids[:, -rollouts.tokens.completion_length :]
    rows = []
    for i, mask in enumerate(rollouts.tokens.mask):
        rows.append(
            {
                "prompt": rollouts.prompts[i],
                "completion": rollouts.completions[i],
                "tokens": trainer.processing_class.convert_ids_to_tokens(ids[i, mask].tolist()),
                "advantages": advantages[i, mask].tolist(),
                "reward": float(rewards[i]),
                "reward_true": float(true[i]),
            }
        )
    return pd.DataFrame(rows)


def telling_responses(batch: pd.DataFrame) -> list[dict]:
    """A few responses of `first_batch` for `figures.token_text`: right, wrong, and the two most distorted ones.

    A kind that does not occur is left out.
    """
    off = (batch["reward"] - batch["reward_true"]).abs()
    right = batch["reward_true"] >= 0.5
    kinds = {
        "right, rewarded": batch[right & (off == 0)].head(1),
        "wrong, not rewarded": batch[~right & (off == 0)].head(1),
        "right, reward corrupted": batch[right & (off > 0)].nsmallest(1, "reward"),
        "wrong, reward corrupted": batch[~right & (off > 0)].nlargest(1, "reward"),
    }
    return [
        {"tokens": r.tokens, "values": r.advantages, "title": f"{r.prompt}   ({kind}: {r.reward:.2f})"}
        for kind, rows in kinds.items()
        for r in rows.itertuples()
    ]


def wrong_and_right(responses: pd.DataFrame, world: World) -> tuple[pd.Series, pd.Series]:
    """A wrong response and a right one, of prompts of equal length if there are such, each with its uncorrupted reward
    where some reward is uncorrupted.

    Args:
        responses: of `received_rewards`.

    Returns:
        Two rows with a further entry `wrong_word`: where the first wrong word stands, -1 in the right response.
    """
    clean = responses[responses["true"] == responses["received"]]
    clean = (clean if len(clean) else responses).reset_index(drop=True)
    found = [world.first_wrong_word(r, r["completion"]) for r in clean.to_dict("records")]
    clean["wrong_word"] = [-1 if f is None else f for f in found]
    wrong = clean[(clean["true"] < 1) & (clean["wrong_word"] >= 0)]
    right = clean[(clean["true"] == 1) & (clean["wrong_word"] < 0)]
    wrong = (wrong if len(wrong) else clean).head(1)
    alike = right[right["prompt"].str.split().str.len() == len(wrong["prompt"].iloc[0].split())]
    right = (alike if len(alike) else right if len(right) else clean.tail(1)).head(1)
    return wrong.iloc[0], right.iloc[0]


def change_at_error(values: Sequence[np.ndarray], responses: pd.DataFrame, world: World) -> dict[str, float]:
    """What a critic's mean does at the style word, and at the first wrong word of responses that have one.

    Args:
        values: arrays (T_i, M) of `critics.predict_values` for `responses` (prompt, completion, ...).

    Returns:
        `wrong`: mean change of the value over the first wrong word; `style`: spread (standard deviation over responses)
        of the value right after the first word; `count` of responses with a wrong word.
    """
    changes, after = [], []
    for v, r in zip(values, responses.to_dict("records"), strict=True):
        where = world.first_wrong_word(r, r["completion"])
        after.append(v[min(1, len(v) - 1)].mean())
        if where is not None and where + 1 < len(v):
            changes.append(v[where + 1].mean() - v[where].mean())
    return {"wrong": float(np.mean(changes)) if changes else 0.0, "style": float(np.std(after)), "count": len(changes)}


def own_words(response, tokenizer) -> list[str]:
    """The policy's own tokens of a response (a row with prompt and completion_ids): those that a critic values."""
    tokens = encode(tokenizer, [response["prompt"]], [response["completion_ids"]])
    return tokenizer.convert_ids_to_tokens(tokens.input_ids[:, -tokens.completion_length :][tokens.mask].tolist())


def along(response, tokenizer) -> dict:
    """Arguments of `figures.value_along_response` that describe a row of `wrong_and_right`."""
    where = [response["wrong_word"] - 0.5] if response["wrong_word"] >= 0 else []
    verdict = "right" if response["true"] >= 0.5 else "wrong"
    return {
        "tokens": own_words(response, tokenizer),
        "reward": response["received"],
        "marks": where,
        "title": f"{response['prompt']}   ({verdict})",
    }
