"""docs/index.html: the explorers as one page that needs no kernel, no server and no network.

    python -m support.webpage             builds it from checkpoints/; no data set is needed
    python -m support.webpage --collect   first makes checkpoints/page/ again from the real data:
                                          test images, their codes, directions, a mixture

The page decodes and encodes in plain JavaScript. Every network is turned into a list of plain
layers: batch normalisation is folded into the convolution before it, a transposed convolution
becomes four ordinary ones (one for each position in a 2x2 square of the output), and feature maps
are stored as (H, W, C). Weights are rounded to whole numbers of a few bits, with a scale for each
output channel, compressed, and written in base64. Text, style and script are in webpage.html.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import vae_helpers as vae
from support import metrics, runs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "index.html"
TEMPLATE = ROOT / "support" / "webpage.html"
CHECKPOINTS = ROOT / "checkpoints"
EXTRAS = CHECKPOINTS / "page"

# Name of a network on the page → folder of the released model. A picture that the visitor brings
# needs an encoder, too; the codes of the test images are in checkpoints/page/.
DECODERS = {
    "conv": "cifar10_conv",
    "conv_beta0": "cifar10_conv_beta0",
    "conv_beta0.1": "cifar10_conv_beta0.1",
    "conv_beta4": "cifar10_conv_beta4",
    "fc": "cifar10_fc",
    "best": "cifar10_best",
    "faces": "celeba_conv",
}
ENCODERS = {"conv_encoder": "cifar10_conv", "faces_encoder": "celeba_conv"}
# So many bits leave pictures within 2/255 and codes within 0.01: see tests/test_page.py.
DECODER_BITS, ENCODER_BITS = 9, 11

ATTRIBUTES = ("Smiling", "Eyeglasses", "Male", "Blond_Hair", "Black_Hair", "Brown_Hair")
PER_CLASS, FACES = 4, 30  # test images on the page


# ── Networks as lists of plain layers ───────────────────────────────────────────────────────────


def fold(layer: dict, scale: Tensor, shift: Tensor) -> None:
    """Let a layer do what a normalisation after it does: y → scale * y + shift, per channel."""
    places = len(layer["bias"]) // len(scale)  # a linear layer makes all places of a feature map
    layer["weight"] = layer["weight"] * scale.repeat(places)[:, None, None, None]
    layer["bias"] = layer["bias"] * scale.repeat(places) + shift.repeat(places)


def normalisation(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What batch normalisation does when it does not train: scale and shift, each (C,)."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def places_first(weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Rows of a linear layer that are a feature map (C, H, W) → in the order (H, W, C)."""
    return weight.unflatten(0, shape).permute(1, 2, 0, *range(3, weight.ndim + 2)).flatten(0, 2)


def plain_layers(modules: nn.Module, side: int) -> list[dict]:
    """Layers of a Sequential: each has a kind, weight (O, h, w, I), bias (O,), and relu.

    side is the height and width of the feature maps that an encoder flattens.
    """
    layers: list[dict] = []
    for module in modules:
        plain = {"kind": "conv", "stride": 1, "pad": 0, "spread": 1, "relu": False}
        if isinstance(module, nn.Linear):
            layers.append(plain | {"weight": module.weight[:, None, None], "bias": module.bias})
        elif isinstance(module, nn.Conv2d):
            plain |= {"stride": module.stride[0], "pad": module.padding[0]}
            weight = module.weight.permute(0, 2, 3, 1)
            layers.append(plain | {"weight": weight, "bias": module.bias})
        elif isinstance(module, nn.ConvTranspose2d):
            weight = module.weight.permute(1, 2, 3, 0)
            plain |= {"spread": 2, "pad": 1}
            layers.append(plain | {"weight": weight, "bias": module.bias})
        elif isinstance(module, vae.LatentHeads):  # a convolution over the whole feature map
            weight = module.mu.weight.unflatten(1, (-1, side, side)).permute(0, 2, 3, 1)
            layers.append(plain | {"weight": weight, "bias": module.mu.bias})
        elif isinstance(module, nn.Unflatten):
            last = layers[-1]
            last["side"] = module.unflattened_size[-1]
            for name in ("weight", "bias"):
                last[name] = places_first(last[name], module.unflattened_size)
        elif isinstance(module, nn.BatchNorm2d):
            if layers:
                fold(layers[-1], *normalisation(module))
            else:  # a residual block begins with one: there is nothing to fold it into
                numbers = normalisation(module)
                layers.append({"kind": "affine", "channels": len(numbers[0]), "numbers": numbers})
        elif isinstance(module, nn.ReLU):
            layers[-1]["relu"] = True
        elif isinstance(module, vae.Residual):
            layers.append({"kind": "residual", "layers": plain_layers(module.branch, side)})
        elif not isinstance(module, nn.Flatten):
            raise vae.VAEError(f"The page has no layer {type(module).__name__}.")
    return layers


