"""The explorers without a browser: controls are set in Python, pictures compared with models."""

import base64
import dataclasses
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ipywidgets import Output
from PIL import Image
from torch.testing import assert_close

import vae_helpers as vae
from support import conditional, sliders

DIRECTIONS = {"wide": torch.tensor([1.0, 0, 0, 0])}


@pytest.fixture
def by_beta(shapes):
    models = {}
    for beta in (0.0, 4.0):
        config = vae.config_for(shapes, latent_dim=4, width=8, seed=7, beta=beta)
        models[f"β = {beta:g}"] = vae.build_model(config)
    return models


@pytest.fixture
def explorers(model, shapes, by_beta, monkeypatch):
    # The newest widgetsnbextension for ipywidgets 7 cannot show one.
    monkeypatch.setattr(Output, "__init__", None)
    return {
        "interpolation": sliders.explore_interpolation(model, shapes, 3, 5),
        "models": sliders.explore_models({"conv": model}, shapes, by_beta),
        "region": sliders.explore_region(model, shapes),
        "dimensions": sliders.explore_dimensions(model, shapes, DIRECTIONS),
    }


@pytest.fixture
def grid(shapes):
    sizes = {"latent_dim": 2, "width": 4, "prior_width": 16}
    return vae.build_model(vae.config_for(shapes, model="grid_vae", seed=1, **sizes))


def rows(explorer):
    return list(explorer.rows.values())


def click(explorer, text):
    _, buttons, *_ = explorer.box.children
    next(widget for widget in buttons.children if widget.description == text).click()


def reconstruct(model, images):
    mu, _ = vae.encode_images(model, images)
    return vae.decode_images(model, mu)


@pytest.mark.parametrize("which", ["interpolation", "models", "region", "dimensions"])
def test_every_control_changes_the_one_picture_and_starts_on_a_step(explorers, shapes, which):
    """A browser rounds a slider to its steps and sends the new value, as if somebody chose it."""
    explorer = explorers[which]
    for name, control in explorer.controls.items():
        if hasattr(control, "step"):
            steps = (np.atleast_1d(control.value) - control.min) / control.step
            assert steps == pytest.approx(steps.round(), abs=1e-6), name
        before = explorer.screen.value
        if hasattr(control, "options"):
            control.index = (control.index + 1) % len(control.options)
        elif name == "z_range":
            control.value = (-0.3, 0.2)
        else:
            control.value += -1 if control.value == control.max else 1
        assert explorer.screen.value != before, name
    assert explorer.box.children.count(explorer.screen) == 1
    # Without a front end it is a picture and a sentence.
    bundle = explorer._repr_mimebundle_()
    text = bundle.pop("text/plain")
    [(kind, content)] = bundle.items()
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"image/{picture.format.lower()}"
    difference = np.asarray(picture, float) - np.asarray(explorer.image, float)
    assert np.abs(difference).mean() < (5 if kind == "image/jpeg" else 1e-9)
    assert text == f"{explorer.title}\n{explorer.sentence}"
    assert shapes.title in explorer.title


