"""Images of more than 8 bits: their samples, and the white that a whole set of them shares.

Pillow would clip grey ones at 255, and keeps only the upper 8 bits of coloured ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

# The files do not say which value is white. Usual are all ones in so many bits.
_WHITES_OF = {
    "integer": [2**bits - 1 for bits in (8, 10, 12, 14, 16, 20, 24, 31, 32)],
    "float": [1] + [2**bits - 1 for bits in (8, 10, 12, 14, 16)],
}
_ROUNDING = {"integer": 1, "float": 1.001}  # arithmetic with floats may go beyond white
# How Pillow unpacks 16-bit colours to their upper bytes → how it would unpack the lower ones.
_LOWER_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if np.little_endian else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if np.little_endian else "RGBA;16L",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "LA;16B": "RGBA",  # four bytes as they come: upper and lower grey, upper and lower alpha
}


class Peak(NamedTuple):
    """What the white of a set depends on."""

    kind: str  # integer or float
    value: float  # the highest of an image


@dataclass(frozen=True)
class DeepImage:
    """The samples of an image of more than 8 bits: grey (H, W) or coloured (H, W, 3)."""

    samples: np.ndarray
    alpha: np.ndarray | None  # uint8 (H, W), 0 where nothing is to be seen
    is_inverted: bool  # 0 is white, as in many scans
    declared_white: int  # 0 where the file does not say it

    @property
    def peak(self) -> Peak:
        """Raises ValueError where no scale is known: negative, too large or not a number."""
        kind = "float" if self.samples.dtype.kind == "f" else "integer"
        highest = self.samples.max().item()
        if not (self.samples.min() >= 0 and highest <= _WHITES_OF[kind][-1] * _ROUNDING[kind]):
            raise ValueError("no scale is known")
        return Peak(kind, self.declared_white or highest)

    def eight_bits(self, white: float) -> Image.Image:
        """The image with white at 255, with its alpha if it has one: L, LA, RGB or RGBA."""
        share = np.minimum(self.samples / white, 1)
        if self.is_inverted:
            share = 1 - share
        image = Image.fromarray((share * 255).round().astype(np.uint8))
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def common_whites(peaks: Iterable[Peak]) -> dict[str, float]:
    """For each kind the smallest usual white that no image exceeds: what is dark stays dark."""
    highest: dict[str, float] = {}
    for kind, value in peaks:
        highest[kind] = max(value, highest.get(kind, 0))
    whites = {}
    for kind, value in highest.items():
        enough = value / _ROUNDING[kind]
        whites[kind] = next(white for white in _WHITES_OF[kind] if white >= enough)
    return whites


def deep_image(image: Image.Image, content: bytes) -> DeepImage | None:
    """The samples of an opened file, turned as the camera was held; None if it has 8 bits."""
    [tile] = image.tile[:1] or [None]
    arguments = getattr(tile, "args", None)
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    lower = _LOWER_BYTES.get(layout) if image.mode in ("RGB", "RGBA") else None
    if image.mode[0] not in "IF" and lower is None:
        return None
    tags = getattr(image, "tag_v2", {})
    is_inverted = tags.get(262) == 0
    is_unsigned = str(layout).startswith("I;32") and 1 in np.atleast_1d(tags.get(339, 1))
    # A PGM file declares its white, which Pillow stretches to 65535 unless it is that.
    is_stretched = tile and tile.codec_name.startswith("ppm") and arguments[-1] != 65535
    declared_white = 65535 if is_stretched else 0
    transparent = image.info.get("transparency")
    if lower is None:
        samples = np.asarray(ImageOps.exif_transpose(image))
        alpha = None
        if is_unsigned and samples.dtype == np.int32:
            samples = samples.view(np.uint32)
    else:
        samples, alpha = _coloured(image, content, layout, lower)
    if transparent is not None:  # one value, or one colour, is transparent
        seen = samples != np.asarray(transparent)
        alpha = 255 * (seen if samples.ndim == 2 else seen.any(axis=-1)).astype(np.uint8)
    return DeepImage(samples, alpha, is_inverted, declared_white)


def _coloured(
    image: Image.Image, content: bytes, layout: str, lower: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """All 16 bits of colours or of grey with alpha: the file is decoded once for each byte."""
    second = Image.open(io.BytesIO(content), formats=(image.format,))
    second.tile = [_with_layout(tile, lower) for tile in second.tile]
    upper_bytes = np.asarray(ImageOps.exif_transpose(image))
    lower_bytes = np.asarray(ImageOps.exif_transpose(second))
    if layout == "LA;16B":
        grey = lower_bytes[..., 0].astype(np.uint16) << 8 | lower_bytes[..., 1]
        return grey, upper_bytes[..., 3].copy()
    samples = upper_bytes[..., :3].astype(np.uint16) << 8 | lower_bytes[..., :3]
    alpha = upper_bytes[..., 3].copy() if image.mode == "RGBA" else None
    return samples, alpha


def _with_layout(tile, layout: str):
    if isinstance(tile.args, tuple):
        return tile._replace(args=(layout, *tile.args[1:]))
    return tile._replace(args=layout)
