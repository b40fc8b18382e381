"""Data sets: find, download, decode and cache images, and draw the shapes.

`load_dataset` is what the rest of the project calls; it stands above its parts. The file is longer
than the others of support/ because it is the only one that knows how images lie on disks: CelebA's
official and Kaggle's layouts, zips, damaged files and 16-bit greys. Nothing else imports these
parts one by one. The errors and small helpers at the top are shared by the whole project.
"""

from __future__ import annotations

import colorsys
import dataclasses
import hashlib
import io
import math
import numbers
import os
import sys
import uuid
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

DATASETS = {  # name → its own image size in pixels
    "cifar10": 32,
    "celeba": 64,
    "mnist": 28,
    "fashion_mnist": 28,
    "folder": 64,
    "shapes": 32,
}
# The levels of each factor that the drawn shapes vary in.
SHAPE_FACTORS = {
    "shape": 3,
    "hue": 10,
    "background_hue": 10,
    "size": 4,
    "x": 8,
    "y": 8,
    "rotation": 8,
}
SHAPE_NAMES = ("ellipse", "rectangle", "triangle")

SPLIT_SEED = 0  # fixed: every run sees the same train, validation and test images
FAST_SIZES = (1024, 256, 256)  # train, validation and test images under VAE_FAST=1
CACHE_VERSION = 5  # raise it when decoding changes, or what a cache file holds
IMAGE_SUFFIXES = set(".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm".split())
# Pillow knows more formats, and would hand one of them, PostScript, to Ghostscript to run.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_FILE = 1 << 28  # bytes; an image at Pillow's limit of 89 million pixels has about as many


# ── Errors and small helpers that the whole project shares ───────────────────────────────────────


class VAEError(ValueError):
    """Something that the user can put right; the message is one sentence that says how."""


class DatasetUnavailable(VAEError):
    """The images are missing and could not be downloaded; the message says what was tried."""


def env_flag(name: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "") not in ("", "0")


def progress_bar(iterable, *, hidden: bool = False, **options) -> tqdm:
    """tqdm that leaves nothing behind. TQDM_DISABLE=1 hides it, in notebooks too."""
    return tqdm(iterable, leave=False, disable=hidden or env_flag("TQDM_DISABLE"), **options)


