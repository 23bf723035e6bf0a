"""Advantages and targets: a float64 double loop as oracle, hand-derived numbers, limits, masks, statistics."""

import math

import pytest
import torch
from conftest import run_settings, scored_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dvpo_lib.functional import advantages as adv
from dvpo_lib.functional.advantages import ReadoutSettings, generalised_advantages, quantile_targets
from dvpo_lib.functional.quantiles import midpoint_levels, quantile_at_level

few = settings(max_examples=40, deadline=None, derandomize=True)
NAN = float("nan")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape, seed=0, p=0.6):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < p


def gae_loop(rewards, values, mask, gamma, lam):
    """One token after the other, from the end, over real tokens only; values (B, T, M)."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for b in range(len(mask)):
        for j in range(values.shape[2]):
            a, v = 0.0, 0.0
            for t in reversed(mask[b].nonzero().flatten().tolist()):
                now = values[b, t, j].item()
                a = rewards[b, t].item() + gamma * v - now + gamma * float(lam[b]) * a
                v = now
                advantages[b, t, j], returns[b, t, j] = a, a + now
    return advantages, returns


# ---- GAE ----


def test_gae_by_hand():
    """gamma 1/2, lambda 1/2. Last: 4 - 2 = 2. First: 1 + 1/2 * 2 - 3 + 1/4 * 2 = -1/2. NaN where the user speaks."""
    r, v = torch.tensor([[1.0, NAN, 4, NAN]]), torch.tensor([[3.0, NAN, 2, NAN]])
    a, g = generalised_advantages(r, v, torch.tensor([[True, False, True, False]]), 0.5, 0.5)
    assert a.tolist() == [[-0.5, 0, 2, 0]] and g.tolist() == [[2.5, 0, 4, 0]]


@few
@given(
    b=st.integers(1, 4),
    t=st.integers(1, 11),
    m=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    gamma=st.sampled_from([1.0, 0.9, 0.3]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    rowwise=st.booleans(),
    kind=st.sampled_from(["any", "left", "right", "none"]),
)
def test_gae_equals_the_double_loop(b, t, m, seed, gamma, lam, rowwise, kind):
    """Any pattern of holes, padding on either side, rows without a token; scalar values and quantiles."""
    r, v = normal(b, t, seed=seed), normal(b, t, max(m, 1), seed=seed + 1)
    mask = random_mask(b, t, seed=seed)
    if kind != "any":
        mask = {
            "left": mask.sort(1).values,
            "right": mask.sort(1, descending=True).values,
            "none": mask & (torch.arange(b) > 0)[:, None],
        }[kind]
    lams = torch.linspace(lam, 1, b, dtype=torch.float64) if rowwise else torch.full((b,), lam, dtype=torch.float64)
    want = gae_loop(r, v, mask, gamma, lams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adv, "CHUNK_TOKENS", 4)
        a, g = generalised_advantages(r, v if m else v[..., 0], mask, gamma, lams if rowwise else lam)
    if m == 0:
        want = tuple(x[..., 0] for x in want)
    torch.testing.assert_close((a, g), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("discount", [0.0, 0.97, 1.0, torch.tensor([0.5, 0.999], dtype=torch.float64)])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200])
def test_discounted_sum_across_chunks(length, discount):
    for x in (normal(2, length), normal(2, length, 3)):
        y, after = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        d = torch.as_tensor(discount, dtype=torch.float64).expand(2).view(2, *[1] * (x.dim() - 2))
        for t in reversed(range(length)):
            y[:, t] = after = x[:, t] + d * after
        torch.testing.assert_close(adv.discounted_sum(x, discount), y, rtol=1e-10, atol=1e-10)


class Calls(TorchDispatchMode):
    """Counts operations, matrix products apart."""

    products = others = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in (".mm.", ".bmm.", "baddbmm")):
            self.products += 1
        else:
            self.others += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantiles", [(), (5,)])
@pytest.mark.parametrize("holes", [False, True])
def test_gae_loops_over_chunks_not_over_tokens(quantiles, holes):
    length = 1000
    mask = random_mask(2, length) if holes else torch.ones(2, length, dtype=torch.bool)
    with Calls() as calls:
        generalised_advantages(normal(2, length), normal(2, length, *quantiles), mask)
    chunks = math.ceil(length / adv.CHUNK_TOKENS)
    assert 0 < calls.products <= chunks
    assert calls.others < 60 + 15 * chunks < length


def test_mean_of_distributional_gae_is_gae_of_the_mean():
    r, z, mask = normal(4, 9), normal(4, 9, 7, seed=1), random_mask(4, 9)
    for part, scalar in zip(
        generalised_advantages(r, z, mask, 0.9, 0.7), generalised_advantages(r, z.mean(-1), mask, 0.9, 0.7)
    ):
        torch.testing.assert_close(part.mean(-1), scalar, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lam", [0.6, torch.tensor([0.6, 0.9], dtype=torch.float64)])
def test_segments_equal_deletion_of_the_tokens_between(lam):
    """Turns of the policy with user tokens between them: as if the user's tokens were not there."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 0, 1, 0, 0]], dtype=torch.bool)
    r, z = normal(2, 8), normal(2, 8, 3, seed=1)
    a, g = generalised_advantages(r, z, mask, 0.9, lam)
    rows = [(r[i][mask[i]], z[i][mask[i]]) for i in range(2)]
    short_r, short_z = (torch.stack(x) for x in zip(*rows))
    short = generalised_advantages(short_r, short_z, torch.ones(2, 4, dtype=torch.bool), 0.9, lam)
    torch.testing.assert_close((a[mask].view(2, 4, 3), g[mask].view(2, 4, 3)), short, rtol=1e-12, atol=1e-12)
    assert (a[~mask] == 0).all() and (g[~mask] == 0).all()
    to_go, power = adv.returns_to_go(r, mask, 0.9)[mask].view(2, 4), 0.9 ** torch.arange(4, dtype=torch.float64)
    want = torch.stack([(short_r[:, t:] * power[: 4 - t]).sum(1) for t in range(4)], 1)
    torch.testing.assert_close(to_go, want)


