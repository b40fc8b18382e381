"""Evaluate a run: a folder that train.py wrote → metrics.json, pictures and, if asked for, sample batches.

    python evaluate.py --num_samples 10                                       # the newest run
    python evaluate.py --run checkpoints/cifar10_conv --num_samples 10000 --npz
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vae_helpers as vae


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                usage="python evaluate.py [--FLAG VALUE …]")
    p.add_argument("--run", metavar="DIR", type=Path, help="the run folder to evaluate (default: the newest in runs/)")
    p.add_argument("--out", metavar="DIR", type=Path, help="where the results go (default: DIR/evaluation, or runs/ for released weights)")
    p.add_argument("--num_samples", metavar="N", type=int, default=64,
                   help="how many samples, reconstructions and interpolation midpoints (default 64)")
    p.add_argument("--num_interpolations", metavar="N", type=int, default=10, help="images in one interpolation (default 10)")
    p.add_argument("--data_dir", metavar="DIR", type=Path, help="where the images are now, for a run on a folder of images")
    p.add_argument("--seed", metavar="N", type=int, default=0, help="seeds the samples (default 0)")
    p.add_argument("--npz", action="store_true",
                   help="also write the samples, reconstructions and midpoints as .npz (arr_0, uint8, N x H x W x C), "
                        "as tools that measure FID read them")
    return p


def newest_run() -> Path:
    """The run folder written last. Raises CheckpointError when there is none."""
    runs = sorted(vae.runs_root().glob("*/model.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise vae.CheckpointError(f"There is no run in {vae.runs_root()} yet: python train.py makes one.")
    return runs[-1].parent


def save_grid(images: torch.Tensor, path: Path, columns: int) -> None:
    """Images (N, C, H, W) as one PNG, each pixel enlarged so that small images can be seen."""
    picture = Image.fromarray(vae.image_grid(images, columns))
    scale = max(1, 96 // images.shape[-1])
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)


def midpoints(model: vae.VAE, images: torch.Tensor, n: int) -> torch.Tensor:
    """n images halfway between the means of image i and image i + 1 (+ 2, … in later rounds): float (n, C, H, W)."""
    mu, _ = vae.encode_images(model, images)
    rounds = [(mu + mu.roll(-shift, 0)) / 2 for shift in range(1, n // len(mu) + 2)]
    return vae.decode_images(model, torch.cat(rounds)[:n])


def save_npz(images: torch.Tensor, path: Path) -> None:
    """uint8 or float [0, 1] (N, C, H, W) → arr_0, uint8 (N, H, W, C)."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    np.savez_compressed(path, pixels.permute(0, 2, 3, 1).numpy())


def main(argv: list[str] | None = None) -> dict:
    """Parse, measure, write; returns what metrics.json holds. Raises VAEError on what the user can mend."""
    args = parser().parse_args(argv)
    for name in ("num_samples", "num_interpolations"):
        if getattr(args, name) < (least := 1 if name == "num_samples" else 2):
            raise vae.VAEError(f"--{name} must be at least {least}, not {getattr(args, name)}.")
    if abs(args.seed) >= 2 ** 63:
        raise vae.VAEError(f"--seed must be a whole number of at most 63 bits, not {args.seed}.")
    folder = args.run or newest_run()
    model, record = vae.load_checkpoint(folder)
    config = model.config
    data = vae.load_dataset(config.dataset, image_size=config.image_size, data_dir=args.data_dir or config.data_dir,
                            max_images=config.max_images)
    same_data = record.get("data", {}).get("fingerprint") == data.fingerprint
    if not same_data:
        print("Note: the images found now are not exactly those of the training run: some of these test images may have been trained on.")
    released = vae.RELEASED in folder.resolve().parents   # results do not belong among the released weights
    out = args.out or (vae.runs_root() / f"{folder.name}-evaluation" if released else folder / "evaluation")
    out.mkdir(parents=True, exist_ok=True)

    n, test = args.num_samples, data.test.images
    originals = test[:n]
    if len(originals) < n:
        print(f"{data.title} has {len(test):,} test images: that many reconstructions instead of {n:,}")
    reconstructions = vae.decode_images(model, vae.encode_images(model, originals)[0])
    samples = vae.sample_images(model, n, seed=args.seed)
    middle = midpoints(model, test[:max(n, 2)], n)

    metrics = {"run": str(folder), "trained_on": record.get("data", {}).get("title"), "measured_on": data.title, "same_data": same_data,
               "test": vae.evaluate(model, test)}
    shown = min(n, 64)
    pairs = torch.stack([originals[:shown].float() / 255, reconstructions[:shown]], dim=1).flatten(0, 1)
    save_grid(pairs, out / "reconstructions.png", columns=16 if shown >= 8 else 2 * shown)
    save_grid(samples[:shown], out / "samples.png", columns=min(shown, 8))
    ends = [(test[i], test[-1 - i]) for i in range(min(5, len(test) // 2))]
    if ends:   # one test image has nothing to be interpolated with
        strips = [vae.interpolate_images(model, a, b, args.num_interpolations, method) for a, b in ends for method in ("linear", "spherical")]
        save_grid(torch.cat(strips), out / "interpolations.png", columns=args.num_interpolations)
    if "history" in record:
        vae.plot_history({f"{config.arch} {config.model}": record["history"]}, data.title).savefig(out / "losses.png", dpi=120)
    if args.npz:
        for name, images in (("samples", samples), ("reconstructions", reconstructions), ("midpoints", middle)):
            save_npz(images, out / f"{name}.npz")
    vae.write_json(out / "metrics.json", metrics)
    for key, value in metrics["test"].items():
        print(f"{key:22} {value:,.4f}" if isinstance(value, float) else f"{key:22} {value:,}")
    print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return metrics


if __name__ == "__main__":
    vae.run_script(main)
