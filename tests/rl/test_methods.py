"""The eleven methods, by hand and against plain loops in float64; limits between them; how settings are resolved.

GAE, targets and read-outs alone are proven in test_advantages.py, averages, the clip and KL estimates alone in
test_policy_losses.py, the Q back-ups' limits in test_q_functions.py. Here whole rows of `METHODS` are: from scored
rollouts to advantages and targets, and the policy's loss, KL penalty and entropy bonus included, as the trainer takes
it.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import run_settings, scored_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trainer import trainer
from torch import nn

from dvpo_lib.functional.q_losses import QSettings, QValues
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import changed_settings
from dvpo_lib.rl.methods import METHODS, resolve_settings
from dvpo_lib.rl.rewards import Scores
from dvpo_lib.rl.training_settings import TrainingSettings, with_changes
from dvpo_lib.rl.updates import Batch, update_policy
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

NAN = float("nan")
LN2 = math.log(2)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
OFFLINE = ["cql", "rfqi"]
GROUPS = ["grpo", "dr_grpo", "grpo_clip_reward"]
ONLINE = [m for m in METHODS if m not in OFFLINE]
every_method = pytest.mark.parametrize("method", list(METHODS))


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def settled(method, q=None, **changes):
    """Resolved settings, groups of two."""
    kind = METHODS[method].critic
    critic = CriticSettings(kind=kind, q=q or QSettings()) if kind else None
    base = dict(method=method, num_generations=2, generation_batch_size=2, num_mini_batches=1, critic=critic)
    return resolve_settings(run_settings(**base | changes))


# ---- advantages and targets by hand: two responses, the first one token shorter ----

R = doubles(1, 0)
D = doubles([0.2, -0.2, NAN], [0.4, 0, -0.4])  # log-ratios to the reference
V = doubles([0.5, 1, NAN], [0.2, 0.4, 0.6])
Q = doubles([[0.6, 0.8], [1.1, 0.9], [NAN] * 2], [[0.1, 0.3], [0.5, 0.4], [0.2, 0.6]])
OUTCOME = doubles([[0, 0, 0, 1], [0, 1, 1, 1], [NAN] * 4], [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
BEST = doubles([0.9, 1.2, NAN], [0.3, 0.5, 0.7])
HAND = dict(beta=0.5, gamma=0.5, lam=0.5, whiten_advantages=False)
# Token rewards, -beta * KL on each and R on the last: -0.1, 1.1; -0.2, 0, 0.2. Discounted to-go, from the back:
TO_GO = doubles([-0.1 + 1.1 / 2, 1.1, 0], [-0.2 + 0.1 / 2, 0 + 0.2 / 2, 0.2])


def by_hand(method, values, q=None, **changes):
    return METHODS[method].advantage(scored_batch(R, MASK, D, values), settled(method, q, **HAND | changes))


def spread(*offsets, heads=(0.05, -0.05)):
    """Quantiles around V, in two heads whose mean is V + offsets: (B, T, N, M)."""
    return torch.stack([V[..., None] + doubles(*offsets) + h for h in heads], -2)


@pytest.mark.parametrize("method", ["ppo", "ppo_clip_reward"])
def test_ppo_by_hand(method):
    """Deltas r + V'/2 - V: -0.1 + 0.5 - 0.5, 1.1 - 1; -0.2 + 0.2 - 0.2, 0.3 - 0.4, 0.2 - 0.6; A = delta + A'/4."""
    a, g = by_hand(method, V[..., None, None])
    torch.testing.assert_close(a, doubles([-0.1 + 0.1 / 4, 0.1, 0], [-0.2 - 0.2 / 4, -0.1 - 0.4 / 4, -0.4]))
    torch.testing.assert_close(g, TO_GO[..., None])
    g = by_hand(method, V[..., None, None], lam_critic=0.0)[1]  # r + V'/2
    torch.testing.assert_close(g[..., 0], doubles([0.4, 1.1, 0], [0.0, 0.3, 0.2]))


@pytest.mark.parametrize("method", ["ppo", "dvpo"])
def test_whitening_by_hand(method):
    """-0.075, 0.1, -0.25, -0.2, -0.4: mean -0.165; deviations' squares sum to 0.142, over 4."""
    a, _ = by_hand(method, V[..., None, None], whiten_advantages=True)
    want = doubles([0.09, 0.265, 0], [-0.085, -0.035, -0.235]) / math.sqrt(0.142 / 4 + 1e-8)
    torch.testing.assert_close(a, want)


