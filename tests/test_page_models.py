"""The networks of docs/index.html against PyTorch's: products, decoders, encoders, the prior.

The scripts that the page runs in its workers run here in an empty page of Chromium, once with
WebAssembly and once in plain JavaScript. Skipped where Chromium or Playwright is missing.
"""

import base64
import math

import pytest
import torch
from conftest import ROOT, of_seed, rand, randn, refused
from page_laboratory import browser, laboratory, playwright, wasm  # noqa: F401  fixtures

import vae_helpers as vae
from support import page_weights, webpage


@pytest.fixture(scope="module")
def released():
    """Name → released model, in evaluation."""
    models = {}
    for name in {*webpage.DECODERS.values(), *webpage.ENCODERS.values(), *webpage.PRIORS.values()}:
        models[name], _ = vae.load_checkpoint(ROOT / "checkpoints" / name)
    return models


# ── The engine ──


def without_names(module: bytes) -> bytes:
    """A WebAssembly module without its custom sections, which hold names for debuggers."""
    kept, place = module[:8], 8
    while place < len(module):
        start, kind = place, module[place]
        place, size, shift = place + 1, 0, 0
        while True:  # the size of the section, seven bits a byte
            byte = module[place]
            place, size, shift = place + 1, size | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        place += size
        if kind:
            kept += module[start:place]
    return kept


def test_the_bytes_of_the_engine_are_assembled_from_its_source():
    wasmtime = pytest.importorskip("wasmtime", reason="pip install wasmtime")
    source = (webpage.SOURCES / "engine.wat").read_text(encoding="utf-8")
    assembled = without_names(bytes(wasmtime.wat2wasm(source)))
    assert base64.b64decode(webpage.wasm_text()) == assembled


@pytest.mark.parametrize("m, k, n", [(1, 1, 8), (3, 5, 16), (4, 7, 8), (13, 96, 24), (64, 33, 128)])
def test_products_agree_with_pytorch(laboratory, m, k, n):
    a, b, c = randn(m, k, seed=1), randn(k, n, seed=2), randn(m, n, seed=3)
    arrays = """engine.borrow(() => {
        const [a, b, c] = inputs.slice(0, 3).map(values => {
            const array = engine.take(values.length); array.set(values); return array });
        engine.PRODUCT(a, b, c, inputs[3], inputs[4], inputs[5]);
        return c.slice(); })"""
    ours = laboratory.tensor(arrays.replace("PRODUCT", "product"), a, b, c, m, k, n)
    assert torch.allclose(ours, (c + a @ b).flatten(), atol=2e-5)
    ours = laboratory.tensor(arrays.replace("PRODUCT", "productTransposed"), a.T, b, c, m, k, n)
    assert torch.allclose(ours, (c + a @ b).flatten(), atol=2e-5)


def test_a_full_memory_says_so(wasm):
    with pytest.raises(playwright.Error, match="memory of the engine is full"):
        wasm.page.evaluate("engine.borrow(() => engine.take(4e7))")
    assert wasm.page.evaluate("engine.borrow(() => engine.take(100).length)") == 100


# ── Decoders and encoders ──


def codes_of(model: vae.VAE, n: int) -> torch.Tensor:
    """Codes of the kind that the decoder meets: draws of its prior."""
    return model.draw_codes(n, seed=1)


def in_page_order(model: vae.VAE, z: torch.Tensor) -> torch.Tensor:
    """(N, D) → as the page has them: of a grid in the order of the prior's tokens."""
    return model.tokens(z).flatten(1) if hasattr(model, "tokens") else z


@pytest.mark.parametrize("name", webpage.DECODERS)
def test_pictures_agree_with_python(wasm, released, name):
    """At most 4/255 apart, 1/255 on average."""
    model = released[webpage.DECODERS[name]]
    wasm.load(name, page_weights.pack_decoder(model))
    z = codes_of(model, 6)
    expected = vae.decode_images(model, z).permute(0, 2, 3, 1).flatten(1)
    for code, pixels in zip(in_page_order(model, z), expected):
        ours = wasm.tensor(f"decode(engine, shelf['{name}'], inputs[0])", code)
        assert (ours - pixels).abs().max() < 4 / 255
        assert (ours - pixels).abs().mean() < 1 / 255


@pytest.mark.parametrize("name", webpage.ENCODERS)
def test_codes_agree_with_python(wasm, released, name):
    """Within 0.05, on the test images of the page."""
    model = released[webpage.ENCODERS[name]]
    wasm.load(name, page_weights.pack_encoder(model))
    images = webpage.sheet_images(model.config.dataset)[:6]
    mu, _ = vae.encode_images(model, images)
    for image, expected in zip(images, in_page_order(model, mu)):
        pixels = vae.as_unit(image).permute(1, 2, 0).flatten()
        ours = wasm.tensor(f"encode(engine, shelf['{name}'], inputs[0])", pixels)
        assert (ours - expected).abs().max() < 0.05