def data_root() -> Path:
    """Where data sets are looked for: $VAE_DATA, else data/ in the project's folder."""
    return Path(os.environ.get("VAE_DATA") or Path(__file__).resolve().parent.parent / "data")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in full or not at all: `write` fills a temporary file, which then takes its name.

    Raises OSError, also where safetensors reports a full disk with an error of its own.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors makes files that only their owner can read: go back to the user's own mode.
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(first_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def import_torchvision():
    """Import torchvision, also where its compiled operators do not load.

    A CUDA build of torchvision beside a CPU build of torch fails with "operator torchvision::nms
    does not exist". Nothing in this project uses those operators, so declaring them is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
        # Forget the first attempt, which is half imported.
        for module in list(sys.modules):
            if module.split(".")[0] == "torchvision":
                del sys.modules[module]
        import torchvision
    return torchvision


# ── Load a data set ──────────────────────────────────────────────────────────────────────────────


class Split(NamedTuple):
    """Images uint8 (N, C, H, W); labels (N,) int64 classes, or (N, A) attributes or factors."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set in memory. The three splits share no file; test is for final numbers only."""

    name: str  # one of DATASETS: what was really loaded
    title: str  # what every figure calls it
    train: Split
    val: Split
    test: Split
    label_names: tuple[str, ...]  # of the classes, or of the columns of the labels

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def fingerprint(self) -> str:
        """A short hash of the sizes and of 64 training images, to tell data sets apart."""
        n = len(self.train.images)
        some = self.train.images[torch.linspace(0, n - 1, min(n, 64)).long()]
        counts = [len(split.images) for split in (self.train, self.val, self.test)]
        head = f"{self.name} {counts} {tuple(some.shape)}"
        return hashlib.sha256(head.encode() + some.numpy().tobytes()).hexdigest()[:16]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; of drawn shapes the three kinds; () where there are no classes."""
        if self.name == "shapes":
            return SHAPE_NAMES
        has_classes = self.train.labels.ndim == 1 and len(self.label_names) > 1
        return self.label_names if has_classes else ()

    def class_labels(self, split: Split) -> Tensor:
        """The class of each image of a split, (N,)."""
        return split.labels[:, 0] if self.name == "shapes" else split.labels


def load_dataset(
    name: str,
    *,
    image_size: int | None = None,
    data_dir: str | os.PathLike | None = None,
    max_images: int | None = None,
    download: bool = True,
    or_shapes: bool = False,
) -> ImageData:
    """Load a data set as uint8 tensors in train, validation and test splits.

    Looked for under data_root(): torchvision's layout, NAME.zip, a folder NAME of images, then
    torchvision's download. Decoded images are cached, so the second start is quick. Under
    VAE_FAST=1 only FAST_SIZES images of the splits are loaded, and nothing is downloaded.

    name        one of DATASETS
    image_size  pixels; default: the set's own, see DATASETS
    data_dir    for "folder": a folder or zip of images, flat, <class>/… or {train,test}/<class>/…
    max_images  at most so many training images; of `shapes`, which has 3,000 by default, also more
    download    whether torchvision may download
    or_shapes   go on with the drawn shapes, and say so, when the set cannot be had

    Raises DatasetUnavailable; VAEError for an unknown name or a size that is no size.
    """
    if name not in DATASETS:
        raise VAEError(f"Unknown dataset {name!r}: choose one of {', '.join(DATASETS)}.")
    _check_whole_number("image_size", image_size, 2, 4096)
    _check_whole_number("max_images", max_images, 1, 2**31 - 1)
    size = image_size or DATASETS[name]
    try:
        if name == "shapes":
            data = _load_shapes(size, max_images)
        elif name == "folder":
            data = _load_folder(data_dir, size)
        else:
            data = _load_known(name, size, download and not env_flag("VAE_FAST"))
    except DatasetUnavailable as error:
        if not or_shapes:
            raise
        rule = "=" * 100
        print(
            f"{rule}\n{error}\n\n>>> Going on with `shapes`, images that are drawn on the fly. "
            f"What is written about {name} elsewhere does not hold for them.\n{rule}"
        )
        data = _load_shapes(image_size or DATASETS["shapes"], max_images)
    train = Split(data.train.images[:max_images], data.train.labels[:max_images])
    if len(train.images) < len(data.train.images) or env_flag("VAE_FAST"):
        title = f"{data.title}, {len(train.images):,} training images"
        data = dataclasses.replace(data, train=train, title=title)
    return data


def _check_whole_number(name: str, value, low: int, high: int) -> None:
    if value is not None and not (isinstance(value, numbers.Integral) and low <= value <= high):
        raise VAEError(f"{name} must be a whole number from {low} to {high:,}, not {value!r}.")


# ── The known sets, and torchvision's files and download ─────────────────────────────────────────


class _Known(NamedTuple):
    title: str
    torchvision_class: str
    folder: str  # below the data root, as torchvision's download leaves it


_KNOWN = {
    "cifar10": _Known("CIFAR-10", "CIFAR10", "cifar-10-batches-py"),
    "celeba": _Known("CelebA", "CelebA", "celeba/img_align_celeba"),
    "mnist": _Known("MNIST", "MNIST", "MNIST/raw"),
    "fashion_mnist": _Known("Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw"),
}


def _load_known(name: str, size: int, download: bool) -> ImageData:
    """The first place that holds the set, or torchvision's download.

    Raises DatasetUnavailable, with all that was tried.
    """
    known = _KNOWN[name]
    root = data_root()
    own, folder, archive = root / known.folder, root / name, root / f"{name}.zip"
    if name == "celeba":
        # The zip comes first, because the folder beside it may be half unpacked.
        places = {own.with_suffix(".zip"): _load_celeba, own: _load_celeba}
        places |= {folder: _load_celeba, archive: _load_celeba}
        put = (
            "put img_align_celeba.zip and list_attr_celeba.txt (the official ones, or Kaggle's "
            f"folder and .csv) into {folder}; when the official download's daily quota is used up, "
            "Kaggle's copy has none"
        )
    else:
        places = {own: _load_torchvision, archive: _load_tree, folder: _load_tree}
        put = f"put torchvision's files or {name}.zip (as {{train,test}}/<class>/…) into {root}"
    attempts = {}
    for place, load in places.items():
        attempts[place] = partial(load, name, known.title, place, size)
    attempts["download"] = partial(_download, known, download, then=attempts[own])
    tried = []
    for place, attempt in attempts.items():
        try:
            return attempt()
        except Exception as error:  # damaged files and failing networks raise errors of all kinds
            tried.append(f"  - {place}: {first_line(error)}")
    raise DatasetUnavailable(
        "\n".join([f"{known.title} is not here. Tried:", *tried])
        + f"\nThree ways out:\n  1. {put};\n"
        "  2. set VAE_DATA to the folder that holds it, or delete damaged files of those above and "
        "run again with a network connection and without VAE_FAST;\n"
        "  3. use the images that are drawn on the fly: dataset `shapes`."
    )


def _download(known: _Known, allowed: bool, then: Callable[[], ImageData]) -> ImageData:
    """torchvision's download, with its checksums, into the data root."""
    if not allowed:
        raise DatasetUnavailable("not allowed here")
    dataset = getattr(import_torchvision().datasets, known.torchvision_class)
    dataset(str(data_root()), download=True)
    return then()


def _load_torchvision(name: str, title: str, path: Path, size: int) -> ImageData:
    """CIFAR-10, MNIST or Fashion-MNIST in torchvision's own files."""
    if not path.is_dir():
        raise DatasetUnavailable("not there")
    torchvision = import_torchvision()
    dataset = getattr(torchvision.datasets, _KNOWN[name].torchvision_class)
    train = dataset(str(data_root()), train=True)
    test = dataset(str(data_root()), train=False)
    images = torch.from_numpy(np.concatenate([train.data, test.data]))
    labels = torch.from_numpy(np.concatenate([train.targets, test.targets]))
    # (N, H, W) or (N, H, W, C) → (N, C, H, W)
    images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)
    splits = []
    for rows in _assign_splits(["train"] * len(train.data) + ["test"] * len(test.data)):
        resized = torchvision.transforms.functional.resize(images[rows].contiguous(), [size, size])
        splits.append(Split(resized, labels[rows]))
    return ImageData(name, title, *splits, tuple(train.classes))


