"""Task 1's drawing of the networks: what flows through them, layer by layer."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn

import vae_helpers as vae
from base.figure_style import DPI, LEFT


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


def draw_block(
    ax: plt.Axes, x: float, y: float, shape: tuple[int, ...], color: str, sized: bool = True
) -> tuple[float, float]:
    """Feature maps (C, H, W) as a box, a vector (D,) as a bar, around a point; its size below.

    Returns where it begins and ends, from left to right.
    """
    if len(shape) == 1:
        width, height, depth = 0.13, 0.28 * shape[0] ** 0.25, 0.0
        size = str(shape[0])
    else:
        width = height = 0.12 * shape[1] ** 0.6
        depth = 0.04 * shape[0] ** 0.5
        size = f"{shape[1]}×{shape[2]}\n{shape[0]} channels"
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
    if sized:
        ax.text(x, low - 0.1, size, ha="center", va="top", fontsize=10)
    return left, right + depth


def plot_networks(models: dict[str, vae.VAE], image: Tensor, title: str) -> Figure:
    """What flows through each model, from an image (C, H, W) to x_hat; an arrow is a layer."""
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
        extents = [(-0.52, 0.52)]  # of the image, three screen pixels for each of its own
        for place, shape in zip(np.linspace(0.3, 5, len(encoder) + 2)[1:], encoder):
            extents.append(draw_block(ax, place, 0, shape, "C0"))
        for y, text in ((0.62, "μ"), (-0.62, "log σ²")):
            extent = draw_block(ax, 5, y, code, "C1", sized=False)
            ax.text(5.2, y, f"{text}\n{code[0]}", va="center")
        extents.append(extent)
        extents.append(draw_block(ax, 6.4, 0, code, "C1"))
        ax.text(6.4, 0.6, "z = μ + σ ε", ha="center")
        for place, shape in zip(np.linspace(6.4, 10.9, len(decoder) + 1)[1:], decoder[:-1]):
            extents.append(draw_block(ax, place, 0, shape, "C2"))
        extents.append((10.68, 11.72))
        for place, picture, text in ((0, image, "x"), (11.2, x_hat, "x̂")):
            pixels = OffsetImage(vae.image_grid(picture[None], pad=0), zoom=3 * 72 / DPI)
            ax.add_artist(AnnotationBbox(pixels, (place, 0), frameon=False, pad=0))
            ax.text(place, -0.65, text, ha="center", va="top")
        for (_, start), (end, _) in zip(extents, extents[1:]):
            ends = {"xy": (end - 0.08, 0), "xytext": (start + 0.08, 0)}
            ax.annotate("", arrowprops={"arrowstyle": "->", "color": "grey", **tight}, **ends)
        ax.set_title(f"{name}: {vae.count_parameters(model):,} parameters")
        ax.set(xlim=(-0.6, 11.8), ylim=(-1.4, 1.25), aspect="equal")
        ax.axis("off")
    fig.suptitle(title, **LEFT)
    return fig
