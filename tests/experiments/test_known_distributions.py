"""What each formula does where the truth is known: signs of the biases, closed forms, widths of targets, read-outs."""

import importlib
import json
import math
import re
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import ROOT

from dvpo_lib.experiments.known_distributions import (
    bias_tables,
    distributions,
    estimators,
    kappa_bias,
    ratchet_drift,
    stored_curves,
    term_bias,
)
from dvpo_lib.experiments.run_store import execute_once, spec_key
from dvpo_lib.experiments.run_store.executors import SweepSettings
from dvpo_lib.functional import advantages, quantiles
from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.critic_losses import CriticLossSettings, critic_loss, return_scale
from dvpo_lib.functional.quantiles import midpoint_levels


@pytest.fixture(scope="module")
def bias(shared_store):
    """The table of the notebook, by distribution, term, form and strength ("default" or "strong")."""
    cases = term_bias.bias_cases()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVPO_STORE", str(shared_store))  # the smoke chain needs the same minimisers
        minimisers = stored_curves.stored_minimisers(SweepSettings(workers=1))
    _, frame = bias_tables.bias_frames(minimisers, cases)
    first = ~frame.duplicated(["distribution", "term", "form"])
    frame["strength"] = first.map({True: "default", False: "strong"})
    return frame.set_index(["distribution", "term", "form", "strength"]).sort_index()


SPIKES, GAUSS, COIN = distributions.SHOWN_DISTRIBUTION, "Gaussian N(0, 1)", "Bernoulli(0.2)"
BOTH = ("default", "strong")


def test_distributions_are_what_they_say():
    exact = {name: f(100_000) for name, f in distributions.DISTRIBUTIONS.items()}
    assert exact[COIN].mean().item() == pytest.approx(0.2)
    assert exact[GAUSS].std().item() == pytest.approx(1, abs=1e-3)
    assert exact[SPIKES].mean().item() == pytest.approx(0.8 * 0.5, abs=1e-6)
    assert exact[SPIKES].var().item() == pytest.approx(0.8 * 0.5 + 0.2 * 25 - 0.4**2, rel=1e-3)
    assert (exact[SPIKES] == 1).double().mean().item() == pytest.approx(0.4, abs=1e-4)
    assert all((z.diff() >= 0).all() for z in exact.values())


@pytest.mark.parametrize("key", [k for k in term_bias.TERM_FORMS if "batches" not in k[1]])
def test_forms_are_the_terms_of_the_critic_loss(key):
    """What is minimised equals `critic_loss` on a batch of points, or its mean over batches of one point."""
    term, form = key
    z = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    g, before = distributions.DISTRIBUTIONS[SPIKES](101), z.sort(-1).values * 0.7
    ours = term_bias.bias_core_loss(z[None, None], g[None]) + 0.5 ** (term != "risk_weight") * term_bias.TERM_FORMS[
        key
    ](z[None, None], g[None], before[None])
    off = dict(head_consistency=0, tail_calibration=0, mean_shift=0, tail_shape=0, tail_curvature=0)
    if term == "risk_weight":
        settings = CriticLossSettings(**off, rho=term_bias.SHOWN_RHO)
    else:
        reference = "sample" if form == "sample" else "previous"
        calibration = form if term == "tail_calibration" else "sample"
        settings = CriticLossSettings(
            **(off | {term: 0.5}), shape_reference=reference, tail_calibration_form=calibration
        )
    totals = []
    for batch in g.split(1 if form == "per sample" else len(g)):
        shape = (len(batch), 1, *z.shape)
        totals.append(
            critic_loss(
                z.expand(shape),
                batch[:, None, None],
                torch.ones(len(batch), 1, dtype=torch.bool),
                settings,
                reference=before.expand(shape),
                scale=return_scale(g),
            )[0].item()
        )
    assert ours.item() == pytest.approx(sum(totals) / len(totals), rel=1e-9)


