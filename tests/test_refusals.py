"""What a user gets wrong is refused where it enters, in one sentence that says what to do."""

import math

import pytest
import torch
from conftest import SMALL

import evaluate
import train
import vae_helpers as vae
from support import runs

IMAGE = torch.zeros(3, 32, 32)
IMAGES = torch.zeros(2, 3, 32, 32)


def build(**choices):
    return vae.build_model(vae.Config(dataset="shapes", **SMALL, **choices))


def interpolate(**options):
    return vae.interpolate_images(build(), IMAGE, IMAGE, **options)


REFUSED = [
    (lambda: vae.Config(latent_dim=0), "a whole number from 1"),
    (lambda: vae.Config(lr=math.nan), "a number from 1e-12"),
    (lambda: vae.Config(model="gan"), "one of vae, beta_vae"),
    (lambda: vae.Config(depth=6), "use depth 5 or less"),
    (lambda: vae.Config(arch="fc", norm="batch"), "are for arch conv"),
    (lambda: vae.Config(model="ae", beta=2), "leave it out"),
    (lambda: build(model="cvae"), "config_for(data, model='cvae')"),
    (lambda: vae.load_dataset("imagenet"), "choose one of cifar10"),
    (lambda: vae.load_dataset("shapes", image_size=0), "a whole number from 2"),
    (lambda: vae.load_dataset("folder"), "needs --data_dir"),
    (lambda: vae.load_dataset("folder", data_dir="nowhere"), "Put your images there"),
    (lambda: vae.encode_images(build(), IMAGES[..., 1:]), "resize them first"),
    (lambda: vae.decode_images(build(), torch.zeros(2, 5)), "decodes latents (..., 4)"),
    (lambda: interpolate(num_interpolations=1), "at least 2 images"),
    (lambda: interpolate(method="cubic"), "must be linear or spherical"),
    (lambda: vae.sample_latents(2, 4, z_range=(2, -2)), "the lower first"),
    (lambda: vae.sample_latents(2, 4, z_range=(2,)), "the lower first"),
    (lambda: vae.sample_latents(2, 4, z_range=(-2, 2), radius=1), "Give one of"),
    (lambda: vae.sample_latents(2, 4, radius=1, temperature=0.5), "Give one of"),
    (lambda: vae.sample_images(build(model="vq_vae"), 2, radius=1), "its own prior"),
    (lambda: vae.encode_images(build(model="cvae", conditions=3), IMAGES), "hand in a label"),
    (
        lambda: vae.encode_images(build(model="cvae", conditions=3), IMAGES, torch.tensor([0, 3])),
        "from 0 to 2",
    ),
    (
        lambda: vae.encode_images(build(model="cvae", conditions=3), IMAGES, torch.tensor([0] * 5)),
        "give one for each",
    ),
    (lambda: vae.load_checkpoint("nowhere"), "name a folder of train.py"),
    (lambda: runs.newest_run(), "train.py makes one"),
    (lambda: train.main(["--epochs", "0"]), "from 1"),
    (lambda: train.main(["--preset", "worst"]), "one of assignment, best"),
    (lambda: train.main(["--out", __file__]), "name a folder"),
    (lambda: train.main(["--trials", "3"]), "are for --sweep"),
    (lambda: train.main(["--sweep", "beta=1,2", "--resume"]), "leave them out"),
    (lambda: train.main(["--sweep", "latent_dim=1..5"]), "say with --trials"),
    (lambda: evaluate.main(["--num_samples", "0"]), "a whole number from 1"),
    (lambda: evaluate.main(["--fid", "--quick"]), "give one of the two"),
    (lambda: evaluate.main(["--run", "nowhere"]), "name a folder of train.py"),
]


@pytest.mark.parametrize("call, way_out", REFUSED, ids=[way_out for _, way_out in REFUSED])
def test_a_mistake_is_refused_in_one_sentence_that_says_what_to_do(call, way_out):
    with pytest.raises(vae.VAEError) as caught:
        call()
    sentence = str(caught.value)
    assert way_out in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("name", ["VAE_DEVICE", "VAE_PRECISION", "VAE_EPOCHS"])
def test_a_wrong_variable_is_named_before_any_image_is_loaded(name, monkeypatch):
    monkeypatch.setenv(name, "abacus")
    monkeypatch.setattr(vae, "load_dataset", None)
    with pytest.raises(vae.VAEError, match=f"{name} must|epochs must"):
        train.main(["--dataset", "shapes"])
