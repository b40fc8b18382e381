"""What a user gets wrong is refused where it enters, in one sentence that says what to do."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT, SMALL, refused

import evaluate
import train
import vae_helpers as vae
from support import conditional, runs, sliders

IMAGE = torch.zeros(3, 32, 32)
IMAGES = torch.zeros(2, 3, 32, 32)
SHAPES = ["--dataset", "shapes"]


def build(**choices):
    return vae.build_model(vae.Config(dataset="shapes", **SMALL, **choices))


def encode(images=IMAGES, labels=None, **choices):
    if labels is not None:
        choices = {"model": "cvae", "conditions": 3}
        labels = torch.tensor(labels)
    return vae.encode_images(build(**choices), images, labels)


def decode(codes, labels):
    return vae.decode_images(build(model="cvae", conditions=3), codes, torch.tensor(labels))


def interpolate(model="vae", **options):
    conditions = 3 if model == "cvae" else 0
    return vae.interpolate_images(
        build(model=model, conditions=conditions), IMAGE, IMAGE, **options
    )


def sample(model="vae", n=2, **region):
    return vae.sample_images(build(model=model), n, **region)


def labels_of(text, name="celeba"):
    """Of a data set whose labels are 0 and 1, in which no image has both."""
    images, labels = torch.zeros(2, 3, 8, 8).byte(), torch.eye(2).bool()
    part = vae.Split(images, labels if name == "celeba" else torch.arange(2))
    data = vae.ImageData(name, "two images", part, part, part, ("Male", "Smiling"))
    return conditional.labels_of(data, text, 1)


def names_of_run(text):
    """Of a conditional model of two classes, whose record alone is there."""
    config = vae.Config(dataset="folder", data_dir="pets", model="cvae", conditions=2)
    return conditional.labels_from_names(text, ("cat", "dog"), 1, config)


def without_labels():
    data = vae.load_dataset("shapes", max_images=4)
    flat = dataclasses.replace(data, name="folder", title="holiday", label_names=("",))
    return vae.config_for(flat, model="cvae")


REFUSED = [
    (lambda: vae.Config(latent_dim=0), "a whole number from 1"),
    (lambda: vae.Config(model="gan"), "one of vae, beta_vae"),
    (lambda: vae.Config(depth=6).resolved(), "use depth 5 or less"),
    (lambda: vae.Config(batch_size=1, norm="batch").resolved(), "use batch_size >= 2"),
    (lambda: vae.Config(beta=4, model="ae").resolved(), "has none: leave it out"),
    (lambda: vae.Config(arch="fc", norm="batch").resolved(), "norm is for arch conv, not fc"),
    (lambda: vae.Config(mmd=3).resolved(), "mmd is for model info_vae or wae, not vae"),
    (lambda: vae.Config(codebook=8).resolved(), "codebook is for model vq_vae, not vae"),
    (lambda: vae.fit(build(model="grid_vae"), None, vae.Config()), "fit_stages of"),
    (lambda: sample(n=0), "must be 1 or more, not 0"),
    (lambda: encode(IMAGES[:0]), "hand in one image"),
    (lambda: vae.decode_images(build(), torch.zeros(0, 4)), "hand in one image or code"),
    (lambda: build(model="cvae"), "config_for(data, model='cvae')"),
    (without_labels, "none in holiday: sort the images into one folder"),
    (lambda: vae.load_dataset("shapes", max_images=10**6), "at most 612,900"),
    (lambda: vae.load_dataset("folder"), "needs --data_dir"),
    (lambda: vae.load_dataset("folder", data_dir="nowhere"), "Put your images there"),
    (lambda: encode(IMAGES[..., 1:]), "resize them first"),
    (lambda: encode(model="cvae", conditions=3), "hand in a label"),
    (lambda: encode(labels=[0, 3]), "from 0 to 2"),
    (lambda: encode(labels=[-1, 0]), "from 0 to 2"),
    (lambda: encode(labels=[0] * 5), "give one for each"),
    (lambda: vae.decode_images(build(), torch.zeros(2, 5)), "decodes latents (..., 4)"),
    (lambda: decode(torch.zeros(5, 4), [0, 1, 2]), "3 labels do not fit 5"),
    (lambda: decode(torch.zeros(6, 4), [0, 1, 2]), "3 labels do not fit 6"),
    (lambda: interpolate(num_interpolations=1), "at least 2 images"),
    (lambda: interpolate("cvae", labels=torch.tensor([1])), "one for each image, not 1"),
    (lambda: interpolate(method="cubic"), "must be linear or spherical"),
    (lambda: sample(z_range=(2, -2)), "the lower first"),
    (lambda: sample(z_range=(-2, 2), radius=1), "Give one of"),
    (lambda: sample(radius=-2), "0 or more, not -2"),
    (lambda: sample(temperature=float("nan")), "0 or more, not nan"),
    (lambda: sample("vq_vae", radius=1), "its own prior"),
    (lambda: sample("grid_vae", temperature=0), "temperature must be above 0"),
    (lambda: sample("grid_vae", top_k=10), "top_k is for model vq_vae"),
    (lambda: sample(guidance=2.0), "guidance is for a model that learned its prior"),
    (lambda: sample("grid_vae", guidance=2.0), "guidance needs a model whose prior learned with"),
    (lambda: sample("vq_vae", guidance=-1.0), "guidance must be 0 or more, not -1"),
    (lambda: labels_of("Bald"), "choose from Male, Smiling"),
    (lambda: labels_of("Male,Smiling"), "ask for less"),
    (lambda: labels_of("Male,Smiling", "cifar10"), "no class 'Male,Smiling': give one name"),
    (lambda: names_of_run("cat,dog"), "An image has one class: give one name, of cat, dog"),
    (lambda: names_of_run("-cat"), "An image has one class"),
    (lambda: evaluate.main(["--pictures", "a.png", "--npz"]), "no meaning beside --pictures"),
    (lambda: sliders.explore_region(build(model="cvae", conditions=3), None), "take another model"),
    (lambda: sliders.explore_samples(build(model="vq_vae"), None), "that learned with labels"),
    (lambda: vae.load_checkpoint("nowhere"), "name a folder of train.py"),
    (runs.newest_run, "train.py makes one"),
    (lambda: train.main(["--out", __file__]), "name a folder"),
    (lambda: train.main(["--sweep", "beta=1,2", "--resume"]), "leave them out"),
    (lambda: train.main(["--sweep", "beta=1,2", "--beta", "1"]), "contradict each other"),
    (lambda: train.main(["--resume", "--overwrite"]), "give one of the two"),
    (lambda: train.main(["--sweep", "beta=1,high"]), "give values like"),
    (lambda: train.main(["--sweep", "norm=batch..none", "--trials", "2"]), "of numbers a range"),
    (lambda: train.main(["--sweep", "likelihood=bernoulli,gaussian"]), "must be one of model, "),
    (lambda: train.main(["--sweep", "latent_dim=1..5"]), "say with --trials"),
    (lambda: train.main([*SHAPES, "--sweep", "model=vae,ae"]), "sweep such models apart"),
    (lambda: evaluate.main(["--num_samples", "0"]), "a whole number from 1"),
    (lambda: evaluate.main(["--fid", "--quick"]), "give one of the two"),
    (lambda: evaluate.main(["--fid", "nowhere.pth"]), "torch-fidelity"),
]


@pytest.mark.parametrize("call, way_out", REFUSED, ids=[words for _, words in REFUSED])
def test_a_mistake_is_refused_in_one_sentence_that_says_what_to_do(call, way_out):
    with refused(vae.VAEError, way_out):
        call()


@pytest.mark.parametrize("name", ["VAE_DEVICE", "VAE_PRECISION", "VAE_EPOCHS"])
def test_a_wrong_variable_is_named_before_any_image_is_loaded(name, monkeypatch):
    monkeypatch.setenv(name, "abacus")
    monkeypatch.setattr(vae, "load_dataset", None)
    with pytest.raises(vae.VAEError, match=f"{name} must"):
        train.main(["--dataset", "shapes"])


@pytest.mark.parametrize("main", [
    lambda: train.main(["--epochs", "0"]),
    lambda: evaluate.main(["--num_samples", "0"]),
    Mock(side_effect=OSError("the disk is full")),
])  # fmt: skip
def test_a_mistake_or_a_full_disk_ends_a_script_in_one_line_and_exit_code_2(main, capsys):
    with pytest.raises(SystemExit) as end:
        runs.run_script(main)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1


def test_a_model_of_support_says_what_to_import(monkeypatch):
    monkeypatch.delitem(vae.MODELS, "grid_vae")
    with refused(vae.CheckpointError, "import support.runs first."):
        vae.load_checkpoint(ROOT / "checkpoints" / "cifar10_grid")


def test_several_processes_are_refused_for_a_sweep(monkeypatch):
    monkeypatch.setattr(train, "processes", lambda: (0, 2))
    with refused(vae.VAEError, "without torchrun"):
        train.main(["--sweep", "beta=1,2"])


def test_a_prior_that_attention_cannot_divide_is_refused():
    with refused(vae.VAEError, "a multiple of 4"):
        vae.Config(model="vq_vae", prior_width=5).resolved()
