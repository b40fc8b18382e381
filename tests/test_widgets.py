"""The explorers without a browser: controls are set in Python, and the pictures are compared with what the module computes."""
from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_plots import untrained

import vae_helpers as vae


@pytest.fixture
def interpolation(model, shapes):
    return vae.explore_interpolation(model, shapes, 3, 5)


@pytest.fixture
def region(model, shapes):
    return vae.explore_region(model, shapes)


DIRECTIONS = {"wide": torch.tensor([1.0, 0, 0, 0]), "Blond_Hair": torch.tensor([0, 0.5, 0, -0.5])}


@pytest.fixture
def dimensions(model, shapes):
    return vae.explore_dimensions(model, shapes, DIRECTIONS)


@pytest.fixture
def models(trained, shapes):
    others = {f"β = {beta:g}": vae.build_model(vae.Config(dataset="shapes", latent_dim=4, width=8, beta=beta, seed=7)) for beta in (0.0, 4.0)}
    return vae.explore_models({"conv": trained.model}, shapes, others), others


EXPLORERS = ["interpolation", "region", "dimensions", "models"]


@pytest.fixture(params=EXPLORERS)
def explorer(request):
    found = request.getfixturevalue(request.param)
    return found[0] if request.param == "models" else found


def rows(explorer):
    return list(explorer.rows.values())


def reconstruct(model, images):
    return vae.decode_images(model, vae.encode_images(model, images)[0])


def click(explorer, text):
    explorer.buttons[text].click()


# ── What all explorers do ───────────────────────────────────────────────────────────────────────

def test_a_control_changes_the_one_picture_in_place(explorer):
    screen, before = explorer.screen, explorer.screen.value
    control = next(explorer.controls[name] for name in ("position", "radius", "page", "wide") if name in explorer.controls)
    control.value += 1
    assert explorer.screen is screen and screen.value != before
    assert [child for child in explorer.box.children if child is screen] == [screen]


def test_every_control_changes_the_picture(explorer):
    for name, control in explorer.controls.items():
        before = explorer.screen.value
        if hasattr(control, "options"):
            control.index = (control.index + 1) % len(control.options)
        elif name == "z_range":
            control.value = (-0.3, 0.2)
        else:
            control.value = control.value - 1 if control.value == control.max else control.value + 1
        assert explorer.screen.value != before, name


def test_without_a_front_end_it_is_a_picture_and_a_sentence(explorer):
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"}
    shown = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert np.array_equal(np.asarray(shown), np.asarray(explorer.image))
    assert explorer.sentence in bundle["text/plain"]


def test_the_picture_says_which_data_it_shows(explorer, shapes):
    assert shapes.title in explorer.title
    assert explorer.title in explorer._repr_mimebundle_()["text/plain"]


def test_a_front_end_gets_the_widget_and_the_picture(explorer, monkeypatch):
    monkeypatch.setattr(vae, "has_widgets", lambda: True)
    view = "application/vnd.jupyter.widget-view+json"
    first, again = explorer._repr_mimebundle_(), explorer._repr_mimebundle_()
    assert set(first) == {"image/png", "text/plain", view}
    assert first[view]["model_id"] == again[view]["model_id"] == explorer.box.model_id   # shown twice it is one widget


def test_two_calls_make_two_independent_explorers(model, shapes):
    first, second = (vae.explore_region(model, shapes) for _ in range(2))
    before = second.screen.value
    first.controls["seed"].value = 9
    assert first.box.model_id != second.box.model_id and second.screen.value == before


@pytest.mark.parametrize("request_content, expected", [({"allow_stdin": True}, True), ({"allow_stdin": False}, False), ({}, False)])
def test_widgets_are_shown_where_the_cell_came_from_somebody_who_can_be_asked(monkeypatch, request_content, expected):
    class Shell:
        class kernel:
            @staticmethod
            def get_parent(channel):
                return {"content": request_content}
    monkeypatch.setattr("IPython.get_ipython", Shell)
    assert vae.has_widgets() is expected
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert vae.has_widgets() is True


def test_in_a_script_there_are_no_widgets():
    assert vae.has_widgets() is False


def test_controls_describe_themselves_in_full(explorer):
    import ipywidgets
    for control in explorer.controls.values():
        if not isinstance(control, ipywidgets.ToggleButtons):
            assert control.description and control.style.description_width == "initial"


