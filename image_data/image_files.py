"""Image files: which files are images, and their pixels, decoded with care.

The files may come from anywhere: one that is too large, broken or no image is skipped, and
load_files.py says which.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from base.errors import VAEError, first_line
from base.options import progress_bar
from image_data.archives import Files
from image_data.bit_depth import Peak, common_whites, deep_image

# ── Which files are images ───────────────────────────────────────────────────────────────────────

Image.init()
# Pillow knows more formats, and would hand one of them, PostScript, to Ghostscript to run.
_BY_CONTENT = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
# Nothing unmistakable in these files says what they are, so that their ending has to.
_BY_ENDING = (
    "CUR", "DCX", "DDS", "DIB", "FITS", "ICNS", "ICO", "MSP", "PCD", "PCX", "SGI", "SUN", "TGA",
    "XBM", "XPM",
)  # fmt: skip
_BY_CONTENT = tuple(name for name in _BY_CONTENT if name in Image.OPEN)
FORMAT_OF = {".mpo": "JPEG"}  # ending → Pillow's format, of all that is read here
for _ending, _format in Image.registered_extensions().items():
    if _format in Image.OPEN and _format in _BY_CONTENT + _BY_ENDING:
        FORMAT_OF[_ending] = _format

# Pictures that nothing here reads. Raw files of cameras begin like TIFF, with a small preview.
_NOT_READ = {
    ".3fr", ".ai", ".arw", ".bay", ".braw", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng",
    ".eip", ".emf", ".eps", ".erf", ".fff", ".gpr", ".heic", ".heif", ".hif", ".iiq", ".jxl",
    ".k25", ".kdc", ".mdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pdf", ".pef", ".ps",
    ".psb", ".psd", ".ptx", ".pxn", ".r3d", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw",
    ".svg", ".svgz", ".thm", ".wmf", ".x3f", ".xcf"
}  # fmt: skip
# Texts, whatever their encoding; other files are looked into.
_TEXTS = {
    ".aae", ".cfg", ".conf", ".csv", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl",
    ".log", ".md", ".md5", ".py", ".rst", ".rtf", ".sh", ".sha256", ".toml", ".tsv", ".txt", ".url",
    ".webloc", ".xml", ".xmp", ".yaml", ".yml"
}  # fmt: skip
_CONTROL_CHARACTERS = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def find_images(files: Files) -> tuple[list[str], Counter[str]]:
    """The names of the images, sorted, and the endings of what else is there, with their numbers.

    An image has an ending of one, or another or none and a content that is unmistakably one.
    Texts and what is hidden are not counted.
    """
    images, others = [], Counter()
    names = files.names
    for index in files.reading_order(names):
        kind = ending(files.paths[names[index]])
        if kind in FORMAT_OF:
            images.append(names[index])
        elif kind in _NOT_READ:
            others[kind] += 1
        elif kind not in _TEXTS:
            start = files.start(names[index])
            if _begins_like_an_image(start, may_be_tiff=not kind):
                images.append(names[index])
            elif start and _CONTROL_CHARACTERS.search(start):
                others[kind or "without an ending"] += 1
    return sorted(images), others


def _begins_like_an_image(start: bytes, may_be_tiff: bool) -> bool:
    """Whether a file of unknown ending is an image. Many other files begin like TIFF."""
    if not _CONTROL_CHARACTERS.search(start):
        return False
    for name in _BY_CONTENT:
        accepts = Image.OPEN[name][1]
        if accepts(start[:16]) is True and (name != "TIFF" or may_be_tiff):
            return True
    return False


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


def decode_images(
    files: Files, names: list[str], size: int, crop: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Some files of a folder or archive, decoded in the order of `names`.

    Returns the images, uint8 (N, C, size, size) with C = 1 where all are grey, of the files that
    could be read; and bool (len(names),), which these are. All images of more than 8 bits share
    one white, for which they are decoded twice.
    """
    pixels = np.empty((len(names), 3, size, size), np.uint8)
    readable = np.zeros(len(names), bool)
    channels = 1
    whites: dict[str, float] = {}
    peaks: dict[int, Peak] = {}  # of the images of more than 8 bits
    rows = files.reading_order(names)
    while rows:
        decode = partial(decode_file, files, size=size, crop=crop, whites=whites)
        for row, image in _in_threads(files, names, rows, decode):
            if isinstance(image, np.ndarray):
                pixels[row] = image  # a grey image fills all three channels
                readable[row] = True
                channels = max(channels, len(image))
            elif image is not None:
                peaks[row] = image
        rows = [] if whites else [row for row in rows if row in peaks]
        whites = common_whites(peaks.values())
    if not readable.all():
        pixels = pixels[readable]
    return torch.from_numpy(pixels)[:, :channels].contiguous(), torch.from_numpy(readable)