def test_misfits_are_refused():
    for shapes in (((2, 3), (2, 4)), ((2, 4), (2, 3)), ((2, 3), (2, 3, 2, 2))):
        with pytest.raises(ValueError, match="rewards"):
            generalised_advantages(normal(*shapes[0]), normal(*shapes[1]), torch.ones(2, 3, dtype=torch.bool))


READOUTS = [
    dict(kind="mean"),
    dict(kind="distorted", distortion="cvar", alpha=0.3),
    dict(kind="winsorised"),
    dict(kind="winsorised", level_low=0.0),
]


@pytest.mark.parametrize("readout", READOUTS)
def test_masked_positions_change_no_result_and_no_gradient(readout):
    """NaN in rewards and values at padding, prompt and user positions."""
    r, z = normal(3, 6), normal(3, 6, 8, seed=1).sort(-1).values
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    results = []
    for poison in (False, True):
        x, y = r.clone(), z.clone()
        if poison:
            x[~mask], y[~mask] = NAN, NAN
        x, y = x.requires_grad_(), y.requires_grad_()
        a = adv.actor_advantages(x, y, mask, 0.9, 0.8, ReadoutSettings(**readout))
        targets = [
            quantile_targets(x, y, mask, 0.9, lam, kind, uniforms(y))
            for lam in (0.0, 0.7, 1.0)
            for kind in ("comonotone", "mixture")
        ]
        white, last = adv.masked_whiten(a, mask), adv.place_rewards(torch.ones(3).double(), x, mask)
        total = (a * normal(3, 6, seed=2)).sum() + white.square().sum() + sum(t.square().sum() for t in targets)
        results.append((a, white, last, *targets, *torch.autograd.grad(total, (x, y))))
    for before, after in zip(*results):
        assert after.isfinite().all() and (after[~mask] == 0).all()
        torch.testing.assert_close(before, after, rtol=0, atol=0)


