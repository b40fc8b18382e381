"""Numbers that are measured once: for these weights and images, and never for others."""

import dataclasses

import torch
from conftest import take

import vae_helpers as vae
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
