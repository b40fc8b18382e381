"""A folder or archive of images as people have it: flat, in classes, in splits, in a top folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from base.errors import DatasetUnavailable
from image_data.archives import ARCHIVE_ENDINGS, Files, open_files, printable
from image_data.image_files import ending, find_images
from image_data.load_files import describe, load_splits
from image_data.splits import ImageData, title_of_part

# In any case, and also as in training_set or test-images.
_SPLIT_FOLDER = re.compile(
    r"(?P<train>train|training)|(?P<val>val|valid|validation)|(?P<test>test|testing)"
)
_SET = re.compile(r"[ _-]?(set|data|images|imgs)$")


def split_of_folder(name: str) -> str:
    """train, val, test, or "" where the name of a folder says none of them."""
    match = _SPLIT_FOLDER.fullmatch(_SET.sub("", name.lower()))
    return match.lastgroup if match else ""


def title_of(path: Path) -> str:
    """The folder's own name, also of `.`; an archive's without its ending."""
    absolute = Path(os.path.abspath(path))
    name = absolute.name or str(absolute)
    if not path.is_dir():
        for suffix in ARCHIVE_ENDINGS:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return printable(unicodedata.normalize("NFC", name))


def load_tree(
    name: str, title: str, path: Path, size: int, max_images: int | None = None
) -> ImageData:
    """A folder or archive of images: flat, <class>/… or {train,test}/<class>/…, in any top folder.

    Prints what was found. Raises DatasetUnavailable where there are too few images.
    """
    files = open_files(path)
    images, others = find_images(files)
    files.check(images)
    passed_over = files.passed_over + others
    parts = _parts_below_top(files, images)
    splits, beside = _named_splits(parts)
    for folder, count in beside.items():
        passed_over[f"images in {printable(folder)}, which is beside the splits"] = count
    if len(parts) < 3:
        found = ", ".join(f"{kind} ({count:,})" for kind, count in passed_over.items())
        raise DatasetUnavailable(
            f"{len(parts) or 'no'} images there{f' (beside {found})' if found else ''}, and train, "
            "validation and test need one each"
        )

    class_of = [_class_name(part[0]) if len(part) > 1 else "" for part in parts.values()]
    classes, labels = np.unique(class_of, return_inverse=True)
    if name == "cifar10" and any(ending(part[-1]) in (".jpg", ".jpeg") for part in parts.values()):
        title += " (JPEG copy)"
    names = list(parts)
    split_of = [splits[file] for file in names]
    loaded = load_splits(
        files, names, torch.from_numpy(labels), split_of, size, max_images=max_images
    )
    describe(title, loaded, class_of, passed_over)
    title = title_of_part(title, len(loaded.splits[0].images), len(loaded.rows[0]))
    return ImageData(name, title, *loaded.splits, tuple(classes.tolist()))


def _class_name(folder: str) -> str:
    """One name whatever form its accents have: macOS writes them as letters of their own."""
    return printable(unicodedata.normalize("NFC", folder))


def _parts_below_top(files: Files, images: list[str]) -> dict[str, list[str]]:
    """Image → the parts of its path, without the top folders that hold all: they are no class."""
    parts = {image: files.paths[image].split("/") for image in images}
    while len({part[0] for part in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {image: part[1:] for image, part in parts.items()}
    return parts


def _named_splits(parts: dict[str, list[str]]) -> tuple[dict[str, str], Counter[str]]:
    """The split that folders name for each image, "" for none; how many lie beside the splits.

    Takes the splits' folders from `parts`, and what lies beside them. Folders are splits where
    there is train and one of validation and test; else those whose images lie directly in them,
    beside folders of other names, are classes that are called like a split. Raises
    DatasetUnavailable for what is neither.
    """
    splits = {}
    for image, part in parts.items():
        splits[image] = split_of_folder(part[0]) if len(part) > 1 else ""
    named = set(splits.values()) - {""}
    beside: Counter[str] = Counter()
    if "train" in named and len(named) > 1:
        for image, split in splits.items():
            folder, *below = parts.pop(image)
            if split:
                parts[image] = below
            else:
                beside[folder if below else "the top folder"] += 1
        return splits, beside
    are_classes = any(not split for split in splits.values()) and all(
        len(parts[image]) == 2 for image, split in splits.items() if split
    )
    if named and not are_classes:
        raise DatasetUnavailable(
            "of the folders train and test only one is there, name both or neither"
        )
    return dict.fromkeys(parts, ""), beside
