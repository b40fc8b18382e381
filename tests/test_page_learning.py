"""The VAE that learns in docs/index.html against PyTorch: one training step, and what β does.

Both engines, in an empty page of Chromium. Skipped where Chromium or Playwright is missing.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import rand, randn
from page_laboratory import browser, laboratory, text_of, wasm  # noqa: F401  fixtures
from torch import nn

import vae_helpers as vae
from support import webpage

SIZES = [(784, 128), (128, 64), (64, 4), (2, 64), (64, 128), (128, 784)]
BATCH = 64


def columns(outputs: int) -> int:
    return -8 * (-outputs // 8)


class Twin(nn.Module):
    """The page's network in PyTorch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(*size) for size in SIZES])

    def take(self, values: torch.Tensor) -> None:
        """Weights in the page's order: of each layer (inputs, outputs), then the bias."""
        start = 0
        for layer in self.layers:
            inputs, outputs, wide = (
                layer.in_features,
                layer.out_features,
                columns(layer.out_features),
            )
            block = values[start : start + (inputs + 1) * wide].reshape(inputs + 1, wide)
            assert not block[:, outputs:].any()  # padding
            layer.weight.data = block[:-1, :outputs].T.clone()
            layer.bias.data = block[-1, :outputs].clone()
            start += block.numel()
        assert start == len(values)

    def flat(self, what) -> torch.Tensor:
        """what(parameter) of all weights, in the page's order."""
        parts = []
        for layer in self.layers:
            block = torch.cat([what(layer.weight).T, what(layer.bias)[None]])
            parts.append(F.pad(block, (0, columns(layer.out_features) - layer.out_features)))
        return torch.cat([part.flatten() for part in parts])

    def forward(self, x, eps, noise):
        h = self.layers[1](self.layers[0](x).relu()).relu()
        mu, logvar = self.layers[2](h).chunk(2, dim=1)
        z = vae.reparameterize(mu, logvar, eps) if noise else mu
        h = self.layers[4](self.layers[3](z).relu()).relu()
        return self.layers[5](h), mu, logvar


@pytest.fixture(scope="module")
def garments():
    packed = webpage.page_arrays()["garments"]
    return torch.tensor(np.frombuffer(packed.numpy().tobytes(), dtype=np.uint8))


def begin(lab, garments, seed: int = 1) -> None:
    lab.page.evaluate(
        "([text, seed]) => void commands.garments({packed: bytesOf(text), seed})",
        [text_of(garments), seed],
    )


@pytest.mark.parametrize(
    "beta, noise", [(1.0, True), (0.0, True), (0.0, False), (30.0, True), (30.0, False)]
)
def test_one_step_agrees_with_pytorch(laboratory, garments, beta, noise):
    """Loss, gradients, and the weights after Adam's step, from the same weights and noise. Without
    noise codes are points: there the KL does not count."""
    begin(laboratory, garments)
    twin = Twin()
    twin.take(laboratory.tensor("commands.weights()"))
    optimiser = torch.optim.Adam(twin.parameters(), lr=3e-3)
    x, eps = rand(BATCH, 784, seed=1), randn(BATCH, 2, seed=2)
    x_raw, mu, logvar = twin(x, eps, noise)
    rec = vae.reconstruction_nats(x_raw, x, "bernoulli").mean()
    kl = vae.kl_nats(mu, logvar).mean()
    (rec + (beta * kl if noise else 0)).backward()
    gradients = twin.flat(lambda parameter: parameter.grad)
    optimiser.step()

    ours = laboratory.tensor(
        """(() => {
            window.results = commands.oneStep({x: inputs[0], eps: inputs[1], settings: inputs[2]});
            return [results.reconstruction, results.kl]; })()""",
        x, eps, {"beta": beta, "noise": noise},
    )  # fmt: skip
    assert torch.allclose(ours, torch.stack([rec, kl]).detach(), rtol=1e-5)
    ours = laboratory.tensor("results.gradients")
    assert (ours - gradients).abs().max() < 1e-5 * gradients.abs().max()
    # Adam divides by the size of a gradient, so that tiny ones, where rounding decides, step, too.
    ours, theirs = laboratory.tensor("results.values"), twin.flat(lambda parameter: parameter.data)
    clear = gradients.abs() > 1e-4 * gradients.abs().max()
    assert torch.allclose(ours[clear], theirs[clear], atol=1e-5)


