"""What a user may set: fields that know which values they may have, and environment flags."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable

import numpy as np
from tqdm.auto import tqdm

from base.errors import VAEError

LARGEST = 2**31 - 1  # PyTorch and its libraries count with 32 bits in places


def option(
    default,
    help: str,
    *,
    choices: Iterable | None = None,
    low: float = 1,
    high: float = LARGEST,
    only_with: dict[str, tuple] | None = None,
    depends_on: str | None = None,
):
    """A field of Config, with the help text that train.py shows and the values that it may have.

    only_with    other field → those of its values with which this field has a meaning
    depends_on   another field: who chooses a new value for it chooses anew here, too
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    metadata |= {"only_with": only_with or {}, "depends_on": [*(only_with or {})]}
    if depends_on:
        metadata["depends_on"].append(depends_on)
    return dataclasses.field(default=default, metadata=metadata)


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
    return float(value) if f.type.startswith("float") else value  # 4 and 4.0 are one choice


def check_combinations(config) -> None:
    """Raise VAEError when a field has a value that has no meaning with those of the others."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value in (None, 0, f.default):
            continue
        for other, values in f.metadata["only_with"].items():
            if getattr(config, other) not in values:
                raise VAEError(
                    f"{f.name} is for {other} {' or '.join(values)}, not {getattr(config, other)}: "
                    "leave it out."
                )


def override(preset: dict, chosen: dict, config_class: type) -> dict:
    """The values of a preset, replaced by what was chosen.

    A value of the preset that depends on a field for which another value was chosen is left out,
    so that it never contradicts the choice.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    kept = {}
    for name, value in preset.items():
        replaced = [
            other
            for other in fields[name].metadata["depends_on"]
            if other in chosen and chosen[other] != preset.get(other, fields[other].default)
        ]
        if not replaced:
            kept[name] = value
    return kept | chosen


def env_flag(name: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(name, "") not in ("", "0")


def progress_bar(iterable, *, hidden: bool = False, **options) -> tqdm:
    """tqdm that leaves nothing behind. TQDM_DISABLE=1 hides it, in notebooks too."""
    return tqdm(iterable, leave=False, disable=hidden or env_flag("TQDM_DISABLE"), **options)


def announce(text: str) -> None:
    """Append a line to the file that VAE_PROGRESS names, for who waits while notebooks run."""
    path = os.environ.get("VAE_PROGRESS")
    if path:
        with (
            contextlib.suppress(OSError),
            open(path, "a", encoding="utf-8", errors="replace") as file,
        ):
            file.write(text + "\n")
