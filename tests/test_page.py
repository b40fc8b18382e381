"""docs/index.html in Chromium, opened from disk without a network. Skipped where Chromium or
Playwright is missing; the check by axe-core is skipped where axe-playwright-python is.

What its networks compute is compared with PyTorch in test_page_models.py and test_page_learning.py.
"""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from conftest import ROOT, refused
from page_laboratory import browser  # noqa: F401  a fixture
from PIL import Image

import vae_helpers as vae
from support import webpage

# Of every picture in a part of the page its sum, so that a changed picture is seen.
PICTURES = """part => JSON.stringify([...document.querySelectorAll(`#part-${part} canvas`)].map(
    canvas => canvas.pixels ? canvas.pixels.reduce((sum, value) => sum + value, 0) : 0))"""
# What each part shows last when it is opened.
SHOWN = {
    "learn": "document.querySelector('#original').pixels",
    "morph": "document.querySelectorAll('#walk canvas').length && [...document.querySelectorAll("
    "'#walk canvas')].every(canvas => canvas.pixels)",
    "faces": "face.code",
    "classes": "classButtons.every(one => one.pixels) && compared.grid.canvas.pixels",
}


class Visitor:
    """A page in a browser, and what went wrong in it."""

    def __init__(self, browser):  # noqa: F811
        self.page = browser.new_page(
            viewport={"width": 1280, "height": 900}, offline=True, reduced_motion="reduce"
        )
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str = "", parts=("learn",), search: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(webpage.PAGE.as_uri() + search + fragment)
        for part in parts:
            self.page.locator(f"#part-{part}").scroll_into_view_if_needed()
            self.page.wait_for_function(SHOWN[part])
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_function("isQuiet()")

    @contextlib.contextmanager
    def expect_new_pictures(self, part: str):
        self.settle()
        before = self.page.evaluate(PICTURES, part)
        yield
        self.page.wait_for_function(f"([part, before]) => ({PICTURES})(part) !== before",
                                    arg=[part, before])  # fmt: skip
        self.settle()


@pytest.fixture(scope="module")
def opened(browser):  # noqa: F811
    return Visitor(browser)


@pytest.fixture
def visitor(opened):
    opened.errors.clear()
    opened.requests.clear()
    yield opened
    opened.page.emulate_media(reduced_motion="reduce")
    assert opened.errors == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data", "blob", "about"}


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
    page.locator("#story a").wait_for()
    links = page.evaluate("[...document.querySelectorAll('p a')].map(link => link.href)")
    page.close()
    assert len(links) == 5
    for link in links:
        path = link.removeprefix("https://github.com/someone/faces/blob/HEAD/").split("#")[0]
        assert (ROOT / path).exists()


# ── Part 1 ──


def steps(visitor) -> int:
    return visitor.page.evaluate("lesson.steps")


def test_training_plays_pauses_steps_and_starts_again(visitor):
    visitor.open()
    page = visitor.page
    assert steps(visitor) == 0  # by itself it begins only where motion is welcome
    page.locator("#learn-step").click()
    page.wait_for_function("lesson.steps === 1")
    page.locator("#learn-play").click()
    page.wait_for_function("lesson.steps > 20 && lesson.history.length > 2")
    page.locator("#learn-play").click()
    page.wait_for_function("!lesson.turning")
    assert "nats" in page.locator("#kl-now").text_content()
    page.locator("#learn-again").click()
    page.wait_for_function("lesson.steps === 0")
    page.emulate_media(reduced_motion="no-preference")
    visitor.open()
    page.wait_for_function("lesson.steps > 0")


def test_before_there_are_garments_buttons_do_nothing(visitor):
    visitor.open()
    running = visitor.page.evaluate("""() => {
        const { codes } = lesson;
        lesson.codes = null;
        for (const id of ["play", "step"]) $(`#learn-${id}`).click();
        pointAt([2, 2]);
        lesson.codes = codes;
        return lesson.running }""")
    assert not running and steps(visitor) == 0
    assert visitor.page.evaluate("lesson.pointed") == [0, 0]


def test_after_a_turn_that_failed_it_can_learn_again(visitor):
    visitor.open()
    page = visitor.page
    page.evaluate("""async () => {
        const { ask } = learner;
        learner.ask = () => Promise.reject(new Error("no memory"));
        lesson.running = true;
        await learnInTurns().catch(() => 0);
        lesson.running = false;
        learner.ask = ask }""")
    page.locator("#learn-play").click()
    page.wait_for_function("lesson.steps > 0")


