"""Variational autoencoders on images: everything that the notebooks and the scripts share.

Read it from top to bottom; each section uses only what stands above it:

    Config                   one dataclass: every choice a run makes
    Data                     CIFAR-10, CelebA, MNIST, Fashion-MNIST, a folder of images, drawn shapes
    Networks                 VAE, conditional and vector-quantised, convolutional and fully connected
    Losses                   reconstruction and KL, per image, in nats
    Training & checkpoints   one loop for every model, and files that cannot run code
    Evaluation               the numbers of a model on held-out images; whole runs: load or train
    Latent space             encode, interpolate, sample regions, traverse, attribute arithmetic
    Plots                    one function per figure, each returns the matplotlib Figure
    Widgets                  sliders over one picture; where no widgets are, the picture

Conventions
    images   uint8 (N, C, H, W) in data sets; what a model gives back is float in [0, 1]
    x        a batch as the network sees it: float in [0, 1] (bernoulli, gaussian) or [-1, 1] (squared_error)
    mu, logvar, z    (N, D), D = latent_dim (of a vq_vae, of all places together); x_hat has the shape and the range of x
    nats     a loss of one image, summed over its pixels or latent dimensions, never averaged over them
"""
from __future__ import annotations

import base64
import bisect
import colorsys
import contextlib
import dataclasses
import gc
import hashlib
import html
import inspect
import io
import itertools
import json
import math
import os
import platform
import shutil
import sys
import textwrap
import time
import uuid
import warnings
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple, Sequence

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RELEASED = HERE / "checkpoints"


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Config                                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

class VAEError(ValueError):
    """Something that the user can mend; the message is one sentence that says how."""


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main(): what the user can mend ends in one sentence and exit code 2, Ctrl-C in one line and 130."""
    try:
        main()
    except (VAEError, OSError) as err:   # OSError: a full disk, a folder that may not be written
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as err:
        if not isinstance(err, MemoryError) and "memory" not in str(err):   # torch says "out of memory" or "can't allocate memory"
            raise
        print("error: not enough memory for this model and these images: try a smaller width, latent_dim, image_size or "
              "batch_size.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as err:     # of a training: Stopped
        print(f"\n{str(err) or 'Stopped.'}", file=sys.stderr)
        sys.exit(130)


def switched_on(name: str) -> bool:
    """Whether an environment variable is set to anything but 0. VAE_FAST=1: one epoch, few images, never a download."""
    return os.environ.get(name, "0") not in ("", "0")


def progress_bar(iterable, *, hidden: bool = False, **options) -> tqdm:
    """tqdm, gone when it is done. TQDM_DISABLE=1 hides it in notebooks, too, where tqdm itself does not read that."""
    return tqdm(iterable, leave=False, disable=hidden or switched_on("TQDM_DISABLE"), **options)


def data_root() -> Path:
    """Where data sets are looked for: $VAE_DATA, else data/ beside this file."""
    return Path(os.environ.get("VAE_DATA") or HERE / "data")


def runs_root() -> Path:
    """Where runs are kept: $VAE_RUNS, else runs/ beside this file."""
    return Path(os.environ.get("VAE_RUNS") or HERE / "runs")


def get_device() -> torch.device:
    """The one place that names a device: $VAE_DEVICE, else CUDA, else Apple's MPS, else the CPU."""
    if name := os.environ.get("VAE_DEVICE"):
        try:
            torch.zeros(1, device=name).cpu()   # a name that is spelt right may still not be here
            return torch.device(name)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise VAEError(f"VAE_DEVICE must name a device of this machine, like cpu, cuda or mps, not {name!r}.") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision(device: torch.device) -> torch.dtype:
    """What encoder and decoder multiply in while they train: bfloat16 where the hardware does that itself, else float32.

    $VAE_PRECISION names one of the two. Weights, losses, exp and KL are float32, and so is all that comes after training.
    """
    if name := os.environ.get("VAE_PRECISION"):
        if name not in ("float32", "bfloat16"):
            raise VAEError(f"VAE_PRECISION must be float32 or bfloat16, not {name!r}.")
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if fast else torch.float32


def precision_name() -> str:
    """float32 or bfloat16, see precision: for records."""
    return str(precision(get_device())).removeprefix("torch.")


def workers() -> tuple[int, int]:
    """This process and how many train together: (0, 1), but under `torchrun --nproc_per_node=N train.py` (0 to N-1, N)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


# ── What a public function checks at its door ──
# The name of an argument means the same everywhere (see Conventions), so one table serves all functions, and the fields of Config. Of the
# tensors of a training step only types and shapes are looked at: for their values a GPU would have to be waited for.

LARGEST = 2 ** 31 - 1   # of whole numbers: what PyTorch and its libraries count with


def whole_number(value, low: int = 1, high: int = LARGEST) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high


def real_number(value, low: float = -math.inf) -> bool:
    value = value.item() if isinstance(value, np.generic) else value
    return isinstance(value, (int, float)) and not isinstance(value, bool) and max(low, -sys.float_info.max) <= value <= sys.float_info.max


def shown(value) -> str:
    """A wrong value in a few words."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else textwrap.shorten(repr(value), 80)


def _floats(value, dims: int = 1, finite: bool = False) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= dims and value.numel() > 0 and not (
        finite and not value.isfinite().all())


def _pictures(value) -> bool:
    return isinstance(value, Tensor) and value.ndim > 2 and value.numel() > 0 and (
        value.dtype == torch.uint8 or value.is_floating_point() and bool(value.min() >= 0) and bool(value.max() <= 1))   # not so with a NaN


def _ascending(value) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(real_number, value)) and value[0] < value[1]


def _levels(value) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 2 and value.shape[1] == len(SHAPE_FACTORS) and bool(
        ((value >= 0) & (value < torch.tensor(list(SHAPE_FACTORS.values())))).all())


ARGUMENTS = {name: (good, wanted) for names, good, wanted in (
    ("config", lambda v: isinstance(v, Config), "a Config"),
    ("model", lambda v: isinstance(v, VAE), "a model, like those of build_model and load_checkpoint"),
    ("data", lambda v: isinstance(v, ImageData), "what load_dataset gives"),
    ("density", lambda v: isinstance(v, Density), "what fit_density gives"),
    ("images tuning corners x_hat", _pictures, "images (..., C, H, W), uint8 from 0 to 255 or float from 0 to 1"),
    ("image_a image_b", lambda v: _pictures(v) and v.ndim == 3, "a single image (C, H, W), uint8 from 0 to 255 or float from 0 to 1"),
    ("x x_raw mean", partial(_floats, dims=2), "a tensor of floats with one row for each image"),
    ("mu logvar a b", _floats, "a tensor of floats"),
    ("z z_a z_b path real fake", partial(_floats, finite=True), "a tensor of finite floats"),
    ("labels tuning_labels has_attribute", lambda v: isinstance(v, Tensor) and v.ndim in (1, 2) and not v.is_complex() and bool(v.isfinite().all()),
     "a tensor (N,) or (N, A)"),
    ("factors", _levels, "whole numbers (N, 7) from 0 to below those of SHAPE_FACTORS"),
    ("n k components decoded_at_once latents latent_dim columns max_images parameters epochs batch_size width codebook", whole_number,
     f"a whole number from 1 to {LARGEST:,}"),
    ("conditions kl_warmup", lambda v: whole_number(v, 0), f"a whole number from 0 to {LARGEST:,}"),
    ("residual", lambda v: whole_number(v, 0, 100), "a whole number from 0 to 100"),
    ("depth", lambda v: whole_number(v, 1, 31), "a whole number from 1 to 31"),
    ("num num_interpolations", lambda v: whole_number(v, 2), "a whole number of at least 2 (the two ends)"),
    ("image_size", lambda v: whole_number(v, 2, 4096), "a whole number from 2 to 4,096"),
    ("seed", lambda v: whole_number(v, 1 - 2 ** 63, 2 ** 63 - 1), "a whole number of at most 63 bits"),
    ("z_range", _ascending, "two numbers, the lower first, like (-2, 2)"),
    ("radius temperature beta mmd", lambda v: real_number(v, 0), "a number of at least 0"),
    ("scale lr", lambda v: real_number(v) and v > 0, "a number above 0"),
    ("ema", lambda v: real_number(v, 0) and v < 1, "a number from 0 to below 1"),
    ("epsilon", lambda v: real_number(v) and 0 < v < 1, "a number between 0 and 1"),
    ("method", lambda v: isinstance(v, str) and v in METHODS, "'linear' or 'spherical'"),
    ("likelihood", lambda v: isinstance(v, str) and v in LIKELIHOODS, "bernoulli, squared_error or gaussian"),
    ("folder data_dir", lambda v: isinstance(v, (str, os.PathLike)), "the name of a folder"),
) for name in names.split()}
ALIKE = (("mu", "logvar"), ("z_a", "z_b"), ("x_raw", "x"), ("mean", "images"), ("x_hat", "images"))   # in shape


def checked(function: Callable) -> Callable:
    """Check the arguments of a function by their names, see ARGUMENTS and ALIKE. Raises VAEError; None passes where it is the default."""
    signature = inspect.signature(function)
    known = {name: ARGUMENTS[name] for name in signature.parameters if name in ARGUMENTS}
    optional = {name for name, p in signature.parameters.items() if p.default is None}
    alike = [pair for pair in ALIKE if known.keys() >= set(pair)]

    @wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():   # a training step, checked when it was not compiled
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        for name in given:
            if isinstance(given[name], np.generic):   # a number of NumPy's
                given[name] = given[name].item()
        for name, (good, wanted) in known.items():
            if name in given and not (given[name] is None and name in optional) and not good(given[name]):
                raise VAEError(f"{function.__name__}: {name} must be {wanted}, not {shown(given[name])}.")
        for one, other in alike:
            if given[one].shape != given[other].shape or given[one].dtype != given[other].dtype and other != "images":
                raise VAEError(f"{function.__name__}: {one} and {other} must be alike, not {shown(given[one])} and {shown(given[other])}.")
        return function(*bound.args, **bound.kwargs)

    return call


def need_memory(size: float, what: str) -> None:
    """Raise VAEError where so many bytes are more than this machine has: it would not say so, but kill the process."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if size > has:
        raise VAEError(f"{what} would need {size / 2 ** 30:,.0f} GiB of memory, and this machine has {has / 2 ** 30:,.0f}: try a smaller width, "
                       "latent_dim, image_size or number of images.")


LIKELIHOODS = ("bernoulli", "squared_error", "gaussian")
DATASETS = {"cifar10": 32, "celeba": 64, "mnist": 28, "fashion_mnist": 28, "folder": 64, "shapes": 32}   # own image size


def option(default, help: str, choices: Sequence | None = None):
    """A field of Config whose help text and choices train.py shows as they stand here."""
    return field(default=default, metadata={"help": help, "choices": choices})


class Objective(NamedTuple):
    """What a model minimises: reconstruction + beta * KL(q(z|x) || N(0, I)) + mmd * MMD(q(z), N(0, I))."""

    beta: float
    mmd: float
    sampled: bool   # z ~ q(z|x); else the code is a point, and a point has no KL


# One objective, named as in the papers, with their weights. InfoVAE (Zhao et al. 2019) writes beta = 1 - alpha and
# mmd = alpha + lambda - 1; here alpha = 1, its MMD-VAE, and lambda = 1000, our choice: small beside the
# reconstruction once q(z) is near the prior, strong while it is not.
OBJECTIVES = {
    "vae": Objective(1, 0, True),           # Kingma & Welling 2014
    "beta_vae": Objective(4, 0, True),      # Higgins et al. 2017: a beta above 1
    "info_vae": Objective(0, 1000, True),
    "wae": Objective(0, 10, False),         # WAE-MMD, Tolstikhin et al. 2018, section 4: 10 on MNIST, 100 on CelebA
    "ae": Objective(0, 0, False),
    "cvae": Objective(1, 0, True),          # Sohn et al. 2015: the VAE with labels as a second input
    "vq_vae": Objective(1, 0, False),       # van den Oord et al. 2017: a grid of codes, priced by a learned prior
}


@dataclass(frozen=True)
class Config:
    """Every choice that a run makes; on one machine's CPU, two equal configs on equal data give the same model.

    Raises VAEError when a value cannot work.
    """

    dataset: str = option("cifar10", "which images to learn", tuple(DATASETS))
    data_dir: str | None = option(None, "the folder or zip with your images (for --dataset folder)")
    max_images: int | None = option(None, "train on at most this many images; all of them when not given")
    image_size: int | None = option(None, "height and width in pixels; when not given, the data set's own")
    channels: int = option(3, "1 for grey, 3 for RGB; follows from the data", (1, 3))
    conditions: int = option(0, "classes or attributes that a cvae is told; follows from the data")

    model: str = option("vae", "what is minimised: vae, beta_vae and info_vae sample z, ae and wae do not; cvae is told the label; "
                        "vq_vae has a grid of codes", tuple(OBJECTIVES))
    arch: str = option("conv", "convolutional or fully connected encoder and decoder", ("conv", "fc"))
    latent_dim: int = option(128, "size of mu, logvar and z, or of each code of a vq_vae; 128 is the assignment's")
    width: int | None = option(None, "channels after the first convolution, doubled at each further one (conv, 32 when not "
                               "given), or units of the first hidden layer, halved at each further one (fc, 512)")
    depth: int | None = option(None, "convolutions, each halving the image (conv; when not given, down to about 4x4), "
                               "or hidden layers (fc, 2)")
    downsample: str = option("stride", "how the convolutional encoder halves the image: a 4x4 convolution of stride 2, "
                             "or a 3x3 one and a 2x2 max-pooling", ("stride", "maxpool"))

    norm: str = option("none", "batch: batch normalisation before each activation inside a convolutional model", ("none", "batch"))
    residual: int = option(0, "residual blocks at each size of the feature maps (conv)")

    likelihood: str | None = option(None, "bernoulli: binary cross-entropy on [0, 1]; squared_error: ||x - x_hat||^2 on "
                                    "[-1, 1]; gaussian: on [0, 1] with the best single sigma; when not given, squared_error for celeba and "
                                    "for wae, bernoulli for the others", LIKELIHOODS)
    beta: float | None = option(None, "weight of the KL term; when not given the model's own: 1 (the ELBO), beta_vae 4, info_vae 0")
    mmd: float | None = option(None, "weight of the maximum mean discrepancy between q(z) and N(0, I); when not given the model's "
                               "own: info_vae 1000, wae 10 (on celeba 100)")
    codebook: int | None = option(None, "how many codes a vq_vae has (512 when not given); each has latent_dim numbers")
    kl_warmup: int = option(0, "epochs in which beta rises from 0 to its value")

    epochs: int = option(10, "passes over the training images")
    batch_size: int = option(128, "images in one step; 128 keeps two CPU cores busy and still learns in 10 epochs")
    lr: float = option(1e-3, "Adam's step size; with one_cycle, its largest")
    schedule: str = option("constant", "of the step size; one_cycle: up for three tenths of all steps, then down to almost 0",
                           ("constant", "one_cycle"))
    ema: float = option(0.0, "the result is a moving average of the weights with this decay, like 0.999; 0 is off")
    seed: int = option(0, "seeds the weights, the order of the images and the noise")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if isinstance(value, (np.generic, os.PathLike)):   # JSON knows neither NumPy's numbers nor paths
                self._set(**{f.name: (value := value.item() if isinstance(value, np.generic) else os.fspath(value))})
            good, wanted = ARGUMENTS[f.name] if not choices else (
                lambda v: type(v) in (str, int) and v in choices, f"one of {', '.join(map(str, choices))}")
            if not (value is None and f.default is None) and not good(value):
                raise VAEError(f"{f.name} must be {wanted}, not {shown(value)}.")
        if self.data_dir is not None and self.dataset != "folder":
            raise VAEError(f"data_dir is for dataset folder: for {self.dataset} set VAE_DATA to the folder that holds it.")
        if self.beta is None or self.beta == 1 and not self.objective.sampled:   # 1 is what dataclasses.replace hands on from a vae
            self._set(beta=self.objective.beta)
        if self.beta != self.objective.beta and not self.objective.sampled:
            raise VAEError(f"beta weighs the KL of a sampled z, and model {self.model} has none: leave beta out, or train model beta_vae.")
        if self.codebook is not None and self.model != "vq_vae":
            raise VAEError(f"codebook is for model vq_vae, not {self.model}: leave it out.")
        follows = {"likelihood": "squared_error" if self.dataset == "celeba" or self.model == "wae" else "bernoulli", "image_size": DATASETS[self.dataset],
                   "mmd": 100.0 if (self.model, self.dataset) == ("wae", "celeba") else self.objective.mmd,
                   "codebook": 512 if self.model == "vq_vae" else None, "width": 32 if self.arch == "conv" else 512}
        self._set(**{name: value for name, value in follows.items() if getattr(self, name) is None})
        self._set(lr=float(self.lr), beta=float(self.beta), mmd=float(self.mmd), ema=float(self.ema))   # 4 and 4.0 are one config and one run_name
        if self.depth is None:   # 28 -> 7x7 in 2 steps, 32 -> 4x4 in 3, 64 -> 4x4 in 4; the codes of a vq_vae need a finer grid
            halvings = round(math.log2(self.image_size / 8)) if self.model == "vq_vae" else int(math.log2(self.image_size / 4))
            self._set(depth=max(1, halvings) if self.arch == "conv" else 2)
        if self.arch == "conv" and self.image_size >> self.depth < 1:
            raise VAEError(f"{self.depth} halvings of a {self.image_size}-pixel image leave nothing: "
                           f"use depth {int(math.log2(self.image_size))} or less.")
        if self.batch_size < 2 and (self.norm == "batch" or self.mmd):
            raise VAEError(f"{'Batch normalisation' if self.norm == 'batch' else 'MMD'} compares the images of a batch: use a batch_size of at least 2.")
        if self.conditions and self.model != "cvae":
            raise VAEError(f"conditions are for model cvae, not {self.model}: leave them out.")
        if self.mmd and self.model == "vq_vae":
            raise VAEError("mmd compares q(z) with N(0, I), which a vq_vae has no use for: leave it out, or train model info_vae or wae.")
        if self.arch == "fc" and (self.norm != "none" or self.residual):
            raise VAEError("norm and residual are for arch conv: the fully connected model is kept plain.")
        if self.arch == "fc" and self.width >> (self.depth - 1) < 1:
            raise VAEError(f"{self.depth} hidden layers, each half as wide as the one before, need a width of at "
                           f"least {1 << (self.depth - 1)}, not {self.width}.")

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.model]

    @property
    def has_price(self) -> bool:
        """Whether a code costs nats (code_nats): those of ae and wae are points with no prior, so they have none, nor a likelihood."""
        return self.objective.sampled or self.model == "vq_vae"

    @property
    def value_range(self) -> tuple[float, float]:
        """The range of x and x_hat: it must fit the decoder's last activation."""
        return (-1.0, 1.0) if self.likelihood == "squared_error" else (0.0, 1.0)

    @property
    def run_name(self) -> str:
        """A readable name with a short hash of all fields: one folder per config."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.arch}-{self.model}-z{self.latent_dim}-beta{self.beta:g}-seed{self.seed}-{digest}"


# Named sets of choices, for train.py --preset and config_for(data, **PRESETS[…]). "best" costs more time per epoch, and its
# nats cannot be compared with the assignment's; README.md has its numbers.
PRESETS = {"assignment": {},
           "best": {"likelihood": "gaussian", "norm": "batch", "residual": 1, "schedule": "one_cycle", "lr": 3e-3, "ema": 0.999}}


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Data                                                                                       ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

class DatasetUnavailable(VAEError):
    """The images are not here and could not be downloaded; the message says what was tried and the ways out."""


class Split(NamedTuple):
    """Images uint8 (N, C, H, W); labels (N,) int64 classes or (N, A) attributes or factors."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set in memory. The three splits share no file; test is for final numbers only."""

    name: str                     # one of DATASETS: what was really loaded
    title: str                    # what every figure calls it
    train: Split
    val: Split
    test: Split
    label_names: tuple[str, ...]  # of the classes, or of the columns of the labels

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def fingerprint(self) -> str:
        """A short hash of the sizes and of 64 training images: runs on other data never pass for this one's."""
        n = len(self.train.images)
        some = self.train.images[torch.linspace(0, n - 1, min(n, 64)).long()]
        head = f"{self.name} {[len(s.images) for s in (self.train, self.val, self.test)]} {tuple(some.shape)}"
        return hashlib.sha256(head.encode() + some.numpy().tobytes()).hexdigest()[:16]