@pytest.mark.parametrize("name", ["cifar10_grid", "celeba_grid"])
def test_without_rounding_both_engines_agree_with_python(laboratory, released, name):
    model = released[name]
    side = model.config.image_size
    laboratory.load("decoder", page_weights.pack_decoder(model, bits=16))
    laboratory.load("encoder", page_weights.pack_encoder(model, bits=16))
    z = codes_of(model, 1)
    expected = vae.decode_images(model, z).permute(0, 2, 3, 1).flatten()
    code = in_page_order(model, z)[0]
    ours = laboratory.tensor("decode(engine, shelf.decoder, inputs[0])", code)
    assert torch.allclose(ours, expected, atol=1e-3)
    image = rand(3, side, side)
    mu, _ = vae.encode_images(model, image[None])
    pixels = image.permute(1, 2, 0).flatten()
    ours = laboratory.tensor("encode(engine, shelf.encoder, inputs[0])", pixels)
    assert torch.allclose(ours, in_page_order(model, mu)[0], atol=1e-3)


@pytest.mark.parametrize("global_dim", [0, 16])
def test_a_grid_with_and_without_a_code_of_the_whole_image(wasm, global_dim):
    """Sizes are read from the model. All weights are random, also the statistics of batches."""
    config = vae.Config(
        model="grid_vae", latent_dim=8, global_dim=global_dim, width=16, conditions=3,
        norm="batch", residual=1, likelihood="gaussian", prior_width=32,
    ).resolved()  # fmt: skip
    torch.manual_seed(0)
    model = vae.build_model(config).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    wasm.load("decoder", page_weights.pack_decoder(model, bits=16))
    wasm.load("encoder", page_weights.pack_encoder(model, bits=16))
    wasm.load("prior", page_weights.pack_prior(model.prior, bits=16))
    z, image = randn(1, model.latent_size), rand(3, 32, 32)
    tokens = model.tokens(z)[0]
    expected = vae.decode_images(model, z).permute(0, 2, 3, 1).flatten()
    ours = wasm.tensor("decode(engine, shelf.decoder, inputs[0])", tokens.flatten())
    assert torch.allclose(ours, expected, atol=1e-3)
    mu, _ = vae.encode_images(model, image[None])
    pixels = image.permute(1, 2, 0).flatten()
    ours = wasm.tensor("encode(engine, shelf.encoder, inputs[0])", pixels)
    assert torch.allclose(ours, in_page_order(model, mu)[0], atol=1e-3)
    ours = wasm.tensor("logDensities(engine, shelf.prior, inputs[0], null)", tokens.flatten())
    expected = python_densities(model.prior, tokens, torch.full((3,), 0.5))
    assert torch.allclose(ours, expected, atol=1e-2)


def test_a_layer_that_the_page_does_not_have_is_refused():
    with refused(vae.VAEError, "no layer", "Tanh"):
        page_weights.plain_layers([torch.nn.Tanh()], side=4)


# ── The prior ──

PRIORS = ("celeba_grid", "cifar10_grid")


def condition_of(model: vae.VAE) -> torch.Tensor:
    """Yes, no, and left open."""
    return torch.arange(model.config.conditions) % 3 / 2


