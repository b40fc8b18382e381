"""Errors and small helpers that the whole project shares; it imports nothing else of ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import torch
from torch import Tensor
from tqdm.auto import tqdm


class VAEError(ValueError):
    """A mistake that the user can correct; the message is one sentence that says how."""


class DatasetUnavailable(VAEError):
    """The images are missing and could not be downloaded; the message says what was tried."""


class CheckpointError(VAEError):
    """A checkpoint that is missing, damaged, or not for this model."""


def env_flag(name: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "") not in ("", "0")


def progress_bar(iterable, *, hidden: bool = False, **options) -> tqdm:
    """tqdm that leaves nothing behind. TQDM_DISABLE=1 hides it, in notebooks too."""
    return tqdm(iterable, leave=False, disable=hidden or env_flag("TQDM_DISABLE"), **options)


def data_root() -> Path:
    """Where data sets are looked for: $VAE_DATA, else data/ in the project's folder."""
    return Path(os.environ.get("VAE_DATA") or Path(__file__).resolve().parent.parent / "data")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in full or not at all: `write` fills a temporary file, which is then renamed.

    Raises OSError, also where safetensors reports a full disk with an error of its own.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors makes files that only their owner can read: go back to the user's own mode.
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(first_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


@contextlib.contextmanager
def refused_if_unreadable(path: Path) -> Iterator[None]:
    """Raise CheckpointError for whatever goes wrong with a file that may hold anything."""
    try:
        yield
    except Exception as err:
        raise CheckpointError(
            f"{path} is missing, damaged or not of this run ({first_line(err)}): copy the whole "
            "run folder again, or train again."
        ) from None


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def import_torchvision():
    """Import torchvision, also where its compiled operators do not load.

    A CUDA build of torchvision beside a CPU build of torch fails with "operator torchvision::nms
    does not exist". Nothing in this project uses those operators, so declaring them is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
        # Forget the first attempt, which is half imported.
        for module in list(sys.modules):
            if module.split(".")[0] == "torchvision":
                del sys.modules[module]
        import torchvision
    return torchvision
