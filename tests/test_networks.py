"""Networks: shapes at every size, layers by hand, seeds, and the sampling of z."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import of_seed, rand, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vae_helpers as vae

SMALL = vae.Config(dataset="shapes", image_size=16, width=16, latent_dim=3).resolved()


def batch(config, n=2):
    shape = (n, config.channels, config.image_size, config.image_size)
    return vae.to_input(rand(*shape), config)


FIELDS = {
    "image_size": st.integers(8, 70),
    "channels": st.sampled_from([1, 3]),
    "latent_dim": st.integers(1, 9),
    "likelihood": st.sampled_from(vae.LIKELIHOODS),
    "depth": st.integers(1, 3),
}
FC = FIELDS | {"arch": st.just("fc"), "width": st.integers(4, 20)}
CONV = FIELDS | {
    "downsample": st.sampled_from(["stride", "maxpool"]),
    "norm": st.sampled_from(["none", "batch"]),
    "residual": st.integers(0, 2),
    "width": st.integers(1, 4),
}
DEEP = CONV | {"image_size": st.integers(32, 70), "depth": st.integers(4, 5)}


@settings(max_examples=150)
@given(st.one_of(st.builds(vae.Config, **fields) for fields in (FC, CONV, DEEP)))
def test_x_hat_has_the_shape_and_the_range_of_x_at_every_size(config):
    """Odd sizes, too: halving rounds down, and the decoder gives the lost row back."""
    model = vae.build_model(config)
    config = model.config
    x = batch(config)
    with torch.no_grad():
        out = model(x)
        x_hat = model.decode(50 * out.z)  # far out, where the last activation saturates
    assert out.mu.shape == out.logvar.shape == out.z.shape == (2, config.latent_dim)
    assert out.x_raw.shape == x_hat.shape == x.shape
    assert config.value_range[0] <= x_hat.min() <= x_hat.max() <= config.value_range[1]


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_x_is_scaled_to_the_range_of_the_likelihood_and_back(likelihood):
    config = dataclasses.replace(SMALL, likelihood=likelihood)
    x = vae.to_input(torch.tensor([0, 255], dtype=torch.uint8), config)
    assert x.tolist() == [-1 if likelihood == "squared_error" else 0, 1]
    assert vae.to_unit(x, config).tolist() == [0, 1]


@pytest.mark.parametrize(
    "choices", [{"arch": "fc"}, {"residual": 2}, {"residual": 1, "norm": "batch"}], ids=str
)
def test_every_weight_has_a_gradient_from_the_loss(choices):
    config = dataclasses.replace(SMALL, **choices)
    model = vae.build_model(config)
    for layer in model.modules():
        if isinstance(layer, vae.Residual):
            nn.init.ones_(layer.branch[-1].weight)  # the zeros of the start let none through
    x = batch(config, 8)
    out = model(x)
    (vae.reconstruction_nats(out.x_raw, x, "bernoulli") + model.rate_nats(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_residual_block_starts_as_the_identity_and_follows_its_formula():
    torch.manual_seed(0)
    block = vae.Residual(3, "none")
    h = randn(2, 3, 6, 6)
    assert torch.equal(block(h), h)
    assert torch.equal(vae.Residual(3, "batch")(h), h)
    wide, narrow = block.branch[1::2]
    nn.init.normal_(narrow.weight, generator=of_seed(1))
    inner = F.relu(F.conv2d(F.relu(h), wide.weight, wide.bias, padding=1))
    branch = torch.einsum("oi,nihw->nohw", narrow.weight[:, :, 0, 0], inner)
    torch.testing.assert_close(block(h), h + branch)


@pytest.mark.parametrize(
    "arch, first, last",
    [
        ("conv", [-0.00108, 0.07743, -0.1188, -0.10622], [-0.1084, 0.0727, 0.096]),
        ("fc", [-0.00014, 0.00968, -0.01485, -0.01328], [-0.03653, 0.02071, -0.02868]),
    ],
)
def test_seed_0_gives_the_weights_that_the_released_models_started_from(arch, first, last):
    """The first of the encoder and the last of the decoder, so that all between are drawn, too."""
    parameters = list(vae.build_model(vae.Config(arch=arch)).parameters())
    assert parameters[0].flatten()[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert parameters[-1][-3:].tolist() == pytest.approx(last, abs=1e-5)


def test_a_vae_samples_around_mu_with_the_noise_it_is_given_and_an_autoencoder_does_not():
    """dz/dmu = 1 and dz/dlogvar = eps * sigma / 2."""
    x = batch(SMALL)
    model = vae.build_model(SMALL)
    eps = randn(2, 3, seed=7)
    out = model(x, of_seed(7))
    torch.testing.assert_close(out.z, out.mu + torch.exp(0.5 * out.logvar) * eps)
    to_mu, to_logvar = torch.autograd.grad(out.z.sum(), (out.mu, out.logvar))
    assert torch.equal(to_mu, torch.ones(2, 3))
    torch.testing.assert_close(to_logvar, (out.z - out.mu) / 2)
    assert torch.equal(model(x, eps).z, out.z)
    out = vae.build_model(dataclasses.replace(SMALL, model="ae", beta=None))(x)
    assert torch.equal(out.z, out.mu)
