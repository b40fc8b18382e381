"""The other models: all learn, and their parts equal computations by hand."""

import dataclasses
import itertools

import pytest
import torch
from conftest import SMALL, brightest, of_seed, rand, randn
from hypothesis import given
from hypothesis import strategies as st

import vae_helpers as vae
from support import conditional, runs
from support.autoencoders import mmd

OF_MODELS = {"grid_vae": {"prior_width": 16}, "vq_vae": {"prior_width": 16, "codebook": 16}}


@pytest.mark.parametrize("arch", ["conv", "fc"])
@pytest.mark.parametrize("name", vae.MODELS)
def test_every_model_learns_and_comes_back_from_its_checkpoint(shapes, tmp_path, name, arch):
    choices = SMALL | OF_MODELS.get(name, {}) | {"arch": arch, "lr": 5e-3, "epochs": 3}
    config = vae.config_for(shapes, model=name, **choices)
    model = vae.build_model(config)
    nats = [row["val_reconstruction_nats"] for row in runs.fit_stages(model, shapes)]
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


@pytest.mark.parametrize("name", ["info_vae", "wae"])
def test_the_penalty_is_the_weighted_mmd_of_the_codes_and_draws_of_the_prior(name):
    model = vae.build_model(vae.Config(model=name, mmd=30, width=4, latent_dim=3))
    out = model(rand(8, 3, 32, 32), of_seed(0))
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


def test_the_label_decides_which_quarter_is_bright_whatever_the_code(quarters):
    images, labels = quarters.train
    model = cvae(conditions=4, channels=1, dataset="folder", batch_size=16, lr=5e-3)
    vae.fit(model, quarters, model.config)
    mu, _ = vae.encode_images(model, images, labels)
    for z in (mu, vae.sample_latents(512, 2)):
        switched = vae.decode_images(model, z, (labels + 1) % 4)
        assert (brightest(switched) == (labels + 1) % 4).float().mean() > 0.8


def test_labels_are_named_by_class_or_attribute(shapes):
    images, classes = shapes.train.images, shapes.train.labels[:, 0]
    attributes = torch.stack([classes == 0, classes == 1, classes < 2], dim=1)
    people = dataclasses.replace(
        shapes,
        name="celeba",
        label_names=("Male", "Smiling", "Young"),
        train=vae.Split(images, attributes),
    )
    labels, without = conditional.labels_of(people, "Young,-Male", 2)
    assert labels.tolist() == [[0, 1, 1]] * 2
    assert without.tolist() == [[0.5, 1, 0.5]] * 2
    young, without = conditional.labels_of(people, "Young", 300)
    assert young[:, 2].all() and (without[:, 2] == 0.5).all()
    assert 0.3 < young[:, 0].mean() < 0.7  # all else as often as in such images
    assert torch.equal(young[:, :2], without[:, :2])
    assert torch.equal(young, conditional.labels_of(people, "Young", 300)[0])
    labels, without = conditional.labels_of(shapes, "rectangle", 2)
    assert labels.tolist() == [[0, 1, 0]] * 2 and (without == 0.5).all()


@pytest.mark.parametrize("name", ["salt, pepper", "-18 degrees", "a,-b"])
def test_a_class_may_have_a_comma_or_begin_with_a_minus(quarters, name):
    data = dataclasses.replace(quarters, label_names=("a", "b", "c", name))
    assert conditional.labels_of(data, name, 1)[0].tolist() == [[0, 0, 0, 1]]
