"""Losses against hand-derived numbers, float64 double loops, finite differences: the core of the critic's loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional import quantile_huber as core
from dvpo_lib.functional import quantiles
from dvpo_lib.functional.quantile_huber import quantile_huber

few = settings(max_examples=25, deadline=None, derandomize=True)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def huber_loop(q: list[float], g: list[float], kappa: float, w: list[float] | None = None) -> float:
    """The definition, term by term."""
    total = 0.0
    for j, x in enumerate(q):
        tau = (2 * (j + 1) - 1) / (2 * len(q))
        for y in g:
            u = y - x
            size = abs(u) if kappa == 0 else (u * u / 2 if abs(u) <= kappa else kappa * (abs(u) - kappa / 2)) / kappa
            total += (1 if w is None else w[j]) * abs(tau - (u < 0)) * size
    return total / len(q) / len(g)


# ---- the core ----


@pytest.mark.parametrize(
    "kappa, value, slope", [(0, 0.25, 0.125), (0.5, 0.1875, 0.125), (1, 0.125, 0.125), (2, 0.0625, 0.0625)]
)
def test_core_by_hand(kappa, value, slope):
    """M = 2, levels 1/4 and 3/4, one target 1 between q = (0, 2): both errors are 1 with weight 1/4."""
    q = torch.tensor([0.0, 2.0], requires_grad=True)
    loss = quantile_huber(q, torch.tensor([1.0]), kappa)
    loss.backward()
    assert loss.item() == pytest.approx(value)
    assert q.grad.tolist() == pytest.approx([-slope, slope])


def test_core_by_hand_two_targets_and_weights():
    """q = (1, 0) crossed, G = (0, 3), kappa 0. j=1: (3/4 * 1 + 1/4 * 2) = 5/4; j=2: 0 + 3/4 * 3 = 9/4; / 4 = 7/8."""
    q, g = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    assert quantile_huber(q, g).item() == pytest.approx(7 / 8)
    assert quantile_huber(q, g, weights=torch.tensor([2.0, 0.0])).item() == pytest.approx(2 * 5 / 16)


@few
@given(
    data=st.data(),
    m=st.integers(1, 9),
    k=st.integers(1, 9),
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    kappa=st.sampled_from([0.0, 0.01, 0.5, 1.0, 30.0]),
    ties=st.booleans(),
    weighted=st.booleans(),
)
def test_core_equals_the_double_loop(data, m, k, rows, heads, kappa, ties, weighted):
    seed = data.draw(st.integers(0, 10**6))
    q, g = normal(rows, heads, m, seed=seed) * 2, normal(rows, 1, k, seed=seed + 1) * 2
    if ties:
        q, g = q.round(), g.round()
    w = normal(m, seed=seed + 2).abs() if weighted else None
    got = quantile_huber(q, g, kappa, w)
    assert got.shape == (rows, heads)
    for r in range(rows):
        for n in range(heads):
            want = huber_loop(q[r, n].tolist(), g[r, 0].tolist(), kappa, None if w is None else w.tolist())
            assert got[r, n].item() == pytest.approx(want, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_gradcheck(kappa, k):
    q = normal(3, 2, 5, seed=k).requires_grad_()  # continuous draws: no ties, where kappa = 0 has a kink
    w = normal(5, seed=9).abs()
    assert torch.autograd.gradcheck(lambda x: quantile_huber(x, normal(3, 1, k, seed=50 + k), kappa, w), (q,))


@pytest.mark.parametrize("kappa", [0.0, 0.4])
@pytest.mark.parametrize("tie", [False, True])
def test_one_target_equals_the_general_path(kappa, tie):
    """Repeating the only target takes the other path and changes no mean; at a tie too the gradients agree."""
    q, g = normal(6, 3, 8, seed=1), normal(6, 1, 1, seed=2)
    if tie:
        q[..., 3] = g[..., 0]
    results = []
    for target in (g, g.repeat(1, 1, 4)):
        x = q.clone().requires_grad_()
        loss = quantile_huber(x, target, kappa)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    if tie and kappa == 0:  # the subgradient there is -tau: 1{G < q} is 0
        torch.testing.assert_close(results[0][1][..., 3], torch.full((6, 3), -7 / 16 / 8, dtype=torch.float64))


EDGES = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 1 + 2**-23, math.inf, -math.inf, 3e38, -3e38])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_order_is_stable_and_that_of_the_numbers(dtype):
    x = torch.cat([EDGES[torch.randperm(11, generator=torch.Generator().manual_seed(i))] for i in range(20)])
    for y in (x, normal(5, 3, 200).to(dtype), normal(4, 50).round(), x[:1], normal(0, 3, 4)):
        torch.testing.assert_close(quantiles.stable_order(y.to(dtype)), y.to(dtype).argsort(dim=-1, stable=True))


@pytest.mark.parametrize("targets", [3, 40, 200])
def test_ranks_are_those_of_a_search(targets):
    """Ties, negative zeros and neighbours in the last place; more quantiles than targets or fewer."""
    some = torch.cat([EDGES, torch.nextafter(EDGES, torch.tensor(0.0)), torch.arange(-3.0, 4)])
    draw = torch.randint(len(some), (30, 60 + targets), generator=torch.Generator().manual_seed(targets))
    for x in (some[draw], normal(30, 60 + targets).float()):
        g, q = x[:, 60:].sort(-1).values, x[:, :60].contiguous()
        want = (g[:, None] < q[..., None]).sum(-1)
        assert torch.equal(core._ranks(g, q), want)
        assert torch.equal(core._ranks(g.double(), q.double()), want)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_single_precision_agrees_with_double(kappa, ties):
    """Its counts come from another algorithm. Targets are in any order."""
    q, g = 2 * normal(40, 3, 50), 2 * normal(40, 1, 60, seed=1) + 0.5
    if ties:
        q, g = q.round(), g.round()
    results = []
    for dtype in (torch.float32, torch.float64):
        x = q.float().to(dtype).requires_grad_()
        loss = quantile_huber(x, g.float().to(dtype), kappa)
        results.append((loss.detach().double(), torch.autograd.grad(loss.sum(), x)[0].double()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_targets_broadcast_and_carry_no_gradient():
    q, g = normal(4, 3, 6).requires_grad_(), normal(4, 1, 5, seed=1).requires_grad_()
    shared, repeated = quantile_huber(q, g, 0.2), quantile_huber(q, g.expand(4, 3, 5), 0.2)
    torch.testing.assert_close(shared, repeated, rtol=1e-12, atol=1e-12)
    shared.sum().backward()
    assert g.grad is None and q.grad.abs().sum() > 0
    one = quantile_huber(q[:1], g.detach())  # quantiles broadcast as well
    assert one.shape == (4, 3)
    torch.testing.assert_close(one[2], quantile_huber(q[0], g[2].detach().expand(3, 5)))


@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0])
def test_a_large_common_offset_costs_no_precision(kappa):
    """Multiples of 1/256 are exact in float32 at 1e4, so that shifting both sides must change nothing but rounding."""
    q, g = ((normal(4, n, seed=n) * 256).round().float() / 256 for n in (200, 199))
    values = []
    for offset in (0.0, 1e4):
        x = (q + offset).requires_grad_()
        loss = quantile_huber(x, g + offset, kappa)
        values.append((loss.detach(), torch.autograd.grad(loss.sum(), x)[0]))
    exact = quantile_huber(q.double(), g.double(), kappa)
    torch.testing.assert_close(values[1][0].double(), exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(values[0][0], values[1][0], rtol=2e-5, atol=0)
    slack = 1e-3 / max(kappa, 1e-3) / 200  # an ulp at the centre (1e-3 at 1e4) moves the slope by 1e-3 / kappa
    torch.testing.assert_close(values[0][1], values[1][1], rtol=1e-5, atol=slack)


def test_small_kappa_tends_to_the_pinball_loss():
    """0 <= pinball - Huber form <= kappa / 2 * max(tau, 1 - tau), also where kappa is far below the spread."""
    q, g = normal(3, 100, seed=1) * 100, normal(3, 400, seed=2) * 100
    for kappa in (1e-1, 1e-4, 1e-6):
        gap = quantile_huber(q, g, 0.0) - quantile_huber(q, g, kappa)
        assert (gap > -1e-9).all() and (gap < kappa / 2).all()


def test_half_precision_accumulates_in_single():
    q, g = normal(5, 64, seed=1).bfloat16(), normal(5, 64, seed=2).bfloat16()
    x = q.clone().requires_grad_()
    loss = quantile_huber(x, g, 0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), quantile_huber(q.double(), g.double(), 0.5), rtol=1e-5, atol=0)
    loss.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all()
    assert quantile_huber(q.double(), g.double()).dtype == torch.float64


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_infinities_and_nan_are_refused(bad, side, kappa):
    pair = [normal(2, 4), normal(2, 3)]
    pair[side][1, 2] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        quantile_huber(*pair, kappa)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="negative"):
        quantile_huber(normal(2, 4), normal(2, 3), -1.0)
    with pytest.raises(ValueError, match="rank"):
        quantile_huber(normal(2, 4), normal(3))
    with pytest.raises(ValueError, match="weights"):
        quantile_huber(normal(2, 4), normal(2, 3), weights=torch.ones(3))


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_second_derivatives_are_refused(kappa):
    q = normal(4).requires_grad_()
    (first,) = torch.autograd.grad(quantile_huber(q * q, normal(3), kappa), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        first.sum().backward()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_memory_is_linear(kappa):
    """No intermediate tensor is larger than the rows' quantiles and targets."""
    q, g = normal(2, 3, 500).requires_grad_(), normal(2, 1, 700, seed=1)
    with Largest() as seen:
        quantile_huber(q, g, kappa).sum().backward()
    assert 0 < seen.numel <= 2 * (3 * 500 + 700)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_blocks_of_rows_change_nothing(kappa, monkeypatch):
    q, g, results = normal(50, 3, 9), normal(50, 1, 7, seed=1), []
    for block in (1, 100, 10**9):
        monkeypatch.setattr(core, "BLOCK_NUMBERS", block)
        x = q.clone().requires_grad_()
        loss = quantile_huber(x, g, kappa)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), x)[0]))
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)
    assert quantile_huber(q[:0], g[:0], kappa).shape == (0, 3)


