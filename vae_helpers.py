"""Variational autoencoders on images: the model and plot code that the three notebooks share.

Read it from top to bottom; each section uses only what stands above it.

    Config         one dataclass: every choice that a run makes
    Networks       encoders and decoders, convolutional and fully connected; the VAE
    Losses         reconstruction and KL of each image, in nats
    Training       one loop for every model; evaluation; checkpoints
    Latent space   encode, interpolate, sample regions, traverse, attribute directions
    Plots          one function per figure, each returns the matplotlib Figure

Images come from support/datasets.py, the optimiser and its averages from
support/training_state.py. Other models, measures, sliders and run folders stand in support/, too,
and import this module: nobody needs them to understand a VAE.

It is long so that all of this can be read in one place: some 950 lines are code, and the others say
what it does.

Conventions
    images      uint8 (N, C, H, W) in data sets; what a model gives back is float in [0, 1]
    x           a batch as the network sees it: float in [0, 1], or in [-1, 1] (squared_error)
    mu, logvar  (N, D), the mean and the logarithm of the variance of q(z|x); D = latent_dim
    z           (N, D), a code
    x_hat       the mean of p(x|z), in the shape and the range of x
    condition   (N, A), what a conditional model is given in addition to the image
    nats        a loss of one image, summed over pixels or latent dimensions, never averaged
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from base.errors import CheckpointError, DatasetUnavailable, VAEError  # noqa: F401
from base.figure_style import LEFT, enlargement, place_pictures
from base.files import digest, refused_if_unreadable, write_atomically, write_json
from base.hardware import all_reduce, get_device, import_torchvision, precision, processes
from base.options import checked_value, env_flag, option, progress_bar
from base.training_state import TrainingState, keep_on_device
from image_data.load import DATASETS, load_dataset  # noqa: F401
from image_data.splits import ImageData, Split

# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Config                                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

# Name → class of every model. The VAE below is entered here, and so are those of support/ when
# they are imported.
MODELS: dict[str, type[VAE]] = {}

OF_LEARNED_PRIORS = ("prior_epochs", "prior_width", "global_dim")
LIKELIHOODS = ("bernoulli", "squared_error", "gaussian")


@dataclass(frozen=True)
class Config:
    """Every choice that a run makes.

    On one machine's CPU, with the same precision and number of threads, equal configs on equal
    data give equal models.

    What is None follows from the other fields, and is a value once the config is made. Raises
    VAEError when a value, or a combination of values, cannot work.
    """

    # fmt: off
    dataset: str = option("cifar10", "which images to learn", choices=DATASETS)
    data_dir: str | None = option(
        None, "the folder or zip with your images (for --dataset folder)")
    max_images: int | None = option(
        None, "train on at most this many images; all of them when not given")
    image_size: int | None = option(
        None, "height and width in pixels; the data set's own when not given", low=2, high=4096)
    channels: int = option(
        3, "1 for grey, 3 for RGB; follows from the data", choices=(1, 3))
    conditions: int = option(
        0, "classes or attributes that a cvae, or a learned prior, is given; follows from the "
        "data", low=0)

    model: str = option(
        "vae", "what is minimised: vae, beta_vae and info_vae sample z, ae and wae do not; cvae "
        "is given the label; grid_vae and vq_vae have a grid of codes and learn their prior",
        choices=MODELS)
    arch: str = option(
        "conv", "convolutional or fully connected encoder and decoder", choices=("conv", "fc"))
    latent_dim: int = option(
        128, "size of mu, logvar and z, or of the code at each place of a grid; 128 is the "
        "assignment's")
    width: int | None = option(
        None, "channels after the first convolution, doubled at each further one (conv, 32 when "
        "not given), or units of the first hidden layer, halved at each further one (fc, 512)")
    depth: int | None = option(
        None, "convolutions, each halving the image (conv; when not given, down to about 4x4), "
        "or hidden layers (fc, 2)", high=31)
    downsample: str = option(
        "stride", "how the convolutional encoder halves the image: a 4x4 convolution of stride 2, "
        "or a 3x3 one and a 2x2 max-pooling", choices=("stride", "maxpool"))
    norm: str = option(
        "none", "batch: batch normalisation before each activation inside a convolutional model",
        choices=("none", "batch"))
    residual: int = option(
        0, "residual blocks at each size of the feature maps (conv)", low=0, high=100)

    likelihood: str | None = option(
        None, "bernoulli: binary cross-entropy on [0, 1]; squared_error: ||x - x_hat||^2 on "
        "[-1, 1]; gaussian: on [0, 1] with the best single sigma; when not given, squared_error "
        "for celeba and for wae, bernoulli for the others", choices=LIKELIHOODS)
    beta: float | None = option(
        None, "weight of the KL term; when not given the model's own: 1 (the ELBO), beta_vae 4, "
        "info_vae 0", low=0)
    mmd: float | None = option(
        None, "weight of the maximum mean discrepancy between q(z) and N(0, I); when not given "
        "the model's own: info_vae 1000, wae 10 (on celeba 100)", low=0)
    codebook: int | None = option(
        None, "codes in the codebook of a vq_vae (512 when not given); each has latent_dim numbers")
    prior_epochs: int | None = option(
        None, "epochs of the last stage, in which the prior of a grid_vae or vq_vae learns (when "
        "not given as many as before it; 0: none, its samples are noise)", low=0)
    prior_width: int | None = option(
        None, "width of the transformer that is a learned prior (192 when not given)")
    global_dim: int | None = option(
        None, "numbers of a code of the whole image beside those of the places, which learns alone "
        "in the first third of the epochs (grid_vae; when not given 128, or the next smaller "
        "multiple of latent_dim, for images of 64 pixels or more, else none)", low=0)
    kl_warmup: int = option(0, "epochs in which beta rises from 0 to its value", low=0)

    epochs: int = option(10, "passes over the training images")
    patience: int | None = option(
        None, "stop when the validation loss has had no new minimum for this many epochs (of a "
        "learned prior, 5 when not given; else training runs to its end; 0: always to its end)",
        low=0)
    batch_size: int = option(
        128, "images in one step; 128 keeps two CPU cores busy and still learns in 10 epochs")
    flip: str = option(
        "none", "horizontal: half of the training images are mirrored, drawn anew each time",
        choices=("none", "horizontal"))
    lr: float = option(1e-3, "Adam's step size; with one_cycle, its largest", low=1e-12)
    schedule: str = option(
        "constant", "of the step size; one_cycle: up for three tenths of all steps, then down to "
        "almost 0", choices=("constant", "one_cycle"))
    ema: float = option(
        0.0, "the result is a moving average of the weights with this decay, like 0.999; 0 is off",
        low=0, high=0.999999)
    seed: int = option(
        0, "seeds the weights, the order of the images and the noise",
        low=1 - 2**63, high=2**63 - 1)
    # fmt: on

    def __post_init__(self):
        for f in dataclasses.fields(self):
            self._set(**{f.name: checked_value(f, getattr(self, f.name))})
        self._fill_in()
        self._check_combinations()

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _fill_in(self) -> None:
        """Give every field that was left out the value that follows from the others."""
        model = MODELS[self.model]
        if self.beta == 1 and not model.sampled:
            self._set(beta=None)  # a vae's 1, copied by dataclasses.replace, has no meaning here
        if self.image_size is None:
            self._set(image_size=DATASETS[self.dataset])
        if self.depth is None and self.arch == "fc":
            self._set(depth=2)
        defaults = {
            "likelihood": "squared_error" if self.dataset == "celeba" else "bernoulli",
            "width": 32 if self.arch == "conv" else 512,
            "depth": max(1, int(math.log2(self.image_size / 4))),  # 28 → 7, 32 → 4, 64 → 4
            "beta": 1.0,
            "mmd": 0.0,
        }
        for name, value in (defaults | model.defaults(self)).items():
            if getattr(self, name) is None:
                self._set(**{name: value})
        for name in ("lr", "beta", "mmd", "ema"):  # 4 and 4.0 are one config and one run_name
            self._set(**{name: float(getattr(self, name))})

    def _check_combinations(self) -> None:
        model, conv, fc = MODELS[self.model], self.arch == "conv", self.arch == "fc"
        own_beta = model.defaults(self).get("beta", 1.0)
        problems = (
            (self.data_dir is not None and self.dataset != "folder",
             "data_dir is for dataset folder: for the others set VAE_DATA to the folder that "
             "holds them."),
            (not model.sampled and self.beta != own_beta,
             f"beta weighs the KL of a sampled z, and model {self.model} has none: leave it out."),
            (self.codebook is not None and not model.discrete,
             f"codebook is for model vq_vae, not {self.model}: leave it out."),
            (any(getattr(self, name) is not None for name in OF_LEARNED_PRIORS)
             and not model.learned_prior,
             f"{', '.join(OF_LEARNED_PRIORS)} are for models grid_vae and vq_vae, not "
             f"{self.model}: leave them out."),
            (self.mmd and model.learned_prior,
             f"mmd compares q(z) with N(0, I), which a {self.model} does not use: leave it out."),
            (self.global_dim is not None and (model.discrete or fc),
             "global_dim is for model grid_vae with arch conv: leave it out."),
            (self.global_dim and self.global_dim % self.latent_dim,
             f"global_dim must be a multiple of latent_dim, {self.latent_dim}."),
            (self.conditions and not (model.conditional or model.learned_prior),
             f"conditions are for model cvae, not {self.model}: leave them out."),
            (self.batch_size < 2 and (self.norm == "batch" or self.mmd),
             "Batch normalisation and MMD compare the images of a batch: use batch_size >= 2."),
            (conv and self.image_size >> self.depth < 1,
             f"{self.depth} halvings of a {self.image_size}-pixel image leave nothing: use depth "
             f"{int(math.log2(self.image_size))} or less."),
            (fc and (self.norm != "none" or self.residual),
             "norm and residual are for arch conv: the fully connected model is kept plain."),
            (fc and self.width >> (self.depth - 1) < 1,
             f"{self.depth} hidden layers, each half as wide as the one before, need a width of "
             f"at least {1 << (self.depth - 1)}, not {self.width}."),
        )  # fmt: skip
        for wrong, sentence in problems:
            if wrong:
                raise VAEError(sentence)

    @classmethod
    def of_record(cls, values: dict) -> Config:
        """The config of a run, also of one from before global_dim, which had no such code."""
        config = cls(**values)
        if config.global_dim and "global_dim" not in values:
            config = dataclasses.replace(config, global_dim=0)
        return config

    @property
    def value_range(self) -> tuple[float, float]:
        """The range of x and x_hat: it must fit the decoder's last activation."""
        return (-1.0, 1.0) if self.likelihood == "squared_error" else (0.0, 1.0)

    @property
    def all_epochs(self) -> int:
        """Of all stages, where there are several."""
        return self.epochs + (self.prior_epochs or 0)

    @property
    def run_name(self) -> str:
        """A readable name with a short hash of all that is no default: one folder per config."""
        values = dataclasses.asdict(self)
        own = {
            f.name: values[f.name] for f in dataclasses.fields(self) if values[f.name] != f.default
        }
        text = json.dumps(own, sort_keys=True)
        short_hash = hashlib.sha256(text.encode()).hexdigest()[:8]
        return (
            f"{self.dataset}-{self.arch}-{self.model}-z{self.latent_dim}-beta{self.beta:g}"
            f"-seed{self.seed}-{short_hash}"
        )


