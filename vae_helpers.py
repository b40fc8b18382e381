"""Variational autoencoders on images: the model and plot code that the three notebooks share.

Read it from top to bottom; each section names only what stands above it. In a hurry, begin at
Networks.

    Config         one dataclass: every choice that a run makes
    Networks       encoders and decoders, convolutional and fully connected
    Losses         reconstruction and KL of each image, in nats
    Model          the VAE: how a code is drawn, and what joins networks and losses
    Training       one epoch, one loop; evaluation; checkpoints
    Latent space   encode, interpolate, sample regions, traverse, attribute directions
    Plots          one function per figure, each returns the matplotlib Figure

It imports from base/ (errors, files, settings, hardware, the look of figures, the state of a
training) and image_data/ (data sets). More models, measures, sliders and run folders are in
support/, which imports this module: nobody needs them to understand a VAE.

Conventions
    images      uint8 (N, C, H, W) in data sets; decode_images gives float in [0, 1]
    x           a batch as the network sees it: float in [0, 1], or in [-1, 1] (squared_error)
    mu, logvar  (N, D), the mean and the logarithm of the variance of q(z|x); D = latent_dim
    z           (N, D), a code
    x_raw       what the decoder gives before its last activation
    x_hat       the mean of p(x|z), in the shape and the range of x
    rate        the KL of a code, or what it costs under another prior; reconstruction is distortion
    condition   (N, A), what a conditional model is given in addition to the image
    nats        a loss of one image, summed over pixels or latent dimensions, never averaged
"""

from __future__ import annotations

import dataclasses
import io
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
from base.figure_style import (
    LEFT,
    enlargement,
    markdown_table,  # noqa: F401  notebooks: vae.markdown_table
    mean_and_sd,  # noqa: F401
    place_pictures,
)
from base.files import digest, refused_if_unreadable, write_atomically, write_json
from base.hardware import (
    all_reduce,
    autocast,
    get_device,
    gradient_weight,
    import_torchvision,
    own_share,
    processes,
)
from base.options import check_combinations, checked_value, env_flag, option, progress_bar
from base.training_state import TrainingState, keep_on_device
from image_data.load import DATASETS, load_dataset  # noqa: F401
from image_data.splits import ImageData, Split

# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Config                                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

# Name → class of every model. The VAE below is entered here, and so are those of support/ when
# they are imported.
MODELS: dict[str, type] = {}

LIKELIHOODS = ("bernoulli", "squared_error", "gaussian")
GRIDS = ("grid_vae", "vq_vae")
ON_CONV = {"arch": ("conv",)}