def test_after_two_minutes_it_stops_and_says_so(visitor):
    visitor.open()
    page = visitor.page
    page.locator("#learn-play").click()
    page.evaluate("lesson.touched -= 121_000")
    page.locator("#status:has-text('two minutes')").wait_for()
    assert not page.evaluate("lesson.running")


def test_answers_about_an_earlier_network_are_left_out(visitor):
    visitor.open()
    history = visitor.page.evaluate("""async () => {
        learnSteps(1);
        $("#learn-again").click();
        await learner.ask("look"); // what was asked before is answered then
        return lesson.history }""")
    assert history == [] and steps(visitor) == 0


def test_beta_collapses_the_code_and_back_at_1_it_recovers(visitor):
    """By the slider, while it learns; minutes only where a machine is busy with other work."""
    visitor.open()
    page = visitor.page
    page.set_default_timeout(180_000)
    page.locator("#learn-play").click()
    page.wait_for_function("lesson.steps > 150 && lesson.history.at(-1).kl > 3")
    slider = page.locator('[name="learn.beta"]')
    slider.focus()
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "100"
    page.wait_for_function("lesson.history.at(-1).kl < 0.1")
    collapsed = steps(visitor)
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "1"
    page.wait_for_function("lesson.history.at(-1).kl > 4")
    assert steps(visitor) < collapsed + 2000
    page.set_default_timeout(30_000)


def test_each_question_sets_up_its_story(visitor):
    visitor.open()
    page = visitor.page
    wanted = {"1": [0, 1], "2": [1, 1], "3": [0, 0], "4": [0.05, 1]}
    for number, (beta, noise) in wanted.items():
        page.locator(f'.questions label:has([value="{number}"])').click()
        page.wait_for_function("n => document.querySelector('#story').dataset.number === n",
                               arg=number)  # fmt: skip
        settings = page.evaluate("lessonSettings()")
        assert settings == {"beta": beta, "noise": bool(noise)}
        link = page.locator("#story a").get_attribute("href")
        assert link.startswith(f"../theory_answers.md#{number}--")
    page.locator("#story button", has_text="Keep").click()
    assert page.locator("#snapshots figure canvas").count() == 2
    page.locator("#snapshots button").click()
    assert page.locator("#snapshots figure").count() == 0


def test_question_2_shows_one_code_its_noise_and_its_gradient(visitor):
    visitor.open("#learn.question=2")
    page = visitor.page
    page.wait_for_function("lesson.detail?.earlier.length > 4", timeout=120_000)
    before = page.evaluate("lesson.detail.z")
    page.locator("#story button", has_text="Another ε").click()
    page.wait_for_function("before => lesson.detail.z[0] !== before[0]", arg=before)
    detail = page.evaluate("lesson.detail")
    for axis in (0, 1):
        sigma = np.exp(0.5 * detail["logvar"][axis])
        z = detail["mu"][axis] + sigma * detail["eps"][axis]
        assert detail["z"][axis] == pytest.approx(z, abs=1e-3)
    assert "z = μ + σ ε" in page.locator("#detail-text").text_content()
    assert not any(one["earlier"] for one in detail["earlier"])  # they would hold all before them
    page.locator("#plane").hover()
    page.mouse.down()
    assert page.evaluate("lesson.detail")  # a finger that begins to scroll
    page.mouse.up()
    assert page.evaluate("lesson.detail") is None
    late = (
        "async () => { const late = inspect({}); closeDetail(); await late; return lesson.detail }"
    )
    assert page.evaluate(late) is None
    page.locator("#learn-again").click()
    page.wait_for_function("lesson.steps === 300 && lesson.detail", timeout=120_000)


def test_pointing_at_the_plane_decodes_there(visitor):
    visitor.open()
    page = visitor.page
    with visitor.expect_new_pictures("learn"):
        page.locator("#plane").click(position={"x": 10, "y": 10})
    right, up = page.evaluate("lesson.pointed")
    assert right < -2 and up > 2
    with visitor.expect_new_pictures("learn"):
        page.locator("#codes").focus()
        page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("lesson.pointed[0]") > right
    assert re.fullmatch(r"-\d.*, \d.*; nearest: \w.*", page.locator("#spoken").text_content())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rings_of_the_prior_are_seen(visitor, scheme):
    """Their contrast to the card is 3 at least."""
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.open()
    colours = visitor.page.evaluate("""() => {
        const context = contextOf(100, 100);
        context.fillStyle = ink.card;
        context.fillRect(0, 0, 100, 100);
        paintPrior(context, transformOf({x: 0, y: 0, extent: 2.2}, 100));
        return [[0, 0], [50, 27]].map(at => [...context.getImageData(...at, 1, 1).data]) }""")
    card, ring = (luminance(colour[:3]) for colour in colours)
    assert (max(card, ring) + 0.05) / (min(card, ring) + 0.05) > 3