# ---- targets ----


def uniforms(z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Numbers that horizons are drawn by; the same at each call without a generator."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.rand(z.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["comonotone", "mixture"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_targets_are_points_at_the_last_token_and_at_lambda_one(kind, lam):
    r, z, mask = normal(3, 7), normal(3, 7, 9, seed=1), random_mask(3, 7, seed=3, p=0.7)
    g = quantile_targets(r, z, mask, 0.9, lam, kind, uniforms(z))
    last = adv.last_token_mask(mask)
    spread = g.amax(-1) - g.amin(-1)
    torch.testing.assert_close(g[last], r[last][:, None].expand_as(g[last]))
    assert (spread[last] < 1e-12).all()
    if lam == 1:
        assert g.shape[-1] == 1
        torch.testing.assert_close(g[..., 0], generalised_advantages(r, z[..., 0], mask, 0.9, 1.0)[1])
        wide = generalised_advantages(r, z, mask, 0.9, 1.0)[1]  # the definition: equal numbers at every token
        torch.testing.assert_close(wide, g.expand_as(wide))
    else:
        assert (spread[mask & ~last] > 1e-3).all()


def test_targets_agree_at_lambda_zero():
    r, z, mask = normal(3, 7), normal(3, 7, 9, seed=1), random_mask(3, 7, seed=3)
    a, b = (quantile_targets(r, z, mask, 0.9, 0.0, kind) for kind in ("comonotone", "mixture"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="unknown target 'mean'"):
        quantile_targets(r, z, mask, 0.9, 0.5, "mean")


def test_mixture_equals_comonotone_in_expectation():
    """40 000 draws of the horizons for one response with holes: within five standard errors at every quantile, and
    each draw is one of the n-step returns, with its probability."""
    n, mask = 40_000, torch.tensor([[1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    r, z = normal(1, 6), normal(1, 6, 3, seed=1)
    wide = [x.expand(n, *x.shape[1:]) for x in (r, z, mask)]
    g = quantile_targets(*wide, 0.9, 0.6, "mixture", uniforms(wide[1]))
    want = quantile_targets(r, z, mask, 0.9, 0.6)[0]
    error = (g.std(0) / n**0.5).clamp(min=1e-12)
    assert ((g.mean(0) - want).abs() / error)[mask[0]].max() < 5
    steps, rr, zz = [], r[mask].tolist(), [*z[mask][:, 1].tolist(), 0.0]
    for h in range(1, 5):
        steps.append(sum(0.9**i * rr[i] for i in range(h)) + 0.9**h * zz[h])
    nearest = (g[:, 0, 1, None] - torch.tensor(steps, dtype=torch.float64)).abs()
    assert nearest.amin(1).max() < 1e-9
    share = torch.bincount(nearest.argmin(1), minlength=4) / n
    assert share.tolist() == pytest.approx([0.4, 0.24, 0.144, 0.216], abs=0.01)


def learned_widths(kind: str, lam: float = 0.5, length: int = 4, m: int = 50) -> torch.Tensor:
    """A Markov reward process whose every step pays N(0, 1): a table of quantiles for each of `length` states, learned
    by pinball descent on the library's targets. The true return with k steps left is N(0, k). Returns (T, M)."""
    from dvpo_lib.functional.quantile_huber import quantile_huber

    z = torch.zeros(length, m, dtype=torch.float64, requires_grad=True)
    generator, mask, total = torch.Generator().manual_seed(0), torch.ones(400, length, dtype=torch.bool), 0
    for step in range(700):
        r = torch.randn(400, length, generator=generator, dtype=torch.float64)
        zbar = z.detach().sort(-1).values.expand(400, -1, -1)
        g = quantile_targets(r, zbar, mask, 1.0, lam, kind, uniforms(zbar, generator))
        pooled = g.transpose(0, 1).reshape(length, -1)
        (slope,) = torch.autograd.grad(quantile_huber(z, pooled).sum(), z)
        with torch.no_grad():
            z -= 3 * m / (1 + step / 15) ** 0.7 * slope
        if step >= 500:
            total = total + z.detach().sort(-1).values / 200
    return total


def test_mixture_recovers_the_return_distribution_and_comonotone_is_too_narrow():
    """lambda 1/2. Mixture: every quantile of N(0, k) within 0.06 (0.2 for the outermost three) and its std within 2 %
    of sqrt(k). Comonotone: where a share p_i of the horizons reaches step i, variance sum p_i^2 +
    (sum_n w_n s_n)^2, which closes to s^2 = 1, 1.5, ... and is narrower the more steps are left."""
    truth = torch.special.ndtri(midpoint_levels(50, dtype=torch.float64))
    left = torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)
    mixture, comonotone = learned_widths("mixture"), learned_widths("comonotone")
    error = (mixture - left.sqrt()[:, None] * truth).abs()
    assert error[:, 3:-3].max() < 0.06 and error.max() < 0.2
    ratio = mixture.std(-1) / truth.std() / left.sqrt()
    assert ratio.tolist() == pytest.approx([1] * 4, abs=0.02)
    widths = {}
    for k in range(1, 5):  # closed form of the comonotone fixed point
        share = [0.5**i for i in range(k)]  # of horizons that pay step i: all, then half, ...
        weights = [0.5 * 0.5**n for n in range(k - 1)]  # of horizon n + 1; the rest is Monte Carlo, whose Z is 0
        tail = sum(w * widths[k - n - 1] for n, w in enumerate(weights))
        widths[k] = math.sqrt(sum(s * s for s in share) + tail**2)
    want = [widths[k] / math.sqrt(k) for k in (4, 3, 2, 1)]
    narrow = comonotone.std(-1) / truth.std() / left.sqrt()
    assert narrow.tolist() == pytest.approx(want, abs=0.02)
    assert narrow[0] < 0.83 and narrow[2] < 0.9


# ---- limits: N = M = 1 is PPO ----


def test_one_head_of_one_quantile_is_ppo():
    """Advantages, targets and loss: with kappa large, tau = 1/2, the core is 1/2 u^2 / (2 kappa), and PPO's 0.5 u^2."""
    from dvpo_lib.functional.critic_losses import CriticLossSettings
    from dvpo_lib.models.critic import CriticSettings, critic_objective
    from dvpo_lib.rl.estimators import distributional_gae
    from dvpo_lib.rl.estimators import scalar_gae as ppo_gae

    mask, z = random_mask(4, 6), normal(4, 6, 1, 1, seed=1).requires_grad_()
    x = scored_batch(normal(4), mask, normal(4, 6, seed=2), z.detach())
    for args in (run_settings(beta=0.1, gamma=0.9, lam=0.8), run_settings(lam=0.8, lam_critic=0.3, lam_adaptive=0.4)):
        ours, ppos = distributional_gae(x, args), ppo_gae(x, args)
        torch.testing.assert_close(ours, ppos, rtol=1e-12, atol=1e-12)
    kappa, terms = 1e3, ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
    off = CriticLossSettings(kappa=kappa, **dict.fromkeys(terms, 0))
    losses = [
        critic_objective(z, ours[1], mask, cfg)[0]
        for cfg in (CriticSettings(kind="quantile", loss=off), CriticSettings(kind="scalar", value_clip=None))
    ]
    torch.testing.assert_close(losses[0] * 2 * kappa, losses[1], rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(loss, z)[0] for loss in losses]
    torch.testing.assert_close(slopes[0] * 2 * kappa, slopes[1], rtol=1e-10, atol=1e-14)


# ---- read-outs ----


def sample(b=3, t=5, m=8):
    return normal(b, t) * 3, normal(b, t, m, seed=1).sort(-1).values, random_mask(b, t, seed=4, p=0.7)


@pytest.mark.parametrize("lam", [0.7, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)])
def test_every_readout_is_the_mean_at_its_neutral_setting(lam):
    r, z, mask = sample()
    want = generalised_advantages(r, z, mask, 0.9, lam)[0].mean(-1)
    mean = adv.actor_advantages(r, z, mask, 0.9, lam, ReadoutSettings())
    torch.testing.assert_close(mean, want, rtol=1e-12, atol=1e-12)
    off = ReadoutSettings(kind="winsorised", level_low=0, level_up=0)
    assert torch.equal(adv.actor_advantages(r, z, mask, 0.9, lam, off), mean)
    for distortion in ("mean", "wang", "cpw", "blend", "cvar"):
        cfg = ReadoutSettings(kind="distorted", distortion=distortion, strength=0.0, alpha=1.0)
        torch.testing.assert_close(adv.actor_advantages(r, z, mask, 0.9, lam, cfg), want, rtol=1e-9, atol=1e-9)


def test_distorted_readout_is_gae_on_the_distorted_values():
    """CVaR of mass 3/8 at M = 8: the mean of the three lowest."""
    r, z, mask = sample()
    cfg = ReadoutSettings(kind="distorted", distortion="cvar", alpha=3 / 8)
    want = generalised_advantages(r, z[..., :3].mean(-1), mask, 0.9, 0.7)[0]
    torch.testing.assert_close(adv.actor_advantages(r, z, mask, 0.9, 0.7, cfg), want)
    assert (want - generalised_advantages(r, z.mean(-1), mask, 0.9, 0.7)[0])[mask].abs().min() > 1e-3


@pytest.mark.parametrize(
    "reward, low, up, value",
    [
        (10.0, 0.25, 0.25, 2.5 - 1.5),
        (-10.0, 0.25, 0.25, 0.5 - 1.5),
        (1.0, 0.25, 0.25, 1.0 - 1.5),
        (10.0, 0.0, 0.25, 2.5 - 1.375),
        (-10.0, 0.0, 0.25, -10 - 1.375),  # from above only
        (10.0, 0.25, 0.0, 10 - 1.625),
        (-10.0, 0.25, 0.0, 0.5 - 1.625),  # from below only
    ],
)
def test_winsorised_readout_by_hand(reward, low, up, value):
    """Quantiles 0, 1, 2, 3 at 1/8, 3/8, 5/8, 7/8: the band from 1/4 to 3/4 is [0.5, 2.5]; clipped they are 0.5, 1, 2,
    2.5. The token before keeps its own reward, however large, and its plain mean."""
    z = torch.tensor([[[3.0, 4, 5, 8], [0, 1, 2, 3], [NAN] * 4]], dtype=torch.float64)
    mask, r = torch.tensor([[True, True, False]]), torch.tensor([[100.0, reward, NAN]], dtype=torch.float64)
    cfg = ReadoutSettings(kind="winsorised", level_low=low, level_up=up)
    a = adv.actor_advantages(r, z, mask, 1.0, 0.5, cfg)[0].tolist()
    base = {(0.25, 0.25): 1.5, (0.0, 0.25): 1.375, (0.25, 0.0): 1.625}[low, up]
    assert a == pytest.approx([100 + base - 5 + 0.5 * value, value, 0])


def test_winsorising_clips_into_each_responses_own_band():
    r, z, mask = sample()
    mask[:, 0] = True
    big = torch.where(adv.last_token_mask(mask), 50.0, r)
    cfg = ReadoutSettings(kind="winsorised", level_low=0.2, level_up=0.2)
    last = adv.last_token_mask(mask)
    at_bound = torch.where(last, quantile_at_level(z, 0.8), r)
    torch.testing.assert_close(
        adv.actor_advantages(big, z, mask, 1.0, 0.9, cfg), adv.actor_advantages(at_bound, z, mask, 1.0, 0.9, cfg)
    )


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(kind="median"), "kind"),
        (dict(level_low=0.5), "level_low"),
        (dict(level_up=-0.1), "level_up"),
        (dict(alpha=0), "alpha"),
        (dict(beta=1.1), "beta"),
        (dict(distortion="cpw", strength=0.9), "cpw: strength"),
        (dict(distortion="blend", strength=-2), "blend: strength"),
        (dict(distortion="wang", strength=NAN), "strength"),
        (dict(level=0.1), "level"),
    ],
)
def test_wrong_readout_settings_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        ReadoutSettings(**bad)