@dataclass(frozen=True)
class Config:
    """Every choice that a run makes.

    A field that is None was left out; `resolved` gives a copy in which it follows from the others,
    where it has a meaning for this model.
    On one machine's CPU, with the same precision and number of threads, equal configs on equal
    data give equal models. Raises VAEError for a value that a field cannot have.
    """

    # fmt: off
    dataset: str = option("cifar10", "which images to learn", choices=DATASETS)
    data_dir: str | None = option(
        None, "the folder, zip or tar with your images (for --dataset folder)")
    max_images: int | None = option(
        None, "train on at most this many images; all of them when not given")
    image_size: int | None = option(
        None, "height and width in pixels; the data set's own when not given", low=2, high=4096)
    channels: int = option(
        3, "1 for grey, 3 for RGB; follows from the data", choices=(1, 3))
    conditions: int = option(
        0, "classes or attributes that a cvae, or a learned prior, is given; follows from the "
        "data", low=0, only_with={"model": ("cvae", *GRIDS)})

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
        "or a 3x3 one and a 2x2 max-pooling", choices=("stride", "maxpool"), only_with=ON_CONV)
    norm: str = option(
        "none", "batch: batch normalisation before each activation inside a convolutional model",
        choices=("none", "batch"), only_with=ON_CONV)
    residual: int = option(
        0, "residual blocks at each size of the feature maps (conv)", low=0, high=100,
        only_with=ON_CONV)

    likelihood: str | None = option(
        None, "bernoulli: binary cross-entropy on [0, 1]; squared_error: ||x - x_hat||^2 on "
        "[-1, 1]; gaussian: on [0, 1] with the best single sigma; when not given, squared_error "
        "for celeba and for wae, bernoulli for the others", choices=LIKELIHOODS)
    beta: float | None = option(
        None, "weight of the KL term; when not given the model's own: 1 (the ELBO), beta_vae 4, "
        "info_vae 0", low=0, depends_on="model")
    mmd: float | None = option(
        None, "weight of the maximum mean discrepancy between q(z) and N(0, I); when not given "
        "the model's own: info_vae 1000, wae 10 (on celeba 100)", low=0,
        only_with={"model": ("info_vae", "wae")})
    codebook: int | None = option(
        None, "codes in the codebook of a vq_vae (512 when not given); each has latent_dim numbers",
        only_with={"model": ("vq_vae",)})
    prior_epochs: int | None = option(
        None, "epochs of the last stage, in which the prior of a grid_vae or vq_vae learns (when "
        "not given as many as before it; 0: none, its samples are noise)", low=0,
        only_with={"model": GRIDS})
    prior_width: int | None = option(
        None, "width of the transformer that is a learned prior (192 when not given)",
        only_with={"model": GRIDS})
    prior_dropout: float = option(
        0.0, "share of a learned prior's activations that each step leaves out while it learns; "
        "with few images 0.1 lets it learn longer", low=0, high=0.9, only_with={"model": GRIDS})
    global_dim: int | None = option(
        None, "numbers of a code of the whole image beside those of the places, which learns alone "
        "in the first third of the epochs (grid_vae; when not given 128, or the next smaller "
        "multiple of latent_dim, for images of 64 pixels or more, else none)", low=0,
        only_with={"model": ("grid_vae",)} | ON_CONV)
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
    lr: float = option(
        1e-3, "Adam's step size; with one_cycle, its largest", low=1e-12, depends_on="schedule")
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
            checked_value(f, getattr(self, f.name))

    def resolved(self) -> Config:
        """A copy in which every field that was left out has the value that follows from the others.

        Raises VAEError where choices contradict each other.
        """
        values = {f.name: checked_value(f, getattr(self, f.name)) for f in dataclasses.fields(self)}
        chosen = {name: value for name, value in values.items() if value is not None}
        size = self.image_size or DATASETS[self.dataset]
        conv, model = self.arch == "conv", MODELS[self.model]
        follows = {
            "image_size": size,
            "likelihood": "squared_error" if self.dataset == "celeba" else "bernoulli",
            "width": 32 if conv else 512,
            "depth": max(1, int(math.log2(size / 4))) if conv else 2,  # 28 → 7, 32 → 4, 64 → 4
            "beta": 1.0,
            "mmd": 0.0,
        }
        follows |= model.defaults(dataclasses.replace(self, image_size=size))
        config = Config(**values | follows | chosen)
        check_combinations(config)
        model.check(config)
        return config

    @property
    def value_range(self) -> tuple[float, float]:
        """The range of x and x_hat: it must fit the decoder's last activation."""
        return (-1.0, 1.0) if self.likelihood == "squared_error" else (0.0, 1.0)


# Named sets of choices, for train.py --preset and config_for(data, **PRESETS[…]). "best" costs
# more time per epoch, and its nats cannot be compared with the assignment's. "grid" has a grid of
# codes, and a transformer that learns which of them occur together.
PRESETS = {
    "plain": {},
    "best": {"likelihood": "gaussian", "norm": "batch", "residual": 1,
             "schedule": "one_cycle", "lr": 3e-3, "ema": 0.999},
}  # fmt: skip
PRESETS["grid"] = PRESETS["best"] | {
    "model": "grid_vae", "latent_dim": 16, "beta": 2.0, "flip": "horizontal"
}  # fmt: skip


def epochs_from_environment() -> int | None:
    """n under VAE_EPOCHS=n, else None. Raises VAEError for what is no number from 1 on."""
    epochs = os.environ.get("VAE_EPOCHS")
    if not epochs:
        return None
    if not (epochs.isdecimal() and int(epochs)):
        raise VAEError(f"VAE_EPOCHS must be a whole number from 1 on, not {epochs}.")
    return int(epochs)


