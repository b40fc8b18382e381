"""The whole family: one objective with the papers' weights, MMD, the conditional VAE, the vector-quantised one."""
from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from sklearn.linear_model import LogisticRegression

import evaluate
import vae_helpers as vae

ARCHS = ("conv", "fc")


def config_of(data, model="vae", **choices):
    return vae.config_for(data, **{**SMALL, "model": model, "epochs": 1, **({"codebook": 16} if model == "vq_vae" else {}), **choices})


def trained(data, **choices):
    config = config_of(data, **choices)
    model = vae.build_model(config)
    vae.fit(model, data, config, progress=False)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ── One objective ───────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("named, plain", [
    ({"model": "info_vae", "beta": 1, "mmd": 0}, {"model": "vae"}),
    ({"model": "beta_vae", "beta": 1}, {"model": "vae"}),
    ({"model": "vae", "beta": 0, "mmd": 3}, {"model": "info_vae", "mmd": 3}),
    ({"model": "wae", "mmd": 0, "likelihood": "bernoulli"}, {"model": "ae"}),
], ids=lambda c: c["model"])
def test_the_named_models_are_one_objective(shapes, named, plain):
    assert torch.equal(weights(trained(shapes, **named)), weights(trained(shapes, **plain)))


@pytest.mark.parametrize("model, beta, mmd", [("vae", 1, 0), ("beta_vae", 4, 0), ("info_vae", 0, 1000), ("wae", 0, 10), ("ae", 0, 0),
                                              ("cvae", 1, 0), ("vq_vae", 1, 0)])
def test_the_papers_weights(model, beta, mmd):
    config = vae.Config(model=model)
    assert (config.beta, config.mmd) == (beta, mmd)


def test_wae_has_its_own_weight_and_cost_on_faces():
    assert vae.Config(model="wae", dataset="celeba").mmd == 100
    assert vae.Config(model="wae", dataset="mnist").likelihood == "squared_error"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("model", vae.OBJECTIVES)
def test_every_model_learns_is_measured_and_comes_back(shapes, model, arch, tmp_path):
    run = vae.train_run(config_of(shapes, model, arch=arch, lr=5e-3, epochs=3), shapes, tmp_path / "run")
    first, last = run.record["history"][0], run.record["history"][-1]
    assert last["val_reconstruction_nats"] < first["val_reconstruction_nats"]
    assert all(math.isfinite(v) for v in run.record["test"].values())
    again, record = vae.load_checkpoint(tmp_path / "run")
    assert vae.evaluate(again, *shapes.test) == record["test"]
    samples = [vae.sample_images(m, 3, shapes.test.labels[:3], seed=1) for m in (run.model, again)]
    assert samples[0].shape == (3, 3, 32, 32) and torch.equal(*samples)
    assert 0 <= samples[0].min() and samples[0].max() <= 1


# ── Maximum mean discrepancy ────────────────────────────────────────────────────────────────────

def expected_kernel(dim, distance, variance):
    """E C / (C + r^2), r ~ N(m, variance I) with |m| = distance: 1 / (C + r^2) is the integral of exp(-t (C + r^2)) over t > 0."""
    c = 2 * dim
    return quad(lambda t: c * math.exp(-t * c - t * distance ** 2 / (1 + 2 * t * variance)) * (1 + 2 * t * variance) ** (-dim / 2), 0, np.inf)[0]


@pytest.mark.parametrize("dim, shift, scale", [(1, 0.0, 1.0), (3, 0.5, 1.0), (3, 0.0, 0.3), (20, 0.2, 1.5)])
def test_mmd_of_two_gaussians_has_its_closed_form(dim, shift, scale):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3000, dim, generator=generator) for _ in range(2))
    exact = expected_kernel(dim, 0, 2) + expected_kernel(dim, 0, 2 * scale ** 2) - 2 * expected_kernel(dim, shift * dim ** 0.5, 1 + scale ** 2)
    assert vae.mmd(a, b * scale + shift).item() == pytest.approx(exact, abs=2e-3, rel=0.05)


