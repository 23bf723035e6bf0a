"""Values after the whole response, the denoised read-out made of them, and the categorical critic in the trainer."""

import json

import pytest
import torch
from conftest import run_settings
from test_trainer import arm, trainer

from dvpo_lib.functional.advantages import ReadoutSettings
from dvpo_lib.functional.final_states import final_positions, join_final, split_final
from dvpo_lib.models.critic import CriticSettings, build_critic, monotone_outputs
from dvpo_lib.models.critic_training import fit_critic, predict_values
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.rl.methods import resolve_settings
from dvpo_lib.rl.trainer_base.prompts import PromptMeans
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()  # a dialogue, a short answer, a dropped one


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


@pytest.fixture(scope="module")
def policy(tokenizer):
    return build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)


def final_critic(kind="quantile", **changes):
    return CriticSettings(kind=kind, heads=2, quantiles=16, bins=41, final_state=True, **changes)


def test_final_position_follows_the_last_own_token():
    assert final_positions(MASK).int().tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    x, last = torch.arange(24.0).view(3, 4, 2), -torch.ones(3, 2)
    joined = join_final(x, last, MASK)
    assert joined[0, 4].tolist() == [-1, -1] and joined[1, 1].tolist() == [-1, -1] and joined[2, 4].tolist() == [0, 0]
    own, final = split_final(joined, MASK)
    assert torch.equal(own[MASK], x[MASK]) and final.tolist() == [[-1, -1], [-1, -1], [0, 0]]


def test_a_critic_reads_the_whole_response_for_its_final_value(tokenizer, policy):
    tokens = encode_completions(tokenizer, ["math 3 ?"] * 2, ["answer 3", "careful so 3 answer 4"])
    critic = build_critic(policy, final_critic(), seed=0).eval()
    own, final = split_final(monotone_outputs(critic, tokens.with_final_state()), tokens.mask)
    torch.testing.assert_close(own[tokens.mask], monotone_outputs(critic, tokens)[tokens.mask])
    changed = encode_completions(tokenizer, ["math 3 ?"] * 2, ["answer 3", "careful so 3 answer 5"])
    _, other = split_final(monotone_outputs(critic, changed.with_final_state()), changed.mask)
    assert torch.equal(final[0], other[0]) and not torch.allclose(final[1], other[1])


@pytest.mark.parametrize("kind", ["scalar", "quantile", "categorical"])
def test_final_value_learns_what_only_the_last_token_shows(tokenizer, policy, kind):
    texts = ["answer 3", "answer 4"] * 32
    table = [dict(prompt="math 3 ?", completion=text, reward=float(text == "answer 3")) for text in texts]
    cfg = final_critic(kind, learning_rate=1e-2, batch_size=16, pretrain_epochs=20)
    critic = build_critic(policy, cfg, seed=0)
    fit_critic(critic, table, tokenizer, cfg, seed=0)
    tokens = encode_completions(tokenizer, ["math 3 ?"] * 2, texts[:2])
    _, final = split_final(monotone_outputs(critic, tokens.with_final_state()), tokens.mask)
    means = final.mean((-2, -1)).tolist()
    assert means[0] > 0.9 and means[1] < 0.1
    first = [quantiles.mean(1)[0] for quantiles in predict_values(critic, table[:2], tokenizer)]
    assert first == pytest.approx([0.5, 0.5], abs=0.15)  # nothing of the answer is known before its first token


def test_denoised_reward_by_hand():
    final = torch.tensor([[0.0, 0.2, 0.4, 3.0], [1.0, 1.0, 1.0, 1.0]])
    received = torch.tensor([10.0, torch.nan])

    def mixed(**changes):
        readout = ReadoutSettings(kind="denoised", **changes)
        return readout.denoised_reward(received, readout.final_centre(final))

    assert mixed()[0].item() == pytest.approx(0.3)
    assert mixed(centre="mean", weight=0.25)[0].item() == pytest.approx(0.25 * 10 + 0.75 * 0.9)
    assert mixed(centre="trimmed_mean", trim=0.25)[0].item() == pytest.approx(0.3)
    assert mixed(weight=1.0)[0].item() == 10 and mixed().isnan().tolist() == [False, True]