def config_for(data: ImageData, *, typed: Iterable[str] = (), **choices) -> Config:
    """The resolved Config that fits a data set.

    VAE_FAST=1 makes it one epoch. VAE_EPOCHS=n makes it n, but for fields that the user `typed`
    just now.
    """
    lengths = [name for name in ("epochs", "prior_epochs") if name == "epochs" or choices.get(name)]
    if env_flag("VAE_FAST"):
        choices |= dict.fromkeys(lengths, 1) | {"max_images": len(data.train.images)}
    epochs = epochs_from_environment()
    if epochs is not None:
        choices |= dict.fromkeys(set(lengths) - set(typed), epochs)
    model = choices.get("model", "vae")
    if model in MODELS:
        choices |= MODELS[model].choices_for(data)
    size = {"image_size": data.image_size, "channels": data.channels}
    return Config(dataset=data.name, **size, **choices).resolved()


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


class LatentHeads(nn.Module):
    """Features (N, features) → mu, logvar, each (N, D): how both encoders below end."""

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
# ║ Model                                                                                      ║
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


ACTIVE_THRESHOLD = 0.01  # variance of mu above which a dimension is active (Burda et al. 2016)


class Output(NamedTuple):
    """What a forward pass gives."""

    x_raw: Tensor | None  # (N, C, H, W), the decoder before its last activation; see decoder_learns
    mu: Tensor  # (N, D)
    logvar: Tensor  # (N, D)
    z: Tensor  # (N, D)
    condition: Tensor | None = None  # (N, A), what the decoder, or a learned prior, is given
    indices: Tensor | None = None  # (N, h * w), of a vq_vae: which code stands at each place


