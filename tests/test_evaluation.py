"""Evaluation: likelihood bounds, bits, picture metrics and Fréchet distances against exact values, then evaluate.py as a whole."""
from __future__ import annotations

import json
import math
import types

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import scipy.ndimage
import torch
from conftest import SMALL, take
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import evaluate
import vae_helpers as vae


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ── A model whose likelihood is known: x = 0.5 + W z + sigma * noise ────────────────────────────

SIGMA = 0.05
W = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]) * torch.tensor([0.05, 0.02])   # orthogonal columns


def posterior(x):
    """Mean and variance of p(z|x); its covariance is diagonal because the columns of W are orthogonal."""
    variance = 1 / (1 + W.square().sum(0) / SIGMA ** 2)
    return (x.flatten(1) - 0.5) @ W / SIGMA ** 2 * variance, variance


class Encoder(nn.Module):
    """q(z|x): the exact posterior, or one that is shifted and too wide."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.weight = exact, nn.Parameter(W)

    def forward(self, x):
        mu, variance = posterior(x)
        logvar = variance.log().expand_as(mu)
        return (mu, logvar) if self.exact else (mu + torch.tensor([0.4, -0.6]), logvar + torch.tensor([0.5, 0.0]))


class Decoder(nn.Module):
    def forward(self, z):
        return torch.logit(0.5 + z @ W.T).reshape(-1, 1, 2, 2)


def linear_model(exact):
    model = vae.build_model(vae.Config(image_size=2, channels=1, latent_dim=2, width=1, depth=1, likelihood="gaussian"))
    model.encoder, model.decoder = Encoder(exact), Decoder()
    model.sigma.fill_(SIGMA)
    return model


X = (0.5 + randn(6, 2) @ W.T + SIGMA * randn(6, 4, seed=1)).reshape(6, 1, 2, 2)
EXACT = -MultivariateNormal(torch.full((4,), 0.5).double(), (W @ W.T + SIGMA ** 2 * torch.eye(4)).double()).log_prob(X.flatten(1).double())


@pytest.mark.parametrize("k", [1, 7, 2000])
def test_with_the_exact_posterior_every_k_gives_the_exact_likelihood(k):
    torch.testing.assert_close(evaluate.iwae_nats(linear_model(exact=True), X, k), EXACT, rtol=0, atol=2e-3)


def test_many_samples_of_another_q_come_close_to_the_exact_likelihood():
    torch.testing.assert_close(evaluate.iwae_nats(linear_model(exact=False), X, 20_000), EXACT, rtol=0, atol=0.05)


def test_one_sample_is_the_negative_elbo():
    """-log p(x) + KL(q || posterior), in closed form; the loss that is trained on has the same mean."""
    model, n = linear_model(exact=False), 1000
    mu, logvar = model.encode(X)
    q, p = (MultivariateNormal(m, torch.diag_embed(v)) for m, v in ((mu, logvar.exp()), posterior(X)))
    elbo = EXACT + kl_divergence(q, p).detach().double()
    for i in (0, 3):
        images = X[i:i + 1].repeat(n, 1, 1, 1)
        for nats in (evaluate.iwae_nats(model, images, 1), sum(vae.image_losses(model, images))):
            assert nats.mean().item() == pytest.approx(elbo[i].item(), abs=4 * nats.std().item() / math.sqrt(n))


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error", "gaussian"])
def test_one_sample_is_the_negative_elbo_of_a_network_too(shapes, likelihood):
    model = vae.build_model(vae.config_for(shapes, **SMALL, likelihood=likelihood))
    images = shapes.test.images[:1].repeat(200, 1, 1, 1)
    bound, loss = evaluate.iwae_nats(model, images, 1, seed=1), sum(vae.image_losses(model, images))
    assert bound.mean().item() == pytest.approx(loss.mean().item(), abs=4 * (bound.std() + loss.std()).item() / math.sqrt(200))


def test_the_bound_falls_with_k_towards_the_likelihood_on_average():
    """600 draws for each k: the 6 images, 100 times each."""
    model, means = linear_model(exact=False), []
    for k in (1, 2, 8, 64):
        bounds = evaluate.iwae_nats(model, X.repeat(100, 1, 1, 1), k)
        means.append((bounds - EXACT.repeat(100)).mean().item())
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.3 and 0 < means[-1] < 0.05


def test_the_bound_does_not_depend_on_how_many_are_decoded_at_once():
    model = linear_model(exact=False)
    at_once = [evaluate.iwae_nats(model, X, 64, decoded_at_once=n) for n in (8, 16, 32, 64, 1000)]   # torch draws 16 numbers at a time
    for other in at_once[1:]:
        torch.testing.assert_close(other, at_once[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(evaluate.iwae_nats(model, X, 20_000, decoded_at_once=777), EXACT, rtol=0, atol=0.05)


def test_the_bound_is_seeded():
    model = linear_model(exact=False)
    first, again, other = (evaluate.iwae_nats(model, X, 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("measure", [lambda m, x: evaluate.iwae_nats(m, x, 2), lambda m, x: vae.bits_per_dim(m, x, x)], ids=["iwae", "bits"])
def test_an_autoencoder_has_no_likelihood(shapes, measure):
    with pytest.raises(vae.VAEError, match="is a point.* measure a"):
        measure(vae.build_model(vae.config_for(shapes, **SMALL, model="ae")), shapes.test.images[:2])


# ── Bits per dimension ──────────────────────────────────────────────────────────────────────────

def test_bits_per_dim_add_up_by_hand_with_the_best_scale_for_the_tuning_images(model, shapes):
    def nats(images, scale):
        mu, logvar = vae.encode_images(model, images)
        mean = vae.decode_images(model, vae.reparameterize(mu, logvar, torch.Generator().manual_seed(3)))
        return vae.discretised_logistic_nats(mean, images, scale), vae.kl_nats(mu, logvar)

    found = vae.bits_per_dim(model, shapes.test.images, shapes.val.images, seed=3)
    scale = found["logistic_scale_grey_levels"]
    best = nats(shapes.val.images, scale)[0].mean()
    assert all(nats(shapes.val.images, f * scale)[0].mean() > best for f in (0.1, 0.95, 1.05, 10))
    bits = sum(nats(shapes.test.images, scale)) / (3 * 32 * 32 * math.log(2))
    assert found["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-5)
    assert found["bits_per_dim_se"] == pytest.approx(bits.std().item() / math.sqrt(48), rel=1e-4)


def test_a_known_distribution_of_pixels_costs_its_entropy(shapes):
    """A model that knows nothing but the mean, of pixels that are a rounded logistic of scale 9; z is free."""
    model = vae.build_model(vae.Config(image_size=8, channels=1, latent_dim=2, width=2, depth=1))
    for p in model.parameters():
        nn.init.zeros_(p)
    u = rand(1500, 1, 8, 8).double()
    images = (127.5 + 9 * torch.logit(u)).round().clamp(0, 255).byte()
    edges = torch.sigmoid((torch.arange(257) - 0.5 - 127.5).double() / 9)
    entropy = torch.special.entr(edges.diff() / edges.diff().sum()).sum().item() / math.log(2)
    found = vae.bits_per_dim(model, images[:1100], images[1100:])
    assert found["logistic_scale_grey_levels"] == pytest.approx(9, rel=0.03)
    assert found["bits_per_dim"] == pytest.approx(entropy, abs=5 * found["bits_per_dim_se"]) and found["bits_per_dim_se"] < 0.01


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────

def test_picture_metrics_equal_a_computation_by_hand():
    """501 images, one more than a batch holds. SSIM as Wang et al. 2004: Gaussian window, 11 pixels, sigma 1.5."""
    x = (rand(501, 1, 8, 8) * 255).byte()
    x_hat = (x / 255 + torch.linspace(0.01, 0.3, 501).reshape(-1, 1, 1, 1) * randn(501, 1, 8, 8, seed=1)).clamp(0, 1)
    a, b = x_hat.double().numpy(), x.double().numpy() / 255

    def blur(images):
        return scipy.ndimage.gaussian_filter(images, (0, 0, 1.5, 1.5), truncate=3.5, mode="mirror")

    covariance = [blur(p * q) - blur(p) * blur(q) for p, q in ((a, a), (b, b), (a, b))]
    ssim = ((2 * blur(a) * blur(b) + 1e-4) * (2 * covariance[2] + 9e-4)
            / ((blur(a) ** 2 + blur(b) ** 2 + 1e-4) * (covariance[0] + covariance[1] + 9e-4)))
    mse = ((a - b) ** 2).mean((1, 2, 3))
    expected = {"mse": mse.mean(), "psnr_db": (-10 * np.log10(mse)).mean(), "ssim": ssim.mean()}
    assert vae.picture_metrics(x_hat, x) == pytest.approx(expected, rel=1e-4)
    assert vae.picture_metrics(x_hat, x / 255) == vae.picture_metrics(x_hat, x)


def test_a_picture_is_like_itself():
    x = rand(3, 3, 32, 32)
    found = vae.picture_metrics(x, x)
    assert found["mse"] == 0 and found["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 5])
def test_the_smallest_images_have_picture_metrics_too(size):
    """image_size may be 2; what evaluate.py measures of every model must not fail on it."""
    vae.picture_metrics(rand(2, 3, size, size), rand(2, 3, size, size, seed=1))


# ── Fréchet distance and features ───────────────────────────────────────────────────────────────

def test_frechet_distance_of_known_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 when both covariances are diagonal."""
    (m1, s1), (m2, s2) = (torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 2, 0.5])), (torch.tensor([0, 0, 2.0]), torch.tensor([3.0, 1, 0.5]))
    real, fake = m1 + s1 * randn(50_000, 3), m2 + s2 * randn(50_000, 3, seed=1)
    assert vae.frechet_distance(real, fake) == pytest.approx(5 + 4 + 1, rel=0.02)


