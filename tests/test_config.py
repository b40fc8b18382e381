"""Config: defaults, names of runs, and that every value works or is refused in one sentence."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_helpers as vae

VALUES = {  # small, so that a model is built in no time
    "dataset": list(vae.DATASETS),
    "data_dir": ["somewhere"],
    "image_size": [2, 8, 17, 33],
    "channels": [1, 3],
    "conditions": [0, 2],
    "model": list(vae.MODELS),
    "arch": ["conv", "fc"],
    "latent_dim": [1, 3],
    "width": [1, 4, 9],
    "depth": [1, 2, 5, 31],
    "downsample": ["stride", "maxpool"],
    "norm": ["none", "batch"],
    "residual": [0, 2],
    "likelihood": list(vae.LIKELIHOODS),
    "beta": [0, 1, 4.5],
    "mmd": [0, 10],
    "codebook": [1, 5],
    "batch_size": [1, 2],
    "seed": [-1, 2**63 - 1],
}
NONSENSE = [
    None,
    -3,
    0,
    1.5,
    math.nan,
    math.inf,
    2**70,
    True,
    "",
    "many\nlines",
    [1],
    torch.ones(2),
]
names = st.sampled_from([field.name for field in dataclasses.fields(vae.Config)])
some = st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=5)


@st.composite
def choices(draw):
    fields = {name: draw(st.sampled_from(VALUES[name])) for name in draw(some)}
    nonsense = st.dictionaries(names, st.sampled_from(NONSENSE), min_size=1, max_size=1)
    return fields if draw(st.booleans()) else fields | draw(nonsense)


@settings(max_examples=300)
@given(choices())
def test_a_config_is_refused_in_one_sentence_or_its_model_can_be_built_and_used(choices):
    try:
        config = vae.Config(**{"width": 16} | choices)
        model = vae.build_model(config)
    except vae.VAEError as error:
        assert str(error).endswith(".")
        assert "\n" not in str(error)
        open("/tmp/cfg.txt", "a").write("refused\n")
        return
    open("/tmp/cfg.txt", "a").write("built\n")
    assert vae.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    labels = torch.zeros(2, config.conditions) if model.conditional else None
    images = vae.decode_images(model, torch.zeros(2, model.latent_size), labels)
    assert images.shape == (2, config.channels, config.image_size, config.image_size)


@pytest.mark.parametrize(
    "dataset, likelihood", [("mnist", "bernoulli"), ("celeba", "squared_error")]
)
@pytest.mark.parametrize(
    "model, beta, mmd",
    [("vae", 1, 0), ("beta_vae", 4, 0), ("info_vae", 0, 1000), ("ae", 0, 0), ("vq_vae", 1, 0)],
)
def test_a_model_has_the_weights_of_its_paper_and_the_likelihood_of_its_data(
    model, beta, mmd, dataset, likelihood
):
    config = vae.Config(dataset=dataset, model=model)
    assert (config.beta, config.mmd, config.likelihood) == (beta, mmd, likelihood)
    assert config.value_range == ((0, 1) if dataset == "mnist" else (-1, 1))


@pytest.mark.parametrize(
    "choices, depth, width",
    [
        ({"image_size": 28}, 2, 32),
        ({"image_size": 32}, 3, 32),
        ({"image_size": 64}, 4, 32),
        ({"arch": "fc"}, 2, 512),
        ({"model": "vq_vae"}, 2, 32),
    ],
    ids=str,
)
def test_depth_and_width_follow_from_the_image_and_the_architecture(choices, depth, width):
    config = vae.Config(**choices)
    assert (config.depth, config.width) == (depth, width)


@pytest.mark.parametrize(
    "choices, message",
    [
        (
            {"model": "gan"},
            "model must be one of vae, beta_vae, info_vae, wae, ae, cvae, vq_vae, not 'gan'.",
        ),
        ({"model": "wae", "beta": 3}, "beta weighs the KL of a sampled z, and model wae has none"),
        ({"depth": 6}, "6 halvings of a 32-pixel image leave nothing: use depth 5 or less."),
        ({"arch": "fc", "width": 3, "depth": 3}, "need a width of at least 4, not 3."),
        ({"data_dir": "x"}, "VAE_DATA"),
    ],
)
def test_a_refusal_says_what_to_do(choices, message):
    with pytest.raises(vae.VAEError) as caught:
        vae.Config(**choices)
    assert message in str(caught.value)


def test_run_names_are_those_under_which_earlier_runs_were_saved():
    assert vae.Config().run_name == "cifar10-conv-vae-z128-beta1-seed0-16d6ffa0"
    wae = vae.Config(dataset="celeba", model="wae", latent_dim=64, seed=3)
    assert wae.run_name == "celeba-conv-wae-z64-beta0-seed3-2a937008"


def test_equal_choices_have_one_run_name_and_others_another():
    """4 in a notebook, 4.0 of train.py and numpy's 4 are one run."""
    run_name = vae.Config(beta=4).run_name
    for four in (4.0, np.float32(4), np.int64(4)):
        assert vae.Config(beta=four).run_name == run_name
    others = set()
    for choices in ({"ema": 0.9}, {"max_images": 5}, {"schedule": "one_cycle"}, {"kl_warmup": 1}):
        others.add(vae.Config(beta=4, **choices).run_name)
    assert len(others - {run_name}) == 4


def test_replace_hands_a_models_values_on_but_for_the_beta_of_a_sampled_z():
    vae_config = vae.Config(model="vae")
    assert dataclasses.replace(vae_config, model="ae") == vae.Config(model="ae")
    assert dataclasses.replace(vae_config, model="beta_vae").beta == 1
    assert dataclasses.replace(vae.Config(model="ae"), model="vae").beta == 0
    with pytest.raises(vae.VAEError, match="model ae has none: leave it out"):
        dataclasses.replace(vae.Config(beta=2), model="ae")


def test_config_for_follows_the_data_and_the_environment(shapes, monkeypatch):
    config = vae.config_for(shapes, epochs=30, model="cvae")
    assert (config.dataset, config.image_size, config.channels) == ("shapes", 32, 3)
    assert (config.epochs, config.conditions) == (30, 3)
    monkeypatch.setenv("VAE_FAST", "1")
    fast = vae.config_for(shapes, epochs=30)
    assert (fast.epochs, fast.max_images) == (1, 192)
    monkeypatch.setenv("VAE_EPOCHS", "7")
    assert vae.config_for(shapes, epochs=30).epochs == 7
    for text in ("0", "-3", "many", "1.5", "²"):
        monkeypatch.setenv("VAE_EPOCHS", text)
        with pytest.raises(vae.VAEError, match="epochs must be a whole number"):
            vae.config_for(shapes)


def test_a_model_that_is_registered_is_known_to_config_and_built(monkeypatch):
    class Mine(vae.VAE):
        @classmethod
        def defaults(cls, config):
            return {"beta": 7.0}

    monkeypatch.setitem(vae.MODELS, "mine", Mine)
    config = vae.Config(model="mine", width=4)
    assert config.beta == 7
    assert type(vae.build_model(config)) is Mine