class VAE(nn.Module):
    """Encoder q(z|x) = N(mu, diag sigma^2) and decoder p(x|z), Kingma & Welling 2014.

    Another model overrides what it does differently: these six attributes; make_encoder,
    make_decoder and latent_size (its networks); condition, encode, decode_raw and forward (its
    pass); reconstruction_nats, rate_nats and penalty (its loss); log_prior and draw_codes (its
    prior); describe_codes (its codes); defaults, choices_for and check (its config); stages and
    begin_stage (its training). See support/autoencoders.py, conditional.py, grid_vae.py and
    vq_vae.py.
    """

    sampled = True  # z ~ q(z|x); else the code is the point mu, which has no KL
    has_rate = True  # a code costs nats, see rate_nats; else it is 0
    conditional = False  # encoder and decoder are given a label
    learned_prior = False  # codes come from a prior that the model learned, not from N(0, I)
    discrete = False  # codes come from a codebook
    exact_weights: tuple[str, ...] = ()  # beginnings of names of weights that stay 32-bit

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = self.make_encoder()
        self.decoder = self.make_decoder()
        # Of a gaussian p(x|z), set by calibrate after each epoch; other likelihoods have none.
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
        return Output(self.decode_raw(z, condition), mu, logvar, z, condition)

    def reconstruction_nats(
        self, out: Output, x: Tensor, sigma: Tensor | float | None = None
    ) -> Tensor:
        """The distortion: -log p(x|z) of each image, (N,) nats. See the function of this name."""
        return reconstruction_nats(out.x_raw, x, self.config.likelihood, sigma)

    def rate_nats(self, out: Output) -> Tensor:
        """The rate: what each image's code costs, (N,) nats. KL(q(z|x) || p(z)), 0 for a point."""
        return kl_nats(out.mu, out.logvar) if self.sampled else torch.zeros_like(out.mu[:, 0])

    def penalty(self, out: Output, noise: torch.Generator | None = None) -> Tensor:
        """A third term of the loss, (): here there is none."""
        return out.z.new_zeros(())

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of codes (N, D), here of N(0, I): → (N,) nats."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    def draw_codes(
        self, n: int, *, condition: Tensor | None = None, seed: int = 0, **region
    ) -> Tensor:
        """n codes (n, D) of the prior, or of another region: see sample_latents.

        Raises VAEError for what only a learned prior takes.
        """
        for name in sorted(region.keys() & {"guidance", "without", "top_k"}):
            raise VAEError(f"{name} is for a model that learned its prior, grid_vae or vq_vae.")
        return sample_latents(n, self.latent_size, seed=seed, **region)

    def describe_codes(self, mu: Tensor) -> dict[str, float]:
        """What evaluate reports about the codes mu (N, D) of many images."""
        return {"active_dims": int((mu.var(0, unbiased=False) > ACTIVE_THRESHOLD).sum())}

    # ── Hooks that other models use ──

    @classmethod
    def defaults(cls, config: Config) -> dict[str, object]:
        """Values of this model for fields of the config that were not given."""
        return {}

    @classmethod
    def choices_for(cls, data: ImageData) -> dict[str, object]:
        """Fields of the config that follow from the data, for this model."""
        return {}

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise VAEError when a resolved config cannot make this model."""
        c, own_beta = config, cls.defaults(config).get("beta", 1.0)
        if c.data_dir is not None and c.dataset != "folder":
            raise VAEError(
                "data_dir is for dataset folder: for the others set VAE_DATA to the folder that "
                "holds them."
            )
        if not cls.sampled and c.beta != own_beta:
            raise VAEError(
                f"beta weighs the KL of a sampled z, and model {c.model} has none: leave it out."
            )
        if c.batch_size < 2 and (c.norm == "batch" or c.mmd):
            raise VAEError(
                "Batch normalisation and MMD compare the images of a batch: use batch_size >= 2."
            )
        if c.arch == "conv" and c.image_size >> c.depth < 1:
            raise VAEError(
                f"{c.depth} halvings of a {c.image_size}-pixel image leave nothing: use depth "
                f"{int(math.log2(c.image_size))} or less."
            )
        if c.arch == "fc" and c.width >> (c.depth - 1) < 1:
            raise VAEError(
                f"{c.depth} hidden layers, each half as wide as the one before, need a width of at "
                f"least {1 << (c.depth - 1)}, not {c.width}."
            )

    @classmethod
    def stages(cls, config: Config) -> dict[str | None, Config]:
        """Name → config of each stage of training, one after the other. Here there is one."""
        return {None: config}

    def begin_stage(self, name: str | None) -> None:
        """Called before each stage."""

    @property
    def decoder_learns(self) -> bool:
        """False while only a learned prior trains: the decoder need not run then."""
        return next(self.decoder.parameters()).requires_grad


MODELS["vae"] = VAE


def build_model(config: Config) -> VAE:
    """The model of a config, its weights drawn from config.seed, on get_device().

    Raises VAEError where the choices of the config contradict each other.
    """
    config = config.resolved()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config)
    return model.to(get_device(), memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Training                                                                                   ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝


class TrainingDiverged(VAEError):
    """The loss is no longer a finite number."""


def train_epoch(
    model: VAE,
    images: Tensor,
    conditions: Tensor | None,
    config: Config,
    state: TrainingState,
    epoch: int,
    progress: bool = True,
) -> dict[str, float | None]:
    """Train for one pass over uint8 images (N, C, H, W); epoch counts from 1.

    Returns the means of both losses, in nats, and of the penalty. A reconstruction that was not
    computed is None.
    """
    model.train()
    order = shuffled_batches(len(images), config, state.order_rng)
    sums, seen = torch.zeros(3, device=model.device), 0
    bar = progress_bar(order, desc=f"epoch {epoch}/{config.epochs}", hidden=not progress)
    for step, batch in enumerate(bar):
        # A batch; under torchrun this process's share of it.
        indices = own_share(batch)
        condition = None if conditions is None else conditions[indices].to(model.device)
        x = to_input(training_images(images, indices, config, state.noise_rng), config)

        # Forward: encode, draw z, decode. The network is the model, wrapped under torchrun.
        with autocast(model.device):
            out = state.network(x, state.noise_rng, condition)
        reconstruction = model.reconstruction_nats(out, x).mean()
        rate = model.rate_nats(out).mean()
        penalty = model.penalty(out, state.noise_rng)
        beta = kl_weight(config, epoch - 1 + step / len(order))
        loss = reconstruction + beta * rate + penalty

        # Backward and step. The weight of the gradient is 1 without torchrun.
        state.optimiser.zero_grad(set_to_none=True)
        (loss * gradient_weight(len(indices), len(batch))).backward()
        state.optimiser.step()
        state.schedule.step()
        state.update_average()

        # The means, to be shown and returned.
        sums += torch.stack([reconstruction, rate, penalty]).detach() * len(x)
        seen += len(x)
        if step % 20 == 0 or step == len(order) - 1:  # tolist waits for the device
            means = (sums / seen).tolist()
            stop_if_diverged(means, config, f"in epoch {epoch}, step {step + 1} of {len(order)}")
            bar.set_postfix(reconstruction=f"{means[0]:.1f}", kl=f"{means[1]:.1f}")
    means = (all_reduce(sums) / len(images)).tolist()
    losses = dict(zip(("train_reconstruction_nats", "train_kl_nats", "train_penalty"), means))
    return losses if model.decoder_learns else losses | {"train_reconstruction_nats": None}


def fit(
    model: VAE,
    data: ImageData,
    config: Config,
    *,
    stage: str | None = None,
    progress: bool = True,
    on_epoch: Callable[[list[dict]], None] | None = None,
    save: Callable[[list[dict], dict], None] | None = None,
    start: tuple[list[dict], dict | None] | None = None,
) -> list[dict]:
    """Minimise reconstruction + beta * rate + penalty with Adam; returns the history.

    It has one dict for each epoch. Every loss is in nats per image; kl is the rate (see
    model.rate_nats), and total leaves the penalty out. train_* are means over the epoch while the
    weights still move, None for a reconstruction that was not computed; val_* are measured after
    it. Totals take config.beta, also while kl_warmup lasts. With config.ema the averaged weights
    are validated and saved, and are those that the model has in the end. With config.patience
    training ends early when validation no longer falls.

    stage      which of model.stages is trained; rows of the history say so where it has a name
    save       called after every epoch with the history and the state, which is all that start
               needs to go on from there, on a CPU to the same last bit
    on_epoch   called after save, with the history so far
    start      what save was given in a run that was cut off; or the history of the stages before
               this one, and None

    Raises TrainingDiverged when the loss is not finite, VAEError for a stage that model has not.
    """
    config, (rank, _) = config.resolved(), processes()
    if stage not in model.stages(model.config):
        raise VAEError(
            f"A {model.config.model} learns in stages: train it with train_run of support/runs.py, "
            "or with fit_stages of support/grid_vae.py."
        )
    images = keep_on_device(data.train.images, model.device)
    conditions = model.condition(data.train.labels)
    steps = config.epochs * len(shuffled_batches(len(images), config, torch.Generator()))
    state = TrainingState(
        model, lr=config.lr, schedule=config.schedule, steps=steps, ema=config.ema, seed=config.seed
    )
    earlier, saved = start or ([], None)
    history = list(earlier)
    own = [row for row in history if row.get("stage") == stage]
    if saved:
        state.load_state_dict(saved, len(own))
    began = time.perf_counter() - (history[-1]["seconds"] if history else 0.0)
    while len(own) < config.epochs and should_continue(own, config.patience):
        epoch = len(own) + 1
        losses = train_epoch(model, images, conditions, config, state, epoch, progress and not rank)
        if model.decoder_learns:
            calibrate(state.result, data.train)
        losses |= validate(state.result, data.val)
        losses |= totals(losses, config.beta)
        stop_if_diverged(losses.values(), config, f"after epoch {epoch}")
        row = {"epoch": len(history) + 1} | ({"stage": stage} if stage else {})
        row |= {"seconds": time.perf_counter() - began} | losses
        history.append(row)
        own.append(row)
        if save and rank == 0:
            save(history, state.state_dict())
        if on_epoch and rank == 0:
            on_epoch(history)
    model.load_state_dict(state.result.state_dict())
    model.eval()
    return history


def validate(model: VAE, split: Split) -> dict[str, float]:
    """The two losses after an epoch, means over the validation images in nats."""
    reconstruction, kl = image_losses(model, *split)
    return {
        "val_reconstruction_nats": reconstruction.mean().item(),
        "val_kl_nats": kl.mean().item(),
    }


def totals(losses: dict[str, float], beta: float) -> dict[str, float]:
    """reconstruction + beta * KL of the training images and of the validation images."""
    result = {}
    for split in ("train", "val"):
        reconstruction = losses[f"{split}_reconstruction_nats"]
        known = reconstruction is not None
        total = reconstruction + beta * losses[f"{split}_kl_nats"] if known else None
        result[f"{split}_total_nats"] = total
    return result


def should_continue(history: list[dict], patience: int | None) -> bool:
    """Whether one of the last `patience` epochs has the least validation loss (Prechelt 1998).

    Always without a patience, and before the first epoch.
    """
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

    A last batch that is too small joins the one before: each process needs an image, and batch
    normalisation and MMD need two.
    """
    batches = list(torch.randperm(n, generator=generator).split(config.batch_size))
    least = 2 if config.norm == "batch" or config.mmd else 1
    if len(batches) > 1 and len(batches[-1]) < least * processes()[1]:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def stop_if_diverged(losses: Iterable[float], config: Config, when: str) -> None:
    """Raise TrainingDiverged when one of the losses that are known is not finite."""
    if all(math.isfinite(loss) for loss in losses if loss is not None):
        return
    ways = {
        "a smaller lr": True,
        "norm batch": config.arch == "conv" and config.norm == "none",
        "a smaller mmd": config.mmd > 0,
        "kl_warmup": config.beta > 0 and not config.kl_warmup,
    }
    helpful = " or ".join(way for way, helps in ways.items() if helps)
    raise TrainingDiverged(
        f"The loss stopped being a finite number {when}, with lr {config.lr:g}: try {helpful}."
    )