SPLIT_SEED = 0           # fixed: every run and every seed sees the same train, validation and test images
FAST_SIZES = (1024, 256, 256)   # train, validation, test under VAE_FAST=1
CACHE_VERSION = 4        # raise it when decoding changes, or what a cache file holds
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")   # Pillow knows more, and runs Ghostscript on one of them
LARGEST_FILE = 1 << 28   # bytes; an image of Pillow's limit, 89 million pixels, is about as large


@checked
def load_dataset(name: str, *, image_size: int | None = None, data_dir: str | os.PathLike | None = None,
                 max_images: int | None = None, download: bool = True, or_shapes: bool = False) -> ImageData:
    """Load a data set as uint8 tensors in train, validation and test splits.

    Looked for under data_root(): torchvision's layout, NAME.zip, a folder NAME of images, then torchvision's
    download. Decoded images are cached, so the second start is quick.

    name        one of DATASETS
    image_size  pixels; default the set's own: 32 CIFAR-10 and shapes, 28 MNIST and Fashion-MNIST, 64 the others
    data_dir    for "folder": a folder or zip of images, flat, <class>/…, or {train,test}/<class>/…
    max_images  at most so many training images; of `shapes`, which has 3,000 if not told, also more
    download    whether torchvision may download (never under VAE_FAST=1)
    or_shapes   go on with the drawn shapes, and say so, when the set cannot be had

    Raises DatasetUnavailable; VAEError for an unknown name.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise VAEError(f"Unknown dataset {name!r}: choose one of {', '.join(DATASETS)}.")
    size = image_size or DATASETS[name]
    collecting = gc.isenabled()
    gc.disable()   # the names of 60,000 files are as many new objects, and for each few of them Python would look through all of PyTorch's
    try:
        if name == "shapes":
            data = _load_shapes(size, max_images)
        elif name == "folder":
            data = _load_folder(data_dir, size)
        else:
            data = _load_known(name, size, download and not switched_on("VAE_FAST"))
    except DatasetUnavailable as err:
        if not or_shapes:
            raise
        print(f"{'=' * 100}\n{err}\n\n>>> Going on with `shapes`, images that are drawn on the fly. "
              f"What is written about {name} elsewhere does not hold for them.\n{'=' * 100}")
        data = _load_shapes(size, max_images)
    finally:
        if collecting:
            gc.enable()
    train = Split(*(tensor[:max_images or None] for tensor in data.train))
    if len(train.images) < len(data.train.images) or switched_on("VAE_FAST"):
        data = dataclasses.replace(data, train=train, title=f"{data.title}, {len(train.images):,} training images")
    return data


def import_torchvision():
    """Import torchvision, also where its compiled operators do not load.

    A CUDA build of torchvision beside a CPU build of torch fails with "operator torchvision::nms does not exist".
    Nothing here uses those operators, so declaring the two missing ones is enough.
    """
    try:
        import torchvision
    except RuntimeError as err:
        if "torchvision::nms" not in str(err):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]            # the half-imported first try
        import torchvision
    return torchvision


def _load_known(name: str, size: int, download: bool) -> ImageData:
    """The first place that holds the set, torchvision's download last. Raises DatasetUnavailable, with all that was tried."""
    title, own_folder = {"cifar10": ("CIFAR-10", "cifar-10-batches-py"), "celeba": ("CelebA", "celeba/img_align_celeba"),
                         "mnist": ("MNIST", "MNIST/raw"), "fashion_mnist": ("Fashion-MNIST", "FashionMNIST/raw")}[name]
    root = data_root()
    own, folder, archive = root / own_folder, root / name, root / f"{name}.zip"   # own: as torchvision's download leaves it
    if name == "celeba":
        places = dict.fromkeys([own.with_suffix(".zip"), own, folder, archive], _load_celeba)   # a folder may be half unpacked
        way_out = (f"put img_align_celeba.zip and list_attr_celeba.txt (the official ones, or Kaggle's folder and .csv) into {folder}; "
                   "when the official download's daily quota is used up, Kaggle's copy has none")
    else:
        places = {own: _load_torchvision, archive: _load_tree, folder: _load_tree}
        way_out = f"put torchvision's files or {name}.zip (images as {{train,test}}/<class>/…) into {root}"
    tried = []
    for where, load in {**places, "download": places[own]}.items():
        try:
            if where == "download" and not download:
                raise DatasetUnavailable("not allowed here")
            if where == "download":
                _download(getattr(import_torchvision().datasets, title.replace("-", "")), own)
            return load(name, title, own if where == "download" else where, size)
        except Exception as err:   # damaged files, a network that refuses, hangs up or hands out an error page: told below
            tried.append(f"  - {where}: {_first_line(err)}")
    raise DatasetUnavailable(
        f"{title} is not here. Tried:\n" + "\n".join(tried) + f"\nThree ways out:\n  1. {way_out};\n"
        "  2. set VAE_DATA to the folder that holds it, or run again with a network connection and without VAE_FAST;\n"
        "  3. use the images that are drawn on the fly: dataset `shapes`.")


def _download(dataset: type, own: Path) -> None:
    """torchvision's download, with its checksums.

    It takes some unpacked files for whole by their names. So what is there and could not be read steps aside (but not CelebA's images,
    which may be the user's own), and comes back when there is no download.
    """
    aside = own.with_name(f"{own.name}.unreadable")
    if aside.is_dir():   # of a download that was killed
        shutil.rmtree(own, ignore_errors=True)
    elif own.is_dir() and own.name != "img_align_celeba":
        own.rename(aside)
    try:
        dataset(str(data_root()), download=True)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(own, ignore_errors=True)
            aside.rename(own)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _load_torchvision(name: str, title: str, path: Path, size: int) -> ImageData:
    """CIFAR-10, MNIST or Fashion-MNIST in torchvision's own files."""
    if not path.is_dir():
        raise DatasetUnavailable("not there")
    torchvision = import_torchvision()
    dataset = getattr(torchvision.datasets, title.replace("-", ""))   # CIFAR-10 is its CIFAR10
    halves = [dataset(str(data_root()), train=train) for train in (True, False)]
    images, labels = (torch.from_numpy(np.concatenate([getattr(half, a) for half in halves])) for a in ("data", "targets"))
    images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)
    rows = _assign_splits(["train"] * len(halves[0].data) + ["test"] * len(halves[1].data))
    resize = partial(torchvision.transforms.functional.resize, size=[size, size])
    splits = [Split(resize(images[some].contiguous()), labels[some]) for some in rows]
    return ImageData(name, title, *splits, tuple(halves[0].classes))


def _load_folder(data_dir: str | os.PathLike | None, size: int) -> ImageData:
    if data_dir is None:
        raise VAEError("--dataset folder needs --data_dir: the folder or zip with your images, for example data/NAME.")
    try:
        return _load_tree("folder", Path(data_dir).stem, Path(data_dir), size)
    except DatasetUnavailable as err:
        raise DatasetUnavailable(f"{data_dir}: {err}. Put your images there, or name another place with --data_dir.") from None


def _load_tree(name: str, title: str, path: Path, size: int) -> ImageData:
    """A folder or zip of images: flat, <class>/… or {train,test}/<class>/…, in any common top folder."""
    files = _open(path)
    parts = {n: n.split("/") for n in files if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES}   # pathlib takes a second for 60,000
    while len({p[0] for p in parts.values()}) == 1 and min(map(len, parts.values())) > 1:
        parts = {n: p[1:] for n, p in parts.items()}   # a folder that holds everything says nothing
    known = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
    splits = {n: known.get(p[0].lower(), "") for n, p in parts.items()}
    named = {"train", "test"} & set(splits.values())
    if len(named) == 1:
        raise DatasetUnavailable("of the folders train and test only one is there, name both or neither")
    if named:
        parts = {n: p[1:] for n, p in parts.items() if splits[n]}
    if len(parts) < 3:
        raise DatasetUnavailable(f"{len(parts) or 'no'} images there ({', '.join(sorted(IMAGE_SUFFIXES))}), "
                                 "and train, validation and test need one each")
    classes, labels = np.unique([p[0] if len(p) > 1 else "" for p in parts.values()], return_inverse=True)
    if name == "cifar10" and any(n.lower().endswith((".jpg", ".jpeg")) for n in parts):
        title += " (JPEG copy)"
    found = _decoded(path, {n: files[n] for n in parts}, torch.from_numpy(labels), [splits[n] for n in parts], size)
    return ImageData(name, _printable(title), *found, tuple(map(_printable, classes)))


def _printable(name: str | Path) -> str:
    """A file's name that is not valid UTF-8, with its bytes as \\udc…: else nothing could print it."""
    return str(name).encode(errors="backslashreplace").decode()


def _load_celeba(name: str, title: str, path: Path, size: int) -> ImageData:
    """CelebA in its official files or in Kaggle's, whole or a subset; attributes as bool (N, 40)."""
    files = _open(path)
    tables = _open(path.parent) if path.stem == "img_align_celeba" else files   # beside the images, or among them
    columns, rows = _celeba_table(tables, "list_attr_celeba", (-1, 0, 1))
    _, partition = _celeba_table(tables, "list_eval_partition", (0, 1, 2))
    images = {n.rsplit("/", 1)[-1]: n for n in files if n.lower().endswith((".jpg", ".png"))}
    if not rows:
        raise DatasetUnavailable("list_attr_celeba.txt (or .csv) is not beside it")
    both = sorted(images)
    for stem, table in {"list_attr_celeba": rows, "list_eval_partition": partition or images}.items():
        there, both = both, [n for n in both if n in table]
        if len(both) < 3:
            raise DatasetUnavailable(f"its {len(images):,} images are not the ones in {stem}")
        if len(both) < len(there):
            print(f"CelebA: {len(there) - len(both):,} images without a row in {stem} are left out.")
    splits = [("train", "val", "test")[partition[n][0]] if partition else "" for n in both]
    attributes = torch.tensor([rows[n] for n in both]) > 0
    found = _decoded(path, {images[n]: files[images[n]] for n in both}, attributes, splits, size,
                     crop=148 / 178)   # the usual 148-pixel square of the 178x218 images
    return ImageData(name, title if len(both) == 202_599 else f"{title} ({len(both):,} images)", *found, columns)


def _celeba_table(files: dict[str, Callable[[], bytes]], stem: str, known: Sequence[int]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Column names and whole numbers by image name, from the official .txt or Kaggle's .csv. Raises DatasetUnavailable on other numbers."""
    text = next((read() for n, read in files.items() if n.rsplit("/", 1)[-1] in (f"{stem}.txt", f"{stem}.csv")), b"")
    lines = [line.replace(",", " ").replace('"', " ").split() for line in text.decode("utf-8-sig").splitlines()]
    first = next((i for i, cells in enumerate(lines) if cells and cells[0].endswith((".jpg", ".png"))), len(lines))
    header = tuple(c for c in lines[first - 1] if c not in ("image_id", "image")) if first else ("partition",)
    words, rows = {str(k): k for k in known}, {}
    for number, cells in enumerate(lines[first:], first + 1):
        if cells and not (len(cells) == len(header) + 1 and cells[0].endswith((".jpg", ".png")) and words.keys() >= set(cells[1:])):
            raise DatasetUnavailable(f"line {number} of {stem} is not an image and {len(header)} of the numbers {', '.join(words)}: get that file again")
        if cells:
            rows[cells[0]] = tuple(words[c] for c in cells[1:])
    return header, rows


def _open(path: Path) -> dict[str, Callable[[], bytes]]:
    """What reads each file below a folder, or in a zip without unpacking it; by name, and in the order of the names.

    What is larger than LARGEST_FILE is not read, and raises ValueError: a zip of a few kB can hold gigabytes.
    """
    def read(size: int, content: Callable[[], bytes]) -> bytes:
        if size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
        return content()

    if not path.exists():
        raise DatasetUnavailable("not there")
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): partial(lambda p: read(p.stat().st_size, p.read_bytes), p) for p in path.rglob("*") if p.is_file()}
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as err:
            raise DatasetUnavailable(f"not a readable zip ({_first_line(err)}), get it again") from None
        files = {i.filename: partial(read, i.file_size, partial(archive.read, i)) for i in archive.infolist()
                 if not i.is_dir() and "__MACOSX" not in i.filename}
    return dict(sorted(files.items()))


def _assign_splits(named: Sequence[str]) -> list[Tensor]:
    """The indices of the training, validation and test images, each shuffled with the fixed seed.

    Where the source names train and test only, a tenth of train (at most 5,000) becomes validation; where it does not
    name both, all images are dealt 80/10/10. Shuffling makes the first k images of a split a fair sample of it: VAE_FAST=1
    keeps FAST_SIZES of them.
    """
    shuffled = torch.randperm(len(named), generator=torch.Generator().manual_seed(SPLIT_SEED))
    found = np.array(named)[shuffled]
    train, val, test = (shuffled[torch.from_numpy(found == s)] for s in ("train", "val", "test"))
    if not (len(train) and len(test)):
        tenth = max(1, len(shuffled) // 10)
        val, test, train = shuffled[:tenth], shuffled[tenth:2 * tenth], shuffled[2 * tenth:]
    elif not len(val):
        held = min(5000, max(1, len(train) // 10))
        val, train = train[:held], train[held:]
    return _fast([train, val, test])


def _fast(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Under VAE_FAST=1 the first of each split, so that no test image is one that a full run trained on."""
    return [part[:n] for part, n in zip(parts, FAST_SIZES)] if switched_on("VAE_FAST") else parts


def _decoded(path: Path, files: dict[str, Callable[[], bytes]], labels: Tensor, splits: Sequence[str], size: int,
             crop: float = 1.0) -> list[Split]:
    """The train, validation and test splits of the images in a folder or zip; decoded, or taken from the cache.

    Files that cannot be read as images are named, skipped and counted.
    """
    rows = _assign_splits(splits)
    counts, every = [len(part) for part in rows], list(files)
    names = [every[i] for i in torch.cat(rows).tolist()]
    stats = [(p.stat().st_size, p.stat().st_mtime_ns) for p in ([path / n for n in names] if path.is_dir() else [path])]
    key = hashlib.sha256(repr((CACHE_VERSION, path.resolve(), stats, size, crop, counts, names)).encode()).hexdigest()
    cache = Path(os.environ.get("VAE_CACHE") or Path.home() / ".cache" / "vae_helpers") / f"{key[:32]}.safetensors"
    try:
        found, _ = _load_tensors(cache)   # memory-mapped
        images, good = found["images"], found["good"]
    except Exception:   # missing, damaged, somebody else's: safetensors raises many kinds
        need_memory(len(names) * 3 * size ** 2, f"{len(names):,} images of {size}x{size} pixels")
        pixels, readable, channels = np.empty((len(names), 3, size, size), np.uint8), np.zeros(len(names), bool), 1
        with ThreadPool() as pool, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)   # more than 89 million pixels count as unreadable
            decoded = pool.imap(lambda name: _decode(files[name], size, crop), names, chunksize=200)
            for row, image in enumerate(progress_bar(decoded, total=len(names), desc=f"decoding {path.name}")):
                if image is not None:
                    pixels[row], readable[row], channels = image, True, max(channels, len(image))
        pixels = pixels if readable.all() else pixels[readable]
        images, good = torch.from_numpy(pixels)[:, :channels].contiguous(), torch.from_numpy(readable)
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            _save_tensors(cache, {"images": images, "good": good})
        except OSError as err:
            print(f"The decoded images could not be cached in {cache.parent} ({_first_line(err)}); they are decoded again next time.")
    if broken := sorted(n for n, ok in zip(names, good.tolist()) if not ok):
        print(f"{_printable(path)}: {len(broken)} of {len(files)} files could not be read as images and are skipped: "
              f"{', '.join(map(_printable, broken[:5]))}{' …' if len(broken) > 5 else ''}")
    labels = [labels[part[ok]] for part, ok in zip(rows, good.split(counts))]
    if not all(map(len, labels)):
        raise DatasetUnavailable("too few readable images: train, validation and test need one each")
    return list(map(Split, images.split([len(part) for part in labels]), labels))


def _decode(read: Callable[[], bytes], size: int, crop: float) -> np.ndarray | None:
    """An image file → uint8 (3, size, size), of a grey one (1, size, size); None when it cannot be read as an image.

    The centre square is cut out (crop: its side as a share of the width) and resized.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(read()), formats=IMAGE_FORMATS))
        if image.mode[0] in "IF":               # 16 bits, 32 bits, floats: Pillow would clip them at 255
            values, scales = np.asarray(image, np.float64), (1, 255, 65535) if image.mode == "F" else (65535, 2 ** 31 - 1)
            if values.min() < 0:
                return None                     # nobody knows which value is black
            image = Image.fromarray((values / next(top for top in scales if values.max() <= top) * 255).round().astype(np.uint8))
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        side = min(round(image.width * crop), *image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)
    except Exception:   # PIL raises many kinds on a broken file
        return None


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary file, wait until it is on the disk, and rename it: whatever happens, path is the old file or the new one.

    Raises OSError, also where safetensors has an error of its own for a full disk.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")   # a process id is unique on one machine only
    try:
        temporary.touch()
        mode = temporary.stat().st_mode   # as the user's umask has it: safetensors would leave a file that nobody else can read
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):   # the name is on the disk, too; Windows and some network drives cannot say so
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        for left in path.parent.glob(f".{path.name}.*.tmp"):   # by a process that was killed an hour ago or more
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > 3600:
                    left.unlink()
    except safetensors.SafetensorError as err:
        raise OSError(_first_line(err)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor], record: str = "") -> str:
    """SHA-256 of the names, types, shapes and values of tensors, and of a text."""
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _save_tensors(path: Path, tensors: dict[str, Tensor], record: dict | None = None) -> None:
    """One file of tensors and a JSON record, with the checksum of both: safetensors itself does not notice a flipped bit."""
    tensors, text = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, json.dumps(record or {})
    metadata = {"record": text, "sha256": _digest(tensors, text)}
    _write_atomically(path, lambda p: safetensors.torch.save_file(tensors, p, metadata))