def test_mmd_is_unbiased():
    """Over many small batches of the same distribution its mean is 0, so it is below 0 about as often as above."""
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([vae.mmd(*torch.randn(2, 8, 2, generator=generator)) for _ in range(2000)])
    assert abs(found.mean()) < 3 * found.std() / 2000 ** 0.5 and (found < 0).float().mean() > 0.3


def test_mmd_pulls_the_codes_towards_the_prior(shapes):
    def distance(weight):
        model = trained(shapes, model="wae", mmd=weight, likelihood="bernoulli", epochs=6, lr=3e-3)
        return vae.mmd(vae.sample_codes(model, shapes.train.images), torch.randn(192, 4, generator=torch.Generator().manual_seed(0)))
    assert distance(3000.0) < 0.3 * distance(0.0)


@pytest.mark.parametrize("last", [1, 2])
def test_a_last_batch_of_one_image_is_joined_to_the_one_before(shapes, last):
    data = dataclasses.replace(shapes, train=vae.Split(*(t[:64 + last] for t in shapes.train)))
    assert torch.isfinite(weights(trained(data, model="info_vae"))).all()


# ── Conditional ─────────────────────────────────────────────────────────────────────────────────

def quarters(n, seed):
    """Four classes: which quarter of a noisy 8x8 image is bright. How bright is left to z."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.integers(0, 40, (n, 1, 8, 8))
    for i, k in enumerate(labels):
        images[i, 0, 4 * (k // 2):4 * (k // 2) + 4, 4 * (k % 2):4 * (k % 2) + 4] += rng.integers(120, 200)
    return vae.Split(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def quarter_data():
    return vae.ImageData("folder", "quarters", quarters(512, 0), quarters(32, 1), quarters(200, 2), tuple("abcd"))


@pytest.mark.parametrize("arch, width", [("conv", 8), ("fc", 32)])
def test_conditional_samples_are_recognised_as_their_class(quarter_data, arch, width):
    model = trained(quarter_data, model="cvae", arch=arch, width=width, depth=1, latent_dim=2, epochs=30, lr=5e-3)
    judge = LogisticRegression(max_iter=200).fit(quarter_data.train.images.flatten(1).numpy() / 255, quarter_data.train.labels)
    told = torch.arange(4).repeat(25)
    samples = vae.sample_images(model, 100, told)
    assert judge.score(samples.flatten(1).numpy(), told) > 0.9
    mu, _ = vae.encode_images(model, *quarter_data.test)
    other = (quarter_data.test.labels + 1) % 4
    assert judge.score(vae.decode_images(model, mu, other).flatten(1).numpy(), other) > 0.9, "the label decides, not the code"


def test_labels_become_conditions(shapes):
    classes, attributes = vae.Config(model="cvae", conditions=3), vae.Config(model="cvae", dataset="celeba", conditions=2)
    assert vae.conditions(vae.Config(), torch.tensor([1])) is None
    assert vae.conditions(classes, torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert vae.conditions(attributes, torch.tensor([[True, False]])).tolist() == [[1, 0]]
    assert vae.conditions(attributes, torch.tensor([[0.25, 0.75]])).tolist() == [[0.25, 0.75]]
    config = config_of(shapes, "cvae")
    assert vae.conditions(config, shapes.train.labels).argmax(1).tolist() == shapes.train.labels[:, 0].tolist() and config.conditions == 3


def test_a_conditional_model_wants_labels(shapes):
    model = vae.build_model(config_of(shapes, "cvae"))
    for call in (lambda: vae.encode_images(model, shapes.test.images), lambda: vae.sample_images(model, 2), lambda: vae.evaluate(model, shapes.test.images)):
        with pytest.raises(vae.VAEError, match="hand in a label for each image"):
            call()


def test_labels_that_do_not_fit_are_told(shapes):
    """Never a silent loss of images."""
    model = vae.build_model(config_of(shapes, "cvae"))
    images, labels = (t.repeat(20, *[1] * (t.ndim - 1)) for t in shapes.test)   # 960: more than one part of 500
    for call in (lambda: vae.encode_images(model, images, labels[:500]), lambda: vae.encode_images(model, images[:40], labels[:30]),
                 lambda: vae.sample_images(model, 4, labels[:2]), lambda: vae.decode_images(model, torch.zeros(4), labels[:1])):
        with pytest.raises(vae.VAEError, match="labels do not fit"):
            call()


def test_a_cvae_is_not_evaluated_with_other_classes(quarter_data, tmp_path, monkeypatch):
    vae.train_run(config_of(quarter_data, "cvae", depth=1), quarter_data, tmp_path / "run")
    other = dataclasses.replace(quarter_data, label_names=("a", "b", "c", "e"))
    monkeypatch.setattr(vae, "load_dataset", lambda *_, **__: other)
    with pytest.raises(vae.VAEError, match="was told a, b, c, d, and the labels found now are a, b, c, e"):
        evaluate.main(["--run", str(tmp_path / "run"), "--quick"])


@pytest.mark.parametrize("model", vae.OBJECTIVES)
def test_flops_are_counted_for_every_model(shapes, model):
    assert vae.count_flops(vae.build_model(config_of(shapes, model))) > 1e5

def test_a_cvae_on_images_without_labels_says_what_would_work(shapes):
    flat = dataclasses.replace(shapes, name="folder", title="holiday", label_names=("",))
    with pytest.raises(vae.VAEError, match="none in holiday: sort the images into one folder per class"):
        vae.config_for(flat, model="cvae")
    with pytest.raises(vae.VAEError, match="config_for"):
        vae.build_model(vae.Config(model="cvae"))


def test_one_label_for_all_and_labels_along_a_path(quarter_data):
    model = vae.build_model(config_of(quarter_data, "cvae", depth=1))
    z, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    each = torch.cat([vae.decode_images(model, z[i:i + 1], labels[i:i + 1]) for i in range(5)])
    assert torch.allclose(vae.decode_images(model, z, labels), each, atol=1e-6)
    assert torch.allclose(vae.decode_images(model, torch.stack([z, z]), labels), torch.stack([each, each]), atol=1e-6)
    assert torch.allclose(vae.decode_images(model, z, labels[:1]), vae.decode_images(model, z, torch.zeros(5, dtype=torch.long)), atol=1e-6)
    a, b = quarter_data.test.images[:2]
    path = vae.interpolate_images(model, a, b, 3, labels=torch.tensor([0, 3]))
    mu, _ = vae.encode_images(model, torch.stack([a, b]), torch.tensor([0, 3]))
    middle = vae.decode_images(model, mu.mean(0, keepdim=True), torch.tensor([[0.5, 0, 0, 0.5]]))
    assert torch.allclose(path[1], middle[0], atol=1e-5)


@pytest.mark.parametrize("measure", [
    lambda m, x, y: evaluate.iwae_nats(m, x, 3, y), lambda m, x, y: torch.tensor([vae.bits_per_dim(m, x, x, y, y)["bits_per_dim"]]),
    lambda m, x, y: sum(vae.image_losses(m, x, y))], ids=["iwae", "bits", "losses"])
def test_measures_tell_the_model_the_labels(quarter_data, measure):
    """With every label shifted by one class, a trained model finds the images far less likely."""
    model = trained(quarter_data, model="cvae", depth=1, latent_dim=2, epochs=20, lr=5e-3)
    images, labels = (t[:20] for t in quarter_data.test)
    assert measure(model, images, (labels + 1) % 4).mean() > measure(model, images, labels).mean()


# ── Vector-quantised ────────────────────────────────────────────────────────────────────────────

@pytest.fixture(scope="module")
def vq(shapes):
    return vae.build_model(config_of(shapes, "vq_vae", latent_dim=3))


@given(size=st.sampled_from([8, 12, 28, 32, 64]), arch=st.sampled_from(ARCHS))
def test_the_grid_of_codes_fits_every_size(size, arch):
    config = vae.Config(image_size=size, model="vq_vae", arch=arch, latent_dim=3, width=4, codebook=5)
    model = vae.build_model(config).train()
    out = model(torch.rand(2, 3, size, size))
    assert out.x_raw.shape == (2, 3, size, size) and out.indices.shape == (2, *model.grid)
    assert out.mu.shape == out.z.shape == (2, 3 * math.prod(model.grid))
    assert arch == "fc" or 4 <= model.grid[0] <= 12


def test_the_decoder_sees_the_nearest_codes(vq, shapes):
    vq.train()(shapes.train.images[:32] / 255, torch.Generator().manual_seed(0))   # sets the codes
    out = vq.eval()(shapes.test.images[:4] / 255)
    vectors, codes = vq.vectors(out.mu), vq.codebook.codes
    nearest = torch.cdist(vectors, codes).argmin(1)
    assert torch.equal(out.indices.flatten(), nearest)
    assert torch.allclose(vq.vectors(out.z), codes[nearest], atol=1e-6)
    assert torch.allclose(vq.decode_raw(out.mu), out.x_raw, atol=1e-5) and torch.allclose(vq.decode_raw(out.z), out.x_raw, atol=1e-5)


def test_the_gradient_passes_straight_through_the_codes(vq, shapes):
    out = vq.eval()(shapes.test.images[:4] / 255)
    loss = out.x_raw.square().sum()
    through, at_codes = torch.autograd.grad(loss, (out.mu, out.z))
    assert torch.equal(through, at_codes) and through.abs().sum() > 0


def test_the_price_of_the_codes_teaches_the_prior_alone(vq, shapes):
    vq.zero_grad(), vae.code_nats(vq.train(), vq(shapes.test.images[:8] / 255)).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in (*vq.encoder.parameters(), *vq.decoder.parameters()))
    assert vq.prior.place.grad.abs().sum() > 0


def test_the_commitment_pulls_the_encoder_to_its_codes(vq, shapes):
    out = vq.eval()(shapes.test.images[:4] / 255)
    grad, = torch.autograd.grad(vae.penalty(vq, out), out.mu)
    assert torch.allclose(grad, 2 * 0.25 * (out.mu - out.z) / 4, atol=1e-6)


def test_the_codes_move_to_the_means_of_what_they_stand_for():
    """Shown the same vectors again and again, the codes end as k-means would: each at the mean of its own vectors."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 3, generator=generator)
    book = vae.Codebook(8, 3)
    for _ in range(2000):
        book.update(z, generator)
    owner = book.nearest(z)
    means = torch.stack([z[owner == k].mean(0) for k in range(8)])
    assert torch.allclose(book.codes, means, atol=0.01)
    assert (z - means[owner]).square().mean() < 0.6 * z.var()


