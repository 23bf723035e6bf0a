"""What critics and methods say of single responses: predictions scored, advantages by token, wrong steps found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from .critics import CriticSettings, build_critic, predict_values
from .figures.style import CRITICS
from .models import Critic, encode
from .quantiles import crps, levels, pit
from .rewards import score
from .runs import start
from .statistics import coverage, explained_variance
from .tasks import World

POSITIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}


def load_critic(policy, cfg: CriticSettings, path, seed: int = 0) -> Critic:
    """A pretrained critic from its file of weights."""
    critic = build_critic(policy, cfg, seed)
    critic.load_state_dict(load_file(path))
    return critic.eval()


def compared_critics(critics: Mapping[str, CriticSettings]) -> dict[str, CriticSettings]:
    """The critics that notebook 02 compares: those that predict the rewards as received, by name."""
    return {name: cfg for name, cfg in critics.items() if name in CRITICS}


def score_predictions(predictions: Sequence[np.ndarray], outcomes, at: str = "first", seed: int = 0,
                      tolerance: float = 0.1) -> pd.DataFrame:
    """Predicted distributions at one token of every response against what the responses got.

    Args:
        predictions: arrays (T_i, M) of monotone quantiles (M = 1: a point prediction).
        outcomes: rewards, one per response. at: "first", "middle" or "last" token. seed: of the randomised PIT.
        tolerance: quantiles so near to the outcome count as equal to it in the PIT (reward units): a network meets an
            atom at 0 or 1 only nearly, and without a tolerance every such miss would count as a wrong distribution.

    Returns:
        One row per response: mean, crps (reward units; absolute error of a point), pit (NaN for a point).
    """
    rows = [p[round(POSITIONS[at] * (len(p) - 1))] for p in predictions]
    q, y = torch.tensor(np.stack(rows), dtype=torch.float64), torch.tensor(np.asarray(outcomes, dtype=float))
    point = q.shape[1] == 1
    met = torch.where((q - y[:, None]).abs() <= tolerance, y[:, None], q)
    where = torch.full_like(y, torch.nan) if point else pit(met, y, torch.Generator().manual_seed(seed))
    return pd.DataFrame({"mean": q.mean(1), "crps": (q[:, 0] - y).abs() if point else crps(q, y), "pit": where})


def overall_distribution(rewards, count: int, quantiles: int = 200) -> list[np.ndarray]:
    """The prediction without a critic: the distribution of the training rewards, the same for all `count` responses."""
    q = np.quantile(np.asarray(rewards, dtype=float), levels(quantiles).numpy(), method="inverted_cdf")
    return [q[None]] * count


def critic_predictions(files: Mapping[tuple, object], settings: Mapping[str, CriticSettings], policy, tokenizer,
                       responses: Mapping[tuple, pd.DataFrame], constants: Mapping[tuple, Sequence[float]],
                       at: Sequence[str] = tuple(POSITIONS)) -> pd.DataFrame:
    """Every pretrained critic on held-out responses, beside the prediction without a critic.

    Args:
        files: {(critic, family, noise, seed): file of weights}. settings: {critic: CriticSettings}.
        responses: {(family, noise): table with prompt, completion, received, true}.
        constants: {(family, noise): rewards of the critics' training data}, for the row "constant"; may be empty.

    Returns:
        One row per critic, response and position: critic, family, noise, seed, at, mean, crps, pit, received, true.
    """
    frames = []
    constant = {("constant", *key, -1): None for key in constants}
    for (name, family, noise, seed), path in {**files, **constant}.items():
        held = responses[family, noise]
        if path is None:
            predicted = overall_distribution(constants[family, noise], len(held))
        else:
            critic = load_critic(policy, settings[name], path)
            predicted = predict_values(critic, held.to_dict("records"), tokenizer)
        for where in at:
            frame = score_predictions(predicted, held["received"], where)
            labels = {"critic": name, "family": family, "noise": noise, "seed": seed, "at": where}
            frames.append(frame.assign(**labels, received=held["received"].to_numpy(), true=held["true"].to_numpy()))
    return pd.concat(frames, ignore_index=True)


def critic_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per critic, noise, family, seed and position of `critic_predictions`.

    Columns ev_received and ev_true (explained variance of the received and of the true reward), crps, cover50, cover80
    and cover90 (share of outcomes in the central interval; NaN for point predictions).
    """
    rows = []
    for key, own in predictions.groupby(["noise", "critic", "family", "seed", "at"], sort=False):
        pits = own["pit"].dropna()
        inside = coverage(pits, [0.5, 0.8, 0.9])["covered"] if len(pits) else [np.nan] * 3
        explained = [explained_variance(own["mean"], own[column]) for column in ("received", "true")]
        rows.append((*key, *explained, own["crps"].mean(), *inside))
    return pd.DataFrame(rows, columns=["noise", "critic", "family", "seed", "at", "ev_received", "ev_true", "crps",
                                       "cover50", "cover80", "cover90"])  # fmt: skip


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
        rows.append({
            "prompt": rollouts.prompts[i], "completion": rollouts.completions[i],
            "tokens": trainer.processing_class.convert_ids_to_tokens(ids[i, mask].tolist()),
            "advantages": advantages[i, mask].tolist(), "reward": float(rewards[i]), "reward_true": float(true[i]),
        })  # fmt: skip
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
        for kind, rows in kinds.items() for r in rows.itertuples()
    ]  # fmt: skip


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
    return {"tokens": own_words(response, tokenizer), "reward": response["received"], "marks": where,
            "title": f"{response['prompt']}   ({verdict})"}  # fmt: skip
