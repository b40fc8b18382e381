"""docs/index.html in Chromium, opened from disk without a network. Skipped where Chromium or
Playwright is missing; the check by axe-core is skipped where axe-playwright-python is."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, refused
from PIL import Image

import vae_helpers as vae
from support import webpage

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
# Of every picture on the page its sum, so that a changed picture is seen.
PICTURES = """[...document.querySelectorAll('main canvas')].map(
    canvas => canvas.pixels ? canvas.pixels.reduce((sum, value) => sum + value, 0) : 0)"""
READY = "typeof grid === 'object' && grid.every(button => button.firstChild.pixels)"


class Visitor:
    """A page in a browser, and what went wrong in it."""

    def __init__(self, browser):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self, fragment: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(webpage.PAGE.as_uri() + fragment)
        self.page.wait_for_function(READY)
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_function("!working")

    @contextlib.contextmanager
    def expect_new_pictures(self):
        self.settle()
        self.page.evaluate(f"window.before = JSON.stringify({PICTURES})")
        yield
        self.page.wait_for_function(f"window.before !== JSON.stringify({PICTURES})")
        self.settle()


@pytest.fixture(scope="module")
def opened():
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Visitor(browser)
        browser.close()


@pytest.fixture
def visitor(opened):
    yield opened
    assert opened.errors == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data", "blob", "about"}


def test_the_committed_page_is_made_from_the_files_here_which_give_the_same_bytes_each_time():
    """When it is not: make page."""
    head = webpage.PAGE.read_text(encoding="utf-8")[:2000]
    assert re.search('name="sources" content="(.*?)"', head).group(1) == webpage.sources()
    assert webpage.PAGE.stat().st_size < 12e6
    assert 'rel="icon"' not in head  # in a data: address it slows Firefox down a hundred times
    assert webpage.build() == webpage.build()


def test_codes_made_with_other_weights_are_refused(tmp_path, monkeypatch):
    shutil.copytree(webpage.EXTRAS, tmp_path / "page")
    extras = json.loads((tmp_path / "page" / "page.json").read_text())
    extras["weights_sha256"]["celeba_conv"] = "0" * 64
    vae.write_json(tmp_path / "page" / "page.json", extras)
    monkeypatch.setattr(webpage, "EXTRAS", tmp_path / "page")
    with refused(vae.VAEError, "--collect"):
        webpage.build()


@pytest.mark.parametrize("name", webpage.DECODERS)
def test_pictures_agree_with_python(visitor, name):
    model, _ = vae.load_checkpoint(ROOT / "checkpoints" / webpage.DECODERS[name])
    z = vae.sample_latents(20, 128, seed=1)
    expected = vae.decode_images(model, z).permute(0, 2, 3, 1).flatten(1)
    for code, pixels in zip(z, expected):
        asked = [name, code.tolist()]
        ours = visitor.page.evaluate(
            "async ([name, z]) => [...await ask('test', name, new Float32Array(z))]", asked
        )
        assert (torch.tensor(ours) - pixels).abs().max() < 2 / 255


@pytest.mark.parametrize("name", webpage.ENCODERS)
def test_codes_agree_with_python(visitor, name):
    model, _ = vae.load_checkpoint(ROOT / "checkpoints" / webpage.ENCODERS[name])
    data, side = model.config.dataset, model.config.image_size
    sheet = np.asarray(Image.open(webpage.EXTRAS / f"{data}.png"))
    for i in range(20):
        top, left = i // 10 * side, i % 10 * side
        image = torch.tensor(sheet[top : top + side, left : left + side]).permute(2, 0, 1)
        expected, _ = vae.encode_images(model, image[None])
        ours = visitor.page.evaluate(
            "async ([n, set, i]) => [...await ask('test', n, pixelsOf(`test:${i}`, set))]",
            [name, data, i],
        )
        assert (torch.tensor(ours) - expected[0]).abs().max() < 0.01


def test_every_control_changes_a_picture(visitor):
    page = visitor.page
    for number in (2, 7):
        with visitor.expect_new_pictures():
            page.locator("#grid button").nth(number).click()
    for slider in page.locator("main input[type=range]").all():
        at_the_end = slider.evaluate("one => one.value === one.max")
        slider.focus()
        with visitor.expect_new_pictures():
            page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")
    groups = page.evaluate(
        "[...new Set([...document.querySelectorAll('[type=radio]')].map(r => r.name))]"
    )
    for name in groups:
        with visitor.expect_new_pictures():
            page.locator(f'input[name="{name}"]:not(:checked)').first.check()
    buttons = "#draw #again #zero [data-random=mixture] [data-random=temperature] #undo #reset"
    for button in buttons.split():
        with visitor.expect_new_pictures():
            page.locator(button).click()
    # Playing, a frame may be asked for again before it is decoded.
    page.evaluate("two.latent.canvas.key = two.latent.canvas.pixels = undefined")
    page.evaluate("Promise.all([renderTwo(), renderTwo()])")
    before = page.evaluate("two.latent.canvas.drawn")
    page.locator("#play").click()
    page.wait_for_function("before => two.latent.canvas.drawn > before", arg=before)
    page.locator("#play").click()


def test_a_link_restores_what_was_set(visitor):
    visitor.open()
    page = visitor.page
    with visitor.expect_new_pictures():
        page.locator("[data-random=mixture]").click()
    page.locator('[name="three.Smiling"]').focus()
    with visitor.expect_new_pictures():
        page.keyboard.press("End")
    seen = page.evaluate(PICTURES)
    fragment = page.evaluate("location.hash")
    visitor.open(fragment)
    assert page.evaluate(PICTURES) == seen
    visitor.open("#three.a=nonsense&two.steps=900&no=1")
    assert page.locator("#walk canvas").count() == 12


@pytest.mark.parametrize("key, figure", [("two.a", "#morph"), ("three.a", "#portrait")])
def test_an_own_picture_is_encoded_in_the_page(visitor, key, figure):
    visitor.open()
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(picture, "PNG")
    file = {"name": "own.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    visitor.page.locator(f'[data-own="{key}"]').set_input_files(file)
    with visitor.expect_new_pictures():
        visitor.page.locator("#crop-use").click()
    assert "own" in visitor.page.evaluate("location.hash")
    visitor.page.locator(f'[data-own="{key}"]').set_input_files(
        {"name": "own.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    )
    visitor.page.locator("#status:has-text('cannot read')").wait_for()


@pytest.mark.parametrize("button", ["walk", "face"])
def test_what_is_saved_is_a_picture(visitor, button):
    with visitor.page.expect_download() as download:
        visitor.page.locator(f"#save-{button}").click()
    with Image.open(Path(download.value.path())) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5  # no flat colour


def test_tab_alone_reaches_every_control(visitor):
    visitor.open()
    page = visitor.page
    # Of a group of radio buttons Tab reaches the one that is chosen; the arrow keys do the rest.
    wanted = page.evaluate("""[...document.querySelectorAll('nav, main')].flatMap(
        part => [...part.querySelectorAll('a, button:enabled, input:enabled')]).map(
        (one, i) => one.type === 'radio' ? one.name : (one.id ||= `control-${i}`))""")
    reached = set()
    for _ in range(len(set(wanted)) + 20):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.name, document.activeElement.id]")
        reached.update(focused)
    assert set(wanted) <= reached


@pytest.mark.parametrize("width", [360, 1920])
def test_nothing_is_wider_than_the_screen(visitor, width):
    visitor.page.set_viewport_size({"width": width, "height": 800})
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(visitor, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install it")
    visitor.page.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(visitor.page).response["violations"]
    assert [one for one in found if one["impact"] in ("serious", "critical")] == []