def test_core_finds_the_truth_but_for_what_its_quantiles_cannot_show(bias):
    core = bias.xs("core", level="term")
    assert core["mean_error"].abs().max() < 2e-3
    assert (core["lower_error"] > -1e-3).all() and (core["upper_error"] < 1e-3).all()  # the extremes are not seen


@pytest.mark.parametrize(
    ("term", "form"),
    [
        ("risk_weight", f"rho = {term_bias.SHOWN_RHO:g}"),
        ("head_consistency", ""),
        ("mean_shift", "all data"),
        ("tail_shape", "previous, from the truth"),
        ("tail_curvature", "previous, from the truth"),
    ],
)
def test_terms_that_move_no_free_minimiser(bias, term, form):
    rows = bias.xs((term, form), level=("term", "form"))
    assert rows[["mean_change", "lower_change", "upper_change"]].abs().max().max() < 0.02


@pytest.mark.parametrize("strength", BOTH)
def test_literal_tail_calibration_shrinks_both_tails_and_the_elicitable_form_corrects_them(bias, strength):
    for name in (GAUSS, SPIKES):
        literal, proper = (bias.loc[name, "tail_calibration", form, strength] for form in ("sample", "elicitable"))
        core = bias.loc[name, "core", "", "default"]
        half = 0.5 * (core["upper"] - core["lower"])
        assert literal["lower_change"] > 0.6 * half and literal["upper_change"] < -0.6 * half
        assert abs(proper["lower_error"]) < abs(core["lower_error"])
        assert abs(proper["upper_error"]) < abs(core["upper_error"])
        assert abs(proper["mean_change"]) < 1e-3 * half  # two corrected tails need not balance
    assert bias.loc[COIN, "tail_calibration", "sample", strength]["mean_change"] < -0.05  # rare successes are cut away
    proper = bias.loc[COIN, "tail_calibration", "elicitable", strength]
    assert abs(proper["mean_change"]) < 2e-3 and abs(proper["upper_change"]) < 2e-3


def test_mean_shift_raises_the_mean_the_more_the_smaller_its_batches(bias):
    for name in (GAUSS, SPIKES):
        for strength in BOTH:
            all_data, batches, single = (
                bias.loc[name, "mean_shift", form, strength]["mean_change"]
                for form in ("all data", f"batches of {term_bias.FINITE_BATCH}", "per sample")
            )
            assert abs(all_data) < 2e-3 < batches < single
    # per sample, towards the largest reward: w E[(G - mean)+] = 1 / (2M), where the topmost quantile gives way
    weight = 10 * distributions.DEFAULT_LOSS.mean_shift
    wanted = 1 - 1 / (2 * distributions.QUANTILE_COUNT * weight * 0.2)
    assert bias.loc[COIN, "mean_shift", "per sample", "strong"]["mean"] == pytest.approx(wanted, abs=0.02)


def test_mean_shift_on_all_data_lifts_a_pessimistic_critic_only():
    """The gradient at a mean that is too low and at one that is too high."""
    g = distributions.DISTRIBUTIONS[GAUSS](1000)[None]
    for shift, sign in ((-0.5, -1), (0.5, 0)):
        q = (distributions.DISTRIBUTIONS[GAUSS](20) + shift)[None, None, None].requires_grad_()
        [slope] = torch.autograd.grad(term_bias.TERM_FORMS["mean_shift", "all data"](q, g, q).sum(), q)
        assert (slope.sign() == sign).all()


@pytest.mark.parametrize("strength", BOTH)
def test_tail_shape_is_a_ratchet_that_lets_the_lower_tail_contract_and_keeps_the_upper_one(bias, strength):
    for name in (GAUSS, SPIKES):
        narrow, wide = (bias.loc[name, "tail_shape", f"previous, from too {s}", strength] for s in ("narrow", "wide"))
        assert narrow["lower_change"] > 0.02 and abs(narrow["upper_change"]) < 0.02  # it may grow above, not below
        assert wide["upper_change"] > 0.02 and abs(wide["lower_change"]) < 0.02  # it may shrink below, not above
        literal = bias.loc[name, "tail_shape", "sample", strength]
        assert literal["lower_change"] > 0.02 and abs(literal["upper_change"]) < 0.02
        assert narrow["mean_change"] > 0 and wide["mean_change"] > 0 and literal["mean_change"] > 0


