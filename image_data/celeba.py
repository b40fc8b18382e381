"""CelebA: its image files and its tables, official or Kaggle's, whole or a subset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from base.errors import DatasetUnavailable
from base.files import decode_text, is_web_page
from image_data.archives import Files, open_files
from image_data.image_files import FORMAT_OF, ending, find_images
from image_data.load_files import describe, load_splits
from image_data.splits import ImageData, title_of_part


def load_celeba(
    name: str, title: str, path: Path, size: int, max_images: int | None = None
) -> ImageData:
    """CelebA in its official files or in Kaggle's, whole or a subset; attributes bool (N, 40)."""
    files = open_files(path)
    # The tables are beside the images, or among them.
    tables = open_files(path.parent) if path.stem == "img_align_celeba" else files
    columns, attributes = _celeba_table(tables, "list_attr_celeba", (-1, 0, 1))
    _, partition = _celeba_table(tables, "list_eval_partition", (0, 1, 2))
    if not attributes:
        raise DatasetUnavailable("list_attr_celeba.txt (or .csv) is not beside it")
    found, others = find_images(files)
    files.check(found)
    images = {}  # what the tables call it → name of the file
    for file in found:
        images[_key(files.paths[file])] = file
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
    if len(chosen) < 202_599:
        title += f" ({len(chosen):,} images)"
    # The usual crop: the centred 148-pixel square of the 178x218 images.
    loaded = load_splits(files, names, labels, split_of, size, 148 / 178, max_images)
    describe(title, loaded, passed_over=files.passed_over + others)
    title = title_of_part(title, len(loaded.splits[0].images), len(loaded.rows[0]))
    return ImageData(name, title, *loaded.splits, columns)


def _key(path: str) -> str:
    """What an image is called in all tables and archives: without folder, ending and case."""
    return PurePosixPath(path.replace("\\", "/")).stem.lower()


def _celeba_table(
    files: Files, stem: str, allowed: Sequence[int]
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Column names, and the numbers of each image, from the official .txt or Kaggle's .csv.

    Images are called by their `_key`. Raises DatasetUnavailable on a web page in place of the
    table, and on a row that is not an image and as many allowed numbers as columns.
    """
    content = b""
    for file in files.names:
        if files.paths[file].rsplit("/", 1)[-1].lower() in (f"{stem}.txt", f"{stem}.csv"):
            content = files.read(file)
    if is_web_page(content):
        raise DatasetUnavailable(f"a web page was saved in place of {stem}: get that file again")
    number_of = {str(number): number for number in allowed}
    columns, rows = ("partition",), {}  # the official partition has no header
    for line_number, line in enumerate(decode_text(content).splitlines(), 1):
        for separator in ',;"':
            line = line.replace(separator, " ")
        cells = line.split()
        # Some tables have 000001 in place of 000001.jpg; the official one begins with a count.
        is_number = len(cells) > 1 and cells[0].isdigit()
        is_image = bool(cells) and (ending(cells[0]) in FORMAT_OF or is_number)
        if cells and not (is_image or rows):
            columns = tuple(cells[1:] if cells[0] in ("image_id", "image") else cells)
        elif cells:
            complete = len(cells) == len(columns) + 1 and number_of.keys() >= set(cells[1:])
            if not (is_image and complete):
                raise DatasetUnavailable(
                    f"line {line_number} of {stem} is not an image and {len(columns)} of the "
                    f"numbers {', '.join(number_of)}: get that file again"
                )
            rows[_key(cells[0])] = tuple(number_of[cell] for cell in cells[1:])
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