# ── A folder or zip of images ────────────────────────────────────────────────────────────────────


def _load_folder(data_dir: str | os.PathLike | None, size: int) -> ImageData:
    if data_dir is None:
        raise VAEError(
            "--dataset folder needs --data_dir: the folder or zip with your images, for example "
            "data/NAME."
        )
    try:
        return _load_tree("folder", Path(data_dir).stem, Path(data_dir), size)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(
            f"{data_dir}: {error}. Put your images there, or name another place with --data_dir."
        ) from None


_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def _load_tree(name: str, title: str, path: Path, size: int) -> ImageData:
    """A folder or zip of images, below any number of common top folders.

    Their layout is flat, <class>/… or {train,test}/<class>/….
    """
    files = _open(path)
    parts = {}  # file → its path in parts
    for file in files:
        # pathlib would take a second for 60,000 names.
        if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
            parts[file] = file.split("/")
    while len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        # A folder that holds everything says nothing.
        parts = {file: part[1:] for file, part in parts.items()}

    splits = {file: _SPLIT_FOLDERS.get(part[0].lower(), "") for file, part in parts.items()}
    named = {"train", "test"} & set(splits.values())
    if len(named) == 1:
        raise DatasetUnavailable(
            "of the folders train and test only one is there, name both or neither"
        )
    if named:
        for file, split in splits.items():
            if split:
                parts[file] = parts[file][1:]
            else:
                del parts[file]
    if len(parts) < 3:
        raise DatasetUnavailable(
            f"{len(parts) or 'no'} images there ({', '.join(sorted(IMAGE_SUFFIXES))}), and train, "
            "validation and test need one each"
        )

    folders = [part[0] if len(part) > 1 else "" for part in parts.values()]
    classes, labels = np.unique(folders, return_inverse=True)
    if name == "cifar10" and any(file.lower().endswith((".jpg", ".jpeg")) for file in parts):
        title += " (JPEG copy)"
    readers = {file: files[file] for file in parts}
    split_of = [splits[file] for file in parts]
    loaded = _decode_splits(path, readers, torch.from_numpy(labels), split_of, size)
    return ImageData(name, _printable(title), *loaded, tuple(map(_printable, classes)))


