"""What is seen in pictures: against counting by hand, a judge that is known, and real faces."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, rand, refused
from PIL import Image
from torch import nn

import vae_helpers as vae
from support import recognition
from support.features import FeatureNet

NAMES = ("Young", "Smiling", "Male")


class ReadsRows(nn.Module):
    """Its logits are the means of the three rows of the first channel, from 0 to 1, less 0.5."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, 0].mean(2) - 0.5


def with_rows(values):
    """Images (N, 3, 3, 2) whose rows have these values (N, 3)."""
    images = torch.zeros(len(values), 3, 3, 2)
    images[:, 0] = values[:, :, None]
    return images


class ShowsLabels:
    """A conditional model whose samples show their labels, but one."""

    learned_prior = False
    config = vae.Config(conditions=3, model="cvae")

    def __init__(self, deaf_to=None):
        self.deaf_to = deaf_to

    def samples(self, model, n, labels, **choices):
        shown = labels.clone()
        if self.deaf_to is not None:
            shown[:, self.deaf_to] = 0
        return with_rows(shown)


@pytest.fixture
def people():
    labels = (rand(200, 3) > 0.4).long()
    part = vae.Split((255 * with_rows(labels.float())).byte(), labels)
    return vae.ImageData("celeba", "people", part, part, part, NAMES)


def test_a_class_is_named_or_not():
    images = with_rows(torch.eye(3)[[0, 1, 2, 0]])
    named = recognition.is_named(ReadsRows(), images, torch.tensor([0, 1, 1, 2]))
    assert named.tolist() == [True, True, False, False]
    assert recognition.share(named, "seen") == pytest.approx({"seen": 0.5, "seen_se": 0.5 / 3**0.5})


def test_shares_of_attributes_are_those_of_counting_by_hand():
    values, labels = rand(60, 3), (rand(60, 3, seed=1) > 0.5).long()
    labels[:, 2] = 1  # always on, so that there is none with it off
    shares = recognition.attribute_shares(ReadsRows(), with_rows(values), labels)
    for k in range(3):
        seen = values[:, k] > 0.5
        for column, value in ((0, 1), (1, 0)):
            group = [bool(seen[i]) == bool(value) for i in range(60) if labels[i, k] == value]
            expected = np.mean(group) if group else float("nan")
            assert shares[k, column].item() == pytest.approx(expected, nan_ok=True)


def test_what_no_training_image_shows_is_not_asked_for(people, monkeypatch):
    people.train.labels[:, 0] = 1  # nobody is old
    assert (0, 0) not in recognition.asks(people) and (0, 1) in recognition.asks(people)
    monkeypatch.setattr(vae, "sample_images", ShowsLabels().samples)
    shares = recognition.asked_shares(ReadsRows(), ShowsLabels(), people)
    assert shares[0].isnan().tolist() == [False, True] and (shares[1:] == 1).all()


@pytest.mark.parametrize("deaf_to", [None, 1])
def test_asked_attributes_are_recognised_where_the_samples_show_them(people, monkeypatch, deaf_to):
    model = ShowsLabels(deaf_to)
    monkeypatch.setattr(vae, "sample_images", model.samples)
    sets = {"reconstructions": people.test.images[:100] / 255, "samples_prior": None}
    result = recognition.recognised(ReadsRows(), model, people, sets)
    assert result["recognised_real"] == result["recognised_reconstructions"] == 1
    # Never on: always right about off, and never about on.
    assert result["recognised_samples_prior"] == pytest.approx(1 if deaf_to is None else 5 / 6)
    for number, name in enumerate(NAMES):
        expected = [0, 1] if number == deaf_to else [1, 1]
        assert result["attributes"][name]["samples_prior"] == expected


def test_classes_are_recognised_in_all_sets_that_were_given_labels(monkeypatch):
    labels = torch.arange(30) % 3
    images = with_rows(torch.eye(3)[labels])
    part = vae.Split((255 * images).byte(), labels)
    data = vae.ImageData("cifar10", "three classes", part, part, part, ("a", "b", "c"))
    sets = {
        "reconstructions": images,
        "midpoints_linear": images,
        "samples_prior": images.roll(1, 0),
        "samples_guidance_1": images,
    }
    result = recognition.recognised(ReadsRows(), ShowsLabels(), data, sets)
    shares = {name: value for name, value in result.items() if not name.endswith("_se")}
    assert shares == {
        "images": 30,
        "recognised_real": 1,
        "recognised_reconstructions": 1,
        "recognised_samples_prior": 0,
        "recognised_samples_guidance_1": 1,
    }


def test_the_judge_knows_the_labels_or_there_is_none(shapes):
    assert recognition.judge(shapes) is None
    net = recognition.load_feature_net("cifar10")
    assert isinstance(net, FeatureNet) and len(net.labels) == 10
    cifar = dataclasses.replace(shapes, name="cifar10", label_names=net.labels)
    assert recognition.judge(cifar).labels == net.labels


def committed_faces():
    """The test faces of the page: 64x64 pixels each, ten in a row."""
    sheet = torch.from_numpy(np.array(Image.open(ROOT / "checkpoints/page/celeba.png")))
    rows = sheet.permute(2, 0, 1).split(64, dim=1)
    return torch.stack([face for row in rows for face in row.split(64, dim=2)])


def test_faces_are_found_in_faces_and_in_nothing_else(shapes):
    faces = committed_faces()
    assert recognition.faces_found(faces).float().mean() > 0.85
    assert torch.equal(recognition.faces_found(faces), recognition.faces_found(faces / 255))
    nothing = torch.cat([rand(10, 3, 64, 64), vae.as_unit(faces).flip(2)[:10]])
    assert recognition.faces_found(nothing).float().mean() < 0.2  # noise, and heads down
    result = recognition.faces(faces, {"samples_prior": nothing})
    assert result["images"] == len(faces)
    assert result["found_real"] > 0.85 > 0.2 > result["found_samples_prior"]


@pytest.mark.parametrize("broken", ["missing", "too new"])
def test_without_its_detector_one_sentence_says_what_to_install(monkeypatch, broken):
    recognition.face_detector.cache_clear()
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "cv2", None)
    else:
        monkeypatch.setattr(recognition, "DETECTOR", "none.xml")
    with refused(vae.VAEError, "pip install 'opencv-python-headless<5'"):
        recognition.faces_found(rand(1, 3, 64, 64))
    recognition.face_detector.cache_clear()


def test_faces_with_and_without_an_attribute_differ_in_nothing_else(people, monkeypatch):
    asked = {}

    def sample(model, n, labels, *, seed, without, **choices):
        assert choices == {"guidance": 2.0} and (without[:, 1] == 0.5).all()
        return labels

    monkeypatch.setattr(vae, "sample_images", sample)
    for shown in (True, False):
        asked[shown] = recognition.asked_faces(
            None, people, NAMES[1], 20, shown=shown, guidance=2.0
        )
    assert (asked[True][:, 1] == 1).all() and (asked[False][:, 1] == 0).all()
    asked[True][:, 1] = 0
    assert torch.equal(asked[True], asked[False])


def test_attributes_are_told_apart_where_the_classifier_ranks_them_so(monkeypatch):
    logits = torch.tensor([[0.0, 0.9], [0.0, 0.4], [0.0, 0.6], [0.0, 0.1]])
    monkeypatch.setattr(recognition, "logits_of", lambda net, images: logits)
    shown = torch.tensor([True, True, False, False])
    assert recognition.told_apart(None, None, shown, 1) == 0.75  # three of four pairs