def _load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What _save_tensors wrote, memory-mapped. Raises ValueError when the checksum does not fit, and what safetensors raises."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}   # noqa: SIM118
    if _digest(tensors, metadata.get("record", "")) != metadata.get("sha256"):
        raise ValueError("its checksum does not fit")
    return tensors, json.loads(metadata["record"])


def _first_line(err: BaseException) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]


SHAPE_FACTORS = {"shape": 3, "hue": 10, "background_hue": 10, "size": 4, "x": 8, "y": 8, "rotation": 8}


@checked
def draw_shapes(factors: Tensor, image_size: int = 32) -> Tensor:
    """Draw coloured shapes: (N, 7) whole-number factors, columns as in SHAPE_FACTORS → uint8 (N, 3, H, W).

    Shape 0 is an ellipse, 1 a rectangle, 2 a triangle. All are elongated, and rotations cover half a turn, so that
    every combination of factors is a different image. Edges are anti-aliased through signed distances.
    """
    shape, hue, background, size, x, y, rotation = factors.T[..., None, None].float()   # each (N, 1, 1)
    grid = (torch.arange(image_size) + 0.5) / image_size * 2 - 1                        # pixel centres in [-1, 1]
    a = 0.22 + 0.09 * size
    b = 0.6 * a
    u = grid[None, None, :] - (x / 7 - 0.5) * 0.9
    v = grid[None, :, None] - (y / 7 - 0.5) * 0.9
    angle = rotation / 8 * math.pi
    u, v = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
    ellipse = (((u / a) ** 2 + (v / b) ** 2).sqrt() - 1) * b
    rectangle = torch.maximum(u.abs() - a * 0.9, v.abs() - b * 0.8)
    triangle = torch.maximum(-u - a, (0.8 * (u - a) + 2.0 * v.abs()) / math.hypot(2.0, 0.8))   # base at u = -a, tip at u = a
    distance = torch.where(shape == 0, ellipse, torch.where(shape == 1, rectangle, triangle))
    inside = (0.5 - distance * image_size / 2).clamp(0, 1)[:, None]                     # (N, 1, H, W)
    front, back = (torch.tensor([colorsys.hsv_to_rgb(i / 10, *sv) for i in range(10)])[level.flatten().long()][..., None, None]
                   for level, sv in ((hue, (0.85, 0.95)), (background, (0.45, 0.45))))
    return ((front * inside + back * (1 - inside)) * 255).round().byte()


def _load_shapes(size: int, images: int | None) -> ImageData:
    counts = [3000, 500, 1000, max(0, (images or 0) - 3000)]   # training takes minutes on two CPU cores; the last are more, if asked for
    levels = tuple(SHAPE_FACTORS.values())   # 614,400 combinations: distinct ones, so that the splits share no image
    chosen = torch.randperm(math.prod(levels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    if sum(counts) > len(chosen):
        raise VAEError(f"There are {len(chosen):,} different shapes: max_images can be at most {len(chosen) - 1500:,}.")
    need_memory(sum(counts) * 3 * size ** 2, f"{sum(counts):,} images of {size}x{size} pixels")
    train, val, test, more = torch.stack(torch.unravel_index(chosen[:sum(counts)], levels), dim=1).split(counts)
    parts = _fast([torch.cat([train, more]), val, test])
    at_once = max(1, 500 * 32 ** 2 // size ** 2)
    splits = [Split(torch.cat([draw_shapes(some, size) for some in part.split(at_once)]), part) for part in parts]
    title = "shapes (synthetic)" + (f", {len(parts[0]):,} training images" if len(parts[0]) > 3000 else "")
    return ImageData("shapes", title, *splits, tuple(SHAPE_FACTORS))


@checked
def as_unit(images: Tensor) -> Tensor:
    """Images, uint8 or float in [0, 1] → float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@checked
def to_input(images: Tensor, config: Config) -> Tensor:
    """Images, uint8 or float in [0, 1] → x, float32 in config.value_range."""
    low, high = config.value_range
    return as_unit(images) * (high - low) + low


@checked
def to_unit(x: Tensor, config: Config) -> Tensor:
    """x or x_hat in config.value_range → float images in [0, 1]."""
    low, high = config.value_range
    return ((x - low) / (high - low)).clamp(0, 1)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                   ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

@checked
def reparameterize(mu: Tensor, logvar: Tensor, noise: torch.Generator | Tensor | None = None) -> Tensor:
    """z = mu + sigma * eps, eps ~ N(0, I): a sample that gradients pass through (Kingma & Welling 2014, section 2.4).

    mu, logvar (N, D) → z (N, D). noise is eps (N, D) itself, or a generator on mu's device that draws it.
    """
    return mu + torch.exp(0.5 * logvar) * _normal(mu.shape, noise, mu.device, mu.dtype)


def _normal(shape: Sequence[int], noise: torch.Generator | Tensor | None, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise if isinstance(noise, Tensor) else torch.randn(shape, generator=noise, device=device, dtype=dtype)


@checked
def conditions(config: Config, labels: Tensor | None = None) -> Tensor | None:
    """Labels as a conditional model takes them: classes (N,) → one-hot (N, A); attributes (N, A) → 0 and 1; None for other models.

    Of the factors of `shapes` the shape counts as the class. Floats are taken as they are, so that labels can be mixed.
    """
    if not config.conditions:
        return None
    if labels is None:
        raise VAEError("This model is conditional: hand in a label for each image, or take a model that is not.")
    if labels.ndim == 2 and config.dataset == "shapes" and not labels.is_floating_point():
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] != config.conditions or labels.ndim == 1 and (
            labels.is_floating_point() or not ((labels >= 0) & (labels < config.conditions)).all()):
        raise VAEError(f"This model was told {config.conditions} classes or attributes: labels must be whole numbers (N,) from 0 to "
                       f"{config.conditions - 1}, or (N, {config.conditions}), not {shown(labels)}.")
    if labels.is_floating_point():
        return labels
    return (F.one_hot(labels.long(), config.conditions) if labels.ndim == 1 else labels).float()


def grid_sizes(config: Config) -> list[int]:
    """Heights of the feature maps, each half the one before, rounded down: 32 → [32, 16, 8, 4]; 28 → [28, 14, 7]."""
    return [config.image_size >> i for i in range(config.depth + 1)]


def code_grid(config: Config) -> int:
    """The side of a vq_vae's square of codes; a fully connected one has no grid of its own, and gets 4x4."""
    return grid_sizes(config)[-1] if config.arch == "conv" else 4


class LatentHeads(nn.Module):
    """Features (N, F) → mu, logvar, each (N, D): how every encoder ends."""

    def __init__(self, features: int, latent_dim: int):
        super().__init__()
        self.mu = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu(h).float(), self.logvar(h).float()   # where the layers before were trained in 16 bits, too


class Residual(nn.Module):
    """h + conv1x1(relu(conv3x3(relu(h)))), each convolution after a normalisation if there is one (van den Oord et al.
    2017, section 4.1): (N, C, H, W) → the same. Starts as the identity."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        conv = [nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.Conv2d(channels, channels, kernel_size=1)]
        self.branch = nn.Sequential(*activation(channels, norm), conv[0], *activation(channels, norm), conv[1])
        nn.init.zeros_(conv[1].weight)
        nn.init.zeros_(conv[1].bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


def activation(channels: int, norm: str) -> list[nn.Module]:
    """What follows a convolution: ReLU, after batch normalisation (Ioffe & Szegedy 2015) if asked for."""
    return [nn.BatchNorm2d(channels), nn.ReLU()] if norm == "batch" else [nn.ReLU()]


def conv_encoder(config: Config) -> nn.Sequential:
    """The assignment's encoder at 32x32: three strided 4x4 convolutions, then mu and logvar. x (N, C, H, W)."""
    size, layers, channels = grid_sizes(config)[-1], [], config.channels + bool(config.conditions)   # a label is one more channel
    for i in range(config.depth):                          # 32 → 16 → 8 → 4
        out = config.width * 2 ** i                        # 32, 64, 128 channels
        if config.downsample == "stride":
            layers += [nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1), *activation(out, config.norm)]
        else:
            layers += [nn.Conv2d(channels, out, kernel_size=3, padding=1), *activation(out, config.norm), nn.MaxPool2d(2)]
        layers += [Residual(out, config.norm) for _ in range(config.residual)]
        channels = out
    if config.model == "vq_vae":                           # one code for each place of the grid
        return nn.Sequential(*layers, nn.Conv2d(channels, config.latent_dim, kernel_size=1))
    return nn.Sequential(*layers, nn.Flatten(), LatentHeads(channels * size * size, config.latent_dim))


def conv_decoder(config: Config) -> nn.Sequential:
    """The mirror image: a linear layer, then transposed 4x4 convolutions. z (N, D) → x_raw (N, C, H, W)."""
    sizes = grid_sizes(config)
    channels = config.width * 2 ** (config.depth - 1)
    if config.model == "vq_vae":
        layers = [nn.Conv2d(config.latent_dim, channels, kernel_size=3, padding=1)]
    else:
        layers = [nn.Linear(config.latent_dim + config.conditions, channels * sizes[-1] ** 2),
                  nn.Unflatten(1, (channels, sizes[-1], sizes[-1]))]
    layers += activation(channels, config.norm)
    for i in reversed(range(config.depth)):                # 4 → 8 → 16 → 32
        out = config.width * 2 ** (i - 1) if i else config.channels
        odd = sizes[i] - 2 * sizes[i + 1]                  # 1 where halving rounded down: 7 → 3 needs 3 → 7
        layers += [Residual(channels, config.norm) for _ in range(config.residual)]
        layers += [nn.ConvTranspose2d(channels, out, kernel_size=4, stride=2, padding=1, output_padding=odd)]
        layers += activation(out, config.norm) if i else []   # the last activation depends on the likelihood
        channels = out
    return nn.Sequential(*layers)


def fc_encoder(config: Config) -> nn.Sequential:
    """The image as one long vector, through hidden layers that narrow by half, then mu and logvar."""
    sizes = [(config.channels + bool(config.conditions)) * config.image_size ** 2] + [config.width >> i for i in range(config.depth)]
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    if config.model == "vq_vae":
        grid = (config.latent_dim, code_grid(config), code_grid(config))
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], math.prod(grid)), nn.Unflatten(1, grid))
    return nn.Sequential(nn.Flatten(), *layers, LatentHeads(sizes[-1], config.latent_dim))


def fc_decoder(config: Config) -> nn.Sequential:
    """The mirror image: z (N, D) → x_raw (N, C, H, W)."""
    shape = (config.channels, config.image_size, config.image_size)
    code = config.latent_dim * code_grid(config) ** 2 if config.model == "vq_vae" else config.latent_dim + config.conditions
    sizes = [code] + [config.width >> i for i in reversed(range(config.depth))] + [math.prod(shape)]
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    start = [nn.Flatten()] if config.model == "vq_vae" else []
    return nn.Sequential(*start, *layers[:-1], nn.Unflatten(1, shape))


class Output(NamedTuple):
    """What a forward pass gives: x_raw (N, C, H, W), the decoder before its last activation; mu, logvar, z (N, D)."""

    x_raw: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor
    indices: Tensor | None = None   # of a vq_vae: which code stands at each place, (N, h, w)


class VAE(nn.Module):
    """Encoder q(z|x) = N(mu, diag sigma^2) and decoder p(x|z); z = mu where the objective does not sample.

    A conditional one (config.conditions, Sohn et al. 2015) has q(z|x, c) and p(x|z, c): c (N, A) reaches the encoder as one
    more channel, a learned linear picture of it, and the decoder beside z.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        encoder, decoder = {"conv": (conv_encoder, conv_decoder), "fc": (fc_encoder, fc_decoder)}[config.arch]
        self.encoder, self.decoder = encoder(config), decoder(config)
        if not config.objective.sampled and config.model != "vq_vae":
            self.encoder[-1].logvar.requires_grad_(False)   # takes no part
        if config.conditions:
            self.condition_plane = nn.Linear(config.conditions, config.image_size ** 2)
        # of a gaussian p(x|z), on [0, 1]; fit sets it, see calibrate; no other likelihood has one
        self.register_buffer("sigma", torch.tensor(0.1) if config.likelihood == "gaussian" else None)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) in config.value_range, conditions c (N, A) → mu, logvar, each (N, D)."""
        if c is not None:
            x = torch.cat([x, self.condition_plane(c).reshape(-1, 1, *x.shape[2:])], dim=1)
        return self.encoder(x)

    def decode_raw(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z (N, D), c (N, A) → x_raw (N, C, H, W), before the last activation."""
        return self.decoder(z if c is None else torch.cat([z, c], dim=1)).float()

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z (N, D), c (N, A) → x_hat (N, C, H, W) in config.value_range: the mean of p(x|z)."""
        return self.activate(self.decode_raw(z, c))

    def activate(self, x_raw: Tensor) -> Tensor:
        """The decoder's last activation: x_raw → x_hat in config.value_range."""
        return torch.tanh(x_raw) if self.config.likelihood == "squared_error" else torch.sigmoid(x_raw)

    def forward(self, x: Tensor, noise: torch.Generator | Tensor | None = None, c: Tensor | None = None) -> Output:
        mu, logvar = self.encode(x, c)
        z = reparameterize(mu, logvar, noise) if self.config.objective.sampled else mu
        return Output(self.decode_raw(z, c), mu, logvar, z)


class Codebook(nn.Module):
    """K vectors that stand for everything the encoder says, moved to the mean of what they stood for lately.

    Exponential moving averages in place of a gradient (van den Oord et al. 2017, appendix A.1). A code that is hardly used
    is set to an output of the encoder (Dhariwal et al. 2020, section 3.1), which also sets the first codes.
    """

    DECAY, DEAD = 0.99, 0.1   # dead: used less than a tenth of the average

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(size, dim))
        self.register_buffer("counts", torch.zeros(size))        # moving averages of how often a code is used in a batch,
        self.register_buffer("sums", torch.zeros(size, dim))     # and of the sum of what it stood for

    def nearest(self, z: Tensor) -> Tensor:
        """Vectors (M, D) → the indices of their nearest codes, (M,)."""
        return torch.addmm(self.codes.square().sum(1), z, self.codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def update(self, z: Tensor, generator: torch.Generator | None) -> None:
        """Move the codes towards the encoder's outputs z (M, D) of one batch."""
        average = len(z) / len(self.codes)
        dead = self.counts < self.DEAD * average
        self.codes[dead] = z[torch.randint(len(z), (int(dead.sum()),), generator=generator, device=z.device)]
        self.counts[dead] = 2 * self.DEAD * average     # without use it is dead again in 70 batches
        self.sums[dead] = self.codes[dead] * self.counts[dead, None]
        nearest = self.nearest(z)
        self.counts.lerp_(torch.bincount(nearest, minlength=len(self.codes)).to(z.dtype), 1 - self.DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, nearest, z), 1 - self.DECAY)
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))