def _printable(name: str | Path) -> str:
    r"""A file's name; bytes of it that are not UTF-8 become \udc…, else nothing could print it."""
    return str(name).encode(errors="backslashreplace").decode()


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


# ── CelebA ───────────────────────────────────────────────────────────────────────────────────────


def _load_celeba(name: str, title: str, path: Path, size: int) -> ImageData:
    """CelebA in its official files or in Kaggle's, whole or a subset; attributes bool (N, 40)."""
    files = _open(path)
    # The tables are beside the images, or among them.
    tables = _open(path.parent) if path.stem == "img_align_celeba" else files
    columns, attributes = _celeba_table(tables, "list_attr_celeba", (-1, 0, 1))
    _, partition = _celeba_table(tables, "list_eval_partition", (0, 1, 2))
    if not attributes:
        raise DatasetUnavailable("list_attr_celeba.txt (or .csv) is not beside it")
    images = {}  # name in the tables → name of the file
    for file in files:
        if file.lower().endswith((".jpg", ".png")):
            images[file.rsplit("/", 1)[-1]] = file

    names = _with_rows(sorted(images), attributes, "list_attr_celeba")
    splits = [""] * len(names)
    if partition:
        names = _with_rows(names, partition, "list_eval_partition")
        splits = [("train", "val", "test")[partition[name][0]] for name in names]
    labels = torch.tensor([attributes[image] for image in names]) > 0
    readers = {images[image]: files[images[image]] for image in names}
    # The usual crop: the centred 148-pixel square of the 178x218 images.
    loaded = _decode_splits(path, readers, labels, splits, size, crop=148 / 178)
    if len(names) != 202_599:
        title = f"{title} ({len(names):,} images)"
    return ImageData(name, title, *loaded, columns)


