"""evaluate.py as a user types it, on a small run: numbers, pictures, batches, and wrong flags."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, take
from PIL import Image

import evaluate
import vae_helpers as vae
from support import disentanglement, metrics, report, runs

PARTS = {"test", "pictures", "latent_space", "likelihood", "smoothness", "disentanglement", "frechet"}
TINY = {"dataset": "shapes", "latent_dim": 4, "width": 4, "epochs": 1, "lr": 3e-3, "max_images": 1000}


@pytest.fixture(scope="module", autouse=True)
def smaller_measures():
    """Fewer samples than evaluate.py takes by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "IWAE_SAMPLES", (1, 3))
        patch.setattr(report, "IWAE_IMAGES", 4)
        patch.setattr(report, "PAIRS", 200)
        patch.setattr(disentanglement, "DRAWN", 600)
        patch.setattr(disentanglement, "VOTES", 20)
        yield


@pytest.fixture(scope="module")
def data(all_shapes):
    """1,000 training and test images, just enough for Fréchet distances."""
    return take(all_shapes, 1000, 500, 1000)


def trained_run(folder, data, **choices):
    runs.train_run(vae.Config(**TINY | choices), data, folder, progress=False)
    return folder


def parts_of(results):
    return {name for name, part in results.items() if isinstance(part, dict)}


def pixels(path):
    """One pixel for each of the 3 x 3 by which small images are enlarged."""
    return np.asarray(Image.open(path))[::3, ::3]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("evaluate") / "run", data)


@pytest.fixture(scope="module")
def evaluated(run):
    """What `evaluate.py --num_samples 10 --npz` returns, and its folder."""
    arguments = ["--run", str(run), "--num_samples", "10", "--num_interpolations", "6", "--npz"]
    return evaluate.main([*arguments, "--components", "3"]), run / "evaluation"
