"""What a data set is: images and labels in three splits, and how files are dealt to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from base.errors import DatasetUnavailable
from base.options import env_flag
from image_data.image_files import Files, load_images
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


def assign_splits(split_of: Sequence[str]) -> list[Tensor]:
    """The indices of the training, validation and test images, each shuffled with SPLIT_SEED.

    Where the source names train and test only, a tenth of train (at most 5,000) becomes validation;
    where it does not name both, all images are dealt 80/10/10. Shuffling makes the first images of
    a split a fair sample of it, which VAE_FAST=1 relies on.
    """
    rows = torch.randperm(len(split_of), generator=torch.Generator().manual_seed(SPLIT_SEED))
    shuffled = np.array(split_of)[rows]
    train = rows[torch.from_numpy(shuffled == "train")]
    val = rows[torch.from_numpy(shuffled == "val")]
    test = rows[torch.from_numpy(shuffled == "test")]
    if not (len(train) and len(test)):
        tenth = max(1, len(rows) // 10)
        val, test, train = rows.tensor_split((tenth, 2 * tenth))
    elif not len(val):
        tenth = max(1, len(train) // 10)
        val, train = train.tensor_split((min(tenth, 5000),))
    return first_if_fast([train, val, test])


def first_if_fast(splits: list[Tensor]) -> list[Tensor]:
    """Under VAE_FAST=1 the first of each split: no test image is one that a full run trains on."""
    if not env_flag("VAE_FAST"):
        return splits
    return [split[:count] for split, count in zip(splits, FAST_SIZES)]


def load_splits(
    files: Files,
    names: Sequence[str],
    labels: Tensor,
    split_of: Sequence[str],
    size: int,
    crop: float = 1.0,
) -> list[Split]:
    """The train, validation and test splits of some image files of a folder or zip."""
    rows = assign_splits(split_of)
    chosen = [names[row] for row in torch.cat(rows).tolist()]
    images, readable = load_images(files, chosen, size, crop)
    counts = [len(part) for part in rows]
    parts = [labels[part[kept]] for part, kept in zip(rows, readable.split(counts))]
    if not all(map(len, parts)):
        raise DatasetUnavailable(
            "too few readable images: train, validation and test need one each"
        )
    return list(map(Split, images.split([len(part) for part in parts]), parts))
