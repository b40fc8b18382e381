"""What a data set is: images and labels in three splits, and how images are dealt to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from base.options import env_flag
from image_data.shapes import SHAPE_NAMES

SPLIT_SEED = 0  # fixed: every run sees the same train, validation and test images
FAST_SIZES = (1024, 256, 256)  # train, validation and test images under VAE_FAST=1


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


def assign_splits(split_of: Sequence[str], same: np.ndarray | None = None) -> list[Tensor]:
    """The indices of the training, validation and test images, each shuffled with SPLIT_SEED.

    Where the source names train and one of validation and test, a tenth of train (at most 5,000)
    becomes the other one; where it names less, all images are dealt 80/10/10. `same` has equal
    numbers for identical pictures, which are dealt together. Shuffling makes the first images of a
    split a fair sample of it, which VAE_FAST=1 and max_images rely on.
    """
    rows = torch.randperm(len(split_of), generator=torch.Generator().manual_seed(SPLIT_SEED))
    same = np.arange(len(split_of)) if same is None else same
    shuffled = np.array(split_of)[rows]
    train = rows[torch.from_numpy(shuffled == "train")]
    val = rows[torch.from_numpy(shuffled == "val")]
    test = rows[torch.from_numpy(shuffled == "test")]
    if not len(train) or len(train) == len(rows):
        val, test, train = _set_aside(rows, same, parts=2)
    elif not len(val):
        val, train = _set_aside(train, same, parts=1, at_most=5000)
    elif not len(test):
        test, train = _set_aside(train, same, parts=1, at_most=5000)
    return [train, val, test]


def _set_aside(
    rows: Tensor, same: np.ndarray, parts: int, at_most: int | None = None
) -> list[Tensor]:
    """So many parts of a tenth of the different pictures each, and the rest, in their order.

    Where there are too few different pictures, files are dealt as if all were different.
    """
    groups = same[rows]
    if len(np.unique(groups)) <= parts:
        groups = rows.numpy()
    _, first = np.unique(groups, return_index=True)
    different = groups[np.sort(first)]  # pictures in the order of their first file
    tenth = min(max(1, len(different) // 10), at_most or len(different))
    rest = np.ones(len(rows), bool)
    result = []
    for part in range(parts):
        chosen = np.isin(groups, different[part * tenth : (part + 1) * tenth])
        result.append(rows[torch.from_numpy(chosen)])
        rest &= ~chosen
    return [*result, rows[torch.from_numpy(rest)]]


def limits_of(max_images: int | None) -> list[int | None]:
    """How many images of each split are used: under VAE_FAST=1 the first FAST_SIZES.

    They are the first of the whole split: no test image is one that a full run trains on.
    """
    limits = [max_images, None, None]
    if env_flag("VAE_FAST"):
        limits = [min(FAST_SIZES[0], max_images or FAST_SIZES[0]), *FAST_SIZES[1:]]
    return limits


def first_of_each(splits: Sequence[Tensor], limits: Sequence[int | None]) -> list[Tensor]:
    return [split[:limit] for split, limit in zip(splits, limits)]


def title_of_part(title: str, used: int, whole: int) -> str:
    """A title that says where the number of training images is not the usual one."""
    if used != whole or env_flag("VAE_FAST"):
        return f"{title}, {used:,} training images"
    return title
