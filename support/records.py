"""Numbers that no choice of the reader changes: measured once, and read again after that.

The notebooks take them from checkpoints/measured.json for the released weights on the released
images, else from runs/measured.json, else they measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import vae_helpers as vae
from base.files import digest, write_json
from support import runs

FILE = "measured.json"


def once(
    model: vae.VAE, data: vae.ImageData, name: str, measure: Callable[[vae.VAE], dict]
) -> dict:
    """measure(model), plain numbers by name, or what it gave before for these weights and images.

    Another `name` is another measurement: whoever changes what `measure` does renames it.
    """
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    key = f"{name}, weights {digest(weights)[:16]}, images {data.fingerprint}"
    own = runs.runs_root() / FILE
    for path in (own, runs.RELEASED / FILE):
        known = read(path)
        if key in known:
            return known[key]
    result = measure(model)
    own.parent.mkdir(parents=True, exist_ok=True)
    write_json(own, read(own) | {key: result})
    return result


def read(path: Path) -> dict:
    """What a file holds; nothing where it is missing or damaged, so that all is measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
