"""Train the networks of the Fréchet feature distance and the path length.

    python -m reproduce.features              both; an hour on two CPU cores
    python -m reproduce.features celeba       one of the two: cifar10 or celeba

One learned the ten classes of CIFAR-10, the other the forty attributes of CelebA.

Writes checkpoints/features/NAME.safetensors (half precision) and NAME.json: how it was trained, and
its accuracy.
"""

from __future__ import annotations

import time

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import vae_helpers as vae
from base.files import digest
from base.options import progress_bar
from reproduce.common import CHECKPOINTS, chosen
from support import metrics, runs
from support.features import logits_of

EPOCHS = {"cifar10": 14, "celeba": 10}
BATCH, PEAK_LR, WEIGHT_DECAY, SEED = 128, 0.1, 5e-4, 0
SHIFT = 4  # pixels


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, and moved by up to SHIFT pixels: (N, C, H, W) twice."""
    n, _, height, width = x.shape
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored.to(x.device), x.flip(3), x)
    padded = F.pad(x, (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator).to(x.device)
    rows = (down + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=x.device))[:, None, None, :]
    images = torch.arange(n, device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[images, channels, rows, columns]


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of one class for each image, (N,), or of all its attributes, (N, A)."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)
    return F.binary_cross_entropy_with_logits(logits, labels.float())


def accuracy(net: metrics.FeatureNet, split: vae.Split) -> float:
    """The share of classes, or of attributes, that are recognised."""
    net.eval()
    logits = logits_of(net, split.images)
    predictions = logits.argmax(1) if split.labels.ndim == 1 else logits > 0
    return (predictions == split.labels).float().mean().item()


def accuracy_of_guessing(split: vae.Split) -> float:
    """Of always naming the commonest class, or of each attribute whether most faces have it."""
    if split.labels.ndim == 1:
        return (split.labels.bincount().max() / len(split.labels)).item()
    share = split.labels.float().mean(0)
    return torch.maximum(share, 1 - share).mean().item()


def train(net: metrics.FeatureNet, data: vae.ImageData) -> float:
    """Train with a one-cycle schedule; returns the seconds that it took."""
    device, generator = vae.get_device(), torch.Generator().manual_seed(SEED)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    epochs = EPOCHS[data.name]
    optimiser = torch.optim.SGD(
        net.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        net.train()
        batches = torch.randperm(len(images), generator=generator).split(BATCH)
        for indices in progress_bar(batches, desc=f"epoch {epoch}/{epochs}"):
            x = augmented(vae.as_unit(images[indices]), generator)
            logits = net(x.contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad(set_to_none=True)
            loss(logits, labels[indices]).backward()
            optimiser.step()
            schedule.step()
        seconds = time.perf_counter() - start
        validation = accuracy(net, data.val)
        print(f"epoch {epoch:2}: validation accuracy {validation:.3f}, {seconds:.0f} s", flush=True)
    return time.perf_counter() - start


def release(name: str) -> None:
    """Train on a data set, and write the weights and their record."""
    data, device = vae.load_dataset(name), vae.get_device()
    torch.manual_seed(SEED)
    net = metrics.FeatureNet(len(data.label_names))
    net = net.to(device, memory_format=torch.channels_last)
    seconds = train(net, data)
    net.half().float()  # what is written is what is measured
    features = metrics.image_features(data.train.images, net)
    net.scale = features.std(0).clamp(min=1e-3).to(device)
    folder = CHECKPOINTS / "features"
    folder.mkdir(exist_ok=True)
    weights = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(weights, folder / f"{name}.safetensors")
    record = {
        "data": data.title,
        "labels": data.class_names or data.label_names,
        "images": len(data.train.images),
        "epochs": EPOCHS[name],
        "batch_size": BATCH,
        "peak_lr": PEAK_LR,
        "seed": SEED,
        "hardware": runs.hardware(),
        "seconds": seconds,
        "parameters": vae.count_parameters(net),
        "accuracy_train": accuracy(net, data.train),
        "accuracy_test": accuracy(net, data.test),
        "accuracy_of_guessing": accuracy_of_guessing(data.test),
        "weights_sha256": digest(weights),
    }
    vae.write_json(folder / f"{name}.json", record)
    print(f"test accuracy {record['accuracy_test']:.3f}; written to {folder}")


def main() -> None:
    for name in chosen(__doc__, list(EPOCHS)):
        release(name)


if __name__ == "__main__":
    runs.run_script(main)