@pytest.mark.parametrize("asked", [True, False])
def test_it_is_a_widget_where_somebody_can_be_asked_and_in_voila(explorers, monkeypatch, asked):
    region = explorers["region"]
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": asked}})
    monkeypatch.setattr("support.explorer.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    view = "application/vnd.jupyter.widget-view+json"
    assert (view in region._repr_mimebundle_()) is asked
    with monkeypatch.context() as voila:
        voila.setenv("VOILA_BASE_URL", "/")
        assert view in region._repr_mimebundle_()
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert region._repr_mimebundle_()[view]["model_id"] == region.box.model_id


def test_a_later_error_stands_below_the_last_picture(explorers, monkeypatch):
    region = explorers["region"]
    monkeypatch.setattr(region, "draw", lambda **values: 1 / 0)
    region.controls["seed"].value = 3
    assert "ZeroDivisionError" in region.sentence


@pytest.mark.parametrize("method, position, end", [("linear", 0, 0), ("spherical", 100, 1)])
def test_a_walk_ends_at_reconstructions(explorers, model, shapes, method, position, end):
    explorer = explorers["interpolation"]
    sliders.set_controls(explorer.controls, method=method, position=position, steps=6)
    pair = shapes.test.images[[3, 5]]
    (a, decoded, fade, b), strip, fade_strip = rows(explorer)
    assert_close(torch.stack([a, b]), pair / 255)
    assert_close(decoded, reconstruct(model, pair)[end], atol=1e-5, rtol=0)
    assert_close(fade, (a, b)[end])
    assert_close(strip, vae.interpolate_images(model, *pair, 6, method), atol=1e-5, rtol=0)
    assert_close(fade_strip, vae.cross_fade(*pair, 6))
    click(explorer, "random pair")
    other = [explorer.controls[name].value for name in ("a", "b")]
    assert other != [3, 5]
    assert_close(rows(explorer)[0][[0, 3]], shapes.test.images[other] / 255)


@pytest.mark.parametrize("beta", ["β = 0", "β = 4"])
def test_the_beta_slider_picks_its_model(explorers, model, by_beta, shapes, beta):
    explorer = explorers["models"]
    sliders.set_controls(explorer.controls, beta=beta, page=1)
    images = shapes.test.images[8:16]
    original, first, chosen = rows(explorer)
    assert_close(original, images / 255)
    assert_close(first, reconstruct(model, images))
    assert_close(chosen, reconstruct(by_beta[beta], images))
    assert f"{beta} (slider) {(chosen - original).square().mean():.4f}" in explorer.sentence
    explorer.controls["source"].value = "draws of the prior"
    z = vae.sample_latents(8, 4, seed=1)
    assert_close(rows(explorer)[0], vae.decode_images(model, z))
    assert_close(rows(explorer)[1], vae.decode_images(by_beta[beta], z))


@pytest.mark.parametrize("place", [{"z_range": (-1.0, 3.0)}, {"radius": 2.5}, {"temperature": 0.3}])
def test_a_moved_slider_chooses_its_region_which_is_measured(explorers, model, place):
    region = explorers["region"]
    assert_close(rows(region)[0], vae.sample_images(model, 6, z_range=(-2.0, 2.0)))
    click(region, "draw again")
    sliders.set_controls(region.controls, **place)
    z = vae.sample_latents(6, 4, seed=1, **place)
    images = vae.decode_images(model, z)
    assert_close(rows(region)[0], images)
    assert f"‖z‖ {z.norm(dim=1).mean():.1f}" in region.sentence
    contrast = vae.contrast(images).mean()
    assert f"contrast {contrast:.3f}. 100 test images" in region.sentence
    region.controls["z_range"].value = (1.0, 1.0)  # empty: the picture stays, and it says why
    assert "z_range must be two numbers" in region.sentence
    assert_close(rows(region)[0], images)


def test_dimension_and_attribute_sliders_move_the_code_until_reset(explorers, model, shapes):
    """The small rows show each dimension at -3 and 3, sorted by KL."""
    explorer = explorers["dimensions"]
    kl = vae.aggregate_posterior(model, shapes.test.images).kl_nats
    mu, _ = vae.encode_images(model, shapes.test.images[:1])
    for column, dim in enumerate(kl.argsort(descending=True).tolist()):
        name = f"dimension {dim} ({kl[dim]:.1f} nats)"
        for row, value in ((1, -3.0), (2, 3.0)):
            sliders.set_controls(explorer.controls, **{name: value, "wide": 0.0})
            z = mu + value * torch.eye(4)[dim]
            now = rows(explorer)[0][-1]
            assert_close(now, vae.decode_images(model, z)[0])
            assert_close(now, rows(explorer)[row][column])
            explorer.controls["wide"].value = -2.0
            both = vae.decode_images(model, z - 2 * DIRECTIONS["wide"])
            assert_close(rows(explorer)[0][-1], both[0])
        click(explorer, "reset")
        assert explorer.sentence.startswith("Moved: nothing. ")


def test_a_start_is_a_test_image_or_a_draw(explorers, model, shapes):
    explorer = explorers["dimensions"]
    sliders.set_controls(explorer.controls, start="random face", number=7)
    drawn = vae.decode_images(model, vae.sample_latents(1, 4, seed=7))
    assert_close(rows(explorer)[0], torch.cat([drawn, drawn]))  # the start, and now
    explorer.controls["start"].value = "test face"
    original, *decoded = rows(explorer)[0]
    assert_close(original, shapes.test.images[7] / 255)
    assert_close(torch.stack(decoded), reconstruct(model, shapes.test.images[[7, 7]]))


def test_explorers_of_codes_take_a_grid_with_its_learned_prior(grid, shapes):
    walk = sliders.explore_interpolation(grid, shapes, 3, 5)
    pair = shapes.test.images[[3, 5]]
    assert_close(rows(walk)[1], vae.interpolate_images(grid, *pair, 10), atol=1e-5, rtol=0)
    several = sliders.explore_models({"grid": grid}, shapes, {"β = 2": grid})
    several.controls["source"].value = "draws of the prior"
    assert_close(rows(several)[0], vae.sample_images(grid, 8, seed=0))
    sliders.explore_region(grid, shapes)
    sliders.explore_dimensions(grid, shapes)


def test_new_images_are_asked_for_by_class_with_guidance_and_temperature(grid, shapes):
    explorer = sliders.explore_samples(grid, shapes, n=4)
    name = shapes.class_names[1]
    set_to = {"temperature": 0.8, "guidance": 2.0, "seed": 3}
    sliders.set_controls(explorer.controls, class_name=name, **set_to)
    labels, without = conditional.labels_of(shapes, name, 4)
    expected = vae.sample_images(grid, 4, labels, without=without, **set_to)
    assert_close(rows(explorer)[0], expected)
    click(explorer, "draw again")
    assert "seed 4" in explorer.sentence and name in next(iter(explorer.rows))


def test_attributes_are_asked_for_on_off_or_left_open(shapes):
    labels = (shapes.train.labels[:, :1] == torch.arange(2)).long()
    part = shapes.train._replace(labels=labels)
    people = dataclasses.replace(
        shapes, name="celeba", label_names=("Round_Face", "Young"), train=part
    )
    sizes = {"latent_dim": 2, "width": 4, "prior_width": 16, "likelihood": "gaussian"}
    model = vae.build_model(vae.config_for(people, model="grid_vae", **sizes))
    explorer = sliders.explore_samples(model, people, ("Round_Face", "Young"), n=3)
    assert next(iter(explorer.rows)) == "asked for: Round Face"
    sliders.set_controls(explorer.controls, Round_Face=None, Young="-", seed=2)
    assert next(iter(explorer.rows)) == "asked for: not Young"
    labels, without = conditional.labels_of(people, "-Young", 3, seed=2)
    expected = vae.sample_images(model, 3, labels, seed=2, guidance=1.0, without=without)
    assert_close(rows(explorer)[0], expected)
    sliders.set_controls(explorer.controls, Young="", Round_Face="")
    assert "ask for less" in explorer.sentence
