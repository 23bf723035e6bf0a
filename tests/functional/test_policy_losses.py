"""Losses of PPO's kind, by hand; KL estimates against the exact divergence; masked positions may hold anything."""

import math

import pytest
import torch

from dvpo_lib.functional.policy_losses import (
    aggregate_loss,
    kl_estimate,
    masked_mean,
    policy_loss,
    policy_ratio,
    value_loss,
)

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
NAN = float("nan")


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_three_ways_to_average_by_hand():
    """Rows (1, 2) and (3, 4, 5): 15 / 5; (1.5 + 4) / 2; 15 / (2 rows * 4 tokens)."""
    x = doubles([1, 2, NAN], [3, 4, 5]).requires_grad_()
    for how, value, slope in (
        ("token_mean", 3.0, [[0.2, 0.2, 0], [0.2] * 3]),
        ("sequence_mean", 2.75, [[0.25, 0.25, 0], [1 / 6] * 3]),
        ("constant", 1.875, [[0.125, 0.125, 0], [0.125] * 3]),
    ):
        loss = aggregate_loss(x, MASK, how, max_length=4)
        assert loss.item() == pytest.approx(value)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], doubles(*slope))
    assert masked_mean(x, MASK).item() == 3
    assert masked_mean(x, torch.zeros_like(MASK)).item() == 0
    empty = torch.tensor([[0, 0, 0], [1, 1, 1]], dtype=torch.bool)  # a response without a token counts as 0
    assert aggregate_loss(x, empty, "sequence_mean").item() == 2
    for how in ("mean", "constant"):
        with pytest.raises(ValueError, match="aggregation"):
            aggregate_loss(x, MASK, how)


def test_value_loss_by_hand():
    """Errors 1 and 3: (1 + 9) / 4. Clipped at 0.5 around 0.2 and 4: 0.7 is nearer than 1, so 1 counts; 3 stays."""
    v, g, mask = doubles([1, 5, NAN]).requires_grad_(), doubles([2, 2, NAN]), MASK[:1]
    assert value_loss(v, g, mask).item() == pytest.approx(2.5)
    old = doubles([0.2, 4, NAN])
    assert value_loss(v, g, mask, old, 0.5).item() == pytest.approx(0.25 * (1.3**2 + 9))
    slope = torch.autograd.grad(value_loss(v, g, mask, old, 0.5), v)[0]
    torch.testing.assert_close(slope, doubles([0, 1.5, 0]))  # where the clip binds, nothing pulls
    torch.testing.assert_close(torch.autograd.grad(value_loss(v, g, mask), v)[0], doubles([-0.5, 1.5, 0]))
    assert value_loss(v, g, mask, old, 10.0).item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match="needs old_v"):
        value_loss(v, g, mask, clip=0.5)


def test_value_loss_sends_no_gradient_to_targets_and_old_values():
    v, g, old = (doubles([1, 2, 3], [4, 5, 6]).requires_grad_() for _ in range(3))
    value_loss(v * 2, g, MASK, old, 0.2).backward()
    assert g.grad is None and old.grad is None and v.grad is not None


def test_kl_estimates_by_hand():
    d, zero = doubles([0, math.log(2), -math.log(2)]), doubles([0, 0, 0])
    assert kl_estimate(d, zero, "k1")[0].tolist() == pytest.approx([0, math.log(2), -math.log(2)])
    assert kl_estimate(d, zero, "k2")[0].tolist() == pytest.approx([0, math.log(2) ** 2 / 2, math.log(2) ** 2 / 2])
    assert kl_estimate(d, zero, "k3")[0].tolist() == pytest.approx([0, math.log(2) - 0.5, 1 - math.log(2)])
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(d, zero, "k4")


def test_k1_and_k3_are_unbiased_and_k2_nearly_for_close_policies():
    """Exact expectations over five outcomes. k3 is never negative; k2 errs by the third order."""
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gap, k2_error in ((1.0, None), (0.05, 0.05)):
        p, q = logits[0].log_softmax(0), (logits[0] + gap * logits[1]).log_softmax(0)
        exact = (p.exp() * (p - q)).sum().item()
        found = {k: (p.exp() * kl_estimate(p, q, k)).sum().item() for k in ("k1", "k2", "k3")}
        assert found["k1"] == pytest.approx(exact, rel=1e-9) == found["k3"]
        assert (kl_estimate(p, q, "k3") >= 0).all()
        if k2_error:
            assert found["k2"] == pytest.approx(exact, rel=k2_error)
        else:
            assert abs(found["k2"] - exact) > 0.05 * exact


