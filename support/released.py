"""The settings of the models that the notebooks load, and that reproduce/release.py trains."""

from __future__ import annotations

import vae_helpers as vae
from image_data.splits import ImageData

# The drawn shapes, which stand in where there is no data, are few and simple: small batches and
# small networks.
FEW = {"batch_size": 32, "latent_dim": 32, "epochs": 20, "width": 16}

# Data set → preset → what is added to the preset.
SETTINGS = {
    "cifar10": {"plain": {}, "best": {}, "grid": {"epochs": 5, "prior_epochs": 12}},
    "celeba": {
        "plain": {"likelihood": "squared_error", "epochs": 25},
        "best": {"epochs": 15},
        "grid": {"epochs": 21, "prior_epochs": 25},
    },
    "shapes": {
        "plain": FEW | {"lr": 2e-3},
        "best": FEW,
        "grid": FEW | {"latent_dim": 8, "prior_width": 96},
    },
}


def config_of(data: ImageData, preset: str, **changes) -> vae.Config:
    """The config of `plain`, `best` or `grid` on CIFAR-10, CelebA or the drawn shapes, changed.

    Raises KeyError for other data sets and presets.
    """
    return vae.config_for(data, **vae.PRESETS[preset] | SETTINGS[data.name][preset] | changes)
