"""What all tests share: a clean environment, small data, one small trained model.

No test downloads anything, or touches data/, runs/ or the user's cache. Models run on the CPU and
multiply in float32, so that no outcome depends on the processor. Tests on real images take them
from VAE_DATA, else from ../shared/data beside the repository, and are skipped without.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "Agg"  # for matplotlib here, and in the scripts that tests start
os.environ["TQDM_DISABLE"] = "1"

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings

import vae_helpers as vae
from support import runs

# Read before the fixtures below hide it.
REAL_DATA = Path(os.environ.get("VAE_DATA") or ROOT.parent / "shared" / "data").resolve()

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
settings.register_profile(
    "vae",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("vae")

SMALL = {"latent_dim": 4, "width": 8, "batch_size": 32}


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Give the project places of its own below a folder, and one kind of arithmetic."""
    for name in ("VAE_FAST", "VAE_EPOCHS", "VAE_TRAIN"):
        patch.delenv(name, raising=False)
    for name in ("data", "runs", "cache"):
        patch.setenv(f"VAE_{name.upper()}", str(folder / name))
    patch.setenv("KAGGLEHUB_CACHE", str(folder / "kagglehub"))
    for package in ("kagglehub", "huggingface_hub"):  # they would really download
        patch.setitem(sys.modules, package, None)
    patch.setenv("VAE_DEVICE", "cpu")
    patch.setenv("VAE_PRECISION", "float32")
    patch.setattr(runs, "RELEASED", folder / "released")


@pytest.fixture(scope="session", autouse=True)
def environment_of_session_fixtures(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """Every test has its own tmp_path/data, tmp_path/runs and tmp_path/cache."""
    isolate(monkeypatch, tmp_path)
    yield
    plt.close("all")


@pytest.fixture
def fast(environment, monkeypatch):
    """The small splits of VAE_FAST, and no download."""
    monkeypatch.setenv("VAE_FAST", "1")


@contextlib.contextmanager
def refused(kind: type[Exception], *words: str):
    """An error of this kind, in one sentence with these words."""
    with pytest.raises(kind) as caught:
        yield
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence and sentence.endswith("."), sentence


def run_python(*arguments: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """What a script prints that ends well, as a user runs it."""
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | variables
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=of_seed(seed))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=of_seed(seed))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def take(data: vae.ImageData, *counts: int) -> vae.ImageData:
    """The first images of each split."""
    splits = {}
    for name, n in zip(("train", "val", "test"), counts):
        images, labels = getattr(data, name)
        splits[name] = vae.Split(images[:n], labels[:n])
    return dataclasses.replace(data, **splits)


@pytest.fixture(scope="session")
def all_shapes():
    return vae.load_dataset("shapes")


@pytest.fixture(scope="session")
def shapes(all_shapes):
    """192 + 64 + 48 images: an epoch of a small model takes a fifth of a second."""
    return take(all_shapes, 192, 64, 48)


@pytest.fixture(scope="session")
def few(shapes):
    return take(shapes, 96, 16, 16)


@pytest.fixture(scope="session")
def quarters():
    """Four classes: which quarter of an 8x8 image is bright. How bright is left to z."""
    labels = torch.arange(512) % 4
    brightness = torch.linspace(150, 250, 512).reshape(-1, 1, 1, 1)
    images = F.one_hot(labels, 4).reshape(-1, 1, 2, 2) * brightness
    part = vae.Split(F.interpolate(images.byte(), scale_factor=4), labels)
    return vae.ImageData("folder", "quarters", part, part, part, tuple("abcd"))


def brightest(images: torch.Tensor) -> torch.Tensor:
    """Which quarter of each image is the brightest, (N,)."""
    return F.avg_pool2d(images, 4).flatten(1).argmax(1)


@pytest.fixture(scope="session")
def trained(shapes, tmp_path_factory):
    """A small convolutional VAE after three epochs on shapes."""
    config = vae.config_for(shapes, **SMALL, epochs=3, lr=3e-3)
    return runs.train_run(config, shapes, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def model(trained):
    return trained.model
