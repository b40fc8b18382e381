"""What the project says to its user: errors that are one sentence, with a way out."""

from __future__ import annotations


class VAEError(ValueError):
    """A mistake that the user can correct; the message is one sentence that says how."""


class DatasetUnavailable(VAEError):
    """The images are missing and could not be downloaded; the message says what was tried."""


class CheckpointError(VAEError):
    """A checkpoint that is missing, damaged, or not for this model."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
