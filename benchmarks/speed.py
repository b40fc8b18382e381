"""How fast training is: this project's loop and the usual one, in one run and in turn, on the same model, images and batches.

    python benchmarks/speed.py                  about ten minutes on two cores; writes benchmarks/speed.json and speed.png
    python benchmarks/speed.py --device cuda    the same on a GPU
    python benchmarks/speed.py --rounds 2 --images 2560 --no_growth --out /tmp     a quick look, without the plot

Real CIFAR-10 where it can be had, else drawn shapes. Nothing else should run meanwhile.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import vae_helpers as vae  # noqa: E402

transforms = vae.import_torchvision().transforms


class UsualDataset(Dataset):
    """As torchvision's CIFAR10(transform=ToTensor()): an array in memory, and of each image a PIL image and a float tensor."""

    def __init__(self, images: torch.Tensor):
        self.images, self.transform = images.permute(0, 2, 3, 1).numpy(), transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.images[i].squeeze()))


class UsualLoop:
    """The training loop of most tutorials: DataLoader, float32, one step after the other, Adam as it comes."""

    def __init__(self, config: vae.Config, images: torch.Tensor, loader_processes: int):
        self.model = vae.build_model(config).to(memory_format=torch.contiguous_format)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.loader = DataLoader(UsualDataset(images), config.batch_size, shuffle=True, num_workers=loader_processes,
                                 persistent_workers=loader_processes > 0, pin_memory=self.model.device.type == "cuda")

    def epoch(self) -> None:
        self.model.train()
        for x in self.loader:
            x = x.to(self.model.device)
            mu, logvar = self.model.encode(x)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            reconstruction = F.binary_cross_entropy_with_logits(self.model.decode_raw(z), x, reduction="sum") / len(x)
            kl = -0.5 * torch.sum(1 + logvar - mu.square() - logvar.exp()) / len(x)
            self.optimiser.zero_grad()
            (reconstruction + kl).backward()
            self.optimiser.step()
        wait(self.model.device)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    getattr(torch, device.type).synchronize()


def validation_nats(model: vae.VAE, data: vae.ImageData) -> float:
    return sum(values.mean().item() for values in vae.image_losses(model, *data.val))


def in_turn(config: vae.Config, data: vae.ImageData, rounds: int) -> dict:
    """One epoch of this project's fit, then one of the usual loop without and with processes that load, and so on; last of all
    fit with torch.compile.

    The first round is a warm-up and told apart. Seconds of each are those of the epoch; fit's hold its validation, too.
    """
    torch.manual_seed(config.seed)   # of the usual loop's order and noise
    usual = {f"usual loop, {n or 'no'} loading processes": UsualLoop(config, data.train.images, n) for n in (0, min(4, os.cpu_count() or 1))}
    seconds, nats = ({name: [] for name in ("this project", *usual)} for _ in range(2))
    clock = time.perf_counter()

    def between(history: list[dict]) -> None:
        nonlocal clock
        seconds["this project"].append(time.perf_counter() - clock)
        nats["this project"].append(history[-1]["val_total_nats"])
        for name, loop in usual.items():
            clock = time.perf_counter()
            loop.epoch()
            seconds[name].append(time.perf_counter() - clock)
            nats[name].append(validation_nats(loop.model, data))
        print("  ".join(f"{name} {len(data.train.images) / s[-1]:,.0f} images/s" for name, s in seconds.items()), flush=True)
        clock = time.perf_counter()

    model = vae.build_model(config)
    vae.fit(model, data, dataclasses.replace(config, epochs=rounds + 1), progress=False, on_epoch=between)
    os.environ["VAE_COMPILE"] = "1"
    history = vae.fit(vae.build_model(config), data, dataclasses.replace(config, epochs=rounds + 1), progress=False)
    del os.environ["VAE_COMPILE"]
    name = "this project, compiled"
    seconds[name] = [b - a for a, b in zip([0, *(row["seconds"] for row in history)], (row["seconds"] for row in history))]
    nats[name] = [row["val_total_nats"] for row in history]
    goal = max(values[-1] for values in nats.values())   # a loss that all of them reach
    reached = {name: next(i for i, value in enumerate(values) if value <= goal) for name, values in nats.items()}
    return {name: {"images_per_s": len(data.train.images) / median(s[1:]), "first_epoch_s": s[0], "epoch_s": median(s[1:]),
                   "s_to_goal": sum(s[:reached[name] + 1]), "goal_nats": goal} for name, s in seconds.items()}