def test_tail_curvature_acts_as_tail_shape_does_only_less(bias):
    for name in (GAUSS, SPIKES):
        narrow, wide = (
            bias.loc[name, "tail_curvature", f"previous, from too {s}", "default"] for s in ("narrow", "wide")
        )
        assert narrow["lower_change"] > 0.01 and wide["upper_change"] > 0.01
        assert abs(narrow["upper_change"]) < 0.02 and abs(wide["lower_change"]) < 0.02


def test_table_and_sentences_follow_the_numbers(bias):
    frame = bias.reset_index().drop(columns="strength")
    order = [(t, f) for c in term_bias.bias_cases() for t, f in (c or {("core", ""): 0})]
    frame["order"] = [order.index(k) for k in zip(frame["term"], frame["form"])]
    frame = frame.sort_values(["order", "weight"])
    text = bias_tables.bias_findings(frame)
    assert "**tail calibration, sample** (weight 0.03) raises the mean" in text
    assert "pulls the lower tail up (-3.8" in text and "pulls the upper tail down (3.9" in text
    assert re.search(r"No bias to speak of: .*\*tail calibration, elicitable\*", text)
    table = bias_tables.bias_table(frame)
    assert table.loc[0, "term"] == "core" and table.loc[0, COIN] == "+0.00 / +0.00 / +0.00"
    assert "-0.00" not in table.to_string()
    tree = bias_tables.bias_metrics(frame)
    assert tree[COIN]["tail_calibration"]["sample"]["upper"] < -0.4
    assert set(tree[COIN]["core"]) == {"mean", "lower", "upper"}


# ---- what the notebook derives and no other test shows ----


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_midpoint_levels_are_closest_in_wasserstein_distance():
    """The exponential's M = 7: integral of |F^-1(u) - q| on each number's interval, against nearby numbers."""
    m, u = 7, midpoint_levels(70_000, dtype=torch.float64)
    exact, q = -torch.log1p(-u).view(m, -1), -torch.log1p(-midpoint_levels(m, dtype=torch.float64))
    distance = [(exact - (q + shift)[:, None]).abs().mean(1) for shift in (-0.01, 0.0, 0.01)]
    assert (distance[1] < distance[0]).all() and (distance[1] < distance[2]).all()


def test_slope_of_the_core_is_the_distribution_function_minus_the_level():
    q, g = normal(9).requires_grad_(), normal(50, seed=1)
    [slope] = torch.autograd.grad(losses.quantile_huber(q, g), q)
    below = (g < q.detach()[:, None]).double().mean(1)
    torch.testing.assert_close(9 * slope, below - midpoint_levels(9, dtype=torch.float64))
    singles = losses.quantile_huber(q.expand(50, 9), g[:, None]).mean()  # sample by sample: the same expectation
    torch.testing.assert_close(torch.autograd.grad(singles, q)[0], slope)


def test_head_consistency_is_the_variance_of_heads_and_leaves_the_ensemble_alone():
    q, aim = normal(20_000, 4, 6).requires_grad_(), normal(6, seed=1)
    term = losses.head_consistency(q)
    [slope] = torch.autograd.grad(term.sum(), q)
    centre = q.mean(1, keepdim=True)
    torch.testing.assert_close(slope, 2 * (q - centre).detach() / (4 * 6))
    assert slope.sum(1).abs().max() < 1e-12
    together = ((q - aim) ** 2).mean((1, 2))
    torch.testing.assert_close(together, ((centre[:, 0] - aim) ** 2).mean(1) + term)
    assert term.mean().item() == pytest.approx(3 / 4, rel=0.01)  # of the heads' variance 1


