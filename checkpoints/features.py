"""Train the feature network that the Fréchet feature distance and the path length are measured with, on CIFAR-10.

    python checkpoints/features.py      some ten minutes on two CPU cores

Writes checkpoints/features/features.safetensors (half precision) and features.json: how it was trained, its accuracy.
"""
from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import vae_helpers as vae  # noqa: E402

EPOCHS, BATCH, PEAK_LR, SEED = 10, 128, 5e-3, 0


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored or not; the whole batch moved by up to 3 pixels. (N, C, H, W) → the same."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored.to(x.device), x.flip(3), x)
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    return F.pad(x, (3, 3, 3, 3), mode="reflect")[:, :, dy:dy + x.shape[2], dx:dx + x.shape[3]]


def accuracy(net: vae.FeatureNet, split: vae.Split) -> float:
    device = next(net.parameters()).device
    with torch.no_grad():
        predicted = torch.cat([net.eval()(part.to(device).float() / 255).argmax(1).cpu() for part in split.images.split(500)])
    return (predicted == split.labels).float().mean().item()


def main() -> None:
    data, device = vae.load_dataset("cifar10"), vae.get_device()
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = vae.FeatureNet(len(data.label_names)).to(device, memory_format=torch.channels_last)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK_LR, weight_decay=0.01, fused=True)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, total_steps=EPOCHS * steps, cycle_momentum=False)
    start = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        net.train()
        for indices in vae.progress_bar(torch.randperm(len(images), generator=generator).split(BATCH), desc=f"epoch {epoch}/{EPOCHS}"):
            x = augmented(images[indices].float() / 255, generator).contiguous(memory_format=torch.channels_last)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), labels[indices], label_smoothing=0.1).backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch:2}: validation accuracy {accuracy(net, data.val):.3f}, {time.perf_counter() - start:.0f} s", flush=True)

    net.half().float()   # what is written is what is measured
    with torch.no_grad():
        features = torch.cat([net.features(part.to(device).float() / 255) for part in data.train.images.split(500)])
    net.scale = features.std(0).clamp(min=1e-3)
    folder = HERE / "features"
    folder.mkdir(exist_ok=True)
    weights = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "features.safetensors")
    record = {"data": data.title, "images": len(images), "epochs": EPOCHS, "batch_size": BATCH, "peak_lr": PEAK_LR, "seed": SEED,
              "hardware": vae.hardware(), "seconds": time.perf_counter() - start, "parameters": vae.count_parameters(net),
              "accuracy_train": accuracy(net, data.train), "accuracy_test": accuracy(net, data.test), "weights_sha256": vae._digest(weights)}
    vae.write_json(folder / "features.json", record)
    print(f"test accuracy {record['accuracy_test']:.3f}; written to {folder}")


if __name__ == "__main__":
    vae.run_script(main)
