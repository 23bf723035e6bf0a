"""Quantile algebra against closed forms, numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dvpo_lib.functional import quantiles as qs

KINDS = [
    dict(kind="mean"),
    dict(kind="cvar", alpha=0.3),
    dict(kind="wang", strength=0.7),
    dict(kind="wang", strength=-0.7),
    dict(kind="cpw", strength=0.29),
    dict(kind="cpw", strength=0.72),
    dict(kind="blend", strength=0.4, beta=0.2),
    dict(kind="blend", strength=-1.0, alpha=0.25),
]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_levels_are_midpoints():
    assert qs.midpoint_levels(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert qs.midpoint_levels(1).item() == 0.5 and qs.midpoint_levels(3, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    "m, mass, count",
    [
        (8, 0.1, 3),
        (50, 0.1, 5),
        (200, 0.1, 20),
        (30, 0.1, 3),
        (31, 0.1, 4),
        (70, 0.1, 7),
        (10, 1.0, 10),
        (2, 0.1, 2),
        (1, 0.1, 1),
        (100, 0.07, 7),
    ],
)
def test_tail_count(m, mass, count):
    assert qs.tail_count(m, mass) == count


@pytest.mark.parametrize("mass", [0, -0.1, 1.1, math.nan])
def test_a_tail_without_mass_is_refused(mass):
    with pytest.raises(ValueError, match="mass"):
        qs.tail_count(10, mass)


def test_monotone_sorts_and_keeps_gradients():
    z = torch.tensor([[3.0, 1, 2]], requires_grad=True)
    q = qs.sort_quantiles(z)
    assert q.tolist() == [[1, 2, 3]]
    (q * torch.tensor([1.0, 10, 100])).sum().backward()
    assert z.grad.tolist() == [[100, 1, 10]]


def test_increments_by_hand():
    """M = 3, softplus(0) = log 2: steps log 2 / 3 around the location."""
    q = qs.quantiles_from_increments(torch.tensor([5.0, 0, 0]))
    step = math.log(2) / 3
    assert q.tolist() == pytest.approx([5 - step, 5, 5 + step])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), seed=st.integers(0, 10**6), size=st.sampled_from([0.1, 3.0, 50.0]))
def test_increments_never_cross_and_have_their_location_as_mean(m, seed, size):
    raw = normal(4, 2, m, seed=seed) * size
    q = qs.quantiles_from_increments(raw)
    assert (q.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(q.mean(-1), raw[..., 0])


def test_ensemble_sorts_each_head_first():
    z = torch.tensor([[[3.0, 1], [5, 7]]])
    assert qs.ensemble_quantiles(z).tolist() == [[3, 5]]
    assert qs.ensemble_quantiles(torch.tensor([[[4.0], [2.0]]])).tolist() == [[3]]
    assert torch.equal(qs.ensemble_quantiles(z.flip(1)), qs.ensemble_quantiles(z))


def test_tail_means():
    q = torch.arange(20.0)[None]
    assert qs.lower_tail_mean(q, 0.1).tolist() == [1] and qs.upper_tail_mean(q, 0.1).tolist() == [18]  # 3 at least
    assert qs.lower_tail_mean(q, 0.25).tolist() == [2] and qs.upper_tail_mean(q, 0.25).tolist() == [17]
    assert qs.lower_tail_mean(q, 1.0).tolist() == qs.upper_tail_mean(q, 1.0).tolist() == [9.5]


def test_tail_means_tend_to_those_of_the_distribution():
    q = torch.special.ndtri(qs.midpoint_levels(2000, dtype=torch.float64))
    exact = stats.norm.pdf(stats.norm.ppf(0.1)) / 0.1
    assert qs.lower_tail_mean(q, 0.1).item() == pytest.approx(-exact, rel=1e-3)
    assert qs.upper_tail_mean(q, 0.1).item() == pytest.approx(exact, rel=1e-3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), seed=st.integers(0, 10**6), level=st.floats(0, 1))
def test_interpolate_is_hazens_quantile(m, seed, level):
    q = normal(3, m, seed=seed).sort(-1).values
    want = np.quantile(q.numpy(), level, axis=-1, method="hazen")
    assert qs.quantile_at_level(q, level).tolist() == pytest.approx(want.tolist(), rel=1e-9, abs=1e-12)
    each = torch.tensor([level, 0.5, 1 - level], dtype=torch.float64)
    want = [np.quantile(row.numpy(), t, method="hazen") for row, t in zip(q, each.tolist())]
    assert qs.quantile_at_level(q, each).tolist() == pytest.approx(want, rel=1e-9, abs=1e-12)


# ---- distortions ----


@pytest.mark.parametrize("m", [1, 8, 51])
@pytest.mark.parametrize("setting", KINDS)
def test_distortion_weights_are_a_distribution(setting, m):
    w = qs.distortion_weights(m=m, dtype=torch.float64, **setting)
    assert w.shape == (m,) and w.sum().item() == pytest.approx(1) and (w >= -1e-12).all()


@pytest.mark.parametrize(
    "neutral",
    [dict(kind="mean"), dict(kind="cvar", alpha=1.0), dict(kind="wang"), dict(kind="cpw"), dict(kind="blend")],
)
def test_neutral_distortions_are_the_mean(neutral):
    assert qs.distortion_weights(m=16, dtype=torch.float64, **neutral).tolist() == pytest.approx([1 / 16] * 16)


def test_cvar_and_blend_by_hand():
    assert qs.distortion_weights("cvar", 4, alpha=0.5).tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert qs.distortion_weights("cvar", 4, alpha=0.375).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    up = qs.distortion_weights("blend", 4, strength=0.5, beta=0.25, alpha=0.9)
    assert up.tolist() == pytest.approx([0.125, 0.125, 0.125, 0.625])
    low = qs.distortion_weights("blend", 4, strength=-0.5, alpha=0.5, beta=0.9)
    assert low.tolist() == pytest.approx([0.375, 0.375, 0.125, 0.125])


def test_wang_shifts_a_normals_mean():
    """The distorted mean of N(0, 1) is -strength, of its mirror image +strength."""
    m = 4000
    q = torch.special.ndtri(qs.midpoint_levels(m, dtype=torch.float64))
    for strength in (0.5, -0.5):
        w = qs.distortion_weights("wang", m, strength=strength, dtype=torch.float64)
        assert (w @ q).item() == pytest.approx(-strength, abs=5e-3)


def test_cpw_by_hand_and_stresses_both_tails():
    k = 0.6
    g = [t**k / (t**k + (1 - t) ** k) ** (1 / k) for t in (0, 0.25, 0.5, 0.75, 1)]
    w = qs.distortion_weights("cpw", 4, strength=0.4, dtype=torch.float64)
    assert w.tolist() == pytest.approx(np.diff(g).tolist())
    assert w[0] > w[1] and w[3] > w[2]


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(kind="cvar", alpha=0.0), "alpha"),
        (dict(kind="cvar", alpha=1.5), "alpha"),
        (dict(kind="cpw", strength=-0.1), "cpw"),
        (dict(kind="cpw", strength=0.8), "cpw"),
        (dict(kind="blend", strength=1.2), "strength"),
        (dict(kind="blend", strength=0.5, beta=0.0), "beta"),
        (dict(kind="entropic"), "unknown distortion 'entropic'"),
    ],
)
def test_wrong_distortions_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        qs.distortion_weights(m=8, **bad)


# ---- scores ----


def test_crps_by_hand():
    """M = 1: the absolute error. M = 2 at (0, 2), outcome 1: 2 * mean(1/4, 1/4)."""
    assert qs.crps(torch.tensor([[3.0]]), torch.tensor([1.0])).tolist() == [2]
    assert qs.crps(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0])).tolist() == [0.5]


@pytest.mark.parametrize("y", [-2.0, 0.0, 0.7])
def test_crps_tends_to_the_normals_closed_form(y):
    q = torch.special.ndtri(qs.midpoint_levels(4000, dtype=torch.float64))
    exact = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert qs.crps(q, torch.tensor(y, dtype=torch.float64)).item() == pytest.approx(exact, abs=1e-3)


def test_crps_is_proper():
    y, q = normal(20_000), torch.special.ndtri(qs.midpoint_levels(50, dtype=torch.float64))
    scores = {
        name: qs.crps(x.expand(len(y), 50), y).mean()
        for name, x in (("true", q), ("narrow", q / 2), ("wide", q * 2), ("shifted", q + 0.5))
    }
    assert min(scores, key=scores.get) == "true"


def test_pit_is_uniform_where_calibrated_and_only_there():
    q, generator = torch.special.ndtri(qs.midpoint_levels(200, dtype=torch.float64)), torch.Generator().manual_seed(0)
    y = normal(5000, seed=1)
    p = {
        s: stats.kstest(qs.pit((q * s).expand(5000, 200), y, generator).numpy(), "uniform").pvalue
        for s in (1.0, 0.7, 1.4)
    }
    assert p[1.0] > 0.05 and p[0.7] < 1e-6 and p[1.4] < 1e-6


def test_pit_fills_the_jumps_of_discrete_outcomes():
    """Bernoulli(0.3) predicted exactly: uniform, also where predictions miss the atoms by less than the tolerance."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(5000, generator=generator, dtype=torch.float64) < 0.3).double()
    q = (qs.midpoint_levels(200, dtype=torch.float64) > 0.7).double()
    for jitter, tolerance, uniform in ((0.0, 0.0, True), (0.01, 0.05, True), (0.01, 0.0, False)):
        u = qs.pit((q + jitter).expand(5000, 200), y, generator, tolerance)
        assert bool(stats.kstest(u.numpy(), "uniform").pvalue > 0.01) is uniform
        assert (u >= 0).all() and (u <= 1).all()