def four_phases(weight: Tensor) -> Tensor:
    """A transposed 4x4 convolution of stride 2 as four 2x2 ones: (O, 4, 4, I) → (4, O, 2, 2, I).

    Pixel 2y of the output sees pixels y-1 and y of the input through rows 3 and 1 of the kernel,
    pixel 2y+1 sees y and y+1 through rows 2 and 0; columns likewise.
    """
    phases = []
    for rows in ([3, 1], [2, 0]):
        for columns in ([3, 1], [2, 0]):
            phases.append(weight[:, rows][:, :, columns])
    return torch.stack(phases)


def pack(layers: list[dict], bits: int) -> tuple[list[dict], list[Tensor], list[Tensor]]:
    """Layers → their description, their rounded weights, and their numbers in float32."""
    described, rounded, numbers = [], [], []
    for layer in layers:
        entry = {key: layer[key] for key in layer if key not in ("weight", "bias", "numbers")}
        if layer["kind"] == "residual":
            entry["layers"], inner_rounded, inner_numbers = pack(layer["layers"], bits)
            rounded += inner_rounded
            numbers += inner_numbers
        elif layer["kind"] == "affine":
            numbers += layer["numbers"]
        else:
            weight = layer["weight"]
            phases = weight[None] if layer["spread"] == 1 else four_phases(weight)
            _, outputs, size, _, inputs = phases.shape
            entry |= {"outputs": outputs, "size": size, "inputs": inputs}
            # The page multiplies four output channels at a time: (phases, outputs / 4, taps, 4).
            missing = -outputs % 4
            weight = nn.functional.pad(phases.flatten(2), (0, 0, 0, missing))
            scale = weight.abs().amax(2).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            whole = (weight / scale[..., None]).round().to(torch.int16)
            rounded.append(whole.unflatten(1, (-1, 4)).transpose(2, 3))
            numbers += [scale, nn.functional.pad(layer["bias"], (0, missing))]
        described.append(entry)
    return described, rounded, numbers


def base64_of(*parts: bytes) -> str:
    return base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()


def network(modules: nn.Module, config: vae.Config, bits: int) -> tuple[dict, str]:
    """A network → its description and its weights as text.

    Weights follow as 0, -1, 1, -2, 2, … → 0, 1, 2, 3, 4, …: first the lower bytes of all, then the
    upper ones, which are mostly 0, so that zlib finds something to save.
    """
    layers = plain_layers(modules, vae.grid_sizes(config)[-1])
    described, rounded, numbers = pack(layers, bits)
    weights = torch.cat([part.flatten() for part in rounded]).numpy()
    floats = torch.cat([part.flatten() for part in numbers]).numpy().astype("<f4")
    counted = (2 * weights) ^ (weights >> 15)
    planes = [(counted & 255).astype(np.uint8), (counted >> 8).astype(np.uint8)]
    description = {"weights": len(weights), "numbers": len(floats)}
    description |= {"layers": described, "range": config.value_range}
    return description, base64_of(floats.tobytes(), *[plane.tobytes() for plane in planes])


@torch.no_grad()
def networks() -> tuple[dict[str, dict], dict[str, str]]:
    """Descriptions and weights of all networks on the page."""
    described, texts = {}, {}
    for name, folder in (DECODERS | ENCODERS).items():
        model, _ = vae.load_checkpoint(CHECKPOINTS / folder)
        modules, bits = model.cpu().decoder, DECODER_BITS
        if name in ENCODERS:
            modules, bits = model.encoder, ENCODER_BITS
        described[name], texts[name] = network(modules, model.config, bits)
    return described, texts


# ── What the page needs of the data: checkpoints/page/ ──────────────────────────────────────────