RATIO = doubles([1.5, 0.5, 9], [1, 1.1, 0.5])
ADVANTAGE = doubles([2, -1, NAN], [1, -2, 3])


def loss_of(logp, **changes):
    old = torch.where(MASK, torch.zeros_like(logp), NAN)
    return policy_loss(logp, old, ADVANTAGE, MASK, **{"epsilon": 0.2} | changes)


def test_policy_loss_by_hand():
    """min(rA, clip(r)A): 1.2 * 2, 0.8 * -1, 1, 1.1 * -2, 0.5 * 3 = 2.4, -0.8, 1, -2.2, 1.5: sum 1.9."""
    logp = RATIO.log().requires_grad_()
    loss, stats = loss_of(logp)
    assert loss.item() == pytest.approx(-1.9 / 5)
    assert stats["clip_fraction"].item() == pytest.approx(3 / 5)  # 1.5, 0.5, 0.5
    kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1, 1.1, 0.5)) / 5
    assert stats["approx_kl"].item() == pytest.approx(kl)
    slope = torch.autograd.grad(loss, logp)[0]  # d(rA)/dlogp = rA, and nothing where the clipped branch is the minimum
    torch.testing.assert_close(slope, -doubles([0, 0, 0], [1, -2.2, 1.5]) / 5)
    assert loss_of(logp, how="sequence_mean")[0].item() == pytest.approx(-(1.6 / 2 + 0.3 / 3) / 2)
    assert loss_of(logp, how="constant", max_length=4)[0].item() == pytest.approx(-1.9 / 8)
    assert loss_of(logp, epsilon_high=0.6)[0].item() == pytest.approx(-2.5 / 5)  # clip-higher: 1.5 counts in full


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    logp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss, stats = loss_of(logp)
    slope = torch.autograd.grad(loss, logp)[0]
    torch.testing.assert_close(slope, torch.where(MASK, -ADVANTAGE / 5, 0.0))
    assert stats["clip_fraction"] == stats["approx_kl"] == 0


def test_a_sequences_ratio_is_the_mean_of_its_tokens_log_ratios():
    """Ratios 4 and 1 of a response count as 2 and 2; the third token is masked."""
    logp, mask = doubles([4, 1, NAN]).log().requires_grad_(), torch.tensor([[True, True, False]])
    log_ratio, ratio = policy_ratio(logp, torch.zeros_like(logp), mask, "sequence")
    assert ratio[0].tolist() == pytest.approx([2, 2, 1]) and log_ratio[0, 2] == 0
    loss, _ = policy_loss(logp, torch.zeros_like(logp), -torch.ones_like(logp), mask, level="sequence")
    assert loss.item() == pytest.approx(2)
    assert torch.autograd.grad(loss, logp)[0][0, :2].tolist() == pytest.approx([1, 1])
    loss, _ = policy_loss(logp, torch.zeros_like(logp), torch.ones_like(logp), mask, level="sequence")
    assert loss.item() == pytest.approx(-1.2)


def test_delta_bounds_the_ratio_of_a_negative_advantage():
    """Which min(rA, clip(r)A) leaves unbounded."""
    logp, one = doubles([3]).log().requires_grad_(), torch.ones(1, 1, dtype=torch.float64)
    losses = [policy_loss(logp, 0 * one, -one, one > 0, delta=delta)[0] for delta in (None, 4.0, 1.3)]
    assert [loss.item() for loss in losses] == pytest.approx([3, 3, 1.3])
    assert torch.autograd.grad(losses[2], logp)[0] == 0


def test_k3_times_the_ratio_has_the_gradient_of_the_kl():
    """Exact over five outcomes, drawn from the policy before the update."""
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p, q = logits[:1].log_softmax(1), logits[1:].detach().log_softmax(1)
    exact = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)[0]
    old = p.detach()
    ratio = policy_ratio(p, old, torch.ones_like(p) > 0)[1]
    found = torch.autograd.grad((old.exp() * ratio * kl_estimate(p, q, "k3")).sum(), logits)[0]
    torch.testing.assert_close(found, exact)


def test_masked_positions_change_nothing():
    results = []
    for hole in (0.0, NAN):
        logp = torch.where(MASK, RATIO.log(), hole).requires_grad_()
        loss, stats = loss_of(logp)
        results.append((loss.detach(), stats, torch.autograd.grad(loss, logp)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
