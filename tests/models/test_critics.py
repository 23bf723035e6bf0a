"""The critic-only interface: known return distributions are learned, heads stay different, bad records are named."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.functional.quantiles import midpoint_levels
from dvpo_lib.models.critic import Critic, CriticSettings, bootstrap_weights, build_critic
from dvpo_lib.models.critic_training import encode_table, fit_critic, predict_values, return_targets
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

SHARE = {"math 3 ?": 0.2, "math 7 ?": 0.8}  # the prompt decides how often the reward is 1
TEXTS = ("answer 3", "careful so 3 answer 3")  # say nothing about the reward


def logs(n=400, seed=0, bell=False):
    """(prompt, completion, reward): the reward is 1 with the prompt's share, or N(share, 0.5^2) where `bell`."""
    rng = np.random.default_rng(seed)
    prompts = [list(SHARE)[i % 2] for i in range(n)]
    rewards = [SHARE[p] + rng.normal() / 2 if bell else float(rng.random() < SHARE[p]) for p in prompts]
    return [{"prompt": p, "completion": TEXTS[rng.integers(2)], "reward": r} for p, r in zip(prompts, rewards)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


@pytest.fixture(scope="module")
def policy(tokenizer):
    return build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)


def settings(**changes):
    return CriticSettings(**dict(heads=2, quantiles=16, learning_rate=3e-3, pretrain_epochs=12) | changes)


def predicted(policy, tokenizer, cfg, table):
    """{prompt: (T, M) values along the longer text} of a fitted critic, and that prompt's own rewards."""
    critic = build_critic(policy, cfg, seed=0)
    history = fit_critic(critic, table, tokenizer, cfg, seed=0)
    assert len(history) == cfg.pretrain_epochs * (len(table) // cfg.batch_size)
    shown = [{"prompt": p, "completion": TEXTS[1]} for p in SHARE]
    rewards = {p: np.array([r["reward"] for r in table if r["prompt"] == p]) for p in SHARE}
    return {p: (v, rewards[p]) for p, v in zip(SHARE, predict_values(critic, shown, tokenizer))}


def test_a_scalar_critic_learns_the_mean(tokenizer, policy):
    cfg = settings(kind="scalar", value_clip=None)
    for values, rewards in predicted(policy, tokenizer, cfg, logs()).values():
        assert values.shape == (6, 1)
        assert values[:, 0] == pytest.approx([rewards.mean()] * 6, abs=0.12)


def test_a_quantile_critic_learns_a_coin(tokenizer, policy):
    """At every token quantiles are near 0 below the share of failures and near 1 above it."""
    level = midpoint_levels(16).numpy()
    for prompt, (values, rewards) in predicted(policy, tokenizer, settings(), logs()).items():
        assert values.shape == (6, 16) and (np.diff(values, axis=1) >= 0).all()
        assert values.mean(1) == pytest.approx([rewards.mean()] * 6, abs=0.12)
        assert values[:, level < 1 - SHARE[prompt] - 0.15].mean() < 0.15
        assert values[:, level > 1 - SHARE[prompt] + 0.15].mean() > 0.75


@pytest.mark.parametrize("crossing", ["rearrange", "increments"])
def test_quantile_critics_learn_a_bell(tokenizer, policy, crossing):
    """The prompt's own quantiles, not those of all rewards (std 0.58, mean 0.5), which is where the critic starts."""
    for values, rewards in predicted(policy, tokenizer, settings(crossing=crossing), logs(bell=True)).values():
        want = np.quantile(rewards, midpoint_levels(16).numpy(), method="hazen")
        assert (np.diff(values, axis=1) >= 0).all()
        assert np.abs(values - want)[:, 3:-3].max() < 0.2 and np.abs(values - want).mean() < 0.12


def test_the_gamma_of_the_targets(tokenizer):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0]], dtype=torch.bool)
    g = return_targets(torch.tensor([8.0, -4]), mask, 0.5)
    assert g[..., 0].tolist() == [[2, 4, 8, 0], [-2, 0, -4, 0]]


def fitted(policy, tokenizer, equal_heads=False, **changes):
    cfg = settings(pretrain_epochs=2, **changes)
    critic = build_critic(policy, cfg, seed=0)
    if equal_heads:
        weight = critic.head.weight.data.unflatten(0, (cfg.heads, cfg.quantiles))
        weight[:] = weight[:1].clone()
    history = fit_critic(critic, logs(128), tokenizer, cfg, seed=0)
    return critic, history


def distance(critic) -> float:
    weight = critic.head.weight.detach().unflatten(0, (critic.heads, critic.quantiles))
    return (weight[0] - weight[1]).abs().max().item()


def test_heads_stay_different_and_equal_heads_stay_equal(tokenizer, policy):
    """Independent starts differ for good; equal heads that see equal weights never part; bootstraps part them."""
    assert distance(fitted(policy, tokenizer, bootstrap="equal")[0]) > 1e-3
    assert distance(fitted(policy, tokenizer)[0]) > 1e-3
    assert distance(fitted(policy, tokenizer, equal_heads=True, bootstrap="equal")[0]) < 1e-6
    assert distance(fitted(policy, tokenizer, equal_heads=True)[0]) > 1e-3


