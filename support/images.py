"""Image files: read them in a folder or zip, decode them with care, cache what was decoded.

Files may come from anywhere, so nothing is unpacked, run or trusted: a file that is too large, broken
or no image is skipped, and the user is told.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor

from support.basics import DatasetUnavailable, digest, first_line, progress_bar, write_atomically

CACHE_VERSION = 5  # raise it when decoding changes, or what a cache file holds
# Pillow knows more formats, and would hand one of them, PostScript, to Ghostscript to run.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_FILE = 1 << 28  # bytes; an image at Pillow's limit of 89 million pixels has about as many


def _open(path: Path) -> dict[str, Callable[[], bytes]]:
    """For each file below a folder or in a zip, what reads it; sorted by name.

    A zip is not unpacked. Reading a file that is larger than LARGEST_FILE raises ValueError: a zip
    of a few kB can hold gigabytes.
    """
    if not path.exists():
        raise DatasetUnavailable("not there")
    files = {}
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                files[file.relative_to(path).as_posix()] = partial(_read_file, file)
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DatasetUnavailable(
                f"not a readable zip ({first_line(error)}), get it again"
            ) from None
        for member in archive.infolist():
            if not (member.is_dir() or "__MACOSX" in member.filename):
                files[member.filename] = partial(_read_member, archive, member)
    return dict(sorted(files.items()))


def _read_file(path: Path) -> bytes:
    _check_file_size(path.stat().st_size)
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    _check_file_size(member.file_size)
    return archive.read(member)


def _check_file_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")


def _printable(name: str | Path) -> str:
    r"""A file's name; bytes of it that are not UTF-8 become \udc…, else nothing could print it."""
    return str(name).encode(errors="backslashreplace").decode()


def _decode_splits(
    path: Path,
    files: dict[str, Callable[[], bytes]],
    labels: Tensor,
    split_of: Sequence[str],
    size: int,
    crop: float = 1.0,
) -> list[Split]:
    """The train, validation and test splits of a folder or zip, decoded or from the cache.

    Files that cannot be read as images are named, skipped and counted.
    """
    rows = _assign_splits(split_of)
    counts = [len(part) for part in rows]
    all_names = list(files)
    names = [all_names[row] for row in torch.cat(rows).tolist()]
    cache = _cache_file(path, names, (size, crop, counts))
    try:
        images, readable = _read_cache(cache)
    except (
        Exception
    ):  # missing, damaged or another program's: safetensors raises errors of all kinds
        images, readable = _decode_all([files[name] for name in names], size, crop, path.name)
        _write_cache(cache, images, readable)

    broken = []
    for name, is_readable in zip(names, readable.tolist()):
        if not is_readable:
            broken.append(_printable(name))
    if broken:
        more = " …" if len(broken) > 5 else ""
        print(
            f"{_printable(path)}: {len(broken)} of {len(files)} files could not be read as images "
            f"and are skipped: {', '.join(sorted(broken)[:5])}{more}"
        )
    parts = [labels[part[kept]] for part, kept in zip(rows, readable.split(counts))]
    if not all(map(len, parts)):
        raise DatasetUnavailable(
            "too few readable images: train, validation and test need one each"
        )
    return list(map(Split, images.split([len(part) for part in parts]), parts))


def _cache_file(path: Path, names: list[str], choices: tuple) -> Path:
    """The cache file of these images: another one when a file, the size or the split changes."""
    sources = [path / name for name in names] if path.is_dir() else [path]
    stats = []
    for source in sources:
        stat = source.stat()
        stats.append((stat.st_size, stat.st_mtime_ns))
    key = repr((CACHE_VERSION, path.resolve(), stats, choices, names))
    folder = Path(os.environ.get("VAE_CACHE") or Path.home() / ".cache" / "vae_helpers")
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read_cache(path: Path) -> tuple[Tensor, Tensor]:
    """Images and which files were readable, memory-mapped. Raises what safetensors raises."""
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


def _decode_all(
    readers: list[Callable[[], bytes]], size: int, crop: float, name: str
) -> tuple[Tensor, Tensor]:
    """The readable images, (N, C, size, size) with C = 1 if all are grey; which were readable."""
    pixels = np.empty((len(readers), 3, size, size), np.uint8)
    readable = np.zeros(len(readers), bool)
    channels = 1
    with ThreadPool() as pool, warnings.catch_warnings():
        # More than 89 million pixels count as unreadable.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = pool.imap(partial(_decode, size=size, crop=crop), readers, chunksize=200)
        bar = progress_bar(decoded, total=len(readers), desc=f"decoding {name}")
        for row, image in enumerate(bar):
            if image is not None:
                pixels[row] = image  # a grey image fills all three channels
                readable[row] = True
                channels = max(channels, len(image))
    if not readable.all():
        pixels = pixels[readable]
    return torch.from_numpy(pixels)[:, :channels].contiguous(), torch.from_numpy(readable)


def _decode(read: Callable[[], bytes], size: int, crop: float) -> np.ndarray | None:
    """An image file → uint8 (3, size, size), of a grey one (1, size, size).

    The centre square is cut out (crop: its side as a share of the width) and resized. None when
    the file cannot be read as an image.
    """
    try:
        image = Image.open(io.BytesIO(read()), formats=IMAGE_FORMATS)
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
    whites = (1, 255, 65535) if image.mode == "F" else (65535, 2**31 - 1)
    fitting = [white for white in whites if values.max() <= white]
    if not fitting or values.min() < 0:
        raise ValueError("no scale is known")
    return Image.fromarray((values / fitting[0] * 255).round().astype(np.uint8))
