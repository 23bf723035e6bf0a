"""Missing rewards (None): left out of every loss and statistic, or taken to be what the critic expects."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import run_settings, scored_batch
from test_trainer import arm, networks, spoil, trainer, update_on

from dvpo_lib.functional import advantages as adv
from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import encode_table, fit_critic
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.methods import METHODS, resolve_settings
from dvpo_lib.rl.rewards import Scores, score_completions
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

every_method = pytest.mark.parametrize("method", list(METHODS))
with_critic = pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.critic])
MISSING = set(range(8, 16)) | {24, 25, 26, 27, 28, 29, 30, 31}  # of 32: whole groups of 8


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def gappy(where):
    """`arm` without rewards at `where`."""

    def reward(prompts, completions, **columns):
        return [None if i in where else r for i, r in enumerate(arm(prompts, completions))]

    return reward


def parameters(t):
    return [p.clone() for m in networks(t) for p in m.parameters()]


@every_method
def test_a_batch_with_gaps_is_the_batch_without_these_rows(tokenizer, method):
    gaps = trainer(tokenizer, method, gappy(MISSING), beta=0.1)
    without = trainer(tokenizer, method, beta=0.1)
    rows = torch.tensor([i for i in range(32) if i not in MISSING])
    whole = without.sample

    def shorter(policy=None, purpose="sampling", records=None):
        rollouts, columns = whole(policy, purpose, records)
        if purpose != "sampling":
            return rollouts, columns
        return rollouts.rows(rows), {k: [v[i] for i in rows.tolist()] for k, v in columns.items()}

    without.sample = shorter
    logs, other = gaps.step(), without.step()
    assert logs["missing"] == 0.5 and other["missing"] == 0
    assert logs["reward"] == pytest.approx(other["reward"])
    of_all = {"missing", "reward_true", "completions/mean_length", "completions/clipped_ratio"}  # scored or not
    for name in {name for name in other if not name.startswith("rewards/")} - of_all:
        assert logs[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6, nan_ok=True), name
    for a, b in zip(parameters(gaps), parameters(without), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # Adam turns rounding into steps of up to 1e-2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # nothing was learned before the first one
@every_method
@pytest.mark.parametrize("how", ["drop", "bootstrap"])
def test_without_any_reward_nothing_is_learned_and_the_logs_say_so(tokenizer, method, how):
    t = trainer(tokenizer, method, gappy(range(32)), missing_rewards=how, lr_scheduler_type="linear", max_steps=4)
    before = parameters(t)
    logs = t.step()
    assert t.lr_scheduler.get_last_lr()[0] == pytest.approx(0.75 * t.args.learning_rate)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(t), strict=True))
    assert logs["missing"] == 1 and math.isnan(logs["reward"]) and not [name for name in logs if "loss" in name]
    assert 0 <= logs["reward_true"] <= 1 and t.iteration == 1
    t.reward_funcs = [gappy({0})]
    assert t.step()["missing"] == 1 / 32
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(t), strict=True))


def test_incomplete_groups_by_hand():
    """Two groups of four: 3 and 1 are centred, the only reward of the second group gives no signal."""
    nan = math.nan
    rewards = torch.tensor([3.0, nan, nan, 1.0, 7.0, nan, nan, nan])
    assert adv.group_advantages(rewards, 4, False).tolist() == [1, 0, 0, -1, 0, 0, 0, 0]
    scaled = adv.group_advantages(rewards, 4, True)[:5].tolist()
    one = 1 / (2**0.5 + 1e-4)  # deviations' squares 2, over 1
    assert scaled == pytest.approx([one, 0, 0, -one, 0])
    r = torch.randn(8)
    for scale in (False, True):
        complete = adv.group_advantages(r[:4], 4, scale)
        beside_a_gap = adv.group_advantages(torch.cat([r[:4], r[4:7], torch.tensor([nan])]), 4, scale)
        torch.testing.assert_close(beside_a_gap[:4], complete)


def test_the_only_reward_of_a_batch_gives_no_signal_whatever_the_scale(tokenizer):
    t = trainer(tokenizer, "grpo", gappy(set(range(1, 32))), scale_rewards="batch", beta=0.0)
    before = parameters(t)
    t.step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(t), strict=True))


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "grpo_clip_reward"])
def test_groups_use_their_remaining_members(tokenizer, method):
    """A group without rewards in the middle, one with a single reward, which counts as flat."""
    t = trainer(tokenizer, method, gappy(set(range(8, 16)) | set(range(17, 24)) | {0, 5}))
    logs = t.step()
    assert logs["missing"] == 17 / 32 and logs["frac_reward_zero_std"] >= 0.33
    assert math.isfinite(logs["policy_loss"]) and math.isfinite(logs["policy_grad_norm"])


@every_method
@pytest.mark.parametrize("how", ["drop", "bootstrap"])
def test_tokens_of_a_dropped_response_change_no_update(tokenizer, method, how):
    """With `drop` whatever the networks say of it may be NaN; what is bootstrapped takes part."""
    results = []
    for poison in (False, True):
        t = trainer(tokenizer, method, missing_rewards=how)
        rollouts, _ = t.sample()
        rewards = torch.tensor([math.nan if i in MISSING else r for i, r in enumerate(arm(None, rollouts.completions))])
        x = t.build_experience(rollouts, Scores(rewards, {}))
        drop = t.args.missing_rewards == "drop"
        assert x.mask.any(1).equal(x.known if drop else torch.ones(32, dtype=torch.bool))
        if poison and drop:
            for part in (x.logprobs, x.reference_logprobs, x.values):
                spoil(part, ~x.known)
        advantages, targets = t.method.advantage(x, t.args)
        logs = update_on(t, x, advantages, targets)
        results.append((logs, parameters(t)))
    (logs, one), (other_logs, other) = results
    assert str(logs) == str(other_logs)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, other, strict=True))


# ---- bootstrap ----


def test_delta_is_zero_where_the_reward_is_not_known():
    """V = 1, 2 and then the end; gamma 1, lambda 1/2: deltas 0 + 2 - 1 and, in place of r - 2, 0."""
    rewards = torch.tensor([[0.0, math.nan], [0.0, 9.0]])
    values, mask = torch.tensor([[1.0, 2.0]] * 2), torch.ones(2, 2) > 0
    a, g = adv.generalised_advantages(rewards, values, mask, 1.0, 0.5)
    assert a.tolist() == [[1, 0], [1 + 3.5, 7]] and g.tolist() == [[2, 2], [5.5, 9]]
    z = torch.stack([values - 0.5, values + 0.5], -1)
    a, _ = adv.generalised_advantages(rewards, z, mask, 1.0, 0.5)
    assert a[0, 1].tolist() == [0, 0]


@pytest.mark.parametrize(
    "readout",
    [
        dict(kind="mean"),
        dict(kind="winsorised", level_low=0.3, level_up=0.2),
        dict(kind="distorted", distortion="wang", strength=0.5),
    ],
)
@pytest.mark.parametrize("method", ["dvpo", "ppo", "robust_ppo"])
def test_an_unknown_reward_gives_no_signal_at_the_last_token(method, readout):
    """Whatever the read-out's own baseline there is; the KL penalty of that token is part of what is not known."""
    args = resolve_settings(
        run_settings(method=method, readout=readout, whiten_advantages=False, missing_rewards="bootstrap")
    )
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    shape = (2, 3, 1, 1) if method == "ppo" else (2, 3, 2, 16)
    values, kl = torch.randn(shape, generator=generator).sort(-1).values, torch.randn(2, 3, generator=generator)
    x = scored_batch(torch.tensor([math.nan, math.nan]), mask, kl, values)
    a, _ = METHODS[method].advantage(x, args)
    assert a[0, 2] == 0 and a[1, 1] == 0 and (a[:, 0] != 0).all()
    known, _ = METHODS[method].advantage(replace(x, rewards=torch.tensor([math.nan, 0.0])), args)
    assert torch.equal(known[0], a[0]) and known[1, 1] != 0


