"""The terms that shape a critic's tails: numbers by hand, loops, signs, scale in M, bias, and how they add up."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.critic_losses import CriticLossSettings, critic_loss
from dvpo_lib.functional.quantiles import midpoint_levels, tail_count

TERMS = ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
ALL = dict(head_consistency=0.3, tail_calibration=0.4, mean_shift=0.5, tail_shape=0.6, tail_curvature=1e-3)
OFF = dict.fromkeys(TERMS, 0.0)
MASS = (0.1, 0.1)
LINE = torch.arange(8, dtype=torch.float64)  # M = 8: a tail of mass 0.1 has 3 quantiles


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tau(m: int) -> torch.Tensor:
    return midpoint_levels(m, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log1p(math.exp(x))


# ---- by hand ----


def test_tail_calibration_by_hand():
    """Tail means of 0..7 are 1 and 6, its quantiles at 3/8 and 5/8 are 2.5 and 4.5."""
    point, four = torch.tensor([2.0]).double(), torch.tensor([0.0, 1, 2, 7]).double()
    assert losses.tail_calibration(LINE, point, *MASS).item() == pytest.approx(1**2 + 4**2)
    assert losses.tail_calibration(LINE, four, *MASS).item() == pytest.approx(0 + (6 - 10 / 3) ** 2)
    lower = 0.5 - 3 / 8 * 0.5 + sigmoid(-1) * (1 - 2.5 + 0.5 * 8 / 3) - softplus(-1)  # centre 2; spread 0 counts as 1
    upper = 3 / 8 * 2.5 + sigmoid(-4) * (-6 + 4.5) - softplus(-4)
    assert losses.tail_calibration(LINE, point, *MASS, "elicitable").item() == pytest.approx(lower + upper)
    lower = 0.5 - 3 / 8 * 0.5 + sigmoid(0.5) * (1 - 2.5 + 0.5 * 8 / 3) - 4 * softplus(0.5)  # centre -1, spread 4
    upper = 3 / 8 * 2.5 + sigmoid(-7 / 4) * (-6 + 4.5) - 4 * softplus(-7 / 4)
    scale = torch.tensor([-1.0, 4.0])
    assert losses.tail_calibration(LINE, point, *MASS, "elicitable", scale).item() == pytest.approx(lower + upper)


def test_mean_shift_by_hand():
    """Two rows, two heads: batch means 0.5 and 4 against 2.5; only the first is pessimistic, by 2: Huber 1.5."""
    q, g = torch.tensor([[0.0, 4.0], [1.0, 4.0]]), torch.tensor([[1.0], [4.0]])
    assert losses.mean_shift(q, g).item() == pytest.approx(1.5 / 2)
    assert losses.mean_shift(q, g, torch.tensor([[0.0, 1.0], [1.0, 1.0]])).item() == pytest.approx(1 / 2)  # 3 / 2 rows
    assert losses.mean_shift(q[:1], g[:1], batch_gap=torch.tensor([2.0, -1.5])).item() == pytest.approx(1.5 / 2)
    assert losses.mean_shift(torch.zeros(3, 1), torch.full((3, 1), 0.4)).item() == pytest.approx(0.08)
    single = losses.mean_shift(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]))
    assert single.item() == 0  # per sample the first row would count


def test_tail_shape_by_hand():
    """Variances: (0,1,2) 2/3 against (0,.5,1) 1/6; (5,6,7) 2/3 against (5,7,9) 8/3. The middle does not count."""
    ref = torch.tensor([0, 0.5, 1, -9, 99, 5, 7, 9], dtype=torch.float64)
    assert losses.tail_shape(LINE, ref, *MASS).item() == pytest.approx(1 / 2 + 2)
    assert losses.tail_shape(ref, LINE, *MASS).item() == 0


def test_tail_curvature_by_hand():
    """M^2 = 64; second differences: (0,2,3) -1 against 0; (5,6,7) 0 against (5,6,9) 2."""
    q, ref = LINE.clone(), LINE.clone()
    q[:3], ref[-3:] = torch.tensor([0.0, 2, 3]), torch.tensor([5.0, 6, 9])
    assert losses.tail_curvature(q, ref, *MASS).item() == pytest.approx(64 + 2 * 64)
    assert losses.tail_curvature(ref, q, *MASS).item() == 0
    assert losses.tail_curvature(q, LINE[:1], *MASS).item() == pytest.approx(64)  # a point is flat


def test_head_consistency_by_hand():
    assert losses.head_consistency(torch.tensor([[0.0, 2.0], [2.0, 4.0]])).item() == 1
    assert losses.head_consistency(torch.tensor([[0.0, 3.0]]).repeat(3, 1)).item() == 0


# ---- loops ----


def calibration_loop(q, g, form):
    k, n = tail_count(len(q), 0.1), tail_count(len(g), 0.1)
    total, centre = 0.0, statistics.fmean(g)
    unit = statistics.pstdev(g)
    for sign in (1, -1):
        own, other = sorted(sign * (x - centre) for x in q), sorted(sign * (x - centre) for x in g)
        e = sum(own[:k]) / k
        if form == "sample":
            total += (e - sum(other[:n]) / n) ** 2
            continue
        a, v = k / len(q), (own[k - 1] + own[k]) / 2
        for y in other:
            hit = y <= v
            score = (hit - a) * v - hit * y + a * y + sigmoid(e / unit) * (e - v + hit * (v - y) / a)
            total += (score - unit * softplus(e / unit)) / len(g)
    return total


def shape_loop(q, ref, term):
    total = 0.0
    for side in (0, 1):
        tails = [x[: tail_count(len(x), 0.1)] if side == 0 else x[-tail_count(len(x), 0.1) :] for x in (q, ref)]
        if term == "shape":
            var = [sum((v - sum(t) / len(t)) ** 2 for v in t) / len(t) for t in tails]
            total += max(0.0, (var[0] - var[1]) * (1 if side == 0 else -1))
        else:
            d2 = [[len(q) ** 2 * (t[j + 1] - 2 * t[j] + t[j - 1]) for j in range(1, len(t) - 1)] for t in tails]
            total += sum(max(0.0, b - a) for a, b in zip(*d2)) / len(d2[0])
    return total


@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(8, 40), k=st.integers(3, 9), seed=st.integers(0, 10**6))
def test_terms_equal_loops(m, k, seed):
    q, ref, g = (
        x.sort(-1).values for x in (normal(2, m, seed=seed), normal(2, m, seed=seed + 1), normal(2, k, seed=seed + 2))
    )
    for form in ("sample", "elicitable"):
        scale = torch.stack([losses.return_scale(x) for x in g], 1)  # of each row
        got = losses.tail_calibration(q, g, *MASS, form, scale)
        want = [calibration_loop(a.tolist(), b.tolist(), form) for a, b in zip(q, g)]
        assert got.tolist() == pytest.approx(want, rel=1e-9)
    for term, function in (("shape", losses.tail_shape), ("curvature", losses.tail_curvature)):
        want = [shape_loop(a.tolist(), b.tolist(), term) for a, b in zip(q, ref)]
        assert function(q, ref, *MASS).tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)


# ---- signs, from q = reference ----


def bend(m: int, side: str, by: float) -> torch.Tensor:
    """Quantiles of a line, one tail made heavier (by > 0) or lighter."""
    t, a = tau(m), tail_count(m, 0.1) / m
    depth = (a - t if side == "lower" else t - 1 + a).clamp(min=0)
    return t + by * (-1 if side == "lower" else 1) * depth**2


@pytest.mark.parametrize("m", [8, 50, 200])
@pytest.mark.parametrize("term", [losses.tail_shape, losses.tail_curvature])
def test_tails_may_contract_below_and_grow_above(term, m):
    ref, size = tau(m), 0.4
    assert term(ref, ref, *MASS) == 0
    for side, by, raised in (
        ("lower", size, True),
        ("lower", -size, False),
        ("upper", size, False),
        ("upper", -size, True),
    ):
        q = bend(m, side, by).requires_grad_()
        loss = term(q, ref, *MASS)
        assert (loss.item() > 1e-6) is raised
        (slope,) = torch.autograd.grad(loss, q)
        step = q.detach() - 1e-9 * slope
        assert term(step, ref, *MASS) < loss if raised else slope.abs().max() == 0


def test_optimism_of_the_mean_is_free():
    q = torch.full((4, 2), 1.0, dtype=torch.float64, requires_grad=True)
    for target, raised in ((1.3, True), (0.7, False)):
        loss = losses.mean_shift(q, torch.full((4, 1), target, dtype=torch.float64))
        (slope,) = torch.autograd.grad(loss, q)
        assert (loss.item() > 0) is raised
        assert (slope < 0).all() if raised else (slope == 0).all()


def test_at_the_reference_the_shape_terms_do_not_push():
    z = normal(2, 3, 2, 12).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    reference = z.detach().sort(-1).values
    cfg = CriticLossSettings(**OFF | dict(tail_shape=1.0, tail_curvature=1.0))
    total, terms = critic_loss(z, normal(2, 3, 5, seed=1), mask, cfg, reference=reference)
    core = losses.quantile_huber(z, normal(2, 3, 5, seed=1)[:, :, None])
    (got,), (want,) = torch.autograd.grad(total, z), torch.autograd.grad(core.mean(), z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert terms["tail_shape"] == terms["tail_curvature"] == 0


# ---- M ----


@pytest.mark.parametrize("form", ["sample", "elicitable"])
@pytest.mark.parametrize("kappa, rho", [(0.0, 0.0), (0.5, 2.0)])
def test_terms_mean_the_same_at_every_m(form, kappa, rho):
    """Smooth quantile functions at M = 50, 200: equal to 5 % (a tail of 5 points has 1 - 1/25 of a line's variance)."""
    cfg = CriticLossSettings(kappa=kappa, rho=rho, tail_calibration_form=form, **dict.fromkeys(TERMS, 1.0))
    targets = (4 * tau(400) - 1)[:, None, None]  # uniform on [-1, 3], one outcome a response
    found = []
    for m in (50, 200):
        t = tau(m)
        q = torch.stack([t - 2 * (1 - t) ** 3, 0.5 * t - 1 - (1 - t) ** 3])  # heavy below; the second light above
        z, ref = q.expand(400, 1, 2, m), t.expand(400, 1, 2, m)
        total, terms = critic_loss(z, targets, torch.ones(400, 1, dtype=torch.bool), cfg, reference=ref)
        assert set(terms) == {"quantile_huber", *TERMS} and all(v > 1e-3 for v in map(abs, terms.values()))
        found.append({k: v.item() for k, v in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_curvature_of_unbounded_tails_and_of_samples_is_not_scale_free():
    """The second derivative of a normal's quantile function has no mean over its tail: that of d2 grows nearly as M.
    The gaps between a sample's sorted draws fluctuate by their own size, 1/M: d2 grows as M. A bounded, smooth tail
    has no such trouble (above). Hence the small default weight and the critic itself as default reference."""

    def curvature(q, ref):
        return losses.tail_curvature(q, ref, *MASS).mean().item()

    normals = [curvature(2 * torch.special.ndtri(tau(m)), torch.special.ndtri(tau(m))) for m in (50, 200)]
    assert 2.5 < normals[1] / normals[0] < 4
    uniform = [
        curvature(
            tau(m).expand(4000, m),
            torch.rand(4000, m, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(-1).values,
        )
        for m in (50, 200)
    ]
    assert 3.5 < uniform[1] / uniform[0] < 4.5


# ---- calibration: who is minimised where ----


def test_elicitable_score_is_least_at_the_true_pair():
    """Exponential outcomes: mass 0.1, quantile -log 0.9, mean below it by numerical integration."""
    y = -torch.log1p(-tau(20_000))
    v, e = -math.log(0.9), y[:2000].mean().item()
    steps = torch.linspace(-0.05, 0.05, 21, dtype=torch.float64)
    for sign in (1, -1):  # the upper tail by reflection
        v, e = (v, e) if sign == 1 else (-math.log(10), -y[-2000:].mean().item())
        grid = losses._fissler_ziegel((v + steps)[:, None], (e + steps)[None], sign * y[None, None], 0.1)
        best = grid.argmin().item()
        assert (best // 21, best % 21) == (10, 10)
        assert grid.flatten().sort().values[1] > grid.min()


OUTCOMES = {
    "Bernoulli": (tau(2000) > 0.95).double(),  # the upper tail is half ones
    "Gaussian": torch.special.ndtri(tau(2000)),
    "spikes": torch.cat([torch.tensor([0.0, 1.0]).double().repeat(800), 5 * torch.special.ndtri(tau(400))]),
}


@pytest.mark.parametrize("unit, shift", [(1, 0), (10, 0), (1e-3, 0), (1, 100)])
@pytest.mark.parametrize("name", OUTCOMES)
def test_calibration_is_least_at_the_true_pair_in_every_unit(name, unit, shift):
    """One outcome a row: of a grid of (quantile, tail mean) pairs around the truth, in either tail, the true one."""
    y = (unit * OUTCOMES[name] + shift).sort().values
    true = {"lower": ((y[199] + y[200]) / 2, y[:200].mean()), "upper": ((y[-201] + y[-200]) / 2, y[-200:].mean())}
    steps = 0.4 * unit * torch.linspace(-1, 1, 9, dtype=torch.float64)
    for tail, (v, e) in true.items():
        quantile, mean = (x.flatten() for x in torch.meshgrid(v + steps, e + steps, indexing="ij"))
        q = y.mean().expand(len(mean), 40).clone()  # M = 40: a tail of 4, its quantile half way to the fifth
        outer, inner = (slice(4), 4) if tail == "lower" else (slice(36, 40), 35)
        q[:, outer], q[:, inner] = mean[:, None], 2 * quantile - mean
        score = losses.tail_calibration(q[:, None], y[:, None], *MASS, "elicitable").mean(-1)
        assert score.argmin() == 40  # the middle of the 9 x 9
        assert score.topk(2, largest=False).values.diff() > 1e-5 * unit


@pytest.mark.parametrize("unit, shift", [(10, 0), (1e-3, 0), (1, 50)])
def test_calibration_follows_scale_and_shift(unit, shift):
    """loss(c q + a, c y + a) = c loss(q, y), so that its gradient is the same in every unit."""
    results = []
    for c, a in ((1, 0), (unit, shift)):
        q, y = (c * normal(6, 3, 40).sort(-1).values + a).requires_grad_(), c * normal(6, 1, 7, seed=1) + a
        loss = losses.tail_calibration(q, y, *MASS, "elicitable")
        results.append((loss.detach() / c, torch.autograd.grad(loss.sum(), q)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert results[0][1].abs().max() > 0.01


def test_scale_of_targets():
    y, mask = torch.tensor([[[1.0], [3.0], [math.nan]]]), torch.tensor([[True, True, False]])
    assert losses.return_scale(y, mask).tolist() == [2, 1]
    assert losses.return_scale(10 * y[:, :2]).tolist() == [20, 10]
    for equal in (torch.zeros(3, 4), torch.full((999, 7), 0.1), torch.full((999, 7), -1e6).bfloat16()):
        assert losses.return_scale(equal)[1] == 1
    assert losses.return_scale(torch.tensor([1e-3, -1e-3]).bfloat16())[1].item() == pytest.approx(1e-3, rel=0.01)


def test_the_unit_of_calibration_comes_from_the_reference():
    """Not from the targets that are scored; the whole term follows a change of unit of outputs, targets, reference."""
    z, g, mask, ref = inputs()
    cfg = CriticLossSettings(**dict.fromkeys(ALL, 0.0) | dict(tail_calibration=1.0))

    def term(c: float = 1.0, **keywords) -> torch.Tensor:
        return critic_loss(c * z, c * g, mask, cfg, **keywords)[1]["tail_calibration"]

    own = term(reference=ref)
    torch.testing.assert_close(own, term(scale=losses.return_scale(ref, mask)))
    torch.testing.assert_close(term(), term(scale=losses.return_scale(g, mask)))
    assert (own - term()).abs() > 1e-3
    torch.testing.assert_close(term(10.0, reference=10 * ref), 10 * own)


def test_equal_targets_give_finite_calibration():
    for y in (0.0, 0.1, 1e6):
        q = (y + normal(4, 2, 40).float()).sort(-1).values.requires_grad_()
        loss = losses.tail_calibration(q, torch.full((4, 1, 1), y), *MASS, "elicitable")
        (slope,) = torch.autograd.grad(loss.sum(), q)
        assert loss.isfinite().all() and slope.isfinite().all() and (slope != 0).any()


@pytest.mark.parametrize("tail", ["lower", "upper"])
def test_sample_form_is_biased_towards_the_mean_and_the_elicitable_form_is_not(tail):
    """One outcome a state, N(0, 1): scaling one tail of the true quantiles by s, the elicitable form is least at s = 1,
    the literal one at s = 0."""
    m, scales = 50, torch.linspace(0, 2, 41, dtype=torch.float64)
    q, y = torch.special.ndtri(tau(m)), torch.special.ndtri(tau(2000))
    half = q < 0 if tail == "lower" else q > 0
    least = {}
    for form in ("sample", "elicitable"):
        scores = [
            losses.tail_calibration(torch.where(half, s * q, q).expand(2000, m), y[:, None], *MASS, form).mean()
            for s in scales
        ]
        least[form] = scales[torch.stack(scores).argmin()].item()
    assert least["elicitable"] == pytest.approx(1, abs=0.051)
    assert least["sample"] == 0


def minimiser(outcomes: torch.Tensor, steps: int = 1000, refresh: int = 8, **changes) -> dict[str, float]:
    """Mean and tail means of the free quantiles (M = 20, one state) that minimise core + terms; the ratchet's
    reference is at most `refresh` steps old."""
    start = outcomes.quantile(tau(20))
    z = (start + 0.01 * normal(20)).requires_grad_()
    cfg = CriticLossSettings(**OFF | changes)
    optimizer = torch.optim.Adam([z], lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    heads, mask = (len(outcomes), 1, 1, 20), torch.ones(len(outcomes), 1, dtype=torch.bool)
    for step in range(steps):
        if step % refresh == 0:
            reference = z.detach().sort().values.expand(heads)
        loss, _ = critic_loss(z.expand(heads), outcomes[:, None, None], mask, cfg, reference=reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    q = z.detach().sort().values
    return {"mean": q.mean().item(), "lower": q[:3].mean().item(), "upper": q[-3:].mean().item()}


@pytest.mark.parametrize(
    "terms, moved",
    [
        (dict(tail_calibration=1.0, tail_calibration_form="elicitable"), {}),
        (dict(tail_calibration=1.0, tail_calibration_form="sample"), {"lower": 1, "upper": -1}),
        (dict(mean_shift=1.0), {}),
        (dict(tail_shape=1e-3, tail_curvature=1e-6), {}),  # the default ratchet
        (dict(tail_shape=1.0), {"lower": 1, "upper": 1}),  # a strong one keeps what the optimiser's jitter adds above
        (dict(tail_shape=1.0, shape_reference="sample"), {"lower": 1}),
        (dict(tail_curvature=1e-2, shape_reference="sample"), {"lower": 1}),
        (dict(rho=3.0), {}),
    ],
)
def test_bias_of_the_minimiser(terms, moved):
    """Single outcomes of N(0, 1): which of mean, lower and upper tail mean a term moves (by more than 0.05), and where
    to. What may move as a consequence of a moved tail (the mean) is not asserted."""
    outcomes = torch.special.ndtri(tau(64))
    plain, shaped = minimiser(outcomes), minimiser(outcomes, **terms)
    for name in ("lower", "upper") if moved else ("lower", "upper", "mean"):
        shift = shaped[name] - plain[name]
        assert shift * moved[name] > 0.05 if name in moved else abs(shift) < 0.05, (name, shift)


# ---- the sum ----


def inputs(b=3, t=4, n=2, m=12, k=5):
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)  # padding, prompt, user's turn
    z, g = normal(b, t, n, m), normal(b, t, k, seed=1)
    return z, g, mask, normal(b, t, n, m, seed=2).sort(-1).values


@pytest.mark.parametrize("form", ["sample", "elicitable"])
@pytest.mark.parametrize("reference", ["sample", "previous"])
def test_total_is_core_plus_weighted_terms(form, reference):
    z, g, mask, ref = inputs()
    cfg = CriticLossSettings(tail_calibration_form=form, shape_reference=reference, rho=1.0, kappa=0.1, **ALL)
    total, terms = critic_loss(z, g, mask, cfg, reference=ref)
    assert set(terms) == {"quantile_huber", *TERMS}
    want = terms["quantile_huber"] + sum(ALL[k] * terms[k] for k in TERMS)
    torch.testing.assert_close(total, want)
    q, sample = z[mask].sort(-1).values, g[mask].sort(-1).values[:, None]
    other = ref[mask] if reference == "previous" else sample
    torch.testing.assert_close(
        terms,
        {
            "quantile_huber": losses.quantile_huber(z[mask], sample, 0.1, losses.risk_weights(12, 1.0).double()).mean(),
            "head_consistency": losses.head_consistency(q).mean(),
            "tail_calibration": losses.tail_calibration(q, sample, *MASS, form, losses.return_scale(ref, mask)).mean(),
            "mean_shift": losses.mean_shift(q.mean(-1), sample.mean(-1)),
            "tail_shape": losses.tail_shape(q, other, *MASS).mean(),
            "tail_curvature": losses.tail_curvature(q, other, *MASS).mean(),
        },
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_weight_zero_is_not_computed(term, monkeypatch):
    z, g, mask, ref = inputs()
    monkeypatch.setattr(losses, term, lambda *a, **k: pytest.fail("computed"))
    total, terms = critic_loss(z, g, mask, CriticLossSettings(**ALL | {term: 0}), reference=ref)
    assert set(terms) == {"quantile_huber", *TERMS} - {term}
    with pytest.raises(pytest.fail.Exception):
        critic_loss(z, g, mask, CriticLossSettings(**ALL), reference=ref)


def test_permuting_heads_changes_nothing():
    z, g, mask, ref = inputs(n=3)
    w, order = torch.tensor([[0.0, 1, 2], [3, 1, 0], [1, 1, 1]]).double(), torch.tensor([2, 0, 1])
    cfg = CriticLossSettings(**ALL)
    a = critic_loss(z, g, mask, cfg, reference=ref, response_weights=w)
    b = critic_loss(z[:, :, order], g, mask, cfg, reference=ref[:, :, order], response_weights=w[:, order])
    torch.testing.assert_close(a, b)
    c = critic_loss(z[:, :, order], g, mask, cfg, reference=ref[:, :, order], response_weights=w)
    assert (a[0] - c[0]).abs() > 1e-6  # weights belong to heads


@pytest.mark.parametrize("reference", ["sample", "previous"])
def test_masked_positions_change_no_loss_and_no_gradient(reference):
    """NaN on padding, prompt and user tokens, in outputs, targets and the reference."""
    z, g, mask, ref = inputs()
    results = []
    for poison in (False, True):
        x, y, r = z.clone(), g.clone(), ref.clone()
        if poison:
            x[~mask], y[~mask], r[~mask] = float("nan"), float("nan"), float("nan")
        x.requires_grad_()
        total, terms = critic_loss(x, y, mask, CriticLossSettings(shape_reference=reference, **ALL), reference=r)
        results.append((total.detach(), terms, torch.autograd.grad(total, x)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert (results[1][2][~mask] == 0).all() and (results[1][2][mask] != 0).any()


def test_targets_and_reference_carry_no_gradient():
    z, g, mask, ref = inputs()
    z, g, ref = z.requires_grad_(), g.requires_grad_(), ref.requires_grad_()
    for reference in ("sample", "previous"):
        critic_loss(z, g, mask, CriticLossSettings(shape_reference=reference, **ALL), reference=ref)[0].backward()
    assert g.grad is None and ref.grad is None and z.grad is not None


@pytest.mark.parametrize("reference", ["sample", "previous"])
def test_a_response_of_weight_two_counts_twice(reference):
    """Terms that see data: weights (2, 0, 1) are the mean over responses 0, 0, 2. Each has three tokens here or two."""
    z, g, _, ref = inputs()
    mask, twice = torch.ones(3, 4, dtype=torch.bool), torch.tensor([0, 0, 2])
    cfg = CriticLossSettings(shape_reference=reference, **ALL)
    w = torch.tensor([2.0, 0, 1]).double()[:, None].expand(3, 2)
    _, weighted = critic_loss(z, g, mask, cfg, reference=ref, response_weights=w)
    scale = losses.return_scale(ref, mask)  # weights do not change the unit
    _, repeated = critic_loss(z[twice], g[twice], mask, cfg, reference=ref[twice], scale=scale)
    _, plain = critic_loss(z, g, mask, cfg, reference=ref)
    seen = ["quantile_huber", "tail_calibration", "mean_shift"]
    seen += ["tail_shape", "tail_curvature"] if reference == "sample" else []
    for name in weighted:
        torch.testing.assert_close(weighted[name], (repeated if name in seen else plain)[name])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["sample", "elicitable"])
@pytest.mark.parametrize("reference", ["sample", "previous"])
def test_parts_of_a_batch_add_up_to_the_whole(reference, form, weighted):
    """Parts of one response each, of 3, 3 and 2 tokens. Head 0 is pessimistic in the batch, but not in every part."""
    z, g, mask, ref = inputs()
    z = z - z.mean(-1, keepdim=True) + torch.tensor([[0.0], [0.5]])
    g = g - g.mean(-1, keepdim=True) + torch.tensor([-1.0, 1, 1])[:, None, None]
    w = torch.tensor([[0.0, 1], [3, 0], [1, 2]]).double() if weighted else None
    cfg = CriticLossSettings(shape_reference=reference, tail_calibration_form=form, rho=0.5, **ALL)
    whole = dict(scale=losses.return_scale(ref, mask), batch_gap=losses.mean_gap(z, g, mask, w))
    gaps = [11 / 8, (-3 + 4) / 8 - 0.5 * 7 / 8] if weighted else [2 / 8, 2 / 8 - 0.5]
    assert whole["batch_gap"].tolist() == pytest.approx(gaps)
    z.requires_grad_()

    def slope(rows: slice, **batch) -> torch.Tensor:
        total, _ = critic_loss(
            z[rows],
            g[rows],
            mask[rows],
            cfg,
            reference=ref[rows],
            response_weights=None if w is None else w[rows],
            **batch,
        )
        return torch.autograd.grad(total, z)[0] * mask[rows].sum() / mask.sum()

    want, rows = slope(slice(None)), [slice(i, i + 1) for i in range(3)]
    torch.testing.assert_close(sum(slope(r, **whole) for r in rows), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope(slice(None), **whole), want, rtol=1e-12, atol=1e-12)
    assert (sum(slope(r) for r in rows) - want).abs().max() > 1e-3  # without the batch's statistics they do not


def test_a_head_learns_nothing_from_a_response_of_weight_zero():
    z, g, mask, ref = inputs()
    w = torch.tensor([[0.0, 1], [1, 0], [1, 1]]).double()
    for reference in ("sample", "previous"):
        x = z.clone().requires_grad_()
        cfg = CriticLossSettings(
            shape_reference=reference, **ALL | dict(head_consistency=0, tail_shape=0, tail_curvature=0)
        )
        critic_loss(x, g, mask, cfg, reference=ref, response_weights=w)[0].backward()
        assert (x.grad[0, :, 0] == 0).all() and (x.grad[1, :, 1] == 0).all() and (x.grad[0, 0, 1] != 0).any()


def test_rearranged_and_monotone_heads_agree():
    """On monotone heads the two modes are one; on crossed ones the terms see the sorted, the core the raw heads."""
    z, g, mask, ref = inputs()
    cfg = CriticLossSettings(**ALL)
    sorted_ = z.sort(-1).values
    free, built = (critic_loss(sorted_, g, mask, cfg, reference=ref, crossing=c) for c in ("rearrange", "increments"))
    torch.testing.assert_close(free, built, rtol=0, atol=0)
    _, crossed = critic_loss(z, g, mask, cfg, reference=ref)
    for name in TERMS:
        torch.testing.assert_close(crossed[name], free[1][name])
    assert crossed["quantile_huber"] > free[1]["quantile_huber"] + 1e-3  # rearrangement never hurts


def test_a_missing_reference_is_an_error():
    z, g, mask, _ = inputs()
    with pytest.raises(ValueError, match="need `reference`"):
        critic_loss(z, g, mask, CriticLossSettings(**ALL))
    critic_loss(z, g, mask, CriticLossSettings(**ALL | dict(tail_shape=0, tail_curvature=0)))
    critic_loss(z, g, mask, CriticLossSettings(shape_reference="sample", **ALL))


@pytest.mark.parametrize(
    "bad",
    [
        dict(tail_shape=-1),
        dict(kappa=-0.1),
        dict(mean_shift=math.inf),
        dict(rho=math.nan),
        dict(lower_mass=0.5),
        dict(upper_mass=0),
        dict(tail_calibration_form="both"),
        dict(shape_reference="next"),
        dict(tail_shap=1),
    ],
)
def test_wrong_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CriticLossSettings(**bad)
