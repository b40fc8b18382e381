"""What a user may set: fields that know which values they may have, and environment flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import numpy as np
from tqdm.auto import tqdm

from base.errors import VAEError

LARGEST = 2**31 - 1  # PyTorch and its libraries count with 32 bits in places


def option(
    default, help: str, *, choices: Iterable | None = None, low: float = 1, high: float = LARGEST
):
    """A field of Config, with the help text that train.py shows and the values that it may have."""
    limits = {"help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=limits)


def checked_value(f: dataclasses.Field, value):
    """The value of a field, as plain Python. Raises VAEError when the field cannot have it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None and f.default is None:
        return value
    choices, low, high = (f.metadata[key] for key in ("choices", "low", "high"))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if choices is not None:
        valid = type(value) in (str, int) and value in choices
        requirement = f"one of {', '.join(map(str, choices))}"
    elif f.type.startswith("str"):
        valid = isinstance(value, str)
        requirement = "text"
    else:
        whole = f.type.startswith("int")
        valid = number and low <= value <= high and (isinstance(value, int) or not whole)
        kind = "a whole number" if whole else "a number"
        requirement = f"{kind} from {low:,} to {high:,}"
    if not valid:
        raise VAEError(f"{f.name} must be {requirement}, not {str(value)[:80]!r}.")
    return value


def env_flag(name: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "") not in ("", "0")


def progress_bar(iterable, *, hidden: bool = False, **options) -> tqdm:
    """tqdm that leaves nothing behind. TQDM_DISABLE=1 hides it, in notebooks too."""
    return tqdm(iterable, leave=False, disable=hidden or env_flag("TQDM_DISABLE"), **options)
