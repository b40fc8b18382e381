"""Config and networks: sizes at every resolution, seeds, the sampling of z, counts of weights and operations."""
from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

import vae_helpers as vae


def batch(config, n=2, seed=0):
    unit = torch.rand(n, config.channels, config.image_size, config.image_size, generator=torch.Generator().manual_seed(seed))
    return vae.to_input(unit, config)


def residual_blocks(model):
    return [m for m in model.modules() if isinstance(m, vae.Residual)]


def same_weights(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# ── Config ──────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("choices", [
    {"dataset": "imagenet"}, {"arch": "resnet"}, {"model": "gan"}, {"downsample": "avgpool"}, {"likelihood": "laplace"},
    {"channels": 2}, {"image_size": 0}, {"image_size": 1}, {"image_size": 32.0}, {"latent_dim": 0}, {"latent_dim": 4.0},
    {"epochs": -1}, {"batch_size": 0}, {"width": 0}, {"depth": 0}, {"depth": 6}, {"max_images": 0},
    {"arch": "fc", "width": 3, "depth": 3}, {"lr": 0}, {"lr": -1e-3}, {"lr": math.nan}, {"lr": math.inf}, {"lr": "fast"},
    {"beta": -1}, {"beta": math.nan}, {"beta": "high"}, {"seed": 2 ** 70}, {"seed": 1.5},
    {"norm": "layer"}, {"residual": -1}, {"residual": 1.5}, {"kl_warmup": -1}, {"kl_warmup": 0.5}, {"schedule": "cosine"}, {"ema": 1},
    {"ema": -0.1}, {"ema": math.nan}, {"ema": "slow"}], ids=str)
def test_config_refuses_a_value_that_cannot_work_in_one_sentence_that_names_it(choices):
    with pytest.raises(vae.VAEError) as caught:
        vae.Config(**choices)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    assert str(list(choices.values())[-1]) in message


@pytest.mark.parametrize("size", [2, 5, 31, 32, 33, 64])
def test_the_depth_that_a_refusal_recommends_is_accepted(size):
    with pytest.raises(vae.VAEError) as caught:
        vae.Config(image_size=size, depth=31)
    recommended = int(str(caught.value).split("use depth ")[1].split()[0])
    assert vae.Config(image_size=size, depth=recommended).depth == recommended
    with pytest.raises(vae.VAEError):
        vae.Config(image_size=size, depth=recommended + 1)


@pytest.mark.parametrize("choices, expected", [
    ({"image_size": 28}, {"depth": 2, "width": 32}), ({"image_size": 32}, {"depth": 3}), ({"image_size": 64}, {"depth": 4}),
    ({"arch": "fc"}, {"depth": 2, "width": 512}), ({"dataset": "celeba"}, {"likelihood": "squared_error", "value_range": (-1, 1)}),
    ({"dataset": "mnist"}, {"likelihood": "bernoulli", "value_range": (0, 1)}),
    ({"likelihood": "gaussian"}, {"value_range": (0, 1)}), ({"model": "ae", "beta": 1.0}, {"beta": 0})], ids=str)
def test_config_fills_in_what_was_not_given(choices, expected):
    config = vae.Config(**choices)
    assert {name: getattr(config, name) for name in expected} == expected


def test_config_survives_json():
    config = vae.Config(dataset="celeba", image_size=64, beta=4, max_images=10)
    assert vae.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("change", [{"seed": 1}, {"beta": 2.0}, {"lr": 1e-4}, {"epochs": 11}, {"width": 16}, {"arch": "fc"},
                                    {"max_images": 5}, {"downsample": "maxpool"}, {"norm": "batch"}, {"residual": 1}, {"kl_warmup": 1},
                                    {"schedule": "one_cycle"}, {"ema": 0.9}, {"likelihood": "gaussian"}], ids=str)
def test_another_config_has_another_run_name(change):
    assert vae.Config(**change).run_name != vae.Config().run_name


def test_equal_configs_have_equal_run_names():
    """beta=4 in a notebook and --beta 4 (4.0) in train.py are one run."""
    whole, floating = vae.Config(beta=4, lr=1), vae.Config(beta=4.0, lr=1.0)
    assert whole == floating
    assert whole.run_name == floating.run_name


