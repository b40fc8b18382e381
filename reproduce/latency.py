"""How fast the sliders answer in a browser, in JupyterLab and on the page, and their pictures.

    python -m reproduce.latency explorers    JupyterLab: needs the real data; some five minutes
    python -m reproduce.latency page         docs/index.html: needs no data; a minute

Both need Chromium (apt-get install chromium), which Playwright drives. They move the sliders by
keyboard, and write the milliseconds from a key to the new picture on the screen to
figures/widgets.json and page.json, and figures/widget_*.jpg and page.gif. The explorers'
"nothing computed" is a slider that only swaps two ready pictures, which is what JupyterLab and the
browser take by themselves. tests/test_browser.py and tests/front_ends.py use the same driver.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nbformat
from PIL import Image

import vae_helpers as vae
from base import hardware
from base.files import ROOT
from reproduce.common import FIGURES, chosen
from support import runs, webpage

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


# ── The driver: JupyterLab and Notebook in a browser ────────────────────────────────────────────

PAGES = {"jupyterlab": "lab/tree", "notebook": "notebooks"}  # module of the server → its address


@contextlib.contextmanager
def open_page(height: int = 1000) -> Iterator:
    """An empty page of Chromium. Raises VAEError without it."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        raise vae.VAEError("There is no Chromium here: install it, like apt-get install chromium.")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser.new_page(viewport={"width": 1280, "height": height})
        browser.close()


class Lab:
    """A page of JupyterLab, or of Notebook 7, in a browser."""

    def __init__(self, page, address: str):
        self.page = page
        self.address = address  # of notebooks, with {name}

    def run_all(self, path: Path, cells: list[str]) -> None:
        """Write a notebook of these cells, open it, and run it to its end."""
        code = [nbformat.v4.new_code_cell(source) for source in cells]
        notebook = nbformat.v4.new_notebook(cells=code)
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, path)
        self.open_and_run(path.name)

    def open_and_run(self, name: str) -> None:
        """Open a notebook, named from the server's folder, and run it to its end."""
        self.page.set_default_timeout(300_000)  # ms
        self.page.goto(self.address.format(name=name))
        kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
        self.page.wait_for_function(f"{kernel}?.status === 'idle'")
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.set_default_timeout(60_000)
        if errors := self.errors():
            raise RuntimeError("\n".join(errors))

    def errors(self) -> list[str]:
        """Errors and warnings of cells."""
        outputs = self.page.locator("[data-mime-type$='.error'], [data-mime-type$='.stderr']")
        return outputs.all_text_contents()

    def explorers(self, count: int) -> list:
        """The outputs with a picture, when there are `count` of them."""
        outputs = self.page.locator(".jp-OutputArea-output:has(.widget-image)")
        outputs.nth(count - 1).wait_for()
        return outputs.all()

    def watch(self, explorer) -> None:
        """Note in window.waits the milliseconds from a key or click to the new picture."""
        explorer.locator("img.widget-image").evaluate("""img => {
            Object.assign(window, {waits: [], since: null})
            const start = () => { window.since ??= performance.now() }
            document.addEventListener('keydown', start, true)
            document.addEventListener('click', start, true)
            img.onload = () => requestAnimationFrame(() => {
                window.waits.push(performance.now() - window.since)
                window.since = null
            })
        }""")

    def wait_for_picture(self, act: Callable[[], None]) -> float:
        """Milliseconds from act(), a key or click, to the new picture; TimeoutError without one."""
        before = self.page.evaluate("window.since = null, window.waits.length")
        act()
        self.page.wait_for_function("n => window.waits.length > n", arg=before)
        return self.page.evaluate("n => window.waits[n]", before)

    def move_every_slider(self, explorer, times: int) -> list[float]:
        """Move each handle of each slider to and fro with the arrow keys, and give the waits."""
        self.watch(explorer)
        waits = []
        for handle in explorer.locator(".noUi-handle").all():
            handle.focus()
            at_the_end = handle.evaluate("one => one.ariaValueNow === one.ariaValueMax")
            keys = ["ArrowLeft", "ArrowRight"] if at_the_end else ["ArrowRight", "ArrowLeft"]
            for key in (keys * times)[:times]:
                waits.append(self.wait_for_picture(partial(self.page.keyboard.press, key)))
        return waits