def test_methods_take_their_readout_from_the_settings():
    """`dvpo` reads out as args.readout says; `dvpo_winsorised` winsorises whatever its kind, at its levels."""
    from dvpo_lib.rl.methods import METHODS

    def advantages(method, **readout):
        args = run_settings(method=method, lam=0.5, readout=readout)
        z = normal(6, 5, 2, 16, seed=1).sort(-1).values
        return METHODS[method].advantage(scored_batch(normal(6) * 5, random_mask(6, 5), normal(6, 5), z), args)[0]

    mean = advantages("dvpo")
    cvar = advantages("dvpo", kind="distorted", distortion="cvar")
    band = advantages("dvpo", kind="winsorised", level_up=0.3)
    assert (mean - cvar).abs().max() > 1e-3 and (mean - band).abs().max() > 1e-3
    assert torch.equal(advantages("dvpo_winsorised", level_up=0.3), band)
    assert torch.equal(advantages("dvpo_winsorised", kind="distorted", distortion="cvar", level_up=0.3), band)
    torch.testing.assert_close(advantages("dvpo_winsorised", level_low=0, level_up=0), mean)
    with pytest.raises(ValueError, match="readout.level_up"):
        run_settings(readout=dict(level_up=0.9))


# ---- the small ones ----


def test_adaptive_lambda_by_hand():
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 0, 0, 0, 0], [0] * 5], dtype=torch.bool)
    assert adv.adaptive_lambda(mask, 0.5).tolist() == pytest.approx([0.5, 0, 0])
    assert adv.adaptive_lambda(mask, 2.0).tolist() == pytest.approx([0.875, 0.5, 0.5])