def test_dvpo_by_hand():
    """Quantiles V - 0.1 and V + 0.1. With V + c deltas move by -c/2, at the last token by -c. For c = 0.1: A = -0.15,
    0; -0.31875, -0.275, -0.5; for c = -0.1: 0, 0.2; -0.18125, -0.125, -0.3. Their mean is ppo's; G = Z + A."""
    a, g = by_hand("dvpo", spread(-0.1, 0.1), lam_critic=0.5)
    torch.testing.assert_close(a, doubles([-0.075, 0.1, 0], [-0.25, -0.2, -0.4]))
    low, high = doubles([0.4, 1.1, 0], [-0.08125, 0.175, 0.2]), doubles([0.45, 1.1, 0], [-0.01875, 0.225, 0.2])
    torch.testing.assert_close(g, torch.stack([low, high], -1))
    torch.testing.assert_close(by_hand("dvpo", spread(-0.1, 0.1))[1], TO_GO[..., None])  # lambda 1: points


def test_dvpo_winsorised_by_hand():
    """Quantiles V - 0.3, - 0.1, + 0.1, + 0.3; from 1/4 to 3/4 the band is V -+ 0.2. Last rewards: 1.1 lies in
    [0.8, 1.2]; 0.2 is raised to 0.4, so A = -0.2, then -0.1 - 0.2/4, then -0.2 - 0.15/4. Targets see 0.2."""
    levels = dict(level_low=0.25, level_up=0.25)
    a, g = by_hand("dvpo_winsorised", spread(-0.3, -0.1, 0.1, 0.3), readout=levels)
    torch.testing.assert_close(a, doubles([-0.075, 0.1, 0], [-0.2375, -0.15, -0.2]))
    torch.testing.assert_close(g, TO_GO[..., None])


def test_robust_ppo_by_hand():
    """Heads' means V and (0.7, 0.8; 0, 0.8, 0.6): minima 0.5, 0.8; 0, 0.4, 0.6. Deltas -0.2, 0.3; 0, -0.1, -0.4.
    The lower tail of four quantiles is three, here V - 0.1 on average: deltas -0.05, 0.2; -0.15, -0.05, -0.3."""
    other = doubles([0.7, 0.8, NAN], [0, 0.8, 0.6])
    heads = torch.stack([V, other], -1)[..., None] + doubles(-0.1, 0.1)
    a, g = by_hand("robust_ppo", heads, lam_critic=0.9)  # the actor's lambda counts, in both
    torch.testing.assert_close(a, doubles([-0.2 + 0.3 / 4, 0.3, 0], [-0.2 / 4, -0.1 - 0.4 / 4, -0.4]))
    torch.testing.assert_close(g[..., 0], doubles([0.375, 1.1, 0], [-0.05, 0.2, 0.2]))
    a, g = by_hand("robust_ppo", spread(-0.2, -0.1, 0, 0.3), worst_case="lower_tail")
    torch.testing.assert_close(a, doubles([-0.05 + 0.2 / 4, 0.2, 0], [-0.15 - 0.125 / 4, -0.05 - 0.3 / 4, -0.3]))
    torch.testing.assert_close(g[..., 0], doubles([0.4, 1.1, 0], [0.1 - 0.18125, 0.3 - 0.125, 0.2]))


@pytest.mark.parametrize("method", GROUPS)
def test_group_methods_by_hand(method):
    """R = 1, 0: mean 1/2, Bessel std 1/sqrt(2). With k2 in the reward, -1/2 * 1/2 * (0.04 + 0.04) = -0.02 and -0.08:
    0.98 and -0.08, 0.53 from their mean, std 1.06 / sqrt(2). The same at every token; gamma and lambda play no part."""
    for changes, half in ((dict(), 0.5), (dict(kl_placement="reward", kl_estimator="k2"), 0.53)):
        a, g = by_hand(method, None, **changes)
        want = half if method == "dr_grpo" else half / (2 * half / math.sqrt(2) + 1e-4)
        torch.testing.assert_close(a, doubles([want] * 3, [-want] * 3))
        assert g is None


def test_reinforce_pp_by_hand():
    """To-go 0.45, 1.1, -0.15, 0.1, 0.2: mean 0.34; deviations' squares sum to 0.907, over 4."""
    a, g = by_hand("reinforce_pp", None)
    torch.testing.assert_close(a, TO_GO)
    assert g is None
    a, _ = by_hand("reinforce_pp", None, whiten_advantages=True)
    want = doubles([0.11, 0.76, 0], [-0.49, -0.24, -0.14]) / math.sqrt(0.907 / 4 + 1e-8)
    torch.testing.assert_close(a, want)


def test_cql_and_rfqi_by_hand():
    """The smaller twin less V, or less the best; r + V'/2, or best'/2; no KL. Robust at radius 1/4: the one largest of
    four outcomes counts as the smallest, 1/4 less for either response, at its last token."""
    x = QValues(Q, BEST, V, torch.zeros_like(V), OUTCOME)
    q, to_go = doubles([0.6, 0.9], [0.1, 0.4]), doubles([0.5, 1], [0, 0])
    for method, last in (("cql", (1.0, 0.0)), ("rfqi", (0.75, -0.25))):
        a, g = by_hand(method, x, QSettings(radius=0.25))
        torch.testing.assert_close(a[MASK], torch.tensor([0.1, -0.1, -0.1, 0, -0.4]).double())
        torch.testing.assert_close(g[:, :2, 1], q)
        torch.testing.assert_close(g[:, :2, 2], to_go)
        torch.testing.assert_close(g[MASK][:, 0], torch.tensor([0.5, last[0], 0.2, 0.3, last[1]]).double())
        a, g = by_hand(method, x, QSettings(radius=0.25, backup="max"))
        torch.testing.assert_close(a[MASK], torch.tensor([-0.3, -0.3, -0.2, -0.1, -0.5]).double())
        torch.testing.assert_close(g[MASK][:, 0], torch.tensor([0.6, last[0], 0.25, 0.35, last[1]]).double())


