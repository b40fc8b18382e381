"""How every figure looks: one style, and pictures whose pixels all have the same size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

# Of every figure: one font, colours that colour-blind people can tell apart (Okabe & Ito 2008).
STYLE = {
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.prop_cycle": plt.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
plt.rcParams.update(STYLE)
DPI = STYLE["figure.dpi"]
SPACE = 8  # pixels between texts and pictures
LEFT = {"x": 0.004, "ha": "left"}  # where titles of figures stand


def enlargement(images: Tensor, cell: float) -> int:
    """The whole number of screen pixels for a pixel that makes images at least `cell` inches."""
    return max(1, math.ceil(cell * DPI / images.shape[-1]))


def text_size(fig: Figure, lines: Iterable[str], font_size: str) -> tuple[float, float]:
    """Width and height in pixels of the largest of some texts."""
    sizes = [(0.0, 0.0)]
    for line in filter(None, lines):
        text = fig.text(0, 0, line, fontsize=plt.rcParams[font_size])
        if font_size == "figure.titlesize":
            text.set_fontweight(plt.rcParams["figure.titleweight"])
        box = text.get_window_extent()
        text.remove()
        sizes.append((box.width, box.height))
    widths, heights = zip(*sizes)
    return max(widths), max(heights)


def place_pictures(
    pictures: dict[str, tuple[np.ndarray, int]],
    title: str,
    column_labels: Sequence[str] = (),
    edge: float = 0,
) -> Figure:
    """A figure of pictures below each other, each with a name and a whole number to enlarge it by.

    Axes have exactly the pixels of their picture, so that all pixels of an image have one size.
    """
    fig = plt.figure(dpi=DPI)
    left = text_size(fig, pictures, "axes.labelsize")[0] + SPACE + edge * DPI
    title_width, top = text_size(fig, [title], "figure.titlesize")
    top += 2 * SPACE
    if len(column_labels):
        top += text_size(fig, map(str, column_labels), "xtick.labelsize")[1] + SPACE
    widest = max(picture.shape[1] * factor for picture, factor in pictures.values())
    heights = [picture.shape[0] * factor for picture, factor in pictures.values()]
    left, top = math.ceil(left), math.ceil(top)
    width = math.ceil(left + max(widest, title_width) + SPACE)
    height = math.ceil(top + sum(heights) + SPACE + edge * DPI)
    fig.set_size_inches(width / DPI, height / DPI)

    bottom = height - top
    for (name, (picture, factor)), picture_height in zip(pictures.items(), heights):
        bottom -= picture_height
        picture_width = picture.shape[1] * factor
        place = (left / width, bottom / height, picture_width / width, picture_height / height)
        ax = fig.add_axes(place)
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        if name:
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(False)
    fig.suptitle(title, x=left / width, y=1 - SPACE / height, ha="left", va="top")
    # Notebooks cut figures to what is drawn: this keeps the edges on whole pixels.
    fig.add_artist(plt.Rectangle((0, 0), 1, 1, fill=False, linewidth=0))
    return fig