def _celeba_table(
    files: dict[str, Callable[[], bytes]], stem: str, allowed: Sequence[int]
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Column names, and the numbers of each image, from the official .txt or Kaggle's .csv.

    Raises DatasetUnavailable on a row that is not an image and as many allowed numbers as columns.
    """
    text = b""
    for file in (f"{stem}.txt", f"{stem}.csv"):
        for name, read in files.items():
            if name.rsplit("/", 1)[-1] == file and not text:
                text = read()
    numbers_of = {str(number): number for number in allowed}
    columns = ("partition",)  # the official partition has no header
    rows = {}
    for line_number, line in enumerate(text.decode("utf-8-sig").splitlines(), 1):
        cells = line.replace(",", " ").replace('"', " ").split()
        if not cells:
            continue
        is_image = cells[0].endswith((".jpg", ".png"))
        if not (is_image or rows):
            columns = tuple(cells[1:] if cells[0] in ("image_id", "image") else cells)
            continue
        complete = len(cells) == len(columns) + 1 and numbers_of.keys() >= set(cells[1:])
        if not (is_image and complete):
            raise DatasetUnavailable(
                f"line {line_number} of {stem} is not an image and {len(columns)} of the numbers "
                f"{', '.join(numbers_of)}: get that file again"
            )
        rows[cells[0]] = tuple(numbers_of[cell] for cell in cells[1:])
    return columns, rows


def _with_rows(names: list[str], table: dict[str, tuple[int, ...]], stem: str) -> list[str]:
    """Those of the images that have a row in a table of CelebA; says how many have none."""
    kept = list(filter(table.__contains__, names))
    if len(kept) < 3:
        raise DatasetUnavailable(f"its {len(names):,} images are not the ones in {stem}")
    if len(kept) < len(names):
        print(f"CelebA: {len(names) - len(kept):,} images without a row in {stem} are left out.")
    return kept


# ── Splits, decoding and the cache ───────────────────────────────────────────────────────────────


def _assign_splits(named: Sequence[str]) -> list[Tensor]:
    """The indices of the training, validation and test images, each shuffled with SPLIT_SEED.

    Where the source names train and test only, a tenth of train (at most 5,000) becomes validation;
    where it does not name both, all images are dealt 80/10/10. Shuffling makes the first images of
    a split a fair sample of it, which VAE_FAST=1 relies on.
    """
    shuffled = torch.randperm(len(named), generator=torch.Generator().manual_seed(SPLIT_SEED))
    split_of = np.array(named)[shuffled]
    train, val, test = (
        shuffled[torch.from_numpy(split_of == split)] for split in ("train", "val", "test")
    )
    if not (len(train) and len(test)):
        tenth = max(1, len(shuffled) // 10)
        val, test, train = shuffled.tensor_split((tenth, 2 * tenth))
    elif not len(val):
        val, train = train.tensor_split((min(5000, max(1, len(train) // 10)),))
    return _first_if_fast([train, val, test])


def _first_if_fast(splits: list[Tensor]) -> list[Tensor]:
    """Under VAE_FAST=1 the first of each split: no test image is one that a full run trains on."""
    if not env_flag("VAE_FAST"):
        return splits
    return [split[:count] for split, count in zip(splits, FAST_SIZES)]


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


# ── Drawn shapes ─────────────────────────────────────────────────────────────────────────────────


def draw_shapes(factors: Tensor, image_size: int = 32) -> Tensor:
    """Draw coloured shapes: whole-number factors (N, 7) → images uint8 (N, 3, H, W).

    The columns are those of SHAPE_FACTORS, and shape counts in SHAPE_NAMES. All shapes are
    elongated, and rotations cover half a turn, so that every combination of factors is a different
    image. Edges are anti-aliased through signed distances.
    """
    columns = factors.T[..., None, None].float()
    shape, hue, background, size, x, y, rotation = columns  # each (N, 1, 1)
    pixel = (torch.arange(image_size) + 0.5) / image_size * 2 - 1  # centres in [-1, 1]
    a = 0.22 + 0.09 * size  # half the length of the shape
    b = 0.6 * a  # half its width
    u = pixel[None, None, :] - (x / 7 - 0.5) * 0.9
    v = pixel[None, :, None] - (y / 7 - 0.5) * 0.9
    cos, sin = (rotation / 8 * math.pi).cos(), (rotation / 8 * math.pi).sin()
    u, v = u * cos + v * sin, v * cos - u * sin

    ellipse = (((u / a) ** 2 + (v / b) ** 2).sqrt() - 1) * b
    rectangle = torch.maximum(u.abs() - a * 0.9, v.abs() - b * 0.8)
    # The base is at u = -a, the tip at u = a.
    sides = (0.8 * (u - a) + 2.0 * v.abs()) / math.hypot(2.0, 0.8)
    triangle = torch.maximum(-u - a, sides)
    distance = torch.where(shape == 0, ellipse, torch.where(shape == 1, rectangle, triangle))

    inside = (0.5 - distance * image_size / 2).clamp(0, 1)[:, None]  # (N, 1, H, W)
    front = _colours(hue, saturation=0.85, value=0.95)
    back = _colours(background, saturation=0.45, value=0.45)
    return ((front * inside + back * (1 - inside)) * 255).round().byte()


def _colours(hue: Tensor, saturation: float, value: float) -> Tensor:
    """The RGB colours of ten hues round the colour wheel: (N, 1, 1) → (N, 3, 1, 1)."""
    palette = [colorsys.hsv_to_rgb(level / 10, saturation, value) for level in range(10)]
    return torch.tensor(palette)[hue.flatten().long()][..., None, None]


def _load_shapes(size: int, max_images: int | None) -> ImageData:
    """3,000 training, 500 validation and 1,000 test images of different shapes, or more to train.

    So few because training on them then takes minutes on two CPU cores. The splits share no image.
    """
    more = max(0, (max_images or 0) - 3000)
    counts = [3000, 500, 1000, more]
    levels = tuple(SHAPE_FACTORS.values())
    combinations = math.prod(levels)
    if sum(counts) > combinations:
        raise VAEError(
            f"There are {combinations:,} different shapes: max_images can be at most "
            f"{combinations - 1500:,}."
        )
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    chosen = torch.randperm(combinations, generator=generator)[: sum(counts)]
    factors = torch.stack(torch.unravel_index(chosen, levels), dim=1)
    train, val, test, further = factors.split(counts)
    splits = []
    at_once = max(1, 500 * 32**2 // size**2)
    for part in _first_if_fast([torch.cat([train, further]), val, test]):
        images = torch.cat([draw_shapes(some, size) for some in part.split(at_once)])
        splits.append(Split(images, part))
    title = "shapes (synthetic)"
    if len(splits[0].images) > 3000:
        title += f", {len(splits[0].images):,} training images"
    return ImageData("shapes", title, *splits, tuple(SHAPE_FACTORS))
