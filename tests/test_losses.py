"""Losses: against torch.distributions and Monte Carlo, and by the properties that define them."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import of_seed, rand, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

import vae_helpers as vae

PIXELS = 3 * 8 * 8
gaussians = st.lists(st.tuples(st.floats(-6, 6), st.floats(-8, 5)), min_size=1, max_size=8)
greys_and_logits = st.lists(st.tuples(st.floats(0, 1), st.floats(-12, 12)), min_size=1)


@pytest.fixture
def x_raw():
    return randn(4, 3, 8, 8)


@pytest.fixture
def x():
    return rand(4, 3, 8, 8, seed=1)


@given(gaussians)
def test_kl_equals_torch_distributions_and_is_never_negative(pairs):
    mu, logvar = torch.tensor(pairs).T
    per_dim = vae.kl_nats_per_dim(mu, logvar)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0))
    torch.testing.assert_close(per_dim, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vae.kl_nats(mu[None], logvar[None])[0], per_dim.sum())
    assert per_dim.min() >= -1e-6


def test_with_beta_1_the_expected_loss_is_the_negative_elbo():
    """-E_q[log p(x|z) + log p(z) - log q(z|x)], from torch.distributions alone."""
    model = vae.build_model(vae.Config(image_size=8, width=4, latent_dim=4))
    nn.init.constant_(model.encoder[-1].mu.bias, 1.5)  # so that the KL has a say
    nn.init.constant_(model.encoder[-1].logvar.bias, -1)
    x = torch.eye(8).expand(4000, 3, 8, 8)
    with torch.no_grad():
        out = model(x, of_seed(0))
        p = Bernoulli(model.decode(out.z))
        reconstruction = vae.reconstruction_nats(out.x_raw, x, "bernoulli")
        loss = reconstruction + model.config.beta * model.rate_nats(out) + model.penalty(out)
    q = Normal(out.mu, torch.exp(0.5 * out.logvar))
    elbo = p.log_prob(x).sum((1, 2, 3))
    elbo += (Normal(0.0, 1.0).log_prob(out.z) - q.log_prob(out.z)).sum(1)
    difference = loss + elbo
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(4000) < 0.2


def test_bernoulli_equals_torch_distributions_on_black_and_white(x_raw, x):
    expected = -Bernoulli(logits=x_raw).log_prob(x.round()).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x.round(), "bernoulli"), expected)


def test_bernoulli_is_exact_at_extreme_logits():
    """log(sigmoid) computed in two steps would be infinite here."""
    x_raw = torch.tensor([[500.0], [-500], [500], [-500]], requires_grad=True)
    losses = vae.reconstruction_nats(x_raw, torch.tensor([[0.0], [1], [1], [0]]), "bernoulli")
    losses.sum().backward()
    assert losses.tolist() == [500, 500, 0, 0]
    assert x_raw.grad.flatten().tolist() == [1, -1, 0, 0]


def test_squared_error_is_a_gaussian_of_variance_one_half_up_to_its_constant(x_raw, x):
    x = 2 * x - 1
    log_prob = Normal(torch.tanh(x_raw), math.sqrt(0.5)).log_prob(x).sum((1, 2, 3))
    loss = vae.reconstruction_nats(x_raw, x, "squared_error")
    constant = PIXELS / 2 * math.log(math.pi)
    torch.testing.assert_close(loss + constant, -log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 1.0, torch.tensor(0.3)])
def test_gaussian_equals_torch_distributions(x_raw, x, sigma):
    expected = -Normal(torch.sigmoid(x_raw), sigma).log_prob(x).sum((1, 2, 3))
    loss = vae.reconstruction_nats(x_raw, x, "gaussian", sigma)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)


def test_without_a_sigma_gaussian_takes_the_best_one_and_loses_no_gradient(x_raw, x):
    """With the best sigma put in, the loss is D/2 (log(2 pi MSE) + 1)."""
    x_raw.requires_grad_()
    best = vae.reconstruction_nats(x_raw, x, "gaussian").mean()
    mse = F.mse_loss(torch.sigmoid(x_raw), x)
    by_hand = PIXELS / 2 * (torch.log(2 * math.pi * mse) + 1)
    torch.testing.assert_close(best, by_hand)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x_raw)[0] for loss in (best, by_hand)))


@given(greys_and_logits)
def test_the_perfect_copy_reaches_the_floor_and_nothing_goes_below_it(pairs):
    x, x_raw = torch.tensor(pairs).T[:, None]
    floor = vae.bce_floor_nats(x)
    perfect = vae.reconstruction_nats(torch.logit(x, eps=1e-7), x, "bernoulli")
    torch.testing.assert_close(perfect, floor, rtol=1e-4, atol=1e-4)
    assert vae.reconstruction_nats(x_raw, x, "bernoulli") >= floor - 1e-3
