"""Files: where they are kept, written whole or not at all, read with care."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from base.errors import CheckpointError, first_line

ROOT = Path(__file__).resolve().parent.parent  # the project's folder


def data_root() -> Path:
    """Where data sets are looked for: $VAE_DATA, else data/ in the project's folder."""
    return Path(os.path.expanduser(os.environ.get("VAE_DATA") or ROOT / "data"))


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


def decode_text(content: bytes) -> str:
    """A text file of any usual encoding: UTF-8, UTF-16, UTF-32, else Windows' own."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return content.decode("utf-32", errors="replace")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content[:2]:  # UTF-16 without its mark: the letters used in tables are below 256
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le", errors="replace")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def is_web_page(content: bytes) -> bool:
    """Whether a file that should be something else is a web page that was saved in its place."""
    start = decode_text(content[:2000])
    markup = (
        r"\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype html|html|head|body|title|meta|script)\b"
    )
    return re.match(markup, start, re.IGNORECASE | re.DOTALL) is not None


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()
