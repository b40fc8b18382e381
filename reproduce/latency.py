"""How fast the sliders answer in a browser, in JupyterLab and on the page, and their pictures.

    python -m reproduce.latency explorers    JupyterLab: needs the real data; some five minutes
    python -m reproduce.latency page         docs/index.html: needs no data; two minutes

Both need Chromium (apt-get install chromium), which Playwright drives. They move the sliders by
keyboard, and write the milliseconds from a key to the new picture on the screen to
figures/widgets.json and page.json, and figures/widget_*.jpg, page.gif and page_faces.gif. For the
page also how fast its VAE learns, how many frames a second are drawn meanwhile, and both without
WebAssembly. The explorers' "nothing computed" is a slider that only swaps two ready pictures, which
is what JupyterLab and the browser take by themselves. tests/test_browser.py and
tests/front_ends.py use the same driver.
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

# Title of its row in docs/speed.md → name of its screenshot, if it has one, and the cell that
# shows it.
EXPLORERS = {
    "a walk between two images of CIFAR-10": (
        "interpolation",
        'sliders.explore_interpolation(load("cifar10_best"), cifar, 12, 37)',
    ),
    "the same images through four models": (
        None,
        """models = {"conv": "conv", "fc, same size": "fc", "fc, 3x": "fc3x"}
