"""Image files become the splits of a data set: dealt with copies together, decoded, cached."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from base.errors import DatasetUnavailable
from image_data.archives import Files, printable
from image_data.cache import cache_file, read_cache, write_cache
from image_data.image_files import decode_images
from image_data.splits import Split, assign_splits, first_of_each, limits_of


@dataclass(frozen=True)
class LoadedFiles:
    """The splits of some image files, and what was found. Rows are indices of these files."""

    paths: Sequence[str]  # of all files
    splits: list[Split]
    rows: list[Tensor]  # of the images that could be read, whole splits also where less is used
    unreadable: Tensor  # rows
    same: np.ndarray  # (len(paths),), equal numbers for pictures that are known to be identical


def load_splits(
    files: Files,
    names: Sequence[str],
    labels: Tensor,
    split_of: Sequence[str],
    size: int,
    crop: float = 1.0,
    max_images: int | None = None,
) -> LoadedFiles:
    """The train, validation and test splits of some image files, decoded or from the cache.

    Only what is used is decoded: at most max_images training images, fewer under VAE_FAST=1. They
    are those that come first in the whole split. Raises DatasetUnavailable without three images.
    """
    limits = limits_of(max_images)
    stamps = files.stamps(names)
    cache = cache_file(files.path.resolve(), stamps, size, crop, names, split_of, limits)
    try:
        tensors = read_cache(cache)
        images, used = tensors["images"], tensors["used"].split(tensors["counts"].tolist())
    except Exception:  # missing, damaged or foreign: safetensors raises errors of all kinds
        tensors = _read_files(files, names, split_of, size, crop, limits)
        images, used = tensors["images"], tensors["used"].split(tensors["counts"].tolist())
        if all(map(len, used)):
            write_cache(cache, tensors)
    if not all(map(len, used)):
        raise DatasetUnavailable(
            f"{len(images):,} of {len(names):,} images can be read, and train, validation and test "
            "need one each"
        )
    same, unreadable = tensors["same"].numpy(), tensors["unreadable"]
    rows = []
    for part in assign_splits(split_of, same):
        rows.append(part[~torch.isin(part, unreadable)])
    parts = images.split([len(part) for part in used])
    splits = [Split(part, labels[row]) for part, row in zip(parts, used)]
    paths = [files.paths[name] for name in names]
    return LoadedFiles(paths, splits, rows, unreadable, same)


def _read_files(
    files: Files, names: Sequence[str], split_of: Sequence[str], size: int, crop: float, limits
) -> dict[str, Tensor]:
    """What the cache holds: images in the order of the splits, the rows `used` for them and how
    many in each split (`counts`), the `unreadable` rows, and which are the `same` picture.

    Copies are dealt together, so they have to be known before. Files of equal bytes are found
    without decoding them; equal pixels in other bytes only by decoding all files.
    """
    same = np.arange(len(names))
    is_limited = any(limits)
    if is_limited:
        join(same, _equal_files(files, names, range(len(names))))
    wanted = assign_splits(split_of, same)
    decode_all = not is_limited
    shortage = 0  # images beyond the limits, in place of unreadable ones
    while True:
        some = wanted
        if not decode_all:
            some = first_of_each(wanted, [limit and limit + shortage for limit in limits])
        rows = torch.cat(some)
        images, readable = decode_images(files, [names[row] for row in rows.tolist()], size, crop)
        unreadable, rows = rows[~readable], rows[readable]
        equal_pixels = _equal_pixels(images, rows)
        is_new = any(same[a] != same[b] for a, b in equal_pixels)
        join(same, equal_pixels)
        missing = _missing(some, wanted, unreadable, limits)
        if decode_all or not (is_new or missing):
            break
        decode_all = decode_all or is_new
        shortage += missing
    if decode_all:
        join(same, _equal_files(files, names, unreadable.tolist()))

    # The place of each row in `images`, and then the images in the order of the splits.
    place = torch.full((len(names),), -1)
    place[rows] = torch.arange(len(rows))
    used = [part[place[part] >= 0] for part in assign_splits(split_of, same)]
    used = first_of_each(used, limits)
    order = place[torch.cat(used)]
    if not torch.equal(order, torch.arange(len(images))):
        images = images[order]
    counts = torch.tensor([len(part) for part in used])
    return {
        "images": images,
        "used": torch.cat(used),
        "counts": counts,
        "unreadable": unreadable.sort().values,
        "same": torch.from_numpy(same),
    }


def _missing(some: list[Tensor], wanted: list[Tensor], unreadable: Tensor, limits) -> int:
    """How many images a split lacks because files that were decoded for it are unreadable."""
    missing = [0]
    for part, whole, limit in zip(some, wanted, limits):
        if limit and len(part) < len(whole):
            missing.append(limit - int((~torch.isin(part, unreadable)).sum()))
    return max(missing)


# ── Copies ───────────────────────────────────────────────────────────────────────────────────────


def join(same: np.ndarray, pairs: Iterable[tuple[int, int]]) -> None:
    """Give the pictures of each pair the same number, and those that had the number of one."""
    for a, b in pairs:
        if same[a] != same[b]:
            same[same == same[b]] = same[a]


def _equal_pixels(images: Tensor, rows: Tensor) -> list[tuple[int, int]]:
    """Pairs of rows with the same pixels, each with the first of them."""
    first: dict[int, int] = {}
    pairs = []
    for row, image in zip(rows.tolist(), images.numpy()):
        known = first.setdefault(hash(image.tobytes()), row)
        if known != row:
            pairs.append((known, row))
    return pairs


def _equal_files(files: Files, names: Sequence[str], rows: Iterable[int]) -> list[tuple[int, int]]:
    """Pairs of files with the same bytes, each with the first of them.

    Most files differ in their size, or where they begin: few have to be read to their end.
    """
    known = dict.fromkeys(rows, ())  # row → what is known of it, of those that may have a twin
    for look in (_size, _start, _content):
        rows = list(known)
        order = files.reading_order([names[row] for row in rows])
        seen = {rows[i]: (known[rows[i]], look(files, names[rows[i]])) for i in order}
        count = Counter(seen.values())
        known = {row: what for row, what in seen.items() if count[what] > 1}
    first: dict[tuple, int] = {}
    pairs = []
    for row, what in known.items():
        if first.setdefault(what, row) != row:
            pairs.append((first[what], row))
    return pairs


def _size(files: Files, name: str) -> tuple[int, int]:
    return files.size(name), files.checksum(name)


def _start(files: Files, name: str) -> int:
    return hash(files.start(name))


def _content(files: Files, name: str) -> str:
    try:
        return hashlib.sha256(files.read(name)).hexdigest()
    except Exception:  # archives raise errors of all kinds; what cannot be read has no twin
        return name


# ── What was found ───────────────────────────────────────────────────────────────────────────────


def describe(
    title: str,
    loaded: LoadedFiles,
    class_of: Sequence[str] | None = None,
    passed_over: Counter[str] | None = None,
) -> None:
    """Print what was found: images by class and split; what was passed over and why, if anything.

    class_of has the class of each of the files, where there are classes.
    """
    parts = []
    for name, rows in zip(("training", "validation", "test"), loaded.rows):
        classes = ""
        if class_of is not None and len(set(class_of)) > 1:
            classes = f" ({_shortened(Counter(class_of[row] for row in rows.tolist()))})"
        parts.append(f"{name} {len(rows):,}{classes}")
    within, across = _copies(loaded)
    parts = [", ".join(parts)]
    if within:
        parts.append(f"copies within a split: {len(within):,} ({_some(within)})")
    if across:
        parts.append(f"copies across splits: {len(across):,} ({_some(across)})")
    print(f"{title}: images for {'; '.join(parts)}.")

    reasons = [f"{reason} ({count:,})" for reason, count in (passed_over or {}).items()]
    broken = [loaded.paths[row] for row in loaded.unreadable.tolist()]
    if broken:
        reasons.append(
            f"{len(broken):,} of {len(loaded.paths):,} files that could not be read as images "
            f"({_some(broken)})"
        )
    if reasons:
        print(f"{title}: passed over {', '.join(reasons)}.")


def _shortened(counts: Counter[str]) -> str:
    if len(counts) > 6:
        return f"{len(counts)} classes of {min(counts.values()):,} to {max(counts.values()):,}"
    return ", ".join(f"{name or 'no class'} {counts[name]:,}" for name in sorted(counts))


def _some(names: list[str]) -> str:
    return printable(", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else ""))


def _copies(loaded: LoadedFiles) -> tuple[list[str], list[str]]:
    """Files that have the picture of another one in their split, and pairs in different splits."""
    pictures: dict[int, list[tuple[int, str, int]]] = {}
    for split, rows in enumerate(loaded.rows):
        for row in rows.tolist():
            path = loaded.paths[row]
            # Of `x.jpg` and `x (1).jpg` the second one is the copy.
            pictures.setdefault(int(loaded.same[row]), []).append((len(path), path, split))
    within, across = [], []
    for group in pictures.values():
        (_, first, split), *others = sorted(group)
        for _, path, other_split in others:
            if other_split == split:
                within.append(path)
            else:
                across.append(f"{path} = {first}")
    return within, across
