"""Measures against closed forms, scipy, and a model whose likelihood is known exactly."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import of_seed, rand, randn, refused
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import vae_helpers as vae
from support import features, metrics

# A model with a known likelihood: x = 0.5 + W z + SIGMA * noise.
SIGMA = 0.05
# Orthogonal columns, so that the covariance of p(z|x) is diagonal.
W = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [1, 1]]) * torch.tensor([0.05, 0.02])
X = (0.5 + randn(6, 2) @ W.T + SIGMA * randn(6, 4, seed=1)).reshape(6, 1, 2, 2)
COVARIANCE = (W @ W.T + SIGMA**2 * torch.eye(4)).double()
DENSITY = MultivariateNormal(torch.full((4,), 0.5).double(), COVARIANCE)
EXACT = -DENSITY.log_prob(X.flatten(1).double())


def posterior(x):
    """Mean and variance of p(z|x)."""
    variance = 1 / (1 + W.square().sum(0) / SIGMA**2)
    return (x.flatten(1) - 0.5) @ W / SIGMA**2 * variance, variance


def linear_model(exact):
    """Its q(z|x) is the exact posterior, or one that is shifted and too wide."""

    def encode(x, condition=None):
        mu, variance = posterior(x)
        logvar = variance.log().expand_as(mu)
        if exact:
            return mu, logvar
        return mu + torch.tensor([0.4, -0.6]), logvar + torch.tensor([0.5, 0.0])

    def decode_raw(z, condition=None):
        return torch.logit(0.5 + z @ W.T).reshape(-1, 1, 2, 2)

    choices = {"image_size": 2, "channels": 1, "latent_dim": 2, "width": 1, "depth": 1}
    model = vae.build_model(vae.Config(**choices, likelihood="gaussian"))
    model.encode, model.decode_raw = encode, decode_raw
    model.sigma.fill_(SIGMA)
    return model


@pytest.mark.parametrize("k", [1, 7, 2000])
def test_with_the_exact_posterior_every_k_gives_the_exact_likelihood(k):
    bound = metrics.iwae_nats(linear_model(exact=True), X, k)
    torch.testing.assert_close(bound, EXACT, rtol=0, atol=2e-3)


def test_with_one_sample_the_bound_is_the_negative_elbo():
    """-log p(x) + KL(q || posterior) in closed form; the training loss has the same mean."""
    model = linear_model(exact=False)
    mu, logvar = model.encode(X)
    mean, variance = posterior(X)
    q = MultivariateNormal(mu, torch.diag_embed(logvar.exp()))
    p = MultivariateNormal(mean, torch.diag(variance))
    elbo = (EXACT + kl_divergence(q, p).double())[3].item()
    images = X[3:4].repeat(1000, 1, 1, 1)
    for nats in (metrics.iwae_nats(model, images, 1), sum(vae.image_losses(model, images))):
        tolerance = 4 * nats.std().item() / math.sqrt(1000)
        assert nats.mean().item() == pytest.approx(elbo, abs=tolerance)


def test_the_bound_falls_with_k_towards_the_likelihood_on_average():
    model = linear_model(exact=False)
    gaps = []
    for k in (1, 2, 8, 64):
        bounds = metrics.iwae_nats(model, X.repeat(100, 1, 1, 1), k, batch_size=48)
        gaps.append((bounds - EXACT.repeat(100)).mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.3 > 0.05 > gaps[-1] > 0


@given(mean=st.floats(0, 1), scale=st.floats(0.05, 60))
def test_the_probabilities_of_all_256_levels_sum_to_1(mean, scale):
    levels = torch.arange(256).byte().reshape(256, 1, 1, 1)
    nats = metrics.discretised_logistic_nats(torch.full((256, 1, 1, 1), mean), levels, scale)
    assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-3)


def test_bits_per_dim_by_hand_with_the_best_scale_for_the_tuning_images(model, shapes):
    def nats(images, scale):
        mu, logvar = vae.encode_images(model, images)
        z = vae.reparameterize(mu, logvar, of_seed(3))
        x_hat = vae.decode_images(model, z)
        return metrics.discretised_logistic_nats(x_hat, images, scale), vae.kl_nats(mu, logvar)

    test, val = shapes.test.images, shapes.val.images
    result = metrics.bits_per_dim(model, test, val, seed=3)
    scale = result["logistic_scale_grey_levels"]
    best = nats(val, scale)[0].mean()
    assert all(nats(val, factor * scale)[0].mean() > best for factor in (0.95, 1.05))
    bits = sum(nats(test, scale)) / (3 * 32 * 32 * math.log(2))
    assert result["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-5)
    assert result["bits_per_dim_se"] == pytest.approx(bits.std().item() / math.sqrt(48), rel=1e-4)


def test_pixels_of_a_known_distribution_cost_its_entropy():
    """A model that knows nothing but the mean, on rounded logistic noise; its code is free."""
    model = vae.build_model(vae.Config(image_size=8, channels=1, latent_dim=2, width=2, depth=1))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    images = (127.5 + 9 * torch.logit(rand(1500, 1, 8, 8).double())).round().clamp(0, 255).byte()
    edges = torch.sigmoid((torch.arange(257) - 0.5 - 127.5).double() / 9)
    entropy = torch.special.entr(edges.diff() / edges.diff().sum()).sum().item() / math.log(2)
    result = metrics.bits_per_dim(model, images[:1100], images[1100:])
    assert result["logistic_scale_grey_levels"] == pytest.approx(9, rel=0.03)
    assert result["bits_per_dim"] == pytest.approx(entropy, abs=0.01)


def test_picture_metrics_are_means_over_the_images():
    """501 images, one more than a pass holds. SSIM is torchmetrics' own."""
    x = (rand(501, 1, 8, 8) * 255).byte()
    noise = torch.linspace(0.01, 0.3, 501).reshape(-1, 1, 1, 1) * randn(501, 1, 8, 8, seed=1)
    x_hat = (x / 255 + noise).clamp(0, 1)
    alone = [metrics.picture_metrics(x_hat[i, None], x[i, None]) for i in range(501)]
    for name, value in metrics.picture_metrics(x_hat, x).items():
        assert value == pytest.approx(np.mean([row[name] for row in alone]), rel=1e-4)
    mse = (x_hat[0] - x[0] / 255).square().mean().item()
    assert alone[0]["mse"] == pytest.approx(mse)
    assert alone[0]["psnr_db"] == pytest.approx(-10 * math.log10(mse), rel=1e-4)
    same = metrics.picture_metrics(x[:1] / 255, x[:1])["ssim"]
    assert alone[-1]["ssim"] < alone[0]["ssim"] < same == pytest.approx(1)


