"""Categorical distributions of returns: masses of bins, cross-entropy and quantiles by hand and by sampling."""

import math

import pytest
import torch
from torch.distributions import Normal

from dvpo_lib.functional.categorical import (
    BinLogits,
    bin_edges,
    categorical_loss,
    gaussian_bin_masses,
    quantiles_of_bins,
)

SUPPORT = torch.tensor([-1.0, 3.0], dtype=torch.float64)


def test_masses_are_those_of_the_smoothed_return():
    edges = bin_edges(SUPPORT, 8)
    assert edges.tolist() == [-1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3]
    y = torch.tensor([0.3, 2.9, 7.0], dtype=torch.float64)
    masses = gaussian_bin_masses(y, edges, smoothing=0.75)
    for row, centre in zip(masses, (0.3, 2.9, 3.0)):  # a return beyond the support counts as its end
        bell = Normal(torch.tensor(centre, dtype=torch.float64), 0.75 * 0.5)
        inside = bell.cdf(edges[-1]) - bell.cdf(edges[0])
        assert row.tolist() == pytest.approx(
            [float((bell.cdf(b) - bell.cdf(a)) / inside) for a, b in zip(edges, edges[1:])]
        )
    assert masses.sum(-1).tolist() == pytest.approx([1, 1, 1])


def test_loss_is_the_cross_entropy_of_every_head():
    logits = torch.tensor(
        [[[0.0, 0.0], [math.log(3), 0.0]]], dtype=torch.float64, requires_grad=True
    )  # (1, 2 heads, 2)
    z = BinLogits(logits, torch.tensor([0.0, 2.0], dtype=torch.float64), 4)
    loss = categorical_loss(z, torch.tensor([[0.0, 2.0]], dtype=torch.float64))  # two samples: masses are even
    assert loss.tolist()[0] == pytest.approx([math.log(2), -(math.log(0.75) + math.log(0.25)) / 2])
    assert torch.autograd.gradcheck(
        lambda x: categorical_loss(BinLogits(x, z.support, 4), torch.tensor([[0.3]], dtype=torch.float64)), logits
    )


def test_minimiser_of_the_loss_has_the_mean_of_the_returns():
    returns = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)  # Bernoulli(0.25)
    edges = bin_edges(SUPPORT, 40)
    best = gaussian_bin_masses(returns, edges).mean(-2).log().clamp(min=-200)[None]
    quantiles = quantiles_of_bins(BinLogits(best, SUPPORT, 400))
    assert quantiles.mean().item() == pytest.approx(0.25, abs=1e-3)
    worse = categorical_loss(BinLogits(best + 0.1 * torch.randn(40, dtype=torch.float64), SUPPORT, 400), returns)
    assert categorical_loss(BinLogits(best, SUPPORT, 400), returns).item() < worse.item()


def test_quantiles_are_uniform_inside_a_bin_and_monotone():
    z = BinLogits(torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64).log(), torch.tensor([0.0, 3.0]).double(), 4)
    assert quantiles_of_bins(z)[0].tolist() == pytest.approx([0.5, 2 + 1 / 6, 2.5, 2 + 5 / 6])
    random = BinLogits(torch.randn(5, 2, 33, dtype=torch.float64) * 3, SUPPORT, 50)
    quantiles = quantiles_of_bins(random)
    assert (quantiles.diff(dim=-1) >= 0).all() and (quantiles >= -1).all() and (quantiles <= 3).all()
    centres = (bin_edges(SUPPORT, 33)[1:] + bin_edges(SUPPORT, 33)[:-1]) / 2
    means = (random.logits.softmax(-1) * centres).sum(-1)
    torch.testing.assert_close(quantiles.mean(-1), means, atol=0.03, rtol=0)