# Named sets of choices, for train.py --preset and config_for(data, **PRESETS[…]). "best" costs
# more time per epoch, and its nats cannot be compared with the assignment's. "grid" has a grid of
# codes, and a transformer that learns which of them occur together.
PRESETS = {
    "assignment": {},
    "best": {"likelihood": "gaussian", "norm": "batch", "residual": 1,
             "schedule": "one_cycle", "lr": 3e-3, "ema": 0.999},
}  # fmt: skip
PRESETS["grid"] = PRESETS["best"] | {
    "model": "grid_vae", "latent_dim": 16, "beta": 2.0, "flip": "horizontal"
}  # fmt: skip


def epochs_from_environment() -> dict[str, int | str]:
    """{"epochs": n} under VAE_EPOCHS=n, else {}. Config refuses what is no number."""
    epochs = os.environ.get("VAE_EPOCHS")
    if not epochs:
        return {}
    return {"epochs": int(epochs) if epochs.isdecimal() else epochs}


def config_for(data: ImageData, **choices) -> Config:
    """A Config that fits a data set; VAE_FAST=1 makes it one epoch, VAE_EPOCHS=n makes it n."""
    if env_flag("VAE_FAST"):
        choices |= {"epochs": 1, "max_images": len(data.train.images)}
        if choices.get("prior_epochs"):
            choices["prior_epochs"] = 1
    choices |= epochs_from_environment()
    model = choices.get("model", "vae")
    if model in MODELS:
        choices |= MODELS[model].choices_for(data)
    return Config(dataset=data.name, image_size=data.image_size, channels=data.channels, **choices)


def as_unit(images: Tensor) -> Tensor:
    """Images, uint8 or float in [0, 1] → float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def to_input(images: Tensor, config: Config) -> Tensor:
    """Images, uint8 or float in [0, 1] → x, float32 in config.value_range."""
    low, high = config.value_range
    return as_unit(images) * (high - low) + low


def to_unit(x: Tensor, config: Config) -> Tensor:
    """x or x_hat in config.value_range → float images in [0, 1]."""
    low, high = config.value_range
    return ((x - low) / (high - low)).clamp(0, 1)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                   ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


def reparameterize(
    mu: Tensor, logvar: Tensor, noise: torch.Generator | Tensor | None = None
) -> Tensor:
    """z = mu + sigma * eps, eps ~ N(0, I): a sample that gradients pass through.

    Kingma & Welling 2014, section 2.4. mu, logvar (N, D) → z (N, D). noise is eps (N, D) itself,
    or the generator, on mu's device, that draws it.
    """
    if isinstance(noise, Tensor):
        eps = noise
    else:
        eps = torch.randn(mu.shape, generator=noise, device=mu.device, dtype=mu.dtype)
    return mu + torch.exp(0.5 * logvar) * eps


class LatentHeads(nn.Module):
    """Features (N, F) → mu, logvar, each (N, D): how every encoder ends."""

    def __init__(self, features: int, latent_dim: int):
        super().__init__()
        self.mu = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        # float32 from here on, also where the layers before were computed in bfloat16
        return self.mu(h).float(), self.logvar(h).float()


def activation(channels: int, norm: str) -> list[nn.Module]:
    """What follows a convolution: ReLU, after batch normalisation (Ioffe & Szegedy 2015) if any."""
    return [nn.BatchNorm2d(channels), nn.ReLU()] if norm == "batch" else [nn.ReLU()]


class Residual(nn.Module):
    """h + conv1x1(relu(conv3x3(relu(h)))): (N, C, H, W) → the same. Starts as the identity.

    Van den Oord et al. 2017, section 4.1; with config.norm each ReLU comes after a normalisation.
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        wide = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        narrow = nn.Conv2d(channels, channels, kernel_size=1)
        nn.init.zeros_(narrow.weight)
        nn.init.zeros_(narrow.bias)
        first, second = activation(channels, norm), activation(channels, norm)
        self.branch = nn.Sequential(*first, wide, *second, narrow)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


