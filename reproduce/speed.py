"""How fast training is: this project's loop and the usual one, on the same model and images.

    python -m reproduce.speed    about five minutes on two CPU cores, with nothing beside it

Writes figures/speed.json; `python -m reproduce.tables` then fills the table of docs/speed.md. Real
CIFAR-10 where it can be had, else drawn shapes.
"""

from __future__ import annotations

import dataclasses
import os
import time
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

import vae_helpers as vae
from base import hardware
from reproduce.common import FIGURES, chosen
from support import metrics, runs


def usual_batch(arrays: list) -> torch.Tensor:
    """As torchvision's CIFAR10(transform=ToTensor()): of each image a PIL image, then a tensor."""
    to_tensor = hardware.import_torchvision().transforms.ToTensor()
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
        print({name: f"{s[-1]:.1f} s" for name, s in seconds.items()}, flush=True)
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


def main() -> None:
    chosen(__doc__, [])
    data = vae.load_dataset("cifar10", max_images=7680, or_shapes=True)
    data = dataclasses.replace(data, val=vae.Split(*(tensor[:500] for tensor in data.val)))
    config = vae.config_for(data, epochs=6)
    loops = compare(config, data)
    peak = matrix_product_flops(vae.get_device())
    flops = 3 * metrics.count_flops(vae.build_model(config))  # backward costs two forward passes
    for loop in loops.values():
        loop["share_of_float32_peak"] = loop["images_per_s"] * flops / peak
    ours, *usual = (loop["images_per_s"] for loop in loops.values())
    result = {"hardware": hardware.hardware(), "precision": hardware.precision_name()}
    result |= {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "data": data.title}
    result |= {"float32_gflops": peak / 1e9, "ratio": ours / max(usual), "loops": loops}
    print(f"{result['ratio']:.2f} times the usual loop")
    vae.write_json(FIGURES / "speed.json", result)


if __name__ == "__main__":
    runs.run_script(main)