def gemm_peak(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """Floating-point operations per second of the product of two square matrices: the best in two seconds."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + 2
    while best == float("inf") or time.perf_counter() < end:   # bfloat16 without hardware for it takes seconds
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size ** 3 / best


def alone(images: int) -> dict:
    """A fresh process: seconds from its start to the end of its first step, and its peak memory after `images` images of CIFAR-10."""
    began = time.time()
    code = ("import sys, time; sys.path.insert(0, sys.argv[1]); import vae_helpers as vae, dataclasses, resource\n"
            "imported = time.time()\n"
            "data = vae.load_dataset('cifar10', or_shapes=True); some = lambda n: dataclasses.replace(\n"
            "    data, train=vae.Split(*(t[:n] for t in data.train)), val=vae.Split(*(t[:1] for t in data.val)))\n"
            "loaded = time.time(); config = vae.config_for(data, epochs=1); model = vae.build_model(config)\n"
            "vae.fit(model, some(128), config, progress=False); first = time.time()\n"
            "vae.fit(model, some(int(sys.argv[2])), config, progress=False)\n"
            "print(imported, loaded, first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    out = subprocess.run([sys.executable, "-c", code, str(HERE.parent), str(images)], capture_output=True, text=True, check=True).stdout
    imported, loaded, first, peak = map(float, out.splitlines()[-1].split())
    return {"import_s": imported - began, "load_s": loaded - imported, "first_step_s": first - loaded, "start_s": first - began,
            "peak_gib": peak / (2 ** 20 if sys.platform != "darwin" else 2 ** 30)}


GROWTH = {"latent_dim": (16, 64, 256, 1024), "width": (8, 16, 32, 64), "image_size": (16, 32, 64, 128), "images": (1280, 2560, 5120, 10240)}


def growth() -> dict[str, dict[int, float]]:
    """Seconds of one epoch, as one of GROWTH's fields grows and the others stay at 32x32 pixels, width 32, 128 latents, 2,560 images."""
    found = {}
    for field, values in GROWTH.items():
        found[field] = {}
        for value in values:
            n = value if field == "images" else 2560 if not (field == "image_size" and value > 64) else 640
            data = vae.load_dataset("shapes", image_size=value if field == "image_size" else 32, max_images=n)
            data = dataclasses.replace(data, val=vae.Split(*(tensor[:1] for tensor in data.val)))
            config = vae.config_for(data, epochs=3, **({field: value} if field in ("latent_dim", "width") else {}))
            history = vae.fit(vae.build_model(config), data, config, progress=False)
            seconds = (history[-1]["seconds"] - history[0]["seconds"]) / 2   # the first epoch warms up
            found[field][value] = seconds * (2560 / n if field == "image_size" else 1)
            print(f"{field} {value}: {found[field][value]:.2f} s", flush=True)
    return found


def plot_growth(found: dict[str, dict[int, float]], title: str) -> plt.Figure:
    names = {"latent_dim": "latent size", "width": "width (channels of the first layer)", "image_size": "image size (pixels a side)", "images": "training images"}
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True, layout="constrained")
    for ax, (field, seconds) in zip(axes, found.items()):
        ax.plot(list(seconds), list(seconds.values()), "o-")
        ax.set(xscale="log", yscale="log", xlabel=names[field])
        ax.set_xticks(list(seconds), [f"{value:,}" for value in seconds])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per epoch")
    fig.suptitle(title)
    return fig


def table(result: dict) -> str:
    """The README's table."""
    rows = []
    for name, r in result["loops"].items():
        rows.append({"loop": name, "images/s": f"{r['images_per_s']:,.0f}", "an epoch of 45,000 images (s)": f"{45_000 / r['images_per_s']:,.0f}",
                     "of the machine's matrix product, float32": f"{100 * r['share_of_float32_peak']:.0f} %",
                     f"to {r['goal_nats']:,.0f} nats on validation images (s)": f"{r['s_to_goal']:,.0f}"})
    return vae.markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default the best there is)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="epochs of each loop, after one to warm up")
    parser.add_argument("--images", metavar="N", type=int, default=7680, help="training images in an epoch")
    parser.add_argument("--out", metavar="DIR", type=Path, default=HERE, help="where speed.json and speed.png go (default benchmarks/, what README shows)")
    parser.add_argument("--no_growth", action="store_true", help="leave out the plot of how cost grows")
    args = parser.parse_args()
    if args.rounds < 1 or args.images < 256:
        raise vae.VAEError("--rounds must be 1 or more and --images 256 or more.")
    if args.device:
        os.environ["VAE_DEVICE"] = args.device
    device = vae.get_device()
    data = vae.load_dataset("cifar10", max_images=args.images, or_shapes=True)
    data = dataclasses.replace(data, val=vae.Split(*(tensor[:500] for tensor in data.val)))
    config = vae.config_for(data)
    os.environ.pop("VAE_COMPILE", None)
    peaks = {str(dtype).removeprefix("torch."): gemm_peak(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    print("  ".join(f"matrix product in {name}: {peak / 1e9:,.0f} GFLOP/s" for name, peak in peaks.items()))
    flops = 3 * vae.count_flops(vae.build_model(config))   # the backward pass costs two forward passes
    loops = in_turn(config, data, args.rounds)
    for r in loops.values():
        r["share_of_float32_peak"] = r["images_per_s"] * flops / peaks["float32"]
    best = max(r["images_per_s"] for name, r in loops.items() if name.startswith("usual"))
    result = {"hardware": vae.hardware(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "data": data.title,
              "precision": vae.precision_name(), "batch_size": config.batch_size,
              "parameters": vae.count_parameters(vae.build_model(config)), "flops_per_image": flops, "gemm_flops": peaks, "loops": loops,
              "ratio": loops["this project"]["images_per_s"] / best, "ratio_compiled": loops["this project, compiled"]["images_per_s"] / best,
              "compile_s": loops["this project, compiled"]["first_epoch_s"] - loops["this project, compiled"]["epoch_s"], **alone(args.images)}
    if not args.no_growth:
        result["growth"] = growth()
        plot_growth(result["growth"], f"Convolutional VAE, batch {config.batch_size}, on {result['hardware']}").savefig(args.out / "speed.png", dpi=110)
    vae.write_json(args.out / "speed.json", result)
    print(table(result))
    print(f"{result['ratio']:.2f} times the usual loop; from the start of Python to the end of the first step {result['start_s']:.1f} s "
          f"(import {result['import_s']:.1f}, images {result['load_s']:.1f}); at most {result['peak_gib']:.2f} GiB")


if __name__ == "__main__":
    vae.run_script(main)