def statistics(lab) -> dict:
    """Of the 1,000 codes: the distance of their mean from the origin, the share in the square, the
    mean σ."""
    codes = lab.tensor("commands.look().codes").reshape(-1, 4)
    mu, sigma = codes[:, :2], (0.5 * codes[:, 2:]).exp()
    inside = (mu.abs() < 2.5).all(1).float().mean()
    return {
        "inside": inside.item(),
        "sigma": sigma.mean().item(),
        "far": mu.norm(dim=1).max().item(),
    }


def learn(lab, steps: int, **settings) -> dict:
    """Loss over the last 20 of so many steps."""
    lab.page.evaluate("settings => void commands.set(settings)", settings)
    lab.page.evaluate("count => void commands.learn({count, look: false})", steps - 20)
    return lab.page.evaluate("commands.learn({count: 20, look: false})")


def test_beta_tells_its_story(wasm, garments):
    """Few hundred steps each, which take a second or two on an idle machine."""
    begin(wasm, garments)
    usual = learn(wasm, 600, beta=1, noise=True)
    assert usual["reconstruction"] < 285 and 4 < usual["kl"] < 9
    at_one = statistics(wasm)
    assert at_one["inside"] > 0.75 and at_one["far"] < 7

    collapsed = learn(wasm, 600, beta=100)
    assert collapsed["kl"] < 0.1
    assert statistics(wasm)["sigma"] > 0.95
    recovered = learn(wasm, 600, beta=1)
    assert recovered["kl"] > 4 and recovered["reconstruction"] < 290

    begin(wasm, garments, seed=2)
    without_kl = learn(wasm, 400, beta=0)
    assert without_kl["kl"] > 20
    away = statistics(wasm)
    assert away["inside"] < 0.3 and away["far"] > 10 and away["sigma"] < 0.05
    learn(wasm, 600, beta=1)
    assert statistics(wasm)["inside"] > 0.5


def test_gradients_at_one_code_agree_with_pytorch(wasm, garments):
    """What question 2 shows as arrows."""
    begin(wasm, garments)
    learn(wasm, 100, beta=1, noise=True)
    twin = Twin()
    twin.take(wasm.tensor("commands.weights()"))
    pixels = webpage.garment_images()[5]
    eps = torch.tensor([[0.5, -1.0]])
    h = twin.layers[1](twin.layers[0](pixels[None]).relu()).relu()
    mu, logvar = twin.layers[2](h).chunk(2, dim=1)
    z = vae.reparameterize(mu, logvar, eps).detach().requires_grad_()
    x_raw = twin.layers[5](twin.layers[4](twin.layers[3](z).relu()).relu())
    vae.reconstruction_nats(x_raw, pixels[None], "bernoulli").sum().backward()
    seen = wasm.tensor(
        "(() => { const { mu, z, pictureGradient, klGradient } = commands.inspect({image: 5, "
        "eps: [0.5, -1]}); return [...mu, ...z, ...pictureGradient, ...klGradient]; })()"
    )
    expected = torch.cat([mu[0], z[0], z.grad[0], mu[0]]).detach()
    assert torch.allclose(seen, expected, rtol=1e-3, atol=1e-3)
    wasm.page.evaluate("void commands.set({noise: false})")
    pull = wasm.tensor("commands.inspect({image: 5, eps: [0.5, -1]}).klGradient")
    assert not pull.any()  # points have no KL
