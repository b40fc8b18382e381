"""Models that are given labels: the conditional VAE, and what names its labels.

Importing this file makes the model known to Config and build_model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import vae_helpers as vae


class Conditional:
    """What the models that take labels have in common."""

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """Classes (N,) → one-hot (N, A); attributes (N, A) → 0 and 1.

        Of the factors of `shapes` the shape counts as the class. Floats are taken as they are, so
        that labels can be mixed. Raises VAEError on labels that this model does not know.
        """
        size = self.config.conditions
        if labels is None or not size:
            return None
        if labels.ndim == 2 and self.config.dataset == "shapes" and not labels.is_floating_point():
            labels = labels[:, 0]
        if labels.ndim == 2 and labels.shape[1] == size:
            return labels.float()
        classes = labels.ndim == 1 and not labels.is_floating_point()
        if not classes or labels.min() < 0 or labels.max() >= size:
            raise vae.VAEError(
                f"This model knows {size} classes or attributes: labels must be whole numbers "
                f"(N,) from 0 to {size - 1}, or (N, {size}), not {tuple(labels.shape)}."
            )
        return F.one_hot(labels.long(), size).float()


class CVAE(Conditional, vae.VAE):
    """q(z|x, condition) and p(x|z, condition), Sohn et al. 2015.

    The condition (N, A) reaches the encoder as one more channel, a learned linear picture of it,
    and the decoder beside z.
    """

    conditional = True

    @classmethod
    def choices_for(cls, data: vae.ImageData) -> dict[str, object]:
        return {"conditions": len(condition_names(data))}

    def __init__(self, config: vae.Config):
        if not config.conditions:
            raise vae.VAEError(
                "A cvae needs to know how many classes or attributes there are: make its config "
                "with config_for(data, model='cvae')."
            )
        super().__init__(config)
        self.condition_plane = nn.Linear(config.conditions, config.image_size**2)

    def make_encoder(self) -> nn.Module:
        return vae.ENCODERS[self.config.arch](self.config, self.config.channels + 1)

    def make_decoder(self) -> nn.Module:
        inputs = self.config.latent_dim + self.config.conditions
        return vae.DECODERS[self.config.arch](self.config, inputs)

    def condition(self, labels: Tensor | None) -> Tensor:
        """Labels → (N, A), as above. Raises VAEError where there are none."""
        if labels is None:
            raise vae.VAEError("This model is conditional: hand in a label for each image.")
        return super().condition(labels)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W), condition (N, A) → mu, logvar, each (N, D)."""
        plane = self.condition_plane(condition).reshape(-1, 1, *x.shape[2:])
        return self.encoder(torch.cat([x, plane], dim=1))

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D), condition (N, A) → x_raw (N, C, H, W)."""
        return self.decoder(torch.cat([z, condition], dim=1)).float()


vae.MODELS["cvae"] = CVAE


def labels_of(data: vae.ImageData, text: str, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n labels that a text asks for, a class like "cat" or attributes like "Smiling,-Male".

    Attributes that it does not name are those of training images that have what it names, drawn
    with the seed. An empty text asks for nothing.

    Returns the labels, (n, A), and the same without what was asked for: there they are 0.5, which
    says nothing. Guidance of a learned prior takes both:
    sample_images(model, n, labels, guidance=2.0, without=without).

    Raises VAEError for a name that the data set does not have, for two classes at once, and for
    attributes that no training image has together.
    """
    names = condition_names(data)
    if data.class_names:
        if not text:
            return torch.full((n, len(names)), 0.5), torch.full((n, len(names)), 0.5)
        if text not in names:
            raise vae.VAEError(f"There is no class {text!r}: give one name, of {', '.join(names)}.")
        labels = F.one_hot(torch.tensor(names.index(text)), len(names)).float().expand(n, -1)
        return labels, torch.full_like(labels, 0.5)
    wanted = asked_attributes(text, names) if text else {}
    known = data.train.labels
    fits = torch.ones(len(known), dtype=torch.bool)
    for name, value in wanted.items():
        fits &= known[:, names.index(name)].bool() == value
    if not fits.any():
        raise vae.VAEError(f"No training image has {text} together: ask for less.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(int(fits.sum()), (n,), generator=generator)
    labels = known[fits][drawn].float()
    without = labels.clone()
    without[:, [names.index(name) for name in wanted]] = 0.5
    return labels, without


def asked_attributes(text: str, names: Sequence[str]) -> dict[str, bool]:
    """Which attributes a text like "Smiling,-Male" asks for, and whether on or off.

    Raises VAEError for a name that is none of the names.
    """
    wanted = {}
    for word in text.split(","):
        word = word.strip()
        name = word if word in names else word.removeprefix("-")
        if name not in names:
            raise vae.VAEError(f"There is no label {name!r}: choose from {', '.join(names)}.")
        wanted[name] = word == name
    return wanted


def labels_from_names(text: str | None, names: Sequence[str], n: int, config: vae.Config) -> Tensor:
    """n labels (n, A) that a text asks for, by the names that a run's record keeps.

    Classes and attributes as in labels_of; attributes that are not named are off. Raises VAEError
    for a name that the run does not know, and without any.
    """
    known = ", ".join(names)
    if not text:
        raise vae.VAEError(
            f"This model is conditional: say with --labels what is shown, of {known}."
        )
    one = torch.zeros(config.conditions)
    wanted = {text: True} if text in names else asked_attributes(text, names)
    if config.dataset != "celeba" and list(wanted.values()) != [True]:
        raise vae.VAEError(f"An image has one class: give one name, of {known}, not {text}.")
    for name, value in wanted.items():
        one[list(names).index(name)] = float(value)
    return one.expand(n, -1)


def condition_names(data: vae.ImageData) -> tuple[str, ...]:
    """The classes or attributes that a conditional model is given.

    Raises VAEError where the images have no labels.
    """
    names = data.class_names or data.label_names
    if len(names) < 2:
        raise vae.VAEError(
            f"A cvae needs labels, and there are none in {data.title}: sort the images into one "
            "folder per class (<class>/…), or train model vae."
        )
    return names


def plot_classes(
    model: CVAE, names: Sequence[str], title: str, latents: int = 6, seed: int = 0
) -> Figure:
    """What a conditional model draws: one latent per row, one class per column, up to ten."""
    shown = min(len(names), 10)
    condition = F.one_hot(torch.arange(shown), model.config.conditions).float()
    rows = {}
    for number, z in enumerate(model.draw_codes(latents, seed=seed), 1):
        rows[f"z {number}"] = vae.decode_images(model, z.expand(shown, -1), condition)
    labels = [textwrap.fill(name, 11, break_on_hyphens=False) for name in names[:shown]]
    return vae.plot_rows(rows, title, labels)


def plot_attributes(
    model: CVAE,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    attributes: Sequence[str],
    title: str,
) -> Figure:
    """The codes of images (n, C, H, W) with labels (n, A), one attribute switched off and on."""
    mu, _ = vae.encode_images(model, images, labels)
    reconstructions = vae.decode_images(model, mu, labels)
    rows = {"original": vae.as_unit(images), "reconstruction": reconstructions}
    for name in attributes:
        for word, value in (("off", 0), ("on", 1)):
            switched = labels.clone()
            switched[:, names.index(name)] = value
            label = f"{name.replace('_', ' ').lower()} {word}"
            rows[label] = vae.decode_images(model, mu, switched)
    return vae.plot_rows(rows, title)
