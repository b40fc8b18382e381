"""base/figure_style.py: what notebooks store of figures."""

import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, of_seed, rand
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from PIL import Image, JpegImagePlugin

import vae_helpers as vae
from base.figure_style import enlargement


def photographs(n: int, size: int) -> torch.Tensor:
    """Pictures that are smooth in the large and noisy in the small, float (n, 3, size, size)."""
    smooth = 0.9 * rand(n, 1, 6, 6) + 0.1 * rand(n, 3, 6, 6, seed=1)
    smooth = F.interpolate(smooth, size=(size, size), mode="bicubic")
    return (smooth + 0.01 * torch.randn(smooth.shape, generator=of_seed(2))).clamp(0, 1)


def pixels(file) -> np.ndarray:
    return np.array(Image.open(file).convert("RGB"))


@settings(max_examples=15)
@given(
    strip=st.tuples(st.integers(1, 4), st.integers(36, 60)),
    names=st.lists(st.text("ab\n", max_size=9), min_size=1, max_size=5, unique=True),
    title=st.text("ab c", max_size=30),
    labelled=st.booleans(),
)
def test_images_enlarged_twice_show_each_pixel_as_two_by_two_that_begin_at_even_ones(
    strip, names, title, labelled
):
    n, size = strip
    sheet = vae.plot_rows(
        dict.fromkeys(names, rand(n, 3, size, size)), title, "abcd"[:n] if labelled else ""
    )
    png = io.BytesIO()
    sheet.savefig(png)
    plt.close(sheet)
    drawn = pixels(png)
    height, width = (side // 2 for side in drawn.shape[:2])
    blocks = drawn[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    of_one_colour = (blocks == blocks[:, :1, :, :1]).all((1, 3, 4))
    coloured = of_one_colour & (blocks[:, 0, :, 0].std(-1) > 0)
    assert coloured.sum() > 0.99 * len(names) * n * size**2  # the images are noise


def test_photographs_are_stored_as_jpeg_that_looks_the_same_and_is_small():
    sheet = vae.plot_grid(photographs(12, 64), "A TITLE")
    png = io.BytesIO()
    sheet.savefig(png)
    kind, stored = sheet.stored()
    assert kind == "jpeg" and len(stored) < len(png.getvalue()) / 2
    difference = pixels(io.BytesIO(stored)).astype(float) - pixels(png)
    assert np.sqrt((difference**2).mean()) < 4  # of 255


def test_colours_keep_their_resolution_where_images_are_not_enlarged_an_even_number_of_times():
    for size, sampling in ((64, 2), (80, 0)):  # enlarged twice, not at all
        kind, stored = vae.plot_grid(photographs(12, size), "A TITLE").stored()
        assert kind == "jpeg"
        assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(stored))) == sampling


@pytest.mark.parametrize("kind", ["drawn shapes", "small photographs"])
def test_where_jpeg_saves_little_pictures_are_stored_exactly(kind, shapes):
    images = shapes.test.images[:8] if kind == "drawn shapes" else photographs(8, 32)
    factor = enlargement(images, 0.72)
    expected = vae.image_grid(images).repeat(factor, axis=0).repeat(factor, axis=1)
    form, stored = vae.plot_grid(images, "A TITLE").stored()
    places = np.lib.stride_tricks.sliding_window_view(pixels(io.BytesIO(stored)), expected.shape)
    assert form == "png" and (places == expected).all((-3, -2, -1)).any()


def test_notebooks_store_sheets_as_jpeg_and_curves_as_png_however_they_are_shown():
    start = f"""%matplotlib inline
import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import matplotlib.pyplot as plt, torch, vae_helpers as vae
from test_figure_style import photographs
images = photographs(12, 64)"""
    row = {"epoch": 1}
    for part in ("reconstruction", "kl", "total"):
        row |= {f"val_{part}_nats": 1.0, f"train_{part}_nats": 1.0}
    shown_by = {
        "vae.plot_grid(images, 'TITLE');": ["jpeg"],
        "display(vae.plot_grid(images, 'TITLE')); plt.close()": ["jpeg"],
        "figure = vae.plot_grid(images, 'TITLE'); plt.close(); figure": ["jpeg"],
        "vae.plot_grid(images, 'TITLE'); plt.show()": ["jpeg"],
        f"vae.plot_history({{'a': [{row!r}]}}, 'TITLE');": ["png"],
    }
    cells = [nbformat.v4.new_code_cell(source) for source in (start, *shown_by)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3").execute()
    for cell, kinds in zip(notebook.cells[1:], shown_by.values(), strict=True):
        stored = [set(output.data) for output in cell.outputs]
        assert stored == [{"text/plain", f"image/{kind}"} for kind in kinds], cell.source
