"""The trainer: methods learn, every parameter moves, a restored run goes on bit for bit, bad rewards are named."""

import copy

import pytest
import torch

from dvpo_lib.critics import CriticSettings
from dvpo_lib.methods import METHODS, DVPOConfig
from dvpo_lib.models import PolicySettings, build_policy
from dvpo_lib.tasks import TaskSettings, build_tokenizer
from dvpo_lib.trainer import DVPOTrainer

PROMPTS = [{"prompt": f"math {i} ?", "answer": str(i)} for i in range(10)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def arm(prompts, completions, **columns):
    """The token bandit: half of all first words pay 1."""
    return [float(sum(map(ord, (c.split() or [""])[0])) % 2) for c in completions]


def config(method="dvpo", **changes):
    critic = CriticSettings(kind=METHODS[method].critic or "quantile", heads=2, quantiles=16, learning_rate=1e-2)
    base = dict(method=method, max_steps=3, generation_batch_size=32, num_generations=8, max_completion_length=4,
                learning_rate=1e-2, critic=critic)
    return DVPOConfig(**(base | changes))


def trainer(tokenizer, method="dvpo", rewards=arm, **changes):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    return DVPOTrainer(policy, rewards, config(method, **changes), PROMPTS, tokenizer, log_funcs={"reward_true": arm})


@pytest.mark.parametrize("method", list(METHODS))
def test_learns_a_token_bandit_and_moves_every_parameter(tokenizer, method):
    offline = METHODS[method].offline  # one token: along more, a Q without pretraining learns what pays far slower
    settings = dict(max_completion_length=1) if offline else dict(learning_rate=3e-3)
    t = trainer(tokenizer, method, max_steps=40, **settings)
    before = {k: v.clone() for m in (t.policy, t.critic) if m is not None for k, v in m.named_parameters()}
    history = t.train(progress=False).log_history
    rewards = [logs["reward_true"] for logs in history]  # of what the policy in training answers
    assert sum(rewards[:3]) / 3 < 0.65  # half of all arms pay
    assert sum(rewards[20:]) / 20 > 0.8  # methods that clip rewards stop short of 1: rare failures are cut away too
    after = {k: v for m in (t.policy, t.critic) if m is not None for k, v in m.named_parameters()}
    assert not [k for k in before if torch.equal(before[k], after[k])]


@pytest.mark.parametrize("method", ["dvpo", "ppo", "grpo"])
def test_restored_run_goes_on_bit_for_bit(tokenizer, method, tmp_path):
    straight = trainer(tokenizer, method, max_steps=4)
    straight.train(progress=False)
    first = trainer(tokenizer, method, max_steps=2)
    first.train(checkpoint=tmp_path / "state.pt", save_steps=1, progress=False)
    torch.manual_seed(999)  # global generators must not matter
    second = trainer(tokenizer, method, max_steps=4)
    second.train(checkpoint=tmp_path / "state.pt", progress=False)
    assert str(second.state.log_history) == str(straight.state.log_history)  # as text, for nan == nan
    for a, b in zip(straight.policy.parameters(), second.policy.parameters()):
        assert torch.equal(a, b)


def test_seed_decides_the_run(tokenizer):
    runs = [trainer(tokenizer, seed=s).step() for s in (0, 0, 1)]
    assert str(runs[0]) == str(runs[1]) != str(runs[2])


def test_rollouts_beyond_the_end_change_no_update(tokenizer):
    """Padding, prompts and masked positions may hold anything: NaN in log-probabilities, values, advantages there."""
    results = []
    for poison in (False, True):
        t = trainer(tokenizer, "dvpo")
        rollouts, columns = t.sample()
        assert not rollouts.tokens.mask.all()
        rewards = torch.tensor(arm(None, rollouts.completions))
        x, reference = t.examine(rollouts, rewards)
        advantages, targets = t.method.advantage(x, t.args)
        if poison:
            bad = ~x.mask
            for tensor in (rollouts.logprobs, reference, advantages, targets, x.values):
                tensor[bad] = float("nan")
        t.update(rollouts, advantages, targets, x.values, reference)
        results.append([p.clone() for m in (t.policy, t.critic) for p in m.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_noise_free_truth_is_logged_beside_the_reward(tokenizer):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    t = DVPOTrainer(policy, lambda prompts, completions, **c: [7.0] * len(prompts), config("ppo"), PROMPTS, tokenizer,
                    log_funcs={"reward_true": arm})
    logs = t.step()
    assert logs["reward"] == 7.0 and 0 <= logs["reward_true"] <= 1
    for name in ("kl", "entropy", "length", "clip_fraction", "approx_kl", "explained_variance", "policy_grad_norm",
                 "critic_grad_norm", "flat_groups"):
        assert name in logs


def test_grpo_draws_groups_and_the_same_number_of_rollouts(tokenizer):
    rollouts, _ = trainer(tokenizer, "grpo").sample()
    assert len(rollouts.prompts) == 32
    assert all(len(set(rollouts.prompts[i : i + 8])) == 1 for i in range(0, 32, 8))


def test_columns_reach_the_reward_function(tokenizer):
    def check(prompts, completions, answer, trainer_state, **columns):
        assert [p.split()[1] for p in prompts] == answer
        assert trainer_state.global_step == 0
        return [0.0] * len(prompts)

    trainer(tokenizer, rewards=check).step()


@pytest.mark.parametrize(("rewards", "message"), [
    (lambda prompts, **c: [1.0] * 3, "returned 3 rewards for 32 completions"),
    (lambda prompts, **c: [1.0] * 31 + [float("nan")], "returned nan for record 31 at step 0"),
    (lambda prompts, **c: ["1"] * 32, "returned '1' for record 0"),
    (lambda prompts, **c: 1 / 0, "raised at step 0: ZeroDivisionError"),
])
def test_bad_rewards_are_named(tokenizer, rewards, message):
    t = trainer(tokenizer, rewards=rewards)
    before = copy.deepcopy(t.policy.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=message):
        t.step()
    assert all(torch.equal(before[k], v) for k, v in t.policy.state_dict().items())


def test_clear_errors_of_the_constructor(tokenizer):
    with pytest.raises(ValueError, match="unknown method 'nope'"):
        trainer(tokenizer, method="dvpo", **{}).__class__(None, arm, DVPOConfig(method="nope"), PROMPTS, tokenizer)
    with pytest.raises(ValueError, match="no column 'prompt'"):
        DVPOTrainer(None, arm, config(), [{"question": "x"}], tokenizer)
    with pytest.raises(ValueError, match="not a multiple of num_generations 5"):
        trainer(tokenizer, "grpo", num_generations=5)
    with pytest.raises(ValueError, match="needs a scalar critic"):
        trainer(tokenizer, "ppo", critic=CriticSettings())
