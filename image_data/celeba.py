"""CelebA: its image files and its tables, official or Kaggle's, whole or a subset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from base.errors import DatasetUnavailable
from image_data.image_files import Files
from image_data.splits import ImageData, load_splits


def load_celeba(name: str, title: str, path: Path, size: int) -> ImageData:
    """CelebA in its official files or in Kaggle's, whole or a subset; attributes bool (N, 40)."""
    files = Files(path)
    # The tables are beside the images, or among them.
    tables = Files(path.parent) if path.stem == "img_align_celeba" else files
    columns, attributes = _celeba_table(tables, "list_attr_celeba", (-1, 0, 1))
    _, partition = _celeba_table(tables, "list_eval_partition", (0, 1, 2))
    if not attributes:
        raise DatasetUnavailable("list_attr_celeba.txt (or .csv) is not beside it")
    images = {}  # name in the tables → name of the file
    for file in files.names:
        if file.lower().endswith((".jpg", ".png")):
            images[file.rsplit("/", 1)[-1]] = file
    if len(images) < len(attributes):
        print(
            f"CelebA: {path} has {len(images):,} of the {len(attributes):,} images of its table; "
            "if it should have all, unpack it again."
        )

    chosen = _with_rows(list(images), attributes, "list_attr_celeba")
    split_of = [""] * len(chosen)
    if partition:
        chosen = _with_rows(chosen, partition, "list_eval_partition")
        split_of = [("train", "val", "test")[partition[image][0]] for image in chosen]
    labels = torch.tensor([attributes[image] for image in chosen]) > 0
    names = [images[image] for image in chosen]
    # The usual crop: the centred 148-pixel square of the 178x218 images.
    loaded = load_splits(files, names, labels, split_of, size, crop=148 / 178)
    if len(chosen) < 202_599:
        title += f" ({len(chosen):,} images)"
    return ImageData(name, title, *loaded, columns)


def _celeba_table(
    files: Files, stem: str, allowed: Sequence[int]
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Column names, and the numbers of each image, from the official .txt or Kaggle's .csv.

    Raises DatasetUnavailable on a row that is not an image and as many allowed numbers as columns.
    """
    text = b""
    for file in files.names:
        if file.rsplit("/", 1)[-1] in (f"{stem}.txt", f"{stem}.csv"):
            text = files.read(file)
    number_of = {str(number): number for number in allowed}
    columns, rows = ("partition",), {}  # the official partition has no header
    for line_number, line in enumerate(text.decode("utf-8-sig").splitlines(), 1):
        cells = line.replace(",", " ").replace('"', " ").split()
        is_image = bool(cells) and cells[0].endswith((".jpg", ".png"))
        if cells and not (is_image or rows):
            columns = tuple(cells[1:] if cells[0] in ("image_id", "image") else cells)
        elif cells:
            complete = len(cells) == len(columns) + 1 and number_of.keys() >= set(cells[1:])
            if not (is_image and complete):
                raise DatasetUnavailable(
                    f"line {line_number} of {stem} is not an image and {len(columns)} of the "
                    f"numbers {', '.join(number_of)}: get that file again"
                )
            rows[cells[0]] = tuple(number_of[cell] for cell in cells[1:])
    return columns, rows


def _with_rows(images: list[str], table: dict[str, tuple[int, ...]], stem: str) -> list[str]:
    """Those of the images that have a row in a table of CelebA, sorted; counts the others."""
    chosen = sorted(table.keys() & images)
    if len(chosen) < 3:
        raise DatasetUnavailable(f"its {len(images):,} images are not the ones in {stem}")
    if len(chosen) < len(images):
        missing = len(images) - len(chosen)
        print(f"CelebA: {missing:,} images without a row in {stem} are left out.")
    return chosen
