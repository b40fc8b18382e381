"""Image files: list them in a folder or zip, decode them with care, cache what was decoded.

The files may come from anywhere. Nothing is unpacked or run, and a file that is too large, broken
or no image is skipped and named.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor

from base.errors import DatasetUnavailable, first_line
from base.files import digest, write_atomically
from base.options import progress_bar

CACHE_VERSION = 5  # raise it when decoding changes, or what a cache file holds
# Pillow knows more formats, and would hand one of them, PostScript, to Ghostscript to run.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_FILE = 1 << 28  # bytes; an image at Pillow's limit of 89 million pixels has about as many


# ── Folders and zips ─────────────────────────────────────────────────────────────────────────────


class Files:
    """The files below a folder or in a zip, which is not unpacked.

    names are their paths in it, sorted. Raises DatasetUnavailable where there is no folder and no
    readable zip.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise DatasetUnavailable("not there")
        self.path = path
        self.archive = None
        names = []
        if path.is_dir():
            for file in path.rglob("*"):
                if file.is_file():
                    names.append(file.relative_to(path).as_posix())
        else:
            try:
                self.archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                reason = f"not a readable zip ({first_line(error)}), get it again"
                raise DatasetUnavailable(reason) from None
            for member in self.archive.infolist():
                if not (member.is_dir() or "__MACOSX" in member.filename):
                    names.append(member.filename)
        self.names = sorted(names)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises ValueError where it is too large to be an image.

        A zip of a few kB can hold gigabytes, so the size is looked at before anything is read.
        """
        file = self.path / name
        size = self.archive.getinfo(name).file_size if self.archive else file.stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
        return self.archive.read(name) if self.archive else file.read_bytes()


def printable(name: str | Path) -> str:
    r"""A file's name; bytes of it that are not UTF-8 become \udc…, else nothing could print it."""
    return str(name).encode(errors="backslashreplace").decode()


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


def load_images(
    files: Files, names: list[str], size: int, crop: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Some files of a folder or zip, decoded or taken from the cache, in the order of `names`.

    Returns the images, uint8 (N, C, size, size) with C = 1 where all are grey, of the files that
    could be read; and bool (len(names),), which these are. The others are named and counted.
    """
    cache = _cache_file(files, names, size, crop)
    try:
        images, readable = _read_cache(cache)
    except Exception:  # missing, damaged or foreign: safetensors raises errors of all kinds
        images, readable = _decode_all(files, names, size, crop)
        _write_cache(cache, images, readable)
    broken = []
    for name, is_readable in zip(names, readable.tolist()):
        if not is_readable:
            broken.append(printable(name))
    if broken:
        more = " …" if len(broken) > 5 else ""
        print(
            f"{printable(files.path)}: {len(broken)} of {len(names)} files could not be read as "
            f"images and are skipped: {', '.join(sorted(broken)[:5])}{more}"
        )
    return images, readable


def _decode_all(files: Files, names: list[str], size: int, crop: float) -> tuple[Tensor, Tensor]:
    pixels = np.empty((len(names), 3, size, size), np.uint8)
    readable = np.zeros(len(names), bool)
    channels = 1
    decode = partial(_decode, files, size=size, crop=crop)
    with ThreadPool() as pool, warnings.catch_warnings():
        # More than 89 million pixels count as unreadable.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = pool.imap(decode, names, chunksize=200)
        bar = progress_bar(decoded, total=len(names), desc=f"decoding {files.path.name}")
        for row, image in enumerate(bar):
            if image is not None:
                pixels[row] = image  # a grey image fills all three channels
                readable[row] = True
                channels = max(channels, len(image))
    if not readable.all():
        pixels = pixels[readable]
    return torch.from_numpy(pixels)[:, :channels].contiguous(), torch.from_numpy(readable)


def _decode(files: Files, name: str, size: int, crop: float) -> np.ndarray | None:
    """An image file → uint8 (3, size, size), of a grey one (1, size, size).

    The centre square is cut out (crop: its side as a share of the width) and resized. None when
    the file cannot be read as an image.
    """
    try:
        image = Image.open(io.BytesIO(files.read(name)), formats=IMAGE_FORMATS)
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            image = _eight_bits(image)
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        side = min(round(image.width * crop), *image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
    except Exception:  # Pillow raises errors of all kinds on a broken file
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits or floats, scaled to 8 bits: Pillow would clip it at 255.

    Its white is the smallest usual one that no value exceeds. Raises ValueError where there is
    none, or where a value is negative and nobody knows which one is black.
    """
    values = np.asarray(image, np.float64)
    usual_whites = (1, 255, 65535) if image.mode == "F" else (65535, 2**31 - 1)
    for white in usual_whites:
        if values.min() >= 0 and values.max() <= white:
            return Image.fromarray((values / white * 255).round().astype(np.uint8))
    raise ValueError("no scale is known")


# ── The cache ────────────────────────────────────────────────────────────────────────────────────


def _cache_file(files: Files, names: list[str], size: int, crop: float) -> Path:
    """The cache file of these images: another one when a file, its place or the size changes."""
    sources = [files.path] if files.archive else [files.path / name for name in names]
    stats = []
    for source in sources:
        stat = source.stat()
        stats.append((stat.st_size, stat.st_mtime_ns))
    key = repr((CACHE_VERSION, files.path.resolve(), stats, size, crop, names))
    folder = Path(os.environ.get("VAE_CACHE") or Path.home() / ".cache" / "vae_helpers")
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read_cache(path: Path) -> tuple[Tensor, Tensor]:
    """Images and which files were readable, memory-mapped."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("images", "readable")}
        # safetensors itself does not notice a flipped bit.
        if digest(tensors) != file.metadata()["sha256"]:
            raise ValueError("its checksum does not fit")
    return tensors["images"], tensors["readable"]


def _write_cache(path: Path, images: Tensor, readable: Tensor) -> None:
    tensors = {"images": images, "readable": readable}
    metadata = {"sha256": digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, partial(safetensors.torch.save_file, tensors, metadata=metadata))
    except OSError as error:
        print(
            f"The decoded images could not be cached in {path.parent} ({first_line(error)}); they "
            "are decoded again next time."
        )
