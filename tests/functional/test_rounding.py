"""Differences that are no more than rounding move nothing; extreme numbers stay finite."""

import pytest
import torch

from dvpo_lib.functional import critic_losses as losses
from dvpo_lib.functional.critic_losses import CriticLossSettings, critic_loss, mean_gap
from dvpo_lib.functional.policy_losses import bounded_exp, kl_estimate, policy_loss
from dvpo_lib.functional.scales import group_advantages, has_spread, masked_whiten, return_scale

NAN = float("nan")
MASS = (0.1, 0.1)


def noisy_quantiles(spread: float, offset: float, noise: float = 2e-7, m: int = 200):
    """Float32 quantiles (64, 3, M), and the same with relative noise of the size of float32's rounding."""
    generator = torch.Generator().manual_seed(0)
    q = (torch.randn(64, 3, m, generator=generator) * spread + offset).sort(-1).values
    error = torch.randn(q.shape, generator=generator).clamp(-3, 3) * noise * (spread + abs(offset))
    return q, (q + error).sort(-1).values


# ---- the ratchets ----


@pytest.mark.parametrize("spread, offset", [(1.0, 0.0), (1.0, 5.0), (100.0, 1000.0), (1e-3, 0.0)])
@pytest.mark.parametrize("term", [losses.tail_shape, losses.tail_curvature])
def test_ratchets_ignore_rounding(term, spread, offset):
    ref, q = noisy_quantiles(spread, offset)
    scale = return_scale(ref)
    loss = term(q.requires_grad_(), ref, *MASS, scale)
    (slope,) = torch.autograd.grad(loss.sum(), q)
    assert (loss == 0).all() and (slope == 0).all()
    assert (term(q, ref, *MASS) == 0).all()  # the scale of the reference, if none is given


@pytest.mark.parametrize("m", [8, 50, 200])
@pytest.mark.parametrize("term", [losses.tail_shape, losses.tail_curvature])
def test_ratchets_see_what_an_optimiser_step_does(term, m):
    """Steps of 1e-3 in random directions, learning rates that critics have, open gates at every M."""
    ref, q = noisy_quantiles(1.0, 0.5, noise=1e-3, m=m)
    loss = term(q, ref, *MASS)
    assert (loss > 0).float().mean() > 0.4
    scaled = term(100 * q, 100 * ref, *MASS)  # the dead zone follows the unit of the returns
    assert ((scaled > 0) == (loss > 0)).float().mean() > 0.99


def test_micro_batches_have_the_gradient_of_the_batch_at_default_weights():
    """The reference is the critic's own output up to float32's rounding, as after a forward pass in other parts."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 6, generator=generator) < 0.8
    mask[:, 0] = True
    ref, z = noisy_quantiles(1.0, 0.5)
    ref, z = (x.flatten(0, 1)[:120].view(20, 6, 1, 200).expand(-1, -1, 3, -1).contiguous() for x in (ref, z))
    targets = torch.randn(20, 6, 1, generator=generator)
    cfg, whole = CriticLossSettings(), {"scale": return_scale(ref, mask), "batch_gap": mean_gap(z, targets, mask)}
    generator, found = torch.Generator().manual_seed(1), []
    for parts in (1, 5):
        for rows in torch.arange(20).chunk(parts):
            x = z[rows]
            if parts > 1:  # other shapes round differently
                x = x + torch.randn(x.shape, generator=generator) * 1e-7
            x.requires_grad_()
            loss, _ = critic_loss(x, targets[rows], mask[rows], cfg, reference=ref[rows], **whole)
            (slope,) = torch.autograd.grad(loss * mask[rows].sum() / mask.sum(), x)
            found.append(slope)
    want, got = found[0], torch.cat(found[1:])
    assert (got - want).norm() < 1e-3 * want.norm()
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


# ---- advantages without spread ----


@pytest.mark.parametrize("reward", [0.7, 0.1, 1 / 3, -0.7, 1e6 + 0.3, 0.0])
@pytest.mark.parametrize("size", [2, 3, 8, 13])
@pytest.mark.parametrize("scale", [False, True])
def test_equal_rewards_of_a_group_have_no_advantage(reward, size, scale):
    other = torch.linspace(0, 1, size)
    advantages = group_advantages(torch.cat([torch.full((size,), reward), other]), size, scale)
    assert (advantages[:size] == 0).all() and (advantages[size:] != 0).sum() >= size - 1


def test_rewards_equal_up_to_rounding_have_no_advantage():
    """Sums of the same parts in another order."""
    rewards = torch.tensor([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6, 0.6000001])
    assert len(rewards.unique()) > 1
    assert (group_advantages(rewards, 4) == 0).all()
    assert (group_advantages(torch.tensor([0.6, 0.60001, NAN, 0.6]), 4) != 0).sum() == 3


def test_missing_rewards_beside_equal_ones():
    assert group_advantages(torch.tensor([0.7, NAN, 0.7, 0.7, NAN, NAN, NAN, 0.3]), 4).tolist() == [0] * 8


@pytest.mark.parametrize("value", [0.7, -1 / 3, 1e6 + 0.3])
def test_whitening_a_batch_without_spread_gives_zero(value):
    mask = torch.rand(16, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    x = torch.where(mask, value, NAN)
    assert (masked_whiten(x, mask) == 0).all()
    x = torch.where(mask, value * (1 + 1e-7 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))), 9.0)
    assert (masked_whiten(x, mask) == 0).all()
    x[mask] += torch.linspace(0, 1e-3 * abs(value), int(mask.sum()))
    white = masked_whiten(x, mask)
    assert white[mask].abs().max() > 0.5 and (white[~mask] == 0).all()


def test_spread_along_a_dimension():
    x = torch.tensor([[1.0, 1.0, NAN], [1.0, 2.0, NAN], [NAN, NAN, NAN], [1.0, 1.0000001, 1.0]])
    assert has_spread(x, 1).tolist() == [[False], [True], [False], [False]]


# ---- exponentials ----


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_is_finite_and_pulls_back_at_extreme_ratios(kind):
    """Loss and gradient are finite at log-ratios of +-1e4, and the gradient points to the reference."""
    logp = torch.tensor([-1e4, -100.0, -30.0, -1.0, 1.0, 30.0, 1e4], requires_grad=True)
    loss = kl_estimate(logp, torch.zeros(7), kind)
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.isfinite().all() and (loss > 0).all() and slope.isfinite().all()
    assert slope.sign().tolist() == logp.sign().tolist()
    assert (loss.diff()[:3] < 0).all() and (loss.diff()[4:] > 0).all()


def test_the_bound_changes_no_usual_number():
    x = torch.linspace(-50, 20, 1001)
    assert torch.equal(bounded_exp(x), x.exp())


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_policy_loss_is_finite_at_extreme_ratios(advantage):
    logp = torch.tensor([[-1e4, -1.0, 1e4]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, stats = policy_loss(logp, torch.zeros(1, 3), torch.full((1, 3), advantage), mask)
    (slope,) = torch.autograd.grad(loss, logp)
    assert loss.isfinite() and slope.isfinite().all() and all(x.isfinite() for x in stats.values())
    assert slope[0, 2] == 0 if advantage > 0 else slope[0, 2] > 0
