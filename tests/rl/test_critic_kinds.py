"""Training with each kind of critic, and with rewards that say nothing."""

import copy
import math

import pytest
import torch
from conftest import run_settings, scored_batch
from safetensors.torch import load_file
from test_trainer import arm, quiet_trainer
from tiny_models import tiny_model

from dvpo_lib.functional import token_chunks
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.diagnostics import tail_widths
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.rewards import Scores
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

KINDS = {
    "first layers": dict(layers=1),
    "policy's states": dict(backbone="policy"),
    "light networks": dict(head="mlp", head_width=8),
    "light networks on the policy's states": dict(backbone="policy", head="mlp", head_width=8),
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def trainer(tokenizer, method="dvpo", rewards=arm, critic=None, **changes):
    kind = METHODS[method].critic
    own = CriticSettings(kind=kind, heads=2, quantiles=16, learning_rate=1e-2, **(critic or {})) if kind else None
    base = dict(method=method, max_steps=3, generation_batch_size=16, num_generations=4, max_completion_length=4)
    args = run_settings(**base | dict(critic=own, learning_rate=1e-2) | changes)
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=2), seed=0)
    return quiet_trainer(policy, rewards, args, tokenizer)


@pytest.mark.parametrize("method", ["dvpo", "ppo"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_critic_trains_and_resumes_bit_for_bit(tokenizer, kind, method, tmp_path):
    straight = trainer(tokenizer, method, critic=KINDS[kind])
    before = copy.deepcopy(straight.critic.state_dict())
    straight.train()
    assert not [name for name, x in straight.critic.state_dict().items() if torch.equal(before[name], x)]
    saving = dict(output_dir=str(tmp_path), save_strategy="steps", save_steps=2, save_total_limit=9)
    first = trainer(tokenizer, method, critic=KINDS[kind], **saving)
    first.train()
    saved = load_file(tmp_path / "checkpoint-2" / "critic.safetensors")
    assert set(saved) == set(before)
    assert all(name.startswith("head") for name in saved) or KINDS[kind].get("backbone") != "policy"
    second = trainer(tokenizer, method, critic=KINDS[kind], **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for a, b in ((straight.critic, second.critic), (straight.policy, second.policy)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_critic_on_the_policys_states_follows_the_policy(tokenizer):
    """Values change with the policy alone, and the policy learns nothing from the critic's loss."""
    t = trainer(tokenizer, critic=dict(backbone="policy"))
    rollouts, _ = t.sample()
    before, weights = t.critic(rollouts.tokens), copy.deepcopy(t.policy.state_dict())
    t.critic(rollouts.tokens).sum().backward()
    assert all(p.grad is None for p in t.policy.parameters()) and t.critic.head.weight.grad is not None
    with torch.no_grad():
        t.policy.model.layers[0].mlp.down_proj.weight.add_(0.1)
    assert (t.critic(rollouts.tokens) - before).abs().max() > 1e-4
    t.policy.load_state_dict(weights)
    assert torch.equal(t.critic(rollouts.tokens), before)


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "reinforce_pp", "grpo_clip_reward"])
def test_equal_rewards_move_no_weight(tokenizer, method):
    """Reward 0.7 everywhere: its mean is not 0.7 in floating point."""
    t = trainer(tokenizer, method, lambda prompts, **columns: [0.7] * len(prompts), num_generations=8, max_steps=5)
    before = [p.clone() for p in t.policy.parameters()]
    t.train()
    assert all(torch.equal(a, b) for a, b in zip(before, t.policy.parameters(), strict=True))


def test_micro_batches_have_the_critics_gradient_of_the_batch_at_default_weights(tokenizer, monkeypatch):
    """The values before the update come from other parts of the batch and differ by rounding from those in it."""
    found = []
    for size in (20, 4):
        t = trainer(tokenizer, generation_batch_size=20, num_mini_batches=1)
        t.make_ready()
        rollouts, _ = t.sample()
        x = t.build_experience(rollouts, Scores(torch.tensor(arm(None, rollouts.completions)), {}))
        batch = t.make_batch(x, *METHODS["dvpo"].advantage(x, t.args))
        t.args.per_device_train_batch_size = size
        monkeypatch.setattr(t.critic_optimizer, "step", lambda: None)
        t.update(batch, torch.randperm(20, generator=torch.Generator().manual_seed(0)))
        found.append(torch.cat([p.grad.flatten() for p in t.critic.parameters()]))
    whole, parts = found
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_large_vocabularies_train_in_chunks_as_the_whole(tokenizer, monkeypatch):
    """The update of the policy, entropy bonus and KL penalty included, from logits in chunks of three tokens."""
    found = []
    for size in (3, 10**6):
        monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", size)
        monkeypatch.setattr(token_chunks, "CHUNK_NUMBERS", 1)
        t = trainer(tokenizer, "ppo", beta=0.1, kl_placement="loss", entropy_coef=0.05, max_steps=2)
        t.train()
        found.append(torch.cat([p.flatten() for p in t.policy.parameters()]))
    assert (found[0] - found[1]).abs().max() < 2e-4


def test_experts_are_balanced_in_chunks_as_well(monkeypatch):
    """The load-balancing loss comes from the model's own forward pass, whose logits are not computed."""
    from dvpo_lib.models.policy import router_losses, token_logprobs
    from dvpo_lib.models.tokens import Tokens

    monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", 3)
    monkeypatch.setattr(token_chunks, "CHUNK_NUMBERS", 1)
    policy, ids = tiny_model("Qwen3-MoE"), torch.arange(3, 23).view(2, 10)
    tokens = Tokens(ids, torch.ones_like(ids), torch.ones(2, 6, dtype=torch.bool))
    with router_losses(policy, 0.1) as balance:
        token_logprobs(policy, tokens)
    (found,) = torch.autograd.grad(balance[0], policy.model.layers[0].mlp.gate.weight)
    assert found.abs().max() > 0


def test_tail_widths_are_distances_from_the_median():
    """Two heads 0..19 and 10..29 make 5..24, median 14.5; the tails are 5, 6, 7 and 22, 23, 54."""
    q = torch.stack([torch.arange(20.0), torch.arange(20.0) + 10])
    q[:, -1] += 30
    values = q.expand(3, 2, 2, 20).clone()
    values[0, 1], values[2] = torch.nan, 7.0  # padding; a response without a reward
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    rewards = torch.tensor([1.0, 0.0, torch.nan])
    batch = scored_batch(rewards, mask, torch.zeros(3, 2), values)
    assert tail_widths(batch) == {"critic/lower_tail": 14.5 - 6, "critic/upper_tail": pytest.approx(33 - 14.5)}
    assert tail_widths(scored_batch(rewards, mask, torch.zeros(3, 2), values[..., :1, :1])) == {}  # a scalar critic
    unknown = scored_batch(rewards * torch.nan, mask, torch.zeros(3, 2), values)
    assert all(math.isnan(width) for width in tail_widths(unknown).values())