def test_bootstrap_weights(policy):
    weights = bootstrap_weights(settings(heads=3), 4000, torch.Generator().manual_seed(0))
    assert weights.shape == (4000, 3)
    assert weights.mean(0).tolist() == pytest.approx([1] * 3, abs=0.05)
    assert weights.var(0).tolist() == pytest.approx([1] * 3, abs=0.1)
    assert np.corrcoef(weights.T.numpy())[0, 1] == pytest.approx(0, abs=0.05)
    for cfg in (settings(heads=1), settings(bootstrap="equal"), settings(kind="scalar")):
        assert bootstrap_weights(cfg, 4, torch.Generator()) is None


def test_equal_seeds_give_equal_critics_and_other_seeds_others(tokenizer, policy):
    (a, first), (b, second) = (fitted(policy, tokenizer) for _ in range(2))
    assert first == second
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    cfg, other = settings(pretrain_epochs=2), build_critic(policy, settings(), seed=0)
    state = torch.get_rng_state()
    assert fit_critic(other, logs(128), tokenizer, cfg, seed=1) != first
    assert torch.equal(state, torch.get_rng_state())


def test_datasets_lists_and_encoded_tables_are_the_same(tokenizer, policy):
    cfg, rows = settings(pretrain_epochs=1), logs(64)
    data = Dataset.from_list(rows)
    critics = [build_critic(policy, cfg, seed=0) for _ in range(3)]
    histories = [
        fit_critic(c, t, tokenizer, cfg, seed=0) for c, t in zip(critics, (rows, data, encode_table(data, tokenizer)))
    ]
    assert histories[0] == histories[1] == histories[2]
    for a, b in zip(predict_values(critics[0], rows, tokenizer), predict_values(critics[0], data, tokenizer)):
        np.testing.assert_array_equal(a, b)


def test_one_array_a_response_whatever_the_batch(tokenizer, policy):
    """T_i words and the end of sequence; batching changes nothing but rounding."""
    rows, critic = logs(9), build_critic(policy, settings(), seed=0)
    whole, pieces = (predict_values(critic, rows, tokenizer, size) for size in (256, 2))
    assert [len(v) for v in whole] == [len(r["completion"].split()) + 1 for r in rows]
    for a, b in zip(whole, pieces):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(reward=float("nan")), "record 2: reward nan"),
        (dict(reward=float("inf")), "record 2: reward inf"),
        (dict(reward="1"), "record 2: reward '1'"),
        (dict(completion=None), "record 2: completion None is neither a text nor a list of messages"),
        (dict(prompt=3), "record 2: prompt 3 is neither a text nor a list of messages"),
        (dict(prompt=""), "record 2: the prompt is empty"),
    ],
)
def test_bad_records_are_named(tokenizer, change, message):
    rows = logs(4)
    rows[2] |= change
    with pytest.raises(ValueError, match=message):
        encode_table(rows, tokenizer)


def test_a_record_that_lacks_a_column_is_named(tokenizer):
    rows = logs(4)
    rows[2]["rewrad"] = rows[2].pop("reward")
    with pytest.raises(ValueError, match="record 2 has no column 'reward'; it has"):
        encode_table(rows, tokenizer)


def test_records_without_a_reward_are_left_out(tokenizer):
    rows = logs(5)
    kept = encode_table([rows[i] for i in (0, 2, 3)], tokenizer)
    for i in (1, 4):
        rows[i] |= dict(reward=None, completion="careless " * 30)
    table = encode_table(rows, tokenizer)
    assert torch.equal(table.tokens.input_ids, kept.tokens.input_ids) and torch.equal(table.rewards, kept.rewards)
    with pytest.raises(ValueError, match="the table has no record with a reward"):
        encode_table([row | dict(reward=None) for row in rows], tokenizer)


@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_tables_without_rows_or_columns_are_refused(tokenizer, make):
    with pytest.raises(ValueError, match="the table is empty"):
        encode_table(make([]), tokenizer)
    for column in ("prompt", "completion", "reward"):
        rows = [{k: v for k, v in row.items() if k != column} for row in logs(3)]
        with pytest.raises(ValueError, match=f"no column '{column}'"):
            encode_table(make(rows), tokenizer)


# ---- where critics start ----


