"""How every figure and table looks: one style, and pixels that all have the same size."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
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
    "text.parse_math": False,  # a file or a class may be called "US$ 5 and $"
}
plt.rcParams.update(STYLE)
DPI = STYLE["figure.dpi"]
SPACE = 8  # pixels between texts and pictures
JPEG = {"quality": 75, "optimize": True, "progressive": True}  # looked at: no loss to be seen
LEFT = {"x": 0.004, "ha": "left"}  # where titles of figures stand


class Sheet(Figure):
    """A figure of pictures. A notebook stores it as JPEG where that is less than half of its PNG.

    Photographs, enlarged twice, take a quarter; drawn shapes and small images, enlarged more, stay
    PNG. A file that savefig writes is what its name says.

    halves_colours    JPEG may keep one colour for two by two pixels, since these are one pixel of
                      an image: the caller has placed its pictures so
    """

    def __init__(self, *args, halves_colours: bool = False, **options):
        super().__init__(*args, **options)
        self.halves_colours = halves_colours

    def _ipython_display_(self) -> None:
        """IPython calls this for a cell's last expression, display(figure) and plt.show()."""
        from IPython.display import display

        kind, file = self.stored()
        picture = base64.b64encode(file).decode()
        display({f"image/{kind}": picture, "text/plain": repr(self)}, raw=True)

    def stored(self) -> tuple[str, bytes]:
        """What a notebook stores: "jpeg" or "png", and the file."""
        png, jpeg = io.BytesIO(), io.BytesIO()
        self.savefig(png, format="png")
        subsampling = "4:2:0" if self.halves_colours else "4:4:4"
        Image.open(png).convert("RGB").save(jpeg, "JPEG", subsampling=subsampling, **JPEG)
        if 2 * len(jpeg.getvalue()) < len(png.getvalue()):
            return "jpeg", jpeg.getvalue()
        return "png", png.getvalue()


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
    They begin at even ones, for JPEG.
    """
    halves_colours = all(factor % 2 == 0 for _, factor in pictures.values())
    fig = plt.figure(FigureClass=Sheet, dpi=DPI, halves_colours=halves_colours)
    left = text_size(fig, pictures, "axes.labelsize")[0] + SPACE + edge * DPI
    title_width, top = text_size(fig, [title], "figure.titlesize")
    top += 2 * SPACE
    if len(column_labels):
        top += text_size(fig, map(str, column_labels), "xtick.labelsize")[1] + SPACE
    widest = max(picture.shape[1] * factor for picture, factor in pictures.values())
    heights = [picture.shape[0] * factor for picture, factor in pictures.values()]
    left, top = 2 * math.ceil(left / 2), 2 * math.ceil(top / 2)
    width = math.ceil(left + max(widest, title_width) + SPACE)
    height = math.ceil(top + sum(heights) + SPACE + edge * DPI)
    # A hair more than whole pixels: 1.14 inches are 113.99… of them, which matplotlib cuts to 113.
    fig.set_size_inches((width + 5e-7) / DPI, (height + 5e-7) / DPI)

    bottom = height - top
    for (name, (picture, factor)), picture_height in zip(pictures.items(), heights):
        bottom -= picture_height
        picture_width = picture.shape[1] * factor
        # A hair less than whole pixels: of a rounding error more, matplotlib draws one pixel more.
        size = ((picture_width - 1e-6) / width, (picture_height - 1e-6) / height)
        ax = fig.add_axes((left / width, bottom / height, *size))
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        if name:
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(False)
    fig.suptitle(title, x=left / width, y=1 - SPACE / height, ha="left", va="top")
    # Who cuts the figure to what is drawn, with bbox_inches="tight", cuts at whole pixels so.
    fig.add_artist(plt.Rectangle((0, 0), 1, 1, fill=False, linewidth=0))
    return fig


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same keys → a Markdown table, its first column left-aligned."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [columns, [":--"] + ["--:"] * (len(columns) - 1)]
    for row in rows:
        lines.append([str(row[column]) for column in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_sd(values: Sequence[float], digits: int = 1) -> str:
    """'mean ± sample standard deviation' of some seeds, or the bare value of a single one."""
    spread = f" ± {np.std(values, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"