@with_critic
def test_the_critic_learns_from_known_rewards_alone(tokenizer, method):
    """Targets of rows without reward may be NaN; the policy takes them in."""
    results = []
    for poison in (False, True):
        t = trainer(tokenizer, method, missing_rewards="bootstrap")
        rollouts, _ = t.sample()
        rewards = torch.tensor([math.nan if i in MISSING else r for i, r in enumerate(arm(None, rollouts.completions))])
        x = t.build_experience(rollouts, Scores(rewards, {}))
        assert x.known.sum() == 16 and x.mask.any(1).all()
        advantages, targets = t.method.advantage(x, t.args)
        if poison:
            spoil(targets, ~x.known)
        update_on(t, x, advantages, targets)
        results.append(parameters(t))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


@with_critic
def test_bootstrapped_steps_train(tokenizer, method):
    t = trainer(tokenizer, method, gappy(MISSING), missing_rewards="bootstrap")
    before, logs = parameters(t), t.step()
    assert logs["missing"] == 0.5 and math.isfinite(logs["critic_loss"]) and math.isfinite(logs["explained_variance"])
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(t), strict=True))


def test_a_mini_batch_without_rewards_leaves_the_critic_as_it_is(tokenizer):
    """Only one of 32 rewards is known, in one of two mini-batches."""
    t = trainer(tokenizer, "ppo", gappy(range(1, 32)), missing_rewards="bootstrap", num_iterations=1)
    assert math.isfinite(t.step()["critic_loss"])


def test_methods_without_a_critic_have_nothing_to_bootstrap_from():
    for method, row in METHODS.items():
        found = resolve_settings(run_settings(method=method, missing_rewards="bootstrap")).missing_rewards
        assert found == ("bootstrap" if row.critic else "drop")


# ---- reward functions and logs ----


def test_rewards_are_summed_over_the_functions_that_have_one():
    one, two = lambda **c: [1.0, None, None], lambda **c: [2, 5, None]  # noqa: E731
    total = score_completions({"one": one, "two": two}, ["p"] * 3, ["c"] * 3, {}).rewards
    assert total[:2].tolist() == [3, 5] and total[2].isnan()


def test_critics_are_fitted_to_the_records_that_have_a_reward(tokenizer):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), 0)
    records = [
        {"prompt": "math 7 a +5 ?", "completion": f"careful a +5 = {i}", "reward": r}
        for i, r in enumerate([1.0, None, 0.0])
    ]
    data = encode_table(records, tokenizer)
    assert len(data.tokens) == 2 and data.rewards.tolist() == [1, 0]
    assert tokenizer.decode(data.tokens.input_ids[1, -2]) == "2"
    cfg = CriticSettings(heads=2, quantiles=8, batch_size=2, pretrain_epochs=1)
    assert fit_critic(build_critic(policy, cfg, 0), records, tokenizer, cfg, 0)
    with pytest.raises(ValueError, match="no record with a reward"):
        encode_table(records[1:2], tokenizer)
    with pytest.raises(ValueError, match="record 1: reward nan"):
        encode_table([records[0], {**records[1], "reward": math.nan}], tokenizer)
