"""The other models: all learn, and their parts equal computations by hand."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st

import vae_helpers as vae
from support import family
from support.code_prior import CodePrior
from support.family import mmd
from support.vector_quantised import Codebook


def of_seed(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=of_seed(seed))


@pytest.mark.parametrize("arch", ["conv", "fc"])
@pytest.mark.parametrize("name", vae.MODELS)
def test_every_model_learns_and_comes_back_from_its_checkpoint(shapes, tmp_path, name, arch):
    choices = {"codebook": 16, "prior_width": 16} if name == "vq_vae" else {}
    choices |= SMALL | {"arch": arch, "lr": 5e-3, "epochs": 3}
    config = vae.config_for(shapes, model=name, **choices)
    model = vae.build_model(config)
    nats = [row["val_reconstruction_nats"] for row in vae.fit(model, shapes, config)]
    assert nats[-1] < 0.995 * nats[0]
    again, _ = vae.load_checkpoint(vae.save_checkpoint(model, tmp_path))
    assert vae.evaluate(model, *shapes.test) == vae.evaluate(again, *shapes.test)
    labels = shapes.test.labels[:3]
    samples = vae.sample_images(model, 3, labels, seed=1)
    assert torch.equal(vae.sample_images(again, 3, labels, seed=1), samples)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 4), st.integers(0, 99))
def test_mmd_equals_a_double_loop(n, m, dims, seed):
    a = randn(n, dims, seed=seed)
    b = 1.5 * randn(m, dims, seed=seed + 1)

    def mean_kernel(pairs):
        squared = torch.stack([(x - y).square().sum() for x, y in pairs])
        return (2 * dims / (2 * dims + squared)).mean()

    within = mean_kernel(itertools.permutations(a, 2)) + mean_kernel(itertools.permutations(b, 2))
    expected = within - 2 * mean_kernel(itertools.product(a, b))
    torch.testing.assert_close(mmd(a, b), expected, rtol=1e-4, atol=1e-5)


def test_mmd_of_two_samples_of_one_distribution_is_0_on_average():
    distances = torch.stack([mmd(a, b) for a, b in randn(1000, 2, 8, 2)])
    assert abs(distances.mean()) < 3 * distances.std() / math.sqrt(1000)


@pytest.mark.parametrize("name", ["info_vae", "wae"])
def test_the_penalty_is_the_weighted_mmd_of_the_codes_and_draws_of_the_prior(name):
    model = vae.build_model(vae.Config(model=name, mmd=30, width=4, latent_dim=3))
    out = model(torch.rand(8, 3, 32, 32, generator=of_seed(0)), of_seed(0))
    penalty = model.penalty(out, of_seed(1))
    torch.testing.assert_close(penalty, 30 * mmd(out.z, randn(8, 3, seed=1)))


def cvae(**choices):
    config = vae.Config(model="cvae", image_size=8, depth=1, width=8, latent_dim=2, **choices)
    return vae.build_model(config)


def test_labels_become_conditions(shapes):
    model = cvae(conditions=3)
    assert model.condition(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]  # classes
    assert model.condition(torch.tensor([[True, False, True]])).tolist() == [[1, 0, 1]]
    assert model.condition(torch.tensor([[0.25, 0.75, 0]])).tolist() == [[0.25, 0.75, 0]]
    condition = cvae(conditions=3, dataset="shapes").condition(shapes.test.labels)
    assert condition.argmax(1).tolist() == shapes.test.labels[:, 0].tolist()


@pytest.mark.parametrize("labels", [None, [0, 3], [-1, 0], [0.5, 0.5], [[0, 1], [1, 0]]], ids=str)
def test_missing_or_unknown_labels_are_refused_in_one_sentence(labels):
    labels = labels and torch.tensor(labels)
    with pytest.raises(vae.VAEError, match=r"^[^\n]*label[^\n]*\.$"):
        vae.encode_images(cvae(conditions=3), torch.zeros(2, 3, 8, 8), labels)


def test_one_code_alone_is_decoded_with_one_label(shapes):
    model = vae.build_model(vae.config_for(shapes, model="cvae", latent_dim=4, width=8))
    z, label = torch.zeros(4), torch.tensor([1])
    torch.testing.assert_close(
        vae.decode_images(model, z, label), vae.decode_images(model, z[None], label)[0]
    )


def test_images_without_labels_are_refused(shapes):
    flat = dataclasses.replace(shapes, name="folder", title="holiday", label_names=("",))
    with pytest.raises(vae.VAEError, match="none in holiday: sort the images into one folder"):
        vae.config_for(flat, model="cvae")
    with pytest.raises(vae.VAEError, match="config_for"):
        cvae()


def test_the_label_decides_which_quarter_is_bright_whatever_the_code():
    """Four classes: which quarter of an 8x8 image is bright. How bright is left to z."""
    labels = torch.arange(512) % 4
    brightness = torch.linspace(150, 250, 512).reshape(-1, 1, 1, 1)
    quarters = F.one_hot(labels, 4).reshape(-1, 1, 2, 2) * brightness
    images = F.interpolate(quarters.byte(), scale_factor=4)
    part = vae.Split(images, labels)
    data = vae.ImageData("folder", "quarters", part, part, part, tuple("abcd"))
    model = cvae(conditions=4, channels=1, dataset="folder", batch_size=16, lr=5e-3)
    vae.fit(model, data, model.config)
    mu, _ = vae.encode_images(model, images, labels)
    for z in (mu, vae.sample_latents(512, 2)):
        switched = vae.decode_images(model, z, (labels + 1) % 4)
        brightest = F.avg_pool2d(switched, 4).flatten(1).argmax(1)
        assert (brightest == (labels + 1) % 4).float().mean() > 0.8


def random_prior(places, codebooks, codes, conditions=0):
    prior = CodePrior(places, codebooks, codes, 16, conditions)
    generator = of_seed(0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return prior


@pytest.fixture
def vq():
    """With codes that are outputs of its encoder."""
    sizes = {"image_size": 16, "width": 4, "latent_dim": 3, "codebook": 7, "codebooks": 2}
    model = vae.build_model(vae.Config(model="vq_vae", prior_width=16, **sizes)).train()
    model(torch.rand(16, 3, 16, 16, generator=of_seed(0)), of_seed(0))
    return model.eval()


@given(st.integers(8, 70), st.sampled_from(["conv", "fc"]))
def test_the_grid_of_codes_fits_every_size(size, arch):
    config = vae.Config(
        image_size=size, model="vq_vae", arch=arch, latent_dim=3, width=4, prior_width=16
    )
    model = vae.build_model(config)
    out = model(torch.rand(2, 3, size, size), of_seed(0))
    assert out.x_raw.shape == (2, 3, size, size)
    assert out.mu.shape == out.z.shape == (2, model.latent_size)
    assert 4 <= out.indices.shape[1] == out.indices.shape[2] <= 11


def test_codes_follow_the_moving_averages_of_what_they_stand_for():
    book = Codebook(3, 2)
    book.revive(randn(60, 2), of_seed(0))  # sets the first codes
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.clone()
    z = randn(60, 2, seed=1)
    book.move(z, book.nearest(z))
    for k in range(3):
        own = z[torch.cdist(z, codes).argmin(1) == k]
        count = 0.99 * counts[k] + 0.01 * len(own)
        total = 0.99 * sums[k] + 0.01 * own.sum(0)
        torch.testing.assert_close(book.codes[k], total / count)


def test_a_code_that_is_hardly_used_becomes_an_output_of_the_encoder():
    book = Codebook(2, 2)
    book.codes[1] = 1000.0
    book.counts[:] = torch.tensor([1.1, 0.9])  # a tenth of the average use is 1
    book.revive(torch.tensor([[3.0, 4.0]]).expand(20, 2), of_seed(0))
    torch.testing.assert_close(book.codes, torch.tensor([[0.0, 0.0], [3.0, 4.0]]))


def test_each_codebook_stands_for_what_those_before_it_left_and_gradients_pass_through(vq):
    out = vq(torch.rand(4, 3, 16, 16, generator=of_seed(1)))
    left = out.mu.reshape(4, 3, -1).transpose(1, 2)
    total = torch.zeros_like(left)
    for level, book in enumerate(vq.codebooks):
        nearest = torch.cdist(left, book.codes).argmin(2)
        assert torch.equal(out.indices[..., level].flatten(1), nearest)
        total = total + book.codes[nearest]
        left = left - book.codes[nearest]
    torch.testing.assert_close(out.z, total.transpose(1, 2).flatten(1))
    torch.testing.assert_close(vq.look_up(out.indices), out.z)
    torch.testing.assert_close(vq.decode_raw(out.mu), out.x_raw)
    to_mu, to_z = torch.autograd.grad(out.x_raw.square().sum(), (out.mu, out.z), retain_graph=True)
    assert torch.equal(to_mu, to_z)
    (commitment,) = torch.autograd.grad(vq.penalty(out), out.mu)
    torch.testing.assert_close(commitment, 2 * 0.25 * (out.mu - out.z) / 4)


def test_the_prior_is_a_distribution_over_all_grids_under_every_condition():
    """Three places with two codes each, of three."""
    grids = torch.tensor(list(itertools.product(range(3), repeat=6))).reshape(729, 3, 2)
    prior = random_prior(3, 2, 3, conditions=4)
    assert torch.exp(-prior.nats(grids)).sum().item() == pytest.approx(1, abs=1e-5)
    given = torch.exp(-prior.nats(grids, torch.tensor([[0, 1, 0.5, 1]]).expand(729, -1)))
    assert given.sum().item() == pytest.approx(1, abs=1e-5)
    unknown = prior.nats(grids, torch.full((729, 4), 0.5))
    torch.testing.assert_close(unknown, prior.nats(grids))
    assert not torch.allclose(given, torch.exp(-unknown))


def test_samples_come_as_often_as_the_prior_says():
    """Samples read the keys of a cache, and nats the whole grid."""
    prior = random_prior(2, 2, 2)
    grids = torch.tensor(list(itertools.product(range(2), repeat=4)))
    p = torch.exp(-prior.nats(grids.reshape(16, 2, 2)))
    samples = prior.sample(20_000, of_seed(1)).flatten(1)
    often = (samples[:, None] == grids).all(2).float().mean(0)
    torch.testing.assert_close(often, p, rtol=0, atol=0.015)


def test_sampling_with_a_cache_equals_sampling_by_the_whole_grid():
    prior = random_prior(6, 3, 5, conditions=2)
    condition = torch.tensor([[1.0, 0.5]]).expand(50, -1)
    generator = of_seed(1)
    grid = torch.zeros(50, 0, 3, dtype=torch.long)
    for _ in range(6):
        h = prior.read(grid, condition)[:, -1:]
        codes = []
        for level, head in enumerate(prior.heads):
            h = prior.after(h, level - 1, codes[-1]) if level else h
            p = head(h)[:, 0].softmax(1)
            codes.append(torch.multinomial(p, 1, generator=generator))
        grid = torch.cat([grid, torch.stack(codes, dim=2)], dim=1)
    assert torch.equal(prior.sample(50, of_seed(1), condition), grid)


def test_a_low_temperature_draws_the_likeliest_codes():
    prior = random_prior(5, 3, 4)
    likeliest = prior.sample(20, of_seed(0), top_k=1)
    assert torch.equal(prior.sample(20, of_seed(1), temperature=1e-4), likeliest)
    assert not torch.equal(prior.sample(20, of_seed(1)), likeliest)


def test_in_the_second_stage_only_the_prior_learns(shapes):
    sizes = {"latent_dim": 3, "width": 4, "codebook": 7, "codebooks": 2, "prior_width": 16}
    config = vae.config_for(
        shapes, model="vq_vae", **sizes, epochs=2, prior_epochs=3, batch_size=32, norm="batch"
    )
    model = vae.build_model(config)
    states = []

    def keep(history):
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    history = vae.fit(model, shapes, config, on_epoch=keep)
    changed = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in zip(states, states[1:])]
    assert not any(name.startswith("prior.") for name in changed[0])
    for names in changed[1:]:
        assert all(name.startswith("prior.") for name in names) and names
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[4]["val_kl_nats"] < history[2]["val_kl_nats"] < history[1]["val_kl_nats"]
    assert history[4]["val_reconstruction_nats"] == history[1]["val_reconstruction_nats"]


def test_samples_show_the_class_that_was_asked_for():
    """Four classes: which quarter of an 8x8 image is bright."""
    labels = torch.arange(512) % 4
    brightness = torch.linspace(150, 250, 512).reshape(-1, 1, 1, 1)
    quarters = F.one_hot(labels, 4).reshape(-1, 1, 2, 2) * brightness
    part = vae.Split(F.interpolate(quarters.byte(), scale_factor=4), labels)
    data = vae.ImageData("folder", "quarters", part, part, part, tuple("abcd"))
    sizes = {"latent_dim": 4, "width": 8, "codebook": 16, "codebooks": 2, "prior_width": 32}
    config = vae.config_for(
        data, model="vq_vae", **sizes, epochs=8, prior_epochs=40, batch_size=16, lr=5e-3
    )
    model = vae.build_model(config)
    vae.fit(model, data, config)
    for number, name in enumerate("abcd"):
        chosen = family.labels_of(data, name, 50)
        samples = vae.sample_images(model, 50, chosen, seed=1)
        brightest = F.avg_pool2d(samples, 4).flatten(1).argmax(1)
        assert (brightest == number).float().mean() > 0.7  # chance: 0.25


def test_labels_are_named_by_class_or_attribute(shapes):
    images, labels = shapes.train.images, shapes.train.labels[:, 0]
    attributes = dataclasses.replace(
        shapes, name="celeba", label_names=("Male", "Smiling", "Young")
    )
    row = family.labels_of(attributes, "Smiling,-Male", 2)
    assert row.tolist() == [[0, 1, 0.5]] * 2
    with pytest.raises(vae.VAEError, match="no label 'Bald'.*Male, Smiling, Young"):
        family.labels_of(attributes, "Bald", 1)
    classes = dataclasses.replace(
        shapes, name="cifar10", label_names=("cat", "dog"), train=vae.Split(images, labels)
    )
    assert family.labels_of(classes, "dog", 1).tolist() == [[0, 1]]
    with pytest.raises(vae.VAEError, match="one class"):
        family.labels_of(classes, "dog,cat", 1)


def test_half_precision_leaves_the_codebooks_as_they_are(vq, tmp_path):
    vq.codebooks[0].sums[0] = 1e6  # too large for 16 bits
    again, _ = vae.load_checkpoint(vae.save_checkpoint(vq, tmp_path, half=True))
    for name, value in again.state_dict().items():
        original = vq.state_dict()[name]
        rounded = original if name.startswith("codebooks.") else original.half().float()
        assert torch.equal(value, rounded), name