@pytest.mark.parametrize("explore", ["explore_region", "explore_dimensions"])
@pytest.mark.parametrize("choices", [{"model": "cvae", "conditions": 3}, {"model": "vq_vae", "codebook": 8}], ids=lambda c: c["model"])
def test_models_whose_latents_do_not_decode_by_themselves_are_refused_in_one_sentence(shapes, explore, choices):
    with pytest.raises(vae.VAEError, match="take another model") as caught:
        getattr(vae, explore)(untrained(**choices), shapes)
    assert "\n" not in str(caught.value)


def test_a_conditional_model_cannot_be_interpolated_without_labels(shapes):
    with pytest.raises(vae.VAEError, match="conditional"):
        vae.explore_interpolation(untrained(model="cvae", conditions=3), shapes)


def test_sliders_start_on_their_steps(explorer):
    """A browser rounds a slider to its steps and sends the new value: a region was chosen that nobody had chosen."""
    for name, control in explorer.controls.items():
        if hasattr(control, "step"):
            for value in np.atleast_1d(control.value):
                steps = (value - control.min) / control.step
                assert steps == pytest.approx(round(steps), abs=1e-6), name


# ── Interpolation ───────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("method", vae.METHODS)
@pytest.mark.parametrize("position, end", [(0, 0), (100, 1)])
def test_at_the_ends_stand_the_reconstructions_and_the_originals(interpolation, model, shapes, method, position, end):
    interpolation.set(method=method, position=position)
    pair = shapes.test.images[[3, 5]]
    a, decoded, fade, b = rows(interpolation)[0]
    torch.testing.assert_close(decoded, reconstruct(model, pair)[end], atol=1e-5, rtol=0)
    torch.testing.assert_close(fade, (a, b)[end])
    torch.testing.assert_close(torch.stack([a, b]), pair / 255)


def test_the_strip_is_what_interpolate_images_gives(interpolation, model, shapes):
    interpolation.set(steps=6, method="spherical")
    strip, fade = rows(interpolation)[1:]
    torch.testing.assert_close(strip, vae.interpolate_images(model, *shapes.test.images[[3, 5]], 6, "spherical"), atol=1e-5, rtol=0)
    torch.testing.assert_close(fade, vae.cross_fade(*shapes.test.images[[3, 5]], 6))


def test_noisy_samples_start_elsewhere_and_are_the_same_each_time(interpolation, model, shapes):
    interpolation.set(code="noisy samples", position=0)
    expected = vae.decode_images(model, vae.sample_codes(model, shapes.test.images[[3, 5]]))[0]
    torch.testing.assert_close(rows(interpolation)[0][1], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, reconstruct(model, shapes.test.images[3:4])[0], atol=1e-3)


def test_a_number_counts_within_the_chosen_class(interpolation, shapes):
    triangles = (shapes.test.labels[:, 0] == 2).nonzero()[:, 0]
    interpolation.set(class_a="triangle", number_a=2)
    assert torch.equal(rows(interpolation)[0][0], shapes.test.images[triangles[2]] / 255)
    assert f"A is test image {triangles[2]} (triangle)" in interpolation.sentence
    interpolation.set(number_a=len(shapes.test.images) - 1)   # more than there are: counted round
    assert "(triangle)" in interpolation.sentence


def test_images_without_classes_can_be_chosen_by_number(model, shapes):
    flat = vae.dataclasses.replace(shapes, name="folder", label_names=("",), test=vae.Split(shapes.test.images, torch.zeros(48, dtype=torch.long)))
    explorer = vae.explore_interpolation(model, flat, 1, 2)
    assert explorer.controls["class_a"].options == ("any class",)
    assert "A is test image 1, B is test image 2." in explorer.sentence


def test_a_random_pair_is_another_pair(interpolation):
    before = interpolation.controls["number_a"].value, interpolation.controls["number_b"].value
    click(interpolation, "random pair")
    assert (interpolation.controls["number_a"].value, interpolation.controls["number_b"].value) != before


def test_play_and_position_have_the_same_range(interpolation):
    import ipywidgets
    play = next(w for box in interpolation.box.children if isinstance(box, ipywidgets.Box) for w in box.children if isinstance(w, ipywidgets.Play))
    position = interpolation.controls["position"]
    assert (play.min, play.max, play.value) == (position.min, position.max, position.value)


def file_field(explorer):
    import ipywidgets
    return next(w for box in explorer.box.children if isinstance(box, ipywidgets.Box) for w in box.children if type(w) is ipywidgets.Text)


