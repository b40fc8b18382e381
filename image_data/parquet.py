"""CelebA and CIFAR-10 from parquet files of Hugging Face, as zips that the project reads anyway.

They are the last source, where `huggingface_hub` and `pyarrow` are installed, as on Colab. The
library has time limits and a progress bar of its own, and goes on where it was cut off.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from base.errors import DatasetUnavailable
from base.files import data_root, write_atomically
from base.options import progress_bar
from image_data.downloads import Limits, optional

CELEBA = "flwrlabs/celeba"
CELEBA_REVISION = "2d738f56e0e7f925ea36ae7c808ea925264aacec"
CELEBA_SHARDS = {"train": 19, "valid": 3, "test": 3}  # the splits, and the files of each
TRAIN_SHARD = 162_770 // 19  # images in each file of the training split, about 500 MB

CIFAR10 = "uoft-cs/cifar10"
CIFAR10_REVISION = "0b2714987fa478483af9968de7c934580d0bb9a2"
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
CIFAR10_SHA256 = {
    "train": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
    "test": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
}


def celeba_zip(max_images: int | None) -> Path:
    """The zip in the data root into which as many shards go as `max_images` asks for."""
    return data_root() / f"celeba_{_train_shards(max_images):02}_of_19_shards.zip"


def fetch_celeba(max_images: int | None, limits: Limits) -> Path:
    """Download the shards that are needed, copy their images into one zip, and return its path.

    All are 12 GB. With max_images one file each of validation and test images is taken, so the
    smallest download is 1.3 GB. Shards stay in Hugging Face's own cache, which may be emptied then.
    """
    hub = optional("huggingface_hub", "huggingface_hub")
    parquet = optional("pyarrow.parquet", "pyarrow")
    gigabytes = 12 if max_images is None else round(0.8 + 0.5 * _train_shards(max_images), 1)
    print(f"CelebA: downloading {gigabytes} GB of {CELEBA}; max_images takes less.")
    shards = []
    for split, total in CELEBA_SHARDS.items():
        count = total if max_images is None else 1
        if split == "train":
            count = _train_shards(max_images)
        for number in range(count):
            name = f"img_align+identity+attr/{split}-{number:05}-of-{total:05}.parquet"
            shard = hub.hf_hub_download(CELEBA, name, repo_type="dataset", revision=CELEBA_REVISION)
            shards.append((split, parquet.ParquetFile(shard)))
    return _write(celeba_zip(max_images), partial(_write_celeba, shards))


def fetch_cifar10(place: Path, limits: Limits) -> Path:
    """Download the two files (144 MB) and copy their images, which lost nothing, into one zip.

    It has train/<class>/… and test/<class>/…: torchvision's own files cannot be made of them.
    """
    hub = optional("huggingface_hub", "huggingface_hub")
    parquet = optional("pyarrow.parquet", "pyarrow")
    shards = []
    for split, sha256 in CIFAR10_SHA256.items():
        shard = hub.hf_hub_download(
            CIFAR10,
            f"plain_text/{split}-00000-of-00001.parquet",
            repo_type="dataset",
            revision=CIFAR10_REVISION,
        )
        if hashlib.sha256(Path(shard).read_bytes()).hexdigest() != sha256:
            raise DatasetUnavailable(f"{shard} has the wrong checksum: delete it")
        shards.append((split, parquet.ParquetFile(shard)))
    return _write(place, partial(_write_cifar10, shards))


def _train_shards(max_images: int | None) -> int:
    if max_images is None:
        return CELEBA_SHARDS["train"]
    return min(CELEBA_SHARDS["train"], math.ceil(max_images / TRAIN_SHARD))


def _write(target: Path, write) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, write)
    return target


def _write_celeba(shards: list, path: Path) -> None:
    """The images of all shards with Kaggle's two tables.

    A row has image, {bytes, path}; celeb_id, which is left out; and 40 attributes as booleans.
    """
    columns = [
        name for name in shards[0][1].schema_arrow.names if name not in ("image", "celeb_id")
    ]
    attributes = [["image_id", *columns]]
    partition = [["image_id", "partition"]]
    with zipfile.ZipFile(path, "w") as archive:
        for number, (split, row) in enumerate(_rows(shards, CELEBA), 1):
            name = f"{number:06}.png"
            archive.writestr(name, row["image"]["bytes"])
            attributes.append([name, *(1 if row[column] else -1 for column in columns)])
            partition.append([name, list(CELEBA_SHARDS).index(split)])
        archive.writestr("list_attr_celeba.csv", _csv(attributes))
        archive.writestr("list_eval_partition.csv", _csv(partition))


def _write_cifar10(shards: list, path: Path) -> None:
    """A row has img, {bytes, path}, and label, 0 to 9."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (split, row) in enumerate(_rows(shards, CIFAR10)):
            folder = f"{split}/{CIFAR10_CLASSES[row['label']]}"
            archive.writestr(f"{folder}/{number:05}.png", row["img"]["bytes"])


def _rows(shards: list, name: str) -> Iterator[tuple[str, dict]]:
    total = sum(shard.metadata.num_rows for _, shard in shards)
    with progress_bar(None, total=total, desc=f"copying {name}") as bar:
        for split, shard in shards:
            for batch in shard.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    bar.update()
                    yield split, row


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
