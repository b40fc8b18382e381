"""Parts 2 to 4 of the page, morph, faces and classes, as a visitor meets them.

What the networks compute is compared with PyTorch in test_page_models.py.
"""

import numpy as np
import pytest
import safetensors.torch
from page_visitor import browser, opened, visitor  # noqa: F401  fixtures

from support import webpage


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


def test_the_same_job_asked_for_again_is_done_with_the_newest_settings(visitor):
    visitor.open()
    newest = """async () => {
        const seen = [];
        let now = 0;
        const job = async () => { seen.push(now); await pause(20) };
        for (now = 1; now < 4; now++) newest("test", job);
        now = 9;
        await pause(200);
        return seen }"""
    assert visitor.page.evaluate(newest) == [1, 9]


def test_other_pictures_to_morph_are_in_the_strips_at_once(visitor):
    visitor.open(parts=["morph"])
    page = visitor.page
    strip = "() => document.querySelector('[data-strip=\"morph.a\"]').innerHTML"
    faces = page.evaluate(strip)
    page.locator('label:has([name="morph.set"][value="cifar10"])').click()
    assert page.evaluate(strip) != faces
    visitor.settle()


def test_a_finger_that_scrolls_from_a_slider_leaves_its_value(visitor):
    visitor.open(parts=["classes"])
    page = visitor.page
    touch = """([type, value]) => {
        const slider = $('[name="classes.guidance"]');
        slider.dispatchEvent(new PointerEvent("pointerdown",
            {bubbles: true, pointerType: "touch"}));
        slider.value = value;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        slider.dispatchEvent(new PointerEvent(type, {bubbles: true}));
        return state["classes.guidance"] }"""
    assert page.evaluate(touch, ["pointercancel", 4]) == 2
    assert page.evaluate("past.length") == 0
    assert page.evaluate(touch, ["pointerup", 4]) == 4
    visitor.settle()


def test_a_rare_wish_is_said_to_fail_often(visitor):
    visitor.open(parts=["faces"])
    page = visitor.page
    page.evaluate("set({'wish.Smiling': 'yes', 'wish.Eyeglasses': 'yes'})")
    page.wait_for_function("$('#rare-text').textContent.includes('glasses (7%)')")
    assert "smile" not in page.locator("#rare-text").text_content()
    page.wait_for_function("$('#portrait-text').textContent.includes('glasses, smile')")
    visitor.settle()


def test_a_face_can_be_drawn_slowly(visitor):
    visitor.page.emulate_media(reduced_motion="no-preference")
    visitor.open(parts=["faces"])
    page = visitor.page
    page.evaluate("set({'faces.slow': 1})")
    page.locator("#draw-face").click()
    page.wait_for_function("face.writing >= FIRST_PLACE + 2")
    began = page.evaluate("[performance.now(), face.writing]")
    page.wait_for_function("face.writing >= FIRST_PLACE + 12")
    ended = page.evaluate("[performance.now(), face.writing]")
    assert ended[0] - began[0] > 130 * (ended[1] - began[1] - 1)
    page.evaluate("set({'faces.slow': 0, 'faces.seed': 3})")
    visitor.settle()


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