def test_save_writes_a_gif_or_png_and_says_where(interpolation, tmp_path):
    interpolation.set(steps=5)
    click(interpolation, "save")
    with Image.open(tmp_path / "runs" / "interpolation.gif") as moving:
        assert moving.n_frames == 8   # five there, three back
    assert str(tmp_path / "runs" / "interpolation.gif") in interpolation.message.value
    file_field(interpolation).value = str(tmp_path / "strip.png")
    click(interpolation, "save")
    assert Image.open(tmp_path / "strip.png").size == (4 * (5 * 34 + 2), 4 * 36)


@pytest.mark.parametrize("name, reason", [("strip.jpg", "ends in .png or .gif"), ("taken/strip.png", "taken")])
def test_what_cannot_be_saved_is_told_below_the_controls(interpolation, tmp_path, name, reason):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "taken").write_text("a file, not a folder")
    file_field(interpolation).value = name
    click(interpolation, "save")
    assert reason in interpolation.message.value


# ── Region ──────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("place", [{"z_range": (-1.0, 3.0)}, {"radius": 2.5}, {"temperature": 0.3}], ids=lambda p: next(iter(p)))
def test_a_moved_slider_chooses_its_region(region, model, place):
    region.set(**place)
    torch.testing.assert_close(rows(region)[0], vae.sample_images(model, 6, seed=0, **place))
    assert region.controls["region"].value == next(iter(place))


def test_a_slider_that_chooses_its_region_draws_once(region):
    shown = []
    region.screen.observe(shown.append, "value")
    region.controls["radius"].value += 1
    assert region.controls["region"].value == "radius" and len(shown) == 1
    drawn, draw = [], region.draw
    region.draw = lambda **values: drawn.append(values) or draw(**values)
    region.controls["temperature"].value = 0.5
    assert len(drawn) == 1


def test_it_starts_with_the_range_of_the_assignment(region, model):
    torch.testing.assert_close(rows(region)[0], vae.sample_images(model, 6, z_range=(-2.0, 2.0)))


def test_draw_again_takes_the_next_seed(region, model):
    click(region, "draw again")
    torch.testing.assert_close(rows(region)[0], vae.sample_images(model, 6, seed=1, z_range=(-2.0, 2.0)))


def test_the_quality_of_the_region_is_measured(region, model):
    region.set(radius=3.0)
    z = vae.sample_latents(6, 4, radius=3.0)
    assert (f"‖z‖ 3.0, contrast {vae.contrast(vae.decode_images(model, z)).mean():.3f}, "
            f"self-reconstruction MSE {vae.self_reconstruction_mse(model, z).mean():.4f}") in region.sentence


def test_an_empty_range_leaves_the_picture_and_says_why(region):
    before = rows(region)[0]
    region.controls["z_range"].value = (1.0, 1.0)
    assert "z_range must be two numbers" in region.sentence
    assert torch.equal(rows(region)[0], before)
    region.controls["z_range"].value = (-1.0, 1.0)
    assert "z_range must be" not in region.sentence


# ── Dimensions ──────────────────────────────────────────────────────────────────────────────────

def dims_of(explorer):
    return [int(name.split()[1]) for name in explorer.controls if name.startswith("dimension")]


def slider(explorer, dim):
    return next(control for name, control in explorer.controls.items() if name.startswith(f"dimension {dim} "))


def test_sliders_are_sorted_by_kl(dimensions, model, shapes):
    q = vae.aggregate_posterior(model, shapes.test.images)
    assert dims_of(dimensions) == q.kl_nats.argsort(descending=True).tolist()


def now(explorer):
    return rows(explorer)[0][-1]


def test_a_dimension_slider_moves_that_coordinate(dimensions, model, shapes):
    z = vae.encode_images(model, shapes.test.images[:1])[0]
    slider(dimensions, 2).value = -1.5
    z[0, 2] -= 1.5
    torch.testing.assert_close(now(dimensions), vae.decode_images(model, z)[0])


def test_an_attribute_slider_adds_its_direction(dimensions, model, shapes):
    z = vae.encode_images(model, shapes.test.images[:1])[0][0]
    dimensions.set(wide=-2.0, Blond_Hair=1.0)
    torch.testing.assert_close(now(dimensions), vae.decode_images(model, (z - 2 * DIRECTIONS["wide"] + DIRECTIONS["Blond_Hair"])[None])[0])
    assert dimensions.controls["Blond_Hair"].description == "Blond Hair"