@pytest.mark.parametrize("crossing", ["rearrange", "increments"])
@pytest.mark.parametrize("returns", ["normal", "coin"])
def test_critics_start_from_the_distribution_of_the_returns(tokenizer, policy, crossing, returns):
    """With the weights at 0, every head predicts the returns' quantiles (Hazen's) exactly; steps between equal ones are
    1e-3 / M, so that increments stay finite."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    x = x if returns == "normal" else (x > 0.7).float()
    critic = Critic(policy, 3, 20, crossing, seed=0)
    critic.head.weight.data.zero_()
    critic.start_from(x)
    z = critic(encode_table(logs(2), tokenizer).tokens)
    want = torch.tensor(np.quantile(x.numpy(), midpoint_levels(20).numpy(), method="hazen"))
    torch.testing.assert_close(z, want.float().expand_as(z), rtol=1e-4, atol=2e-3 if crossing == "increments" else 1e-5)


def test_a_scalar_critic_starts_from_the_mean(policy):
    critic = Critic(policy, seed=0)
    critic.start_from(torch.tensor([1.0, 2, 6]))
    assert critic.head.bias.tolist() == [3]


def test_starts_from_as_many_returns_as_there_are(policy):
    """More than 2^24 numbers, which torch.quantile refuses: one for each token of a large log."""
    x = torch.zeros(2**24 + 8)
    x[: 2**22] = 1.0
    critic = Critic(policy, 1, 8, seed=0)
    critic.start_from(x)
    assert critic.head.bias.tolist() == [0] * 6 + [1] * 2


def test_pretraining_keeps_the_ratchet_inert_at_its_own_reference(tokenizer, policy):
    """refresh = 1: the reference is the critic itself, so that the shape terms are 0 and push nothing; with an older
    reference they are seen."""
    loss, seen = CriticLossSettings(tail_shape=1.0, tail_curvature=1e-3), []
    for refresh in (1, 8):
        cfg = settings(pretrain_epochs=4, loss=loss, bootstrap="equal")
        history = fit_critic(build_critic(policy, cfg, seed=0), logs(128), tokenizer, cfg, seed=0, refresh=refresh)
        seen.append(max(h["tail_shape"] + h["tail_curvature"] for h in history))
    assert seen[0] < 1e-5 < seen[1]


def test_a_critic_leaves_the_policy_alone(tokenizer, policy):
    before = copy.deepcopy(policy.state_dict())
    fitted(policy, tokenizer)
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


LOGS = [
    {"prompt": "math 7 ?", "completion": "answer 3", "reward": 1.0},
    {"prompt": "math 3 ?", "completion": "answer 8", "reward": None, "completion_ids": [5, 6, 7]},
    {"prompt": "math 7 ?", "completion": "answer 7", "reward": 0.0},
]


def test_tables_of_any_kind_are_encoded_alike(tokenizer, policy):
    """A later record's extra column counts, and a missing reward of a data frame is a missing reward."""
    by_column = {c: [r.get(c) for r in LOGS] for c in ("prompt", "completion", "reward", "completion_ids")}
    frame = pd.DataFrame(LOGS, index=[5, 5, 7])
    tables = [LOGS, by_column, frame, Dataset.from_list([LOGS[1], LOGS[0], LOGS[2]]).select([1, 0, 2])]
    tables.append({name: pd.Series(values, dtype=object) for name, values in by_column.items()})
    first = encode_table(LOGS, tokenizer)
    assert len(first.rewards) == 2 and first.rewards.tolist() == [1, 0]
    for table in tables[1:]:
        found = encode_table(table, tokenizer)
        assert torch.equal(found.tokens.input_ids, first.tokens.input_ids), type(table)
        assert found.rewards.tolist() == [1, 0]
    critic = build_critic(policy, CriticSettings(heads=1, quantiles=8), 0)
    for table in tables:
        values = predict_values(critic, table, tokenizer)
        assert [len(v) for v in values] == [3, 3, 3], type(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": 1e39}, r"record 2: reward 1e\+39 does not fit into float32"),
        ({"reward": 10**400}, "record 2: reward an integer of 1329 bits does not fit into float32"),
        ({"reward": float("nan")}, "record 2: reward nan is not a finite number"),
        ({"reward": [1.0]}, r"record 2: reward \[1.0\] is not a number"),
        ({"prompt": "a \ud800"}, "record 2: .*lone surrogate"),
        ({"completion": "a \ud800"}, "record 2: .*lone surrogate"),
        ({"completion": "math " * 50_000}, "record 2: .* do not fit into the model's .* positions"),
        ({"prompt": "math " * 50_000}, "record 2: .* do not fit into the model's .* positions"),
    ],
    ids=range(8),
)
def test_logs_that_no_critic_can_learn_from_are_refused_by_record(tokenizer, policy, change, message):
    critic = build_critic(policy, CriticSettings(heads=1, quantiles=8), 0)
    logs = [*LOGS[:2], {**LOGS[2], **change}]
    for table in (logs, pd.DataFrame(logs, dtype=object) if "reward" not in change else logs):
        with pytest.raises(ValueError, match=message):
            fit_critic(critic, table, tokenizer, CriticSettings(batch_size=1), seed=0)
    if "reward" not in change:
        with pytest.raises(ValueError, match=message):
            predict_values(critic, logs, tokenizer)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "the table is empty"),
        ({}, "the table is empty"),
        ({"prompt": ["a"], "completion": ["b", "c"]}, "different lengths"),
        (["text"], "record 0 is no mapping"),
        ("text", "a table of records is expected, not str"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "record 1 has no column 'completion'"),
        (pd.DataFrame({"prompt": ["a"]}), "no column 'completion'"),
    ],
    ids=range(7),
)
def test_other_tables_are_refused(tokenizer, policy, table, message):
    critic = build_critic(policy, CriticSettings(heads=1, quantiles=8), 0)
    with pytest.raises(ValueError, match=message):
        predict_values(critic, table, tokenizer)