def test_tail_means_of_samples_are_biased_inwards():
    """Halves of K draws of N(0, 1): E[lower mean] > -2 phi(0) = -0.798, the less so the larger K is."""
    truth, before = -2 / (2 * torch.pi) ** 0.5, 0.0
    for k in (8, 32, 128):
        y = normal(4000, k).sort(-1).values
        low, up = quantiles.lower_tail_mean(y, 0.5).mean().item(), quantiles.upper_tail_mean(y, 0.5).mean().item()
        assert truth + 0.001 < low < before and up == pytest.approx(-low, abs=0.02)
        before = low


def test_elicitable_score_finds_the_quantile_first():
    """Its slope in v has the sign of F(v) - alpha whatever e is; its slope in e vanishes at the tail mean below v."""
    y, mass = distributions.DISTRIBUTIONS[GAUSS](20_000), 0.1
    v_true, e_true = y[:2000].max().item(), y[:2000].mean().item()
    for e in (-5.0, e_true, 0.0, 3.0):
        for shift in (-0.1, 0.1):
            v = torch.tensor(v_true + shift, dtype=torch.float64, requires_grad=True)
            [slope] = torch.autograd.grad(losses._fissler_ziegel(v, torch.tensor(e).double(), y, mass), v)
            assert slope * shift > 0
    for shift in (-0.1, 0.0, 0.1):
        e = torch.tensor(e_true + shift, dtype=torch.float64, requires_grad=True)
        [slope] = torch.autograd.grad(losses._fissler_ziegel(torch.tensor(v_true).double(), e, y, mass), e)
        assert slope * shift > 0 if shift else slope.abs() < 1e-6


@pytest.mark.parametrize("n", [16, 64, 256])
def test_mean_shift_pushes_upwards_at_the_truth_on_finite_batches(n):
    """Batches of n outcomes N(0, 1) against a critic whose mean is 0: the slope is -1 / sqrt(2 pi n)."""
    m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    batches = normal(n, 20_000)  # in the place of heads
    [slope] = torch.autograd.grad(losses.mean_shift(m.expand(n, 20_000), batches), m)
    assert slope.item() == pytest.approx(-1 / (2 * torch.pi * n) ** 0.5, rel=0.03)


def test_mean_shift_raises_every_level_alike(bias):
    """Its minimiser on batches is F^-1(tau + w b), with b = E relu(batch mean - mean) found by iteration."""
    row = bias.loc[GAUSS, "mean_shift", f"batches of {term_bias.FINITE_BATCH}", "default"]
    gap = torch.special.ndtri(midpoint_levels(20_000, dtype=torch.float64)) / term_bias.FINITE_BATCH**0.5
    tau, mean = midpoint_levels(distributions.QUANTILE_COUNT, dtype=torch.float64), 0.0
    for _ in range(50):
        b = (gap - mean).clamp(min=0).mean()
        mean = torch.special.ndtri(tau + distributions.DEFAULT_LOSS.mean_shift * b).mean().item()
    assert mean > 3e-3 and row["mean"] == pytest.approx(mean, rel=0.1)


def test_a_point_as_reference_bounds_the_lower_tail_only():
    q = normal(30).sort().values.requires_grad_()
    loss = losses.tail_shape(q, q.new_zeros(1), *distributions.TAIL_MASSES)
    [slope] = torch.autograd.grad(loss, q)
    assert loss.item() == pytest.approx(q[:3].var(correction=0).item())
    torch.testing.assert_close(slope[:3], (2 * (q[:3] - q[:3].mean()) / 3).detach())
    assert (slope[3:] == 0).all()


