"""Plots: each figure shows the right numbers and pictures in the right places."""

import io

import numpy as np
import pytest
import torch
from conftest import of_seed, rand
from PIL import Image

import vae_helpers as vae
from support import network_drawing

STRIP = rand(5, 3, 8, 8)
pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),  # what matplotlib warns with
    pytest.mark.filterwarnings("ignore:.*deprecated"),  # pyparsing, through matplotlib 3.10.0
]


def drawn(fig):
    """The panels of a figure that can be drawn."""
    fig.canvas.draw()
    return fig.axes


def rows(fig):
    """The label of each strip of images → its pixels."""
    return {ax.get_ylabel(): ax.images[0].get_array() for ax in drawn(fig)}


def test_a_grid_keeps_every_image_upright_and_in_its_place_between_white_lines():
    """Channels are moved, not reshaped: .view(H, W, 3) would scramble this picture."""
    images = torch.arange(3 * 4 * 6 * 3).reshape(3, 3, 4, 6).byte()  # every value another one
    expected = np.full((1 + 2 * 5, 1 + 2 * 7, 3), 255)
    for number, (y, x) in enumerate([(1, 1), (1, 8), (6, 1)]):  # row by row, no fourth image
        for channel in range(3):
            expected[y : y + 4, x : x + 6, channel] = images[number, channel]
    assert np.array_equal(vae.image_grid(images, columns=2, pad=1), expected)
    assert np.array_equal(vae.image_grid(images / 255, columns=2, pad=1), expected)


@pytest.mark.parametrize("options", [{}, {"bbox_inches": "tight"}])  # the latter in notebooks
def test_every_pixel_of_an_image_is_drawn_with_the_same_whole_number_of_pixels(options):
    noise = torch.randint(256, (12, 3, 7, 7), generator=of_seed(0)).byte()
    fig = vae.plot_grid(noise, "A TITLE that is longer than the pictures", columns=4, cell=0.3)
    file = io.BytesIO()
    fig.savefig(file, **options)
    drawn = np.array(Image.open(file).convert("RGB"))
    expected = vae.image_grid(noise, 4).repeat(5, axis=0).repeat(5, axis=1)  # 35 for 30 pixels
    top = int(np.argmax((drawn == expected[10, 10]).all(2).any(1))) - 10  # where an image begins
    left = int(np.argmax((drawn[top + 10] == expected[10, 10]).all(1))) - 10
    height, width, _ = expected.shape
    assert np.array_equal(drawn[top : top + height, left : left + width], expected)


def test_no_text_is_cut(model, shapes):
    names = {"a name of\ntwo long lines": STRIP, "US$ 5, \\frac and $": STRIP[:2]}
    sheet = vae.plot_rows(names, "A TITLE, longer than both of the rows together", list("abcde"))
    assert np.array_equal(rows(sheet)["US$ 5, \\frac and $"], vae.image_grid(STRIP[:2]))
    networks = network_drawing.plot_networks({"conv": model}, shapes.test.images[0], "TITLE")
    for fig in (sheet, networks, network_drawing.plot_two_graphs()):
        fig.canvas.draw()
        texts = [*fig.texts, *fig.axes[0].texts, fig.axes[0].yaxis.label, fig.axes[0].title]
        for text in filter(lambda text: text.get_text(), texts):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1


def test_an_animation_goes_there_and_back_and_holds_its_pictures():
    frames = torch.linspace(0, 1, 3)[:, None, None, None, None].expand(3, 2, 3, 8, 8)
    film = Image.open(io.BytesIO(vae.animate(frames, cell=0.16, seconds=0.1)))
    assert film.info["duration"] == 100 and film.info["loop"] == 0
    assert film.size == (2 * 22, 2 * 12)  # two images and their edges, twice as large
    greys, pictures = [], range(film.n_frames)
    for number in pictures:
        film.seek(number)
        greys += [film.convert("RGB").getpixel((10, 10))[0]] * round(film.info["duration"] / 100)
    there = [0, 128] + [255] * 7
    assert greys == pytest.approx(there + [255, 128] + [0] * 7, abs=2)


def test_pictures_stand_below_their_originals(model, shapes):
    images = shapes.test.images[:4]
    mu, _ = vae.encode_images(model, images)
    x_hat = vae.image_grid(vae.decode_images(model, mu))
    shown = rows(vae.plot_reconstructions({"conv": model}, images, "TITLE"))
    assert np.array_equal(shown["original"], vae.image_grid(images))
    assert np.array_equal(shown["conv"], x_hat)


def test_interpolations_stand_between_the_two_originals_with_their_positions():
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    fig = vae.display_interpolated_images({"a": STRIP.flip(0), "b": STRIP}, (black, black + 255))
    expected = torch.cat([torch.zeros(1, 3, 8, 8), STRIP, torch.ones(1, 3, 8, 8)])
    assert np.array_equal(rows(fig)["b"], vae.image_grid(expected))
    assert fig.axes[0].get_xticks() == pytest.approx(np.arange(5.5, 66, 10), abs=1)
    texts = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert texts == ["original", "0", "0.25", "0.5", "0.75", "1", "original"]


def test_a_history_shows_validation_solid_and_training_dashed_on_axes_for_the_later_epochs():
    history = []
    for epoch, nats in enumerate((9000.0, 12.0, 11.0), 1):
        row = {"epoch": epoch}
        for part in ("reconstruction", "kl", "total"):
            row |= {f"val_{part}_nats": nats, f"train_{part}_nats": nats + 1}
        history.append(row)
    for ax in drawn(vae.plot_history({"conv": history}, "TITLE")):
        validation, training = ax.lines
        assert validation.get_xydata().tolist() == [[1, 9000], [2, 12], [3, 11]]
        assert training.get_xydata().tolist() == [[1, 9001], [2, 13], [3, 12]]
        assert [validation.get_linestyle(), training.get_linestyle()] == ["-", "--"]
        assert ax.get_ylim()[0] < 11 and ax.get_ylim()[1] > 9001  # nothing is cut off


def test_a_history_leaves_gaps_where_nothing_was_measured():
    """While a prior learns, the decoder does not run on training images."""
    history = []
    for epoch, nats in enumerate((9.0, 8.0, None), 1):
        row = {"epoch": epoch}
        for part in ("reconstruction", "kl", "total"):
            row |= {f"val_{part}_nats": 7.0, f"train_{part}_nats": nats}
        history.append(row)
    for ax in drawn(vae.plot_history({"grid": history}, "TITLE")):
        np.testing.assert_equal(np.asarray(ax.lines[1].get_ydata(), float), [9, 8, np.nan])


def test_a_single_image_has_the_same_edge_as_the_images_of_a_row():
    one, two = vae.image_grid(STRIP[:1]), vae.image_grid(STRIP[:2])
    assert one.shape == (12, 12, 3)
    assert np.array_equal(one[:, :10], two[:, :10])