class CodePrior(nn.Module):
    """p(codes): a small causal transformer that reads the grid row by row, each code given all before it.

    It takes the place of the PixelCNN of van den Oord et al. 2017, section 3.3.
    """

    def __init__(self, codebook: int, places: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.token = nn.Embedding(codebook + 1, width)           # the last one marks the start
        self.place = nn.Parameter(torch.zeros(places, width))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True,
                                                               norm_first=True) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codebook))

    def forward(self, before: Tensor) -> Tensor:
        """The first codes (N, T) of each image → logits of every code up to the next one, (N, T + 1, K)."""
        h = self.token(F.pad(before, (1, 0), value=self.token.num_embeddings - 1)) + self.place[:before.shape[1] + 1]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(h)

    def nats(self, indices: Tensor) -> Tensor:
        """-log p of grids of codes (N, h, w) → (N,) nats."""
        flat = indices.flatten(1)
        logits = self(flat[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none").reshape(flat.shape).sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n grids, read row by row: (n, places). What forward does, one place at a time: each block keeps what it has seen."""
        codes = [torch.full((n,), self.token.num_embeddings - 1, device=self.place.device)]   # the start
        seen = [torch.zeros(n, 0, self.place.shape[1], device=self.place.device) for _ in self.blocks]
        for place in self.place:
            h = (self.token(codes[-1]) + place)[:, None]
            for i, block in enumerate(self.blocks):
                new = block.norm1(h)
                seen[i] = torch.cat([seen[i], new], dim=1)
                h = h + block.self_attn(new, seen[i], seen[i], need_weights=False)[0]
                h = h + block.linear2(block.activation(block.linear1(block.norm2(h))))
            codes.append(torch.multinomial(self.head(h[:, 0]).softmax(1), 1, generator=generator)[:, 0])
        return torch.stack(codes[1:], dim=1)


class VQVAE(VAE):
    """The decoder sees the nearest of K codes at each place of a grid (van den Oord et al. 2017). D = latent_dim * h * w.

    mu is what the encoder says, z the codes in its place. The gradient passes z as if it were mu (straight through, section
    3.2). The prior learns beside them, on codes that carry no gradient, so it never bends the code.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.grid = (code_grid(config), code_grid(config))
        self.codebook = Codebook(config.codebook, config.latent_dim)
        self.prior = CodePrior(config.codebook, math.prod(self.grid))

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → what the encoder says, (N, D), and logvar = -inf, (N, 1), for all of it: a point."""
        mu = self.encoder(x).flatten(1).float()
        return mu, mu.new_full((len(mu), 1), -math.inf)

    def vectors(self, z: Tensor) -> Tensor:
        """(N, D) → one vector for each place, (N * h * w, latent_dim)."""
        return z.reshape(len(z), self.config.latent_dim, -1).transpose(1, 2).flatten(0, 1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Codes of (N, h, w) or (N, h * w) places → z (N, D)."""
        return self.codebook.codes[indices.flatten(1)].transpose(1, 2).flatten(1)

    def indices(self, z: Tensor) -> Tensor:
        """z (N, D) → the nearest code of each place, (N, h, w)."""
        return self.codebook.nearest(self.vectors(z)).reshape(len(z), *self.grid)

    def decode_raw(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z (N, D), codes or anything between them → x_raw (N, C, H, W) of the nearest codes."""
        return self.decoder(self.look_up(self.indices(z)).reshape(len(z), -1, *self.grid)).float()

    def forward(self, x: Tensor, noise: torch.Generator | None = None, c: Tensor | None = None) -> Output:
        mu, logvar = self.encode(x)
        with torch.autocast(x.device.type, enabled=False):   # in 16 bits another code could be the nearest
            if self.training:
                self.codebook.update(self.vectors(mu.detach()), noise)
            indices = self.indices(mu.detach())
        z = mu + (self.look_up(indices) - mu).detach()
        return Output(self.decoder(z.reshape(len(z), -1, *self.grid)).float(), mu, logvar, z, indices)


@checked
def build_model(config: Config) -> VAE:
    """The model of a config, its weights drawn from config.seed, on get_device()."""
    if config.model == "cvae" and not config.conditions:
        raise VAEError("A cvae needs to know how many classes or attributes there are: make its config with config_for(data, model='cvae').")
    kind = VQVAE if config.model == "vq_vae" else VAE
    try:
        with torch.device("meta"):   # sizes without memory
            size = sum(math.prod(v.shape) for v in kind(config).state_dict().values())
    except (RuntimeError, TypeError):   # a size that does not fit into 64 bits
        size = math.inf
    need_memory(4 * 4 * size, "This model with its gradients and Adam's two moments")   # in float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = kind(config)
    return model.to(get_device(), memory_format=torch.channels_last)


def epochs_wanted() -> dict[str, int | str]:
    """{"epochs": n} under VAE_EPOCHS=n, else {}. Config refuses what is no number."""
    epochs = os.environ.get("VAE_EPOCHS")
    return {"epochs": int(epochs) if epochs.isdecimal() else epochs} if epochs else {}


@checked
def config_for(data: ImageData, **choices) -> Config:
    """A Config that fits a data set; VAE_FAST=1 makes it one epoch, VAE_EPOCHS=n sets the epochs."""
    if switched_on("VAE_FAST"):
        choices |= {"epochs": 1, "max_images": len(data.train.images)}
    choices |= epochs_wanted()
    if choices.get("model") == "cvae":
        choices["conditions"] = len(condition_names(data))
    return Config(dataset=data.name, image_size=data.image_size, channels=data.channels, **choices)


@checked
def condition_names(data: ImageData) -> tuple[str, ...]:
    """What a conditional model is told: the classes or attributes. Raises VAEError where the images have no labels."""
    names = ("ellipse", "rectangle", "triangle") if data.name == "shapes" else data.label_names
    if len(names) < 2:
        raise VAEError(f"A cvae needs labels, and there are none in {data.title}: sort the images into one folder per class "
                       "(<class>/…), or train model vae.")
    return names


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@checked
def count_flops(model: VAE) -> int:
    """Floating-point operations of one forward pass of one image (a multiply-add counts two), by PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode
    c, training = model.config, model.training
    told = torch.zeros(1, c.conditions, device=model.device) if c.conditions else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, c.channels, c.image_size, c.image_size, device=model.device), c=told)
    model.train(training)
    return counter.get_total_flops()


@checked
def fc_width_for(config: Config, parameters: int) -> int:
    """The width at which the fully connected model of this config comes closest to a number of parameters."""
    def size(width: int) -> int:
        with torch.device("meta"):   # counts weights without making them
            return count_parameters(VAE(dataclasses.replace(config, arch="fc", width=width, depth=2)))
    above = bisect.bisect_left(range(1 << 16), parameters, lo=2, key=size)   # the count grows with the width
    return min((max(2, above - 1), above), key=lambda w: abs(size(w) - parameters))


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses                                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

@checked
def reconstruction_nats(x_raw: Tensor, x: Tensor, likelihood: str, sigma: Tensor | float | None = None) -> Tensor:
    """-log p(x|z) of each image, summed over its pixels: (N, C, H, W) twice → (N,) nats.

    bernoulli      binary cross-entropy, x_raw are logits, x in [0, 1] (Kingma & Welling 2014, appendix C.1). For grey
                   values it is no likelihood of them, and it has a floor above 0: see bce_floor_nats.
    squared_error  ||x - tanh(x_raw)||^2, x in [-1, 1]: a Gaussian of variance 1/2, its constant left out.
    gaussian       -log N(x; sigmoid(x_raw), sigma^2 I), x in [0, 1]: of a density, so it can be below 0. Without a sigma, the best
                   one for this batch: sigma^2 = its mean squared error (Rybkin et al. 2021, section 3.2).
    """
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(x_raw, x, reduction="none").flatten(1).sum(1)
    if likelihood == "squared_error":
        return (torch.tanh(x_raw) - x).square().flatten(1).sum(1)
    squared = (torch.sigmoid(x_raw) - x).square().flatten(1)
    # the loss is flat in sigma at its best value, so no gradient needs to pass through it
    variance = squared.mean().detach().clamp(min=1e-8) if sigma is None else torch.as_tensor(sigma, device=x.device).square()
    return 0.5 * (squared.sum(1) / variance + squared.shape[1] * torch.log(2 * math.pi * variance))


@checked
def kl_nats_per_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every dimension: (N, D) → (N, D) nats (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


@checked
def kl_nats(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each image, summed over the latent dimensions: (N, D) → (N,) nats."""
    return kl_nats_per_dim(mu, logvar).sum(-1)


@checked
def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples (N, D), (M, D) → (), unbiased, so it can be below 0 (Gretton et al. 2012, eq. 3).

    Kernel C / (C + ||z - z'||^2) with C = 2 D: the inverse multiquadratic for a prior N(0, I) (Tolstikhin et al. 2018, section 4).
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise VAEError(f"mmd compares two samples (N, D) and (M, D) of at least 2 each, not {tuple(a.shape)} and {tuple(b.shape)}.")
    scale = 2 * a.shape[1]
    # not torch.cdist, whose gradient older versions lack on MPS
    squared = lambda x, y: (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)   # noqa: E731
    kernel = lambda x, y: scale / (scale + squared(x, y))   # noqa: E731
    within = [(kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return within[0] + within[1] - 2 * kernel(a, b).mean()


def code_nats(model: VAE, out: Output) -> Tensor:
    """The price of each image's code, (N,) nats: its KL; -log p(codes) for a vq_vae; 0 for ae and wae, whose code is a point.

    While a vq_vae trains, only of every fourth image: its prior would cost more time than all the rest.
    """
    if model.config.model == "vq_vae":
        return model.prior.nats(out.indices[::4] if model.training else out.indices)
    return kl_nats(out.mu, out.logvar) if model.config.objective.sampled else torch.zeros_like(out.mu[:, 0])


def penalty(model: VAE, out: Output, noise: torch.Generator | Tensor | None = None) -> Tensor:
    """What training adds to reconstruction + beta * KL: the weighted MMD against draws of N(0, I), which are `noise` or come
    from it, or a vq_vae's commitment (van den Oord et al. 2017, equation 3, weight 0.25), which keeps the encoder near the codes."""
    if model.config.model == "vq_vae":
        return 0.25 * (out.mu - out.z.detach()).square().sum(1).mean()
    if not model.config.mmd:
        return out.z.new_zeros(())
    return model.config.mmd * mmd(out.z, _normal(out.z.shape, noise, out.z.device))


@checked
def discretised_logistic_nats(mean: Tensor, images: Tensor, scale: float) -> Tensor:
    """-log P(image) of each uint8 image when every value is a logistic around mean, cut into the 256 grey levels.

    mean (N, C, H, W) in [0, 1], images uint8 of the same shape, scale in grey levels → (N,) nats. Levels 0 and 255 take
    the tails (Salimans et al. 2017, section 2.1). A probability of the pixels themselves: sums to 1 over all images.
    """
    if images.dtype != torch.uint8:
        raise VAEError(f"Only uint8 images have the 256 grey levels that this is about, not {shown(images)}.")
    x = images.to(mean.device).float()
    above, below = (x + 0.5 - 255 * mean) / scale, (x - 0.5 - 255 * mean) / scale
    # log(S(above) - S(below)) without cancellation, S the logistic function; above - below is 1 / scale everywhere
    middle = F.logsigmoid(above) + F.logsigmoid(-below) + math.log(-math.expm1(-1 / scale))
    log_p = torch.where(x == 0, F.logsigmoid(above), torch.where(x == 255, F.logsigmoid(-below), middle))
    return -log_p.flatten(1).sum(1)


@checked
def bce_floor_nats(x: Tensor) -> Tensor:
    """The least binary cross-entropy that any x_hat can reach on grey values x in [0, 1]: (N, C, H, W) → (N,) nats.

    -x log x_hat - (1-x) log(1-x_hat) is smallest at x_hat = x, where it is the entropy of a coin with bias x: 0 for
    black and white, log 2 for mid-grey. What a model has above this floor is what it can still improve.
    """
    if not ((x >= 0) & (x <= 1)).all():
        raise VAEError("bce_floor_nats is for x in [0, 1].")
    return (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Training & checkpoints                                                                     ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

class TrainingDiverged(VAEError):
    """The loss is no longer a finite number."""


class CheckpointError(VAEError):
    """A checkpoint that is missing, damaged, or not for this model."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a training; the message says what was saved and how to go on."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [str(self)]


@checked
def forward_passes(model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0):
    """Yield x and the Output of each 500 uint8 images, without gradients, with one seeded sample of z per image."""
    generator = torch.Generator(model.device).manual_seed(seed)
    model.eval()
    split = [i.split(500) for i in (images, conditions(model.config, labels)) if i is not None]
    for part, *given in zip(*split, strict=True):
        x = to_input(part.to(model.device), model.config)
        with torch.no_grad():
            out = model(x, generator, *(c.to(model.device) for c in given))
        yield x, out   # outside: left in the middle, as by Ctrl-C, it would keep gradients off for good


@checked
def image_losses(model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Reconstruction and the price of the code (code_nats) of each uint8 image, two (N,) in nats, float64."""
    with torch.no_grad():
        parts = [(reconstruction_nats(out.x_raw, x, model.config.likelihood, model.sigma).cpu(), code_nats(model, out).cpu())
                 for x, out in forward_passes(model, images, labels, seed=seed)]
    return tuple(torch.cat(t).double() for t in zip(*parts))   # on the CPU: MPS knows no float64


@checked
def fit(model: VAE, data: ImageData, config: Config, *, progress: bool = True, on_epoch: Callable[[list[dict]], None] | None = None,
        save: Callable[[list[dict], dict[str, Tensor]], None] | None = None,
        start: tuple[list[dict], dict[str, Tensor]] | None = None) -> list[dict]:
    """Minimise reconstruction + beta * KL + penalty with Adam; returns the history, one dict an epoch, and draws nothing.

    Every loss is in nats per image; KL is the price of the code (code_nats), and total leaves the penalty out. train_* are
    means over the epoch while the weights still move; val_* are measured after it with the same beta. With config.ema,
    validation, on_epoch and the caller see the averaged weights.

    on_epoch   called with the history so far after every epoch
    save       called before it with the history and all that start needs to go on from here, on a CPU to the same last bit
    start      what save was given in a run that was cut off

    Under torchrun each process trains on its share of every batch, and the losses are those of all; the first one calls save
    and on_epoch. MMD, the variance of a gaussian likelihood and batch normalisation then see a share of a batch.

    Raises TrainingDiverged when the loss is not finite, VAEError for what cannot be shared.
    """
    device, (rank, world), n = model.device, workers(), len(data.train.images)
    if world > min(n, len(data.val.images), config.batch_size) or world > 1 and config.model == "vq_vae":
        raise VAEError("A vq_vae trains in one process: start train.py without torchrun." if config.model == "vq_vae" else
                       f"{world} processes are more than there are images in a batch, or for validation: name a smaller --nproc_per_node.")
    steps = len(_batches(n, config, torch.Generator()))   # in one epoch
    state = _TrainingState(model, config, steps)
    history = list(start[0]) if start else []
    if history:
        state.restore(start[1], len(history))
    dtype, here = precision(device), Split(data.train.images, data.train.labels if not config.conditions else conditions(config, data.train.labels))
    if resident(here, device):
        here = Split(*(tensor.to(device) for tensor in here))
    net = DistributedDataParallel(model) if world > 1 else model
    draw = lambda x: torch.randn(len(x), config.latent_dim, generator=state.noise_rng, device=device)   # noqa: E731

    def losses(x: Tensor, c: Tensor | None, noise: Tensor | torch.Generator | None, drawn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean reconstruction, price of the code and penalty of one batch; drawn: from N(0, I), for the MMD."""
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = net(x, noise, c)
        return reconstruction_nats(out.x_raw, x, config.likelihood).mean(), code_nats(model, out).mean(), penalty(model, out, drawn)

    compiled = torch.compile(losses, dynamic=False) if compile_pays(config, n, device) else None   # until it has worked once, it may not
    first = len(history) + 1
    began, seen_last = time.perf_counter() - (history[-1]["seconds"] if history else 0), "nothing"
    for epoch in range(first, config.epochs + 1):
        model.train()
        sums, seen = torch.zeros(3, device=device), 0
        batches = _batches(n, config, state.order_rng)
        parts = _on_device(here, [indices[rank::world] for indices in batches], device)
        bar = progress_bar(parts, total=steps, desc=f"epoch {epoch}/{config.epochs}", hidden=not progress or rank > 0)
        for step, (images, labels) in enumerate(bar):
            x = to_input(images, config).contiguous(memory_format=torch.channels_last)
            noise = state.noise_rng if config.model == "vq_vae" else draw(x) if config.objective.sampled else None
            inputs = x, labels if config.conditions else None, noise, draw(x) if config.mmd else None
            forward = compiled if compiled and len(x) == config.batch_size else losses   # a last, smaller batch is not worth compiling for
            try:
                rec, kl, extra = forward(*inputs)
            except Exception as err:                             # no C++ compiler, a version that does not know this machine
                if forward is losses or epoch > first or step:
                    raise
                print(f"torch.compile does not work here ({_first_line(err)}): going on without it.")
                compiled = None
                rec, kl, extra = losses(*inputs)
            progressed = (epoch - 1 + step / steps) / config.kl_warmup if config.kl_warmup else 1.0
            share = len(x) * world / len(batches[step])          # gradients are averaged over the processes, whatever their shares
            state.step(share * (rec + config.beta * min(1.0, progressed) * kl + extra))
            sums += torch.stack([rec.detach(), kl.detach(), extra.detach()]) * len(x)
            seen += len(batches[step])
            if step % 20 == 0 or step == steps - 1:            # reading a number waits for the device: not every step
                rec_mean, kl_mean, extra_mean = (over_all(sums) / seen).tolist()
                if not math.isfinite(rec_mean + kl_mean + extra_mean):
                    raise TrainingDiverged(_diverged(config, f"in epoch {epoch}", f"step {step + 1} of {steps}; seen last: {seen_last}"))
                seen_last = f"reconstruction {rec_mean:,.1f} and KL {kl_mean:,.1f} nats in epoch {epoch}, step {step + 1}"
                bar.set_postfix(rec=f"{rec_mean:.1f}", kl=f"{kl_mean:.1f}", total=f"{rec_mean + config.beta * kl_mean:.1f}")
        sums = over_all(sums) / n
        train = dict(zip(("reconstruction_nats", "kl_nats"), sums.tolist()))
        state.swap_average()
        if world > 1:
            for buffer in model.buffers():                       # running means of different shares
                dist.broadcast(buffer, 0)
        calibrate(model, data.train)
        found = image_losses(model, *(tensor[rank::world] for tensor in data.val), seed=rank)
        val = dict(zip(train, (over_all(torch.stack([values.sum() for values in found])) / len(data.val.images)).tolist()))
        row = {"epoch": epoch, "seconds": time.perf_counter() - began, "train_penalty": sums[2].item(), "compiled": compiled is not None}
        for split, means in (("train", train), ("val", val)):
            row |= {f"{split}_{k}": v for k, v in means.items()}
            row[f"{split}_total_nats"] = means["reconstruction_nats"] + config.beta * means["kl_nats"]
        if not all(map(math.isfinite, row.values())):
            raise TrainingDiverged(_diverged(config, f"in epoch {epoch}", f"on the validation images; seen last: {seen_last}"))
        history.append(row)
        if save and rank == 0:
            save(history, state.tensors())
        if on_epoch and rank == 0:
            on_epoch(history)
        if epoch < config.epochs:
            state.swap_average()
    model.eval()
    return history


class _TrainingState:
    """What changes while a model trains. tensors() gives all of it, by name, and restore() takes it up again.

    With config.ema the model has its raw weights while it learns; swap_average changes them for the averaged ones, and back.
    """

    def __init__(self, model: VAE, config: Config, steps: int):
        rank, _ = workers()
        self.model, self.config, self.steps = model, config, steps
        self.optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        self.schedule = None if config.schedule == "constant" else torch.optim.lr_scheduler.OneCycleLR(   # Smith & Topin 2018
            self.optimiser, config.lr, total_steps=config.epochs * steps, cycle_momentum=False)
        # forgets the random initial weights: after n steps, decay is at most (1+n) / (10+n)
        ema = lambda averages, values, n: get_ema_multi_avg_fn(min(config.ema, (1 + n.item()) / (10 + n.item())))(averages, values, n)   # noqa: E731
        self.average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True) if config.ema else None
        self.order_rng = torch.Generator().manual_seed(config.seed)
        self.noise_rng = torch.Generator(model.device).manual_seed(config.seed + 1000 * rank)

    def step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.schedule:
            self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)

    def swap_average(self) -> None:
        if self.average:
            for here, there in zip(self.model.state_dict().values(), self.average.module.state_dict().values()):
                kept = here.clone()
                here.copy_(there)
                there.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """After an epoch and swap_average: "model." are the weights that count, what load_checkpoint gives."""
        moments = {f"adam.{i}.{k}": v for i, p in enumerate(self.model.parameters()) for k, v in self.optimiser.state[p].items()}
        raw = {f"raw.{k}": v for k, v in self.average.module.state_dict().items()} if self.average else {}
        averaged = {"average.n_averaged": self.average.n_averaged} if self.average else {}
        return {**{f"model.{k}": v for k, v in self.model.state_dict().items()}, **raw, **moments, **averaged,
                "lr": torch.tensor(self.optimiser.param_groups[0]["lr"], dtype=torch.float64),
                "order_rng": self.order_rng.get_state(), "noise_rng": self.noise_rng.get_state()}

    def restore(self, tensors: dict[str, Tensor], epochs: int) -> None:
        """Be as it was after so many epochs: ready for the next one, or, after the last, with the weights that count."""
        part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}   # noqa: E731
        self.model.load_state_dict(part("model."))
        if self.average:
            self.average.module.load_state_dict(part("raw."))
            self.average.n_averaged.copy_(tensors["average.n_averaged"])
            if epochs < self.config.epochs:
                self.swap_average()
        for i, p in enumerate(self.model.parameters()):   # the moments in the memory layout of their weights, as Adam makes them
            self.optimiser.state[p] = {k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.to(p.device) for k, v in part(f"adam.{i}.").items()}
        self.optimiser.param_groups[0]["lr"] = tensors["lr"].item()
        if self.schedule:
            self.schedule.last_epoch = epochs * self.steps   # OneCycleLR counts steps in it
        self.order_rng.set_state(tensors["order_rng"])
        rank, _ = workers()
        if rank or len(tensors["noise_rng"]) != len(self.noise_rng.get_state()):   # the noise of the first process was kept, on its kind of device
            self.noise_rng.manual_seed(self.config.seed + 1000 * rank + epochs)
        else:
            self.noise_rng.set_state(tensors["noise_rng"])


def compile_pays(config: Config, n: int, device: torch.device) -> bool:
    """Whether torch.compile saves more time in this run, of n images an epoch, than it takes; $VAE_COMPILE=1 or 0 decides otherwise.

    It does for long runs in bfloat16 on a CPU. In float32, where the convolutions take the time, it saves about a tenth
    (benchmarks/speed.py measures it): too little to round otherwise than the released weights did. By the length of the run and
    not by a stopwatch, so that the same command gives the same numbers.
    """
    if config.model == "vq_vae" or workers()[1] > 1:   # the codebook's step depends on its values
        return False
    if "VAE_COMPILE" in os.environ:
        return switched_on("VAE_COMPILE")
    return device.type == "cpu" and precision(device) == torch.bfloat16 and config.epochs * n >= 400_000


def over_all(sums: Tensor) -> Tensor:
    """The sum over the processes that train together."""
    if workers()[1] == 1:
        return sums
    there = sums.to(get_device(), copy=True)   # NCCL adds on GPUs only
    dist.all_reduce(there)
    return there.to(sums.device)


def _on_device(split: Split, batches: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, uint8 (n, C, H, W), and labels (n,) or (n, A) of each batch of n indices, on the device. Raises IndexError.

    A split that is there already is gathered there. One in memory, or mapped from a file, is gathered by a thread: the next
    batch while this one is trained on.
    """
    if split.images.device.type != "cpu":
        for indices in torch.cat(list(batches)).to(split.images.device).split([len(indices) for indices in batches]):
            yield split.images[indices], split.labels[indices]
        return
    images, labels = (tensor.numpy() for tensor in split)

    def gather(indices: Tensor) -> tuple[Tensor, ...]:
        # by NumPy: in a second thread PyTorch would start a second team of threads, which fights with the first
        parts = [torch.from_numpy(np.take(array, indices.numpy(), axis=0)) for array in (images, labels)]
        return tuple(part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device) for part in parts)

    with ThreadPool(1) as pool:
        coming = pool.apply_async(gather, (batches[0],))
        for indices in batches[1:]:
            ready, coming = coming.get(), pool.apply_async(gather, (indices,))
            yield ready
        yield coming.get()


def resident(split: Split, device: torch.device) -> bool:
    """Whether all images stay on the device that trains: it is an accelerator, and they fill no more than half of what is free there."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    return device.type != "cpu" and split.images.nbytes < free / 2


def _diverged(config: Config, when: str, details: str) -> str:
    mends = [f"a smaller lr than {config.lr:g}", "norm batch" if config.arch == "conv" and config.norm == "none" else "",
             f"a smaller mmd than {config.mmd:g}" if config.mmd else "", "kl_warmup" if config.beta and not config.kl_warmup else ""]
    return f"The loss stopped being a finite number {when} ({details}): try {', or '.join(filter(None, mends))}."


def _batches(n: int, config: Config, generator: torch.Generator) -> list[Tensor]:
    """The indices of n images, shuffled, in batches. Too few at the end are joined to others: each process needs one, and one
    image has no variance to normalise by, and no MMD."""
    batches = list(torch.randperm(n, generator=generator).split(config.batch_size))
    least = 2 if config.norm == "batch" or config.mmd else 1
    if len(batches[-1]) < least * workers()[1]:
        if len(batches) == 1:
            raise VAEError("Batch normalisation and MMD need at least 2 training images: add images, or use norm none and model vae.")
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def calibrate(model: VAE, split: Split, n: int = 5000) -> None:
    """Set sigma of a gaussian decoder to its best value, the root mean squared error of x_hat(z), on the first n images."""
    if model.config.likelihood != "gaussian":
        return
    images, labels = (tensor[:n] for tensor in split)
    squared = sum((torch.sigmoid(out.x_raw) - x).square().sum().item() for x, out in forward_passes(model, images, labels))
    model.sigma.fill_(math.sqrt(max(squared / images.numel(), 1e-8)))


# A run folder. While it is trained: one file, TRAINING, replaced after each epoch, from which fit goes on and whose weights
# load_checkpoint gives. When it is finished: model.safetensors and model.json, and then TRAINING is deleted. Where both are, as
# when a finished run is trained anew, TRAINING counts: a kill never mixes the weights of one epoch with the record of another.
TRAINING = "training.safetensors"
FORMAT = 2   # of model.json and TRAINING: 1 had no checksums, and is still read


@checked
def save_checkpoint(model: VAE, folder: str | os.PathLike, record: dict | None = None, *, half: bool = False) -> Path:
    """Write model.safetensors and model.json (the config and `record`) into a folder; half stores 16-bit weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # a codebook stays as it is: rounding could make another code the nearest
    weights = {k: (v.half() if half and not k.startswith("codebook.") else v).contiguous().cpu() for k, v in model.state_dict().items()}
    _write_atomically(folder / "model.safetensors", lambda p: safetensors.torch.save_file(weights, p))
    write_record(folder, model.config, {**(record or {}), "weights_sha256": _digest(weights)})
    (folder / TRAINING).unlink(missing_ok=True)
    return folder


def write_record(folder: Path, config: Config, record: dict) -> None:
    """Write model.json: the format, the config, the record, and the checksum of all of it."""
    record = {"format": FORMAT, "config": {}} | record | {"format": FORMAT, "config": dataclasses.asdict(config)}
    record = json.loads(json.dumps(record))   # as it will be read
    write_json(folder / "model.json", record | {"sha256": _seal(record)})


def _seal(record: dict) -> str:
    """SHA-256 of everything else that a record says."""
    return hashlib.sha256(json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content) -> None:
    _write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


@contextlib.contextmanager
def _refused(path: Path, mend: str, fault: str = "damaged") -> Iterator[None]:
    """Whatever goes wrong with a file in here, which may not be ours and hold anything, is told as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as err:
        raise CheckpointError(f"{path} is {fault} ({_first_line(err)}): {mend}.") from None


@checked
def read_record(folder: str | os.PathLike) -> tuple[Config, dict]:
    """The config and the whole record of a run folder, finished or not. Raises CheckpointError."""
    if (Path(folder) / TRAINING).is_file():
        return _read_training(Path(folder))[:2]
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise CheckpointError(f"There is no run in {folder} (no model.json): name a folder that train.py wrote.")
    with _refused(path, "copy the run folder again or train again", "damaged or from another program"):
        record = json.loads(path.read_text())
        config = _config_of(path, record)
        if (record.get("format", 1) > 1 or "sha256" in record) and record.get("sha256") != _seal(record):
            raise ValueError("it was changed after it was written")
        return config, record


def _config_of(path: Path, record: dict) -> Config:
    if record.get("format", 1) > FORMAT:
        raise CheckpointError(f"{path} was written by a newer version of this project (format {record['format']}, known here: {FORMAT}): update it.")
    return Config(**record["config"])


def _read_training(folder: Path) -> tuple[Config, dict, dict[str, Tensor]]:
    """The config, the record and the state of a run that is not finished."""
    path = folder / TRAINING
    with _refused(path, "delete it, or train again"):
        state, record = _load_tensors(path)
        # not mapped from the file: Windows replaces no file that is in use
        return _config_of(path, record), record, {name: tensor.clone() for name, tensor in state.items()}


@checked
def load_checkpoint(folder: str | os.PathLike) -> tuple[VAE, dict]:
    """The model in a run folder, on get_device() and ready to use, and its record. Raises CheckpointError."""
    path = Path(folder) / TRAINING
    if path.is_file():
        config, record, state = _read_training(Path(folder))
        weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    else:
        (config, record), path = read_record(folder), Path(folder) / "model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: train again, or copy the whole run folder.")
        with _refused(path, "copy it again or train again"):
            weights = safetensors.torch.load_file(path)
    with _refused(path, "copy it again or train again"), torch.device("meta"):   # shapes without memory
        expected = (VQVAE if config.model == "vq_vae" else VAE)(config).state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
        raise CheckpointError(f"{path} does not fit the {config.arch} architecture in its model.json: the two files are "
                              "from different runs.")
    if "weights_sha256" in record and record["weights_sha256"] != _digest(weights):
        raise CheckpointError(f"{path} is damaged or from another run (its checksum is not the one in model.json): copy the run folder again or "
                              "train again.")
    model = build_model(config)
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval(), record


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Evaluation                                                                                 ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

ACTIVE_THRESHOLD = 0.01   # variance of mu over the data above which a dimension counts as active (Burda et al. 2016)


@checked
def evaluate(model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> dict[str, float]:
    """The numbers of a model on uint8 images (N, C, H, W), of a conditional one with their labels; units in the keys.

    reconstruction_nats, kl_nats   means over the images, with one seeded sample of z each: distortion and rate (code_nats)
    total_nats         their sum, the negative ELBO, whatever beta the model was trained with
    total_nats_se      its standard error: the spread over images, divided by the root of their number
    floor_nats, excess_nats        (bernoulli) bce_floor_nats of the images, and total_nats above it
    mse                mean squared error of x_hat(mu) per pixel and channel, on [0, 1]
    active_dims        latent dimensions whose mu varies over the images (Burda et al. 2016, section 5.2)
    codes_used, perplexity   (vq_vae) of the codebook over all the images: how many codes occur, and exp of their entropy
    images             how many images were measured
    """
    mu, _ = encode_images(model, images, labels)
    rec, kl = image_losses(model, images, labels, seed=seed)
    squared, floor, told = 0.0, 0.0, None if labels is None else labels.split(500)
    used = torch.zeros(model.config.codebook or 0, dtype=torch.long)
    for i, (part, z) in enumerate(zip(images.split(500), mu.split(500))):   # in parts, for the memory
        unit = as_unit(part)
        squared += (decode_images(model, z, told and told[i]) - unit).square().sum().item()
        floor += bce_floor_nats(unit).sum().item()
        if model.config.model == "vq_vae":
            used += model.indices(z.to(model.device)).flatten().cpu().bincount(minlength=len(used))
    result = {"reconstruction_nats": rec.mean().item(), "kl_nats": kl.mean().item(), "total_nats": (rec + kl).mean().item(),
              "total_nats_se": standard_error(rec + kl)}
    if model.config.likelihood == "bernoulli":
        result |= {"floor_nats": floor / len(images), "excess_nats": result["total_nats"] - floor / len(images)}
    if model.config.model == "vq_vae":
        result |= {"codes_used": int((used > 0).sum()), "perplexity": torch.special.entr(used / used.sum()).sum().exp().item()}
    else:
        result["active_dims"] = int((mu.var(0, unbiased=False) > ACTIVE_THRESHOLD).sum())
    return result | {"mse": squared / images.numel(), "images": len(images)}


@checked
def bits_per_dim(model: VAE, images: Tensor, tuning: Tensor, labels: Tensor | None = None, tuning_labels: Tensor | None = None, *,
                 seed: int = 0) -> dict[str, float]:
    """A bound on the bits that each value of uint8 images costs, the unit of the literature on image likelihoods.

    x_hat(z) becomes the mean of a discretised logistic with one scale, the best for the images `tuning` (validation: never
    the test images); the negative ELBO with it is divided by the number of values and by log 2. One sample of z per image.

    bits_per_dim, bits_per_dim_se, logistic_scale_grey_levels
    """
    from scipy.optimize import minimize_scalar   # heavy libraries are imported where they are used

    if not model.config.has_price:
        raise VAEError(f"The code of model {model.config.model} is a point, which has no price in bits: measure another model.")

    def passes(images: Tensor, labels: Tensor | None):
        """x_hat(z), the price of the code, and the images themselves, 500 at a time."""
        for (_, out), part in zip(forward_passes(model, images, labels, seed=seed), images.split(500)):
            with torch.no_grad():
                price = code_nats(model, out).cpu()
            yield to_unit(model.activate(out.x_raw), model.config).cpu(), price, part

    parts = list(passes(tuning, tuning_labels))
    cost = lambda log_scale: sum(discretised_logistic_nats(mean, part, math.exp(log_scale)).sum().item() for mean, _, part in parts)   # noqa: E731
    scale = math.exp(minimize_scalar(cost, bounds=(math.log(0.1), math.log(100)), method="bounded", options={"xatol": 1e-3}).x)
    bits = torch.cat([(discretised_logistic_nats(mean, part, scale) + price).double() for mean, price, part in passes(images, labels)])
    bits /= images[0].numel() * math.log(2)
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_se": standard_error(bits), "logistic_scale_grey_levels": scale}


@checked
def picture_metrics(x_hat: Tensor, images: Tensor) -> dict[str, float]:
    """mse, psnr_db and ssim of float x_hat in [0, 1] against uint8 or float images, (N, C, H, W) twice: means over images.

    Images of less than 6 pixels have no ssim.
    """
    metrics = _torchmetrics().functional.image
    x = as_unit(images)
    result = {"mse": (x_hat - x).square().mean().item(),
              "psnr_db": metrics.peak_signal_noise_ratio(x_hat, x, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean").item()}
    if min(x.shape[2:]) > 5:   # half of SSIM's window
        ssim = [metrics.structural_similarity_index_measure(a, b, data_range=1.0, reduction="none") for a, b in zip(x_hat.split(500), x.split(500))]
        result["ssim"] = torch.cat([s.reshape(-1) for s in ssim]).mean().item()
    return result


def _torchmetrics():
    import_torchvision()   # torchmetrics imports it, too
    import torchmetrics
    import torchmetrics.functional.image
    import torchmetrics.image.fid
    return torchmetrics


class FeatureNet(nn.Module):
    """A small classifier whose inner activations tell images apart: the features of our Fréchet distance and path length.

    Four 3x3 convolutions. Features are the mean activations of all four, from edges and texture to classes (the last layer
    alone is nearly blind to blur), each divided by its standard deviation over real training images (scale). Trained on
    CIFAR-10 by `python checkpoints/features.py`; fully convolutional, so that it takes other sizes, too.
    """

    WIDTHS = (16, 64, 128, 256)

    def __init__(self, classes: int = 10):
        super().__init__()
        pairs = zip((3, *self.WIDTHS), self.WIDTHS)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, stride=2 if a > 3 else 1, padding=1, bias=False),
                                                  nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs)
        self.head = nn.Linear(self.WIDTHS[-1], classes)
        self.register_buffer("scale", torch.ones(sum(self.WIDTHS)))

    def activations(self, x: Tensor) -> list[Tensor]:
        """Images (N, 1 or 3, H, W) in [0, 1] → the mean over positions of every stage, (N, 16), (N, 64), (N, 128), (N, 256)."""
        h, means = x.expand(-1, 3, -1, -1) * 4 - 2, []
        for stage in self.stages:
            h = stage(h)
            means.append(h.mean((2, 3)))
        return means

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, 10)."""
        return self.head(self.activations(x)[-1])

    def features(self, x: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [0, 1] → (N, 464), in standard deviations of real training images."""
        return torch.cat(self.activations(x), dim=1) / self.scale


def load_feature_net() -> FeatureNet:
    """The released feature network, on get_device(). Raises CheckpointError when its file is missing or damaged."""
    path = HERE / "checkpoints" / "features" / "features.safetensors"
    net = FeatureNet()
    with _refused(path, "copy it again, or make it with python checkpoints/features.py", "missing or damaged"):
        weights = safetensors.torch.load_file(path)
        if json.loads(path.with_suffix(".json").read_text())["weights_sha256"] != _digest(weights):
            raise ValueError("its checksum is not the one in features.json")
        net.load_state_dict({k: v.float() for k, v in weights.items()})
    return net.to(get_device(), memory_format=torch.channels_last).eval().requires_grad_(False)


@checked
def image_features(images: Tensor, net: nn.Module) -> Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1] → (N, F) features on the CPU, of a network with a method features."""
    device = next(net.parameters()).device
    with torch.no_grad():
        return torch.cat([net.features(as_unit(p.to(device))).cpu() for p in images.split(500)])


@checked
def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, F), (M, F), by torchmetrics.

    With Inception's features it is the FID, with FeatureNet's we call it Fréchet feature distance: never compare the two.
    It falls with N; compare only distances from equally many images, and with that of real images to real images.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise VAEError(f"Two sets of at least 2 features are compared, (N, F) and (M, F), not {tuple(real.shape)} and {tuple(fake.shape)}.")
    identity = nn.Identity()
    identity.num_features = real.shape[1]
    metric = _torchmetrics().image.fid.FrechetInceptionDistance(feature=identity)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def standard_error(values: Tensor) -> float:
    """Of a mean over (N,) independent values; 0 for a single one, whose spread is not known."""
    return (values.double().std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0


@checked
def encode_images(model: VAE, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), uint8 or float in [0, 1] → mu, logvar (N, D) on the CPU. A conditional model wants their labels.

    Raises VAEError on others.
    """
    c = model.config
    shape = (c.channels, c.image_size, c.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise VAEError(f"This model takes images of shape (N, {', '.join(map(str, shape))}), not {tuple(images.shape)}: resize them first.")
    given = conditions(c, labels)
    if given is not None and len(given) != len(images):
        raise VAEError(f"{len(given)} labels do not fit {len(images)} images: hand in one for each.")
    encode = lambda part, *given: model.eval().encode(to_input(part, c), *given)   # noqa: E731
    return _in_parts(model, encode, images, given)


@checked
def decode_images(model: VAE, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """z (..., D) → float images in [0, 1], (..., C, H, W), on the CPU: the means of p(x|z).

    A conditional model wants labels (N,) or (N, A): one for each z (..., N, D), or one for all.
    """
    size = model.config.latent_dim * (math.prod(model.grid) if model.config.model == "vq_vae" else 1)
    if z.shape[-1] != size:
        raise VAEError(f"This model decodes latents (..., {size}), not {tuple(z.shape)}.")
    given = conditions(model.config, labels)
    if given is not None:
        if z.ndim < 2 or len(given) not in (1, z.shape[-2]):
            raise VAEError(f"{len(given)} labels do not fit latents of shape {tuple(z.shape)}: hand in one for each, or one for all.")
        given = given.expand(*z.shape[:-1], -1).reshape(-1, given.shape[-1])
    decode = lambda part, *given: (to_unit(model.eval().decode(part, *given), model.config),)   # noqa: E731
    images, = _in_parts(model, decode, z.reshape(-1, z.shape[-1]), given)
    return images.reshape(*z.shape[:-1], *images.shape[1:])


def _in_parts(model: VAE, call: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """The results of a call on the model's device, 500 rows at a time, on the CPU."""
    split = [i.split(500) for i in inputs if i is not None]
    with torch.no_grad():
        parts = [call(*(p.to(model.device) for p in some)) for some in zip(*split, strict=True)]
    return tuple(torch.cat(t).cpu() for t in zip(*parts))


class Run(NamedTuple):
    """A trained model with where it came from. model is None where only the record of a released run is there."""

    config: Config
    model: VAE | None
    record: dict       # data, history, test (see evaluate), seconds, hardware
    origin: str        # "trained now", "your run …", "released weights …"


@checked
def train_run(config: Config, data: ImageData, folder: str | os.PathLike | None = None, *, progress: bool = True, resume: bool = True,
              on_epoch: Callable[[list[dict]], None] | None = None) -> Run:
    """Build, fit, measure on the test split and save: what train.py and the notebooks both call.

    The folder (default runs_root()/config.run_name) holds the last finished epoch at any time: a run of the same config and
    data that was cut off goes on from there, unless resume is False. on_epoch is called as by fit, after the epoch was saved.

    Raises Stopped after Ctrl-C, TrainingDiverged, and OSError when the folder cannot be written.
    """
    folder = Path(folder or runs_root() / config.run_name)
    folder.mkdir(parents=True, exist_ok=True)   # an unwritable place is told before the training
    before = f"The finished run in {folder} stays until this one is finished: delete {TRAINING} to go back to it." if (folder / "model.json").is_file() else ""
    if before and workers()[0] == 0:
        print(before)
    record = {"data": {"name": data.name, "title": data.title, "fingerprint": data.fingerprint,
                       **{s: len(getattr(data, s).images) for s in ("train", "val", "test")}},
              "hardware": hardware(), "torch": torch.__version__, "precision": precision_name(),
              "processes": workers()[1]}
    if config.conditions:
        record["data"]["conditions"] = list(condition_names(data))
    model, start = build_model(config), _unfinished(folder, config, data) if resume else None
    record["parameters"] = count_parameters(model)

    def save(history: list[dict], state: dict[str, Tensor]) -> None:
        _save_tensors(folder / TRAINING, state, {"format": FORMAT, "config": dataclasses.asdict(config), **record, "history": history,
                                                 "seconds": history[-1]["seconds"]})

    def kept() -> int:
        """How many epochs the folder holds: looked up, since Ctrl-C can come between the writing and a note of it."""
        with contextlib.suppress(CheckpointError):
            found, record = read_record(folder)
            return len(record["history"]) if found == config else 0
        return 0

    try:
        history = fit(model, data, config, progress=progress, on_epoch=on_epoch, save=save, start=start)
        record |= {"history": history, "seconds": history[-1]["seconds"]}
        if workers()[0] == 0:
            record["test"] = evaluate(model, *data.test)
            save_checkpoint(model, folder, record)
    except KeyboardInterrupt:
        raise Stopped(f"Stopped. {folder} holds epoch {epochs} of {config.epochs}: train.py with --resume, or this cell again, goes on from there; "
                      f"vae.load_checkpoint({str(folder)!r}) gives the model as it is. {before}".rstrip() if (epochs := kept()) else
                      "Stopped in the first epoch: there is nothing to save yet.") from None
    except TrainingDiverged as err:
        raise TrainingDiverged(f"{err} {folder} keeps epoch {epochs}." if (epochs := kept()) else str(err)) from None
    return Run(config, model, record, "trained now")


def _unfinished(folder: Path, config: Config, data: ImageData) -> tuple[list[dict], dict[str, Tensor]] | None:
    """History and state of a run of this config and data that was cut off; None where there is none, or another."""
    if not (folder / TRAINING).is_file():
        return None
    try:
        found, record, state = _read_training(folder)
    except CheckpointError as err:
        print(f"Passed over: {err}")
        return None
    if found != config or record["data"]["fingerprint"] != data.fingerprint or record["format"] != FORMAT:
        print(f"Passed over: the unfinished run in {folder} has other settings or images.")
        return None
    print(f"{folder}: going on after epoch {len(record['history'])} of {config.epochs}", flush=True)
    if record["precision"] != precision_name():
        print(f"Note: it was begun in {record['precision']} and goes on in {precision_name()}, so it will end like neither: set "
              f"VAE_PRECISION={record['precision']} to go on as it was.")
    return record["history"], state


@checked
def load_or_train(config: Config, data: ImageData, *, weights: bool = True) -> Run:
    """The reader's own finished run for this config and data, else the released one, else train; says which.

    VAE_TRAIN=1 always trains. weights=False is content with the record of a released run (its history and numbers).
    """
    found = None if switched_on("VAE_TRAIN") else own_run(config, data) or _released(config, weights)
    run = found or train_run(config, data)
    if run.record["data"]["fingerprint"] != data.fingerprint:
        print(f"Note: trained on {run.record['data']['title']}, whose files are not exactly yours; its recorded numbers are for its own "
              "test images, and its training images may be among your validation or test images.")
    print(f"{config.arch} {config.model}, {config.likelihood}, width {config.width}, beta {config.beta:g}, seed {config.seed}: {run.origin}; "
          f"{config.epochs} epochs in {run.record['seconds']:.0f} s, test total {run.record['test']['total_nats']:,.1f} nats")
    return run


def own_run(config: Config, data: ImageData) -> Run | None:
    """A finished run of this config on these images under runs_root(), if there is one."""
    for path in sorted(runs_root().glob("*/model.json")):
        try:
            found, record = read_record(path.parent)
            if found == config and "test" in record and record["data"]["fingerprint"] == data.fingerprint:
                return Run(config, *load_checkpoint(path.parent), f"your run {path.parent.name}")
        except CheckpointError as err:
            print(f"Passed over: {err}")
    return None


def _released(config: Config, weights: bool) -> Run | None:
    """A released run of this config, whatever copy or subset of the data set it saw."""
    for path in sorted(RELEASED.glob("*/model.json")):
        found, record = read_record(path.parent)
        if found != config:
            continue
        if (path.parent / "model.safetensors").is_file():
            return Run(config, *load_checkpoint(path.parent), f"released weights {path.parent.name}")
        if not weights:
            return Run(config, None, record, f"released record {path.parent.name}")
    return None


def hardware() -> str:
    """The device that trains, in words, for the record."""
    device = get_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        name = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads" + (", MPS" if device.type == "mps" else "")


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Latent space                                                                               ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

@checked
def slerp(z_a: Tensor, z_b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985; for latents White 2016, arXiv:1609.04468): (..., D), (..., D), t → (..., D).

    Turns from z_a to z_b at an even angle. Where they are (anti)parallel no arc is defined and the line is taken.
    """
    cosine = F.cosine_similarity(z_a, z_b, dim=-1).clamp(-1, 1)[..., None]
    omega = torch.arccos(cosine)
    sine = torch.sin(omega)
    arc = (torch.sin((1 - t) * omega) * z_a + torch.sin(t * omega) * z_b) / sine
    return torch.where(sine > 1e-4, arc, torch.lerp(z_a, z_b, t))


METHODS = {"linear": torch.lerp, "spherical": slerp}


@checked
def interpolate_latents(z_a: Tensor, z_b: Tensor, num: int, method: str = "linear") -> Tensor:
    """num latents from z_a to z_b, both ends included: (..., D) twice → (num, ..., D)."""
    t = torch.linspace(0, 1, num).reshape(-1, *[1] * z_a.ndim)
    path = METHODS[method](z_a[None], z_b[None], t)
    path[0], path[-1] = z_a, z_b   # exact ends, free of rounding
    return path


@checked
def interpolate_images(model: VAE, image_a: Tensor, image_b: Tensor, num_interpolations: int = 10,
                       method: str = "linear", labels: Tensor | None = None) -> Tensor:
    """Morph one image into another through the latent space.

    Encodes both, walks from mu_a to mu_b (means, never noisy samples) and decodes every step.

    image_a, image_b      (C, H, W), uint8 or float in [0, 1], of the model's size
    num_interpolations    images on the way, both reconstructed ends included, at least 2
    method                "linear" or "spherical"
    labels                of the two images, for a conditional model, which is told a mixture of both on the way
    returns float (num_interpolations, C, H, W) in [0, 1]; raises VAEError on wrong input
    """
    told = conditions(model.config, labels)
    mu_a, mu_b = (encode_images(model, image[None], None if told is None else told[i:i + 1])[0][0] for i, image in enumerate((image_a, image_b)))
    return decode_images(model, interpolate_latents(mu_a, mu_b, num_interpolations, method),
                         None if told is None else interpolate_latents(*told, num_interpolations))


@checked
def midpoints(mu: Tensor, method: str = "linear", n: int | None = None) -> Tensor:
    """n latents halfway between code i and code i + 1 (+ 2, … in later rounds): (N, D) → (n, D), n = N when not given."""
    n = len(mu) if n is None else n
    rounds = [METHODS[method](mu, mu.roll(-shift, 0), torch.tensor(0.5)) for shift in range(1, n // len(mu) + 2)]
    return torch.cat(rounds)[:n]


@checked
def cross_fade(image_a: Tensor, image_b: Tensor, num: int) -> Tensor:
    """The same walk in pixels, without a model: (C, H, W) twice → float (num, C, H, W) in [0, 1]."""
    a, b = as_unit(image_a), as_unit(image_b)
    return interpolate_latents(a, b, num)


@checked
def interpolate_corners(model: VAE, corners: Tensor, num: int = 7) -> Tensor:
    """A square of images between four: corners (4, C, H, W), row by row → float (num, num, C, H, W) in [0, 1]."""
    if len(corners) != 4:
        raise VAEError(f"A square has four corners, not {len(corners)}.")
    mu, _ = encode_images(model, corners)
    left, right = interpolate_latents(mu[0], mu[2], num), interpolate_latents(mu[1], mu[3], num)
    return decode_images(model, interpolate_latents(left, right, num).transpose(0, 1))


@checked
def step_lengths(path: Tensor) -> Tensor:
    """Euclidean distances between neighbouring images of one or more paths: (num, ..., C, H, W) → (num - 1, ...)."""
    if path.ndim < 4 or len(path) < 2:
        raise VAEError(f"A path has at least 2 images, (num, ..., C, H, W), not {tuple(path.shape)}.")
    return (path[1:] - path[:-1]).flatten(-3).norm(dim=-1)


@checked
def step_unevenness(path: Tensor) -> Tensor:
    """Standard deviation / mean of the step lengths of image paths: (num, ..., C, H, W) → (...).

    0 when every step changes the picture by the same amount, which a pixel cross-fade does by construction.
    """
    steps = step_lengths(path)
    return steps.std(0, unbiased=False) / steps.mean(0)


@checked
def sample_latents(n: int, latent_dim: int, *, z_range: tuple[float, float] | None = None, radius: float | None = None,
                   temperature: float = 1.0, seed: int = 0) -> Tensor:
    """Latents (n, D) from a region: the prior N(0, temperature^2 I), a box, or a shell.

    z_range   every coordinate uniform between the two values: the assignment's (-2, 2)
    radius    uniform on the sphere ||z|| = radius
    Raises VAEError when both are given, or z_range is not (low, high).
    """
    if z_range is not None and radius is not None:
        raise VAEError("Give z_range or radius, not both.")
    generator = torch.Generator().manual_seed(seed)
    if z_range is not None:
        low, high = z_range
        return torch.rand(n, latent_dim, generator=generator) * (high - low) + low
    z = torch.randn(n, latent_dim, generator=generator)
    return F.normalize(z, dim=1) * radius if radius is not None else z * temperature


@checked
def sample_images(model: VAE, n: int, labels: Tensor | None = None, **region) -> Tensor:
    """Decode n latents of a region (see sample_latents) → float (n, C, H, W) in [0, 1]; a conditional model needs n labels.

    A vq_vae draws its codes from the prior that it learned, so that only seed has a meaning for it.
    """
    if model.config.model != "vq_vae":
        return decode_images(model, sample_latents(n, model.config.latent_dim, **region), labels)
    generator = torch.Generator(model.device).manual_seed(region.pop("seed", 0))
    if region:
        raise VAEError(f"A vq_vae has no {', '.join(region)}: its codes come from its own prior.")
    codes = [model.prior.sample(len(part), generator) for part in torch.arange(n).split(500)]
    return torch.cat([decode_images(model, model.look_up(part)) for part in codes])


class Density(NamedTuple):
    """A Gaussian mixture: weights (K,), means (K, D), and Cholesky factors of its covariances (K, D, D), all float64."""

    weights: Tensor
    means: Tensor
    factors: Tensor


@checked
def fit_density(z: Tensor, components: int = 10, *, seed: int = 0) -> Density:
    """A Gaussian mixture with full covariances on latents (N, D): ex-post density estimation (Ghosh et al. 2020, section 4).

    Fit it to z ~ q(z|x) of training images; sample_density then draws where the prior misses the codes. By scikit-learn's EM,
    which is stopped after 50 rounds: more change the samples little. Raises VAEError with fewer latents than components.
    """
    from sklearn.mixture import GaussianMixture
    if z.ndim != 2 or len(z) < 2 or components > len(z):
        raise VAEError(f"A mixture needs at least 2 latents and from 1 to as many components, not {components} for {len(z)} latents.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)   # that EM has not converged
        fitted = GaussianMixture(components, reg_covar=1e-4, max_iter=50, tol=1e-2, random_state=seed % 2 ** 32).fit(z.float().numpy())
    weights, means, covariances = (torch.from_numpy(a).double() for a in (fitted.weights_, fitted.means_, fitted.covariances_))
    return Density(weights, means, torch.linalg.cholesky(covariances))


@checked
def sample_density(density: Density, n: int, *, seed: int = 0) -> Tensor:
    """n latents (n, D) from a mixture, seeded."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(density.weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, density.means.shape[1], generator=generator, dtype=torch.float64)
    z = density.means[component]
    for k, factor in enumerate(density.factors):   # one factor for all of its draws, not a copy for each
        z[component == k] += noise[component == k] @ factor.T
    return z.float()


@checked
def sample_codes(model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> Tensor:
    """One z ~ q(z|x) for each image: (N, D), draws of the aggregate posterior. Where the code is a point, mu."""
    mu, logvar = encode_images(model, images, labels)
    return reparameterize(mu, logvar, torch.Generator().manual_seed(seed)) if model.config.objective.sampled else mu


@checked
def picture_sets(model: VAE, data: ImageData, n: int, *, components: int = 10, seed: int = 0) -> dict[str, Tensor]:
    """Sets of n decoded images, (n, C, H, W) in [0, 1], to be compared with the first n test images.

    reconstructions of those images; samples_prior from N(0, I) (vq_vae: from its prior); samples_mixture from a mixture fitted
    to the codes of (at most 20,000) training images (not for a vq_vae); midpoints_linear and _spherical between neighbouring
    test images. All decode means; a conditional model is told the labels of the test images.
    """
    images, labels = (tensor[:n] for tensor in data.test)
    mu, _ = encode_images(model, images, labels)
    latents = {"reconstructions": mu, **{f"midpoints_{method}": midpoints(mu, method) for method in METHODS}}
    if model.config.model != "vq_vae":
        codes = sample_codes(model, *(tensor[:20_000] for tensor in data.train), seed=seed)
        latents["samples_mixture"] = sample_density(fit_density(codes, components, seed=seed), n, seed=seed)
    return {"samples_prior": sample_images(model, n, labels, seed=seed),
            **{name: decode_images(model, z, labels) for name, z in latents.items()}}


@checked
def perceptual_path_length(decode: Callable[[Tensor], Tensor], features: Callable[[Tensor], Tensor], z_a: Tensor, z_b: Tensor,
                           method: str = "linear", *, epsilon: float = 1e-2, seed: int = 0) -> Tensor:
    """How fast the picture changes at one random point of each way from z_a to z_b: (N, D) twice → (N,).

    |features(decode(at t + epsilon)) - features(decode(at t))|^2 / epsilon^2 in squared units of the features: after Karras et
    al. 2019, section 4.1, whose own measure takes draws of the prior, another epsilon and another network. t is uniform and
    the same for the same seed, so that methods are compared at the same points.
    """
    interpolate = METHODS[method]
    t = torch.rand(len(z_a), 1, generator=torch.Generator().manual_seed(seed)) * (1 - epsilon)
    here, there = (features(decode(interpolate(z_a, z_b, at))) for at in (t, t + epsilon))
    return (there - here).square().flatten(1).sum(1) / epsilon ** 2


class AggregatePosterior(NamedTuple):
    """q(z) = E_x q(z|x), where the codes of real images lie: per dimension (D,), and one sample for each image (N, D)."""

    mean: Tensor
    std: Tensor
    kl_nats: Tensor   # mean KL(q(z|x) || N(0, 1)) of each dimension
    mu: Tensor
    z: Tensor         # ~ q(z|x); where the code is a point, mu

    @property
    def norms(self) -> Tensor:
        """||z||, (N,)."""
        return self.z.norm(dim=1)


@checked
def aggregate_posterior(model: VAE, images: Tensor, labels: Tensor | None = None, *, seed: int = 0) -> AggregatePosterior:
    """Where the encoder puts real images. The variance is Var(mu) + E(sigma^2) (law of total variance)."""
    mu, logvar = encode_images(model, images, labels)
    if not model.config.objective.sampled:   # its codes are points
        return AggregatePosterior(mu.mean(0), mu.std(0, unbiased=False), torch.zeros_like(mu[0]), mu, mu)
    z = reparameterize(mu, logvar, torch.Generator().manual_seed(seed))
    std = (mu.var(0, unbiased=False) + logvar.exp().mean(0)).sqrt()
    return AggregatePosterior(mu.mean(0), std, kl_nats_per_dim(mu, logvar).mean(0), mu, z)


@checked
def self_reconstruction_mse(model: VAE, z: Tensor) -> Tensor:
    """How well the model recognises its own picture: mean squared error between x_hat(z) and its reconstruction, (N, D) → (N,).

    Read it beside the contrast: pictures that are nearly uniform are easy to reconstruct and say nothing.
    """
    images = decode_images(model, z)
    again = decode_images(model, encode_images(model, images)[0])
    return (again - images).square().flatten(1).mean(1)


@checked
def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the pixel values of each image: (..., C, H, W) in [0, 1] → (...)."""
    return as_unit(images).flatten(-3).std(-1, unbiased=False)


@checked
def traverse(model: VAE, z: Tensor, dims: Sequence[int], values: Sequence[float], labels: Tensor | None = None) -> Tensor:
    """Images of z (D,) with one dimension at a time set to each value → float (len(dims), len(values), C, H, W).

    A conditional model is told the one label in `labels`, (1,) or (1, A).
    """
    dims, values = (v.tolist() if isinstance(v, (np.ndarray, Tensor)) else v for v in (dims, values))
    lists = all(isinstance(v, (list, tuple, range)) and len(v) for v in (dims, values))
    if z.ndim != 1 or not lists or not all(whole_number(d, 0, len(z) - 1) for d in dims) or not all(map(real_number, values)):
        raise VAEError(f"traverse takes one latent (D,), dimensions from 0 to D - 1 and numbers, not {tuple(z.shape)}, {shown(dims)} and {shown(values)}.")
    grid = z.repeat(len(dims), len(values), 1)
    for row, dim in enumerate(dims):
        grid[row, :, dim] = torch.tensor(values, dtype=z.dtype)
    return decode_images(model, grid, labels)


@checked
def attribute_direction(mu: Tensor, has_attribute: Tensor) -> Tensor:
    """Mean latent with an attribute minus mean latent without it (Larsen et al. 2016): (N, D), (N,) → (D,)."""
    has_attribute = has_attribute.bool()
    if has_attribute.shape != mu.shape[:1]:
        raise VAEError(f"{tuple(has_attribute.shape)} attributes do not fit latents {tuple(mu.shape)}: hand in one for each.")
    if has_attribute.all() or not has_attribute.any():
        raise VAEError("An attribute direction needs images with the attribute and images without it.")
    return mu[has_attribute].mean(0) - mu[~has_attribute].mean(0)


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Plots                                                                                      ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

def _subplots(*args, **options):
    """matplotlib.pyplot.subplots."""
    import matplotlib.pyplot as plt   # here, so that a training starts half a second earlier
    return plt.subplots(*args, **options)


@checked
def image_grid(images: Tensor, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """Images (N, C, H, W), uint8 or float in [0, 1] → one picture, uint8 (height, width, 3), on white."""
    images = as_unit(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise VAEError(f"A picture is made of images (N, 1 or 3, H, W), not {tuple(images.shape)}.")
    grid = import_torchvision().utils.make_grid(images.cpu(), nrow=columns or len(images), padding=pad, pad_value=1.0)
    return (grid.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()   # (3, H, W) → (H, W, 3)


def plot_rows(rows: dict[str, Tensor], title: str, column_labels: Sequence[str] = (), cell: float = 0.72) -> Figure:
    """One labelled strip of images (n, C, H, W) per entry; cell is the width of one image in inches."""
    n = max(len(images) for images in rows.values())
    longest = max(len(line) for label in rows for line in label.split("\n"))
    fig, axes = _subplots(len(rows), 1, figsize=(cell * n + max(1.6, 0.1 * longest), (cell + 0.05) * len(rows) + 0.7), squeeze=False,
                             layout="compressed", gridspec_kw={"hspace": 0.02})   # constrained, for images of a fixed shape
    for ax, (label, images) in zip(axes[:, 0], rows.items()):
        ax.imshow(image_grid(images), interpolation="nearest")
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    if len(column_labels):
        width = rows[next(iter(rows))].shape[-1] + 2
        axes[0, 0].set_xticks([width * i + width / 2 for i in range(len(column_labels))], column_labels)
        axes[0, 0].tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    fig.suptitle(title)
    return fig


@checked
def plot_grid(images: Tensor, title: str, columns: int = 8, cell: float = 0.72) -> Figure:
    """Images (N, C, H, W) as one grid."""
    columns = min(columns, len(images))
    fig, ax = _subplots(figsize=(cell * columns, cell * math.ceil(len(images) / columns) + 0.4), layout="constrained")
    ax.imshow(image_grid(images, columns), interpolation="nearest")
    ax.axis("off")
    fig.suptitle(title)
    return fig


def plot_history(histories: dict[str, list[dict]], title: str) -> Figure:
    """Reconstruction, KL and their weighted sum over the epochs: validation solid, training dashed."""
    fig, axes = _subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for colour, (label, history) in enumerate(histories.items()):
        epochs = [row["epoch"] for row in history]
        for ax, part in zip(axes, ("reconstruction", "kl", "total")):
            marker = "o" if len(epochs) == 1 else None   # a line through one point cannot be seen
            ax.plot(epochs, [r[f"val_{part}_nats"] for r in history], color=f"C{colour}", marker=marker, label=label)
            ax.plot(epochs, [r[f"train_{part}_nats"] for r in history], color=f"C{colour}", marker=marker, ls="--", lw=1)
    for ax, name in zip(axes, ("reconstruction", "KL", "reconstruction + β·KL")):
        ax.set(xlabel="epoch", ylabel="nats per image", title=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[-1].legend()
    fig.suptitle(f"{title}: validation solid, training dashed")
    return fig


@checked
def plot_reconstructions(models: dict[str, VAE], images: Tensor, title: str) -> Figure:
    """Originals over each model's x_hat(mu)."""
    rows = {"original": images} | {name: decode_images(m, encode_images(m, images)[0]) for name, m in models.items()}
    return plot_rows(rows, title)


@checked
def plot_samples(models: dict[str, VAE], z: Tensor, title: str) -> Figure:
    """What each model decodes from the same latents (n, D)."""
    return plot_rows({name: decode_images(model, z) for name, model in models.items()}, title)


def display_interpolated_images(images: Tensor | dict[str, Tensor], originals: tuple[Tensor, Tensor] | None = None,
                                title: str = "Interpolation in latent space") -> Figure:
    """Show what interpolate_images gave, or several such strips by name, with the two originals at the ends.

    images (num, C, H, W) in [0, 1], or a dict of them; originals: the two images (C, H, W) that were handed in.
    """
    rows = images if isinstance(images, dict) else {"": images}
    num = len(next(iter(rows.values())))
    labels = [f"{t:.2f}".rstrip("0").rstrip(".") for t in np.linspace(0, 1, num)]
    if originals is not None:
        a, b = map(as_unit, originals)
        rows = {name: torch.cat([a[None], strip, b[None]]) for name, strip in rows.items()}
        labels = ["original", *labels, "original"]
    return plot_rows(rows, title, labels)


@checked
def plot_manifold(model: VAE, title: str, n: int = 20) -> Figure:
    """Everything a model with latent_dim 2 draws: an n x n grid of equally probable places of N(0, I), through the inverse of its
    distribution function (Kingma & Welling 2014, appendix A). Raises VAEError for other models."""
    if model.config.latent_dim != 2 or model.config.model in ("ae", "cvae", "vq_vae"):
        raise VAEError(f"A picture of the whole latent space needs an unconditional model with a prior N(0, I) and latent_dim 2, not "
                       f"{model.config.model} with {model.config.latent_dim}: train a vae with --latent_dim 2.")
    axis = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    z = torch.stack(torch.meshgrid(axis.flip(0), axis, indexing="ij")[::-1], dim=-1)   # up and to the right, as on paper
    fig = plot_grid(decode_images(model, z.flatten(0, 1)), title, columns=n, cell=0.36)
    ax, step = fig.axes[0], model.config.image_size + 2
    shown = range(0, n, max(1, n // 5))
    ax.axis("on")
    ax.set_xticks([step * (i + 0.5) for i in shown], [f"{axis[i]:.1f}" for i in shown])
    ax.set_yticks([step * (n - i - 0.5) for i in shown], [f"{axis[i]:.1f}" for i in shown])
    ax.set(xlabel="first coordinate of z", ylabel="second coordinate of z")
    ax.spines[:].set_visible(False)
    return fig


def plot_scatter(points: Tensor, classes: Tensor, names: Sequence[str], title: str, axes: tuple[str, str]) -> Figure:
    """Points (N, 2), each in the colour of its class (N,); from 2 to 20 classes are named."""
    from matplotlib import colormaps
    fig, ax = _subplots(figsize=(7.2, 5.4), layout="constrained")
    colors = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for k, name in enumerate(names):
        ax.scatter(*points[classes == k].T, s=4, alpha=0.6, linewidths=0, color=colors(k % 20), label=name)
    ax.set(xlabel=axes[0], ylabel=axes[1])
    ax.set_aspect("equal", adjustable="datalim")
    if 2 <= len(names) <= 20:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, frameon=False)
    fig.suptitle(title)
    return fig


@checked
def plot_classes(model: VAE, names: Sequence[str], title: str, latents: int = 6, seed: int = 0) -> Figure:
    """What a conditional model draws: one latent per row, one class per column, up to ten."""
    shown = min(len(names), 10)
    z = sample_latents(latents, model.config.latent_dim, seed=seed)
    told = F.one_hot(torch.arange(shown), model.config.conditions).float()
    rows = {f"z {i + 1}": decode_images(model, one.expand(shown, -1), told) for i, one in enumerate(z)}
    return plot_rows(rows, title, [textwrap.fill(name, 11, break_on_hyphens=False) for name in names[:shown]])


@checked
def plot_attributes(model: VAE, images: Tensor, labels: Tensor, names: Sequence[str], attributes: Sequence[str], title: str) -> Figure:
    """The same codes decoded with one attribute switched off and on: images (n, C, H, W), labels (n, A), of a conditional model."""
    mu, _ = encode_images(model, images, labels)
    rows = {"original": as_unit(images), "reconstruction": decode_images(model, mu, labels)}
    for name in attributes:
        for word, value in (("no ", 0), ("", 1)):
            switched = labels.clone()
            switched[:, names.index(name)] = value
            rows[word + name.replace("_", " ")] = decode_images(model, mu, switched)
    return plot_rows(rows, title)


def plot_curves(curves: dict[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str,
                reference: dict[str, float] | None = None) -> Figure:
    """Named curves (xs, ys), with named horizontal lines for comparison."""
    fig, ax = _subplots(figsize=(6.5, 3.6), layout="constrained")
    for name, (xs, ys) in curves.items():
        ax.plot(xs, ys, marker=".", label=name)
    for name, value in (reference or {}).items():
        ax.axhline(value, color="grey", ls=":", lw=1.5)
        ax.annotate(name, (0.02, value), xycoords=("axes fraction", "data"), va="bottom", color="dimgrey", fontsize=9)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.margins(y=0.15)
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


def plot_along_path(curves: dict[str, Tensor], title: str, ylabel: str, reference: dict[str, float] | None = None,
                    steps: bool = False) -> Figure:
    """One number per position t on the way from 0 to 1, or per step between two positions, with named horizontal lines."""
    at = lambda n: (np.arange(n) + 0.5) / n if steps else np.linspace(0, 1, n)   # noqa: E731
    return plot_curves({name: (at(len(values)), values) for name, values in curves.items()}, title,
                       "t, from image A (0) to image B (1)", ylabel, reference)


def plot_aggregate_posterior(posterior: AggregatePosterior, title: str) -> Figure:
    """Where q(z) lies against N(0, I): mean and spread of each dimension, its KL, and the norms of codes and prior."""
    fig, axes = _subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    order = posterior.kl_nats.argsort(descending=True)
    dims = np.arange(len(order))
    axes[0].bar(dims, posterior.kl_nats[order].numpy(), width=1)
    axes[0].set(title="information per dimension", xlabel="dimension, sorted by KL", ylabel="KL (nats)")
    axes[1].plot(dims, posterior.std[order], ".", label="standard deviation")
    axes[1].plot(dims, posterior.mean[order], ".", label="mean")
    axes[1].axhline(1, color="C0", ls=":"), axes[1].axhline(0, color="C1", ls=":")
    axes[1].set(title="q(z) per dimension; dotted: N(0, 1)", xlabel="dimension, sorted by KL")
    axes[1].legend(loc="upper right")
    prior = torch.randn(4000, len(order), generator=torch.Generator().manual_seed(0)).norm(dim=1)
    axes[2].hist(prior, bins=40, density=True, alpha=0.5, label="prior N(0, I)")
    axes[2].hist(posterior.norms, bins=40, density=True, alpha=0.5, label="codes z ~ q(z|x)")
    axes[2].hist(posterior.mu.norm(dim=1), bins=40, density=True, histtype="step", color="k", label="means mu(x)")
    axes[2].set(title="distance from the origin", xlabel="‖·‖", ylabel="density")
    axes[2].legend()
    fig.suptitle(title)
    return fig


def plot_rate_distortion(results: dict[str, dict[str, float]], title: str, others: dict[str, dict[str, float]] | None = None,
                         distortion: str = "reconstruction_nats") -> Figure:
    """Rate (KL) against distortion of several models, named at their points; `others` are not joined by the line.

    distortion is a key of evaluate's result: nats of one likelihood cannot be compared with those of another, mse can.
    """
    fig, ax = _subplots(figsize=(6, 4), layout="constrained")
    points = lambda group: sorted((r["kl_nats"], r[distortion], name) for name, r in group.items())   # noqa: E731
    ax.plot(*zip(*[p[:2] for p in points(results)]), "o-", color="C0")
    for rate, value, name in points(results):
        ax.annotate(name, (rate, value), xytext=(8, 5), textcoords="offset points")
    for rate, value, name in points(others or {}):   # their names below left, where the line is not
        ax.plot(rate, value, "s", color="C1")
        ax.annotate(name, (rate, value), xytext=(-8, -4), textcoords="offset points", ha="right")
    ax.set(xlabel="rate: KL (nats per image)", title=title, xscale="log", ylabel="distortion: " + {
        "reconstruction_nats": "reconstruction (nats per image)", "mse": "mean squared error on [0, 1]"}[distortion])
    ax.margins(x=0.2, y=0.15)
    ax.grid(alpha=0.3, which="both")
    return fig


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same keys → a Markdown table; the first column is left-aligned, the others right. No rows, no table."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [columns, [":--"] + ["--:"] * (len(columns) - 1)] + [[str(r[c]) for c in columns] for r in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_sd(values: Sequence[float], digits: int = 1) -> str:
    """'mean ± sample standard deviation' of some seeds, or the bare value when there is only one."""
    spread = f" ± {np.std(values, ddof=1):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"


# ╔════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Widgets                                                                                    ║
# ╚════════════════════════════════════════════════════════════════════════════════════════════╝

@lru_cache(maxsize=100)   # while a slider moves, most lines stay; to write one takes longer than to decode an image
def draw_text(text: str, width: int) -> Image.Image:
    """A text in lines of at most `width` pixels, 18 high, black on white."""
    from matplotlib import get_data_path
    font = ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 13)   # it has β, ‖ and →
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width - 4 or not lines[-1] else [lines[-1], word]
    picture = Image.new("RGB", (width, 18 * len(lines)), "white")
    for number, line in enumerate(lines, 1):
        ImageDraw.Draw(picture).text((2, 18 * number), line, "black", font, anchor="lb")
    return picture


def draw_sheet(title: str, rows: dict[str, Tensor], sentence: str, width: int = 720) -> Image.Image:
    """A title, rows of images (n, C, H, W) under their captions, and a sentence, black on white in any theme.

    By Pillow, in milliseconds: it is drawn anew whenever a slider moves. Pixels are enlarged by whole numbers, so that
    every row comes close to `width`.
    """
    grids = [Image.fromarray(image_grid(images)) for images in rows.values()]
    grids = [ImageOps.scale(grid, max(1, round(width / grid.width)), Image.Resampling.NEAREST) for grid in grids]
    wide = max(width, *(grid.width for grid in grids))
    parts = [draw_text(title, wide), *(part for caption, grid in zip(rows, grids) for part in (draw_text(caption, wide), grid)), draw_text(sentence, wide)]
    sheet = Image.new("RGB", (wide, sum(part.height for part in parts) + 8), "white")
    for part, bottom in zip(parts, itertools.accumulate(part.height for part in parts)):
        sheet.paste(part, (0, bottom - part.height))
    return sheet


@checked
def save_strip(images: Tensor, file: str | os.PathLike) -> Path:
    """Images (n, C, H, W): a .png shows them side by side, a .gif one after the other, there and back. Returns the whole path.

    A relative path is below runs_root(). Raises VAEError for other kinds of files.
    """
    path = runs_root().resolve() / file
    if path.suffix not in (".png", ".gif"):
        raise VAEError(f"Name a file that ends in .png or .gif, not {path.name!r}.")
    frames = [Image.fromarray(image_grid(part)) for part in ([images] if path.suffix == ".png" else images.split(1))]
    frames = [ImageOps.scale(frame, 4, Image.Resampling.NEAREST) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    moving = {"save_all": True, "append_images": [*frames[1:], *frames[-2:0:-1]], "duration": 100, "loop": 0}   # ms; for ever
    frames[0].save(path, **(moving if path.suffix == ".gif" else {}))
    return path


def has_widgets() -> bool:
    """Whether somebody can move a slider. Nobody can in a script, or where the cell was sent by nbconvert, papermill or
    nbval: they say in their request that input() would find no one, and a widget would be dead text in their notebook."""
    from IPython import get_ipython
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and ("google.colab" in sys.modules or kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


class Explorer:
    """Controls and one picture, which is drawn anew in place. As the last line of a cell it shows itself.

    draw      one argument for each control → rows of images as draw_sheet takes them, and a sentence with what was measured
    controls  argument of draw → the ipywidgets control that sets it; a slider has to start on one of its steps, since the
              front end would move it there
    others    the control that plays, and buttons as (text, what a click does)

    Where there are no widgets (see has_widgets; also GitHub and PDF) it is the picture alone, which says everything; in a
    script it is in .image. ipywidgets 7.7, which Colab has, and 8 both do.
    """

    STYLE = {"style": {"description_width": "initial"}, "layout": {"width": "340px"}}   # descriptions are not cut
    TOGGLE = {"style": {"button_width": "auto"}, "layout": {"width": "auto"}}

    def __init__(self, title: str, draw: Callable[..., tuple[dict[str, Tensor], str]], controls: dict, others: Sequence = ()):
        import ipywidgets as widgets
        self.title, self.draw, self.controls, self.rows = title, draw, controls, {}
        self.screen, self.message = widgets.Image(format="jpeg", layout={"max_width": "100%", "align_self": "flex-start"}), widgets.HTML()
        self.update()
        for control in controls.values():
            control.observe(self.update, "value")
        shown = []
        for other in others:
            if isinstance(other, tuple):
                text, action = other
                other = widgets.Button(description=text, layout={"width": "auto"})
                other.on_click(partial(self._click, action))
            shown.append(other)
        wrapped = [widgets.Box(list(controls.values()), layout={"display": "grid", "grid_template_columns": "repeat(auto-fill, 350px)"}),
                   widgets.Box(shown, layout={"flex_flow": "row wrap"})]
        self.buttons = {b.description: b for b in shown if isinstance(b, widgets.Button)}
        self.box = widgets.VBox([*wrapped, self.message, self.screen])

    def update(self, change=None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        if change and values == self.values:   # one control has set another, and that has drawn both
            return
        self.values = values
        try:
            self.rows, self.sentence = self.draw(**values)
        except VAEError as err:
            if not self.rows:
                raise               # in the call that made it; later the last picture stays, with the reason below
            self.sentence = str(err)
        self.image = draw_sheet(self.title, self.rows, self.sentence)
        self.screen.value = self._encoded("JPEG", quality=95, subsampling=0)   # a fifth of the time that PNG takes

    def set(self, **values) -> None:
        """Set several controls, and draw once."""
        for name, value in values.items():
            self.controls[name].unobserve(self.update, "value")
            self.controls[name].value = value
            self.controls[name].observe(self.update, "value")
        self.update()

    def _encoded(self, kind: str, **options) -> bytes:
        file = io.BytesIO()
        self.image.save(file, kind, **options)
        return file.getvalue()

    def _click(self, action: Callable[[], str | None], button) -> None:
        try:
            self.message.value = html.escape(action() or "")
        except (VAEError, OSError) as err:
            self.message.value = html.escape(str(err))

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = {"image/png": base64.b64encode(self._encoded("PNG")).decode(), "text/plain": f"{self.title}\n{self.sentence}"}
        if has_widgets():
            bundle["application/vnd.jupyter.widget-view+json"] = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return bundle


@checked
def explore_interpolation(model: VAE, data: ImageData, first: int = 0, second: int = 1, steps: int = 10) -> Explorer:
    """Task 2: one test image turns into another, through the latent space and as a pixel cross-fade.

    first, second   numbers of test images; where a class is chosen, the number counts within it
    """
    import ipywidgets as widgets
    count, rng = len(data.test.images), torch.Generator().manual_seed(0)
    of_class = {"any class": torch.arange(count)}
    labels = data.test.labels[:, 0] if data.name == "shapes" else data.test.labels
    if labels.ndim == 1 and len(data.label_names) > 1:   # attributes are no classes
        of_class |= {name: (labels == k).nonzero()[:, 0] for k, name in enumerate(condition_names(data)) if (labels == k).any()}
    name_of = lambda i: next((name for name, members in of_class.items() if name != "any class" and i in members), "")   # noqa: E731

    @lru_cache(maxsize=1)   # while only the position moves
    def paths(a, b, steps, method, code):
        images = as_unit(data.test.images[[a, b]])
        z = sample_codes(model, images) if code == "noisy samples" else encode_images(model, images)[0]
        return images, z, decode_images(model, interpolate_latents(*z, steps, method)), cross_fade(*images, steps)

    def draw(class_a, number_a, class_b, number_b, steps, position, method, code):
        chosen = [of_class[c][n % len(of_class[c])].item() for c, n in ((class_a, number_a), (class_b, number_b))]
        images, z, latent_path, pixel_path = paths(*chosen, steps, method, code)
        t = torch.tensor(position / 100)
        at_t = METHODS[method](z[:1], z[1:], t)
        morph, fade = decode_images(model, at_t), torch.lerp(images[:1], images[1:], t)
        rows = {f"A · decoded at t = {t:.2f} · pixel cross-fade · B": torch.cat([images[:1], morph, fade, images[1:]]),
                f"through the latent space, {method}, {code}": latent_path, "pixel cross-fade": pixel_path}
        names = [f"{which} is test image {i} ({name_of(i)})".replace(" ()", "") for which, i in zip("AB", chosen)]
        return rows, (f"{', '.join(names)}. At t = {t:.2f}: ‖z‖ = {at_t.norm():.2f}, contrast {contrast(morph).item():.3f}, "
                      f"of the cross-fade {contrast(fade).item():.3f}.")

    position = widgets.IntSlider(50, 0, 100, description="position t (%)", **Explorer.STYLE)
    play = widgets.Play(value=50, min=0, max=100, step=2, interval=80, description="morph")   # ms
    widgets.jsdlink((play, "value"), (position, "value"))   # one way: both ways the slider would send two messages for each move
    file = widgets.Text("interpolation.gif", description="save the strip as .png or .gif", **Explorer.STYLE)
    number = lambda value, which: widgets.BoundedIntText(value, 0, count - 1, description=f"number of {which}", **Explorer.STYLE)   # noqa: E731
    choose = lambda which: widgets.Dropdown(options=list(of_class), description=f"class of {which}", **Explorer.STYLE)   # noqa: E731
    controls = {"class_a": choose("A"), "number_a": number(first, "A"), "class_b": choose("B"), "number_b": number(second, "B"),
                "steps": widgets.IntSlider(steps, 2, 20, description="steps", **Explorer.STYLE), "position": position,
                "method": widgets.ToggleButtons(options=list(METHODS), **Explorer.TOGGLE),
                "code": widgets.ToggleButtons(options=["means", "noisy samples"], **Explorer.TOGGLE)}
    random_pair = lambda: explorer.set(**dict(zip(("number_a", "number_b"), torch.randint(count, (2,), generator=rng).tolist())))   # noqa: E731
    save = lambda: f"Saved to {save_strip(list(explorer.rows.values())[1], file.value)}"   # noqa: E731
    explorer = Explorer(f"From one test image to another: {data.title}", draw, controls, [play, ("random pair", random_pair), file, ("save", save)])
    return explorer


@checked
def explore_region(model: VAE, data: ImageData, n: int = 6, z_range: tuple[float, float] = (-2.0, 2.0)) -> Explorer:
    """Task 3: n pictures from a box, a shell or a tempered prior (see sample_latents), beside what the region is worth.

    The quality: mean ‖z‖, contrast, and self-reconstruction MSE, each beside the same number for 100 test images.
    """
    import ipywidgets as widgets
    _need_plain_latents(model)

    def quality(z: Tensor, images: Tensor) -> str:
        again = decode_images(model, encode_images(model, images)[0])   # as self_reconstruction_mse, without decoding z twice
        return f"‖z‖ {z.norm(dim=1).mean():.1f}, contrast {contrast(images).mean():.3f}, self-reconstruction MSE {(again - images).square().mean():.4f}"

    codes = sample_codes(model, data.test.images[:100])
    real = decode_images(model, encode_images(model, data.test.images[:100])[0])
    goal = quality(codes, real)

    def draw(region, seed, **values):
        z = sample_latents(n, model.config.latent_dim, seed=seed, **{region: values[region]})
        images = decode_images(model, z)
        return ({f"{region} = {values[region]}, seed {seed}": images, "for comparison: test images, reconstructed": real[:n]},
                f"These {n}: {quality(z, images)}. 100 test images, reconstructed: {goal}.")

    slider = partial(widgets.FloatSlider, step=0.1, readout_format=".1f", **Explorer.STYLE)
    region = widgets.ToggleButtons(options=[("box", "z_range"), ("shell", "radius"), ("tempered prior", "temperature")], **Explorer.TOGGLE)
    places = {"z_range": widgets.FloatRangeSlider(value=z_range, min=-6, max=6, step=0.1, readout_format=".1f", description="z_range", **Explorer.STYLE),
              "radius": slider(round(math.sqrt(model.config.latent_dim), 1), min=0, max=40, description="radius"),
              "temperature": slider(1.0, min=0, max=3, description="temperature")}
    for name, place in places.items():   # moving a slider chooses its region
        place.observe(lambda change, name=name: setattr(region, "value", name), "value")
    seed = widgets.BoundedIntText(0, 0, 2 ** 31 - 1, description="seed", **Explorer.STYLE)
    return Explorer(f"Decoded from a region of the latent space: {data.title}", draw, {"region": region, **places, "seed": seed},
                    [("draw again", lambda: setattr(seed, "value", seed.value + 1))])


@checked
def explore_dimensions(model: VAE, data: ImageData, directions: dict[str, Tensor] | None = None, image: int = 0) -> Explorer:
    """Task 3: a code, moved along the ten dimensions with the largest KL and along attribute directions (see attribute_direction).

    directions   name → (D,); image: the test image whose code is the start
    """
    import ipywidgets as widgets
    _need_plain_latents(model)
    q = aggregate_posterior(model, data.test.images[:500])
    dims = (q.kl_nats if q.kl_nats.any() else q.std).argsort(descending=True)[:10].tolist()   # a code without KL: by spread
    start, rng = {}, torch.Generator().manual_seed(0)
    sliders = {f"dimension {d} ({q.kl_nats[d]:.1f} nats)": F.one_hot(torch.tensor(d), q.mu.shape[1]).float() for d in dims} | (directions or {})

    def draw(**values):
        z = start["z"] + sum(values[name] * direction for name, direction in sliders.items())
        now = decode_images(model, z[None])
        first, *ends = start["rows"].items()
        moved = ", ".join(f"{name.replace('_', ' ')} {value:+.1f}" for name, value in values.items() if value)
        return {first[0]: torch.cat([first[1], now]), **dict(ends)}, (f"Moved: {moved}. " if moved else "") + (
            f"Now ‖z‖ = {z.norm():.2f}, {(z - start['z']).norm():.2f} from the start, contrast {contrast(now).item():.3f}. Means of test images: "
            f"‖μ‖ = {q.mu.norm(dim=1).mean():.2f} ± {q.mu.norm(dim=1).std():.2f}.")

    def start_at(z: Tensor, caption: str, *original: Tensor) -> None:
        start.update(z=z, rows={caption: torch.cat([*original, decode_images(model, z[None])])} | {
            f"the start, but dimension {', '.join(map(str, dims))} moved by {by:+d}": decode_images(model, z + by * torch.eye(len(z))[dims]) for by in (-3, 3)})

    def encode(i: int) -> None:
        one = data.test.images[i:i + 1]
        start_at(encode_images(model, one)[0][0], f"test image {i} · reconstruction · now", as_unit(one))

    def reset() -> None:
        explorer.set(**dict.fromkeys(sliders, 0.0))

    def another_face() -> None:
        encode(number.value)
        reset()

    def random_face() -> None:
        start_at(torch.randn(model.config.latent_dim, generator=rng), "draw of N(0, I) · now")
        reset()

    encode(image)
    number = widgets.BoundedIntText(image, 0, len(data.test.images) - 1, description="number of the test image", **Explorer.STYLE)
    explorer = Explorer(f"One code, dimension by dimension: {data.title}", draw, {
        name: widgets.FloatSlider(0, min=-6, max=6, step=0.1, readout_format="+.1f", description=name.replace("_", " "), **Explorer.STYLE) for name in sliders}, [
        ("reset", reset), number, ("encode a test face", another_face), ("random face", random_face)])
    return explorer


@checked
def explore_models(models: dict[str, VAE], data: ImageData, by_beta: dict[str, VAE], n: int = 8) -> Explorer:
    """Task 1: the same n test images, or the same n draws of N(0, I), through several models; one more is chosen by a slider.

    by_beta   the models of the slider, as {"β = 0.1": model}
    """
    import ipywidgets as widgets
    everything = models | {f"{name} (slider)": m for name, m in by_beta.items()}
    images_of = lambda page: as_unit(data.test.images[page * n:page * n + n])   # noqa: E731

    @lru_cache(maxsize=2 * len(everything))   # while only β moves
    def row(name, source, page):
        m = everything[name]
        return decode_images(m, encode_images(m, images_of(page))[0] if source == "test images" else
                             sample_latents(n, m.config.latent_dim, seed=page))

    def draw(source, page, beta):
        rows = {name: row(name, source, page) for name in (*models, f"{beta} (slider)")}
        if source != "test images":
            return rows, f"Seed {page}. Contrast: " + ", ".join(f"{name} {contrast(x).mean():.3f}" for name, x in rows.items()) + "."
        images = images_of(page)
        return ({f"test images {page * n} to {page * n + len(images) - 1}": images, **rows},
                "MSE of these: " + ", ".join(f"{name} {(x - images).square().mean():.4f}" for name, x in rows.items()) + ".")

    source = widgets.ToggleButtons(options=["test images", "draws of N(0, I)"], **Explorer.TOGGLE)
    page = widgets.IntSlider(0, 0, (len(data.test.images) - 1) // n, description="which (page, or seed)", **Explorer.STYLE)
    beta = widgets.SelectionSlider(options=list(by_beta), value=list(by_beta)[-1], description="β of the last row", **Explorer.STYLE)
    return Explorer(f"The same through several models: {data.title}", draw, {"source": source, "page": page, "beta": beta})


def _need_plain_latents(model: VAE) -> None:
    if model.config.model in ("cvae", "vq_vae"):
        raise VAEError(f"This explorer moves through latents that decode by themselves, and those of model {model.config.model} do not: take another model.")
