"""How fast training is: this project's loop and the usual one, on the same model and images.

    python -m reproduce.speed            about ten minutes on two cores, with nothing beside it
    python -m reproduce.speed --quick    a quick look, which writes nothing

Writes figures/speed.json and speed.png; `python -m reproduce.make --texts` then fills the table
of docs/speed.md. Real CIFAR-10 where it can be had, else drawn shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

import vae_helpers as vae
from base import hardware
from base.files import ROOT
from base.hardware import import_torchvision
from support import metrics, runs

GROWTH = {  # field of the config, or of load_dataset → values
    "latent_dim": (16, 64, 256, 1024),
    "width": (8, 16, 32, 64),
    "image_size": (16, 32, 64, 128),
    "max_images": (1280, 2560, 5120, 10240),
}


def usual_batch(arrays: list) -> torch.Tensor:
    """As torchvision's CIFAR10(transform=ToTensor()): of each image a PIL image, then a tensor."""
    to_tensor = import_torchvision().transforms.ToTensor()
    return torch.stack([to_tensor(Image.fromarray(array)) for array in arrays])


class UsualLoop:
    """The training loop of most tutorials: DataLoader, float32, Adam as it comes."""

    def __init__(self, config: vae.Config, images: torch.Tensor, workers: int):
        self.model = vae.build_model(config).to(memory_format=torch.contiguous_format)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        options = {"shuffle": True, "pin_memory": self.model.device.type == "cuda"}
        options |= {"num_workers": workers, "persistent_workers": workers > 0}
        arrays = images.permute(0, 2, 3, 1).numpy()
        self.loader = DataLoader(arrays, config.batch_size, collate_fn=usual_batch, **options)

    def epoch(self) -> float:
        """Train once over the images; the seconds that it took."""
        began = time.perf_counter()
        self.model.train()
        for x in self.loader:
            x = x.to(self.model.device)
            mu, logvar = self.model.encode(x)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            x_raw = self.model.decode_raw(z)
            bce = F.binary_cross_entropy_with_logits(x_raw, x, reduction="sum") / len(x)
            kl = -0.5 * torch.sum(1 + logvar - mu.square() - logvar.exp()) / len(x)
            self.optimiser.zero_grad()
            (bce + kl).backward()
            self.optimiser.step()
        next(self.model.parameters()).sum().item()  # waits until the device is done
        return time.perf_counter() - began


def compare(config: vae.Config, data: vae.ImageData) -> dict[str, dict]:
    """One epoch of vae.fit, then one of each usual loop, and so on; the first of each warms up.

    The seconds of fit contain its validation, those of the usual loops do not.
    """
    torch.manual_seed(config.seed)  # of the usual loop's order and noise
    usual = {}
    for workers in (0, min(4, os.cpu_count() or 1)):
        name = f"usual loop, {workers or 'no'} loading processes"
        usual[name] = UsualLoop(config, data.train.images, workers)
    seconds = {name: [] for name in ("this project", *usual)}
    nats = {name: [] for name in seconds}
    began = time.perf_counter()

    def after_epoch(history: list[dict]) -> None:
        nonlocal began
        seconds["this project"].append(time.perf_counter() - began)
        nats["this project"].append(history[-1]["val_total_nats"])
        for name, loop in usual.items():
            seconds[name].append(loop.epoch())
            losses = vae.image_losses(loop.model, *data.val)
            nats[name].append(sum(loss.mean().item() for loss in losses))
        print({name: f"{s[-1]:.1f} s" for name, s in seconds.items()})
        began = time.perf_counter()

    vae.fit(vae.build_model(config), data, config, progress=False, on_epoch=after_epoch)
    goal = max(values[-1] for values in nats.values())  # a loss that all of them reach
    result = {}
    for name, s in seconds.items():
        reached = next(i for i, value in enumerate(nats[name]) if value <= goal)
        speed = len(data.train.images) / median(s[1:])
        s_to_goal = sum(s[: reached + 1])
        result[name] = {"images_per_s": speed, "s_to_goal": s_to_goal, "goal_nats": goal}
    return result