def test_the_sentence_names_what_was_moved_even_where_the_model_ignores_it(model, shapes):
    explorer = vae.explore_dimensions(model, shapes, {"nothing": torch.zeros(4)})
    before = explorer.screen.value
    explorer.controls["nothing"].value = 0.1
    assert explorer.screen.value != before and explorer.sentence.startswith("Moved: nothing +0.1. Now")
    slider(explorer, 2).value = -1.5
    assert "nats) -1.5, nothing +0.1. Now" in explorer.sentence


def test_reset_goes_back_to_the_reconstruction(dimensions, model, shapes):
    slider(dimensions, 0).value = 2.0
    dimensions.set(wide=1.0)
    click(dimensions, "reset")
    torch.testing.assert_close(now(dimensions), reconstruct(model, shapes.test.images[:1])[0])
    assert "0.00 from the start" in dimensions.sentence


def test_random_face_and_reset_keep_that_face(dimensions, model):
    click(dimensions, "random face")
    z = torch.randn(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(now(dimensions), vae.decode_images(model, z[None])[0])
    assert len(rows(dimensions)[0]) == 2   # nobody has photographed it
    slider(dimensions, 1).value = 3.0
    click(dimensions, "reset")
    torch.testing.assert_close(now(dimensions), vae.decode_images(model, z[None])[0])


def test_encode_a_test_face_takes_the_numbered_image(dimensions, model, shapes):
    import ipywidgets
    number = next(w for box in dimensions.box.children[1:2] for w in box.children if isinstance(w, ipywidgets.BoundedIntText))
    number.value = 7
    click(dimensions, "encode a test face")
    assert torch.equal(rows(dimensions)[0][0], shapes.test.images[7] / 255)
    torch.testing.assert_close(now(dimensions), reconstruct(model, shapes.test.images[7:8])[0])


def test_the_small_rows_show_each_slider_at_minus_3_and_3(dimensions):
    small = [row.clone() for row in rows(dimensions)[1:]]
    for row, value in zip(small, (-3.0, 3.0), strict=True):
        for image, dim in zip(row, dims_of(dimensions), strict=True):
            click(dimensions, "reset")
            slider(dimensions, dim).value = value
            torch.testing.assert_close(now(dimensions), image)


def test_an_autoencoder_without_kl_is_sorted_by_spread(shapes):
    explorer = vae.explore_dimensions(untrained(model="ae"), shapes)
    assert len(explorer.controls) == 4


# ── Models ──────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("beta", ["β = 0", "β = 4"])
def test_the_slider_picks_the_model_of_its_beta(models, trained, shapes, beta):
    explorer, others = models
    explorer.set(beta=beta, page=1)
    images = shapes.test.images[8:16]
    original, conv, chosen = rows(explorer)
    assert torch.equal(original, images / 255)
    torch.testing.assert_close(conv, reconstruct(trained.model, images))
    torch.testing.assert_close(chosen, reconstruct(others[beta], images))
    assert f"{beta} (slider) {(chosen - original).square().mean():.4f}" in explorer.sentence


def test_all_models_decode_the_same_draws(models, trained):
    explorer, others = models
    explorer.set(source="draws of N(0, I)", page=3, beta="β = 0")
    z = vae.sample_latents(8, 4, seed=3)
    for row, model in zip(rows(explorer), (trained.model, others["β = 0"]), strict=True):
        torch.testing.assert_close(row, vae.decode_images(model, z))


# ── The picture ─────────────────────────────────────────────────────────────────────────────────

def test_a_sheet_enlarges_whole_pixels_in_their_order():
    images = torch.rand(3, 3, 8, 8)
    sheet = np.asarray(vae.draw_sheet("title", {"caption": images}, "sentence", width=96))
    grid = vae.image_grid(images)
    assert sheet.shape == (18 * 3 + 3 * grid.shape[0] + 8, 96, 3)
    assert np.array_equal(sheet[36:36 + 3 * grid.shape[0]:3, :96:3], grid)


def test_no_text_is_cut_and_it_is_black_on_white():
    sheet = vae.draw_sheet("β = 4 ‖z‖ " * 40, {"caption " * 40: torch.ones(2, 3, 8, 8)}, "Mean numbers of test images 8.80 ± 1.54, contrast 0.000. " * 20)
    pixels = np.asarray(sheet.convert("L"))
    assert pixels[:, -2:].min() == 255 and pixels[-2:].min() == 255 and pixels[:, :1].min() == 255   # nothing touches an edge
    assert pixels.min() < 60
