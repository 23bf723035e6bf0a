"""Offline Q functions: expectiles and worst cases in closed form, back-ups on a small tree, the critic, decoding.

Advantages and targets of `cql` and `rfqi` by hand and against a loop are in test_methods.py; their runs in the trainer
(bandit, restored state, logged rollouts) in test_trainer.py.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from dvpo_lib.functional.q_losses import QSettings, QValues, expectile_loss, fitted_q, q_loss, worst_case_mean
from dvpo_lib.models.policy import PolicySettings, build_policy, token_logits
from dvpo_lib.models.q_critic import PerturbedPolicy, QCritic
from dvpo_lib.models.tokens import Tokens, encode_completions
from dvpo_lib.rl.sampling.rollouts import sample_answers
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

NAN = float("nan")
few = settings(max_examples=25, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_values(b, t, m=5, seed=0):
    outcome = normal(b, t, m, seed=seed + 4).sort(-1).values
    return QValues(*(normal(*shape, seed=seed + i) for i, shape in enumerate([(b, t, 2), *[(b, t)] * 3])), outcome)


# ---- expectiles ----


def expectile_of(samples, expectile):
    """The minimiser of the mean expectile loss, where its slope changes sign."""
    low, up = samples.min().item(), samples.max().item()
    for _ in range(60):
        v = torch.tensor((low + up) / 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(expectile_loss(v, samples, expectile).mean(), v)
        low, up = (v.item(), up) if slope < 0 else (low, v.item())
    return (low + up) / 2


def test_expectile_loss_by_hand():
    """Errors 2 and -3 at 0.9: 0.9 * 4 and 0.1 * 9; at 0.5 half the squares. No gradient flows to the target."""
    v, target = torch.zeros(2).requires_grad_(), torch.tensor([2.0, -3]).requires_grad_()
    assert expectile_loss(v, target, 0.9).tolist() == pytest.approx([3.6, 0.9])
    assert expectile_loss(v, target, 0.5).tolist() == [2, 4.5]
    expectile_loss(v, target, 0.9).sum().backward()
    assert v.grad.tolist() == pytest.approx([-3.6, 0.6]) and target.grad is None


def test_the_expectile_at_one_half_is_the_mean_and_rises_to_the_largest():
    x = normal(9)
    assert expectile_of(x, 0.5) == pytest.approx(x.mean().item(), abs=1e-9)
    found = [expectile_of(x, e) for e in (0.01, 0.3, 0.5, 0.7, 0.999999)]
    assert found == sorted(found) and found[-1] == pytest.approx(x.max().item(), abs=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("expectile", [0.3, 0.7, 0.9])
def test_the_expectile_of_a_coin(expectile, share):
    """e p (1 - v) = (1 - e) (1 - p) v."""
    coin = (torch.arange(10) < 10 * share).double()
    want = expectile * share / (expectile * share + (1 - expectile) * (1 - share))
    assert expectile_of(coin, expectile) == pytest.approx(want, abs=1e-7)


# ---- the worst case ----


def transport_loop(q, radius):
    """Mass goes from the largest outcomes to the smallest one, outcome by outcome."""
    mass, left = [1 / len(q)] * len(q), radius
    for i in reversed(range(len(q))):
        moved = min(mass[i], left)
        mass[i], left = mass[i] - moved, left - moved
    return sum(m * v for m, v in zip(mass, q)) + radius * q[0]


def linear_programme(q, radius):
    """The smallest mean over distributions p on the outcomes with half the sum of |p - 1/M| at most radius."""
    m = len(q)
    moved = np.eye(m)
    limits = np.block([[moved, -moved], [-moved, -moved], [np.zeros((1, m)), np.full((1, m), 0.5)]])
    bounds = np.concatenate([np.full(m, 1 / m), np.full(m, -1 / m), [radius]])
    found = linprog([*q, *[0] * m], limits, bounds, [[1] * m + [0] * m], [1], bounds=(0, None))
    assert found.success
    return found.fun


def test_worst_case_mean_by_hand():
    """(0, 1, 2, 5), mean 2. A quarter moves the 5 to 0, 1/8 half of it, 3/8 half of the 2 too."""
    q = torch.tensor([0.0, 1, 2, 5])
    found = [worst_case_mean(q, r).item() for r in (0, 0.125, 0.25, 0.375, 0.5, 1)]
    assert found == pytest.approx([2, 2 - 0.625, 0.75, 0.5, 0.25, 0])
    shifted = worst_case_mean(torch.stack([q + 3, 2 * q]), 0.25)
    assert shifted.tolist() == pytest.approx([3.75, 1.5])


@few
@given(m=st.integers(1, 9), radius=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_worst_case_mean_equals_the_transport_of_mass(m, radius, seed):
    q = normal(2, 3, m, seed=seed).sort(-1).values
    want = [[transport_loop(row, radius) for row in rows] for rows in q.tolist()]
    torch.testing.assert_close(worst_case_mean(q, radius), torch.tensor(want).double(), rtol=1e-6, atol=1e-6)
    assert worst_case_mean(q, 0.0).tolist() == q.mean(-1).tolist()
    torch.testing.assert_close(worst_case_mean(q, 1.0), q[..., 0])


@pytest.mark.parametrize("m", [1, 2, 4, 5])
def test_worst_case_mean_solves_the_linear_programme_and_falls_with_the_radius(m):
    q = normal(m, seed=m).sort().values
    radii = np.linspace(0, 1, 12)
    found = [worst_case_mean(q, r).item() for r in radii]
    assert found == pytest.approx([linear_programme(q.tolist(), r) for r in radii], abs=1e-7)
    assert all(b <= a + 1e-12 for a, b in zip(found, found[1:]))
    if m > 1:
        assert all(b < a - 1e-3 for a, b in zip(found, found[1:]) if a > q[0] + 1e-2)


# ---- the loss ----


def test_q_loss_by_hand():
    """One token: twins 1 and 3 against 2 give 0.5 * (1 + 1) / 2; V = 0 against 2 at 0.7 gives 2.8; the penalty 0.4
    counts a tenth; outcomes 0 and 4 against 1, at levels 1/4 and 3/4, give (1/4 * 1 + 1/4 * 3) / 2."""
    x = QValues(
        torch.tensor([[[1.0, 3]]]), None, torch.zeros(1, 1), torch.full((1, 1), 0.4), torch.tensor([[[0.0, 4]]])
    )
    targets, mask, cfg = torch.tensor([[[2.0, 2, 1]]]), torch.ones(1, 1, dtype=torch.bool), QSettings()
    total, terms = q_loss(x, targets, mask, cfg, "conservative_q")
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({"td": 0.5, "value": 2.8, "conservatism": 0.4})
    assert total.item() == pytest.approx(0.5 + 2.8 + 0.04)
    total, terms = q_loss(x, targets, mask, cfg, "robust_q")
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({"td": 0.5, "value": 2.8, "outcome": 0.5})
    assert total.item() == pytest.approx(0.5 + 2.8 + 0.5)
    pretraining = torch.full((1, 1, 1), 2.0)  # the Monte Carlo return for all three
    assert q_loss(x, pretraining, mask, cfg, "conservative_q")[0].item() == pytest.approx(3.34)


def gradients(x, targets, mask, cfg, kind):
    parts = [p for p in (x.q, x.v, x.spread, x.outcome) if p is not None]
    free = [p.clone().requires_grad_() for p in parts]
    y = QValues(free[0], x.best, free[1], free[2], free[3] if len(free) > 3 else None)
    total, _ = q_loss(y, targets, mask, cfg, kind)
    return total.detach(), [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parts, torch.autograd.grad(total, free, allow_unused=True))
    ]


def test_without_conservatism_the_penalty_has_no_gradient():
    """Q and V learn as with it, and as robust_q's do."""
    x, targets, mask = random_values(3, 4), normal(3, 4, 3, seed=9), normal(3, 4, seed=8) > -0.5
    kinds = [("conservative_q", 0.0), ("conservative_q", 0.5), ("robust_q", 0.5)]
    (q0, v0, spread0, outcome0), with_it, robust = (
        gradients(x, targets, mask, QSettings(conservatism=c), kind)[1] for kind, c in kinds
    )
    assert (spread0 == 0).all() and (outcome0 == 0).all() and (robust[2] == 0).all()
    torch.testing.assert_close(with_it[2], torch.where(mask, 0.5 / mask.sum(), 0.0).double())
    for other in (with_it, robust):
        assert torch.equal(other[0], q0) and torch.equal(other[1], v0)
    assert (robust[3][mask] != 0).any()


