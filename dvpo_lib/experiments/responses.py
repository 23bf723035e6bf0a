"""Responses for notebooks 02 and 03: advantages by token, values around the first wrong word, and who finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from dvpo_lib.experiments.specs.training import build_trainer
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.rl.estimators import actor_lambda
from dvpo_lib.tasks.suites import World

ROUNDED = 6  # decimals of TD errors in units of the batch's spread: what remains is rounding, and counts as a tie


def first_training_batch(spec) -> pd.DataFrame:
    """The first batch of a training run, with the advantages before any update.

    Args:
        spec: A `TrainingSpec`. With equal seeds, methods without groups get the same responses.

    Returns:
        One row per response: prompt, completion, tokens (list of words), advantages (list, one per token), discount
        (gamma times lambda of the advantages), reward (as received), reward_true, and record (a mapping, the problem's
        columns).
    """
    trainer = build_trainer(spec)
    rollouts, columns = trainer.sample()  # before any update the base policy's, offline methods' too
    scores = trainer.score(rollouts, columns)
    true = trainer.score(rollouts, columns, trainer.log_funcs).rewards
    experience = trainer.build_experience(rollouts, scores)
    with torch.no_grad():
        advantages, _ = trainer.method.advantage(experience, trainer.args)
    discounts = trainer.args.gamma * actor_lambda(experience, trainer.args) * torch.ones(len(advantages))
    ids = rollouts.tokens.input_ids[:, -rollouts.tokens.completion_length :]
    rows = []
    for i in experience.known.nonzero().squeeze(-1).tolist():  # without those whose reward is missing
        mask = rollouts.tokens.mask[i]
        rows.append(
            {
                "prompt": columns.get("question", rollouts.prompts)[i],
                "completion": rollouts.completions[i],
                "tokens": token_texts(ids[i, mask].tolist(), trainer.processing_class),
                "advantages": advantages[i, mask].tolist(),
                "discount": float(discounts[i]),
                "reward": float(scores.rewards[i]),
                "reward_true": float(true[i]),
                "record": {"prompt": rollouts.prompts[i], **{name: own[i] for name, own in columns.items()}},
            }
        )
    return pd.DataFrame(rows)


def telling_responses(batch: pd.DataFrame) -> list[dict]:
    """A right response, a wrong one and the two with the most distorted rewards, for `figures.token_text`.

    Args:
        batch: Table of `first_training_batch`.

    Returns:
        Dictionaries with tokens, values and title. A kind that does not occur is left out.
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