@pytest.mark.parametrize(("method", "kind"), [("dvpo", "quantile"), ("dvpo", "categorical"), ("ppo", "scalar")])
def test_training_with_the_denoised_readout(tokenizer, method, kind):
    def spiky(prompts, completions, **columns):
        return [r + 100.0 * (i == 3) for i, r in enumerate(arm(prompts, completions))]

    def run(rewards, **readout):
        t = trainer(tokenizer, method, rewards, critic=final_critic(kind), readout=ReadoutSettings(**readout), seed=5)
        experience = []
        build = t.build_experience
        t.build_experience = lambda *parts: experience.append(build(*parts)) or experience[-1]
        t.make_ready()
        batch = t.collect_batch()
        assert t.update(batch, torch.arange(len(batch.tokens)))["critic_loss"] > 0
        return experience[0], batch

    x, clean = run(arm, kind="denoised")
    _, spiked = run(spiky, kind="denoised")
    torch.testing.assert_close(clean.advantages, spiked.advantages)  # the received reward has weight 0
    assert not torch.allclose(clean.targets, spiked.targets)  # but the critic learns from it
    ends = final_positions(x.mask)
    assert torch.equal(clean.targets[ends][:, 0], x.rewards)
    torch.testing.assert_close(clean.values[ends], x.final_values)
    _, whole = run(spiky, kind="denoised", weight=1.0)
    _, plain = run(spiky, kind="mean")
    torch.testing.assert_close(whole.advantages, plain.advantages)


def test_means_of_prompts_by_hand():
    means = PromptMeans()
    means.add(["a", "b", "a"], [1.0, float("nan"), 4.0])
    assert means.of(["a", "b", "c"]) == pytest.approx([2.5, torch.nan, torch.nan], nan_ok=True)
    means.add(["b", [{"role": "user", "content": "a"}]], [3.0, 7.0])
    again = PromptMeans(json.loads(json.dumps(means.sums)))
    assert again.of(["b", "a", [{"role": "user", "content": "a"}]]) == [3.0, 2.5, 7.0]


@pytest.mark.parametrize("method", ["dvpo", "ppo"])
def test_training_with_the_mean_of_a_prompts_rewards(tokenizer, method):
    """A control of the denoised read-out: every response learns from what its prompt has earned so far."""

    def run(**readout):
        t = trainer(tokenizer, method, arm, readout=ReadoutSettings(**readout), seed=5)
        t.make_ready()
        return t, t.collect_batch()

    t, mixed = run(kind="denoised", centre="prompt_mean", weight=0.25)
    _, plain = run(kind="mean")
    assert t.args.critic.final_state is False, "it needs no value after the whole response"
    assert not torch.allclose(mixed.advantages, plain.advantages)
    torch.testing.assert_close(mixed.targets, plain.targets)  # the critic learns from rewards as received
    _, whole = run(kind="denoised", centre="prompt_mean", weight=1.0)
    torch.testing.assert_close(whole.advantages, plain.advantages)
    rewards = {prompt: total / count for prompt, (total, count) in t.prompt_means.sums.items()}
    assert len(rewards) > 1 and all(0 <= mean <= 1 for mean in rewards.values())
    assert sum(count for _, count in t.prompt_means.sums.values()) == t.args.generation_batch_size


def test_denoised_readout_needs_a_critic_with_final_state(tokenizer):
    for method in ("grpo", "robust_ppo", "dvpo_winsorised"):
        with pytest.raises(ValueError, match=f"method {method} knows no denoised read-out; dvpo and ppo do"):
            resolve_settings(run_settings(method=method, readout={"kind": "denoised", "centre": "prompt_mean"}))
    for method, critic in (("dvpo", CriticSettings()), ("ppo", CriticSettings(kind="scalar"))):
        with pytest.raises(ValueError, match="readout.kind: denoised needs a critic with final_state"):
            resolve_settings(run_settings(method=method, critic=critic, readout={"kind": "denoised"}))
    with pytest.raises(ValueError, match="final_state is not possible"):
        CriticSettings(kind="robust_q", final_state=True)
    with pytest.raises(ValueError, match="support: 1.0 is not below 0.0"):
        CriticSettings(kind="categorical", support=(1.0, 0.0))