def test_rewards_are_placed_on_the_last_real_token():
    """Two turns with the user's tokens between and after them; a response without a token of its own gets nothing."""
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0] * 4], dtype=torch.bool)
    assert adv.last_token_mask(mask).tolist() == [[False, False, True, False], [False, False, False, True], [False] * 4]
    task, kl = torch.tensor([5.0, 7, 9]), torch.tensor([[0.5, NAN, -1, NAN], [NAN, 1, 2, 3], [NAN] * 4])
    assert adv.place_rewards(task, None, mask).tolist() == [[0, 0, 5, 0], [0, 0, 0, 7], [0] * 4]
    assert adv.place_rewards(task, kl, mask).tolist() == [[-0.5, 0, 6, 0], [0, -1, -2, 4], [0] * 4]


def test_whiten_by_hand():
    """(1, 2, 3): mean 2, unbiased std 1. One token has no spread and no advantage."""
    x, mask = torch.tensor([[1.0, NAN], [2, 3]]), torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(adv.masked_whiten(x, mask), torch.tensor([[-1.0, 0], [0, 1]]))
    single = torch.tensor([[True, False], [False, False]])
    assert adv.masked_whiten(x, single).tolist() == [[0, 0], [0, 0]]
    assert adv.masked_whiten(torch.ones(2, 2), mask).tolist() == [[0, 0], [0, 0]]


def test_group_advantages_by_hand():
    """Groups (0, 1, 2) and (4, 4, 4): Bessel std 1 and 0."""
    r = torch.tensor([0.0, 1, 2, 4, 4, 4], dtype=torch.float64)
    assert adv.group_advantages(r, 3).tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001, 0, 0, 0])
    assert adv.group_advantages(r, 3, scale=False).tolist() == [-1, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="6 rewards do not make groups of 4"):
        adv.group_advantages(r, 4)
