"""Features of images: the Fréchet distance of two sets, and how fast they change along a path.

FeatureNet is our own small network, trained once on CIFAR-10 and once on faces; Inception is the
one of the FID, for those who have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import vae_helpers as vae
from base.errors import first_line
from base.files import digest
from base.hardware import import_torchvision
from base.options import progress_bar

RELEASED = Path(__file__).resolve().parent.parent / "checkpoints/features"


def torchmetrics_package():
    """torchmetrics, with the parts that are used here."""
    # torchmetrics imports torchvision, which needs help on some machines, and takes a second.
    import_torchvision()
    import torchmetrics.functional.image
    import torchmetrics.image.fid

    return torchmetrics


class FeatureNet(nn.Module):
    """A small residual network that names classes or attributes, and tells images apart.

    The features of an image are the mean activations of its four stages, from edges and texture to
    classes (the last stage alone is nearly blind to blur), each divided by its standard deviation
    over real training images (scale). It learned the classes of CIFAR-10, or the attributes of
    faces, by `python -m reproduce.features`, and takes images of any size.
    """

    WIDTHS = (32, 64, 128, 256)

    def __init__(self, outputs: int):
        super().__init__()
        first, second, third, fourth = self.WIDTHS
        stages = [
            convolution(3, first),
            convolution(first, second, pool=True),
            nn.Sequential(convolution(second, third, pool=True), Residual(third)),
            nn.Sequential(convolution(third, fourth, pool=True), Residual(fourth)),
        ]
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(self.WIDTHS[-1], outputs)
        self.labels: tuple[str, ...] = ()  # the name of each output, where it is known
        self.version = ""  # of released weights: what was measured with others is another measure
        self.register_buffer("scale", torch.ones(sum(self.WIDTHS)))

    def activations(self, x: Tensor) -> list[Tensor]:
        """Mean over the positions of each stage: (N, 1 or 3, H, W) in [0, 1] → 4 times (N, W)."""
        h = x.expand(-1, 3, -1, -1) * 4 - 2
        means = []
        for stage in self.stages:
            h = stage(h)
            means.append(h.mean((2, 3)))
        return means

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes or attributes, (N, outputs)."""
        return self.head(self.activations(x)[-1])

    def features(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [0, 1] → (N, 480), in standard deviations of real images."""
        return torch.cat(self.activations(x), dim=1) / self.scale


def convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    """3x3, perhaps the largest of 2x2 pixels, batch normalisation, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that one pixel stays one
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """x + two convolutions of x (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            convolution(channels, channels), convolution(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def load_feature_net(dataset: str = "cifar10") -> FeatureNet:
    """The released FeatureNet that fits a data set, on get_device().

    celeba has one of its own, which learned the attributes of faces. All others share the one that
    learned the classes of CIFAR-10. Raises CheckpointError if it is missing or damaged.
    """
    name = "celeba" if dataset == "celeba" else "cifar10"
    path = RELEASED / f"{name}.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
        record = json.loads(path.with_suffix(".json").read_text())
        if digest(weights) != record["weights_sha256"]:
            raise ValueError(f"its checksum is not the one in {name}.json")
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise vae.CheckpointError(
            f"{path} is missing or damaged ({first_line(error)}): copy it again, or make it "
            f"with python -m reproduce.features {name}."
        ) from None
    net = FeatureNet(len(weights["head.bias"]))
    net.labels, net.version = tuple(record["labels"]), record["weights_sha256"][:8]
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    net.eval().requires_grad_(False)
    return net.to(vae.get_device(), memory_format=torch.channels_last)


class Inception(nn.Module):
    """The network of the FID (Heusel et al. 2017) from the package torch-fidelity.

    weights is a file; without one torch-fidelity downloads its own (91 MB). Raises VAEError when
    the package or the weights cannot be had.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        network = torchmetrics_package().image.fid.NoTrainInceptionV3
        try:
            self.net = network("inception-v3-compat", ["2048"], weights).to(vae.get_device())
        # The package, the network or the file may be at fault, each with errors of its own kind.
        except Exception as error:
            raise vae.VAEError(
                "FID needs the package torch-fidelity (pip install torch-fidelity) and its "
                f"Inception weights, downloaded or from your file ({first_line(error)}): without "
                "them use the Fréchet feature distance."
            ) from None

    def features(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [0, 1] → (N, 2048)."""
        return self.net((x.expand(-1, 3, -1, -1) * 255).round().byte())


@torch.no_grad()
def image_features(images: Tensor, net: FeatureNet | Inception) -> Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1] → (N, F) features on the CPU."""
    device = next(net.parameters()).device
    parts = [net.features(vae.as_unit(some.to(device))).cpu() for some in images.split(500)]
    return torch.cat(parts)


@torch.no_grad()
def logits_of(net: FeatureNet, images: Tensor) -> Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1] → (N, outputs), on the CPU.

    The mean over each image and its mirror image, which is right more often than one of them.
    """
    device, parts = next(net.parameters()).device, []
    for some in images.split(500):
        x = vae.as_unit(some.to(device)).contiguous(memory_format=torch.channels_last)
        parts.append((net(x) + net(x.flip(3))).cpu() / 2)
    return torch.cat(parts)


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to features (N, F) and (M, F), by torchmetrics.

    With Inception's features it is the FID (Heusel et al. 2017), with FeatureNet's we call it
    Fréchet feature distance: never compare the two. It falls with N, so compare only distances
    from equally many images, and with that of real images to real images. It sees the features of
    a whole set, not what single pictures show: support/recognition.py asks that.
    """
    identity = nn.Identity()
    identity.num_features = real.shape[1]
    metric = torchmetrics_package().image.fid.FrechetInceptionDistance(feature=identity)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def distances(
    net: FeatureNet | Inception, real: Tensor, sets: dict[str, Tensor], unit: str
) -> dict[str, float]:
    """UNIT_NAME: the Fréchet distance of each set of images (N, C, H, W) to the real ones."""
    expected = image_features(real, net)
    result = {}
    for name, images in progress_bar(sets.items(), desc=unit):
        result[f"{unit}_{name}"] = frechet_distance(expected, image_features(images, net))
    return result


def perceptual_path_length(
    decode: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    z_a: Tensor,
    z_b: Tensor,
    method: str = "linear",
    *,
    epsilon: float = 1e-2,
    seed: int = 0,
) -> Tensor:
    """How fast the picture changes at one random point of each path: (N, D) twice → (N,).

    |features(decode(z(t + epsilon))) - features(decode(z(t)))|^2 / epsilon^2, in squared units of
    the features (after Karras et al. 2019, section 4.1, who take draws of the prior, another
    epsilon and another network). t is uniform, and the same for the same seed, so that methods
    are compared at the same points.
    """
    interpolate = vae.INTERPOLATIONS[method]
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(len(z_a), 1, generator=generator) * (1 - epsilon)
    before = features(decode(interpolate(z_a, z_b, t)))
    after = features(decode(interpolate(z_a, z_b, t + epsilon)))
    return (after - before).square().flatten(1).sum(1) / epsilon**2