def training_images(
    images: Tensor, indices: Tensor, config: Config, noise: torch.Generator
) -> Tensor:
    """Some of the uint8 images (N, C, H, W), on noise's device; with config.flip some mirrored."""
    chosen = images[indices.to(images.device)].to(noise.device)
    if config.flip == "horizontal":
        mirrored = torch.rand(len(chosen), generator=noise, device=noise.device) < 0.5
        chosen = torch.where(mirrored[:, None, None, None], chosen.flip(3), chosen)
    return chosen.contiguous(memory_format=torch.channels_last)


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

EVALUATION_BATCH = 500  # images at a time without gradients: busy cores, little memory


def batches(
    model: VAE, rows: Tensor, condition: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images or codes and their conditions on the model's device, 500 at a time.

    Puts the model in evaluation mode. Raises VAEError when there are none, or not one condition for
    each.
    """
    if not len(rows):
        raise VAEError("There is nothing to encode or decode: hand in one image or code at least.")
    if condition is not None and len(condition) != len(rows):
        raise VAEError(f"{len(condition)} labels do not fit {len(rows)} images: give one for each.")
    model.eval()
    for first in range(0, len(rows), EVALUATION_BATCH):
        part = slice(first, first + EVALUATION_BATCH)
        given = None if condition is None else condition[part].to(model.device)
        yield rows[part].to(model.device), given


def image_batches(
    model: VAE, images: Tensor, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x and conditions of images (N, C, H, W), uint8 or float in [0, 1], 500 at a time.

    Raises VAEError on images or labels that do not fit the model.
    """
    c = model.config
    shape = (c.channels, c.image_size, c.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise VAEError(
            f"This model takes images of shape (N, {', '.join(map(str, shape))}), not "
            f"{tuple(images.shape)}: resize them first."
        )
    for part, condition in batches(model, images, model.condition(labels)):
        yield to_input(part, c), condition


def forward_passes(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> Iterator[tuple[Tensor, Output]]:
    """x and the Output of images (N, C, H, W), 500 at a time, without gradients.

    One seeded sample of z for each image; a conditional model wants labels.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    for x, condition in image_batches(model, images, labels):
        with torch.no_grad():
            out = model(x, generator, condition)
        yield x, out


@torch.no_grad()
def image_losses(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Reconstruction and rate of each image (N, C, H, W): two (N,) in nats, float64."""
    reconstructions, rates = [], []
    for x, out in forward_passes(model, images, labels, seed=seed):
        reconstructions.append(model.reconstruction_nats(out, x, model.sigma).cpu())
        rates.append(model.rate_nats(out).cpu())
    return torch.cat(reconstructions).double(), torch.cat(rates).double()  # MPS has no float64


@torch.no_grad()
def evaluate(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> dict[str, float]:
    """The numbers of a model on uint8 images (N, C, H, W); units in the keys.

    reconstruction_nats, kl_nats   means over the images, one seeded sample of z each: distortion
                       and rate
    total_nats         their sum, the negative ELBO, whatever beta the model was trained with
    total_nats_se      its standard error, where there is more than one image
    floor_nats, excess_nats        (bernoulli) bce_floor_nats of the images, and total above it
    mse                mean squared error of x_hat(mu) per pixel and channel, on [0, 1]
    active_dims        latent dimensions whose mu varies over the images (Burda et al. 2016, 5.2)
    codes_used, perplexity         (vq_vae) how many codes occur, and exp of their entropy
    images             how many images were measured
    """
    reconstructions, rates, codes = [], [], []
    squared = floor = 0.0
    for x, out in forward_passes(model, images, labels, seed=seed):
        reconstructions.append(model.reconstruction_nats(out, x, model.sigma).cpu())
        rates.append(model.rate_nats(out).cpu())
        codes.append(out.mu.cpu())
        unit = to_unit(x, model.config)
        x_hat = to_unit(model.decode(out.mu, out.condition), model.config)
        squared += (x_hat - unit).square().sum().item()
        floor += bce_floor_nats(unit).sum().item()
    reconstruction, rate = torch.cat(reconstructions).double(), torch.cat(rates).double()
    total = reconstruction + rate
    metrics = {
        "reconstruction_nats": reconstruction.mean().item(),
        "kl_nats": rate.mean().item(),
        "total_nats": total.mean().item(),
    }
    if len(images) > 1:
        metrics["total_nats_se"] = standard_error(total)
    if model.config.likelihood == "bernoulli":
        metrics["floor_nats"] = floor / len(images)
        metrics["excess_nats"] = metrics["total_nats"] - floor / len(images)
    metrics |= model.describe_codes(torch.cat(codes))
    return metrics | {"mse": squared / images.numel(), "images": len(images)}


def standard_error(values: Tensor) -> float:
    """Of a mean over (N,) independent values; nan for a single one, whose spread is not known."""
    return (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


# ── Checkpoints: model.safetensors and model.json in a run folder ──


def save_checkpoint(
    model: VAE, folder: str | os.PathLike, record: dict | None = None, *, half: bool = False
) -> Path:
    """Write model.safetensors and model.json (the config and `record`); half: 16-bit weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in model.state_dict().items():
        rounded = value.half() if half and not name.startswith(model.exact_weights) else value
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
            return Config(**record["config"]).resolved(), record
    raise CheckpointError(f"{path} holds a model of support/: import support.runs first.")


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


@torch.no_grad()
def encode_images(
    model: VAE, images: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), uint8 or float in [0, 1] → mu, logvar (N, D) on the CPU.

    A conditional model wants the labels. Raises VAEError on images or labels that do not fit.
    """
    codes = [model.encode(x, condition) for x, condition in image_batches(model, images, labels)]
    mu, logvar = zip(*codes)
    return torch.cat(mu).cpu(), torch.cat(logvar).cpu()


@torch.no_grad()
def decode_images(model: VAE, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """z (..., D) → float images in [0, 1], (..., C, H, W), on the CPU: the means of p(x|z).

    A conditional model wants labels (N,) or (N, A): one for each z (..., N, D), or one for all.
    Raises VAEError on codes or labels that do not fit.
    """
    if z.shape[-1] != model.latent_size:
        raise VAEError(
            f"This model decodes latents (..., {model.latent_size}), not {tuple(z.shape)}."
        )
    condition = model.condition(labels)
    if condition is not None:
        places = z.shape[:-1] or (1,)
        try:
            condition = condition.expand(*places, -1).flatten(0, -2)
        except RuntimeError:
            raise VAEError(
                f"{len(condition)} labels do not fit {places[-1]} codes: give one for each, or one "
                "for all."
            ) from None
    codes = z.reshape(-1, z.shape[-1])
    images = [model.decode(part, given) for part, given in batches(model, codes, condition)]
    x_hat = to_unit(torch.cat(images), model.config).cpu()
    return x_hat.reshape(*z.shape[:-1], *x_hat.shape[1:])


def sample_codes(
    model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """One z ~ q(z|x) for each image, (N, D); mu itself where the code is a point."""
    mu, logvar = encode_images(model, images, labels)
    return reparameterize(mu, logvar, torch.Generator().manual_seed(seed)) if model.sampled else mu


# ── Interpolation ──


def slerp(z_a: Tensor, z_b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation: (..., D), (..., D), t → (..., D).

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


def sample_images(model: VAE, n: int, labels: Tensor | None = None, **region) -> Tensor:
    """Decode n codes of a region (see sample_latents) → float (n, C, H, W) in [0, 1].

    A conditional model wants n labels. A model with a learned prior can be given them, and 0.5
    leaves one open; in place of a region it takes seed, temperature, (vq_vae) top_k, and guidance:
    above 0 its samples follow the labels more closely, see GridVAE.draw_codes.
    Raises VAEError for n below 1.
    """
    if n < 1:
        raise VAEError(f"The number of samples must be 1 or more, not {n}.")
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
    if len(images) == 1:  # to which make_grid gives no edge
        grid = F.pad(grid, (pad, pad, pad, pad), value=1.0)
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
        label_columns(fig, column_labels, width, width / 2)
    return fig


def plot_grid(
    images: Tensor, title: str, columns: int = 8, cell: float = 0.72, edge: float = 0
) -> Figure:
    """Images (N, C, H, W) as one grid; cell: inches of one image, at least.

    edge: inches that stay free on the left and below, for the labels of axes.
    """
    grid = image_grid(images, min(columns, len(images)))
    return place_pictures({"": (grid, enlargement(images, cell))}, title, edge=edge)


def plot_sheets(
    sheets: dict[str, Tensor], title: str, columns: int = 6, cell: float = 0.6
) -> Figure:
    """Named grids side by side, of as many images (n, C, H, W) each."""
    grids = [image_grid(images, columns) for images in sheets.values()]
    height, width, _ = grids[0].shape
    gap = np.full((height, 12, 3), 255, np.uint8)
    parts = [part for grid in grids for part in (grid, gap)][:-1]
    factor = enlargement(next(iter(sheets.values())), cell)
    fig = place_pictures({"": (np.concatenate(parts, axis=1), factor)}, title, list(sheets))
    label_columns(fig, list(sheets), width + 12, width / 2)
    return fig


def label_columns(fig: Figure, labels: Sequence[str], step: float, first: float) -> None:
    """Labels above the topmost picture, `step` pixels of it apart."""
    ax = fig.axes[0]
    ax.set_xticks([first + step * i for i in range(len(labels))], labels)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)


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
    """Reconstruction, KL and their weighted sum over the epochs."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for ax, part in zip(axes, ("reconstruction", "kl", "total")):
        for number, (label, history) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in history]
            style = {"color": f"C{number}", "marker": "o" if len(epochs) == 1 else None}
            ax.plot(epochs, [row[f"val_{part}_nats"] for row in history], label=label, **style)
            ax.plot(epochs, [row[f"train_{part}_nats"] for row in history], ls="--", lw=1, **style)
        ax.set_xlim(0.5, max(len(history) for history in histories.values()) + 0.5)
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
