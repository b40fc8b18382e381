"""Numbers that are measured once: for these weights and images, and never for others."""

import dataclasses
import re

import torch
from conftest import ROOT, take

import vae_helpers as vae
from base.files import digest
from support import records, runs


def test_a_measurement_is_made_once_for_its_weights_and_images(few, model):
    made = []

    def measure(model):
        made.append(model)
        return {"norm": float(sum(p.norm() for p in model.parameters()))}

    first = records.once(model, few, "norm", measure)
    assert records.once(model, few, "norm", measure) == first and len(made) == 1
    records.once(model, few, "other", measure)
    records.once(model, take(few, 95, 16, 16), "norm", measure)
    other = vae.build_model(dataclasses.replace(model.config, seed=5))
    assert records.once(other, few, "norm", measure) != first and len(made) == 4
    again = vae.build_model(model.config)
    again.load_state_dict(model.state_dict())
    assert records.once(again, few, "norm", None) == first  # equal weights are the same model
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    assert records.once(again, few, "norm", measure) != first
    own = runs.runs_root() / records.FILE
    runs.RELEASED.mkdir()
    own.rename(runs.RELEASED / records.FILE)
    assert records.once(model, few, "norm", None) == first  # released numbers are read, too
    own.write_text("damaged")
    (runs.RELEASED / records.FILE).write_text("[1]")
    assert records.once(model, few, "norm", measure) == first


def test_released_numbers_are_of_released_weights():
    """Else nobody finds them, and notebooks measure for minutes what is known."""
    released = set()
    for file in (ROOT / "checkpoints").glob("*/model.safetensors"):
        model, _ = vae.load_checkpoint(file.parent)
        released.add(digest(model.state_dict())[:16])
    known = records.read(ROOT / "checkpoints" / records.FILE)
    assert len(known) > 10
    for name in known:
        assert re.search(r"weights (\w+)", name)[1] in released, name