betas = {"β = 0": "conv_beta0", "β = 0.1": "conv_beta0.1", "β = 1": "conv", "β = 4": "conv_beta4"}
sliders.explore_models({title: load(f"cifar10_{name}") for title, name in models.items()}, cifar,
                       {title: load(f"cifar10_{name}") for title, name in betas.items()})""",
    ),
    "faces from a region": ("region", 'sliders.explore_region(load("celeba_conv"), faces)'),
    "the dimensions of a face": (
        None,
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

# Title of its row in docs/speed.md → part of the page, a radio button to choose first, slider, and
# the canvas that changes last.
SLIDERS = {
    "position between two images of CIFAR-10": (
        "morph", 'name="morph.set"][value="cifar10"', "morph.t", "morph.latent.canvas"),
    "position between two faces": (
        "morph", 'name="morph.set"][value="celeba"', "morph.t", "morph.latent.canvas"),
    "temperature: a new face, with guidance": (
        "faces", 'name="wish.Smiling"][value="yes"', "faces.temperature", "$('#portrait')"),
    "temperature: ten new pictures of CIFAR-10, with guidance": (
        "classes", None, "classes.temperature", "classButtons[9]"),
}  # fmt: skip
FIRST = "the first picture, from the start of loading"
SECONDS = 5  # of training that are timed


def load_page(page, search: str = "") -> float:
    """Milliseconds until the first picture."""
    page.goto("about:blank")
    page.goto(webpage.PAGE.as_uri() + search, wait_until="commit")
    page.wait_for_function("typeof lesson === 'object' && lesson.firstPainted")
    return page.evaluate("lesson.firstPainted")


def latencies(page, name: str, canvas: str, moves: int) -> list[float]:
    """Move a slider to and fro with the arrow keys: milliseconds from event to picture."""
    page.evaluate("""document.addEventListener('input', event => {
        window.since = event.timeStamp }, true)""")
    page.locator(f'input[name="{name}"]').focus()
    waits = []
    for number in range(moves):
        page.wait_for_function("isQuiet()")
        page.evaluate("window.since = Infinity")
        page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_function(f"{canvas}.drawn > window.since")
        waits.append(page.evaluate(f"{canvas}.drawn - window.since"))
    return waits


def training_speed(page) -> dict[str, float]:
    """Of the VAE that learns: images a second, and frames a second while it does."""
    page.evaluate("setRunning(true)")
    page.wait_for_function("lesson.steps > 50")
    steps, frames = page.evaluate(
        """async seconds => {
            const [began, before] = [performance.now(), lesson.steps];
            let frames = 0;
            while (performance.now() - began < 1000 * seconds) {
                await nextFrame();
                frames += 1;
            }
            return [lesson.steps - before, frames];
        }""",
        SECONDS,
    )
    page.evaluate("setRunning(false)")
    batch = 64  # BATCH of support/page/learn_model.js
    return {"images_per_s": batch * steps / SECONDS, "frames_per_s": frames / SECONDS}


def measure_page(moves: int = 40) -> dict[str, dict]:
    """Waits and the speed of training, each by title; draws the two films of the page."""
    with open_page(height=900) as page:
        page.emulate_media(reduced_motion="reduce")  # nothing runs that was not asked for
        waits = {FIRST: summary([load_page(page) for _ in range(5)])}
        training = {}
        for engine, search in (("JavaScript", "?javascript"), ("WebAssembly", "")):
            load_page(page, search)
            page.emulate_media(reduced_motion="no-preference")
            training[engine] = training_speed(page)
            page.emulate_media(reduced_motion="reduce")
            print(engine, training[engine], flush=True)
        for title, (part, choice, name, canvas) in SLIDERS.items():
            page.locator(f"#part-{part}").scroll_into_view_if_needed()
            page.wait_for_function(f"{canvas}.drawn && isQuiet()")
            if choice:
                page.locator(f"input[{choice}]").check(force=True)
            waits[title] = summary(latencies(page, name, canvas, moves))
            print(title, waits[title], flush=True)
        film_learning(page)
        film_face(page)
    return {"waits": waits, "training": training}


def screenshot(page, selector: str, width: int, above: str | None = None) -> Image.Image:
    """What an element shows, or the part of it that begins where another one does."""
    shot = Image.open(io.BytesIO(page.locator(selector).screenshot()))
    if above:
        tops = [page.locator(one).bounding_box()["y"] for one in (selector, above)]
        shot = shot.crop((0, round(tops[1] - tops[0]), *shot.size))
    height = round(shot.height * width / shot.width)
    return shot.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def save_film(frames: list[Image.Image], name: str, duration: list[int]) -> None:
    some = frames[:: max(1, len(frames) // 12)]
    montage = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for i, frame in enumerate(some):
        montage.paste(frame, (0, i * frame.height))
    colours = montage.quantize(255)  # one palette, so that what stands still costs nothing
    frames = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0}
    frames[0].save(FIGURES / name, **options)


def film_learning(page) -> None:
    """figures/page.gif: a VAE learns, collapses at β = 100, and comes back at β = 1."""
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("#part-learn").scroll_into_view_if_needed()
    page.evaluate("set({'learn.seed': 3, 'learn.beta': betaIndex(1)})")
    page.wait_for_function("lesson.steps === 0")
    # Between two pictures it stands still; what is said is that of a network that learns.
    page.evaluate("""() => {
        const said = whatHappens;
        window.whatHappens = () => {
            lesson.running = true;
            const text = said();
            lesson.running = false;
            return text } }""")
    frames = []
    for beta, number, count in ((1, 14, 30), (100, 5, 80), (1, 9, 60)):
        page.evaluate("beta => set({'learn.beta': betaIndex(beta)})", beta)
        for _ in range(number):
            page.evaluate("count => learnSteps(count)", count)
            page.evaluate("nextFrame().then(nextFrame)")
            frames.append(screenshot(page, "#part-learn", 720, above="#part-learn .toolbar"))
    save_film(frames, "page.gif", [180] * (len(frames) - 1) + [2000])


def film_face(page) -> None:
    """figures/page_faces.gif: a face appears place after place, then another one."""
    page.locator("#part-faces").scroll_into_view_if_needed()
    page.wait_for_function("face.code && isQuiet()")
    page.evaluate("set({...initial, 'wish.Smiling': 'yes'})")
    frames, duration = [], []
    for seed in (4, 7, 9):
        page.wait_for_function("isQuiet()")
        page.evaluate(
            """async seed => {
                const { condition, without } = await conditionOf(seed);
                const images = [{ condition, without, seed }];
                window.film = drawWithPrior(images, drawingSettings(), async now => {
                    if (now.pictures) showFace(now.pictures[0]);
                    mark(now.next);
                    window.waits = true;
                    await new Promise(resolve => { window.goOn = resolve });
                    window.waits = false;
                    return now.next < FIRST_PLACE ? FIRST_PLACE - now.next : 2;
                }).then(done => { showFace(done.pictures[0]); mark(-1); window.waits = true });
            }""",
            seed,
        )
        for number in range(34):
            page.wait_for_function("window.waits")
            if number:
                frames.append(screenshot(page, "#portrait-frame", 320))
                duration.append(500 if number == 1 else 70)
            page.evaluate("window.waits = false; window.goOn()")
        page.evaluate("window.film")
        frames.append(screenshot(page, "#portrait-frame", 320))
        duration.append(1500)
    save_film(frames, "page_faces.gif", duration)


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    machine = f"{hardware.hardware()}, {os.cpu_count()} cores"
    for name in chosen(__doc__, ("explorers", "page")):
        numbers = measure_page() if name == "page" else {"waits": measure_explorers()}
        path = FIGURES / ("page.json" if name == "page" else "widgets.json")
        vae.write_json(path, {"hardware": machine} | numbers)


if __name__ == "__main__":
    runs.run_script(main)