@pytest.mark.parametrize("n, features", [(300, 5), (30, 40)], ids=["full rank", "fewer images than features"])
def test_frechet_distance_equals_one_with_scipys_matrix_root(n, features):
    real = (randn(n, features) @ randn(features, features, seed=1)).double()
    fake = (randn(n + 9, features, seed=2) @ randn(features, features, seed=3) + 1).double()
    a, b = (np.cov(f.numpy().T) for f in (real, fake))
    root = scipy.linalg.sqrtm(scipy.linalg.sqrtm(a) @ b @ scipy.linalg.sqrtm(a)).real
    expected = (real.mean(0) - fake.mean(0)).square().sum().item() + np.trace(a + b - 2 * root)
    assert vae.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-3)
    assert vae.frechet_distance(fake, real) == pytest.approx(expected, rel=1e-3)   # symmetric


def test_frechet_distance_of_a_set_to_itself_is_zero():
    real = randn(200, 6)
    assert vae.frechet_distance(real, real[torch.randperm(200)]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_feature_net_takes_grey_and_colour_of_any_size(size, channels):
    net, x = vae.FeatureNet().eval(), rand(2, channels, size, size)
    assert [tuple(a.shape) for a in net.activations(x)] == [(2, w) for w in net.WIDTHS]
    assert net.features(x).shape == (2, 464) and net(x).shape == (2, 10)
    torch.testing.assert_close(net.features(x), net.features(x.expand(-1, 3, -1, -1)))
    net.scale.fill_(2)
    torch.testing.assert_close(net.features(x), torch.cat(net.activations(x), 1) / 2)


def test_the_released_feature_net_is_ready_to_measure_with(shapes):
    net = vae.load_feature_net()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    images = shapes.train.images.repeat(3, 1, 1, 1)[:502]   # more than one batch
    found = vae.image_features(images, net)
    assert found.shape == (502, 464) and found.isfinite().all()
    torch.testing.assert_close(found[-3:], net.features(images[-3:] / 255), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(vae.image_features(images[:2] / 255, net), found[:2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", [lambda path: None, lambda path: path.write_bytes(b"\xff" * 100), lambda path: path.write_bytes(b""),
                                    lambda path: safetensors.torch.save_file({"other": torch.zeros(3)}, path),
                                    lambda path: safetensors.torch.save_file(vae.FeatureNet(7).state_dict(), path)],
                         ids=["missing", "garbage", "empty", "other weights", "another size"])
def test_a_missing_or_damaged_feature_net_is_refused_in_one_sentence(tmp_path, monkeypatch, damage):
    path = tmp_path / "checkpoints" / "features" / "features.safetensors"
    path.parent.mkdir(parents=True)
    damage(path)
    monkeypatch.setattr(vae, "HERE", tmp_path)
    with pytest.raises(vae.CheckpointError) as caught:
        vae.load_feature_net()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith("checkpoints/features.py.")


def test_without_torch_fidelity_or_its_weights_inception_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(vae.VAEError, match="torch-fidelity") as caught:
        evaluate.Inception(tmp_path / "nowhere.pth")
    assert "\n" not in str(caught.value) and str(caught.value).endswith("Fréchet feature distance.")


def test_inception_sees_the_pixels_as_uint8_rgb(shapes, monkeypatch):
    class Stub(nn.Module):
        def __init__(self, *arguments):
            super().__init__()
            self.weight, self.arguments = nn.Parameter(torch.zeros(1)), arguments

        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.flatten(1).float()

    stub = types.SimpleNamespace(image=types.SimpleNamespace(fid=types.SimpleNamespace(NoTrainInceptionV3=Stub)))
    monkeypatch.setattr(vae, "_torchmetrics", lambda: stub)
    net, images = evaluate.Inception("weights.pth"), torch.arange(256).byte().reshape(1, 1, 16, 16)
    assert net.net.arguments[-1] == "weights.pth"
    assert torch.equal(vae.image_features(images, net), images.expand(1, 3, 16, 16).flatten(1).float())


# ── Collapse and standard errors ────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("test, warned", [({"kl_nats": 0.2, "active_dims": 0}, True), ({"kl_nats": 0.2, "active_dims": 3}, True),
                                          ({"kl_nats": 7.0, "active_dims": 0}, True), ({"kl_nats": 1.0, "active_dims": 1}, False)], ids=str)