@pytest.mark.parametrize("p, expectile", [(0.2, 0.282), (0.05, 0.117)])
def test_large_kappa_learns_expectiles(p, expectile):
    """0/1 returns, kappa = 1: the loss is stationary at tau p / (tau p + (1 - tau)(1 - p)), whose mean is not p."""
    tau = quantiles.midpoint_levels(200, dtype=torch.float64)
    q = (tau * p / (tau * p + (1 - tau) * (1 - p))).requires_grad_()
    g = torch.zeros(1000, dtype=torch.float64)
    g[: round(1000 * p)] = 1
    (slope,) = torch.autograd.grad(quantile_huber(q, g, 1.0), q)
    assert slope.abs().max() < 1e-12
    assert q.mean().item() == pytest.approx(expectile, abs=1e-3)
    (slope,) = torch.autograd.grad(quantile_huber(q, g, 0.0), q)
    assert slope.abs().max() > 1e-4  # no minimiser of the pinball loss


@pytest.mark.parametrize("p, mean", [(0.2, 0.200), (0.05, 0.046)])
def test_pinball_learns_quantiles(p, mean):
    """The same returns, kappa = 0: subgradient descent ends within 0.01 of p (exact: p) and of what was measured."""
    g = torch.zeros(1000, dtype=torch.float64)
    g[: round(1000 * p)] = 1
    q = torch.full((200,), 0.5, dtype=torch.float64, requires_grad=True)
    for step in range(2000):
        (slope,) = torch.autograd.grad(quantile_huber(q, g, 0.0), q)
        q.data -= 200 * 0.5 / (1 + step / 20) * slope
    assert q.mean().item() == pytest.approx(mean, abs=0.01)
    assert q.mean().item() == pytest.approx(p, abs=0.01)


def test_risk_weights():
    w = losses.risk_weights(4, 2.0, dtype=torch.float64)
    raw = [math.exp(-2 * t) for t in (0.125, 0.375, 0.625, 0.875)]
    assert w.tolist() == pytest.approx([4 * x / sum(raw) for x in raw])
    assert losses.risk_weights(7, 0.0).tolist() == [1.0] * 7


def test_risk_weights_move_no_free_minimiser():
    """Every quantile's own subgradient is only scaled, by a positive number."""
    q, g = normal(9).requires_grad_(), normal(31, seed=3)
    w = losses.risk_weights(9, 3.0, dtype=torch.float64)
    plain, risky = (torch.autograd.grad(quantile_huber(q, g, 0.0, x), q)[0] for x in (None, w))
    assert (w > 0).all()
    torch.testing.assert_close(risky, plain * w)