@contextlib.contextmanager
def open_lab(folder: Path, module: str = "jupyterlab") -> Iterator[Lab]:
    """JupyterLab or Notebook on a folder, in a browser. Its kernels find our modules."""
    config = folder / ".config"  # the user's own stays untouched
    runtime = folder / ".runtime"
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, content in settings.items():
        path = config / f"lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    places = {"JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(runtime)}
    environment = os.environ | places | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1"]
    command = [sys.executable, "-m", module, *options, f"--ServerApp.root_dir={folder}"]
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        while not list(runtime.glob("jpserver-*-open.html")):  # the last file that it writes
            if server.poll() is not None:
                raise RuntimeError(f"The server did not start: python -m {module} says why.")
            time.sleep(0.2)
        info = json.loads(next(runtime.glob("jpserver-*.json")).read_text())
        address = f"{info['url']}{PAGES[module]}/{{name}}?reset&token={info['token']}"
        yield Lab(stack.enter_context(open_page()), address)


# ── The explorers of the notebooks ──────────────────────────────────────────────────────────────

SETUP = """import vae_helpers as vae
from support import runs, sliders
cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
def load(name):
    return vae.load_checkpoint(runs.RELEASED / name)[0]"""

# Title of its row in docs/speed.md → name of its screenshot, and the cell that shows it.
EXPLORERS = {
    "a walk between two images of CIFAR-10": (
        "interpolation",
        'sliders.explore_interpolation(load("cifar10_best"), cifar, 12, 37)',
    ),
    "the same images through four models": (
        "models",
        """models = {"conv": "conv", "fc, same size": "fc", "fc, 3x": "fc3x"}
betas = {"β = 0": "conv_beta0", "β = 0.1": "conv_beta0.1", "β = 1": "conv", "β = 4": "conv_beta4"}
sliders.explore_models({title: load(f"cifar10_{name}") for title, name in models.items()}, cifar,
                       {title: load(f"cifar10_{name}") for title, name in betas.items()})""",
    ),
    "faces from a region": ("region", 'sliders.explore_region(load("celeba_conv"), faces)'),
    "the dimensions of a face": (
        "dimensions",
        """model = load("celeba_conv")
mu, _ = vae.encode_images(model, faces.train.images)
directions = {}
for name in ("Smiling", "Eyeglasses", "Blond_Hair", "Male"):
    has_attribute = faces.train.labels[:, faces.label_names.index(name)]
    directions[name] = vae.attribute_direction(mu, has_attribute)
sliders.explore_dimensions(model, faces, directions)""",
    ),
    "for comparison: two ready pictures, nothing computed": (
        None,
        """import ipywidgets
walks = [sliders.explore_interpolation(load("cifar10_conv"), cifar, 12, b) for b in (37, 38)]
pictures = [walk.screen.value for walk in walks]
slider = ipywidgets.IntSlider(50, description="swap")
screen = ipywidgets.Image(format="jpeg")
slider.observe(lambda change: setattr(screen, "value", pictures[change["new"] % 2]), "value")
ipywidgets.VBox([slider, screen])""",
    ),
}


def summary(waits: list[float]) -> dict:
    return {"moves": len(waits), "median_ms": statistics.median(waits), "worst_ms": max(waits)}


def measure_explorers() -> dict[str, dict]:
    """The waits of each explorer, by title; draws figures/widget_*.jpg."""
    numbers = {}
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder)) as lab:
        cells = [cell for _, cell in EXPLORERS.values()]
        lab.run_all(Path(folder) / "explorers.ipynb", [SETUP, *cells])
        for (title, (name, _)), explorer in zip(EXPLORERS.items(), lab.explorers(len(EXPLORERS))):
            numbers[title] = summary(lab.move_every_slider(explorer, times=10))
            print(title, numbers[title], flush=True)
            if name:
                explorer.screenshot(path=FIGURES / f"widget_{name}.jpg", quality=85)
    return numbers