def test_mean_curvature_telescopes_and_the_term_does_not():
    """A bump by c inside a tail of k = 5 of 50 leaves the mean of d_j alone, and costs M^2 * 2 |c| / 3, up or down."""
    line = midpoint_levels(50, dtype=torch.float64)
    for side in (2, -3):
        for bump in (1e-3, -1e-3):
            q = line.clone()
            q[side] += bump
            tail = q[:5] if side > 0 else q[-5:]
            assert tail.diff(n=2).mean().abs() < 1e-12
            assert tail.diff(n=2).mean().item() == pytest.approx(
                (((tail[4] - tail[3]) - (tail[1] - tail[0])) / 3).item(), abs=1e-12
            )
            assert losses.tail_curvature(q, line, *distributions.TAIL_MASSES).item() == pytest.approx(2500 * 2e-3 / 3)


def test_mixture_targets_have_the_variance_of_a_mixture():
    """One response of four tokens: horizon n has weight w_n, mean mu_n, deviation s_n (0 for Monte Carlo). The mixture
    has variance sum w s^2 + sum w (mu - mean)^2 and exceeds comonotone by the variances of s and mu at least."""
    r, z, lam, draws = normal(1, 4), normal(1, 4, 40, seed=1).sort(-1).values, 0.6, 20_000
    mask = torch.ones(1, 4, dtype=torch.bool)
    ahead = torch.cat([z[0, 1:], z.new_zeros(1, 40)]) + r[0].cumsum(0)[:, None]  # (horizon, 40)
    w = torch.tensor([0.4, 0.24, 0.144, 0.216], dtype=torch.float64)
    mu, s = ahead.mean(1), ahead.std(1, correction=0)

    def over_horizons(x):
        return (w * (x - w @ x) ** 2).sum()

    narrow = advantages.quantile_targets(r, z, mask, 1.0, lam)[0, 0]
    many = [x.expand(draws, *x.shape[1:]) for x in (r, z, mask)]
    uniforms = torch.rand(many[1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = advantages.quantile_targets(*many, 1.0, lam, "mixture", uniforms)[:, 0]
    assert narrow.mean().item() == pytest.approx((w @ mu).item()) == pytest.approx(wide.mean().item(), abs=0.01)
    variance = w @ s**2 + over_horizons(mu)
    assert wide.var().item() == pytest.approx(variance.item(), rel=0.01)
    assert narrow.var(correction=0) <= (w @ s) ** 2 + 1e-12
    assert variance - narrow.var(correction=0) >= over_horizons(s) + over_horizons(mu) - 1e-12


def test_winsorised_advantages_are_centred_and_bounded():
    """Rewards that are the critic's own quantiles give advantages of mean 0; none exceeds the width of the band."""
    z, mask = normal(40).sort().values, torch.ones(42, 1, dtype=torch.bool)
    r = torch.cat([z, torch.tensor([-1e3, 1e3])])[:, None]
    readout = advantages.ReadoutSettings(kind="winsorised", level_low=0.05, level_up=0.2)
    a = advantages.actor_advantages(r, z.expand(42, 1, 40), mask, 1.0, 1.0, readout)[:, 0]
    assert abs(a[:40].mean()) < 1e-12
    width = quantiles.quantile_at_level(z, 0.8) - quantiles.quantile_at_level(z, 0.05)
    assert a.abs().max() <= width and a[41] - a[40] == pytest.approx(width.item())


def test_spikes_shrink_every_whitened_advantage():
    spikes = estimators.spike_shrinkage()
    assert spikes["whitened"].to_numpy() == pytest.approx(spikes["formula"].to_numpy(), rel=0.05)
    last = spikes.iloc[-1]
    assert last["whitened"] == pytest.approx(1 / (last["scale"] * last["share of spikes"] ** 0.5), rel=0.06)
    assert last["groups"] > 3 * last["whitened"]
    assert "leaves 6\N{NO-BREAK SPACE}% of the distance" in estimators.spike_findings(spikes)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_no_reward_exceeds_the_bound_of_its_group(n):
    bound = (n - 1) / n**0.5
    heavy = normal(1000, n) / normal(1000, n, seed=1)  # Cauchy
    assert advantages.group_advantages(heavy.flatten(), n).abs().max() <= bound
    spike = torch.tensor([1e9] + [0.0] * (n - 1), dtype=torch.float64)
    assert advantages.group_advantages(spike, n).tolist() == pytest.approx([bound] + [-1 / n**0.5] * (n - 1))


# ---- kappa ----


@pytest.mark.parametrize("p", [0.2, 0.05, 0.7, 1e-4])
def test_expectile_readout_in_closed_form(p):
    """The integral of tau p / (tau p + (1 - tau)(1 - p)); for small p nearly p (log(1 / p) - 1)."""
    integral = p / (2 * p - 1) ** 2 * (2 * p - 1 - (1 - p) * math.log(p / (1 - p)))
    q = kappa_bias.kappa_closed_form(p, 1.0, midpoint_levels(10**6, dtype=torch.float64))
    assert q.mean().item() == pytest.approx(integral, rel=1e-4)
    if p < 1e-3:
        assert integral == pytest.approx(p * (math.log(1 / p) - 1), rel=1e-3)
    assert kappa_bias.kappa_closed_form(0.5, 1.0, midpoint_levels(200)).mean().item() == pytest.approx(0.5)


def test_kappa_one_learns_expectiles_and_kappa_zero_quantiles():
    curves, table = kappa_bias.kappa_readouts()
    table = table.set_index(["p", "kappa"])
    assert table["found"].to_numpy() == pytest.approx(table["closed"].to_numpy(), abs=1e-9)
    assert table.loc[(0.2, 1.0), "found"] == pytest.approx(0.282, abs=1e-3)
    assert table.loc[(0.05, 1.0), "found"] == pytest.approx(0.117, abs=1e-3)
    tau = midpoint_levels(200, dtype=torch.float64)  # the expectiles by hand
    assert table.loc[(0.2, 1.0), "closed"] == pytest.approx((tau * 0.2 / (tau * 0.2 + (1 - tau) * 0.8)).mean().item())
    for p in (0.2, 0.05):
        assert table.loc[(p, 0.0), "found"] == pytest.approx(p, abs=1e-9)
        assert table.loc[p, "found"].is_monotonic_increasing
    text = kappa_bias.kappa_findings(table.reset_index())
    assert "p = 0.05 it is 0.050 at kappa = 0 and 0.117 at kappa = 1, off by 134\N{NO-BREAK SPACE}%" in text
    assert set(curves.columns) == {"p", "kappa", "level", "value", "truth"}


# ---- advantages and read-outs ----


def test_mean_of_distributional_gae_is_scalar_gae():
    identity = estimators.gae_identity().groupby("precision")["difference"].max()
    assert identity["float64"] < 1e-13 and identity["float32"] < 1e-5
    assert "in float32" in estimators.identity_findings(estimators.gae_identity())


def test_comonotone_targets_are_too_narrow_and_mixtures_are_not():
    widths = estimators.walk_quantiles((0.0, 0.3, 0.7, 1.0))
    std = widths.groupby(["kind", "lambda"])["value"].std(ddof=0)
    mean = widths.groupby(["kind", "lambda"])["value"].mean()
    assert std["true", 0.0] == pytest.approx((5 + 1) ** 0.5, rel=0.02)  # five steps of variance 1 and a noise of 1
    for lam in (0.3, 0.7):
        assert std["comonotone", lam] < 0.9 * std["true", lam]
        assert std["mixture", lam] == pytest.approx(std["true", lam], rel=0.03)
        assert abs(mean["comonotone", lam]) < 0.05 and abs(mean["mixture", lam]) < 0.05
    assert std["comonotone", 1.0] == std["mixture", 1.0] == std["true", 1.0]
    assert std["comonotone", 0.0] == std["mixture", 0.0]
    assert re.search(r"\*comonotone\* targets its width is off by up to -2\d %", estimators.walk_findings(widths))


def test_readouts_of_the_notebook():
    curves, table = estimators.readout_weights()
    assert curves.groupby("readout")["weight"].mean().to_numpy() == pytest.approx(1.0)
    table = table.set_index("readout")[GAUSS]
    assert table["CVaR, 25 %"] < table["Wang, 0.5"] < table["mean"] < table["Wang, -0.5"] < table["blend, 0.5"]
    band = estimators.winsorised_rewards()
    for level, own in band.groupby("level"):
        z = distributions.DISTRIBUTIONS[SPIKES](200)
        low, up = (
            (own["reward"].min(), own["reward"].max())
            if level == 0
            else (quantiles.quantile_at_level(z, level).item(), quantiles.quantile_at_level(z, 1 - level).item())
        )
        assert own["used"].to_numpy() == pytest.approx(own["reward"].clip(low, up).to_numpy())


def test_sliders_show_the_bias_that_the_table_shows():
    frame, sentence = bias_tables.learned_curve(
        0.0, {("tail_calibration", "sample"): 0.1, ("tail_shape", "sample"): 0.0}
    )
    assert frame["value"].min() > -0.5 and frame["truth"].min() < -5 and "lower tail -" in sentence
    plain, _ = bias_tables.learned_curve(0.0, {})
    assert (plain["value"] - plain["truth"]).abs().mean() < 0.1


def test_every_function_that_the_notebook_names_exists():
    cells = json.loads((ROOT / "notebooks/00_method.ipynb").read_text())["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    names = re.findall(r"`(\w+)\.(\w+)`", text)
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(f"dvpo_lib.functional.{module}"), name)


def test_every_test_that_the_notebook_names_exists():
    cells = json.loads((ROOT / "notebooks/00_method.ipynb").read_text())["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) > 20
    assert [name for name in names if f"def {name}(" not in code] == []


def test_the_ratchet_drifts_upwards_with_its_weight_and_the_core_does_not():
    runs = ratchet_drift.measure_drift(["Gaussian N(0, 1)"], steps=800, seeds=3, strengths=(1.0, 10.0))
    upper = runs.groupby(["term", "weight"])["upper"].mean()
    truth = runs["upper_truth"].iloc[0]
    assert abs(upper["core", 0.0] - truth) < 0.05
    for term in ratchet_drift.RATCHET_TERMS:
        light, heavy = upper[term].sort_index()
        assert truth + 0.05 < light < heavy
    assert "moves the upper tail by +" in ratchet_drift.drift_findings(runs)
    table = ratchet_drift.drift_table(runs)
    assert len(table) == 5 and "truth 1.73" in " ".join(table.columns)


def test_stored_curves_are_those_of_one_call(tmp_path, monkeypatch):
    monkeypatch.setenv("DVPO_STORE", str(tmp_path))
    monkeypatch.setattr(stored_curves, "bias_cases", lambda: [{}, {("head_consistency", ""): 0.1}])
    monkeypatch.setattr(stored_curves, "find_minimisers", partial(term_bias.find_minimisers, steps=20))
    monkeypatch.setattr(stored_curves, "measure_drift", partial(ratchet_drift.measure_drift, steps=8, seeds=2))
    monkeypatch.setattr(stored_curves, "execute_specs", lambda specs, *_: [run_here(s, tmp_path) for s in specs])
    found = stored_curves.stored_minimisers(None)
    expected = term_bias.find_minimisers(stored_curves.bias_cases(), steps=20)
    torch.testing.assert_close(found, expected)
    drift = stored_curves.stored_drift(None, batch=16, refresh=4)
    whole = ratchet_drift.measure_drift(steps=8, seeds=2, batch=16, refresh=4)
    pd.testing.assert_frame_equal(drift, whole, check_exact=False)


def run_here(spec, root):
    """Executes a spec in this process."""
    execute_once(spec, spec_key(spec), root)
    return root / spec_key(spec)