def grid_sizes(config: Config) -> list[int]:
    """Sides of the feature maps, each half the one before, rounded down: 32 → [32, 16, 8, 4]."""
    return [config.image_size >> i for i in range(config.depth + 1)]


def feature_channels(config: Config) -> int:
    """Channels of the smallest feature maps: 128 at the end of three convolutions of width 32."""
    return config.width * 2 ** (config.depth - 1)


def conv_down(config: Config, channels: int) -> list[nn.Module]:
    """x (N, channels, H, W) → the smallest feature maps: the convolutions of the encoder."""
    layers: list[nn.Module] = []
    for i in range(config.depth):  # 32 → 16 → 8 → 4 pixels
        out = config.width * 2**i  # 32, 64, 128 channels
        if config.downsample == "stride":
            layers.append(nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1))
            layers += activation(out, config.norm)
        else:
            layers.append(nn.Conv2d(channels, out, kernel_size=3, padding=1))
            layers += [*activation(out, config.norm), nn.MaxPool2d(2)]
        layers += [Residual(out, config.norm) for _ in range(config.residual)]
        channels = out
    return layers


def conv_up(config: Config) -> list[nn.Module]:
    """The smallest feature maps → x_raw (N, C, H, W): the mirror image of conv_down."""
    sizes = grid_sizes(config)
    layers: list[nn.Module] = []
    for i in reversed(range(config.depth)):  # 4 → 8 → 16 → 32 pixels
        channels = config.width * 2**i
        out = config.width * 2 ** (i - 1) if i else config.channels
        odd = sizes[i] - 2 * sizes[i + 1]  # 1 where halving rounded down: 7 → 3 needs 3 → 7
        layers += [Residual(channels, config.norm) for _ in range(config.residual)]
        layers.append(
            nn.ConvTranspose2d(
                channels, out, kernel_size=4, stride=2, padding=1, output_padding=odd
            )
        )
        if i:  # the last activation depends on the likelihood, see VAE.activate
            layers += activation(out, config.norm)
    return layers


def conv_encoder(config: Config, channels: int) -> nn.Sequential:
    """The assignment's encoder: three strided 4x4 convolutions at 32x32, then mu and logvar.

    x (N, channels, H, W) → mu, logvar (N, D).
    """
    features = feature_channels(config) * grid_sizes(config)[-1] ** 2
    return nn.Sequential(
        *conv_down(config, channels),  # (N, 128, 4, 4)
        nn.Flatten(),  # (N, 2048)
        LatentHeads(features, config.latent_dim),  # (N, D) twice
    )


def conv_decoder(config: Config, inputs: int) -> nn.Sequential:
    """The mirror image: a linear layer, then transposed convolutions. z (N, inputs) → x_raw."""
    channels, size = feature_channels(config), grid_sizes(config)[-1]
    return nn.Sequential(
        nn.Linear(inputs, channels * size**2),  # (N, 2048)
        nn.Unflatten(1, (channels, size, size)),  # (N, 128, 4, 4)
        *activation(channels, config.norm),
        *conv_up(config),  # (N, C, 32, 32)
    )


def linear_layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers between these sizes, a ReLU after each."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers


def hidden_sizes(config: Config) -> list[int]:
    """Units of the hidden layers of a fully connected encoder: 512, 256, …"""
    return [config.width >> i for i in range(config.depth)]


def fc_encoder(config: Config, channels: int) -> nn.Sequential:
    """The image as one long vector, through hidden layers that narrow by half.

    x (N, channels, H, W) → mu, logvar (N, D).
    """
    sizes = [channels * config.image_size**2, *hidden_sizes(config)]
    return nn.Sequential(
        nn.Flatten(),  # (N, 3072)
        *linear_layers(sizes),  # (N, width / 2), with two hidden layers
        LatentHeads(sizes[-1], config.latent_dim),  # (N, D) twice
    )


def fc_decoder(config: Config, inputs: int) -> nn.Sequential:
    """The mirror image: z (N, inputs) → x_raw (N, C, H, W)."""
    shape = (config.channels, config.image_size, config.image_size)
    sizes = [inputs, *reversed(hidden_sizes(config)), math.prod(shape)]
    without_last_relu = linear_layers(sizes)[:-1]
    return nn.Sequential(*without_last_relu, nn.Unflatten(1, shape))


ENCODERS = {"conv": conv_encoder, "fc": fc_encoder}
DECODERS = {"conv": conv_decoder, "fc": fc_decoder}


class Output(NamedTuple):
    """What a forward pass gives."""

    x_raw: Tensor  # (N, C, H, W), the decoder before its last activation
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    z: Tensor  # (N, D)
    indices: Tensor | None = None  # (N, h * w), of a vq_vae: which code stands at each place
    condition: Tensor | None = None  # (N, A), what a learned prior is given


