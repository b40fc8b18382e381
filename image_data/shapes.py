"""The drawn shapes: images of known factors, for which there is nothing to download."""

from __future__ import annotations

import colorsys
import math

import torch
from torch import Tensor

SHAPE_FACTORS = {  # what varies in the drawn shapes → how many levels it has
    "shape": 3,
    "hue": 10,
    "background_hue": 10,
    "size": 4,
    "x": 8,
    "y": 8,
    "rotation": 8,
}
SHAPE_NAMES = ("ellipse", "rectangle", "triangle")


def draw_shapes(factors: Tensor, image_size: int = 32) -> Tensor:
    """Draw coloured shapes: whole-number factors (N, 7) → images uint8 (N, 3, H, W).

    The columns are those of SHAPE_FACTORS, and the shape is an index into SHAPE_NAMES. All
    shapes are elongated, and rotations cover half a turn, so that every combination of factors is
    a different image. Edges are anti-aliased through signed distances.
    """
    columns = factors.T[..., None, None].float()
    shape, hue, background, size, x, y, rotation = columns  # each (N, 1, 1)
    pixel = (torch.arange(image_size) + 0.5) / image_size * 2 - 1  # centres in [-1, 1]
    a = 0.22 + 0.09 * size  # half the length of the shape
    b = 0.6 * a  # half its width
    u = pixel[None, None, :] - (x / 7 - 0.5) * 0.9
    v = pixel[None, :, None] - (y / 7 - 0.5) * 0.9
    angle = rotation / 8 * math.pi
    u, v = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()

    ellipse = (((u / a) ** 2 + (v / b) ** 2).sqrt() - 1) * b
    rectangle = torch.maximum(u.abs() - a * 0.9, v.abs() - b * 0.8)
    # The triangle's base is at u = -a, its tip at u = a.
    sides = (0.8 * (u - a) + 2.0 * v.abs()) / math.hypot(2.0, 0.8)
    triangle = torch.maximum(-u - a, sides)
    distance = torch.where(shape == 0, ellipse, torch.where(shape == 1, rectangle, triangle))

    inside = (0.5 - distance * image_size / 2).clamp(0, 1)[:, None]  # (N, 1, H, W)
    front = _colours(hue, saturation=0.85, value=0.95)
    back = _colours(background, saturation=0.45, value=0.45)
    return ((front * inside + back * (1 - inside)) * 255).round().byte()


def _colours(hue: Tensor, saturation: float, value: float) -> Tensor:
    """RGB colours of ten hues round the colour wheel: (N, 1, 1) → (N, 3, 1, 1)."""
    palette = [colorsys.hsv_to_rgb(level / 10, saturation, value) for level in range(10)]
    return torch.tensor(palette)[hue.flatten().long()][..., None, None]