def luminance(colour: list[int]) -> float:
    """Of sRGB, as WCAG 2 has it."""
    unit = np.array(colour) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# ── The other parts ──


@pytest.mark.parametrize("part", ["morph", "classes"])
def test_every_control_changes_a_picture(visitor, part):
    visitor.open(parts=[part])
    page = visitor.page
    for slider in page.locator(f"#part-{part} input[type=range]").all():
        at_the_end = slider.evaluate("one => one.value === one.max")
        slider.focus()
        with visitor.expect_new_pictures(part):
            page.keyboard.press("ArrowLeft" if at_the_end else "ArrowRight")
    groups = page.evaluate(
        "part => [...new Set([...document.querySelectorAll(`#part-${part} [type=radio]`)]"
        ".map(one => one.name))]",
        part,
    )
    for name in groups:
        with visitor.expect_new_pictures(part):
            page.locator(f'input[name="{name}"]:not(:checked)').first.check(force=True)
    for button in {"morph": [], "classes": ["#draw-class", "#undo", "#reset"]}[part]:
        with visitor.expect_new_pictures(part):
            page.locator(button).click()


def test_a_morph_plays(visitor):
    visitor.open(parts=["morph"])
    page = visitor.page
    before = page.evaluate("morph.latent.canvas.drawn")
    page.locator("#play").click()
    page.wait_for_function("before => morph.latent.canvas.drawn > before", arg=before)
    page.locator("#play").click()
    visitor.settle()


@pytest.mark.parametrize("stop", ["scroll", "undo", "reset"])
def test_a_morph_stops_out_of_sight_and_when_something_is_brought_back(visitor, stop):
    visitor.open(parts=["morph"])
    page = visitor.page
    page.locator('[name="morph.steps"]').focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#play").click()
    page.wait_for_function("state['morph.t'] !== 0.5")
    if stop == "scroll":
        page.locator("footer").scroll_into_view_if_needed()
    else:
        page.locator(f"#{stop}").click()
    page.wait_for_function("!playing")
    assert page.locator("#play").text_content() == "▶ Play"
    visitor.settle()
    assert (page.evaluate("state['morph.t']") == 0.5) == (stop != "scroll")