@pytest.mark.parametrize("kind", ["conservative_q", "robust_q"])
def test_masked_targets_change_no_loss_and_no_gradient(kind):
    x, targets, mask = random_values(3, 4), normal(3, 4, 3, seed=9), normal(3, 4, seed=8) > -0.5
    assert not mask.all()
    results = [
        gradients(x, torch.where(mask[..., None], targets, hole), mask, QSettings(), kind) for hole in (0.0, 7.0, NAN)
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    assert all((g[~mask] == 0).all() for g in results[0][1])


# ---- back-ups ----


def parts(x, rewards, mask, robust, **changes):
    a, g = fitted_q(rewards, x, mask, 0.9, QSettings(**changes), robust)
    return (a, *g.unbind(-1))


@pytest.mark.parametrize("backup", ["expectile", "max"])
def test_radius_zero_is_fitted_q_exactly(backup):
    x, rewards, mask = random_values(4, 6), normal(4, 6, seed=7), normal(4, 6, seed=8) > -0.5
    plain = parts(x, rewards, mask, False, backup=backup)
    for a, b in zip(plain, parts(x, rewards, mask, True, backup=backup, radius=0.0)):
        assert torch.equal(a, b)
    robust = parts(x, rewards, mask, True, backup=backup, radius=0.2)
    assert (robust[1] < plain[1]).any() and (robust[1] <= plain[1]).all()
    for i in (0, 2, 3):  # advantages, twins and what the outcome learns from stay
        assert torch.equal(robust[i], plain[i])


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("backup", ["expectile", "max"])
def test_turns_of_others_are_skipped_as_if_deleted(backup, robust):
    """Two segments with masked tokens before, between and after them, which hold NaN; and padding."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1, 0, 0]], dtype=torch.bool)
    x, rewards = random_values(2, 8), normal(2, 8, seed=7)
    short = QValues(*(p[mask].unflatten(0, (2, 4)) for p in vars(x).values()))
    all_real = torch.ones(2, 4, dtype=torch.bool)
    want = parts(short, rewards[mask].view(2, 4), all_real, robust, backup=backup)
    for p in (*vars(x).values(), rewards):
        p[~mask] = NAN
    for found, expected in zip(parts(x, rewards, mask, robust, backup=backup), want):
        torch.testing.assert_close(found[mask].view(2, 4), expected, rtol=1e-12, atol=1e-12)


WORDS, LENGTH, GAMMA = 2, 3, 0.9
LEAVES = list(itertools.product(range(WORDS), repeat=LENGTH))
# Every answer pays one of four equally likely rewards: sure ones from 0 to 0.6, and 1 that fails a quarter of the time.
PAY = {leaf: [0.1 * i] * 4 for i, leaf in enumerate(LEAVES)} | {LEAVES[-1]: [0.0, 1, 1, 1]}


class Tree:
    """Tables Q(prefix, word) and V(prefix) over all answers of three words, learned on every (answer, reward) once."""

    def __init__(self, cfg, robust):
        self.cfg, self.robust = cfg, robust
        self.rows = [(leaf, r) for leaf in LEAVES for r in PAY[leaf]]
        self.q = {leaf[: t + 1]: -9.0 for leaf in LEAVES for t in range(LENGTH)}
        self.v = {leaf[:t]: 7.0 for leaf in LEAVES for t in range(LENGTH)}

    def best(self, prefix):
        return max(self.q[(*prefix, word)] for word in range(WORDS))

    def values(self):
        def table(f):
            return torch.tensor([[f(leaf, t) for t in range(LENGTH)] for leaf, _ in self.rows], dtype=torch.float64)

        q = table(lambda leaf, t: self.q[leaf[: t + 1]])
        outcome = torch.tensor([PAY[leaf] for leaf, _ in self.rows], dtype=torch.float64)[:, None]
        return QValues(
            torch.stack([q + 0.3, q], -1),
            table(lambda leaf, t: self.best(leaf[:t])),
            table(lambda leaf, t: self.v[leaf[:t]]),
            torch.zeros_like(q),
            outcome.expand(-1, LENGTH, -1),
        )

    def back_up(self):
        """One iteration: Q to the mean of its targets, V to the expectile of the following twins' minimum."""
        rewards = torch.zeros(len(self.rows), LENGTH, dtype=torch.float64)
        rewards[:, -1] = torch.tensor([r for _, r in self.rows], dtype=torch.float64)
        mask = torch.ones_like(rewards, dtype=torch.bool)
        _, targets = fitted_q(rewards, self.values(), mask, GAMMA, self.cfg, self.robust)
        for table, column, cut in ((self.q, 0, 1), (self.v, 1, 0)):
            for prefix in table:
                t = len(prefix) - cut
                here = [i for i, (leaf, _) in enumerate(self.rows) if leaf[: len(prefix)] == prefix]
                samples = targets[here, t, column]
                table[prefix] = samples.mean().item() if cut else expectile_of(samples, self.cfg.expectile)


def known_q(prefix, follow, leaf_value):
    """Q by recursion: what `follow` makes of the next words' Q, discounted."""
    if len(prefix) == LENGTH:
        return leaf_value(PAY[prefix])
    return GAMMA * follow([known_q((*prefix, w), follow, leaf_value) for w in range(WORDS)])


def mean_of(x):
    return sum(x) / len(x)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize(
    "backup, expectile, follow, sweeps",
    [
        ("max", 0.5, max, 3),
        ("expectile", 0.5, mean_of, 5),
        ("expectile", 0.8, lambda q: max(q) * 0.8 + min(q) * 0.2, 5),  # the expectile of two equally likely values
    ],
)
def test_back_ups_converge_on_a_tree(backup, expectile, follow, sweeps, robust):
    """Plain Q-learning, the data's own mean and an expectile, to the values found by recursion, and no iteration too
    early: one for each of three words; where V follows Q one iteration behind, two more between. The tables' start
    does not matter. Robust at radius 1/4: a leaf's value is the mean once its best quarter is gone to its worst."""
    leaf_value = (lambda pay: transport_loop(sorted(pay), 0.25)) if robust else mean_of
    tree = Tree(QSettings(backup=backup, expectile=expectile, radius=0.25), robust)
    want = {prefix: known_q(prefix, follow, leaf_value) for prefix in tree.q}
    for _ in range(sweeps - 1):
        tree.back_up()
    assert max(abs(tree.q[p] - want[p]) for p in want) > 0.1
    for _ in range(3):
        tree.back_up()
        assert tree.q == pytest.approx(want, abs=1e-7)


def test_the_robust_tree_prefers_the_sure_answer():
    """0.75 on average beats a sure 0.6; less a radius of 0.1 it does still, less 0.2 no more."""
    for radius, answer in ((0.0, (1, 1, 1)), (0.1, (1, 1, 1)), (0.2, (1, 1, 0))):
        tree = Tree(QSettings(backup="max", radius=radius), robust=True)
        for _ in range(LENGTH):
            tree.back_up()
        prefix = ()
        while len(prefix) < LENGTH:
            prefix = max(((*prefix, w) for w in range(WORDS)), key=tree.q.get)
        assert prefix == answer


# ---- the critic ----


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


@pytest.fixture(scope="module")
def policy(tokenizer):
    return build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=2), seed=0).eval()