def wrong_and_right_response(responses: pd.DataFrame, world: World) -> tuple[pd.Series, pd.Series]:
    """A wrong and a right response, with uncorrupted rewards and prompts of equal length if possible.

    Args:
        responses: Table of `received_rewards`.
        world: World of their family.

    Returns:
        Two rows with the further entry `wrong_word`: index of the first wrong word, -1 in the right response.
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


def value_change_at_error(
    values: Sequence[np.ndarray], responses: pd.DataFrame, world: World, tokenizer
) -> dict[str, float]:
    """Change of a critic's mean at the first wrong word, and its spread after the style word.

    Args:
        values: Arrays (T_i, M) of `predict_values`, one per response.
        responses: Table with prompt and completion.
        world: World of their family.
        tokenizer: Of the policy.

    Returns:
        `wrong`, mean change of the value over the first wrong word; `style`, standard deviation over responses of the
        value after the first word; `count`, responses with a wrong word.
    """
    changes, after = [], []
    for v, r in zip(values, responses.to_dict("records"), strict=True):
        where = token_of_word(r, world.first_wrong_word(r, r["completion"]), tokenizer)
        after.append(v[min(1, len(v) - 1)].mean())
        if where is not None and where + 1 < len(v):
            changes.append(v[where + 1].mean() - v[where].mean())
    return {"wrong": float(np.mean(changes)) if changes else 0.0, "style": float(np.std(after)), "count": len(changes)}


def first_wrong_tokens(batch: pd.DataFrame, world: World, tokenizer) -> list[int | None]:
    """The token that starts the first wrong word of each response of `first_training_batch`; None without one."""
    found = []
    for r in batch.to_dict("records"):
        word = world.first_wrong_word(r["record"], r["completion"])
        found.append(token_of_word(r, word, tokenizer) if word is None or word >= 0 else None)
    return found


def error_auc(batch: pd.DataFrame, world: World, tokenizer) -> dict[str, float]:
    """How well a method tells the token of the first wrong word from the tokens before it.

    A critic whose value is constant finds nothing. Its TD errors are equal before the end of a response: their AUC is
    0.5. Its advantages fall along a wrong response if lambda is below 1: their AUC is 1.

    Args:
        batch: Table of `first_training_batch`.
        world: World of the family.
        tokenizer: Of the policy.

    Returns:
        `auc`, the mean over wrong responses of the share of earlier tokens with a higher advantage (ties count one
        half): 1 if the wrong token always has the lowest; `td_auc`, the same of the TD errors A_t - gamma lambda
        A_(t+1), over the responses that go on after the wrong token, since the reward stands in the last token's;
        `count` and `td_count`, the numbers of responses.
    """
    shares, td_shares = [], []
    rows = zip(first_wrong_tokens(batch, world, tokenizer), batch["advantages"], batch["discount"], strict=True)
    for where, own, discount in rows:
        if not where:  # at the first token there is nothing to tell it from
            continue
        own = np.asarray(own)
        shares.append(_share_above(own, where))
        if where + 1 < len(own):
            td_errors = np.round(own[:-1] - discount * own[1:], ROUNDED)
            td_shares.append(_share_above(td_errors, where))
    return {"auc": _mean(shares), "count": len(shares), "td_auc": _mean(td_shares), "td_count": len(td_shares)}


def _share_above(values: np.ndarray, where: int) -> float:
    before, own = values[:where], values[where]
    return float(np.mean((before > own) + 0.5 * (before == own)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def error_maps(batches: Mapping[str, pd.DataFrame], world: World, tokenizer) -> list[dict]:
    """The wrong response with the latest first error, as each method's advantages see it, for `figures.token_text`.

    Args:
        batches: {name of the method: its `first_training_batch`}, with the same responses.
        world: World of the family.
        tokenizer: Of the policy.

    Returns:
        One dictionary for each method, with tokens, values, title and mark (the first wrong token).
    """
    where = first_wrong_tokens(next(iter(batches.values())), world, tokenizer)
    row = max(range(len(where)), key=lambda i: -1 if where[i] is None else where[i])
    maps = []
    for name, batch in batches.items():
        r = batch.iloc[row]
        title = f"{name}: {r['prompt']}   (reward received: {r['reward']:.2f})"
        maps.append({"tokens": r["tokens"], "values": r["advantages"], "title": title, "mark": where[row]})
    return maps


def response_words(response, tokenizer) -> list[str]:
    """The policy's own tokens of a response (with prompt and completion_ids), which are those that a critic values."""
    return token_texts(_own_ids(response, tokenizer), tokenizer)


def _own_ids(response, tokenizer) -> list[int]:
    said = response["completion_ids"] if "completion_ids" in response else response["completion"]
    tokens = encode_completions(tokenizer, [response["prompt"]], [said])
    return tokens.input_ids[:, -tokens.completion_length :][tokens.mask].tolist()


def token_texts(ids: Sequence[int], tokenizer) -> list[str]:
    """Each token as text, without the spaces around it; a line feed as a sign."""
    return [tokenizer.decode([i]).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").strip() for i in ids]


def token_of_word(response, word: int | None, tokenizer) -> int | None:
    """Index of the token that a word of a response starts with: the same number if every token is a word.

    Args:
        response: With prompt and completion.
        word: Index of a word among the policy's own; None gives None.
        tokenizer: Of the policy.
    """
    if word is None or word < 0:
        return word
    ids = _own_ids(response, tokenizer)
    return next((i for i in range(len(ids)) if len(tokenizer.decode(ids[: i + 1]).split()) > word), len(ids) - 1)


def response_plot_arguments(response, tokenizer) -> dict:
    """Arguments of `figures.value_along_response` for a row of `wrong_and_right_response`."""
    wrong = token_of_word(response, int(response["wrong_word"]), tokenizer)
    where = [wrong - 0.5] if wrong >= 0 else []
    verdict = "right" if response["true"] >= 0.5 else "wrong"
    return {
        "tokens": response_words(response, tokenizer),
        "reward": response["received"],
        "marks": where,
        "title": f"{response.get('question', response['prompt'])}   ({verdict})",
    }
