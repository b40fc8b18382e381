"""What all tests share: a clean environment, small data, one small trained model, painted image files.

No test downloads anything, or touches data/, runs/ or the user's cache. Models run on the CPU, where results are exact;
one test in test_training.py runs on an accelerator where there is one. Tests on real images take them from VAE_DATA, else
from ../shared/data beside the repository, and are skipped without.
"""
from __future__ import annotations

import dataclasses
import os
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "Agg"     # read when matplotlib is imported, here and in the scripts that tests start
os.environ["TQDM_DISABLE"] = "1"     # likewise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

import vae_helpers as vae

REAL_DATA = Path(os.environ.get("VAE_DATA") or ROOT.parent / "shared" / "data").resolve()   # before it is hidden below

torch.set_num_threads(1)
settings.register_profile("vae", deadline=None, derandomize=True, database=None, max_examples=40,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.load_profile("vae")


def clean(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in ("VAE_FAST", "VAE_EPOCHS", "VAE_TRAIN"):
        patch.delenv(name, raising=False)
    for name in ("data", "runs", "cache"):
        patch.setenv(f"VAE_{name.upper()}", str(folder / name))
    patch.setenv("VAE_DEVICE", "cpu")
    patch.setattr(vae, "RELEASED", folder / "released")


@pytest.fixture(scope="session", autouse=True)
def environment_of_session_fixtures(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """Every test has its own data root, runs and cache: tmp_path/data, tmp_path/runs, tmp_path/cache."""
    clean(monkeypatch, tmp_path)
    yield
    plt.close("all")


def take(data: vae.ImageData, *counts: int) -> vae.ImageData:
    """The first images of each split."""
    splits = {name: vae.Split(*(t[:n] for t in getattr(data, name))) for name, n in zip(("train", "val", "test"), counts)}
    return dataclasses.replace(data, **splits)


@pytest.fixture(scope="session")
def all_shapes():
    return vae.load_dataset("shapes")


@pytest.fixture(scope="session")
def shapes(all_shapes):
    """192 + 64 + 48 images: an epoch of a small model takes a fifth of a second."""
    return take(all_shapes, 192, 64, 48)


SMALL = {"latent_dim": 4, "width": 8, "batch_size": 32}


@pytest.fixture(scope="session")
def trained(shapes, tmp_path_factory):
    """A small convolutional VAE after three epochs on shapes."""
    config = vae.config_for(shapes, **SMALL, epochs=3, lr=3e-3)
    return vae.train_run(config, shapes, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def model(trained):
    return trained.model


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    """One cache for the session: the real images are decoded once."""
    return tmp_path_factory.mktemp("real_cache")


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour that tells which painted image one sees, also after JPEG or resizing: see number_in."""
    return (20 + 8 * number, 255 - 8 * number, 100)


def number_in(image: torch.Tensor) -> int:
    """Which number paint() gave to an image, uint8 (3, H, W)."""
    return round((int(image[0, 0, 0]) - 20) / 8)


def paint(path: Path, number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write an image of one colour; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour_of(number))
    (image.quantize(16) if mode == "P" else image.convert(mode)).save(path, "PNG")
    return path


def paint_noise(folder: Path, count: int, size: tuple[int, int] = (24, 24), mode: str = "RGB") -> Path:
    """A flat folder of images of random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.png")
    return folder


SPLITS = ("train", "val", "test")


def numbers(data):
    """The numbers that paint() gave to the images of each split."""
    return {name: [number_in(image) for image in getattr(data, name).images] for name in SPLITS}


def all_numbers(data):
    return sorted(n for found in numbers(data).values() for n in found)


def all_images(data):
    return torch.cat([getattr(data, name).images for name in SPLITS])


def sizes(data):
    return [len(getattr(data, name).images) for name in SPLITS]


def labels_follow(data, label_of):
    """Whether every painted image has the label of its number."""
    return all(getattr(data, name).labels.tolist() == list(map(label_of, found)) for name, found in numbers(data).items())


def same(a, b):
    return all(torch.equal(x, y) for name in SPLITS for x, y in zip(getattr(a, name), getattr(b, name)))


def zip_folder(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for file in sorted(folder.rglob("*")):
            z.write(file, file.relative_to(folder))
    return path


LAYOUTS = {"flat": "{i:02}.png", "classes": "{c}/{i:02}.png", "splits": "{s}/{c}/{i:02}.png", "lone train": "train/{c}/{i:02}.png"}


def tree(folder: Path, layout: str, top: str = "") -> Path:
    """20 images of class even or odd, 15 of them named train and 5 named test where the layout names splits."""
    for i in range(20):
        paint(folder / top / LAYOUTS[layout].format(i=i, c=("even", "odd")[i % 2], s="train" if i < 15 else "test"), i)
    return folder


def damaged(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK\x03\x04 cut short")