def save_sheet(images: Tensor, name: str) -> None:
    """Images (N, C, H, W), uint8, side by side as one PNG file, ten in a row."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(10)]
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(sheet).save(EXTRAS / f"{name}.png", optimize=True)


def collect() -> None:
    """Test images, their codes by every model, and what Task 3 moves faces with. Real data only."""
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    chosen = []
    for label in range(len(cifar.class_names)):  # the first ones of each class
        chosen.append((cifar.test.labels == label).nonzero()[:PER_CLASS, 0])
    chosen = torch.stack(chosen, dim=1).flatten()
    shown = {"cifar10": cifar.test.images[chosen], "celeba": faces.test.images[:FACES]}
    EXTRAS.mkdir(exist_ok=True)
    for name, images in shown.items():
        save_sheet(images, name)

    arrays, hashes = {}, {}
    for name, folder in DECODERS.items():
        model, record = vae.load_checkpoint(CHECKPOINTS / folder)
        arrays[f"codes_{name}"], _ = vae.encode_images(model, shown[model.config.dataset])
        hashes[folder] = record["weights_sha256"]
    # The last one is the model of faces.
    mu, _ = vae.encode_images(model, faces.train.images)
    for name in ATTRIBUTES:
        has_attribute = faces.train.labels[:, faces.label_names.index(name)]
        arrays[f"direction_{name}"] = vae.attribute_direction(mu, has_attribute)
    gaussian = metrics.fit_gaussian(vae.sample_codes(model, faces.train.images))
    rows, columns = torch.tril_indices(*gaussian.scale_tril.shape)
    arrays |= {"mixture_means": gaussian.loc[None]}
    arrays |= {"mixture_roots": gaussian.scale_tril[None, rows, columns]}  # row by row

    posterior = vae.aggregate_posterior(model, faces.test.images[:500])
    dims = posterior.kl_nats.argsort(descending=True)[:10].tolist()
    extras = {
        "classes": [cifar.class_names[label] for label in cifar.test.labels[chosen].tolist()],
        "faces": FACES,
        "dimensions": {dim: round(posterior.kl_nats[dim].item(), 2) for dim in dims},
        "attributes": ATTRIBUTES,
        "mixture_weights": [1.0],
        "contrast": {
            "cifar10": round(vae.contrast(cifar.test.images).mean().item(), 3),
            "celeba": round(vae.contrast(faces.test.images).mean().item(), 3),
        },
        "weights_sha256": hashes,
    }
    half = {name: value.half().contiguous() for name, value in arrays.items()}
    safetensors.torch.save_file(half, EXTRAS / "page.safetensors")
    vae.write_json(EXTRAS / "page.json", extras)


def number_arrays() -> tuple[dict[str, dict], str]:
    """Codes, directions and the mixture: where each array stands, and 16-bit numbers as text."""
    described, parts, start = {}, [], 0
    for name, array in sorted(safetensors.torch.load_file(EXTRAS / "page.safetensors").items()):
        values = array.float().numpy()
        scale = float(np.abs(values).max() / 32767)
        described[name] = {"start": start, "length": values.size, "scale": scale}
        parts.append((values / scale).round().astype("<i2").tobytes())
        start += values.size
    return described, base64_of(*parts)


# ── The page ────────────────────────────────────────────────────────────────────────────────────


def sources() -> str:
    """A hash of all files that the page holds; it stands in the page."""
    files = [TEMPLATE, *sorted(EXTRAS.iterdir())]
    for folder in DECODERS.values():
        files.append(CHECKPOINTS / folder / "model.safetensors")
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def image_url(name: str) -> str:
    data = base64.b64encode((EXTRAS / f"{name}.png").read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def build() -> str:
    """The page. Raises VAEError when checkpoints/page/ was made with other weights."""
    extras = json.loads((EXTRAS / "page.json").read_text())
    for folder, made_with in extras.pop("weights_sha256").items():
        if vae.read_record(CHECKPOINTS / folder)[1]["weights_sha256"] != made_with:
            raise vae.VAEError(
                f"The codes of the test images were made with other weights of {folder}: run "
                "python -m support.webpage --collect, which needs the real data."
            )
    described, texts = networks()
    arrays, texts["arrays"] = number_arrays()
    facts = extras | {"networks": described, "arrays": arrays}
    facts["sheets"] = {name: image_url(name) for name in ("cifar10", "celeba")}
    blocks = []
    for name, text in texts.items():
        blocks.append(f'<script type="text/plain" id="data-{name}">{text}</script>')
    page = TEMPLATE.read_text(encoding="utf-8")
    fillings = {
        "SOURCES": sources(),
        "FACTS": json.dumps(facts, separators=(",", ":")),
        "DATA": "\n".join(blocks),
    }
    for name, filling in fillings.items():
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