@pytest.mark.parametrize("n, dims", [(300, 5), (30, 40)])
def test_frechet_distance_equals_one_with_scipys_matrix_root(n, dims):
    real = (randn(n, dims) @ randn(dims, dims, seed=1)).double()
    fake = (randn(n + 9, dims, seed=2) @ randn(dims, dims, seed=3) + 1).double()
    a, b = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    root_a = scipy.linalg.sqrtm(a)
    root = scipy.linalg.sqrtm(root_a @ b @ root_a).real
    expected = (real.mean(0) - fake.mean(0)).square().sum().item() + np.trace(a + b - 2 * root)
    assert metrics.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-3)


def test_the_released_feature_net_takes_uint8_and_float_grey_and_colour_of_any_size(shapes):
    net = metrics.load_feature_net()
    images = shapes.train.images.repeat(3, 1, 1, 1)[:502]  # more than one pass
    result = metrics.image_features(images, net)
    assert result.shape == (502, 480)
    torch.testing.assert_close(result[-3:], net.features(images[-3:] / 255), rtol=1e-3, atol=1e-3)
    grey = rand(2, 1, 28, 28)
    torch.testing.assert_close(net.features(grey), net.features(grey.expand(-1, 3, -1, -1)))


def test_a_damaged_feature_net_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "celeba.safetensors").write_bytes(b"no weights")
    monkeypatch.setattr(features, "RELEASED", tmp_path)
    with refused(vae.CheckpointError, "damaged", "reproduce.features celeba."):
        metrics.load_feature_net("celeba")