def test_a_collapse_is_a_kl_of_nearly_nothing_or_no_active_dimension(test, warned):
    said = evaluate.collapse_warning(test, vae.Config(beta=7.5))
    assert bool(said) == warned
    assert not said or ("collapsed" in said and "than 7.5" in said and "\n" not in said)
    assert evaluate.collapse_warning(test, vae.Config(model="ae")) is None


def test_a_model_without_a_code_is_warned_of_and_one_with_a_code_is_not(shapes):
    """The encoder's means 1,000 times as large as they are drawn, and all 0."""
    config = vae.config_for(shapes, **SMALL)
    for factor, active in ((1000, 4), (0, 0)):
        model = vae.build_model(config)
        for p in model.encoder[-1].parameters():
            p.data *= factor if p is model.encoder[-1].mu.weight else 0
        measured = vae.evaluate(model, shapes.test.images)
        assert measured["active_dims"] == active and (measured["kl_nats"] == 0) == (active == 0)
        assert bool(evaluate.collapse_warning(measured, config)) == (active == 0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
def test_standard_error_by_hand(values):
    mean = sum(values) / len(values)
    expected = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert vae.standard_error(torch.tensor(values, dtype=torch.float64)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert vae.standard_error(torch.tensor(values[:1])) == 0


def test_evaluate_gives_the_standard_error_of_its_total(model, shapes):
    total = sum(vae.image_losses(model, shapes.test.images))
    assert vae.evaluate(model, shapes.test.images)["total_nats_se"] == pytest.approx(total.std().item() / math.sqrt(48))


# ── evaluate.py, the whole of it ────────────────────────────────────────────────────────────────

def evaluated(config, data, out, *arguments):
    """metrics of evaluate.py on a run of one epoch, with fewer samples than it takes by itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IWAE_K": (1, 3), "IWAE_IMAGES": 4, "PAIRS": 200, "DRAWN": 600, "VOTES": 20}.items():
            patch.setattr(evaluate, name, value)
        vae.train_run(config, data, out / "run", progress=False)
        return evaluate.main(["--run", str(out / "run"), "--out", str(out), "--num_samples", "4", *arguments])


TINY = {"dataset": "shapes", "latent_dim": 4, "width": 4, "epochs": 1, "lr": 3e-3, "max_images": 1000}


@pytest.fixture(scope="module")
def whole(all_shapes, tmp_path_factory):
    """metrics and folder; 1,000 training and test images are just enough for Fréchet distances."""
    out = tmp_path_factory.mktemp("whole")
    return evaluated(vae.Config(**TINY), take(all_shapes, 1000, 500, 1000), out, "--num_frechet", "1000", "--components", "3"), out


def test_evaluate_measures_every_part_and_reports_it(whole):
    metrics, out = whole
    parts = [name for name, value in metrics.items() if isinstance(value, dict)]
    assert parts == ["test", "pictures", "latent_space", "likelihood", "smoothness", "disentanglement", "frechet", "memorisation"]
    assert json.loads((out / "metrics.json").read_text()) == metrics
    report = (out / "report.md").read_text()
    assert all(f"## {name}\n" in report for name in parts) and f"{metrics['frechet']['ffd_samples_prior']:,.4f}" in report
    for name in ("nearest_samples_prior.png", "nearest_samples_mixture.png", "samples_mixture.png"):
        assert Image.open(out / name).size[0] > 32


def test_evaluates_parts_are_those_of_the_functions(whole, all_shapes):
    metrics, out = whole
    (model, _), test = vae.load_checkpoint(out / "run"), all_shapes.test.images
    bounds = evaluate.iwae_nats(model, test[:4], 3)
    assert metrics["likelihood"]["iwae_3_nats"] == pytest.approx(bounds.mean().item())
    assert metrics["likelihood"]["iwae_gain_3_nats"] == pytest.approx((evaluate.iwae_nats(model, test[:4], 1) - bounds).mean().item(), abs=1e-3)
    bits = vae.bits_per_dim(model, test, all_shapes.val.images)
    assert {k: metrics["likelihood"][k] for k in bits} == pytest.approx(bits)
    assert metrics["pictures"]["mse"] == pytest.approx(metrics["test"]["mse"], rel=1e-4)
    assert sum(metrics["latent_space"]["kl_per_dim_nats"]) == pytest.approx(metrics["test"]["kl_nats"], abs=1e-3)
    assert metrics["smoothness"]["pairs"] == 200 and metrics["memorisation"]["training_images"] == 1000


def test_frechet_distances_compare_each_set_with_the_test_images(whole, all_shapes):
    metrics, out = whole
    (model, _), net = vae.load_checkpoint(out / "run"), vae.load_feature_net()
    found = metrics["frechet"]
    sets = ("real_train", "reconstructions", "samples_prior", "samples_mixture", "midpoints_linear", "midpoints_spherical")
    assert found["images"] == 1000 and set(found) == {"images", "components", *(f"ffd_{name}" for name in sets)}
    sets = vae.picture_sets(model, take(all_shapes, 1000, 500, 1000), 1000, components=3)
    assert all(s.shape == (1000, 3, 32, 32) for s in sets.values())
    real, fake = (vae.image_features(i, net) for i in (all_shapes.test.images, sets["samples_mixture"]))
    assert found["ffd_samples_mixture"] == pytest.approx(vae.frechet_distance(real, fake), rel=1e-3)
    assert torch.equal(sets["samples_prior"], vae.sample_images(model, 1000))
    assert 0 <= found["ffd_real_train"] < min(v for k, v in found.items() if k not in ("images", "components", "ffd_real_train"))


@pytest.mark.parametrize("choices, arguments, left_out", [
    ({"model": "ae"}, ["--num_frechet", "999"], {"likelihood", "frechet", "memorisation"}),
    ({"likelihood": "gaussian", "norm": "batch"}, ["--quick"],
     {"likelihood", "smoothness", "disentanglement", "frechet", "memorisation"})], ids=str)
def test_evaluate_leaves_parts_out(all_shapes, tmp_path, choices, arguments, left_out, capsys):
    metrics = evaluated(vae.Config(**TINY, **choices), take(all_shapes, 1000, 500, 1000), tmp_path, *arguments)
    every = {"test", "pictures", "latent_space", "likelihood", "smoothness", "disentanglement", "frechet", "memorisation"}
    assert every - {name for name, value in metrics.items() if isinstance(value, dict)} == left_out
    assert ("Fréchet distances and neighbours are left out" in capsys.readouterr().out) == ("--quick" not in arguments)
