"""Losses: against torch.distributions, against Monte Carlo, and by the properties that define them."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

import vae_helpers as vae

numbers = st.lists(st.tuples(st.floats(-6, 6), st.floats(-8, 5)), min_size=1, max_size=8)
greys = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── KL ──────────────────────────────────────────────────────────────────────────────────────────

@given(numbers)
def test_kl_equals_torch_distributions(pairs):
    mu, logvar = torch.tensor(pairs).T
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(vae.kl_nats_per_dim(mu, logvar), expected, rtol=1e-4, atol=1e-4)


def test_kl_equals_monte_carlo():
    """The mean of log q(z) - log p(z) over samples of q, within four standard errors."""
    mu, logvar = torch.tensor([[0.7, -1.2, 0.1]]), torch.tensor([[-1.0, 0.4, -3.0]])
    q = Normal(mu, (0.5 * logvar).exp())
    z = mu + (0.5 * logvar).exp() * randn(100_000, 3)
    samples = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    error = 4 * samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - vae.kl_nats(mu, logvar)[0]) < error


def test_gradient_of_kl_is_mu_and_half_of_variance_minus_one():
    mu, logvar = randn(5, 3).requires_grad_(), randn(5, 3, seed=1).requires_grad_()
    vae.kl_nats(mu, logvar).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach())
    torch.testing.assert_close(logvar.grad, (logvar.detach().exp() - 1) / 2)


def test_kl_of_the_prior_with_itself_is_zero():
    assert vae.kl_nats(torch.zeros(2, 7), torch.zeros(2, 7)).tolist() == [0, 0]


@given(numbers)
def test_kl_is_never_negative(pairs):
    mu, logvar = torch.tensor(pairs).T
    assert vae.kl_nats_per_dim(mu, logvar).min() >= -1e-6


def test_kl_is_summed_over_dimensions_for_each_image():
    mu, logvar = randn(5, 3), randn(5, 3, seed=1)
    total = vae.kl_nats(mu, logvar)
    assert total.shape == (5,)
    torch.testing.assert_close(vae.kl_nats(mu.repeat(1, 2), logvar.repeat(1, 2)), 2 * total)


# ── Reconstruction ──────────────────────────────────────────────────────────────────────────────

def test_bernoulli_equals_torch_distributions_on_binary_images():
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8).round()
    expected = -Bernoulli(logits=x_raw).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x, "bernoulli"), expected)


def test_bernoulli_equals_binary_cross_entropy_of_the_sigmoid_on_grey_images():
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8, seed=1)
    expected = F.binary_cross_entropy(torch.sigmoid(x_raw), x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x, "bernoulli"), expected)


@pytest.mark.parametrize("logit, x, nats", [(500, 0, 500), (-500, 1, 500), (500, 1, 0), (-500, 0, 0)])
def test_bernoulli_is_exact_at_extreme_logits(logit, x, nats):
    """log(sigmoid) computed in two steps would be infinite here."""
    x_raw = torch.full((1, 1, 1, 1), float(logit), requires_grad=True)
    loss = vae.reconstruction_nats(x_raw, torch.full((1, 1, 1, 1), float(x)), "bernoulli")
    loss.sum().backward()
    assert loss.item() == pytest.approx(nats)
    assert x_raw.grad.isfinite().all()


def test_squared_error_is_a_gaussian_of_variance_one_half_up_to_its_constant():
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8, seed=1) * 2 - 1
    log_prob = Normal(torch.tanh(x_raw), math.sqrt(0.5)).log_prob(x).sum((1, 2, 3))
    constant = 3 * 8 * 8 * 0.5 * math.log(math.pi)
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x, "squared_error"), -log_prob - constant, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error"])
def test_doubling_the_area_doubles_the_reconstruction_loss(likelihood):
    """Summed over pixels; a mean over pixels would stay the same, and beta would silently not be 1."""
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8)
    once = vae.reconstruction_nats(x_raw, x, likelihood)
    twice = vae.reconstruction_nats(x_raw.repeat(1, 1, 2, 1), x.repeat(1, 1, 2, 1), likelihood)
    assert once.shape == (4,)
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error"])
def test_the_loss_of_an_image_does_not_depend_on_the_rest_of_its_batch(likelihood):
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8)
    alone = torch.cat([vae.reconstruction_nats(x_raw[i:i + 1], x[i:i + 1], likelihood) for i in range(4)])
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x, likelihood), alone)


# ── The floor of the binary cross-entropy ───────────────────────────────────────────────────────

def as_image(values):
    return torch.tensor(values).reshape(1, 1, 2, 2)


@given(greys, st.lists(st.floats(-12, 12), min_size=4, max_size=4))
def test_no_x_hat_goes_below_the_floor(x, x_raw):
    x = as_image(x)
    assert vae.reconstruction_nats(as_image(x_raw), x, "bernoulli").item() >= vae.bce_floor_nats(x).item() - 1e-4


@given(st.lists(st.floats(1 / 255, 254 / 255), min_size=4, max_size=4))
def test_the_floor_is_reached_at_x_hat_equal_to_x(x):
    x = as_image(x)
    torch.testing.assert_close(vae.reconstruction_nats(torch.logit(x), x, "bernoulli"), vae.bce_floor_nats(x), rtol=1e-4, atol=1e-4)


def test_the_floor_of_black_and_white_is_zero():
    assert vae.bce_floor_nats(rand(2, 3, 8, 8).round()).tolist() == [0, 0]


def test_the_floor_of_mid_grey_is_log_2_per_value():
    assert vae.bce_floor_nats(torch.full((1, 3, 8, 8), 0.5)).item() == pytest.approx(3 * 8 * 8 * math.log(2), rel=1e-5)
