"""Where data sets are downloaded from when they are not here.

torchvision fetches all of them. Its only source of CelebA has a daily quota, so CelebA has two
more: Kaggle's copy, and the parquet shards of flwrlabs/celeba. Their libraries are on Colab; where
they are missing, the message says what to install. Each shows a progress bar of its own and goes
on where it was cut off. Both lead to files in a layout that support/datasets.py reads anyway.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

from base.errors import DatasetUnavailable
from base.files import data_root, write_atomically
from base.hardware import import_torchvision
from base.options import progress_bar

# A fixed version is found in kagglehub's cache without asking the server.
KAGGLE_DATASET = "jessicali9530/celeba-dataset/versions/2"
HUB_DATASET = "flwrlabs/celeba"
HUB_REVISION = "2d738f56e0e7f925ea36ae7c808ea925264aacec"
HUB_SHARDS = {"train": 19, "valid": 3, "test": 3}  # the splits, and the files of each
TRAIN_SHARD = 162_770 // 19  # images in each file of the training split, about 500 MB


def torchvision_class(title: str) -> type:
    return getattr(import_torchvision().datasets, title.replace("-", ""))  # CIFAR-10 is CIFAR10


def from_torchvision(title: str, place: Path) -> Path:
    """Download a set through torchvision, with its checksums, to its place in the data root."""
    torchvision_class(title)(str(data_root()), download=True)
    return place


def _optional(module: str, package: str) -> ModuleType:
    """A module that is no requirement of the project."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DatasetUnavailable(f"needs {package}: pip install {package}") from None


# ── Kaggle's copy of CelebA ──────────────────────────────────────────────────────────────────────


def kaggle_cache() -> Path:
    """Where kagglehub keeps its download: img_align_celeba/img_align_celeba/*.jpg and .csv."""
    cache = os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub"
    return Path(cache) / "datasets" / KAGGLE_DATASET


def from_kaggle() -> Path:
    """Download Kaggle's copy (1.4 GB, no account) and return its folder, on Colab a shared one."""
    return Path(_optional("kagglehub", "kagglehub").dataset_download(KAGGLE_DATASET))


# ── The parquet shards of CelebA ─────────────────────────────────────────────────────────────────


def hub_zip(max_images: int | None) -> Path:
    """The zip in the data root into which as many shards go as `max_images` asks for."""
    return data_root() / f"celeba_{_train_shards(max_images):02}_of_19_shards.zip"


def from_hub(max_images: int | None) -> Path:
    """Download the shards that are needed, copy their images into one zip, and return its path.

    All are 12 GB. With max_images one file each of validation and test images is taken, so the
    smallest download is 1.3 GB. Shards stay in Hugging Face's own cache, which may be emptied then.
    """
    hub = _optional("huggingface_hub", "huggingface_hub")
    parquet = _optional("pyarrow.parquet", "pyarrow")
    target = hub_zip(max_images)
    gigabytes = 12 if max_images is None else round(0.8 + 0.5 * _train_shards(max_images), 1)
    print(f"CelebA: downloading {gigabytes} GB of {HUB_DATASET}; max_images takes less.")
    shards = []
    for split, total in HUB_SHARDS.items():
        count = total if max_images is None else 1
        if split == "train":
            count = _train_shards(max_images)
        for number in range(count):
            name = f"img_align+identity+attr/{split}-{number:05}-of-{total:05}.parquet"
            shard = hub.hf_hub_download(
                HUB_DATASET, name, repo_type="dataset", revision=HUB_REVISION
            )
            shards.append((split, parquet.ParquetFile(shard)))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, partial(_write_zip, shards))
    return target


def _train_shards(max_images: int | None) -> int:
    if max_images is None:
        return HUB_SHARDS["train"]
    return min(HUB_SHARDS["train"], math.ceil(max_images / TRAIN_SHARD))


def _write_zip(shards: list, path: Path) -> None:
    """The images of all shards with Kaggle's two tables.

    A row has image, {bytes, path}; celeb_id, which is left out; and 40 attributes as booleans.
    """
    columns = [
        name for name in shards[0][1].schema_arrow.names if name not in ("image", "celeb_id")
    ]
    attributes = [["image_id", *columns]]
    partition = [["image_id", "partition"]]
    total = sum(shard.metadata.num_rows for _, shard in shards)
    bar = progress_bar(_rows(shards), total=total, desc=f"copying {HUB_DATASET}")
    with zipfile.ZipFile(path, "w") as archive:
        for number, (split, row) in enumerate(bar, 1):
            name = f"{number:06}.png"
            archive.writestr(name, row["image"]["bytes"])
            attributes.append([name, *(1 if row[column] else -1 for column in columns)])
            partition.append([name, list(HUB_SHARDS).index(split)])
        archive.writestr("list_attr_celeba.csv", _csv(attributes))
        archive.writestr("list_eval_partition.csv", _csv(partition))


def _rows(shards: list) -> Iterator[tuple[str, dict]]:
    for split, shard in shards:
        for batch in shard.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield split, row


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
