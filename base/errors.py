"""What the project says to its user: errors that are one sentence, with a way out."""

from __future__ import annotations

import sys
from collections.abc import Callable


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


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main(): a mistake of the user ends in one sentence and exit code 2.

    Ctrl-C ends in exit code 130, after train_run has printed how to continue.
    """
    try:
        main()
    except (VAEError, OSError) as err:  # OSError: a full disk, a folder without permission
        sys.exit(_error(str(err)))
    except (RuntimeError, MemoryError) as err:
        if isinstance(err, RuntimeError) and "memory" not in str(err):
            raise
        sys.exit(_error("not enough memory: try a smaller width, latent_dim or batch_size."))
    except KeyboardInterrupt:
        sys.exit(130)


def _error(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
