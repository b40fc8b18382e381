"""The explorers without a browser: controls are set in Python, pictures compared with models."""

import base64
import dataclasses
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import vae_helpers as vae
from support import family, metrics, sliders, vector_quantised  # noqa: F401  registers the models

DIRECTIONS = {"wide": torch.tensor([1.0, 0, 0, 0]), "Blond_Hair": torch.tensor([0, 0.5, 0, -0.5])}


def untrained(shapes, **choices):
    return vae.build_model(vae.config_for(shapes, latent_dim=4, width=8, seed=7, **choices)).eval()


@pytest.fixture
def interpolation(model, shapes):
    return sliders.explore_interpolation(model, shapes, 3, 5)


@pytest.fixture
def by_beta(shapes):
    return {"β = 0": untrained(shapes, beta=0.0), "β = 4": untrained(shapes, beta=4.0)}


@pytest.fixture
def models(model, by_beta, shapes):
    return sliders.explore_models({"conv": model}, shapes, by_beta)


@pytest.fixture
def region(model, shapes):
    return sliders.explore_region(model, shapes)


@pytest.fixture
def dimensions(model, shapes):
    return sliders.explore_dimensions(model, shapes, DIRECTIONS)


@pytest.fixture(params=["interpolation", "models", "region", "dimensions"])
def explorer(request):
    return request.getfixturevalue(request.param)


def rows(explorer):
    return list(explorer.rows.values())


def click(explorer, text):
    _, buttons, *_ = explorer.box.children
    next(widget for widget in buttons.children if widget.description == text).click()


def reconstruct(model, images):
    mu, _ = vae.encode_images(model, images)
    return vae.decode_images(model, mu)


def test_every_control_changes_the_one_picture(explorer):
    for name, control in explorer.controls.items():
        before = explorer.screen.value
        if hasattr(control, "options"):
            control.index = (control.index + 1) % len(control.options)
        elif name == "z_range":
            control.value = (-0.3, 0.2)
        else:
            control.value += -1 if control.value == control.max else 1
        assert explorer.screen.value != before, name
    assert explorer.box.children.count(explorer.screen) == 1


def test_without_a_front_end_it_is_a_picture_and_a_sentence(explorer, shapes):
    bundle = explorer._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(bundle.pop("image/png"))))
    assert np.array_equal(np.asarray(picture), np.asarray(explorer.image))
    assert bundle == {"text/plain": f"{explorer.title}\n{explorer.sentence}"}
    assert shapes.title in explorer.title


