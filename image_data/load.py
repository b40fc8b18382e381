"""Data sets: find or download them. `load_dataset` is what the rest of the project calls.

splits.py says what a data set is; folders.py reads folders and archives, celeba.py reads CelebA.
"""

from __future__ import annotations

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
from image_data import downloads, parquet
from image_data.archives import ARCHIVE_ENDINGS
from image_data.celeba import load_celeba
from image_data.downloads import Source
from image_data.folders import load_tree, title_of
from image_data.shapes import SHAPE_FACTORS, draw_shapes
from image_data.splits import (
    SPLIT_SEED,
    ImageData,
    Split,
    assign_splits,
    first_of_each,
    limits_of,
    title_of_part,
)

DATASETS = {  # name → its own image size in pixels
    "cifar10": 32,
    "celeba": 64,
    "mnist": 28,
    "fashion_mnist": 28,
    "folder": 64,
    "shapes": 32,
}


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
    the downloads of image_data/downloads.py. Decoded images are cached: the second start is quick.
    Under VAE_FAST=1 only the first FAST_SIZES images are loaded, and nothing is downloaded.

    name        one of DATASETS
    image_size  pixels; default: the set's own, see DATASETS
    data_dir    for "folder": a folder, zip or tar of images, flat, <class>/… or
                {train,test}/<class>/…; ~ is your home
    max_images  at most so many training images, the first of the whole split, and no others are
                decoded; of `shapes`, which has 3,000 by default, also more
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
            return _load_shapes(size, max_images)
        if name == "folder":
            return _load_folder(data_dir, size, max_images)
        download = download and not env_flag("VAE_FAST")
        return _load_known(name, size, max_images, download)
    except DatasetUnavailable as error:
        if not or_shapes:
            raise
        rule = "=" * 100
        print(
            f"{rule}\n{error}\n\n>>> Going on with `shapes`, images that are drawn on the fly. "
            f"What is written about {name} elsewhere does not hold for them.\n{rule}"
        )
        return _load_shapes(image_size or DATASETS["shapes"], max_images)


def _check_whole_number(name: str, value, low: int, high: int) -> None:
    if value is not None and not (isinstance(value, numbers.Integral) and low <= value <= high):
        raise VAEError(f"{name} must be a whole number from {low} to {high:,}, not {value!r}.")


# ── The known sets, and torchvision's files and download ─────────────────────────────────────────

# Name → title, and the folder that torchvision's download makes in the data root. A new set also
# needs its image size in DATASETS, a branch in _load_torchvision if its class differs, and one in
# _sources if it is to be downloaded and is no relative of MNIST.
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
    own, folder = root / own_folder, root / name
    archives = [root / f"{name}{ending}" for ending in ARCHIVE_ENDINGS]
    archives = [path for path in archives if path.exists()] or [root / f"{name}.zip"]
    if name == "celeba":
        # The zip comes first, because the folder beside it may be half unpacked.
        found = [own.with_suffix(".zip"), own, folder, *archives]
        found += [downloads.kaggle_cache(), parquet.celeba_zip(max_images)]
        places = dict.fromkeys(found, load_celeba)
        put = (
            "put img_align_celeba.zip and list_attr_celeba.txt (the official ones, or Kaggle's "
            f"folder and .csv) into {folder}; when the official download's daily quota is used up, "
            "Kaggle's copy has none"
        )
    else:
        places = {own: _load_torchvision} | dict.fromkeys([*archives, folder], load_tree)
        put = f"put torchvision's files or {name}.zip (as {{train,test}}/<class>/…) into {root}"

    def load(place: Path) -> ImageData:
        # A download may lie where nothing was before: Kaggle's copy anywhere.
        reader = places.get(place, load_celeba if name == "celeba" else load_tree)
        return reader(name, title, place, size, max_images)

    tried = [] if root.is_dir() else [f"  - {root}: there is no such folder"]
    for place in places:
        try:
            return load(place)
        except Exception as error:  # damaged files raise errors of all kinds
            tried.append(f"  - {place}: {first_line(error)}")
    if download:
        sources = _sources(name, title, own, root, max_images)
        unwritable = downloads.unwritable(root)
        if unwritable:
            tried.append(f"  - downloads to {root}: {unwritable}")
            sources = [source for source in sources if source.name == "Kaggle's copy"]
        data, reasons = downloads.first_that_works(sources, load, downloads.Limits())
        if data is not None:
            return data
        tried += [f"  - download from {source}: {reason}" for source, reason in reasons.items()]
    else:
        tried.append("  - download: not allowed here")
    raise DatasetUnavailable(
        "\n".join([f"{title} is not here. Tried:", *tried]) + f"\nThree ways out:\n  1. {put};\n"
        "  2. set VAE_DATA to the folder that holds it, or delete what is damaged there and run "
        "again with a network connection and without VAE_FAST;\n"
        "  3. use the images that are drawn on the fly: dataset `shapes`."
    )


def _sources(name: str, title: str, own: Path, root: Path, max_images: int | None) -> list[Source]:
    """Where a set can be downloaded from, in the order in which they are asked."""
    if name == "celeba":
        shards = Source("parquet files", partial(parquet.fetch_celeba, max_images))
        return [*downloads.celeba_sources(root / name), shards]
    if name == "cifar10":
        files = Source("parquet files", partial(parquet.fetch_cifar10, root / "cifar10.zip"))
        return [*downloads.cifar10_sources(own), files]
    has_mirrors = hasattr(downloads.torchvision_class(title), "mirrors")  # MNIST and its relatives
    return downloads.mnist_sources(title, own) if has_mirrors else []


def _load_torchvision(
    name: str, title: str, path: Path, size: int, max_images: int | None
) -> ImageData:
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
    whole = assign_splits(["train"] * len(train.data) + ["test"] * len(test.data))
    splits = []
    for rows in first_of_each(whole, limits_of(max_images)):
        splits.append(Split(resize(images[rows].contiguous(), [size, size]), labels[rows]))
    title = title_of_part(title, len(splits[0].images), len(whole[0]))
    return ImageData(name, title, *splits, tuple(train.classes))


def _load_folder(
    data_dir: str | os.PathLike | None, size: int, max_images: int | None
) -> ImageData:
    if not data_dir:
        raise VAEError(
            "--dataset folder needs --data_dir: the folder, zip or tar with your images, for "
            "example data/NAME."
        )
    path = Path(os.path.expanduser(data_dir))
    try:
        return load_tree("folder", title_of(path), path, size, max_images)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(
            f"{data_dir}: {error}. Put your images there, or name another place with --data_dir."
        ) from None


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
    whole = [torch.cat([train, further]), val, test]
    for part in first_of_each(whole, limits_of(max_images)):
        images = torch.cat([draw_shapes(some, size) for some in part.split(at_once)])
        splits.append(Split(images, part))
    title = title_of_part("shapes (synthetic)", len(splits[0].images), 3000)
    return ImageData("shapes", title, *splits, tuple(SHAPE_FACTORS))