class VAE(nn.Module):
    """Encoder q(z|x) = N(mu, diag sigma^2) and decoder p(x|z), Kingma & Welling 2014.

    Another model overrides what it does differently: these five attributes, defaults and
    choices_for (its config), make_encoder, make_decoder and latent_size (its networks), condition,
    encode, decode_raw and forward (its pass), stages and begin_stage (its training), rate_nats and
    penalty (its loss), draw_codes and describe_codes (its codes). See support/family.py,
    support/grid_vae.py and support/vector_quantised.py.
    """

    sampled = True  # z ~ q(z|x); else the code is the point mu, which has no KL
    has_rate = True  # a code costs nats, see rate_nats
    conditional = False  # encoder and decoder are given a label
    learned_prior = False  # codes come from a prior that the model learned, not from N(0, I)
    discrete = False  # codes come from a codebook

    @classmethod
    def defaults(cls, config: Config) -> dict[str, object]:
        """Values of this model for fields of the config that were not given."""
        return {}

    @classmethod
    def choices_for(cls, data: ImageData) -> dict[str, object]:
        """Fields of the config that follow from the data, for this model."""
        return {}

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = self.make_encoder()
        self.decoder = self.make_decoder()
        # Of a gaussian p(x|z), on [0, 1]: fit sets it, see calibrate. No other likelihood has one.
        sigma = torch.tensor(0.1) if config.likelihood == "gaussian" else None
        self.register_buffer("sigma", sigma)

    def make_encoder(self) -> nn.Module:
        return ENCODERS[self.config.arch](self.config, self.config.channels)

    def make_decoder(self) -> nn.Module:
        return DECODERS[self.config.arch](self.config, self.config.latent_dim)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def latent_size(self) -> int:
        """Numbers in one z."""
        return self.config.latent_dim

    def condition(self, labels: Tensor | None) -> Tensor | None:
        """Labels as encoder and decoder take them, (N, A); None where the model takes none."""
        return None

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) in config.value_range → mu, logvar, each (N, D)."""
        return self.encoder(x)

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D) → x_raw (N, C, H, W), before the last activation."""
        return self.decoder(z).float()

    def activate(self, x_raw: Tensor) -> Tensor:
        """The decoder's last activation: x_raw → x_hat in config.value_range."""
        squared_error = self.config.likelihood == "squared_error"
        return torch.tanh(x_raw) if squared_error else torch.sigmoid(x_raw)

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D) → x_hat (N, C, H, W) in config.value_range: the mean of p(x|z)."""
        return self.activate(self.decode_raw(z, condition))

    def forward(
        self,
        x: Tensor,
        noise: torch.Generator | Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Output:
        mu, logvar = self.encode(x, condition)
        z = reparameterize(mu, logvar, noise) if self.sampled else mu
        return Output(self.decode_raw(z, condition), mu, logvar, z)

    def stages(self) -> list[Config]:
        """The config of each stage of training, one after the other: epochs, lr, schedule."""
        return [self.config]

    def begin_stage(self, number: int) -> None:
        """Called before each stage."""

    def rate_nats(self, out: Output) -> Tensor:
        """The price of each image's code, (N,) nats: its KL, or 0 for an autoencoder's point."""
        return kl_nats(out.mu, out.logvar) if self.sampled else torch.zeros_like(out.mu[:, 0])

    def penalty(self, out: Output, noise: torch.Generator | None = None) -> Tensor:
        """What training adds to reconstruction + beta * KL: nothing, ()."""
        return out.z.new_zeros(())

    def draw_codes(
        self, n: int, *, condition: Tensor | None = None, seed: int = 0, **region
    ) -> Tensor:
        """n codes (n, D) of the prior, or of another region: see sample_latents."""
        return sample_latents(n, self.latent_size, seed=seed, **region)

    def describe_codes(self, mu: Tensor) -> dict[str, float]:
        """What evaluate reports about the codes mu (N, D) of many images."""
        return {"active_dims": int((mu.var(0, unbiased=False) > ACTIVE_THRESHOLD).sum())}


class BetaVAE(VAE):
    """The same model with a heavier KL, 4 when beta is not given (Higgins et al. 2017)."""

    @classmethod
    def defaults(cls, config: Config) -> dict[str, object]:
        return {"beta": 4.0}


MODELS |= {"vae": VAE, "beta_vae": BetaVAE}


def build_model(config: Config) -> VAE:
    """The model of a config, its weights drawn from config.seed, on get_device()."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config)
    return model.to(get_device(), memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses                                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


def reconstruction_nats(
    x_raw: Tensor, x: Tensor, likelihood: str, sigma: Tensor | float | None = None
) -> Tensor:
    """-log p(x|z) of each image, summed over its pixels: (N, C, H, W) twice → (N,) nats.

    bernoulli      binary cross-entropy, x_raw are logits, x in [0, 1] (Kingma & Welling 2014,
                   appendix C.1). For grey values it is no likelihood of them, and it has a floor
                   above 0: see bce_floor_nats.
    squared_error  ||x - tanh(x_raw)||^2, x in [-1, 1]: a Gaussian of variance 1/2, its constant
                   left out.
    gaussian       -log N(x; sigmoid(x_raw), sigma^2 I), x in [0, 1]: of a density, so it can be
                   below 0. Without a sigma, the best one for this batch: sigma^2 = its mean
                   squared error (Rybkin et al. 2021, section 3.2).
    """
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(x_raw, x, reduction="none").flatten(1).sum(1)
    if likelihood == "squared_error":
        return (torch.tanh(x_raw) - x).square().flatten(1).sum(1)
    squared = (torch.sigmoid(x_raw) - x).square().flatten(1)
    if sigma is None:
        # The loss is flat in sigma at its best value, so no gradient needs to pass through it.
        variance = squared.mean().detach().clamp(min=1e-8)
    else:
        variance = torch.as_tensor(sigma, device=x.device).square()
    constant = squared.shape[1] * torch.log(2 * math.pi * variance)
    return 0.5 * (squared.sum(1) / variance + constant)


def kl_nats_per_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every dimension: (N, D) → (N, D) nats.

    Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def kl_nats(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each image, summed over dimensions: (N, D) → (N,) nats."""
    return kl_nats_per_dim(mu, logvar).sum(-1)


def bce_floor_nats(x: Tensor) -> Tensor:
    """The least binary cross-entropy that any x_hat can reach on x in [0, 1]: → (N,) nats.

    -x log x_hat - (1-x) log(1-x_hat) is smallest at x_hat = x, where it is the entropy of a coin
    with bias x: 0 for black and white, log 2 for mid-grey. What a model has above this floor is
    what it can still improve.
    """
    return (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Training                                                                                   ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


class TrainingDiverged(VAEError):
    """The loss is no longer a finite number."""


def fit(
    model: VAE,
    data: ImageData,
    config: Config,
    *,
    progress: bool = True,
    on_epoch: Callable[[list[dict]], None] | None = None,
    save: Callable[[list[dict], dict], None] | None = None,
    start: tuple[list[dict], dict] | None = None,
) -> list[dict]:
    """Minimise reconstruction + beta * KL + penalty with Adam; returns the history.

    A model with a learned prior trains in stages (see VAE.stages), each with an optimiser. The
    last stage ends early when validation no longer falls, see config.patience.

    The history has one dict for each epoch. Every loss is in nats per image; KL is the price of
    the code (model.rate_nats), and total leaves the penalty out. train_* are means over the epoch
    while the weights still move; val_* are measured after it with the same beta. With config.ema,
    validation, save, on_epoch and the caller see the averaged weights.

    save       called after every epoch with the history and the state, which is all that start
               needs to go on from there, on a CPU to the same last bit
    on_epoch   called after save, with the history so far
    start      what save was given in a run that was cut off

    Raises TrainingDiverged when the loss is not finite.
    """
    rank, _ = processes()
    images = keep_on_device(data.train.images, model.device)
    conditions = model.condition(data.train.labels)
    history, saved = start or ([], None)
    resumed_seconds = history[-1]["seconds"] if history else 0.0
    began = time.perf_counter() - resumed_seconds
    stages = model.stages()
    last_epochs = list(itertools.accumulate(stage.epochs for stage in stages))
    for number, (stage, last) in enumerate(zip(stages, last_epochs)):
        if len(history) >= last and stage is not stages[-1]:
            continue  # it was finished before the run was cut off
        model.begin_stage(number)
        steps_per_epoch = len(shuffled_batches(len(images), stage, torch.Generator()))
        state = TrainingState(model, stage, stage.epochs * steps_per_epoch)
        if saved:
            history = state.restore(history, saved, epochs_done=len(history) - last + stage.epochs)
            saved = None
        patience = config.patience if stage is stages[-1] else None
        while len(history) < last and should_continue(history[last - stage.epochs :], patience):
            epoch = len(history) + 1
            state.swap_average()  # the weights that learn
            losses = train_epoch(state, images, conditions, epoch, progress and rank == 0)
            state.swap_average()  # their average, which counts
            if next(model.decoder.parameters()).requires_grad:  # else nothing has changed
                calibrate(model, data.train)
            losses |= validate(model, data.val)
            losses |= totals(losses, config.beta)
            stop_if_diverged(losses.values(), stage, f"after epoch {epoch}")
            seconds = time.perf_counter() - began
            history.append({"epoch": epoch, "seconds": seconds} | losses)
            if save and rank == 0:
                save(history, state.state_dict())
            if on_epoch and rank == 0:
                on_epoch(history)
    model.eval()
    return history


def train_epoch(
    state: TrainingState, images: Tensor, conditions: Tensor | None, epoch: int, progress: bool
) -> dict[str, float]:
    """One pass over the training images: batches → forward → losses → step → means, in nats."""
    model, config, device = state.model.train(), state.config, state.model.device
    dtype = precision(device)
    batches = shuffled_batches(len(images), config, state.order_rng)
    sums, seen = torch.zeros(3, device=device), 0
    name = f"epoch {epoch}/{model.config.all_epochs}"
    bar = progress_bar(batches, desc=name, hidden=not progress)
    for step, indices in enumerate(bar):
        batch, condition = state.batch(images, conditions, indices)
        x = to_input(batch, config)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = state.network(x, state.noise_rng, condition)
        reconstruction = reconstruction_nats(out.x_raw, x, config.likelihood).mean()
        kl = model.rate_nats(out).mean()
        penalty = model.penalty(out, state.noise_rng)
        beta = kl_weight(config, epoch - 1 + step / len(batches))
        state.step(reconstruction + beta * kl + penalty, share=len(x) / len(indices))
        sums += torch.stack([reconstruction, kl, penalty]).detach() * len(x)
        seen += len(x)
        if step % 20 == 0 or step == len(batches) - 1:  # tolist waits for the device
            means = (sums / seen).tolist()
            stop_if_diverged(means, config, f"in epoch {epoch}, step {step + 1} of {len(batches)}")
            bar.set_postfix(reconstruction=f"{means[0]:.1f}", kl=f"{means[1]:.1f}")
    means = (all_reduce(sums) / len(images)).tolist()
    return dict(zip(("train_reconstruction_nats", "train_kl_nats", "train_penalty"), means))


def validate(model: VAE, split: Split) -> dict[str, float]:
    """The two losses after an epoch, means over the validation images in nats."""
    reconstruction, kl = image_losses(model, *split)
    return {
        "val_reconstruction_nats": reconstruction.mean().item(),
        "val_kl_nats": kl.mean().item(),
    }


def totals(losses: dict[str, float], beta: float) -> dict[str, float]:
    """reconstruction + beta * KL of the training images and of the validation images."""
    return {
        f"{split}_total_nats": losses[f"{split}_reconstruction_nats"]
        + beta * losses[f"{split}_kl_nats"]
        for split in ("train", "val")
    }


def should_continue(history: list[dict], patience: int | None) -> bool:
    """Whether one of the last `patience` epochs has the least validation loss (Prechelt 1998)."""
    if not history or not patience:
        return True
    losses = [row["val_total_nats"] for row in history]
    return len(losses) - 1 - losses.index(min(losses)) < patience


def kl_weight(config: Config, epochs_done: float) -> float:
    """The weight of the KL after so many epochs: config.beta, or on the way up to it."""
    if not config.kl_warmup:
        return config.beta
    return config.beta * min(1.0, epochs_done / config.kl_warmup)


def shuffled_batches(n: int, config: Config, generator: torch.Generator) -> list[Tensor]:
    """The indices of n images in random order, in batches.

    Too few at the end join the batch before: each process needs one, and one image has no
    variance to normalise by, and no MMD.
    """
    batches = list(torch.randperm(n, generator=generator).split(config.batch_size))
    least = 2 if config.norm == "batch" or config.mmd else 1
    if len(batches) > 1 and len(batches[-1]) < least * processes()[1]:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def stop_if_diverged(losses: Iterable[float], config: Config, when: str) -> None:
    """Raise TrainingDiverged when one of the losses is not finite."""
    if all(map(math.isfinite, losses)):
        return
    raise TrainingDiverged(
        f"The loss stopped being a finite number {when}, with lr {config.lr:g}: try a smaller lr, "
        "norm batch, a smaller mmd, or kl_warmup."
    )


def calibrate(model: VAE, split: Split, n: int = 5000) -> None:
    """Set sigma of a gaussian decoder to its best value on the first n images of a split.

    That is the root mean squared error of x_hat(z).
    """
    if model.sigma is None:
        return
    images, labels = (tensor[:n] for tensor in split)
    squared = 0.0
    for x, out in forward_passes(model, images, labels):
        squared += (torch.sigmoid(out.x_raw) - x).square().sum().item()
    model.sigma.fill_(math.sqrt(max(squared / images.numel(), 1e-8)))


# ── Evaluation ──

ACTIVE_THRESHOLD = 0.01  # variance of mu above which a dimension is active (Burda et al. 2016)
EVALUATION_BATCH = 500  # images at a time without gradients: busy cores, little memory


def batches(
    model: VAE, rows: Tensor, condition: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows and their conditions on the model's device, 500 at a time, in evaluation mode.

    Raises VAEError unless there is one condition for each row.
    """
    if condition is not None and len(condition) != len(rows):
        raise VAEError(f"{len(condition)} labels do not fit {len(rows)} images: give one for each.")
    model.eval()
    for first in range(0, len(rows), EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        given = None if condition is None else condition[part].to(model.device)
        yield rows[part].to(model.device), given


def forward_passes(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> Iterator[tuple[Tensor, Output]]:
    """x and the Output of uint8 images (N, C, H, W), 500 at a time, without gradients.

    One seeded sample of z for each image; a conditional model wants labels.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    for part, given in batches(model, images, model.condition(labels)):
        x = to_input(part, model.config)
        with torch.no_grad():
            out = model(x, generator, given)
        yield x, out


def image_losses(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Reconstruction and price of the code of each uint8 image: two (N,) in nats, float64."""
    reconstructions, prices = [], []
    for x, out in forward_passes(model, images, labels, seed=seed):
        with torch.no_grad():
            nats = reconstruction_nats(out.x_raw, x, model.config.likelihood, model.sigma)
            reconstructions.append(nats.cpu())  # MPS has no float64
            prices.append(model.rate_nats(out).cpu())
    return torch.cat(reconstructions).double(), torch.cat(prices).double()


def evaluate(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> dict[str, float]:
    """The numbers of a model on uint8 images (N, C, H, W); units in the keys.

    reconstruction_nats, kl_nats   means over the images, one seeded sample of z each: distortion
                       and rate (the price of the code)
    total_nats         their sum, the negative ELBO, whatever beta the model was trained with
    total_nats_se      its standard error: the spread over images / the root of their number
    floor_nats, excess_nats        (bernoulli) bce_floor_nats of the images, and total above it
    mse                mean squared error of x_hat(mu) per pixel and channel, on [0, 1]
    active_dims        latent dimensions whose mu varies over the images (Burda et al. 2016, 5.2)
    codes_used, perplexity         (vq_vae) how many codes occur, and exp of their entropy
    images             how many images were measured
    """
    mu, _ = encode_images(model, images, labels)
    reconstruction, kl = image_losses(model, images, labels, seed=seed)
    squared = floor = 0.0
    for first in range(0, len(images), EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        unit = as_unit(images[part])
        x_hat = decode_images(model, mu[part], None if labels is None else labels[part])
        squared += (x_hat - unit).square().sum().item()
        floor += bce_floor_nats(unit).sum().item()
    metrics = {
        "reconstruction_nats": reconstruction.mean().item(),
        "kl_nats": kl.mean().item(),
        "total_nats": (reconstruction + kl).mean().item(),
        "total_nats_se": standard_error(reconstruction + kl),
    }
    if model.config.likelihood == "bernoulli":
        metrics["floor_nats"] = floor / len(images)
        metrics["excess_nats"] = metrics["total_nats"] - floor / len(images)
    metrics |= model.describe_codes(mu)
    return metrics | {"mse": squared / images.numel(), "images": len(images)}


def standard_error(values: Tensor) -> float:
    """Of a mean over (N,) independent values; 0 for a single one, whose spread is not known."""
    return (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0


# ── Checkpoints: model.safetensors and model.json in a run folder ──


def save_checkpoint(
    model: VAE, folder: str | os.PathLike, record: dict | None = None, *, half: bool = False
) -> Path:
    """Write model.safetensors and model.json (the config and `record`); half: 16-bit weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in model.state_dict().items():
        # A codebook stays as it is: rounding could make another code the nearest.
        rounded = value.half() if half and not name.startswith("codebook.") else value
        weights[name] = rounded.contiguous().cpu()
    content = safetensors.torch.save(weights)
    write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(content))
    config = dataclasses.asdict(model.config)
    record = {"config": config} | (record or {}) | {"weights_sha256": digest(weights)}
    write_json(folder / "model.json", record)
    return folder


def read_record(folder: str | os.PathLike) -> tuple[Config, dict]:
    """The config and the whole record of a finished run. Raises CheckpointError."""
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise CheckpointError(f"There is no finished run in {folder}: name a folder of train.py.")
    with refused_if_unreadable(path):
        record = json.loads(path.read_text())
        if record["config"]["model"] in MODELS:
            return Config.of_record(record["config"]), record
    raise CheckpointError(f"{path} holds another model than a VAE: import support.runs first.")


def load_checkpoint(folder: str | os.PathLike) -> tuple[VAE, dict]:
    """The model in a run folder, on get_device() and ready to use, and its record.

    Raises CheckpointError when a file is missing, damaged, or of another run.
    """
    config, record = read_record(folder)
    path = Path(folder) / "model.safetensors"
    with refused_if_unreadable(path):
        weights = safetensors.torch.load_file(path)
        if record.get("weights_sha256", "") not in ("", digest(weights)):
            raise ValueError("its checksum is not the one in model.json")
        model = build_model(config)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval(), record


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Latent space                                                                               ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


def encode_images(
    model: VAE, images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), uint8 or float in [0, 1] → mu, logvar (N, D) on the CPU.

    A conditional model wants the labels. Raises VAEError on images or labels that do not fit.
    """
    c = model.config
    shape = (c.channels, c.image_size, c.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise VAEError(
            f"This model takes images of shape (N, {', '.join(map(str, shape))}), not "
            f"{tuple(images.shape)}: resize them first."
        )

    mu, logvar = [], []
    with torch.no_grad():
        for part, given in batches(model, images, model.condition(labels)):
            mean, log_variance = model.encode(to_input(part, c), given)
            mu.append(mean)
            logvar.append(log_variance)
    return torch.cat(mu).cpu(), torch.cat(logvar).cpu()


def decode_images(model: VAE, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """z (..., D) → float images in [0, 1], (..., C, H, W), on the CPU: the means of p(x|z).

    A conditional model wants labels (N,) or (N, A): one for each z (..., N, D), or one for all.
    """
    if z.shape[-1] != model.latent_size:
        raise VAEError(
            f"This model decodes latents (..., {model.latent_size}), not {tuple(z.shape)}."
        )
    codes, condition = z.reshape(-1, z.shape[-1]), model.condition(labels)
    if condition is not None and (len(condition) == 1 or z.shape[-2:-1] == condition.shape[:1]):
        condition = condition.repeat(len(codes) // len(condition), 1)
    images = []
    with torch.no_grad():
        for part, given in batches(model, codes, condition):
            images.append(to_unit(model.decode(part, given), model.config))
    x_hat = torch.cat(images).cpu()
    return x_hat.reshape(*z.shape[:-1], *x_hat.shape[1:])


def sample_codes(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """One z ~ q(z|x) for each image, (N, D); mu itself where the code is a point."""
    mu, logvar = encode_images(model, images, labels)
    return reparameterize(mu, logvar, torch.Generator().manual_seed(seed)) if model.sampled else mu


# ── Interpolation ──


def slerp(z_a: Tensor, z_b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation at constant angular speed: (..., D), (..., D), t → (..., D).

    Shoemake 1985; for latents White 2016, arXiv:1609.04468. Where the two are (anti)parallel no
    arc is defined and the line is taken.
    """
    cosine = F.cosine_similarity(z_a, z_b, dim=-1).clamp(-1, 1)[..., None]
    omega = torch.arccos(cosine)
    sine = torch.sin(omega)
    arc = (torch.sin((1 - t) * omega) * z_a + torch.sin(t * omega) * z_b) / sine
    return torch.where(sine > 1e-4, arc, torch.lerp(z_a, z_b, t))


INTERPOLATIONS = {"linear": torch.lerp, "spherical": slerp}


def interpolate_latents(z_a: Tensor, z_b: Tensor, num: int, method: str = "linear") -> Tensor:
    """num latents from z_a to z_b, both ends included: (..., D) twice → (num, ..., D).

    Raises VAEError for fewer than 2, or an unknown method.
    """
    if method not in INTERPOLATIONS:
        raise VAEError(f"method must be {' or '.join(INTERPOLATIONS)}, not {method!r}.")
    if num < 2:
        raise VAEError(f"A walk has at least 2 images, its two ends, not {num}.")
    t = torch.linspace(0, 1, num).reshape(-1, *[1] * z_a.ndim)
    path = INTERPOLATIONS[method](z_a[None], z_b[None], t)
    path[0], path[-1] = z_a, z_b  # exact ends, free of rounding
    return path


def interpolate_images(
    model: VAE,
    image_a: Tensor,
    image_b: Tensor,
    num_interpolations: int = 10,
    method: str = "linear",
    labels: Tensor | None = None,
) -> Tensor:
    """Morph one image into another through the latent space.

    Encodes both, walks from mu_a to mu_b (means, never noisy samples) and decodes every step. A
    vq_vae decodes the nearest codes of each step, so that its images change in small jumps.

    image_a, image_b      (C, H, W), uint8 or float in [0, 1], of the model's size
    num_interpolations    images on the way, both reconstructed ends included, at least 2
    method                "linear" or "spherical"
    labels                of the two images, for a conditional model: it is given a mixture of
                          both on the way
    returns float (num_interpolations, C, H, W) in [0, 1]; raises VAEError on wrong input
    """
    ends = model.condition(labels)
    if ends is not None and len(ends) != 2:
        raise VAEError(f"Give two labels, one for each image, not {len(ends)}.")
    mu_a, _ = encode_images(model, image_a[None], None if ends is None else ends[:1])
    mu_b, _ = encode_images(model, image_b[None], None if ends is None else ends[1:])
    path = interpolate_latents(mu_a[0], mu_b[0], num_interpolations, method)
    if ends is not None:
        ends = interpolate_latents(ends[0], ends[1], num_interpolations)
    return decode_images(model, path, ends)


def cross_fade(image_a: Tensor, image_b: Tensor, num: int) -> Tensor:
    """The same walk in pixels, without a model: (C, H, W) twice → float (num, C, H, W)."""
    return interpolate_latents(as_unit(image_a), as_unit(image_b), num)


def interpolate_corners(model: VAE, corners: Tensor, num: int = 7) -> Tensor:
    """A square of images between four: corners (4, C, H, W), row by row → (num, num, C, H, W)."""
    mu, _ = encode_images(model, corners)
    top_left, top_right, bottom_left, bottom_right = mu
    left = interpolate_latents(top_left, bottom_left, num)
    right = interpolate_latents(top_right, bottom_right, num)
    return decode_images(model, interpolate_latents(left, right, num).transpose(0, 1))


# ── Sampling ──


def sample_latents(
    n: int,
    latent_dim: int,
    *,
    z_range: tuple[float, float] | None = None,
    radius: float | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Latents (n, D) from a region: the prior N(0, temperature^2 I), a box, or a shell.

    z_range   every coordinate uniform between the two values: the assignment's (-2, 2)
    radius    uniform on the sphere ||z|| = radius
    Raises VAEError when two of the three are given, z_range is not (low, high), or one of the
    others is negative.
    """
    generator = torch.Generator().manual_seed(seed)
    given = [z_range is not None, radius is not None, temperature != 1]
    if sum(given) > 1:
        raise VAEError("Give one of z_range, radius and temperature, not two.")
    if z_range is not None:
        if len(z_range) != 2 or not -math.inf < z_range[0] < z_range[1] < math.inf:
            raise VAEError(f"z_range must be two numbers, the lower first, not {z_range}.")
        low, high = z_range
        return torch.rand(n, latent_dim, generator=generator) * (high - low) + low
    factor = temperature if radius is None else radius
    if not 0 <= factor < math.inf:
        raise VAEError(f"radius and temperature must be 0 or more, not {factor}.")
    z = torch.randn(n, latent_dim, generator=generator)
    return F.normalize(z, dim=1) * radius if radius is not None else z * temperature


def sample_images(model: VAE, n: int, labels: Tensor | None = None, **region) -> Tensor:
    """Decode n codes of a region (see sample_latents) → float (n, C, H, W) in [0, 1].

    A conditional model wants n labels. A model with a learned prior can be given them, and 0.5
    leaves one open; in place of a region it takes seed, temperature and (vq_vae) top_k.
    """
    z = model.draw_codes(n, condition=model.condition(labels), **region)
    return decode_images(model, z, labels)


# ── Where the codes lie, and what directions mean ──


class AggregatePosterior(NamedTuple):
    """q(z) = E_x q(z|x), where the codes of real images lie."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    kl_nats: Tensor  # (D,), mean KL(q(z|x) || N(0, 1)) of each dimension
    mu: Tensor  # (N, D)
    z: Tensor  # (N, D), one sample for each image; where the code is a point, mu

    @property
    def norms(self) -> Tensor:
        """||z||, (N,)."""
        return self.z.norm(dim=1)


def aggregate_posterior(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> AggregatePosterior:
    """Where the encoder puts real images. The variance is Var(mu) + E(sigma^2)."""
    mu, logvar = encode_images(model, images, labels)
    mean, variance = mu.mean(0), mu.var(0, unbiased=False)
    if not model.sampled:  # its codes are points
        return AggregatePosterior(mean, mu.std(0, unbiased=False), torch.zeros_like(mean), mu, mu)
    z = reparameterize(mu, logvar, torch.Generator().manual_seed(seed))
    std = (variance + logvar.exp().mean(0)).sqrt()
    return AggregatePosterior(mean, std, kl_nats_per_dim(mu, logvar).mean(0), mu, z)


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the pixel values of each image: (..., C, H, W) in [0, 1] → (...)."""
    return as_unit(images).flatten(-3).std(-1, unbiased=False)


def traverse(
    model: VAE,
    z: Tensor,
    dims: Sequence[int],
    values: Sequence[float],
    labels: Tensor | None = None,
) -> Tensor:
    """Images of z (D,) with one dimension at a time set to each value.

    Returns float (len(dims), len(values), C, H, W). A conditional model wants one label, (1,) or
    (1, A).
    """
    grid = z.repeat(len(dims), len(values), 1)
    for row, dim in enumerate(dims):
        grid[row, :, dim] = torch.as_tensor(values, dtype=z.dtype)
    return decode_images(model, grid, labels)


def attribute_direction(mu: Tensor, has_attribute: Tensor) -> Tensor:
    """Mean latent with an attribute minus mean latent without it: (N, D), (N,) → (D,).

    Larsen et al. 2016. Raises VAEError when all images have it, or none.
    """
    has_attribute = has_attribute.bool()
    if has_attribute.all() or not has_attribute.any():
        raise VAEError(
            "An attribute direction needs images with the attribute and images without it."
        )
    return mu[has_attribute].mean(0) - mu[~has_attribute].mean(0)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Plots                                                                                      ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


def image_grid(images: Tensor, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """Images (N, C, H, W), uint8 or float in [0, 1] → one picture, uint8 (height, width, 3)."""
    make_grid = import_torchvision().utils.make_grid
    columns = columns or len(images)
    grid = make_grid(as_unit(images).cpu(), nrow=columns, padding=pad, pad_value=1.0)
    pixels = (grid.clamp(0, 1) * 255).round().byte()
    return pixels.permute(1, 2, 0).numpy()  # (3, H, W) → (H, W, 3)


def plot_rows(
    rows: dict[str, Tensor], title: str, column_labels: Sequence[str] = (), cell: float = 0.72
) -> Figure:
    """One named strip of images (n, C, H, W) per entry; cell: inches of one image, at least."""
    strips = {}
    for name, images in rows.items():
        strips[name] = (image_grid(images), enlargement(images, cell))
    fig = place_pictures(strips, title, column_labels)
    if len(column_labels):
        width = next(iter(rows.values())).shape[-1] + 2
        centres = [width * i + width / 2 for i in range(len(column_labels))]
        first = fig.axes[0]
        first.set_xticks(centres, column_labels)
        first.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return fig


def plot_grid(
    images: Tensor, title: str, columns: int = 8, cell: float = 0.72, edge: float = 0
) -> Figure:
    """Images (N, C, H, W) as one grid; cell: inches of one image, at least.

    edge: inches that stay free on the left and below, for the labels of axes.
    """
    grid = image_grid(images, min(columns, len(images)))
    return place_pictures({"": (grid, enlargement(images, cell))}, title, edge=edge)


def animate(frames: Tensor, cell: float = 1.28, seconds: float = 0.1) -> bytes:
    """An animated GIF of frames (T, n, C, H, W), n images side by side: there, a rest, and back."""
    factor = enlargement(frames, cell)
    pictures = []
    for images in frames:
        pixels = image_grid(images).repeat(factor, axis=0).repeat(factor, axis=1)
        pictures.append(Image.fromarray(pixels))
    rest = round(0.6 / seconds)
    forth = pictures + pictures[-1:] * rest
    back = pictures[::-1] + pictures[:1] * rest
    first, *others = forth + back
    file = io.BytesIO()
    timing = {"duration": round(1000 * seconds), "loop": 0}
    first.save(file, "GIF", save_all=True, append_images=others, **timing)
    return file.getvalue()


def plot_history(histories: dict[str, list[dict]], title: str) -> Figure:
    """Reconstruction, KL and their weighted sum over the epochs.

    The axes fit what comes after the first epoch, which is often far off.
    """
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for ax, part in zip(axes, ("reconstruction", "kl", "total")):
        later = []
        for number, (label, history) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in history]
            style = {"color": f"C{number}", "marker": "o" if len(epochs) == 1 else None}
            validation = [row[f"val_{part}_nats"] for row in history]
            training = [row[f"train_{part}_nats"] for row in history]
            ax.plot(epochs, validation, label=label, **style)
            ax.plot(epochs, training, ls="--", lw=1, **style)
            later += validation[1:] + training[1:]
        ax.set_xlim(0.5, max(len(history) for history in histories.values()) + 0.5)
        if later:
            room = 0.08 * (max(later) - min(later)) or 1
            ax.set_ylim(min(later) - room, max(later) + room)
    for ax, name in zip(axes, ("reconstruction", "KL", "reconstruction + β·KL")):
        ax.set(xlabel="epoch", title=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("nats per image")
    names = axes[0].get_legend_handles_labels()
    fig.legend(*names, loc="outside right upper", title="solid: validation\ndashed: training")
    fig.suptitle(title, **LEFT)
    return fig


def plot_reconstructions(models: dict[str, VAE], images: Tensor, title: str) -> Figure:
    """Originals over each model's x_hat(mu)."""
    rows = {"original": images}
    for name, model in models.items():
        mu, _ = encode_images(model, images)
        rows[name] = decode_images(model, mu)
    return plot_rows(rows, title)


def plot_samples(models: dict[str, VAE], z: Tensor, title: str) -> Figure:
    """What each model decodes from the same latents (n, D)."""
    return plot_rows({name: decode_images(model, z) for name, model in models.items()}, title)


def display_interpolated_images(
    images: Tensor | dict[str, Tensor],
    originals: tuple[Tensor, Tensor] | None = None,
    title: str = "Interpolation in latent space",
) -> Figure:
    """Show what interpolate_images gave, or several such strips by name.

    images      (num, C, H, W) in [0, 1], or a dict of them
    originals   the two images (C, H, W) that were handed in: shown at the ends
    """
    rows = images if isinstance(images, dict) else {"": images}
    num = len(next(iter(rows.values())))
    labels = [f"{t:.2f}".rstrip("0").rstrip(".") for t in np.linspace(0, 1, num)]
    if originals is not None:
        a, b = as_unit(originals[0]), as_unit(originals[1])
        rows = {name: torch.cat([a[None], strip, b[None]]) for name, strip in rows.items()}
        labels = ["original", *labels, "original"]
    return plot_rows(rows, title, labels)


def plot_curves(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    xlabel: str,
    ylabel: str,
    reference: dict[str, float] | None = None,
) -> Figure:
    """Named curves (xs, ys) of what is never negative, with named lines for comparison."""
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, (xs, ys) in curves.items():
        ax.plot(xs, ys, marker=".", label=name)
    for name, value in (reference or {}).items():
        ax.axhline(value, color="grey", ls=":", lw=1.5, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(y=0.15)
    ax.set_ylim(bottom=max(0, ax.get_ylim()[0]))  # what is shown here is never negative
    if len(curves) > 1 or reference:
        fig.legend(loc="outside right center")  # beside the curves, so that it covers none
    fig.suptitle(title, **LEFT)
    return fig


def plot_along_path(
    curves: dict[str, Tensor],
    title: str,
    ylabel: str,
    reference: dict[str, float] | None = None,
    steps: bool = False,
) -> Figure:
    """One number per position t on the way from 0 to 1, or per step between two positions."""
    placed = {}
    for name, values in curves.items():
        n = len(values)
        placed[name] = ((np.arange(n) + 0.5) / n if steps else np.linspace(0, 1, n), values)
    return plot_curves(placed, title, "t, from one end (0) to the other (1)", ylabel, reference)


def plot_aggregate_posterior(posterior: AggregatePosterior, title: str) -> Figure:
    """Where q(z) lies against N(0, I): each dimension's KL, mean and spread, and the norms."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    order = posterior.kl_nats.argsort(descending=True)
    dims = np.arange(len(order))
    axes[0].bar(dims, posterior.kl_nats[order].numpy(), width=1)
    axes[0].set(title="KL per dimension", ylabel="KL (nats)")
    axes[1].plot(dims, posterior.std[order], ".", label="standard deviation")
    axes[1].plot(dims, posterior.mean[order], ".", label="mean")
    axes[1].axhline(1, color="C0", ls=":")
    axes[1].axhline(0, color="C1", ls=":")
    axes[1].set(title="q(z) per dimension; dotted: N(0, 1)")
    axes[1].legend(loc="upper right")
    for ax in axes[:2]:
        ax.set_xlabel("dimension, sorted by KL")
    prior = sample_latents(4000, len(order)).norm(dim=1)
    filled = {"bins": 40, "density": True, "alpha": 0.5}
    axes[2].hist(prior, label="prior N(0, I)", **filled)
    axes[2].hist(posterior.norms, label="codes z ~ q(z|x)", **filled)
    norms = posterior.mu.norm(dim=1)
    axes[2].hist(norms, bins=40, density=True, histtype="step", color="k", label="means mu(x)")
    axes[2].set(title="distance from the origin", xlabel="norm", ylabel="density")
    axes[2].legend()
    fig.suptitle(title, **LEFT)
    return fig


def plot_rate_distortion(
    results: dict[str, dict[str, float]],
    title: str,
    others: dict[str, dict[str, float]] | None = None,
) -> Figure:
    """Rate (price of the code) against distortion (squared error) of models, named at their points.

    results   name → what evaluate gives; a line joins them in the order of their KL
    others    more models, not joined by the line
    """
    fig, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    points = sorted((r["kl_nats"], r["mse"], name) for name, r in results.items())
    rates, errors, _ = zip(*points)
    ax.plot(rates, errors, "o-", color="C0")
    for rate, error, name in points:
        ax.annotate(name, (rate, error), xytext=(8, 5), textcoords="offset points")
    for name, r in (others or {}).items():  # their names are below left, off the line
        point = (r["kl_nats"], r["mse"])
        ax.plot(*point, "s", color="C1")
        ax.annotate(name, point, xytext=(-8, -4), textcoords="offset points", ha="right")
    ax.set(xlabel="price of the code (nats per image)", ylabel="squared error of copies, on [0, 1]")
    ax.set(xscale="log")
    ax.margins(x=0.2, y=0.15)
    ax.set_ylim(bottom=0)
    fig.suptitle(title, **LEFT)
    return fig


# ── Tables ──


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same keys → a Markdown table, its first column left-aligned."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [columns, [":--"] + ["--:"] * (len(columns) - 1)]
    for row in rows:
        lines.append([str(row[column]) for column in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_sd(values: Sequence[float], digits: int = 1) -> str:
    """'mean ± sample standard deviation' of some seeds, or the bare value of a single one."""
    spread = f" ± {np.std(values, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"
