"""Config: defaults, names of runs, and that every choice works or is refused in one sentence."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_helpers as vae
from base.options import override
from support import runs

NUMBERS = ("batch_size", "beta", "codebook", "conditions", "depth", "latent_dim", "mmd", "width")
SENSIBLE = [*itertools.product(NUMBERS, (1, 3, 8)), *itertools.product(["model"], vae.MODELS)]
SENSIBLE += [("arch", "fc"), ("norm", "batch"), ("residual", 1), ("image_size", 9), ("channels", 1)]
FIELDS = [field.name for field in dataclasses.fields(vae.Config)]
ODD = [None, -3, 0, 1.5, math.nan, math.inf, 2**70, True, "", "two\nlines", [1], torch.ones(2)]
sensible = st.lists(st.sampled_from(SENSIBLE), max_size=4)
odd = st.lists(st.sampled_from(list(itertools.product(FIELDS, ODD))), max_size=1)


@settings(max_examples=400)
@given(sensible, odd)
def test_a_config_is_refused_in_one_sentence_or_its_model_can_be_built_and_used(sensible, odd):
    try:
        config = vae.Config(**{"width": 4} | dict(sensible + odd)).resolved()
        model = vae.build_model(config)
    except vae.VAEError as error:
        assert str(error).endswith(".")
        assert "\n" not in str(error)
        return
    assert vae.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    labels = torch.zeros(2, config.conditions) if model.conditional else None
    images = vae.decode_images(model, torch.zeros(2, model.latent_size), labels)
    assert images.shape == (2, config.channels, config.image_size, config.image_size)


@pytest.mark.parametrize(
    "choices, expected",
    [
        ({}, {"beta": 1, "mmd": 0, "likelihood": "bernoulli", "depth": 3, "width": 32}),
        ({"dataset": "mnist"}, {"image_size": 28, "depth": 2, "likelihood": "bernoulli"}),
        ({"dataset": "celeba"}, {"image_size": 64, "depth": 4, "likelihood": "squared_error"}),
        ({"arch": "fc"}, {"depth": 2, "width": 512}),
        ({"model": "beta_vae"}, {"beta": 4, "mmd": 0}),
        ({"model": "info_vae"}, {"beta": 0, "mmd": 1000, "likelihood": "bernoulli"}),
        ({"model": "wae", "dataset": "celeba"}, {"mmd": 100, "likelihood": "squared_error"}),
        ({"model": "vq_vae"}, {"beta": 1, "codebook": 512, "prior_width": 192, "depth": 2}),
        ({"model": "grid_vae", "epochs": 7}, {"beta": 1, "prior_epochs": 7, "global_dim": None}),
        ({"model": "grid_vae", "image_size": 64, "latent_dim": 40}, {"global_dim": 120}),
        ({"model": "grid_vae", "image_size": 64, "arch": "fc"}, {"global_dim": None}),
    ],
    ids=str,
)
def test_what_is_left_out_follows_from_data_and_model(choices, expected):
    typed = vae.Config(**choices)
    config = typed.resolved()
    assert dataclasses.asdict(config) | expected == dataclasses.asdict(config)
    assert typed == vae.Config(**choices)  # what was typed stays what it was
    assert config.resolved() == config


@pytest.mark.parametrize(
    "preset, typed, expected",
    [
        ("grid", {"model": "vq_vae"}, {"beta": 1, "latent_dim": 16, "flip": "horizontal"}),
        ("grid", {"model": "vae"}, {"beta": 1, "norm": "batch", "prior_epochs": None}),
        ("grid", {"model": "grid_vae"}, {"beta": 2}),
        ("grid", {"beta": 3.0}, {"beta": 3, "model": "grid_vae"}),
        ("best", {"arch": "fc"}, {"norm": "none", "residual": 0, "likelihood": "gaussian"}),
        ("best", {"arch": "conv"}, {"norm": "batch", "residual": 1}),
        ("best", {"schedule": "constant"}, {"lr": 1e-3, "ema": 0.999}),
        ("best", {"model": "ae"}, {"beta": 0, "lr": 3e-3}),
    ],
    ids=str,
)
def test_a_typed_flag_replaces_a_presets_value_with_all_that_depends_on_it(preset, typed, expected):
    chosen = override(vae.PRESETS[preset], typed, vae.Config)
    config = vae.Config(**chosen).resolved()
    assert dataclasses.asdict(config) | typed | expected == dataclasses.asdict(config)


@pytest.mark.parametrize("preset", vae.PRESETS)
@given(sensible)
def test_no_preset_contradicts_what_was_typed(preset, sensible):
    """What is refused with a preset is refused without it; a batch of one image has no variance."""
    typed = {name: value for name, value in sensible if (name, value) != ("batch_size", 1)}
    try:
        vae.Config(**override(vae.PRESETS[preset], typed, vae.Config)).resolved()
    except vae.VAEError:
        model = {"model": "grid_vae"} if preset == "grid" else {}
        with pytest.raises(vae.VAEError):
            vae.Config(**model | typed).resolved()


def test_learned_priors_have_patience_and_what_comes_before_them_has_not():
    for prior_epochs, patience in ((3, 5), (0, None)):
        config = vae.Config(model="grid_vae", prior_epochs=prior_epochs).resolved()
        assert config.patience == patience
    stages = vae.MODELS["grid_vae"].stages(vae.Config(model="grid_vae", patience=2).resolved())
    assert {name: stage.patience for name, stage in stages.items()} == {"places": 0, "prior": 2}


def test_run_names_stay_and_are_alike_for_equal_numbers():
    assert runs.run_name(vae.Config()) == "cifar10-conv-vae-z128-beta1-seed0-a08050d2"
    wae = vae.Config(dataset="celeba", model="wae", latent_dim=64, seed=3)
    assert runs.run_name(wae) == "celeba-conv-wae-z64-beta0-seed3-0806be84"
    for one in (1, 1.0, np.float32(1), np.int64(1)):  # of a notebook, train.py, a sweep
        assert runs.run_name(vae.Config(beta=one)) == runs.run_name(vae.Config())
    assert runs.run_name(vae.Config(ema=0.9)) != runs.run_name(vae.Config())


def test_config_for_follows_the_data_and_the_environment(shapes, monkeypatch):
    config = vae.config_for(shapes, model="cvae", epochs=30)
    expected = {"dataset": "shapes", "image_size": 32, "channels": 3, "conditions": 3, "epochs": 30}
    assert dataclasses.asdict(config) | expected == dataclasses.asdict(config)
    monkeypatch.setenv("VAE_FAST", "1")
    fast = vae.config_for(shapes, epochs=30)
    assert (fast.epochs, fast.max_images) == (1, 192)
    monkeypatch.setenv("VAE_EPOCHS", "7")
    grid = vae.config_for(shapes, model="grid_vae", epochs=30, prior_epochs=20)
    assert (grid.epochs, grid.prior_epochs) == (7, 7)
    monkeypatch.delenv("VAE_FAST")
    assert vae.config_for(shapes, epochs=30, typed=["epochs"]).epochs == 30
    monkeypatch.setenv("VAE_EPOCHS", "²")  # isdigit takes it for a number, int does not
    with pytest.raises(vae.VAEError, match="VAE_EPOCHS must be a whole number"):
        vae.config_for(shapes)