def test_dead_codes_are_set_to_what_the_encoder_says():
    book = vae.Codebook(4, 2)
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    book.update(z, torch.Generator().manual_seed(0))
    book.codes[3], book.sums[3], book.counts[3] = 1000.0, 0.0, 0.0
    book.update(z, torch.Generator().manual_seed(0))
    assert book.codes.abs().max() < 10


def test_the_prior_is_a_distribution_over_all_grids():
    prior = vae.CodePrior(2, 4)
    grids = torch.tensor(list(itertools.product([0, 1], repeat=4))).reshape(-1, 2, 2)
    with torch.no_grad():
        assert (-prior.nats(grids)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_prior_sees_only_what_stands_before():
    prior = vae.CodePrior(5, 6)
    codes = torch.randint(5, (1, 5), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[0, 3] = (codes[0, 3] + 1) % 5
    with torch.no_grad():
        before, after = prior(codes), prior(changed)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6) and not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_draws_of_the_prior_have_its_probabilities():
    prior, generator = vae.CodePrior(2, 3, width=16), torch.Generator().manual_seed(0)
    for p in prior.parameters():
        torch.nn.init.normal_(p, std=0.4, generator=generator)
    drawn = prior.sample(20_000, generator)
    grids = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    with torch.no_grad():
        p = (-prior.nats(grids[:, None])).exp()
    found = (drawn[:, None] == grids).all(2).float().mean(0)
    assert torch.allclose(found, p, atol=4 * 0.35 / 20_000 ** 0.5) and p.max() > 2 * p.min()


def test_the_prior_learns_what_the_codes_are(shapes):
    """Below the price under a uniform prior, 16 places of 16 codes, after a few epochs."""
    model = trained(shapes, model="vq_vae", epochs=4, lr=3e-3)
    found = vae.evaluate(model, *shapes.test)
    assert found["kl_nats"] < 0.8 * model.prior.place.shape[0] * math.log(16)


def test_half_precision_leaves_the_codes_as_they_are(shapes, tmp_path):
    model = trained(shapes, model="vq_vae")
    model.codebook.sums[0] = 1e6   # too large for 16 bits
    vae.save_checkpoint(model, tmp_path / "half", {}, half=True)
    again, _ = vae.load_checkpoint(tmp_path / "half")
    assert torch.equal(again.codebook.codes, model.codebook.codes) and torch.equal(again.codebook.sums, model.codebook.sums)
    assert not torch.equal(again.prior.place, model.prior.place)


def test_perplexity_counts_the_codes_in_use(vq, shapes, monkeypatch):
    def two_codes(z):
        indices = torch.zeros(len(z), *vq.grid, dtype=torch.long)
        indices[:, 0, :] = 7
        return indices
    monkeypatch.setattr(vq, "indices", two_codes)
    found = vae.evaluate(vq, shapes.test.images)
    share = 1 / vq.grid[0]
    assert found["codes_used"] == 2 and "active_dims" not in found
    assert found["perplexity"] == pytest.approx(math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share)), rel=1e-5)


