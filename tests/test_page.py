"""docs/index.html as a whole: how it is built, links, photos, saving, and access for everyone.

Skipped where Chromium or Playwright is missing; the check by axe-core is skipped where
axe-playwright-python is.
"""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, refused
from page_visitor import PICTURES, SHOWN, browser, opened, visitor  # noqa: F401  fixtures
from PIL import Image

import vae_helpers as vae
from support import webpage

# ── How it is built ──


def test_the_committed_page_is_made_from_the_files_here_which_give_the_same_bytes_each_time():
    """When it is not: make page."""
    head = webpage.PAGE.read_text(encoding="utf-8")[:2000]
    assert re.search('name="sources" content="(.*?)"', head).group(1) == webpage.sources()
    assert webpage.PAGE.stat().st_size < 16e6
    assert 'rel="icon"' not in head  # in a data: address it slows Firefox down a hundred times
    assert webpage.build() == webpage.build()


def test_other_code_that_makes_the_page_is_noticed(tmp_path, monkeypatch):
    before = webpage.sources()
    for module in (webpage, webpage.page_weights):
        changed = tmp_path / "changed.py"
        changed.write_text(Path(module.__file__).read_text(encoding="utf-8") + "# changed\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            assert webpage.sources() != before


def test_codes_made_with_other_weights_are_refused(tmp_path, monkeypatch):
    shutil.copytree(webpage.EXTRAS, tmp_path / "page")
    facts = json.loads((tmp_path / "page" / "page.json").read_text())
    facts["weights_sha256"]["cifar10_fc"] = "0" * 64
    vae.write_json(tmp_path / "page" / "page.json", facts)
    monkeypatch.setattr(webpage, "EXTRAS", tmp_path / "page")
    with refused(vae.VAEError, "--collect"):
        webpage.build()


def test_sources_are_short_and_each_is_used():
    used = {"engine.wasm.txt", "engine.wat", "page.css", "page.html"}
    used |= {f"{name}.js" for name in (*webpage.WORKER_SCRIPTS, *webpage.PAGE_SCRIPTS)}
    there = {path.name: path.read_text(encoding="utf-8") for path in webpage.SOURCES.iterdir()}
    assert set(there) == used
    assert max(text.count("\n") for text in there.values()) < 350


def test_shares_of_recognised_images_are_those_of_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(webpage, "CHECKPOINTS", tmp_path)
    (tmp_path / "cifar10_grid").mkdir()
    path = tmp_path / "cifar10_grid" / "metrics.json"
    path.write_text("{}")
    assert webpage.recognised() == {}
    measured = {"recognised_samples_prior": 0.3, "recognised_samples_guidance_2": 0.6}
    path.write_text(json.dumps({"recognised": measured | {"recognised_real": 0.9}}))
    assert webpage.recognised() == {"0": 0.3, "2": 0.6, "real": 0.9}


def test_links_to_theory_lead_to_its_headings():
    theory = (ROOT / "theory_answers.md").read_text(encoding="utf-8")
    found = re.findall(r'^  (\d): "(.*)",$', webpage.source("stories.js"), re.M)
    assert [number for number, _ in found] == ["1", "2", "3", "4"]
    headings = re.findall(r"^## (\d · .*)", theory, re.M)
    # GitHub's rule: punctuation goes, and each space becomes a hyphen.
    anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
    assert [anchor for _, anchor in found] == anchors


def test_on_github_pages_links_lead_into_the_repository(opened):
    page = opened.page.context.browser.new_page()
    body = webpage.PAGE.read_text(encoding="utf-8")
    page.route("https://**", lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto("https://someone.github.io/faces/#learn.question=2")
    page.locator("#story button", has_text="The short answer").click()
    links = page.evaluate("[...document.querySelectorAll('section p a')].map(link => link.href)")
    page.close()
    assert len(links) == 5
    for link in links:
        path = link.removeprefix("https://github.com/someone/faces/blob/HEAD/").split("#")[0]
        assert (ROOT / path).exists()


# ── Links, photos, saving ──


def test_a_link_restores_what_was_set(visitor):
    visitor.open(parts=["faces", "classes"])
    page = visitor.page
    page.locator('input[name="wish.Smiling"][value="yes"]').check(force=True)
    with visitor.expect_new_pictures("faces"):
        page.locator("#draw-face").click()
    page.locator("#erase").click()
    with visitor.expect_new_pictures("faces"):
        page.locator("#portrait-frame").click()
    with visitor.expect_new_pictures("classes"):
        page.locator('input[name="classes.name"][value="ship"]').check(force=True)
    parts = ["faces", "classes"]
    seen = [page.evaluate(PICTURES, part) for part in parts]
    fragment = page.evaluate("location.hash")
    visitor.open(fragment, ["classes", "faces"])
    assert [page.evaluate(PICTURES, part) for part in parts] == seen


@pytest.mark.parametrize("fragment", ["#faces.seed=5&part=faces", "#task3"])
def test_a_link_leads_to_the_part_where_something_was_set(visitor, fragment):
    visitor.open(fragment, parts=[])
    visitor.page.wait_for_function(SHOWN["faces"])
    top = visitor.page.locator("#part-faces").bounding_box()["y"]
    assert 0 <= top < 200


@pytest.mark.parametrize(
    "fragment, wanted",
    [("", []), ("#region.radius=9", ["regions"]), ("#region.seed=9", ["regions"]),
     ("#wish.Goatee=yes", ["wishes-more"]), ("#wish.Smiling=yes", [])],
)  # fmt: skip
def test_a_link_opens_what_it_sets(visitor, fragment, wanted):
    visitor.open(fragment)
    found = visitor.page.evaluate("""[...document.querySelectorAll('details')].filter(
        one => one.open).map(one => one.id || one.lastElementChild.id)""")
    assert found == wanted


def test_the_state_stays_in_the_address_when_a_link_leads_to_another_part(visitor):
    visitor.open(parts=["classes"])
    page = visitor.page
    with visitor.expect_new_pictures("classes"):
        page.locator('input[name="classes.name"][value="ship"]').check(force=True)
    wanted = page.evaluate("location.hash")
    page.locator('nav a[href="#task2"]').click()
    page.wait_for_function("location.hash.includes('=')")
    assert abs(page.locator("#part-morph").bounding_box()["y"]) < 100
    page.locator("#link").click()
    page.locator("#status:has-text('restores')").wait_for()
    assert page.evaluate("location.hash") == wanted and "ship" in wanted


def test_undo_goes_back_and_leaves_the_training_alone(visitor):
    visitor.open(parts=["learn", "classes"])
    page = visitor.page
    page.locator("#learn-step").click()
    page.wait_for_function("lesson.steps === 1")
    seen = page.evaluate(PICTURES, "classes")
    for button in ("#undo", "#reset"):
        with visitor.expect_new_pictures("classes"):
            page.locator('input[name="classes.name"][value="ship"]').check(force=True)
        with visitor.expect_new_pictures("classes"):
            page.locator(button).click()
        assert page.evaluate(PICTURES, "classes") == seen
    assert page.evaluate("lesson.steps") == 1


def test_a_link_of_nonsense_opens_the_page(visitor):
    nonsense = "#morph.a=own:3&morph.steps=900&faces.edits=xyz&wish.Young=maybe&learn.beta=-4&no=1"
    visitor.open(nonsense, parts=["morph", "faces"])
    assert visitor.page.locator("#walk canvas").count() == 12


def test_a_link_made_to_freeze_the_page_is_read_at_once(visitor):
    """A pattern that can read one text in many ways tries all of them."""
    visitor.open()
    milliseconds = visitor.page.evaluate("""() => {
        const began = performance.now();
        TOKENS["faces.edits"].test("1." + "1111111111.".repeat(9) + "x");
        return performance.now() - began }""")
    assert milliseconds < 100


def choose_picture(visitor, key: str) -> None:
    """Of 300 x 200 pixels; the dialog is open then."""
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(picture, "PNG")
    file = {"name": "own.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    visitor.page.locator(f'[data-own="{key}"]').set_input_files(file)
    visitor.page.locator("#crop-use").wait_for()


@pytest.mark.parametrize("part, key", [("morph", "morph.a"), ("faces", "faces.start")])
def test_an_own_picture_is_encoded_and_no_link_holds_it(visitor, part, key):
    visitor.open(parts=[part])
    page = visitor.page
    choose_picture(visitor, key)
    with visitor.expect_new_pictures(part):
        page.locator("#crop-use").click()
    assert "own" not in page.evaluate("location.hash")
    if part == "faces":
        page.wait_for_function("reconstructions.plain.canvas.pixels")
        page.wait_for_function("reconstructions.grid.canvas.pixels")
        assert "MSE" in page.locator("#reconstructions").text_content()
    page.locator(f'[data-own="{key}"]').set_input_files(
        {"name": "own.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    )
    page.locator("#status:has-text('cannot read')").wait_for()


def test_undo_keeps_an_own_picture_and_no_link_holds_what_was_redrawn_of_it(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    choose_picture(visitor, "faces.start")
    with visitor.expect_new_pictures("faces"):
        page.locator("#crop-use").click()
    page.locator("#erase").click()
    with visitor.expect_new_pictures("faces"):
        page.locator("#portrait-frame").click()
    assert "edits" not in page.evaluate("location.hash")
    page.evaluate("set({'classes.name': 'ship'})")
    undone = []
    for _ in range(3):
        page.locator("#undo").click()
        undone.append(page.evaluate("[state['faces.start'], state['faces.edits'].length > 0]"))
    assert undone == [["own:1", True], ["own:1", False], ["", False]]
    visitor.settle()


def test_the_square_follows_a_slow_finger(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    choose_picture(visitor, "faces.start")
    canvas = page.locator("#crop canvas")
    canvas.hover()
    page.mouse.down()
    box = canvas.bounding_box()
    right, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(right + 40, down, steps=80)
    page.mouse.up()
    # The square is as high as the picture, 200 pixels, and can move by 100.
    moved = 50 - float(page.locator("#crop-x").input_value())
    assert moved == pytest.approx(40 * 200 / box["width"], abs=1.5)
    page.locator("#crop-cancel").click()


@pytest.mark.parametrize("side, largest", [(40, 64), (1000, 512), (12_000, 4096)])
def test_a_photo_is_neither_enlarged_nor_put_on_a_canvas_too_large(visitor, side, largest):
    visitor.open()
    widths = visitor.page.evaluate("""side => {
        const [real, widths] = [contextOf, []];
        contextOf = width => {
            widths.push(width);
            const getImageData = (x, y, side) => ({data: new Uint8ClampedArray(4 * side ** 2)});
            return {drawImage: () => 0, getImageData};
        };
        crop.image = {width: side, height: side};
        $("#crop-zoom").value = 1;
        smallSquare(64);
        contextOf = real;
        return widths }""", side)  # fmt: skip
    assert widths[0] == largest and widths[-1] == 64


@pytest.mark.parametrize("part, button", [("morph", "walk"), ("faces", "face")])
def test_what_is_saved_is_a_picture(visitor, part, button):
    visitor.open(parts=[part])
    with visitor.page.expect_download() as download:
        visitor.page.locator(f"#save-{button}").click()
    with Image.open(Path(download.value.path())) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5  # no flat colour


# ── For everyone ──


def test_without_webassembly_all_parts_work(visitor):
    visitor.open(search="?javascript", parts=["learn", "faces", "classes"])
    assert visitor.page.evaluate("learner.started") == "JavaScript"
    assert visitor.page.evaluate("models.started") == "JavaScript"
    visitor.open()
    assert visitor.page.evaluate("learner.started") == "WebAssembly"


def test_a_browser_too_old_is_told_so(opened):
    page = opened.page.context.browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(webpage.PAGE.as_uri())
    page.locator("#status:has-text('DecompressionStream')").wait_for()
    page.close()


def test_names_of_controls_hold_what_is_seen_and_speech_is_kept_short(visitor):
    visitor.open()
    page = visitor.page
    controls = page.evaluate("""[...document.querySelectorAll('label:has([aria-label])')].map(
        one => [one.textContent.trim(), one.querySelector('input').ariaLabel])""")
    words = [(text, name) for text, name in controls if text in ("yes", "no")]
    assert len(words) == 80 and all(text in name.replace(",", "").split() for text, name in words)
    assert page.locator("output:not([aria-live=off])").count() == 0
    assert page.locator("#status").evaluate("one => one.checkVisibility()")  # also while empty
    assert page.locator("[aria-pressed]").count() == 1  # the eraser: its text stays as it is
    assert page.locator("#region-grid canvas").nth(4).get_attribute("aria-label").startswith("save")


def test_on_a_phone_undo_is_in_sight_everywhere(visitor):
    visitor.page.set_viewport_size({"width": 360, "height": 640})
    visitor.open(parts=["faces"])
    visitor.page.evaluate("set({'faces.temperature': 0.5})")
    box = visitor.page.locator("#undo").bounding_box()
    assert 0 <= box["y"] < 100 and 250 < box["x"] < 340  # in the row of links, which stays
    visitor.settle()


def test_tab_alone_reaches_every_control(visitor):
    visitor.open()
    page = visitor.page
    # Of a group of radio buttons Tab reaches the one that is chosen; the arrow keys do the rest.
    wanted = page.evaluate("""[...document.querySelectorAll('nav, main')].flatMap(
        part => [...part.querySelectorAll(
            'a, button:enabled, input:enabled, summary, [tabindex="0"]')]
        ).filter(one => one.checkVisibility()).map(
        (one, i) => one.type === 'radio' ? one.name : (one.id ||= `control-${i}`))""")
    reached = set()
    for _ in range(len(set(wanted)) + 20):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.name, document.activeElement.id]")
        reached.update(focused)
    assert set(wanted) <= reached


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_is_wider_than_the_screen(visitor, width):
    visitor.page.set_viewport_size({"width": width, "height": 800})
    visitor.open(parts=SHOWN)
    visitor.page.locator("#draw-twelve").click()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(visitor, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install it")
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.open(parts=SHOWN)
    visitor.page.locator("#erase").click()
    found = axe.Axe().run(visitor.page).response["violations"]
    assert [one for one in found if one["impact"] in ("serious", "critical")] == []