@pytest.fixture
def critic(policy):
    """With heads strong enough that Q matters."""
    critic = QCritic(policy, quantiles=9, seed=1)
    with torch.no_grad():
        for head in (critic.q, critic.v, critic.state, critic.outcome):
            head.weight.mul_(20)
    return critic


PROMPTS = ["math 3 ?", "math 3 4 5 ?", "math 7 ?"]
TEXTS = ["answer 3", "careful so 3 answer 3", "so 3"]


def test_the_critic_reads_before_the_token_and_outcomes_after_it(tokenizer, critic):
    """Shapes; Q of the token taken, the best minimum, the penalty and V, each from the state before the token."""
    tokens = encode_completions(tokenizer, PROMPTS, TEXTS)
    b, t = tokens.mask.shape
    with torch.no_grad():
        x = critic(tokens)
        hidden = critic.backbone(**tokens.model_inputs()).last_hidden_state
        start = tokens.input_ids.shape[1] - t
        for row, place in itertools.product(range(b), range(t)):
            q, v = critic.state_values(hidden[row, start + place - 1])
            assert q.shape == (2, len(tokenizer))
            taken = tokens.input_ids[row, start + place]
            torch.testing.assert_close(x.q[row, place], q[:, taken])
            torch.testing.assert_close(x.best[row, place], q.min(0).values.max())
            torch.testing.assert_close(x.spread[row, place], (q.exp().sum(1).log() - q[:, taken]).mean())
            torch.testing.assert_close(x.v[row, place], v)
            want = critic.outcome(hidden[row, start + place]).sort().values
            torch.testing.assert_close(x.outcome[row, place], want)
    assert x.q.shape == (b, t, 2) and x.best.shape == x.v.shape == x.spread.shape == (b, t)
    assert x.outcome.shape == (b, t, 9) and (x.outcome.diff(dim=-1) >= 0).all()
    assert (x.q[..., 0] - x.q[..., 1]).abs()[tokens.mask].min() > 1e-4  # twins differ
    assert (x.best >= x.q.amin(-1)).all() and (x.spread > 0).all()


