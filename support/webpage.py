"""docs/index.html: a VAE that learns, morphs, new faces and classes, as one page without a network.

    python -m support.webpage             builds it from checkpoints/; no data set is needed
    python -m support.webpage --collect   first makes checkpoints/page/ again from the real data:
                                          test images, labels, garments to learn from

The page's sources are in support/page/; they are joined here and nothing else is done to them.
Networks are turned into bytes by support/page_weights.py. Whatever the page shows first stands
first in it: the weights of the large networks come last and are decoded when they are needed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

import vae_helpers as vae
from support import grid_vae, page_weights, runs  # noqa: F401  grid_vae: a model of MODELS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "index.html"
SOURCES = ROOT / "support" / "page"
CHECKPOINTS = ROOT / "checkpoints"
EXTRAS = CHECKPOINTS / "page"

# The scripts of the page's workers, and of the page itself, in this order.
WORKER_SCRIPTS = ("engine", "random", "networks", "prior", "sizes", "learn_model", "worker")
PAGE_SCRIPTS = ("random", "sizes", "page", "pictures", "learn_plots", "learn", "stories", "morph",
                "photo", "wishes", "faces", "erase", "classes", "start")  # fmt: skip

# Name of a network on the page → folder of the released model.
DECODERS = {
    "faces_grid": "celeba_grid",
    "faces_plain": "celeba_conv",
    "cifar10_grid": "cifar10_grid",
    "cifar10_plain": "cifar10_conv",
    "cifar10_fc": "cifar10_fc",
    "cifar10_best": "cifar10_best",
}
ENCODERS = {name: DECODERS[name] for name in DECODERS if name.endswith(("_grid", "_plain"))}
PRIORS = {"faces_grid": "celeba_grid", "cifar10_grid": "cifar10_grid"}
# Of these the page has no encoder: the codes of its test images are in checkpoints/page/.
KNOWN_CODES = ("cifar10_fc", "cifar10_best")

PER_CLASS, FACES = 4, 30  # test images on the page
GARMENTS = 3000  # training images of Fashion-MNIST


# ── What the page needs of the data: checkpoints/page/ ──────────────────────────────────────────


def save_sheet(images: Tensor, name: str) -> None:
    """Images (N, C, H, W), uint8, side by side as one PNG file, ten in a row."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(10)]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(sheet).save(EXTRAS / f"{name}.png", optimize=True)


def sheet_images(name: str) -> Tensor:
    """The images of such a file, (N, 3, H, W), uint8."""
    sheet = torch.from_numpy(np.array(Image.open(EXTRAS / f"{name}.png")))
    side = sheet.shape[1] // 10
    return sheet.unflatten(0, (-1, side)).unflatten(2, (10, side)).transpose(1, 2).permute(
        0, 1, 4, 2, 3
    ).flatten(0, 1)  # fmt: skip


