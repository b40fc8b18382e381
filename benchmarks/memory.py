"""How much memory a data set of CelebA's size takes: 200,000 JPEG files at 64x64, decoded into the cache, then trained on.

    python benchmarks/memory.py                            about half an hour on one core; writes benchmarks/memory.json
    python benchmarks/memory.py --images 2000 --out /tmp   a quick look

The images are drawn, packed into a zip and deleted in the end. Each part is a process of its own, and its peak is that of its
resident memory; what it has mapped from the cache counts, though the system takes that back when memory is short.
"""
from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from PIL import Image  # noqa: E402

import vae_helpers as vae  # noqa: E402

SIZE = 64


def pack(path: Path, images: int) -> None:
    data = vae.load_dataset("shapes", image_size=SIZE, max_images=images)
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(data.train.images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG")
            archive.writestr(f"{i:06}.jpg", file.getvalue())


def load(path: Path) -> vae.ImageData:
    return vae.load_dataset("folder", data_dir=path, image_size=SIZE)


def train(path: Path) -> None:
    """From the cache, one epoch of Task 3's model."""
    data = load(path)
    config = vae.config_for(data, likelihood="squared_error", epochs=1)
    vae.fit(vae.build_model(config), data, config, progress=False)


def measured(part, *args) -> dict[str, float]:
    """Seconds and peak memory, in a process that does nothing else."""
    began = time.perf_counter()
    part(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform != "darwin" else 2 ** 30)
    return {"seconds": time.perf_counter() - began, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="N", type=int, default=200_000)
    parser.add_argument("--out", metavar="DIR", type=Path, default=HERE, help="where memory.json goes (default benchmarks/, what README quotes)")
    args = parser.parse_args()
    result = {"hardware": vae.hardware(), "date": time.strftime("%Y-%m-%d"), "images": args.images, "image_size": SIZE,
              "images_gib": args.images * 3 * SIZE ** 2 / 2 ** 30}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.zip"
        os.environ["VAE_CACHE"] = folder
        for name, part, *rest in (("pack", pack, args.images), ("decode", load), ("train", train)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(measured, part, path, *rest).result()
            if name != "pack":   # that is the preparation
                result |= {f"{name}_{key}": value for key, value in found.items()}
            print(f"{name}: {found['seconds']:.0f} s, at most {found['peak_gib']:.2f} GiB", flush=True)
    vae.write_json(args.out / "memory.json", result)


if __name__ == "__main__":
    vae.run_script(main)