def test_samples_of_a_fitted_gaussian_have_the_moments_of_the_codes():
    codes = randn(3000, 3) @ randn(3, 3, seed=1) + torch.tensor([4.0, 0, -4])
    gaussian = metrics.fit_gaussian(codes)
    z = metrics.sample_gaussian(gaussian, 30_000, seed=2)
    torch.testing.assert_close(z.mean(0), codes.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), torch.cov(codes.T), atol=0.1, rtol=0.05)
    assert torch.equal(metrics.sample_gaussian(gaussian, 30_000, seed=2), z)
    flat = torch.cat([codes, codes[:, :1]], dim=1)  # one direction has no variance
    assert metrics.sample_gaussian(metrics.fit_gaussian(flat), 5).isfinite().all()


def test_correlations_are_numpy_s_and_0_for_a_constant():
    z, labels = randn(50, 3), torch.zeros(50, 2)
    labels[:20, 0] = 1
    expected = [np.corrcoef(z[:, d], labels[:, 0])[0, 1] for d in range(3)]
    found = metrics.correlate(z, labels)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert found[:, 1].tolist() == [0, 0, 0]


def test_the_gap_to_the_prior_is_the_kl_of_the_fitted_gaussian():
    z = randn(500, 3).double() @ randn(3, 3, seed=1).double() + torch.tensor([1.0, 0, -2])
    gap = metrics.gaussian_gap(z)
    fitted = MultivariateNormal(z.mean(0), torch.cov(z.T))
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    assert gap["fit_kl_nats"] == pytest.approx(kl_divergence(fitted, prior).item())
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T))
    assert (gap["variance_min"], gap["variance_max"]) == pytest.approx(tuple(eigenvalues[[0, 2]]))
    wide = z * torch.tensor([1.0, 20, 30])
    assert metrics.gaussian_gap(wide)["directions"] == PCA(0.99).fit(wide).n_components_ == 2


@given(method=st.sampled_from(sorted(vae.INTERPOLATIONS)), n=st.integers(1, 20))
def test_midpoints_lie_between_neighbours_and_later_between_codes_further_apart(method, n):
    mu = randn(4, 3)
    between = metrics.midpoints(mu, method, n)
    assert between.shape == (n, 3)
    for i, z in enumerate(between):
        a, b = mu[i % 4], mu[(i + 1 + i // 4) % 4]
        torch.testing.assert_close(z, vae.interpolate_latents(a, b, 3, method)[1])


def test_the_path_length_of_a_linear_decoder_is_the_squared_stretch_of_the_line():
    a, b, matrix = randn(5, 3), randn(5, 3, seed=1), randn(3, 7, seed=2)

    def decode(z):
        return z @ matrix

    lengths = metrics.perceptual_path_length(decode, nn.Identity(), a, b, "linear")
    torch.testing.assert_close(lengths, decode(b - a).square().sum(1), rtol=1e-2, atol=1e-3)


def test_a_cross_fade_has_even_steps_and_a_jump_has_not():
    a, b = rand(3, 8, 8), rand(3, 8, 8, seed=1)
    fade = vae.cross_fade(a, b, 5)
    torch.testing.assert_close(metrics.step_lengths(fade), (b - a).norm().div(4).expand(4))
    assert metrics.step_unevenness(fade).item() == pytest.approx(0, abs=1e-4)
    # One step of length 1 and three of 0: mean 1/4, standard deviation sqrt(3)/4.
    jump = torch.stack([a, b, b, b, b])
    assert metrics.step_unevenness(jump).item() == pytest.approx(math.sqrt(3))
