"""Train the feature network of the Fréchet feature distance and the path length, on CIFAR-10.

    python checkpoints/features.py      some ten minutes on two CPU cores

Writes checkpoints/features/features.safetensors (half precision) and features.json: how it was
trained, and its accuracy.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import safetensors.torch
import torch
import torch.nn.functional as F

import vae_helpers as vae
from support import metrics, runs
from support.basics import digest, progress_bar

EPOCHS, BATCH, PEAK_LR, SEED = 10, 128, 5e-3, 0


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored or not; the whole batch moved by up to 3 pixels. (N, C, H, W) twice."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored.to(x.device), x.flip(3), x)
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    padded = F.pad(x, (3, 3, 3, 3), mode="reflect")
    return padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


def accuracy(net: metrics.FeatureNet, split: vae.Split) -> float:
    device, predictions = next(net.parameters()).device, []
    net.eval()
    with torch.no_grad():
        for part in split.images.split(500):
            predictions.append(net(vae.as_unit(part.to(device))).argmax(1).cpu())
    return (torch.cat(predictions) == split.labels).float().mean().item()


def train(net: metrics.FeatureNet, data: vae.ImageData) -> float:
    """Train for EPOCHS with a one-cycle schedule; returns the seconds that it took."""
    device, generator = vae.get_device(), torch.Generator().manual_seed(SEED)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK_LR, weight_decay=0.01, fused=True)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, total_steps=steps, cycle_momentum=False
    )
    start = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        net.train()
        batches = torch.randperm(len(images), generator=generator).split(BATCH)
        for indices in progress_bar(batches, desc=f"epoch {epoch}/{EPOCHS}"):
            x = augmented(vae.as_unit(images[indices]), generator)
            logits = net(x.contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(logits, labels[indices], label_smoothing=0.1).backward()
            optimiser.step()
            schedule.step()
        seconds = time.perf_counter() - start
        validation = accuracy(net, data.val)
        print(f"epoch {epoch:2}: validation accuracy {validation:.3f}, {seconds:.0f} s", flush=True)
    return time.perf_counter() - start


def main() -> None:
    data, device = vae.load_dataset("cifar10"), vae.get_device()
    torch.manual_seed(SEED)
    net = metrics.FeatureNet(len(data.label_names))
    net = net.to(device, memory_format=torch.channels_last)
    seconds = train(net, data)
    net.half().float()  # what is written is what is measured
    features = metrics.image_features(data.train.images, net)
    net.scale = features.std(0).clamp(min=1e-3).to(device)
    folder = HERE / "features"
    folder.mkdir(exist_ok=True)
    weights = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "features.safetensors")
    record = {
        "data": data.title,
        "images": len(data.train.images),
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "peak_lr": PEAK_LR,
        "seed": SEED,
        "hardware": runs.hardware(),
        "seconds": seconds,
        "parameters": vae.count_parameters(net),
        "accuracy_train": accuracy(net, data.train),
        "accuracy_test": accuracy(net, data.test),
        "weights_sha256": digest(weights),
    }
    vae.write_json(folder / "features.json", record)
    print(f"test accuracy {record['accuracy_test']:.3f}; written to {folder}")


if __name__ == "__main__":
    runs.run_script(main)