# ── The page ────────────────────────────────────────────────────────────────────────────────────

# Title of its row in docs/speed.md → data set of Task 2, slider, the canvas it draws on.
SLIDERS = {
    "β of CIFAR-10": ("cifar10", "one.beta", "one.beta.canvas"),
    "position between two images of CIFAR-10": ("cifar10", "two.t", "two.latent.canvas"),
    "position between two faces": ("celeba", "two.t", "two.latent.canvas"),
    "smile of a face": ("celeba", "three.Smiling", "portrait.canvas"),
}
QUIET = "!working && grid.every(button => button.firstChild.pixels)"


def load_page(page) -> None:
    page.goto("about:blank")
    page.goto(webpage.PAGE.as_uri())
    page.wait_for_function("typeof one === 'object' && typeof grid === 'object'")
    page.wait_for_function(f"one.conv.canvas.drawn && {QUIET}")


def latencies(page, name: str, canvas: str) -> list[float]:
    """Move a slider to and fro with the arrow keys: milliseconds from event to picture."""
    page.evaluate("""document.addEventListener('input', event => {
        window.since = event.timeStamp }, true)""")
    page.locator(f'input[name="{name}"]').focus()
    waits = []
    for key in ["ArrowRight", "ArrowLeft"] * 20:
        page.wait_for_function(QUIET)
        page.evaluate("window.since = Infinity")
        page.keyboard.press(key)
        page.wait_for_function(f"{canvas}.drawn > window.since")
        waits.append(page.evaluate(f"{canvas}.drawn - window.since"))
    return waits


def measure_page() -> dict[str, dict]:
    """The waits of each slider, by title; draws figures/page.gif."""
    with open_page(height=900) as page:
        first = []
        for _ in range(5):
            load_page(page)
            first.append(page.evaluate("one.conv.canvas.drawn"))
        numbers = {"the first picture, from the start of loading": summary(first)}
        page.wait_for_timeout(3000)  # until the networks of the other β are read
        for title, (images, name, canvas) in SLIDERS.items():
            page.locator(f'input[name="two.set"][value="{images}"]').check()
            page.wait_for_function(QUIET)
            numbers[title] = summary(latencies(page, name, canvas))
            print(title, numbers[title], flush=True)
        film_face(page)
    return numbers


def film_face(page) -> None:
    """figures/page.gif: the sliders of one face move."""
    page.set_viewport_size({"width": 1000, "height": 900})
    page.locator("#dimensions").evaluate("part => part.style.display = 'none'")
    page.locator("#face").evaluate("part => part.style.padding = '10px'")  # a border in the film
    frames = []
    for name in ("Smiling", "Male", "Blond_Hair"):
        for value in (0.5, 1, 1.5, 2, 2, 1, 0):
            page.locator(f'input[name="three.{name}"]').evaluate(
                """(slider, value) => {
                    slider.value = value
                    slider.dispatchEvent(new Event('input', {bubbles: true}))
                }""",
                value,
            )
            page.wait_for_function(QUIET)
            shot = Image.open(io.BytesIO(page.locator("#face").screenshot()))
            frames.append(shot.convert("RGB").resize((shot.width * 2 // 3, shot.height * 2 // 3)))
    options = {"save_all": True, "append_images": frames[1:], "duration": 250, "loop": 0}
    frames[0].save(FIGURES / "page.gif", **options)


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    machine = f"{hardware.hardware()}, {os.cpu_count()} cores"
    for name in chosen(__doc__, ("explorers", "page")):
        waits = measure_page() if name == "page" else measure_explorers()
        path = FIGURES / ("page.json" if name == "page" else "widgets.json")
        vae.write_json(path, {"hardware": machine, "waits": waits})


if __name__ == "__main__":
    runs.run_script(main)