@pytest.mark.parametrize("asked", [True, False])
def test_it_is_a_widget_where_somebody_can_be_asked_and_on_colab(region, monkeypatch, asked):
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": asked}})
    monkeypatch.setattr(sliders, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    view = "application/vnd.jupyter.widget-view+json"
    assert (view in region._repr_mimebundle_()) is asked
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert region._repr_mimebundle_()[view]["model_id"] == region.box.model_id


def test_sliders_start_on_their_steps(explorer):
    """A browser rounds a slider to its steps and sends the new value, as if somebody chose it."""
    for name, control in explorer.controls.items():
        if hasattr(control, "step"):
            steps = (np.atleast_1d(control.value) - control.min) / control.step
            assert steps == pytest.approx(steps.round(), abs=1e-6), name


@pytest.mark.parametrize("name", ["cvae", "vq_vae"])
def test_conditional_and_discrete_models_are_refused(shapes, name):
    model = untrained(shapes, model=name)
    for explore in (sliders.explore_interpolation, sliders.explore_region):
        with pytest.raises(vae.VAEError, match=f"{name}.*take another model"):
            explore(model, shapes)
    with pytest.raises(vae.VAEError, match=f"{name}.*take another model"):
        sliders.explore_models({}, shapes, {"β = 1": model})


@pytest.mark.parametrize("method", vae.METHODS)
@pytest.mark.parametrize("position, end", [(0, 0), (100, 1)])
def test_it_ends_at_reconstructions(interpolation, model, shapes, method, position, end):
    sliders.set_controls(interpolation.controls, method=method, position=position, steps=6)
    pair = shapes.test.images[[3, 5]]
    (a, decoded, fade, b), strip, fade_strip = rows(interpolation)
    assert_close(torch.stack([a, b]), pair / 255)
    assert_close(decoded, reconstruct(model, pair)[end], atol=1e-5, rtol=0)
    assert_close(fade, (a, b)[end])
    assert_close(strip, vae.interpolate_images(model, *pair, 6, method), atol=1e-5, rtol=0)
    assert_close(fade_strip, vae.cross_fade(*pair, 6))


def test_images_are_named_with_their_classes_where_they_have_some(interpolation, model, shapes):
    kind = shapes.class_names[shapes.test.labels[3, 0]]
    assert f"A is test image 3 ({kind}), B is test image 5 (" in interpolation.sentence
    test = vae.Split(shapes.test.images, torch.zeros(48, dtype=torch.long))
    folder = dataclasses.replace(shapes, name="folder", label_names=("",), train=test, test=test)
    explorer = sliders.explore_interpolation(model, folder, 1, 2)
    assert "A is test image 1, B is test image 2." in explorer.sentence


def test_a_random_pair_is_another_pair(interpolation, shapes):
    click(interpolation, "random pair")
    pair = [interpolation.controls[name].value for name in ("a", "b")]
    assert pair != [3, 5]
    assert_close(rows(interpolation)[0][[0, 3]], shapes.test.images[pair] / 255)


@pytest.mark.parametrize("beta", ["β = 0", "β = 4"])
def test_the_beta_slider_picks_its_model(models, model, by_beta, shapes, beta):
    sliders.set_controls(models.controls, beta=beta, page=1)
    images = shapes.test.images[8:16]
    original, first, chosen = rows(models)
    assert_close(original, images / 255)
    assert_close(first, reconstruct(model, images))
    assert_close(chosen, reconstruct(by_beta[beta], images))
    assert f"{beta} (slider) {(chosen - original).square().mean():.4f}" in models.sentence
    models.controls["source"].value = "draws of N(0, I)"
    z = vae.sample_latents(8, 4, seed=1)
    assert_close(rows(models)[0], vae.decode_images(model, z))
    assert_close(rows(models)[1], vae.decode_images(by_beta[beta], z))


@pytest.mark.parametrize("place", [{"z_range": (-1.0, 3.0)}, {"radius": 2.5}, {"temperature": 0.3}])
def test_a_moved_slider_chooses_its_region_which_is_measured(region, model, place):
    assert_close(rows(region)[0], vae.sample_images(model, 6, z_range=(-2.0, 2.0)))
    click(region, "draw again")
    sliders.set_controls(region.controls, **place)
    z = vae.sample_latents(6, 4, seed=1, **place)
    images = vae.decode_images(model, z)
    error = metrics.self_reconstruction_mse(model, z).mean()
    assert_close(rows(region)[0], images)
    assert f"‖z‖ {z.norm(dim=1).mean():.1f}" in region.sentence
    assert f"contrast {vae.contrast(images).mean():.3f}" in region.sentence
    assert f"self-reconstruction MSE {error:.4f}. 100 test images" in region.sentence


def test_an_empty_range_leaves_the_picture_and_says_why(region):
    before = rows(region)[0]
    region.controls["z_range"].value = (1.0, 1.0)
    assert "z_range must be two numbers" in region.sentence
    assert torch.equal(rows(region)[0], before)


def test_a_dimension_slider_moves_that_coordinate_until_reset(dimensions, model, shapes):
    """The small rows show each slider at -3 and 3, sorted by KL."""
    kl = vae.aggregate_posterior(model, shapes.test.images).kl_nats
    mu, _ = vae.encode_images(model, shapes.test.images[:1])
    for column, dim in enumerate(kl.argsort(descending=True).tolist()):
        slider = dimensions.controls[f"dimension {dim} ({kl[dim]:.1f} nats)"]
        for row, value in ((1, -3.0), (2, 3.0)):
            slider.value = value
            z = mu + value * torch.eye(4)[dim]
            now = rows(dimensions)[0][-1]
            assert_close(now, vae.decode_images(model, z)[0])
            assert_close(now, rows(dimensions)[row][column])
        click(dimensions, "reset")
        assert dimensions.sentence.startswith("Moved: nothing. ")


def test_attribute_sliders_add_their_directions(dimensions, model, shapes):
    mu, _ = vae.encode_images(model, shapes.test.images[:1])
    sliders.set_controls(dimensions.controls, **{"wide": -2.0, "Blond Hair": 1.0})
    z = mu - 2 * DIRECTIONS["wide"] + DIRECTIONS["Blond_Hair"]
    assert_close(rows(dimensions)[0][-1], vae.decode_images(model, z)[0])
    assert dimensions.sentence.startswith("Moved: wide -2.0, Blond Hair +1.0. ")


def test_a_start_is_a_test_image_or_a_draw(dimensions, model, shapes):
    sliders.set_controls(dimensions.controls, start="random face", number=7)
    drawn = vae.decode_images(model, vae.sample_latents(1, 4, seed=7))
    assert_close(rows(dimensions)[0], torch.cat([drawn, drawn]))  # the start, and now
    dimensions.controls["start"].value = "test face"
    original, *decoded = rows(dimensions)[0]
    assert_close(original, shapes.test.images[7] / 255)
    assert_close(torch.stack(decoded), reconstruct(model, shapes.test.images[[7, 7]]))


def test_a_sheet_enlarges_whole_pixels_in_their_order():
    images = torch.rand(3, 3, 8, 8)
    sheet = np.asarray(sliders.draw_sheet("title", {"caption": images}, "sentence", width=96))
    grid = vae.image_grid(images)
    assert sheet.shape == (18 * 3 + 3 * grid.shape[0] + 8, 96, 3)
    assert np.array_equal(sheet[36 : 36 + 3 * grid.shape[0] : 3, :96:3], grid)


def test_no_text_touches_an_edge():
    white = torch.ones(2, 3, 8, 8)
    sheet = sliders.draw_sheet("β = 4 ‖z‖ " * 40, {"caption " * 40: white}, "8.80 ± 1.54. " * 20)
    pixels = np.asarray(sheet.convert("L"))
    for edge in (pixels[:, -2:], pixels[-2:], pixels[:, :1]):
        assert edge.min() == 255