def test_config_for_follows_the_data(shapes):
    config = vae.config_for(shapes, latent_dim=7)
    assert (config.dataset, config.image_size, config.channels, config.latent_dim) == ("shapes", 32, 3, 7)


def test_fast_mode_means_one_epoch(shapes, monkeypatch):
    monkeypatch.setenv("VAE_FAST", "1")
    assert vae.config_for(shapes, epochs=30).epochs == 1


@pytest.mark.parametrize("fast", ["0", "1"])
def test_VAE_EPOCHS_overrides_the_epochs(shapes, monkeypatch, fast):
    monkeypatch.setenv("VAE_FAST", fast)
    monkeypatch.setenv("VAE_EPOCHS", "7")
    assert vae.config_for(shapes, epochs=30).epochs == 7


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", "²"])
def test_a_VAE_EPOCHS_that_is_no_count_is_refused(shapes, monkeypatch, text):
    monkeypatch.setenv("VAE_EPOCHS", text)
    with pytest.raises(vae.VAEError, match="epochs must be"):
        vae.config_for(shapes)


def test_VAE_DEVICE_names_the_device(monkeypatch):
    monkeypatch.setenv("VAE_DEVICE", "cpu:0")
    assert vae.get_device() == torch.device("cpu:0")


def test_a_VAE_DEVICE_that_does_not_exist_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("VAE_DEVICE", "warp-drive")
    with pytest.raises(vae.VAEError, match="VAE_DEVICE"):
        vae.get_device()


# ── Sampling z ──────────────────────────────────────────────────────────────────────────────────

def test_samples_of_z_have_the_distribution_of_rsample():
    """Quantiles of 100,000 samples lie where Normal(mu, sigma) has them."""
    mu, logvar = torch.tensor([[2.0, -0.5]]), torch.tensor([[-2.0, 1.0]])
    z = vae.reparameterize(mu.expand(100_000, 2), logvar.expand(100_000, 2), torch.Generator().manual_seed(0))
    uniform = Normal(mu, (0.5 * logvar).exp()).cdf(z)   # uniform on [0, 1] when z has this distribution
    levels = torch.linspace(0.05, 0.95, 19)
    assert (uniform.quantile(levels, dim=0) - levels[:, None]).abs().max() < 0.01
    assert abs(torch.corrcoef(uniform.T)[0, 1]) < 0.02   # dimensions are independent


def test_gradients_pass_through_the_sample():
    """dz/dmu = 1 and dz/dlogvar = eps * sigma / 2."""
    mu, logvar = torch.zeros(3, 2, requires_grad=True), torch.full((3, 2), 0.7, requires_grad=True)
    z = vae.reparameterize(mu, logvar, torch.Generator().manual_seed(0))
    z.sum().backward()
    assert torch.equal(mu.grad, torch.ones(3, 2))
    torch.testing.assert_close(logvar.grad, (z - mu).detach() / 2)


