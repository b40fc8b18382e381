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


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error", "gaussian"])
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


@pytest.mark.parametrize("sigma", [0.05, 1.0, torch.tensor(0.3)])
def test_gaussian_equals_torch_distributions(sigma):
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8, seed=1)
    expected = -Normal(torch.sigmoid(x_raw), sigma).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(vae.reconstruction_nats(x_raw, x, "gaussian", sigma), expected, rtol=1e-4, atol=1e-3)


def test_without_a_sigma_gaussian_takes_the_best_one_for_the_batch():
    x_raw, x = randn(4, 3, 8, 8), rand(4, 3, 8, 8, seed=1)
    rmse = F.mse_loss(torch.sigmoid(x_raw), x).sqrt()
    best = vae.reconstruction_nats(x_raw, x, "gaussian")
    torch.testing.assert_close(best, vae.reconstruction_nats(x_raw, x, "gaussian", rmse))
    assert all(vae.reconstruction_nats(x_raw, x, "gaussian", f * rmse).mean() > best.mean() for f in (0.5, 0.97, 1.03, 2))


def test_gradient_of_the_best_gaussian_is_that_of_half_d_log_mse():
    """What is left when sigma is the best for every x_raw: no gradient through sigma is missing."""
    x_raw, x = randn(4, 3, 8, 8).requires_grad_(), rand(4, 3, 8, 8, seed=1)
    found, = torch.autograd.grad(vae.reconstruction_nats(x_raw, x, "gaussian").mean(), x_raw)
    expected, = torch.autograd.grad(3 * 8 * 8 / 2 * torch.log(F.mse_loss(torch.sigmoid(x_raw), x)), x_raw)
    torch.testing.assert_close(found, expected)


# ── The discretised logistic ────────────────────────────────────────────────────────────────────

@given(st.floats(0, 1), st.floats(-3, 6).map(math.exp))
def test_the_probabilities_of_the_256_grey_levels_sum_to_one(mean, scale):
    levels = torch.arange(256).byte().reshape(256, 1, 1, 1)
    p = (-vae.discretised_logistic_nats(torch.full(levels.shape, mean), levels, scale).double()).exp()
    assert p.min() >= 0 and p.sum().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scale", [0.3, 2.0, 30.0])
def test_discretised_logistic_equals_differences_of_the_sigmoid_in_float64(scale):
    mean = rand(50, 3, 4, 4)
    images = (255 * mean + 3 * scale * randn(50, 3, 4, 4, seed=1)).clamp(0, 255).round().byte()
    x, centre = images.double(), 255 * mean.double()
    upper = torch.where(x == 255, 1.0, torch.sigmoid((x + 0.5 - centre) / scale))
    lower = torch.where(x == 0, 0.0, torch.sigmoid((x - 0.5 - centre) / scale))
    expected = -(upper - lower).log().sum((1, 2, 3))
    assert (images == 0).any() and (images == 255).any()
    torch.testing.assert_close(vae.discretised_logistic_nats(mean, images, scale).double(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 100.0, 1e6])
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0])
def test_discretised_logistic_is_finite_and_no_negative_price_at_the_extremes(mean, level, scale):
    images = torch.full((1, 1, 2, 2), level).byte()
    nats = vae.discretised_logistic_nats(torch.full((1, 1, 2, 2), mean), images, scale).item()
    assert -1e-5 <= nats < math.inf


@pytest.mark.parametrize("mean, bits", [(127 / 255, 0), (127.5 / 255, 1)], ids=["on a level", "between two levels"])
def test_a_narrow_logistic_is_certain_of_a_level_or_flips_a_coin_between_two(mean, bits):
    nats = vae.discretised_logistic_nats(torch.full((1, 3, 8, 8), mean), torch.full((1, 3, 8, 8), 127).byte(), 0.02)
    assert nats.item() / (3 * 8 * 8 * math.log(2)) == pytest.approx(bits, abs=1e-2)


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