def four_bits(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W), uint8 → 16 grey values, two pixels in a byte: (N, H * W / 2)."""
    values = (images.flatten(1).float() / 17).round().to(torch.uint8)
    return 16 * values[:, 0::2] + values[:, 1::2]


def packed_labels(labels: Tensor) -> Tensor:
    """Attributes (N, A), 0 or 1 → eight in a byte: (N, ceil(A / 8))."""
    return torch.from_numpy(np.packbits(labels.numpy().astype(np.uint8), axis=1))


def collect() -> None:
    """Test images, what attributes occur together, and garments. Real data only."""
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    garments = vae.load_dataset("fashion_mnist")
    chosen = []
    for label in range(len(cifar.class_names)):  # the first ones of each class
        chosen.append((cifar.test.labels == label).nonzero()[:PER_CLASS, 0])
    chosen = torch.stack(chosen, dim=1).flatten()
    EXTRAS.mkdir(exist_ok=True)
    save_sheet(cifar.test.images[chosen], "cifar10")
    save_sheet(faces.test.images[:FACES], "celeba")

    arrays = {
        "garments": four_bits(garments.train.images[:GARMENTS]),
        "garment_labels": garments.train.labels[:GARMENTS].to(torch.uint8),
        "attributes": packed_labels(faces.train.labels),
    }
    hashes = {}
    for name in KNOWN_CODES:
        model, record = vae.load_checkpoint(CHECKPOINTS / DECODERS[name])
        mu, _ = vae.encode_images(model, cifar.test.images[chosen])
        arrays[f"codes_{name}"] = mu.half()
        hashes[DECODERS[name]] = record["weights_sha256"]
    arrays = {name: value.contiguous() for name, value in arrays.items()}
    (EXTRAS / "page.safetensors").write_bytes(safetensors.torch.save(arrays))
    facts = {
        "classes": [cifar.class_names[label] for label in cifar.test.labels[chosen].tolist()],
        "garments": list(garments.class_names),
        "faces": FACES,
        "training_faces": len(faces.train.labels),
        "contrast": {
            "cifar10": round(vae.contrast(cifar.test.images).mean().item(), 3),
            "celeba": round(vae.contrast(faces.test.images).mean().item(), 3),
        },
        "weights_sha256": hashes,
    }
    vae.write_json(EXTRAS / "page.json", facts)


# ── The page ────────────────────────────────────────────────────────────────────────────────────


def source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def scripts(names: tuple[str, ...]) -> str:
    return "\n".join(source(f"{name}.js") for name in names)


def worker_source() -> str:
    return scripts(WORKER_SCRIPTS)


def wasm_text() -> str:
    return source("engine.wasm.txt").strip()


def sources() -> str:
    """A hash of all files that the page holds, or is made by; it stands in the page."""
    files = [Path(__file__), Path(page_weights.__file__)]
    files += [*sorted(SOURCES.iterdir()), *sorted(EXTRAS.iterdir())]
    for folder in sorted({*DECODERS.values()}):
        files.append(CHECKPOINTS / folder / "model.safetensors")
    files.append(CHECKPOINTS / DECODERS["cifar10_grid"] / "metrics.json")
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    total.update(json.dumps(short_answers()).encode())
    return total.hexdigest()


def recognised() -> dict[str, float]:
    """What share of drawn images a network takes for the class asked for, by guidance.

    And of real test images. Empty when it was not measured.
    """
    metrics = json.loads((CHECKPOINTS / DECODERS["cifar10_grid"] / "metrics.json").read_text())
    measured = metrics.get("recognised", {})
    keys = {"0": "recognised_samples_prior", "real": "recognised_real"}
    keys |= {str(w): f"recognised_samples_guidance_{w}" for w in range(1, 5)}
    return {name: measured[key] for name, key in keys.items() if key in measured}


def short_answers() -> dict[str, str]:
    """Number of each question of theory_answers.md → its short answer."""
    text = (ROOT / "theory_answers.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (\d) .*?\*\*Short answer\.\*\* (.*?)$", text, re.DOTALL | re.MULTILINE)
    return {number: html.escape(answer.replace("*", "")) for number, answer in found}


def page_arrays() -> dict[str, Tensor]:
    return safetensors.torch.load_file(EXTRAS / "page.safetensors")


def garment_images() -> Tensor:
    """The garments as the page has them, (N, 784) in [0, 1]: the reverse of four_bits."""
    packed = page_arrays()["garments"]
    return torch.stack([packed >> 4, packed & 15], dim=2).flatten(1) / 15


def array_bytes() -> tuple[dict[str, int], dict[str, bytes]]:
    """The arrays of checkpoints/page/: how many rows each has, and its bytes."""
    rows, contents = {}, {}
    for name, array in page_arrays().items():
        rows[name] = len(array)
        if array.is_floating_point():  # codes
            assert array.abs().max() < 8  # or 16 bits would not hold it
            array = (array.float() * 4096).round().to(torch.int16)
        contents[name] = array.numpy().tobytes()
    return rows, contents


@torch.no_grad()
def networks() -> tuple[dict[str, dict], dict[str, bytes]]:
    """Descriptions and weights of all networks on the page."""
    described, contents = {}, {}
    models = {}
    for name, folder in DECODERS.items():
        model, _ = vae.load_checkpoint(CHECKPOINTS / folder)
        models[name] = model.cpu()
    for name, model in models.items():
        parts = {f"{name}_decoder": page_weights.pack_decoder(model)}
        if name in ENCODERS:
            parts[f"{name}_encoder"] = page_weights.pack_encoder(model)
        if name in PRIORS:
            parts[f"{name}_prior"] = page_weights.pack_prior(model.prior)
        for part, (description, content) in parts.items():
            described[part], contents[part] = description, content
    return described, contents


def facts() -> dict:
    """What the scripts of the page know. Raises VAEError when checkpoints/page/ is outdated."""
    known = json.loads((EXTRAS / "page.json").read_text())
    for folder, made_with in known.pop("weights_sha256").items():
        if vae.read_record(CHECKPOINTS / folder)[1]["weights_sha256"] != made_with:
            raise vae.VAEError(
                f"The codes of the test images were made with other weights of {folder}: run "
                "python -m support.webpage --collect, which needs the real data."
            )
    record = vae.read_record(CHECKPOINTS / DECODERS["faces_grid"])[1]
    known["attributes"] = record["data"]["conditions"]
    return known | {"recognised": recognised(), "answers": short_answers()}


def image_url(name: str) -> str:
    data = base64.b64encode((EXTRAS / f"{name}.png").read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def parts() -> tuple[dict[str, str], dict[str, str]]:
    """Placeholders of page.html → what takes their place; name of each block of data → its text."""
    known = facts()
    known["networks"], network_bytes = networks()
    known["rows"], contents = array_bytes()
    blocks = {name: page_weights.as_text(content) for name, content in contents.items()}
    first = ("garments", "garment_labels")
    weights = {name: page_weights.as_text(content) for name, content in network_bytes.items()}
    later = {name: text for name, text in blocks.items() if name not in first} | weights
    for name in ("cifar10", "celeba"):
        later[f"sheet_{name}"] = image_url(name)
    fillings = {
        "SOURCES": sources(),
        "STYLE": source("page.css"),
        "FACTS": json.dumps(known, separators=(",", ":")),
        "ENGINE": wasm_text(),
        "WORKER": worker_source(),
        "SCRIPT": scripts(PAGE_SCRIPTS),
        "FIRST_DATA": as_blocks({name: blocks[name] for name in first}),
        "LATER_DATA": as_blocks(later),
    }
    return fillings, blocks | weights


def as_blocks(texts: dict[str, str]) -> str:
    """Data that the browser leaves alone until a script asks for it."""
    lines = [f'<script type="text/plain" id="data-{name}">{text}</script>'
             for name, text in texts.items()]  # fmt: skip
    return "\n".join(lines)


def build() -> str:
    page = source("page.html")
    for name, filling in parts()[0].items():
        page = page.replace(f"{{{{{name}}}}}", filling)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--collect", action="store_true", help="first read the real data again")
    if parser.parse_args().collect:
        collect()
    page = build()
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(page.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    runs.run_script(main)