def _in_threads(files: Files, names: list[str], rows: list[int], decode):
    """(row, decode(name, content)) for some rows, while a progress bar grows."""
    waiting = iter(rows)
    turn = threading.Lock()

    def next_one(_) -> tuple[int, np.ndarray | None]:
        content = None
        with turn:
            row = next(waiting)
            if files.in_sequence:
                content = _content(files, names[row])
        if not files.in_sequence:
            content = _content(files, names[row])
        return row, decode(names[row], content)

    with ThreadPool() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # More than 89 million pixels count as unreadable.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = pool.imap_unordered(next_one, range(len(rows)), chunksize=200)
        yield from progress_bar(decoded, total=len(rows), desc=f"decoding {files.path.name}")


def _content(files: Files, name: str) -> bytes | None:
    try:
        return files.read(name)
    except Exception:  # archives raise errors of all kinds
        return None


def decode_file(
    files: Files, name: str, content: bytes | None, size: int, crop: float, whites: dict[str, float]
) -> np.ndarray | Peak | None:
    """An image file → uint8 (3, size, size), of a grey one (1, size, size).

    What is transparent lies on white. The centre square is cut out (crop: its side as a share of
    the width) and resized. None when the file cannot be read as an image; its Peak when it has
    more than 8 bits and `whites` does not know their white yet.
    """
    if content is None:
        return None
    try:
        image = open_image(content, ending(files.paths[name]), whites)
        if isinstance(image, Peak):
            return image
        side = min(round(image.width * crop), *image.size)
        box = ((image.width - side) // 2, (image.height - side) // 2, side)
        return cut_square(image, box, size)
    except Exception:  # Pillow raises errors of all kinds on a broken file
        return None


def open_image(content: bytes, kind: str, whites: dict[str, float]) -> Image.Image | Peak:
    """An upright image on white, grey or coloured, of the content of a file with this ending.

    Its Peak when it has more than 8 bits and `whites` does not know their white yet.
    """
    own_format = FORMAT_OF.get(kind, "JPEG")
    image = Image.open(io.BytesIO(content), formats=(*_BY_CONTENT, own_format))
    deep = deep_image(image, content)
    if deep is None:
        _stretch_transparency(image)
        image = ImageOps.exif_transpose(image)
    elif deep.peak.kind in whites:
        image = deep.eight_bits(whites[deep.peak.kind])
    else:
        return deep.peak
    return _on_white(image)


def cut_square(image: Image.Image, square: tuple[int, int, int], size: int) -> np.ndarray:
    """The square (x, y, side) of an image → uint8 (C, size, size)."""
    x, y, side = square
    box = (x, y, x + side, y + side)
    image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)


def read_pictures(
    paths: Iterable[Path], size: int, channels: int, crop: tuple[int, int, int] | None = None
) -> Tensor:
    """Some picture files → uint8 (N, channels, size, size).

    crop   (x, y, side) in the pixels of each picture; when not given, the largest centred square
    Raises VAEError for a file that is missing or no picture, and for a crop that leaves it.
    """
    pictures = []
    for path in paths:
        try:
            content = path.expanduser().read_bytes()
            image = open_image(content, ending(path.name), {})
            if isinstance(image, Peak):  # alone, a picture has the white that fits it
                image = open_image(content, ending(path.name), common_whites([image]))
        except Exception as error:  # Pillow raises errors of all kinds on what is no picture
            raise VAEError(
                f"{path} cannot be read as a picture ({first_line(error)}): name another file."
            ) from None
        side = min(image.size)
        square = crop or ((image.width - side) // 2, (image.height - side) // 2, side)
        x, y, side = square
        if x + side > image.width or y + side > image.height:
            raise VAEError(
                f"The square {x},{y},{side} leaves {path}, which has {image.width} x "
                f"{image.height} pixels: name one inside of it."
            )
        image = image.convert("L" if channels == 1 else "RGB")
        pictures.append(torch.from_numpy(cut_square(image, square, size).copy()))
    return torch.stack(pictures)


def _stretch_transparency(image: Image.Image) -> None:
    """Pillow stretches grey of 2 or 4 bits to 8, but not the value that is transparent."""
    [tile] = image.tile[:1] or [None]
    factor = {"L;2": 85, "L;4": 17}.get(tile.args if tile else None)
    if factor and "transparency" in image.info:
        image.info["transparency"] *= factor


def _on_white(image: Image.Image) -> Image.Image:
    """An image in grey (L) or colours (RGB); where it is transparent, white shows."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    if image.mode == "La":  # Pillow goes from there to LA only
        image = image.convert("LA")
    image = image.convert("RGBA")
    opaque = Image.new(mode, image.size, "white")
    opaque.paste(image.convert(mode), mask=image.getchannel("A"))
    return opaque