def test_the_generator_decides_the_sample():
    mu, logvar = torch.zeros(3, 2), torch.zeros(3, 2)
    first, again, other = (vae.reparameterize(mu, logvar, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_vae_samples_z_around_mu():
    config = vae.Config(image_size=16, width=4, latent_dim=3)
    model, x = vae.build_model(config), batch(config)
    out = model(x, torch.Generator().manual_seed(5))
    mu, logvar = model.encode(x)
    assert torch.equal(out.z, vae.reparameterize(mu, logvar, torch.Generator().manual_seed(5)))
    assert not torch.equal(out.z, mu)


def test_an_autoencoder_does_not_sample():
    config = vae.Config(image_size=16, width=4, latent_dim=3, model="ae")
    out = vae.build_model(config)(batch(config))
    assert torch.equal(out.z, out.mu)


# ── Networks ────────────────────────────────────────────────────────────────────────────────────

@st.composite
def configs(draw):
    size = draw(st.integers(28, 130))
    arch = draw(st.sampled_from(["conv", "fc"]))
    depth = draw(st.integers(1, int(math.log2(size)))) if arch == "conv" else draw(st.integers(1, 3))
    width = draw(st.integers(1, 2 if depth > 4 else 6)) if arch == "conv" else draw(st.integers(4, 20))
    inside = {"norm": draw(st.sampled_from(["none", "batch"])), "residual": draw(st.integers(0, 2))} if arch == "conv" else {}
    return vae.Config(image_size=size, channels=draw(st.sampled_from([1, 3])), arch=arch, depth=depth, width=width, **inside,
                      downsample=draw(st.sampled_from(["stride", "maxpool"])), latent_dim=draw(st.integers(1, 9)),
                      model=draw(st.sampled_from(["vae", "ae"])),
                      likelihood=draw(st.sampled_from(["bernoulli", "squared_error", "gaussian"])))


@settings(max_examples=150)
@given(configs())
def test_x_hat_has_the_shape_and_the_range_of_x(config):
    """Any size, odd ones too, any depth: pooling rounds down and the decoder gives the lost row back."""
    model, x = vae.build_model(config), batch(config)
    with torch.no_grad():
        out = model(x)
        x_hat = model.decode(out.z * 50)   # far out, where the last activation saturates
    assert out.mu.shape == out.logvar.shape == out.z.shape == (2, config.latent_dim)
    assert out.x_raw.shape == x_hat.shape == x.shape
    low, high = config.value_range
    assert low <= x_hat.min() and x_hat.max() <= high


@pytest.mark.parametrize("likelihood, activation", [("bernoulli", torch.sigmoid), ("squared_error", torch.tanh),
                                                    ("gaussian", torch.sigmoid)])
@pytest.mark.parametrize("arch", ["conv", "fc"])
def test_decode_is_the_last_activation_of_x_raw(likelihood, activation, arch):
    config = vae.Config(image_size=16, width=8, latent_dim=3, arch=arch, likelihood=likelihood)
    model = vae.build_model(config)
    out = model(batch(config))
    torch.testing.assert_close(model.decode(out.z), activation(out.x_raw))


def test_the_assignments_model_halves_32_to_4_and_mirrors_it():
    model, sizes = vae.build_model(vae.Config()), []
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda layer, x, y: sizes.append(tuple(y.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (64, 8, 8), (32, 16, 16), (3, 32, 32)]


def test_the_assignments_model_has_1_119_811_weights():
    """By hand: three convolutions, two heads, a linear layer, three transposed convolutions."""
    encoder = (3 * 16 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 16 + 1) * 128 + 2 * (2048 + 1) * 128
    decoder = (128 + 1) * 2048 + (128 * 16 * 64 + 64) + (64 * 16 * 32 + 32) + (32 * 16 * 3 + 3)
    assert encoder + decoder == 1_119_811
    assert vae.count_parameters(vae.build_model(vae.Config())) == 1_119_811


@pytest.mark.parametrize("choices", [{}, {"arch": "fc"}, {"residual": 2},
                                     {"residual": 1, "norm": "batch", "downsample": "maxpool"}], ids=str)
def test_every_weight_of_a_vae_is_trained(choices):
    """Each parameter gets a gradient from the loss, so that no part is left unconnected."""
    config = vae.Config(image_size=16, width=8, latent_dim=3, **choices)
    model, x = vae.build_model(config), batch(config, 8)
    for block in residual_blocks(model):   # as after a first step: the zeros that they start with let no gradient further in
        nn.init.normal_(block.branch[-1].weight)
    out = model(x)
    (vae.reconstruction_nats(out.x_raw, x, "bernoulli") + vae.kl_nats(out.mu, out.logvar)).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_an_image_is_encoded_alike_alone_and_in_a_batch(norm):
    """Batch normalisation too, once a model is looked at and no longer trained."""
    config = vae.Config(image_size=16, width=4, latent_dim=3, norm=norm)
    model, x = vae.build_model(config), batch(config, 4)
    model(x)
    torch.testing.assert_close(vae.encode_images(model, x)[0][2:3], vae.encode_images(model, x[2:3])[0])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_residual_blocks_start_as_the_identity_at_every_size(norm):
    config = vae.Config(image_size=16, width=4, latent_dim=3, residual=2, norm=norm)
    blocks, seen = residual_blocks(vae.build_model(config)), []
    for block in blocks:
        h = torch.randn(2, block.branch[-1].out_channels, 5, 5)
        seen.append(h.shape[1])
        assert torch.equal(block(h), h)
    assert seen == [4, 4, 8, 8, 8, 8, 4, 4]   # the encoder's two sizes, then the decoder's


def test_a_residual_block_equals_its_formula():
    """h + conv1x1(relu(conv3x3(relu(h)))), computed by hand."""
    block, h = vae.Residual(3, "none"), torch.randn(2, 3, 6, 6)
    _, wide, _, narrow = block.branch
    nn.init.normal_(narrow.weight)
    inner = nn.functional.conv2d(h.clamp(min=0), wide.weight, wide.bias, padding=1).clamp(min=0)
    torch.testing.assert_close(block(h), h + torch.einsum("oi,nihw->nohw", narrow.weight[:, :, 0, 0], inner))


def test_batch_normalisation_stands_before_each_inner_activation():
    model = vae.build_model(vae.Config(norm="batch", residual=1))
    layers = [m for m in model.modules() if not list(m.children())]
    before = [type(a).__name__ for a, b in itertools.pairwise(layers) if isinstance(b, nn.ReLU)]
    assert before == ["BatchNorm2d"] * (6 + 2 * 6)   # 3 + 1 + 2 outside the 6 blocks, 2 inside each
    assert not any(isinstance(m, nn.BatchNorm2d) for m in vae.build_model(vae.Config(residual=1)).modules())


@pytest.mark.parametrize("choices", [{"norm": "batch"}, {"residual": 1}], ids=str)
def test_norm_and_residual_are_refused_for_fc(choices):
    with pytest.raises(vae.VAEError, match="arch conv.*plain[.]$"):
        vae.Config(arch="fc", **choices)


def test_the_seed_decides_the_weights():
    small = {"image_size": 16, "width": 4, "latent_dim": 3}
    first, again, other = (vae.build_model(vae.Config(**small, seed=s)) for s in (3, 3, 4))
    assert same_weights(first, again) and not same_weights(first, other)


def test_build_model_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    vae.build_model(vae.Config(image_size=16, width=4, latent_dim=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_count_flops_equals_a_count_by_hand():
    """Two operations per multiply-add: outputs * inputs of each, of a convolution kernel, a head, the way back."""
    model = vae.build_model(vae.Config(image_size=4, channels=1, width=2, depth=1, latent_dim=3))
    convolution = 2 * (2 * 2 * 2) * (1 * 4 * 4)      # 2 channels of 2x2 outputs, each from a 4x4 patch
    heads, linear = 2 * (2 * 3) * 8, 2 * 8 * 3       # mu and logvar from 8 features; 8 features from z
    transposed = 2 * (2 * 2 * 2) * (1 * 4 * 4)       # each of 8 inputs paints a 4x4 patch
    assert vae.count_flops(model) == convolution + heads + linear + transposed


def test_count_flops_changes_nothing():
    model = vae.build_model(vae.Config(image_size=16, width=4, latent_dim=3, norm="batch"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    vae.count_flops(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("config", [vae.Config(), vae.Config(image_size=28, channels=1, latent_dim=20), vae.Config(image_size=64, width=8)],
                         ids=["cifar10", "mnist", "faces"])
def test_fc_width_for_finds_the_width_with_the_closest_count(config):
    def distance(width):
        fc = dataclasses.replace(config, arch="fc", width=width, depth=2)
        return abs(vae.count_parameters(vae.build_model(fc)) - parameters)

    parameters = vae.count_parameters(vae.build_model(config))
    best = vae.fc_width_for(config, parameters)
    assert distance(best) <= min(distance(best - 1), distance(best + 1))
    assert distance(best) < 0.01 * parameters


def test_data_dir_with_a_named_data_set_is_refused():
    with pytest.raises(vae.VAEError, match="VAE_DATA"):
        vae.Config(dataset="cifar10", data_dir="somewhere")