def test_wishes_guidance_temperature_and_buttons_change_the_face(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    for value in ("yes", "no", "open"):
        with visitor.expect_new_pictures("faces"):
            page.locator(f'input[name="wish.Eyeglasses"][value="{value}"]').check(force=True)
    assert page.locator('[name="faces.guidance"]').is_disabled()  # nothing is wished for
    page.locator('input[name="wish.Smiling"][value="yes"]').check(force=True)
    for name in ("guidance", "temperature"):
        page.locator(f'[name="faces.{name}"]').focus()
        with visitor.expect_new_pictures("faces"):
            page.keyboard.press("End")
    for button in ("#no-wishes", "#draw-face", "#draw-twelve", "#test-face", "#undo", "#reset"):
        with visitor.expect_new_pictures("faces"):
            page.locator(button).click()
    with visitor.expect_new_pictures("faces"):
        page.locator("#draw-twelve").click()
    one = page.locator("#sheet canvas").nth(5)
    pixels = one.evaluate("canvas => [...canvas.pixels]")
    with visitor.expect_new_pictures("faces"):
        one.click()
    shown = page.evaluate("[...document.querySelector('#portrait').pixels]")
    assert shown == pixels  # drawn alone it is the same face


def test_a_face_appears_place_after_place(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    page.emulate_media(reduced_motion="no-preference")
    page.evaluate("""() => {
        window.seen = [];
        const canvas = document.querySelector('#portrait');
        new MutationObserver(() => window.seen.push(face.writing)).observe(
            document.querySelector('#places'), {subtree: true, attributes: true});
    }""")
    before = page.evaluate("document.querySelector('#portrait').drawn")
    page.locator("#draw-face").click()
    page.wait_for_function("before => document.querySelector('#portrait').drawn > before",
                           arg=before)  # fmt: skip
    visitor.settle()
    seen = [token for token in page.evaluate("seen") if token >= 8]
    assert seen == sorted(seen) and len(set(seen)) > 8
    assert page.locator("#places .writing").count() == 0


def test_what_is_left_open_is_taken_from_an_image_that_fits(visitor):
    """As conditional.labels_of does it."""
    visitor.open(parts=["faces"])
    page = visitor.page
    page.locator('input[name="wish.Eyeglasses"][value="yes"]').check(force=True)
    page.locator('input[name="wish.No_Beard"][value="yes"]').check(force=True)  # a beard
    visitor.settle()
    packed = safetensors.torch.load_file(webpage.EXTRAS / "page.safetensors")["attributes"].numpy()
    names = page.evaluate("facts.attributes")
    labels = np.unpackbits(packed, axis=1)[:, : len(names)]
    glasses, no_beard = names.index("Eyeglasses"), names.index("No_Beard")
    for seed in range(5):
        told = page.evaluate(
            "async seed => { const { condition, without } = await conditionOf(seed);"
            "return [[...condition], [...without]] }",
            seed,
        )
        condition, without = np.array(told)
        assert condition[glasses] == 1 and condition[no_beard] == 0
        assert (labels == condition).all(1).any()
        asked = np.isin(np.arange(len(names)), [glasses, no_beard])
        assert (without[asked] == 0.5).all() and (without[~asked] == condition[~asked]).all()


def test_every_seed_finds_a_training_image_that_fits(visitor):
    """However few there are: here one has all labels that are asked for."""
    visitor.open(parts=["faces"])
    missed = visitor.page.evaluate("""async () => {
        const { count, has } = await attributeRows();
        facts.attributes.forEach((label, number) => {
            const value = has(count - 1, number) === (TURNED.includes(label) ? 0 : 1);
            state[`wish.${label}`] = value ? "yes" : "no";
        });
        const told = await Promise.all(Array.from({length: 100}, (_, seed) => conditionOf(seed)));
        return told.filter(({ known }) => !known).length }""")
    assert missed == 0


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_what_is_erased_is_drawn_again_and_the_rest_stays(visitor, by):
    visitor.open(parts=["faces"])
    page = visitor.page
    page.locator("#erase").click()
    before = page.evaluate("[...face.code]")
    with visitor.expect_new_pictures("faces"):
        if by == "mouse":
            page.locator("#portrait-frame").click()
        else:
            for _ in range(4):  # past the buttons under the face
                page.keyboard.press("Shift+Tab")
            assert page.locator("#places .cursor").count() == 1
            for key in ("ArrowRight", "ArrowDown", " "):
                page.keyboard.press(key)
            assert page.locator("#spoken").text_content() == "row 6, column 2, erased"
            page.keyboard.press("Enter")
    after = page.evaluate("[...face.code]")
    changed = {i // 16 for i, (a, b) in enumerate(zip(before, after)) if a != b}
    first = page.evaluate("FIRST_PLACE")
    assert changed and min(changed) >= first and len(changed) <= 4
    page.locator("#erase").click()


def test_the_twenty_first_part_is_not_redrawn(visitor):
    """The first one is not forgotten instead, which would change all that were drawn after it."""
    visitor.open(parts=["faces"])
    page = visitor.page
    edits = ",".join(f"{'0' * 15}1.{seed}" for seed in range(20))
    page.evaluate("edits => void (state['faces.edits'] = edits)", edits)
    page.locator("#erase").click()
    page.locator("#portrait-frame").click()
    page.locator("#status:has-text('20 times')").wait_for()
    assert page.evaluate("state['faces.edits']") == edits
    assert page.locator("#places .erased").count() == 0


def test_regions_of_the_plain_model(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    with visitor.expect_new_pictures("faces"):
        page.locator("#regions summary").click()
    for kind in ("z_range", "radius", "temperature"):
        page.locator(f'input[name="region.{kind}"]').focus()
        with visitor.expect_new_pictures("faces"):
            page.keyboard.press("ArrowRight")
        assert page.evaluate("state['region.kind']") == kind
    with visitor.expect_new_pictures("faces"):
        page.locator("#region-again").click()


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
    assert steps(visitor) == 1


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
        $("#crop-zoom").value = 10;
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
    assert 0 < box["y"] < 600 and 0 < box["x"] < 300
    visitor.settle()
    visitor.page.set_viewport_size({"width": 1280, "height": 900})


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
    visitor.page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(visitor, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install it")
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.open(parts=SHOWN)
    visitor.page.locator("#erase").click()
    found = axe.Axe().run(visitor.page).response["violations"]
    assert [one for one in found if one["impact"] in ("serious", "critical")] == []
