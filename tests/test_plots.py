"""Plots: the right pictures in the right places; every figure has its title and its panels."""
from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import train
import vae_helpers as vae

RED, BLUE, WHITE = [255, 0, 0], [0, 0, 255], [255, 255, 255]


def red_left_blue_right(height=4, width=6):
    """uint8 (3, H, W), top row black, so that turning, mirroring or reshaping it shows."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0, 1:, :width // 2] = 255
    image[2, 1:, width // 2:] = 255
    return image


# ── image_grid ──────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_a_grid_keeps_every_image_upright_and_in_its_place(kind):
    """Channels are moved, not reshaped: .view(H, W, 3) would scramble this picture."""
    images = torch.stack([red_left_blue_right(), torch.full((3, 4, 6), 128, dtype=torch.uint8), red_left_blue_right().flip(2)])
    grid = vae.image_grid(images if kind == "uint8" else images / 255, columns=2, pad=1)
    assert grid.shape == (1 + 2 * 5, 1 + 2 * 7, 3) and grid.dtype == np.uint8
    first, second, third = grid[1:5, 1:7], grid[1:5, 8:14], grid[6:10, 1:7]   # row by row, a white line between
    assert np.array_equal(first, images[0].permute(1, 2, 0).numpy())
    assert first[3, 0].tolist() == RED and first[3, 5].tolist() == BLUE and first[0].max() == 0
    assert (second == 128).all()
    assert third[3, 0].tolist() == BLUE
    assert grid[0, 0].tolist() == grid[5, 3].tolist() == WHITE


def test_a_grid_of_grey_images_is_grey():
    images = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).expand(2, 1, 2, 2) * 60
    grid = vae.image_grid(images, pad=0)
    assert grid.shape == (2, 4, 3)
    assert (grid == grid[..., :1]).all() and grid[:, :2, 0].tolist() == [[0, 60], [120, 180]]


def test_a_grid_changes_no_value():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 1, 16, 16)
    for images in (values, values / 255):
        assert np.array_equal(vae.image_grid(images, pad=0)[:, :16, 0], values[0, 0].numpy())


# ── Figures ─────────────────────────────────────────────────────────────────────────────────────

ROW = {f"{s}_{part}_nats": 5.0 for s in ("train", "val") for part in ("reconstruction", "kl", "total")}
HISTORY = [{"epoch": epoch, **ROW} for epoch in (1, 2, 3)]
STRIP = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SWEEP = {f"{d}{b}": {"latent_dim": d, "beta": b, "kl_nats": d / b, "reconstruction_nats": 9 + b} for d in (8, 2, 4) for b in (1.0, 4.0)}



def untrained(**choices):
    return vae.build_model(vae.Config(**{"latent_dim": 4, "width": 4, "image_size": 32, **choices}))


FIGURES = {   # name: (make a figure from a model and images, its panels)
    "plot_rows": (lambda m, x: vae.plot_rows({"a": STRIP, "b": STRIP[:3]}, "TITLE", ["1", "2"]), 2),
    "plot_grid": (lambda m, x: vae.plot_grid(STRIP, "TITLE", columns=3), 1),
    "plot_history": (lambda m, x: vae.plot_history({"conv": HISTORY, "fc": HISTORY[:1]}, "TITLE"), 3),
    "plot_reconstructions": (lambda m, x: vae.plot_reconstructions({"a": m, "b": m}, x[:4], "TITLE"), 3),
    "plot_samples": (lambda m, x: vae.plot_samples({"a": m, "b": m}, torch.zeros(4, 4), "TITLE"), 2),
    "display_interpolated_images": (lambda m, x: vae.display_interpolated_images(STRIP, title="TITLE"), 1),
    "plot_along_path": (lambda m, x: vae.plot_along_path({"a": torch.arange(5)}, "TITLE", "distance", {"mean": 2.0}), 1),
    "plot_curves": (lambda m, x: vae.plot_curves({"a": ([1, 2, 4], [3, 1, 2])}, "TITLE", "radius", "distance", {"floor": 0.5}), 1),
    "plot_aggregate_posterior": (lambda m, x: vae.plot_aggregate_posterior(vae.aggregate_posterior(m, x), "TITLE"), 3),
    "plot_rate_distortion": (lambda m, x: vae.plot_rate_distortion(
        {"a": {"kl_nats": 3.0, "reconstruction_nats": 9.0}, "b": {"kl_nats": 30.0, "reconstruction_nats": 5.0}}, "TITLE"), 1),
    "plot_manifold": (lambda m, x: vae.plot_manifold(untrained(latent_dim=2), "TITLE", n=4), 1),
    "plot_scatter": (lambda m, x: vae.plot_scatter(torch.randn(9, 2), torch.arange(9) % 3, "abc", "TITLE", ("x", "y")), 1),
    "plot_classes": (lambda m, x: vae.plot_classes(untrained(model="cvae", conditions=3), "abc", "TITLE", latents=2), 2),
    "plot_attributes": (lambda m, x: vae.plot_attributes(untrained(model="cvae", conditions=3, dataset="celeba"), x[:4], torch.eye(4, 3) > 0, "abc",
                                                         ["b"], "TITLE"), 4),
    "plot_sweep": (lambda m, x: train.plot_sweep(SWEEP, ["beta", "latent_dim"], "TITLE"), 3),
}


def test_every_figure_function_of_the_module_is_tested_here():
    found = {name for name in dir(vae) if name.startswith(("plot_", "display_"))}
    assert found | {"plot_sweep"} == set(FIGURES)   # which is train.py's


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_its_title_and_panels_and_can_be_drawn(model, shapes, name, tmp_path):
    make, panels = FIGURES[name]
    fig = make(model, shapes.test.images)
    titles = [fig.get_suptitle()] + [ax.get_title() for ax in fig.axes]
    assert isinstance(fig, plt.Figure) and len(fig.axes) == panels
    assert any(title.startswith("TITLE") for title in titles)
    fig.savefig(tmp_path / "figure.png", dpi=40)
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 5   # something is on it


def test_rows_show_their_images_under_their_names():
    fig = vae.plot_rows({"first": STRIP, "second": STRIP.flip(0)}, "T")
    assert [ax.get_ylabel() for ax in fig.axes] == ["first", "second"]
    assert np.array_equal(fig.axes[0].images[0].get_array(), vae.image_grid(STRIP))


def test_reconstructions_show_the_originals_first_and_each_model_at_its_mean(model, shapes):
    images = shapes.test.images[:4]
    fig = vae.plot_reconstructions({"conv": model}, images, "T")
    shown = [ax.images[0].get_array() for ax in fig.axes]
    with torch.no_grad():
        x_hat = torch.sigmoid(model.decoder(model.encoder(images / 255)[0]))
    assert [ax.get_ylabel() for ax in fig.axes] == ["original", "conv"]
    assert np.array_equal(shown[0], vae.image_grid(images))
    assert np.abs(shown[1].astype(int) - vae.image_grid(x_hat)).max() <= 1


def test_interpolations_are_shown_between_the_two_originals_with_their_positions():
    a, b = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((3, 8, 8), 255, dtype=torch.uint8)
    fig = vae.display_interpolated_images({"linear": STRIP, "spherical": STRIP}, (a, b), "T")
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["original", "0", "0.25", "0.5", "0.75", "1", "original"]
    expected = torch.cat([torch.zeros(1, 3, 8, 8), STRIP, torch.ones(1, 3, 8, 8)])
    assert all(np.array_equal(ax.images[0].get_array(), vae.image_grid(expected)) for ax in fig.axes)


@pytest.mark.parametrize("label", ["short", "a label that is much longer than most labels"])
@pytest.mark.parametrize("rows", [1, 3])
def test_no_row_label_is_cut_or_squeezes_the_images(label, rows):
    fig = vae.plot_rows({label + " " * i: STRIP for i in range(rows)}, "T", cell=0.72)
    fig.canvas.draw()
    ax = fig.axes[0]
    assert ax.yaxis.label.get_window_extent().x0 >= 0
    assert ax.get_window_extent().width / fig.dpi / len(STRIP) > 0.6   # inches for one image


def test_column_labels_stand_over_the_middle_of_their_images():
    fig = vae.plot_rows({"a": STRIP}, "T", ["1", "2", "3", "4", "5"])
    middles = [2 + i * 10 + 3.5 for i in range(5)]   # images of 8 pixels, 2 between; pixel centres are whole numbers
    assert np.abs(fig.axes[0].get_xticks() - middles).max() <= 1


def test_a_history_shows_validation_and_training_of_every_model():
    rows = [{"epoch": e, **{k: (1 if k.startswith("val") else 2) * v * e for k, v in ROW.items()}} for e in (1, 2)]
    fig = vae.plot_history({"conv": rows, "fc": rows}, "T")
    for ax in fig.axes:
        solid, dashed = ax.lines[:2]
        assert len(ax.lines) == 4
        assert list(solid.get_ydata()) == [5, 10] and solid.get_linestyle() == "-"
        assert list(dashed.get_ydata()) == [10, 20] and dashed.get_linestyle() == "--"


def test_a_sweep_is_joined_along_latent_dim_with_its_values_at_the_points():
    first, reconstruction, kl = train.plot_sweep(SWEEP, ["beta", "latent_dim"], "T").axes
    assert [line.get_label() for line in first.lines] == ["beta 1", "beta 4"]
    assert list(first.lines[1].get_xdata()) == [0.5, 1, 2] and [t.get_text() for t in first.texts] == ["2", "4", "8"] * 2
    assert list(kl.lines[0].get_xdata()) == [2, 4, 8] and list(reconstruction.lines[1].get_ydata()) == [13, 13, 13]


def test_a_sweep_of_many_values_names_its_points():
    """A sampled search has no two trials that differ in one field only."""
    results = {str(i): {"lr": i / 7, "beta": i / 9, "kl_nats": i, "reconstruction_nats": -i} for i in range(1, 15)}
    fig = train.plot_sweep(results, ["lr", "beta"], "T")
    assert [t.get_text() for t in fig.axes[0].texts] == list(results) and not fig.legends


def test_a_manifold_has_the_likeliest_codes_in_its_middle_and_rises_to_the_right_and_up(monkeypatch):
    seen = []
    monkeypatch.setattr(vae, "decode_images", lambda model, z: seen.append(z) or torch.zeros(len(z), 3, 8, 8))
    vae.plot_manifold(untrained(latent_dim=2), "T", n=4)
    z = seen[0].reshape(4, 4, 2)   # rows from top to bottom
    expected = torch.distributions.Normal(0, 1).icdf(torch.tensor([1, 3, 5, 7]) / 8)
    assert torch.allclose(z[0, :, 0], expected, atol=1e-5) and torch.allclose(z[:, 0, 1], expected.flip(0), atol=1e-5)


@pytest.mark.parametrize("count, named", [(1, False), (2, True), (20, True), (21, False)])
def test_a_scatter_names_its_classes_where_there_are_some_and_not_too_many(count, named):
    fig = vae.plot_scatter(torch.zeros(3, 2), torch.zeros(3), [f"class {i}" for i in range(count)], "T", ("x", "y"))
    assert bool(fig.axes[0].get_legend()) == named


def test_attributes_are_switched_one_at_a_time_on_the_same_codes():
    model = untrained(model="cvae", conditions=2, dataset="celeba")
    x, labels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([[True, False]] * 3)
    fig = vae.plot_attributes(model, x, labels, ["Old", "Blond_Hair"], ["Blond_Hair"], "T")
    assert [ax.get_ylabel() for ax in fig.axes] == ["original", "reconstruction", "no Blond Hair", "Blond Hair"]
    shown = [ax.images[0].get_array() for ax in fig.axes]
    assert np.array_equal(shown[1], shown[2]) and not np.array_equal(shown[2], shown[3])   # nobody here is blond
    assert labels.tolist() == [[True, False]] * 3


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────

def test_a_markdown_table_has_a_row_per_entry_and_its_first_column_left():
    assert vae.markdown_table([{"model": "conv", "nats": 1}, {"model": "fc", "nats": 2.5}]) == \
        "| model | nats |\n| :-- | --: |\n| conv | 1 |\n| fc | 2.5 |"


@pytest.mark.parametrize("values, digits, text", [([1, 2, 3], 1, "2.0 ± 1.0"), ([1234.56], 1, "1,234.6"), ([0.5, 0.5], 3, "0.500 ± 0.000")])
def test_mean_and_sd_uses_the_sample_standard_deviation(values, digits, text):
    assert vae.mean_and_sd(values, digits) == text