def matrix_product_flops(device: torch.device, size: int = 1024) -> float:
    """Operations per second of a product of matrices in float32: the best in two seconds."""
    a = torch.randn(size, size, device=device)
    seconds = []
    while sum(seconds) < 2:
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


FRESH_PROCESS = """
import dataclasses, resource, time
import vae_helpers as vae
imported = time.time()
data = vae.load_dataset("cifar10", max_images=7680, or_shapes=True)
data = dataclasses.replace(data, val=vae.Split(*(tensor[:1] for tensor in data.val)))
batch = dataclasses.replace(data, train=vae.Split(*(tensor[:128] for tensor in data.train)))
config = vae.config_for(data, epochs=1)
vae.fit(vae.build_model(config), batch, config, progress=False)
stepped = time.time()
vae.fit(vae.build_model(config), data, config, progress=False)
print(imported, stepped, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fresh_process() -> dict[str, float]:
    """Seconds from the start of Python to the end of the first step, and peak memory later."""
    began = time.time()
    out = subprocess.check_output([sys.executable, "-c", FRESH_PROCESS], cwd=ROOT, text=True)
    imported, stepped, peak = map(float, out.splitlines()[-1].split())
    gib = peak / (2**30 if sys.platform == "darwin" else 2**20)
    return {"import_s": imported - began, "start_s": stepped - began, "peak_gib": gib}


def epoch_seconds(field: str, value: int) -> float:
    """One epoch with one of GROWTH's fields changed; else 32x32 pixels and 2,560 images."""
    options = {"image_size": 32, "max_images": 2560}
    choices = {}
    (options if field in options else choices)[field] = value
    data = vae.load_dataset("shapes", **options)
    data = dataclasses.replace(data, val=vae.Split(*(tensor[:1] for tensor in data.val)))
    config = vae.config_for(data, epochs=3, **choices)
    history = vae.fit(vae.build_model(config), data, config, progress=False)
    return (history[-1]["seconds"] - history[0]["seconds"]) / 2  # the first epoch warms up


def draw_growth(growth: dict[str, dict[int, float]], title: str) -> None:
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True, layout="constrained")
    for ax, (field, seconds) in zip(axes, growth.items()):
        ax.plot(list(seconds), list(seconds.values()), "o-")
        ax.set(xscale="log", yscale="log", xlabel=field)
        ax.set_xticks(list(seconds), [f"{value:,}" for value in seconds])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per epoch")
    fig.suptitle(title)
    fig.savefig(ROOT / "figures" / "speed.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quick look; writes nothing")
    quick = parser.parse_args().quick
    data = vae.load_dataset("cifar10", max_images=1280 if quick else 7680, or_shapes=True)
    data = dataclasses.replace(data, val=vae.Split(*(tensor[:500] for tensor in data.val)))
    config = vae.config_for(data, epochs=3 if quick else 6)
    loops = compare(config, data)
    ours, *usual = (loop["images_per_s"] for loop in loops.values())
    print(f"{ours / max(usual):.2f} times the usual loop")
    if quick:
        return
    peak = matrix_product_flops(vae.get_device())
    flops = 3 * metrics.count_flops(vae.build_model(config))  # backward costs two forward passes
    for loop in loops.values():
        loop["share_of_float32_peak"] = loop["images_per_s"] * flops / peak
    growth = {}
    for field, values in GROWTH.items():
        growth[field] = {value: epoch_seconds(field, value) for value in values}
    draw_growth(growth, f"Convolutional VAE, batch 128, on {hardware.hardware()}")
    result = {"hardware": hardware.hardware(), "precision": hardware.precision_name()}
    result |= {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "data": data.title}
    result |= {"float32_gflops": peak / 1e9, "ratio": ours / max(usual), "loops": loops}
    vae.write_json(ROOT / "figures" / "speed.json", result | fresh_process() | {"growth": growth})


if __name__ == "__main__":
    runs.run_script(main)