def test_the_last_token_moves_its_outcome_and_no_state_before_it(tokenizer, critic, policy):
    tokens = encode_completions(tokenizer, PROMPTS[:1], TEXTS[:1])
    other = Tokens(tokens.input_ids.clone(), tokens.attention_mask, tokens.mask)
    other.input_ids[0, -1] = (other.input_ids[0, -1] + 1) % len(tokenizer)
    with torch.no_grad():
        x, y = critic(tokens), critic(other)
    for name in ("best", "v"):
        torch.testing.assert_close(getattr(x, name), getattr(y, name))
    torch.testing.assert_close(x.outcome[:, :-1], y.outcome[:, :-1])
    torch.testing.assert_close(x.q[:, :-1], y.q[:, :-1])
    assert (x.outcome[:, -1] - y.outcome[:, -1]).abs().max() > 1e-3
    assert (x.q[:, -1] - y.q[:, -1]).abs().min() > 1e-3  # another token of the same state
    assert QCritic(policy)(tokens).outcome is None


def test_the_critic_starts_from_returns(tokenizer, critic):
    """Without weights: Q and V are the returns' mean, outcomes their quantiles, every row and token alike."""
    with torch.no_grad():
        for head in (critic.q, critic.state, critic.v, critic.outcome):
            head.weight.zero_()
    critic.start_from(torch.tensor([3.0, 0, 1, 2, 4, 5, 6, 7, 8]))
    x = critic(encode_completions(tokenizer, PROMPTS, TEXTS))
    for value in (x.q, x.v, x.best):
        torch.testing.assert_close(value, torch.full_like(value, 4.0))
    torch.testing.assert_close(x.outcome, torch.arange(9.0).expand_as(x.outcome))


