"""Image files that tests make: each picture carries its number in its colour, so that a test can
say which image it sees, whatever became of the file."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from image_data.load import load_dataset

SPLITS = ("train", "val", "test")
LAYOUTS = {
    "flat": "{i:02}.png",
    "classes": "{c}/{i:02}.png",
    "splits": "{split}/{c}/{i:02}.png",
    "three splits": "{part}/{c}/{i:02}.png",
    "lone train": "train/{c}/{i:02}.png",
}


def paint(path: Path, number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write an image of one colour, which says its number; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (20 + 8 * number, 255 - 8 * number, 100))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(path, "PNG")
    return path


def paint_noise(folder: Path, count: int, mode: str = "RGB") -> Path:
    """A flat folder of images of random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.png")
    return folder


def tree(folder: Path, layout: str, top: str = "") -> Path:
    """20 images of class even or odd; where the layout names splits, the last 5 are for testing."""
    for i in range(20):
        words = {
            "i": i,
            "c": ("even", "odd")[i % 2],
            "split": ("train", "test")[i // 15],
            "part": ("Training", "Training", "VALID", "Testing")[i // 5],
        }
        paint(folder / top / LAYOUTS[layout].format(**words), i)
    return folder


def zip_folder(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def numbers(split) -> list[int]:
    """The numbers that paint() gave to the images of a split; resizing may lie between."""
    return [round((int(image[0, 0, 0]) - 20) / 8) for image in split.images]


def splits(data) -> list:
    return [data.train, data.val, data.test]


def all_numbers(data) -> list[int]:
    return sorted(sum(map(numbers, splits(data)), []))


def all_images(data) -> torch.Tensor:
    return torch.cat([split.images for split in splits(data)])


def sizes(data) -> list[int]:
    return [len(split.images) for split in splits(data)]


def labels_follow(data, label_of) -> bool:
    """Whether every painted image has the label of its number."""
    expected = [list(map(label_of, numbers(split))) for split in splits(data)]
    return [split.labels.tolist() for split in splits(data)] == expected


def load(path, size=8):
    return load_dataset("folder", data_dir=path, image_size=size)


def is_whole(data, classes=("even", "odd")) -> bool:
    """Whether all 20 pictures of `tree` are there with their classes, and nothing else."""
    follows = labels_follow(data, lambda number: number % 2)
    return all_numbers(data) == list(range(20)) and data.label_names == classes and follows


def same(a, b) -> bool:
    return all(map(torch.equal, sum(splits(a), ()), sum(splits(b), ())))


def numbered(*shape: int) -> np.ndarray:
    """30 images of random pixels with their numbers in the first one; 20 to 29 are for testing."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, *shape), np.uint8)
    pixels.reshape(30, -1)[:, 0] = np.arange(30)
    return pixels


ATTRIBUTES = ("Bald", "Male", "Smiling")
ATTRIBUTES_OF = [[i % 2 == 0, i % 3 == 0, i < 10] for i in range(50)]


def write_attributes(folder: Path, rows=range(20)) -> None:
    """CelebA's table of attributes, -1 or 1, for images 000001.jpg and so on."""
    lines = [str(len(rows)), " ".join(ATTRIBUTES)]
    for i in rows:
        values = "  ".join("1" if value else "-1" for value in ATTRIBUTES_OF[i])
        lines.append(f"{i + 1:06}.jpg  {values}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def write_celeba(folder: Path) -> Path:
    """The official files: a zip of 20 images of 178x218, attributes and partition."""
    for i in range(20):
        paint(folder / "img_align_celeba" / f"{i + 1:06}.jpg", i, (178, 218))
    shutil.make_archive(folder / "img_align_celeba", "zip", folder, "img_align_celeba")
    shutil.rmtree(folder / "img_align_celeba")
    write_attributes(folder)
    splits = [0] * 14 + [1] * 3 + [2] * 3
    lines = [f"{i + 1:06}.jpg {split}\n" for i, split in enumerate(splits)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


def official(folder: Path) -> Path:
    return folder / "img_align_celeba.zip"


def half_unpacked(folder: Path) -> None:
    for i in range(7):
        paint(folder / "img_align_celeba" / f"{i + 1:06}.jpg", i, (178, 218))


def unpacked(folder: Path, into: str = ".") -> None:
    shutil.unpack_archive(official(folder), folder / into)
    official(folder).unlink()


def kaggle(folder: Path) -> None:
    """Kaggle nests the folder of images, and gives .csv files with a header."""
    unpacked(folder, "img_align_celeba")
    headers = {"list_attr_celeba": ATTRIBUTES, "list_eval_partition": ["partition"]}
    for stem, columns in headers.items():
        lines = [["image_id", *columns]]
        for row in (folder / f"{stem}.txt").read_text().splitlines():
            if ".jpg" in row:
                lines.append(row.split())
        (folder / f"{stem}.csv").write_text("\n".join(map(",".join, lines)))
        (folder / f"{stem}.txt").unlink()


def kaggle_zip(folder: Path) -> None:
    kaggle(folder)
    zip_folder(folder, folder.with_suffix(".zip"))
    shutil.rmtree(folder)


CELEBA_LAYOUTS = (official, half_unpacked, unpacked, kaggle, kaggle_zip)