# ---- against loops, one token after the other ----


def spots(mask, b):
    return [t for t in range(mask.shape[1]) if mask[b, t]]


def kl_loop(d, kind, exp=math.exp):
    return {"k1": lambda: d, "k2": lambda: d * d / 2, "k3": lambda: exp(-d) - 1 + d}[kind]()


def reward_loop(x, args, charge=True):
    """{(response, token): reward}."""
    rewards = {}
    for b in range(len(x.mask)):
        for t in spots(x.mask, b):
            rewards[b, t] = 0.0
            if charge and args.kl_placement == "reward":
                rewards[b, t] -= args.beta * kl_loop(x.kl[b, t].item(), args.kl_estimator)
        rewards[b, spots(x.mask, b)[-1]] += x.rewards[b].item()
    return rewards


def gae_loop(rewards, values, mask, gamma, lam, c=None):
    """Advantages and returns; `values` {(response, token): number}, lambda 1 - 1/(c * length) where c is set."""
    advantages, returns = {}, {}
    for b in range(len(mask)):
        a, after, tokens = 0.0, 0.0, spots(mask, b)
        step = max(0.0, 1 - 1 / (c * len(tokens))) if c else lam
        for t in reversed(tokens):
            a = rewards[b, t] + gamma * after - values[b, t] + gamma * step * a
            after = values[b, t]
            advantages[b, t], returns[b, t] = a, a + after
    return advantages, returns


def whiten_loop(advantages, args):
    if not args.whiten_advantages:
        return advantages
    n = len(advantages)
    mean = sum(advantages.values()) / n
    variance = sum((a - mean) ** 2 for a in advantages.values()) / max(n - 1, 1)
    return {k: (a - mean) / math.sqrt(variance + 1e-8) for k, a in advantages.items()}


def quantile_loop(q, level):
    place = min(max(level * len(q) - 0.5, 0), len(q) - 1)
    low = int(place)
    return q[low] + (place - low) * (q[min(low + 1, len(q) - 1)] - q[low])


def worst_case_loop(outcomes, radius):
    """Mass moved outcome by outcome, from the largest on, to the smallest."""
    outcomes = sorted(outcomes)
    mass, left = [1 / len(outcomes)] * len(outcomes), radius
    for i in reversed(range(len(outcomes))):
        moved = min(mass[i], left)
        mass[i], left = mass[i] - moved, left - moved
    mass[0] += radius
    return sum(m * q for m, q in zip(mass, outcomes))


def scalar_oracle(x, args):
    values = {k: x.values[k][0, 0].item() for k in reward_loop(x, args)}
    r = reward_loop(x, args)
    a, _ = gae_loop(r, values, x.mask, args.gamma, args.lam, args.lam_adaptive)
    g = gae_loop(r, values, x.mask, args.gamma, args.lam_critic)[1]
    return whiten_loop(a, args), {k: [v] for k, v in g.items()}


def ensemble_loop(x, k):
    heads = x.values[k].tolist()
    return [sum(h[j] for h in heads) / len(heads) for j in range(len(heads[0]))]


def quantile_oracle(x, args):
    """Every quantile its own GAE; the mean of advantages."""
    r = reward_loop(x, args)
    z = {k: ensemble_loop(x, k) for k in r}
    m = len(z[next(iter(r))])
    actor, critic = [], []
    for j in range(m):
        values = {k: q[j] for k, q in z.items()}
        actor.append(gae_loop(r, values, x.mask, args.gamma, args.lam, args.lam_adaptive)[0])
        critic.append(gae_loop(r, values, x.mask, args.gamma, args.lam_critic)[1])
    a = {k: sum(part[k] for part in actor) / m for k in r}
    return whiten_loop(a, args), {k: [part[k] for part in critic] for k in r}


def winsorised_oracle(x, args):
    r, seen, values = reward_loop(x, args), reward_loop(x, args), {}
    for b, t in r:
        q = ensemble_loop(x, (b, t))
        if t == spots(x.mask, b)[-1]:
            low, up = quantile_loop(q, args.readout.level_low), quantile_loop(q, 1 - args.readout.level_up)
            seen[b, t] = min(max(r[b, t], low), up)
            q = [min(max(v, low), up) for v in q]
        values[b, t] = sum(q) / len(q)
    a, _ = gae_loop(seen, values, x.mask, args.gamma, args.lam, args.lam_adaptive)
    return whiten_loop(a, args), quantile_oracle(x, args)[1]