def test_a_collapsed_codebook_is_told():
    config = vae.Config(model="vq_vae")
    assert "codebook has collapsed" in evaluate.collapse_warning({"kl_nats": 3.0, "perplexity": 1.2}, config)
    assert evaluate.collapse_warning({"kl_nats": 3.0, "perplexity": 90.0}, config) is None


# ── What cannot work ────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("choices, said", [
    ({"model": "gan"}, "model must be one of vae, beta_vae, info_vae, wae, ae, cvae, vq_vae"),
    ({"mmd": -1}, "mmd must be a number of at least 0"),
    ({"model": "wae", "batch_size": 1}, "MMD compares the images of a batch"),
    ({"model": "vq_vae", "mmd": 1}, "train model info_vae or wae"),
    ({"model": "wae", "beta": 3}, "model wae has none: leave beta out, or train model beta_vae"),
    ({"model": "vq_vae", "beta": 4}, "model vq_vae has none: leave beta out"),
    ({"model": "vae", "codebook": 9}, "codebook is for model vq_vae, not vae"),
    ({"model": "vae", "conditions": 3}, "conditions are for model cvae"),
    ({"model": "cvae", "conditions": -1}, "conditions must be a whole number from 0 to"),
    ({"model": "vq_vae", "codebook": 0}, "codebook must be a whole number from 1 to"),
])
def test_what_cannot_work_is_said_in_one_sentence(choices, said):
    with pytest.raises(vae.VAEError, match=said) as err:
        vae.Config(**choices)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("choices", [{"latent_dim": 128}, {"model": "cvae", "conditions": 3, "latent_dim": 2}, {"model": "vq_vae", "latent_dim": 2},
                                     {"model": "ae", "latent_dim": 2}])
def test_a_manifold_needs_two_unconditional_dimensions_with_a_prior(choices):
    with pytest.raises(vae.VAEError, match="train a vae with --latent_dim 2"):
        vae.plot_manifold(vae.build_model(vae.Config(width=4, **choices)), "T")


def test_a_vq_vae_has_no_regions(vq):
    with pytest.raises(vae.VAEError, match="has no radius"):
        vae.sample_images(vq, 2, radius=3.0)
