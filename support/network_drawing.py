"""Task 1's drawings: what flows through the networks, and how gradients come back."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn

import vae_helpers as vae
from base.figure_style import DPI, LEFT

PICTURE = 96  # the width of a photograph in a drawing, in screen pixels


def layer_shapes(model: vae.VAE, x: Tensor) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes of x (1, C, H, W) after each layer of encoder and decoder that has weights.

    A vector that is only folded into feature maps counts once, folded. mu and logvar are left out.
    """
    parts = []
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Unflatten)

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(layer, nn.Unflatten):
            parts[-1].pop()
        parts[-1].append(tuple(output.shape[1:]))

    hooks = [part.register_forward_hook(note) for part in model.modules() if type(part) in layers]
    with torch.no_grad():
        parts.append([])
        mu, _ = model.encode(x)
        parts.append([])
        model.decode(mu)
    for hook in hooks:
        hook.remove()
    encoder, decoder = parts
    return encoder[:-2], decoder


def block_size(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Width, height and depth of the drawing of feature maps (C, H, W), or of a vector (D,)."""
    if len(shape) == 1:
        return 0.13, 0.28 * shape[0] ** 0.25, 0.0
    side = 0.12 * shape[1] ** 0.6
    return side, side, 0.04 * shape[0] ** 0.5


def draw_block(
    ax: plt.Axes, x: float, y: float, shape: tuple[int, ...], color: str, scale: float = 1.0
) -> tuple[float, float]:
    """Feature maps (C, H, W) as a box, a vector (D,) as a bar, around a point; its size below.

    Returns where it begins and ends, from left to right.
    """
    width, height, depth = (scale * length for length in block_size(shape))
    left, low = x - (width + depth) / 2, y - height / 2
    right, high = left + width, low + height
    rise = depth / 2
    faces = {
        0.55: [(left, low), (right, low), (right, high), (left, high)],
        0.9: [
            (right, low),
            (right + depth, low + rise),
            (right + depth, high + rise),
            (right, high),
        ],
        0.35: [
            (left, high),
            (right, high),
            (right + depth, high + rise),
            (left + depth, high + rise),
        ],
    }
    for alpha, corners in faces.items():
        ax.add_patch(plt.Polygon(corners, facecolor=color, edgecolor="white", alpha=alpha))
    return left, right + depth


def draw_row(
    ax: plt.Axes, start: float, end: float, shapes: list[tuple[int, ...]], color: str
) -> list[tuple[float, float]]:
    """Blocks with equal gaps, which fill six tenths of the way at most; returns their extents."""
    widths = []
    for shape in shapes:
        width, _, depth = block_size(shape)
        widths.append(width + depth)
    scale = min(1.0, 0.6 * (end - start) / sum(widths))
    gap = (end - start - scale * sum(widths)) / (len(shapes) + 1)
    extents = []
    for shape, width in zip(shapes, widths):
        start += gap
        middle = start + scale * width / 2
        extents.append(draw_block(ax, middle, 0, shape, color, scale))
        size = f"{shape[1]}×{shape[2]}\n{shape[0]} channels" if len(shape) == 3 else str(shape[0])
        below = -scale * block_size(shape)[1] / 2 - 0.1
        ax.text(middle, below, size, ha="center", va="top", fontsize=9)
        start += scale * width
    return extents


def plot_networks(models: dict[str, vae.VAE], image: Tensor, title: str) -> Figure:
    """What flows through each model, from an image (C, H, W) to x_hat.

    A grey arrow is a layer, the dashed one the draw of z.
    """
    rows = len(models)
    tight = {"shrinkA": 0, "shrinkB": 0}  # an arrow goes all the way
    fig, axes = plt.subplots(
        rows, 1, figsize=(12.4, 3.2 * rows), layout="constrained", squeeze=False
    )
    for ax, (name, model) in zip(axes[:, 0], models.items()):
        x = vae.to_input(image[None].to(model.device), model.config)
        encoder, decoder = layer_shapes(model, x)
        [x_hat] = vae.decode_images(model, vae.encode_images(model, image[None])[0])
        code = (model.config.latent_dim,)
        extents = [(-0.52, 0.52)]  # of the image, which is PICTURE screen pixels wide
        extents += draw_row(ax, 0.52, 4.93, encoder, "C0")
        for y, text in ((0.62, "μ"), (-0.62, "log σ²")):
            of_code = draw_block(ax, 5, y, code, "C1")
            ax.text(5.2, y, f"{text}\n{code[0]}", va="center")
        extents.append(of_code)
        extents += draw_row(ax, 6.2, 6.6, [code], "C1")
        ax.text(6.4, 0.6, "z = μ + σ ε", ha="center")
        ax.text(5.75, -0.1, "ε ~ N(0, I)", ha="center", va="top")
        extents += draw_row(ax, 6.47, 10.68, decoder[:-1], "C2")
        extents.append((10.68, 11.72))
        for place, picture, text in ((0, image, "x"), (11.2, x_hat, "x̂")):
            zoom = PICTURE / picture.shape[-1] * 72 / DPI
            pixels = OffsetImage(vae.image_grid(picture[None], pad=0), zoom=zoom)
            ax.add_artist(AnnotationBbox(pixels, (place, 0), frameon=False, pad=0))
            ax.text(place, -0.65, text, ha="center", va="top")
        for (_, start), (end, _) in zip(extents, extents[1:]):
            ends = {"xy": (end - 0.08, 0), "xytext": (start + 0.08, 0)}
            look = {"linestyle": "--" if start == of_code[1] else "-", "color": "grey"}
            ax.annotate("", arrowprops={"arrowstyle": "->", **look, **tight}, **ends)
        ax.set_title(f"{name}: {vae.count_parameters(model):,} parameters")
        ax.set(xlim=(-0.6, 11.8), ylim=(-1.4, 1.25), aspect="equal")
        ax.axis("off")
    fig.suptitle(title, **LEFT)
    return fig


def plot_two_graphs() -> Figure:
    """Why z is computed and not drawn: two graphs, and how far the gradient comes in each."""
    graphs = {
        "z is drawn: backpropagation stops at the draw": "z ~ N(μ, σ²)",
        "z is computed from a draw of ε: backpropagation goes on to the encoder": "z = μ + σ · ε",
    }
    places = (0, 1.5, 2.9, 4.5, 6.2, 8.2)
    fig, axes = plt.subplots(2, 1, figsize=(9, 4.4), layout="constrained")
    texts = []
    for ax, (title, z) in zip(axes, graphs.items()):
        names = ("x", "encoder φ", "μ, σ", z, "decoder θ", "reconstruction")
        row = [draw_node(ax, place, 0, name) for place, name in zip(places, names)]
        noise = None if "~" in z else draw_node(ax, places[3], 1, "ε ~ N(0, I)")
        ax.set_title(title)
        ax.set(xlim=(-0.4, 9.1), ylim=(-1, 1.4 if noise else 0.6))
        ax.axis("off")
        texts.append((row, noise))
    fig.draw_without_rendering()  # from here on the boxes have their sizes
    for ax, (row, noise) in zip(axes, texts):
        boxes = [box_of(ax, text) for text in row]
        for (_, start), (end, _) in zip(boxes, boxes[1:]):
            draw_arrow(ax, (start, 0), (end, 0), "0.4")
        if noise:
            draw_arrow(ax, (places[3], 0.75), (places[3], 0.25), "0.4")
        reached = 1 if noise else 3
        draw_arrow(ax, (places[5], -0.55), (places[reached], -0.55), "C3")
        ax.text(places[5], -0.85, "gradient", color="C3", ha="center", va="center")
        if not noise:
            ax.text(places[3] - 0.1, -0.55, "✗", color="C3", ha="right", va="center", fontsize=15)
    return fig


def draw_node(ax: plt.Axes, x: float, y: float, name: str) -> plt.Text:
    """A name in a box; what is drawn at random is grey with a dashed edge."""
    box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "0.4"}
    if "~" in name:
        box |= {"facecolor": "0.88", "linestyle": "--"}
    return ax.text(x, y, name, ha="center", va="center", bbox=box)


def box_of(ax: plt.Axes, text: plt.Text) -> tuple[float, float]:
    """Where the box of a text begins and ends, from left to right."""
    box = text.get_bbox_patch().get_window_extent()
    (left, _), (right, _) = ax.transData.inverted().transform(box)
    return left, right


def draw_arrow(
    ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str
) -> None:
    look = {"arrowstyle": "->", "color": color, "lw": 1.5, "shrinkA": 2, "shrinkB": 2}
    ax.annotate("", end, start, arrowprops=look)