def robust_oracle(x, args):
    r, values = reward_loop(x, args), {}
    for k in r:
        if args.worst_case == "min_heads":
            values[k] = min(sum(h) / len(h) for h in x.values[k].tolist())
        else:
            q = ensemble_loop(x, k)
            tail = q[: max(3, math.ceil(0.1 * len(q)))]
            values[k] = sum(tail) / len(tail)
    a, g = gae_loop(r, values, x.mask, args.gamma, args.lam, args.lam_adaptive)
    return whiten_loop(a, args), {k: [v] for k, v in g.items()}


def group_oracle(x, args, scale=True):
    r, size = reward_loop(x, args), args.num_generations
    sums = [sum(r[b, t] for t in spots(x.mask, b)) for b in range(len(x.mask))]
    advantages = {}
    for b, t in r:
        group = sums[b // size * size : b // size * size + size]
        mean = sum(group) / size
        std = math.sqrt(sum((s - mean) ** 2 for s in group) / (size - 1))
        advantages[b, t] = (sums[b] - mean) / (std + 1e-4 if scale else 1)
    return advantages, None


def centred_oracle(x, args):
    return group_oracle(x, args, scale=False)


def to_go_oracle(x, args):
    r = reward_loop(x, args)
    return whiten_loop(gae_loop(r, dict.fromkeys(r, 0.0), x.mask, args.gamma, 1.0)[1], args), None


def q_oracle(x, args, robust=False):
    r = plain = reward_loop(x, args, charge=False)
    cfg, values, q, loss = args.critic.q, {}, {}, {}
    for k in r:
        values[k] = (x.values.v if cfg.backup == "expectile" else x.values.best)[k].item()
        q[k] = min(x.values.q[k].tolist())
        outcomes = x.values.outcome[k].tolist()
        last = k[1] == spots(x.mask, k[0])[-1]
        loss[k] = sum(outcomes) / len(outcomes) - worst_case_loop(outcomes, cfg.radius) if robust and last else 0.0
    r = {k: r[k] - loss[k] for k in r}
    backed_up = gae_loop(r, values, x.mask, args.gamma, 0.0)[1]
    to_go = gae_loop(plain, dict.fromkeys(r, 0.0), x.mask, args.gamma, 1.0)[1]
    return {k: q[k] - values[k] for k in r}, {k: [backed_up[k], q[k], to_go[k]] for k in r}


def robust_q_oracle(x, args):
    return q_oracle(x, args, robust=True)


ORACLES = dict(
    dvpo=quantile_oracle,
    dvpo_winsorised=winsorised_oracle,
    ppo=scalar_oracle,
    robust_ppo=robust_oracle,
    grpo=group_oracle,
    dr_grpo=centred_oracle,
    reinforce_pp=to_go_oracle,
    cql=q_oracle,
    rfqi=robust_q_oracle,
    ppo_clip_reward=scalar_oracle,
    grpo_clip_reward=group_oracle,
)


def random_values(kind, b, t, seed):
    if kind == "scalar":
        return normal(b, t, 1, 1, seed=seed)
    if kind == "quantile":
        return normal(b, t, 3, 8, seed=seed).sort(-1).values
    if kind is None:
        return None
    best, outcome = normal(b, t, seed=seed + 1), normal(b, t, 5, seed=seed + 3).sort(-1).values
    return QValues(normal(b, t, 2, seed=seed), best, normal(b, t, seed=seed + 2), torch.zeros(b, t), outcome)


def random_mask(b, t, seed):
    """Holes anywhere; every response has a token of its own."""
    mask = torch.rand(b, t, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[torch.arange(b), torch.randint(t, (b,), generator=torch.Generator().manual_seed(seed))] = True
    return mask


def poisoned(x):
    """The same rollouts with NaN wherever the mask is false."""

    def spoil(y):
        if isinstance(y, QValues):
            return QValues(*(spoil(part) for part in vars(y).values()))
        y = y.clone()
        y[~x.mask] = NAN
        return y

    return replace(x, logprobs=spoil(x.logprobs), values=None if x.values is None else spoil(x.values))


options = st.fixed_dictionaries(
    dict(
        kl_placement=st.sampled_from(["reward", "loss", None]),
        kl_estimator=st.sampled_from(["k1", "k2", "k3", None]),
        whiten_advantages=st.booleans(),
        gamma=st.sampled_from([1.0, 0.7]),
        lam=st.sampled_from([0.0, 0.6, 1.0]),
        lam_critic=st.sampled_from([0.4, 1.0]),
        lam_adaptive=st.sampled_from([None, 0.5, 2.0]),
        beta=st.sampled_from([0.0, 0.3]),
        num_generations=st.sampled_from([2, 3]),
        worst_case=st.sampled_from(["min_heads", "lower_tail"]),
    )
).filter(lambda changes: changes["kl_placement"] == "reward" or changes["kl_estimator"] != "k1")
q_options = st.builds(QSettings, backup=st.sampled_from(["expectile", "max"]), radius=st.sampled_from([0.0, 0.33, 1.0]))


@every_method
@settings(max_examples=25, deadline=None, derandomize=True)
@given(changes=options, q=q_options, groups=st.integers(1, 3), t=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_advantages_and_targets_equal_the_loops(method, changes, q, groups, t, seed):
    """Any holes; NaN at masked positions changes nothing, bit for bit."""
    b = groups * changes["num_generations"]
    args = settled(method, q, generation_batch_size=b, readout=dict(level_low=0.2, level_up=0.3), **changes)
    mask = random_mask(b, t, seed)
    x = scored_batch(
        normal(b, seed=seed) * 2,
        mask,
        normal(b, t, seed=seed + 9) / 2,
        random_values(METHODS[method].critic, b, t, seed),
    )
    a, g = METHODS[method].advantage(x, args)
    want_a, want_g = ORACLES[method](x, args)
    order = [tuple(k) for k in mask.nonzero().tolist()]
    close = 1e-5 if args.lam_adaptive else 1e-9  # lambda by length is a float32 number
    torch.testing.assert_close(a[mask], doubles(*(want_a[k] for k in order)), rtol=close, atol=close)
    assert (g is None) == (want_g is None)
    if g is not None:
        want = doubles(*(want_g[k] for k in order))
        torch.testing.assert_close(g[mask].expand_as(want), want, rtol=close, atol=close)
    for before, after in zip((a, g), METHODS[method].advantage(poisoned(x), args)):
        assert before is None or torch.equal(before[mask], after[mask])


# ---- the policy's loss, as the trainer takes it ----


class Backbone(nn.Module):
    """Of critics that are built and not asked."""

    def forward(self, input_ids, **inputs):
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 2))


class Table(nn.Module):
    """A policy of free logits (B, T, V); the one prompt token of a row is the row's number."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.base_model = nn.Parameter(logits.float().clone()), Backbone()
        self.config, self.device = SimpleNamespace(hidden_size=2, vocab_size=logits.shape[-1]), torch.device("cpu")

    def forward(self, input_ids, **inputs):
        return SimpleNamespace(logits=self.logits[input_ids[:, 0], : input_ids.shape[1]])


def table_tokens(taken, mask):
    ids = torch.cat([torch.arange(len(taken))[:, None], taken], 1)
    return Tokens(ids, torch.ones_like(ids), mask)


def step(args, logits, taken, mask, old, reference, advantages):
    """(loss, gradient in the logits, named values) of one optimiser step of the policy."""
    policy, args = Table(logits), changed_settings(args, max_grad_norm=1e9)
    batch = Batch(table_tokens(taken, mask), old, advantages, torch.ones(len(mask)) > 0, reference)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    logs = update_policy(policy, optimizer, batch, torch.arange(len(mask)), args, Accelerator(cpu=True))
    return logs["policy_loss"], policy.logits.grad.double(), logs


TAKEN = torch.zeros(2, 3, dtype=torch.long)
EVEN = torch.zeros(2, 3, 2)  # both tokens of the vocabulary have probability 1/2, log -ln 2, entropy ln 2
RATIO = doubles([1.5, 0.5, 1], [1, 1.1, 0.5])  # to the old policy
GAP = doubles([LN2, 0, 0], [0, LN2, LN2])  # log-ratio to the reference
BY_TOKEN = doubles([2, -1, NAN], [1, -2, 3])
BY_RESPONSE = doubles([1, 1, NAN], [-1, -1, -1])
WEIGHTS = doubles([2, 0.5, NAN], [1, 4, 40])  # of advantage-weighted regression; 40 is cut at 20
LOSS_ARGS = dict(beta=0.5, max_completion_length=4, awr_temperature=1.0)


def even_step(method, **changes):
    a = WEIGHTS.log() if method in OFFLINE else BY_RESPONSE if method in GROUPS else BY_TOKEN
    old, reference = (torch.where(MASK, -LN2 - x, NAN) for x in (RATIO.log(), GAP))
    return step(settled(method, **LOSS_ARGS | changes), EVEN, TAKEN, MASK, old, reference, a)


# Token methods: 1.2 * 2, 0.8 * -1, 1, 1.1 * -2, 0.5 * 3 are 1.9 in all. A = 1 and -1 by response: 1.2 + 0.5 = 1.7 and
# -1 - 1.1 - 0.8 = -2.9. k3 of ln 2 is ln 2 - 1/2, at one of two tokens and at two of three.
K3 = LN2 - 0.5
LOSSES = dict.fromkeys(METHODS, -1.9 / 5) | {
    "grpo": -(1.7 / 2 - 2.9 / 3) / 2 + 0.5 * (K3 / 2 + 2 * K3 / 3) / 2,
    "dr_grpo": -(1.7 - 2.9) / 8 + 0.5 * 3 * K3 / 8,
    "cql": LN2 * 27.5 / 5,
    "rfqi": LN2 * 27.5 / 5,
}
LOSSES["grpo_clip_reward"] = LOSSES["grpo"]


@every_method
def test_policy_losses_by_hand(method):
    loss, _, logs = even_step(method)
    assert loss == pytest.approx(LOSSES[method], rel=1e-6)
    assert logs["entropy"] == pytest.approx(LN2)
    assert logs["clip_fraction"] == pytest.approx((1 if method in OFFLINE else 3) / 5)
    assert ("approx_kl" in logs) == (method not in OFFLINE)


@every_method
def test_entropy_bonus_and_upper_clip_by_hand(method):
    """The bonus is averaged as the loss is: ln 2 a token; 5 ln 2 over 2 * 4 where the divisor is constant. Clipped at
    1.6 from above, 1.5 counts in full: 2 * 0.3 more of 5; 0.3 more of 2 tokens, of 2 responses; 0.3 of 8."""
    bonus = 5 * LN2 / 8 if method == "dr_grpo" else LN2
    assert even_step(method, entropy_coef=0.1)[0] == pytest.approx(LOSSES[method] - 0.1 * bonus, rel=1e-5)
    gain = {"dr_grpo": 0.3 / 8} | dict.fromkeys(OFFLINE, 0) | dict.fromkeys(["grpo", "grpo_clip_reward"], 0.3 / 4)
    wide = even_step(method, epsilon_high=0.6)
    assert wide[0] == pytest.approx(LOSSES[method] - gain.get(method, 0.6 / 5), rel=1e-5)
    assert wide[2]["clip_fraction"] == pytest.approx((1 if method in OFFLINE else 2) / 5)


@pytest.mark.parametrize("kind, value, slope", [("k2", LN2**2 / 2, LN2), ("k3", K3, 0.5)])
def test_kl_in_the_loss_by_hand(kind, value, slope):
    """ppo with the penalty in the loss: three tokens of five at log-ratio ln 2, slopes d, 1 - exp(-d). The logit of the
    token taken moves its log-probability by 1/2, the other by -1/2."""
    loss, grad, _ = even_step("ppo", kl_placement="loss", kl_estimator=kind)
    assert loss == pytest.approx(-1.9 / 5 + 0.5 * 3 * value / 5, rel=1e-5)
    pull = torch.where(GAP > 0, slope, 0.0)
    want = torch.where(MASK, (-doubles([0, 0, 0], [1, -2.2, 1.5]) + 0.5 * pull) / 5, 0.0)
    torch.testing.assert_close(grad, torch.stack([want / 2, -want / 2], -1), rtol=1e-5, atol=1e-7)
    assert even_step("ppo", kl_placement="reward", kl_estimator=kind)[0] == pytest.approx(-1.9 / 5, rel=1e-6)


def loss_loop(logits, taken, mask, old, reference, advantages, args):
    """The policy's loss, one token after the other, in float64; differentiable in the logits."""
    method, rows, count = METHODS[args.method], [], 0
    high = 1 + (args.epsilon_high or args.epsilon)
    for b in range(len(mask)):
        tokens = []
        for t in spots(mask, b):
            logp = logits[b, t] - logits[b, t].exp().sum().log()
            own = logp[taken[b, t]]
            if method.offline:
                loss = -min(math.exp(advantages[b, t] / args.awr_temperature), 20.0) * own
            else:
                ratio, a = (own - old[b, t]).exp(), advantages[b, t]
                clipped = 1 - args.epsilon if ratio < 1 - args.epsilon else high if ratio > high else ratio
                loss = -min(ratio * a, clipped * a)
            if args.kl_placement == "loss":
                loss = loss + args.beta * kl_loop(own - reference[b, t], args.kl_estimator, torch.exp)
            tokens.append(loss + args.entropy_coef * (logp.exp() * logp).sum())
        count += len(tokens)
        rows.append(sum(tokens) / len(tokens) if method.aggregate == "sequence_mean" else sum(tokens))
    if method.aggregate == "token_mean":
        return sum(rows) / count
    return sum(rows) / len(rows) / (args.max_completion_length if method.aggregate == "constant" else 1)


def case(b, t, seed, mask=None):
    """Random logits over 3 tokens, tokens taken, old and reference log-probabilities near by, advantages."""
    logits, taken = normal(b, t, 3, seed=seed), torch.randint(3, (b, t), generator=torch.Generator().manual_seed(seed))
    now = logits.log_softmax(-1).gather(-1, taken[..., None])[..., 0]
    mask = random_mask(b, t, seed) if mask is None else mask
    return logits, taken, mask, now + normal(b, t, seed=seed + 1) / 4, now + normal(b, t, seed=seed + 2) / 2


def compare_loss(args, seed, b=4, t=5):
    logits, taken, mask, old, reference = case(b, t, seed)
    a = normal(b, t, seed=seed + 3)
    loss, grad, _ = step(args, logits, taken, mask, old, reference, a)
    free = logits.float().double().requires_grad_()
    want = loss_loop(free, taken, mask, old, reference, a, args)
    assert loss == pytest.approx(want.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(grad, torch.autograd.grad(want, free)[0], rtol=1e-4, atol=1e-6)


@every_method
@pytest.mark.parametrize(
    "placement, estimator", [("reward", "k1"), ("reward", "k2"), ("reward", "k3"), ("loss", "k2"), ("loss", "k3")]
)
def test_policy_loss_and_its_gradient_equal_the_loop(method, placement, estimator):
    changes = dict(kl_placement=placement, kl_estimator=estimator, beta=0.3, awr_temperature=0.7)
    compare_loss(settled(method, max_completion_length=7, **changes), seed=1)
    compare_loss(
        settled(method, max_completion_length=5, entropy_coef=0.2, epsilon=0.1, epsilon_high=0.4, **changes), seed=2
    )


# ---- limits ----


@pytest.mark.parametrize("size", [2, 4])
def test_dr_grpo_is_grpo_at_equal_lengths_and_unit_spread(size):
    """Every response max_completion_length long, Bessel std 1 in each group: up to 1 / (1 + 1e-4), loss and gradient,
    the penalty apart. With shorter responses, or another spread, they differ."""
    b, t = 4, 5
    full = torch.ones(b, t, dtype=torch.bool)
    groups = normal(b // size, size)
    rewards = (groups / groups.std(1, keepdim=True)).flatten()

    def found(method, beta, mask, rewards):
        logits, taken, _, old, reference = case(b, t, 3, mask)
        args = settled(method, beta=beta, max_completion_length=t, num_generations=size, generation_batch_size=b)
        a, _ = METHODS[method].advantage(scored_batch(rewards, mask, old - reference), args)
        return step(args, logits, taken, mask, old, reference, a)[:2]

    plain = found("dr_grpo", 0.0, full, rewards)
    for beta in (0.0, 0.3):
        pair = [found(method, beta, full, rewards) for method in ("dr_grpo", "grpo")]
        for dr, grpo, surrogate in zip(*pair, plain):
            torch.testing.assert_close(dr - grpo, surrogate * (1 - 1 / 1.0001), rtol=2e-2, atol=1e-7)
    short = full.clone()
    short[0, 2:] = False
    for mask, scale in ((short, 1), (full, 2)):
        dr, grpo = (found(method, 0.0, mask, rewards * scale)[0] for method in ("dr_grpo", "grpo"))
        assert abs(dr - grpo) > 1e-3


@pytest.mark.parametrize("whiten", [False, True])
def test_robust_ppo_with_one_head_is_plain_gae_on_the_mean(whiten):
    z, mask = normal(4, 6, 1, 8).sort(-1).values, random_mask(4, 6, 0)
    common = dict(beta=0.2, gamma=0.9, lam=0.7, whiten_advantages=whiten)
    x = scored_batch(normal(4), mask, normal(4, 6, seed=1), z)
    robust = METHODS["robust_ppo"].advantage(x, settled("robust_ppo", **common))
    scalar = replace(x, values=z.mean(-1, keepdim=True))
    plain = METHODS["ppo"].advantage(scalar, settled("ppo", lam_critic=0.7, **common))
    torch.testing.assert_close(robust, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whiten", [False, True])
def test_reinforce_pp_is_ppo_without_a_value(whiten):
    """V = 0, gamma = lambda = 1: return-to-go."""
    mask = random_mask(4, 6, 0)
    x = scored_batch(normal(4), mask, normal(4, 6, seed=1))
    common = dict(beta=0.2, gamma=1.0, lam=1.0, whiten_advantages=whiten)
    ppo = METHODS["ppo"].advantage(replace(x, values=torch.zeros(4, 6, 1, 1).double()), settled("ppo", **common))[0]
    plain = METHODS["reinforce_pp"].advantage(x, settled("reinforce_pp", **common))[0]
    torch.testing.assert_close(ppo, plain, rtol=1e-12, atol=1e-12)


@every_method
def test_only_clipping_methods_cut_rewards(method):
    """Rewards 0 ... 31, cut at the 25 % and 75 % quantiles of the batch (linear between: 7.75, 23.25) or at none."""
    tokenizer = build_tokenizer(TaskSettings())
    for level, low, up in ((0.25, 7.75, 23.25), (0.0, 0, 31)):
        t = trainer(tokenizer, method, reward_clip=level)
        x = t.build_experience(t.sample()[0], Scores(torch.arange(32.0), {}))
        clip = method.endswith("_clip_reward")
        assert x.rewards.tolist() == [min(max(r, low), up) if clip else r for r in range(32)]


# ---- settings ----

SOURCES = dict.fromkeys(METHODS, ("reward", "k1")) | dict.fromkeys(GROUPS, ("loss", "k3"))
CRITICS = dict(
    dvpo="quantile",
    dvpo_winsorised="quantile",
    ppo="scalar",
    robust_ppo="quantile",
    grpo=None,
    dr_grpo=None,
    reinforce_pp=None,
    cql="conservative_q",
    rfqi="robust_q",
    ppo_clip_reward="scalar",
    grpo_clip_reward=None,
)


def test_the_rows_are_the_eleven_of_the_comparison():
    assert {m: row.critic for m, row in METHODS.items()} == CRITICS
    assert [m for m, row in METHODS.items() if row.groups] == GROUPS
    assert [m for m, row in METHODS.items() if row.offline] == OFFLINE
    assert [m for m, row in METHODS.items() if row.clip_rewards] == ["ppo_clip_reward", "grpo_clip_reward"]
    averages = dict.fromkeys(METHODS, "token_mean") | {m: "sequence_mean" for m in GROUPS} | {"dr_grpo": "constant"}
    assert {m: row.aggregate for m, row in METHODS.items()} == averages


@every_method
def test_a_method_alone_is_enough(method):
    """Critic, placement and estimator follow from the row; what is said explicitly counts; twice changes nothing."""
    args = resolve_settings(run_settings(method=method))
    assert (args.kl_placement, args.kl_estimator) == SOURCES[method]
    own = CriticSettings(kind=CRITICS[method], learning_rate=5e-6) if CRITICS[method] else None
    assert args.critic == own and resolve_settings(args).to_dict() == args.to_dict()
    for placement, estimator in (("loss", "k2"), ("reward", "k3")):
        said = resolve_settings(run_settings(method=method, kl_placement=placement, kl_estimator=estimator))
        assert said.to_dict() == args.to_dict() | dict(kl_placement=placement, kl_estimator=estimator)


@every_method
def test_k1_in_the_loss_is_refused_and_k3_takes_its_place(method):
    """The expectation of k1's gradient is 0: there it penalises nothing."""
    with pytest.raises(ValueError, match="kl_estimator: k1 in the loss penalises nothing"):
        resolve_settings(run_settings(method=method, kl_placement="loss", kl_estimator="k1"))
    assert resolve_settings(run_settings(method=method, kl_placement="loss")).kl_estimator == "k3"


def test_a_critic_is_kept_where_it_fits_and_dropped_where_none_is_needed():
    mine = CriticSettings(kind="quantile", heads=5)
    assert resolve_settings(run_settings(method="robust_ppo", critic=mine)).critic == mine
    assert resolve_settings(run_settings(method="grpo", critic=mine)).critic is None


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(method="nope"), "unknown method 'nope'; there are dvpo, dvpo_winsorised"),
        (
            dict(method="ppo", critic=CriticSettings(kind="quantile")),
            "needs a scalar critic; critic.kind is 'quantile'",
        ),
        (dict(method="cql", critic=CriticSettings(kind="robust_q")), "cql needs a conservative_q critic"),
        *(
            (dict(method=m, generation_batch_size=10, num_generations=4), "10 is not a multiple of num_generations 4")
            for m in GROUPS
        ),
    ],
)
def test_settings_that_do_not_fit_a_method_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(run_settings(**bad))


def test_groups_must_fit_the_batch_only_where_there_are_groups():
    for method in set(METHODS) - set(GROUPS):
        assert (
            resolve_settings(run_settings(method=method, generation_batch_size=10, num_generations=4)).num_generations
            == 4
        )


def test_changes_reach_into_nested_settings():
    """A mapping changes what it names and keeps the rest; the settings themselves stay as they are."""
    base = TrainingSettings(readout=dict(kind="winsorised", level_low=0.3), lam=0.5)
    changed = with_changes(base, {"readout": {"level_up": 0.2}, "learning_rate": 3e-4})
    assert (changed.readout.kind, changed.readout.level_low, changed.readout.level_up) == ("winsorised", 0.3, 0.2)
    assert (changed.learning_rate, changed.lam) == (3e-4, 0.5)
    assert (base.readout.level_up, base.learning_rate) == (0.1, 1e-4)
    assert with_changes(base, {}) == base


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learningrate": 1e-3}, "learningrate: there is no such setting"),
        ({"readout": {"level": 0.1}}, "level"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"beta": NAN}, "beta"),
        ({"epsilon_high": 0}, "epsilon_high"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"kl_placement": "both"}, "kl_placement"),
        ({"lam": 1.1}, "lam"),
        ({"readout": {"level_up": 0.7}}, "level_up"),
        ({"readout": 3}, "readout"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"worst_case": "mean"}, "worst_case"),
        ({"critic": {"kind": "scalar"}}, "critic: there is no such setting"),  # critics are a section of their own
    ],
)
def test_wrong_changes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        with_changes(TrainingSettings(), changes)
