"""The cache of decoded images: one file for each set, which prunes itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from base.errors import first_line
from base.files import digest, write_atomically

CACHE_VERSION = 6  # raise it when decoding changes, or what a cache file holds
LARGEST_CACHE = 5 * 10**9  # bytes of all its files


def cache_file(*key) -> Path:
    """The cache file of whatever `key` says: another one when a part of it changes."""
    folder = os.environ.get("VAE_CACHE") or "~/.cache/vae_helpers"
    name = hashlib.sha256(repr((CACHE_VERSION, *key)).encode()).hexdigest()[:32]
    return Path(os.path.expanduser(folder)) / f"{name}.safetensors"


def read_cache(path: Path) -> dict[str, Tensor]:
    """The tensors of a cache file, memory-mapped. Raises errors of all kinds on a damaged one."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
        # safetensors itself does not notice a flipped bit.
        if digest(tensors) != file.metadata()["sha256"]:
            raise ValueError("its checksum does not fit")
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: others are pruned first
    return tensors


def write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    metadata = {"sha256": digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, partial(safetensors.torch.save_file, tensors, metadata=metadata))
    except OSError as error:
        print(
            f"The decoded images could not be cached in {path.parent} ({first_line(error)}); they "
            "are decoded again next time."
        )
    else:
        _prune(path)


# A file of this cache, or what a killed process left of one.
_OWN_NAME = re.compile(r"\.?[0-9a-f]{32}\.safetensors(\.[0-9a-f]{32}\.tmp)?")


def _prune(newest: Path) -> None:
    """Delete the files that were used longest ago until all have LARGEST_CACHE, or one is left."""
    found = []
    for file in newest.parent.iterdir():
        if not _OWN_NAME.fullmatch(file.name):
            continue  # the folder may hold other things
        with contextlib.suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, file))
    total = sum(size for _, size, _ in found)
    deleted = freed = 0
    for _, size, file in sorted(found):
        if total - freed <= LARGEST_CACHE:
            break
        if file != newest:
            with contextlib.suppress(OSError):
                file.unlink()
                deleted += 1
                freed += size
    if deleted:
        print(
            f"The cache of decoded images in {newest.parent} had {total / 1e9:.1f} GB, so the "
            f"{deleted} of its files that were used longest ago are deleted ({freed / 1e9:.1f} GB)."
        )
