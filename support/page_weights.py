"""Networks as the page reads them: plain layers, rounded weights, bytes.

Every network is turned into a list of plain layers: batch normalisation is folded into the
convolution before it, a transposed convolution becomes four ordinary ones (one for each position in
a 2x2 square of the output), and feature maps are stored as (H, W, C). Of a transformer the gain and
bias of each LayerNorm are folded into the linear layer after it.

What is left are matrices and vectors. A matrix is stored as (inputs, outputs), the right-hand side
of the page's product (support/page/engine.wat), rounded to whole numbers of a few bits with one
scale for each output. support/page/networks.js and prior.js read them in the same order.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

import vae_helpers as vae
from support.code_priors import Block, MixturePrior
from support.grid_vae import GridVAE

# So many bits leave pictures and codes as near to Python's as tests/test_page_models.py says.
BITS = 8
ENCODER_BITS = 10  # a code is the sum of many products of large numbers
FEWER_BITS = 7  # the transformer, and matrices with very many weights, whose errors cancel
VERY_MANY = 2**20
COLUMNS_AT_ONCE = 8  # of the page's product


# ── Matrices and vectors as bytes ───────────────────────────────────────────────────────────────


class Packed:
    """Matrices and vectors, in the order in which the page reads them."""

    def __init__(self, bits: int | None = None):
        """bits: for every matrix, instead of what each asks for; up to 16."""
        self.bits = bits
        self.wide = False  # whether any weight needs two bytes
        self.whole: list[np.ndarray] = []
        self.numbers: list[np.ndarray] = []

    def vector(self, values: Tensor) -> None:
        """Numbers that stay 32-bit floats; their count is made a multiple of eight."""
        missing = -values.numel() % COLUMNS_AT_ONCE
        padded = nn.functional.pad(values.detach().flatten(), (0, missing))
        self.numbers.append(padded.numpy().astype("<f4"))

    def matrix(self, values: Tensor, bits: int = BITS) -> None:
        """(inputs, outputs), rounded; outputs are made a multiple of eight."""
        if values.numel() >= VERY_MANY:
            bits = FEWER_BITS
        bits = self.bits or bits
        self.wide |= bits > 8
        values = nn.functional.pad(values.detach(), (0, -values.shape[1] % COLUMNS_AT_ONCE))
        scale = values.abs().amax(0).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        self.vector(scale)
        self.whole.append((values / scale).round().numpy().astype("<i2").ravel())

    def description(self) -> dict[str, int]:
        return {
            "numbers": sum(part.size for part in self.numbers),
            "weights": sum(part.size for part in self.whole),
            "bytes_per_weight": 2 if self.wide else 1,
        }

    def to_bytes(self) -> bytes:
        """All vectors, then the lower bytes of all matrices, then, if they need them, the upper."""
        whole = np.concatenate(self.whole)
        planes = [(whole & 255).astype(np.uint8), (whole >> 8).astype(np.int8)]
        parts = [*self.numbers, *(planes if self.wide else planes[:1])]
        return b"".join(part.tobytes() for part in parts)


def as_text(content: bytes) -> str:
    """Compressed, and written in letters that HTML can hold."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


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


def of_feature_maps(weight: Tensor, side: int) -> Tensor:
    """A linear layer that reads flat maps (C, side, side) → a convolution over all of them."""
    return weight.unflatten(1, (-1, side, side)).permute(0, 2, 3, 1)


def plain_layers(modules: Iterable[nn.Module], side: int, bits: int = BITS) -> list[dict]:
    """Layers of a Sequential: each has a kind, weight (O, h, w, I), bias (O,), and relu.

    side is the height and width of the feature maps that an encoder flattens.
    """
    layers: list[dict] = []
    flat_maps = False
    for module in modules:
        plain = {"kind": "conv", "stride": 1, "pad": 0, "spread": 1, "relu": False, "bits": bits}
        if isinstance(module, nn.Linear):
            weight = module.weight[:, None, None]
            if flat_maps:
                weight = of_feature_maps(module.weight, side)
            layers.append(plain | {"weight": weight, "bias": module.bias})
            flat_maps = False
        elif isinstance(module, nn.Conv2d):
            plain |= {"stride": module.stride[0], "pad": module.padding[0]}
            weight = module.weight.permute(0, 2, 3, 1)
            layers.append(plain | {"weight": weight, "bias": module.bias})
        elif isinstance(module, nn.ConvTranspose2d):
            weight = module.weight.permute(1, 2, 3, 0)
            plain |= {"spread": 2, "pad": 1}
            layers.append(plain | {"weight": weight, "bias": module.bias})
        elif isinstance(module, vae.LatentHeads):
            weight = of_feature_maps(module.mu.weight, side)
            plain["bits"] = FEWER_BITS  # thousands of products in each sum, whose errors cancel
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
            branch = plain_layers(module.branch, side, bits)
            layers.append({"kind": "residual", "layers": branch})
        elif isinstance(module, nn.Flatten):
            flat_maps = True
        else:
            raise vae.VAEError(f"The page has no layer {type(module).__name__}.")
    return layers