def python_densities(prior, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """log p of each token (T, C) given those before it: (T,) nats."""
    with torch.no_grad():
        return -prior.nats_at(prior(tokens[None], condition[None]), tokens[None])[0]


@pytest.mark.parametrize("name", PRIORS)
def test_log_densities_agree_with_python(laboratory, released, name):
    """Without rounding within 0.01 nats a token; as the page rounds them within a nat on average,
    of densities whose standard deviation over tokens is several nats."""
    model = released[name]
    tokens = model.tokens(codes_of(model, 1))[0]
    condition = condition_of(model)
    expected = python_densities(model.prior, tokens, condition)
    for bits, nats in ((16, 0.01), (None, 1.0)):
        laboratory.load("prior", page_weights.pack_prior(model.prior, bits))
        ours = laboratory.tensor(
            "logDensities(engine, shelf.prior, inputs[0], inputs[1])", tokens.flatten(), condition
        )
        assert (ours - expected).abs().mean() < nats


@pytest.mark.parametrize("largest", [-800, 0, 800])
def test_a_choice_follows_the_chances_however_large_their_logarithms_are(wasm, largest):
    """At temperature 0.1 logits are a hundred times as large: e^800 and e^-800 are no numbers."""
    logs = [largest - 1, largest, largest - 50]
    border = 1 / (1 + math.e)  # between the first and the second
    for uniform, index in ((0, 0), (border - 0.01, 0), (border + 0.01, 1), (0.999, 1)):
        assert wasm.page.evaluate("given => chosen(...given)", [logs, uniform]) == index


def draw_in_python(prior, h, h_without, uniform, normal, temperature, guidance):
    """MixturePrior.draw for one place (W,), with the chances taken from the noise given."""

    def choose(chances: torch.Tensor, u: float) -> int:
        return min(int((chances.cumsum(0) <= u).sum()), len(chances) - 1)

    uniforms, normals = iter(uniform), iter(normal)
    mixture = prior.mixture(h[None])
    weights = (mixture.mixture_distribution.logits[0] / temperature**2).softmax(0)
    base = mixture.component_distribution.base_dist
    candidates = []
    for _ in range(prior.CANDIDATES if guidance else 1):
        component = choose(weights, next(uniforms))
        eps = torch.tensor([next(normals) for _ in range(prior.channels)])
        candidates.append(base.mean[0, component] + temperature * base.stddev[0, component] * eps)
    if not guidance:
        return candidates[0]
    codes = torch.stack(candidates)[:, None]
    ratio = mixture.log_prob(codes) - prior.mixture(h_without[None]).log_prob(codes)
    return candidates[choose((guidance * ratio[:, 0]).softmax(0), next(uniforms))]


@torch.no_grad()
@pytest.mark.parametrize("guidance, temperature", [(0, 1.0), (0, 0.1), (2, 0.8)])
@pytest.mark.parametrize("name", PRIORS)
def test_draws_agree_with_python_from_the_same_noise(
    laboratory, released, name, guidance, temperature
):
    """Code after code, each from those drawn before it in the page. A number next to a border
    between two components may fall on the other side: one token of a hundred."""
    model = released[name]
    prior = model.prior
    count, channels = len(prior.position_embedding), prior.channels
    laboratory.load("prior", page_weights.pack_prior(prior, bits=16))
    condition, without = condition_of(model), torch.full((model.config.conditions,), 0.5)
    uniform = torch.rand(count, prior.CANDIDATES + 1, generator=of_seed(5))
    normal = torch.randn(count, prior.CANDIDATES * channels, generator=of_seed(6))
    noise = [{"uniform": u, "normal": n} for u, n in zip(uniform.tolist(), normal.tolist())]
    ours = laboratory.tensor(
        """(() => {
            const image = {condition: inputs[0], without: inputs[1], noise: givenNoise(inputs[2])};
            const settings = {images: [image], guidance: inputs[3], temperature: inputs[4]};
            const drawing = makeDrawing(engine, shelf.prior, settings);
            drawing.advance(10); // a part, and then the rest
            drawing.advance(1000);
            return drawing.codes[0]; })()""",
        condition, without, noise, guidance, temperature,
    ).reshape(count, channels)  # fmt: skip
    told, not_told = prior(ours[None], condition[None])[0], prior(ours[None], without[None])[0]
    agree = 0
    for t in range(count):
        expected = draw_in_python(
            prior, told[t], not_told[t], noise[t]["uniform"], noise[t]["normal"], temperature,
            guidance,
        )  # fmt: skip
        agree += torch.allclose(ours[t], expected, atol=0.01)
    assert agree >= math.floor(0.99 * count)


def test_given_tokens_stand_and_the_others_are_drawn(wasm, released):
    """And drawn images do not depend on how many are drawn side by side."""
    model = released["celeba_grid"]
    wasm.load("prior", page_weights.pack_prior(model.prior))
    count, channels = len(model.prior.position_embedding), model.prior.channels
    given = randn(count * channels)
    keep = [int(t % 3 > 0) for t in range(count)]
    settings = """images: inputs[0].map(seed => ({condition: null, without: null,
        noise: noiseOf(seed)})), guidance: 0, temperature: 0.8"""
    run = f"""(() => {{ const d = makeDrawing(engine, shelf.prior, {{{settings}, MORE}});
        d.advance(1000); return d.codes.at(-1); }})()"""
    redrawn = wasm.tensor(
        run.replace("MORE", "given: inputs[1], keep: inputs[2]"), [7], given, keep
    )
    begun = run.replace("d.advance(1000)", "d.advance(1)").replace(
        "MORE", "given: inputs[1], keep: inputs[2]"
    )
    begun = wasm.tensor(begun, [7], given, keep).reshape(count, channels)
    redrawn, given = redrawn.reshape(count, channels), given.reshape(count, channels)
    kept = torch.tensor(keep).bool()
    assert torch.equal(redrawn[kept], given[kept])
    assert torch.equal(begun[kept], given[kept])  # seen from the beginning
    assert not (redrawn[~kept] == given[~kept]).any()
    alone = wasm.tensor(run.replace("MORE", ""), [3])
    beside_others = wasm.tensor(run.replace("MORE", ""), [1, 2, 9, 11, 3])
    assert torch.equal(alone, beside_others)
