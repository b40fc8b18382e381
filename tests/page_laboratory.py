"""The page's workers in an empty page of Chromium, by WebAssembly and in plain JavaScript.

What tests/test_page_models.py and tests/test_page_learning.py share.
"""

import base64
import json
import shutil

import pytest
import torch

from support import webpage

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")


# What only tests ask of the prior.
MORE_SCRIPTS = """
// Noise that was written down, {uniform: [...], normal: [...]} for each token.
function givenNoise(perToken) {
  return (token) => {
    const [u, n] = [perToken[token].uniform.values(), perToken[token].normal.values()];
    return { uniform: () => u.next().value, normal: () => n.next().value };
  };
}

// log p of each token of a code, given those before it: (tokens), in nats.
function logDensities(engine, prior, code, condition) {
  const { tokens, channels } = prior;
  const walk = makeWalk(engine, prior, [condition]);
  const token = (t) => code.subarray(t * channels, (t + 1) * channels);
  return Float32Array.from({ length: tokens }, (_, t) => {
    const said = walk.step(t, t ? token(t - 1) : null);
    return logDensity(mixtureFrom(prior, said), token(t));
  });
}
"""


class Laboratory:
    """The page's networks in an empty page of a browser, by WebAssembly or in JavaScript."""

    def __init__(self, browser, kind: str):
        self.page = browser.new_page(offline=True)
        self.page.add_script_tag(content=webpage.worker_source() + MORE_SCRIPTS)
        wasm = "bytesOf(wasmText)" if kind == "WebAssembly" else "null"
        used = self.page.evaluate(
            """wasmText => {
                window.bytesOf = text => Uint8Array.from(atob(text), one => one.charCodeAt(0));
                window.floats = text => new Float32Array(bytesOf(text).buffer);
                return commands.start({floats: 3e7, wasm: WASM});
            }""".replace("WASM", wasm),
            webpage.wasm_text(),
        )
        assert used == kind

    def load(self, name: str, packed: tuple[dict, bytes]) -> None:
        """A network under a name; that of a prior ends in "prior"."""
        description, content = packed
        self.page.evaluate(
            "([name, description, text]) => "
            "commands.load({name, description, buffer: bytesOf(text).buffer})",
            [name, description, base64.b64encode(content).decode()],
        )

    def tensor(self, expression: str, *inputs) -> torch.Tensor:
        """What a JavaScript expression gives, an array of numbers; tensors are inputs[i] in it."""
        given = [text_of(one) if isinstance(one, torch.Tensor) else one for one in inputs]
        kinds = json.dumps([isinstance(one, torch.Tensor) for one in inputs])
        result = self.page.evaluate(
            f"given => {{ const inputs = given.map((one, i) => "
            f"{kinds}[i] ? floats(one) : one); return [...({expression})]; }}",
            given,
        )
        return torch.tensor(result)


def text_of(values: torch.Tensor) -> str:
    """The bytes of a tensor, of bytes or of floats."""
    plain = values if values.dtype == torch.uint8 else values.detach().float()
    return base64.b64encode(plain.contiguous().numpy().tobytes()).decode()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["WebAssembly", "JavaScript"])
def laboratory(browser, request):
    return Laboratory(browser, request.param)


@pytest.fixture(scope="module")
def wasm(browser):
    return Laboratory(browser, "WebAssembly")