def first_outputs(layer: dict, count: int) -> dict:
    """A layer that gives mu and logvar → one that gives mu."""
    return layer | {name: layer[name][:count] for name in ("weight", "bias")}


def encoder_layers(model: vae.VAE) -> list[dict]:
    """An image (H, W, C) → mu.

    Of a grid, "fork" reads the code of the whole image from the feature maps, which go on.
    """
    side = vae.grid_sizes(model.config)[-1]
    if not isinstance(model, GridVAE):
        return plain_layers(model.encoder, side, ENCODER_BITS)
    layers = plain_layers(model.encoder[:-1], side, ENCODER_BITS)
    if model.global_dim:
        branch = plain_layers(model.global_encoder, math.ceil(side / 2), ENCODER_BITS)
        branch[-1] = first_outputs(branch[-1], model.global_dim)
        layers.append({"kind": "fork", "layers": branch})
    [heads] = plain_layers(model.encoder[-1:], side, ENCODER_BITS)
    return [*layers, first_outputs(heads, model.config.latent_dim)]


def decoder_layers(model: vae.VAE) -> list[dict]:
    """A code → x_raw (H, W, C).

    Of a grid, "join" adds what the code of the whole image says to the first feature maps.
    """
    side = vae.grid_sizes(model.config)[-1]
    layers = plain_layers(model.decoder, side)
    if isinstance(model, GridVAE) and model.global_dim:
        whole = plain_layers(model.global_decoder, side)
        if isinstance(model.decoder[1], nn.BatchNorm2d):  # it normalises the sum of both
            scale, shift = normalisation(model.decoder[1])
            fold(whole[-1], scale, torch.zeros_like(shift))
        relu, layers[0]["relu"] = layers[0]["relu"], False
        layers.insert(1, {"kind": "join", "layers": whole, "relu": relu})
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


def pack_layers(layers: list[dict], packed: Packed) -> list[dict]:
    """Adds the numbers of layers to `packed`; → what else the page must know of them."""
    described = []
    for layer in layers:
        left_out = ("weight", "bias", "numbers", "bits")
        entry = {key: layer[key] for key in layer if key not in left_out}
        if "layers" in layer:
            entry["layers"] = pack_layers(layer["layers"], packed)
        elif layer["kind"] == "affine":
            for numbers in layer["numbers"]:
                packed.vector(numbers)
        else:
            weight = layer["weight"]
            phases = weight[None] if layer["spread"] == 1 else four_phases(weight)
            _, outputs, size, _, inputs = phases.shape
            entry |= {"outputs": outputs, "size": size, "inputs": inputs}
            for phase in phases:  # (O, h, w, I) → (h * w * I, O)
                packed.matrix(phase.flatten(1).T, layer["bits"])
            packed.vector(layer["bias"])
        described.append(entry)
    return described


def pack_encoder(model: vae.VAE, bits: int | None = None) -> tuple[dict, bytes]:
    return _pack(model, encoder_layers(model), bits)


def pack_decoder(model: vae.VAE, bits: int | None = None) -> tuple[dict, bytes]:
    return _pack(model, decoder_layers(model), bits)


def _pack(model: vae.VAE, layers: list[dict], bits: int | None) -> tuple[dict, bytes]:
    """Layers → their description and their bytes."""
    packed = Packed(bits)
    described = {"layers": pack_layers(layers, packed), "range": model.config.value_range}
    described["grid"] = model.grid[0] if isinstance(model, GridVAE) else 1
    return described | packed.description(), packed.to_bytes()


# ── The learned prior ───────────────────────────────────────────────────────────────────────────


def after_norm(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight (inputs, outputs) and bias of a linear layer that does the norm's gain and bias."""
    return (linear.weight * norm.weight).T, linear.bias + linear.weight @ norm.bias


def pack_prior(prior: MixturePrior, bits: int | None = None) -> tuple[dict, bytes]:
    """The transformer → its description and its bytes."""
    packed = Packed(bits)

    def add(weight: Tensor, bias: Tensor) -> None:
        packed.matrix(weight, FEWER_BITS)
        packed.vector(bias)

    tokens, width = prior.position_embedding.shape
    conditions = prior.condition.in_features if prior.condition is not None else 0
    packed.vector(prior.bos)
    packed.matrix(prior.position_embedding)
    if conditions:
        packed.matrix(prior.condition.weight.T)
    add(prior.embed.weight.T, prior.embed.bias)
    for block in prior.blocks:
        add(*after_norm(block.qkv, block.norm1))
        add(block.out.weight.T, block.out.bias)
        add(*after_norm(block.mlp[0], block.norm2))
        add(block.mlp[2].weight.T, block.mlp[2].bias)
    add(*after_norm(prior.head, prior.norm))
    described = {
        "tokens": tokens,
        "channels": prior.channels,
        "width": width,
        "hidden": prior.blocks[0].mlp[0].out_features,
        "heads": Block.HEADS,
        "blocks": len(prior.blocks),
        "components": prior.COMPONENTS,
        "candidates": prior.CANDIDATES,
        "conditions": conditions,
    }
    return described | packed.description(), packed.to_bytes()
