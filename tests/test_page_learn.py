"""Part 1 of the page, a VAE that learns, as a visitor meets it.

What it computes is compared with PyTorch in test_page_learning.py.
"""

import html
import re

import numpy as np
import pytest
from page_visitor import browser, opened, visitor  # noqa: F401  fixtures

from support import webpage


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
        page.locator("#story button", has_text="The short answer").click()
        link = page.locator("#story .answer a").get_attribute("href")
        assert link.startswith(f"../theory_answers.md#{number}--")
        page.locator("#story button", has_text="The short answer").click()
        assert page.locator("#story .answer").count() == 0
    seed = page.evaluate("state['learn.seed']")
    page.locator('.questions label:has([value="4"])').click()  # once more: a new network
    page.wait_for_function("seed => state['learn.seed'] === seed + 1", arg=seed)
    chosen = page.locator('#story button[aria-pressed="true"]')
    assert chosen.all_text_contents() == ["β = 0.05"]
    page.locator("#story button", has_text="β = 100").click()
    assert chosen.all_text_contents() == ["β = 100"]
    page.locator("#story button", has_text="Keep").click()
    assert page.locator("#snapshots figure canvas").count() == 2
    page.locator("#snapshots button").click()
    assert page.locator("#snapshots figure").count() == 0


def test_the_short_answers_are_those_of_theory():
    answers = webpage.short_answers()
    text = (webpage.ROOT / "theory_answers.md").read_text().replace("*", "")
    assert list(answers) == ["1", "2", "3", "4"]
    for answer in answers.values():
        assert html.unescape(answer) in text
        assert len(answer.split()) > 40 and "$" not in answer


def test_what_is_said_of_the_network_follows_beta_noise_and_what_it_learned(visitor):
    visitor.open("#learn.question=1&learn.beta=0")
    page = visitor.page
    says = "text => document.querySelector('#learn-happens').textContent.startsWith(text)"
    page.wait_for_function(says, arg="Paused")
    page.locator("#learn-play").click()
    page.wait_for_function(says, arg="No KL")
    page.locator("#story button", has_text="Turn the KL on").click()
    page.wait_for_function(says, arg="Codes gather")
    page.evaluate("set({'learn.beta': betaIndex(100)})")
    page.wait_for_function(says, arg="Collapsed", timeout=120_000)
    page.wait_for_function("$('#original-text').textContent === 'nearestall alike'")
    page.evaluate("set({'learn.noise': 0})")
    page.wait_for_function(says, arg="No noise")
    page.evaluate("setRunning(false)")


def test_question_2_after_a_network_without_kl_begins_with_a_usual_one(visitor):
    visitor.open("#learn.beta=0")
    page = visitor.page
    page.evaluate("learnSteps(200)")
    page.locator('.questions label:has([value="2"])').click()
    page.wait_for_function("lesson.detail", timeout=120_000)
    assert min(page.evaluate("[...lesson.detail.logvar]")) > 2 * np.log(0.01)
    page.evaluate("closeDetail()")
    page.locator('.questions label:has([value="2"])').click()  # once more
    page.wait_for_function("lesson.detail")
    page.evaluate("set({'learn.noise': 0})")
    page.wait_for_function("document.querySelector('#detail-text').textContent.includes('z = μ =')")


def test_the_nearest_garment_and_its_name_change_together(visitor):
    visitor.open()
    page = visitor.page
    page.evaluate("learnSteps(100)")
    agree = """async () => {
        const said = [];
        const note = () => said.push([$("#original-text").textContent, $("#original").pixels]);
        const observer = new MutationObserver(note);
        observer.observe($("#original-text"), {childList: true});
        for (let i = 0; i < 20; i++) await pointAt([Math.cos(2 * i), Math.sin(2 * i)]);
        observer.disconnect();
        const garments = await Promise.all([...lesson.kinds].map(
            (_, image) => learner.ask("garment", {image})));
        const isOf = ([text, pixels]) => garments.some((garment, image) =>
            text.endsWith(facts.garments[lesson.kinds[image]])
            && garment.every((value, i) => value === pixels[i]));
        return [said.length, said.every(isOf)] }"""
    count, agrees = page.evaluate(agree)
    assert count > 5 and agrees


def test_a_slider_that_is_dragged_leaves_one_mark(visitor):
    visitor.open()
    marks = "() => { for (const i of [3, 4, 5]) set({'learn.beta': i}); return lesson.marks }"
    assert [mark["text"] for mark in visitor.page.evaluate(marks)] == ["β 0.2"]


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
