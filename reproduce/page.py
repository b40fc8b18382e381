"""The page docs/index.html in a browser: how fast it answers, and its pictures for README.md.

    python -m reproduce.page    needs Chromium (apt-get install chromium), no data set

moves sliders by keyboard and writes figures/page.json: the milliseconds from the slider's event to
the new picture on its canvas. Then it writes figures/page.png, and figures/page.gif, in which the
sliders of one face move.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics

from PIL import Image

import vae_helpers as vae
from base import hardware
from base.files import ROOT
from support import runs, webpage

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Row of the table → data set of Task 2, slider, the canvas it draws on.
SLIDERS = {
    "cifar10_beta": ("cifar10", "one.beta", "one.beta.canvas"),
    "cifar10_position": ("cifar10", "two.t", "two.latent.canvas"),
    "face_position": ("celeba", "two.t", "two.latent.canvas"),
    "face_smile": ("celeba", "three.Smiling", "portrait.canvas"),
}
MOVES = 40
QUIET = "!working && grid.every(button => button.firstChild.pixels)"


def latencies(page, name: str, canvas: str) -> list[float]:
    """Move a slider to and fro with the arrow keys: milliseconds from event to picture."""
    page.evaluate("""document.addEventListener('input', event => {
        window.since = event.timeStamp }, true)""")
    page.locator(f'input[name="{name}"]').focus()
    waits = []
    for number in range(MOVES):
        page.wait_for_function(QUIET)
        page.evaluate("window.since = Infinity")
        page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_function(f"{canvas}.drawn > window.since")
        waits.append(page.evaluate(f"{canvas}.drawn - window.since"))
    return waits


def measure(chromium) -> dict:
    numbers = {"hardware": f"{hardware.hardware()}, {os.cpu_count()} cores"}
    first = []
    for _ in range(5):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(webpage.PAGE.as_uri())
        page.wait_for_function("typeof one === 'object' && one.conv.canvas.drawn")
        first.append(page.evaluate("one.conv.canvas.drawn"))
        page.wait_for_function(QUIET)
        if len(first) < 5:
            page.close()
    numbers["first_picture"] = summary(first)
    page.wait_for_timeout(3000)  # until the networks of the other β are read
    for row, (images, name, canvas) in SLIDERS.items():
        page.locator(f'input[name="two.set"][value="{images}"]').check()
        page.wait_for_function(QUIET)
        numbers[row] = summary(latencies(page, name, canvas))
        print(row, numbers[row])
    return numbers


def summary(waits: list[float]) -> dict:
    return {"moves": len(waits), "median_ms": statistics.median(waits), "worst_ms": max(waits)}


def set_slider(page, name: str, value: float) -> None:
    page.locator(f'input[name="{name}"]').evaluate(
        """(slider, value) => {
            slider.value = value
            slider.dispatchEvent(new Event('input', {bubbles: true}))
        }""",
        value,
    )
    page.wait_for_function(QUIET)


def draw(chromium) -> None:
    """A screenshot of Tasks 2 and 3, and the face in motion."""
    page = chromium.new_page(viewport={"width": 1000, "height": 900})
    page.goto(webpage.PAGE.as_uri())
    page.wait_for_function(f"typeof grid === 'object' && {QUIET}")
    page.locator("#part2").screenshot(path=ROOT / "figures" / "page.png")
    frames = []
    there_and_back = [0.5, 1, 1.5, 2, 2, 1, 0]
    walk = [(f"three.{name}", there_and_back) for name in ("Smiling", "Male", "Blond_Hair")]
    page.locator("#dimensions").evaluate("part => part.style.display = 'none'")
    page.locator("#face").evaluate("part => part.style.padding = '10px'")  # a border in the film
    for name, values in walk:
        for value in values:
            set_slider(page, name, value)
            shot = Image.open(io.BytesIO(page.locator("#face").screenshot()))
            frames.append(shot.convert("RGB").resize((shot.width * 2 // 3, shot.height * 2 // 3)))
    options = {"save_all": True, "append_images": frames[1:], "duration": 250, "loop": 0}
    frames[0].save(ROOT / "figures" / "page.gif", **options)


def main() -> None:
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        raise vae.VAEError("There is no Chromium here: install it, like apt-get install chromium.")
    with sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
        chromium = driver.chromium.launch(**options)
        numbers = measure(chromium)
        draw(chromium)
        chromium.close()
    vae.write_json(ROOT / "figures" / "page.json", numbers)


if __name__ == "__main__":
    runs.run_script(main)