def test_equal_seeds_give_equal_critics_and_leave_the_policy_alone(tokenizer, policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    a, b, c = (QCritic(policy, 9, seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.q.weight, c.q.weight)
    a(encode_completions(tokenizer, PROMPTS, TEXTS)).q.sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


# ---- decoding ----


def sample(policy, tokenizer, temperature=1.0, length=6):
    prompts = PROMPTS * 5
    return sample_answers(policy, tokenizer, prompts, length, temperature, 3)


def test_strength_zero_is_the_base_policy(tokenizer, policy, critic):
    own, other = (sample(p, tokenizer) for p in (policy, PerturbedPolicy(policy, critic, 0.0)))
    assert torch.equal(own.tokens.input_ids, other.tokens.input_ids) and torch.equal(own.logprobs, other.logprobs)
    strong = sample(PerturbedPolicy(policy, critic, 4.0), tokenizer)
    assert own.completions != strong.completions


@torch.no_grad()
def read_all(critic, tokens):
    """Q (B, T, 2, V) and V (B, T) of the state before each token, without a cache."""
    hidden = critic.backbone(**tokens.model_inputs(), use_cache=False).last_hidden_state
    return critic.state_values(hidden[:, -tokens.completion_length - 1 : -1])


def test_great_strength_decodes_the_best_smaller_twin(tokenizer, policy, critic):
    rollouts = sample(PerturbedPolicy(policy, critic, 1e6), tokenizer, temperature=0)
    tokens, mask = rollouts.tokens, rollouts.tokens.mask
    q, _ = read_all(critic, tokens)
    chosen = tokens.input_ids[:, -tokens.completion_length :]
    assert torch.equal(q.amin(-2).argmax(-1)[mask], chosen[mask])
    assert not torch.equal(q.amax(-2).argmax(-1)[mask], chosen[mask])  # neither the larger twin
    assert not torch.equal(q[..., 0, :].argmax(-1)[mask], chosen[mask])  # nor the first


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cached_decoding_equals_the_logits_without_a_cache(tokenizer, policy, critic, temperature):
    """base + strength * (min Q - V), at the sampling temperature; prompts of unequal length, padded on the left."""
    rollouts = sample(PerturbedPolicy(policy, critic, 4.0), tokenizer, temperature)
    tokens, mask = rollouts.tokens, rollouts.tokens.mask
    q, v = read_all(critic, tokens)
    with torch.no_grad():
        base = token_logits(policy, tokens)
    chosen = tokens.input_ids[:, -tokens.completion_length :, None]

    def logprobs(logits):
        return (logits / temperature).log_softmax(-1).gather(-1, chosen)[..., 0][mask]

    found = rollouts.logprobs[mask]
    torch.testing.assert_close(found, logprobs(base + 4 * (q.amin(-2) - v[..., None])), rtol=1e-4, atol=1e-4)
    assert (found - logprobs(base)).abs().mean() > 0.1
