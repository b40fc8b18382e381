"""The explorers in a real browser: JupyterLab on this machine, driven in Chromium by Playwright.

    python -m reproduce.widgets    needs the real data, and Chromium (apt-get install chromium)

shows the four explorers with the released weights, moves every slider by keyboard, and writes
figures/widget_*.jpg and figures/widgets.json: the milliseconds from a key to the new picture on the
screen. Its "floor" is a slider that only swaps two ready pictures, which is what JupyterLab and the
browser take by themselves. tests/test_browser.py uses the same driver.
"""

from __future__ import annotations

import contextlib
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

import vae_helpers as vae
from base import hardware
from base.files import ROOT
from support import runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

SETUP = """import vae_helpers as vae
from support import runs, sliders
cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
def load(name):
    return vae.load_checkpoint(runs.RELEASED / name)[0]"""

CELLS = {
    "models": """models = {"conv": "conv", "fc, same size": "fc", "fc, 3x": "fc3x"}
betas = {"β = 0": "conv_beta0", "β = 0.1": "conv_beta0.1", "β = 1": "conv", "β = 4": "conv_beta4"}
sliders.explore_models({title: load(f"cifar10_{name}") for title, name in models.items()}, cifar,
                       {title: load(f"cifar10_{name}") for title, name in betas.items()})""",
    "interpolation": 'sliders.explore_interpolation(load("cifar10_best"), cifar, 12, 37)',
    "region": 'sliders.explore_region(load("celeba_conv"), faces)',
    "dimensions": """model = load("celeba_conv")
mu, _ = vae.encode_images(model, faces.train.images)
directions = {}
for name in ("Smiling", "Eyeglasses", "Blond_Hair", "Male"):
    has_attribute = faces.train.labels[:, faces.label_names.index(name)]
    directions[name] = vae.attribute_direction(mu, has_attribute)
sliders.explore_dimensions(model, faces, directions)""",
    "floor": """import ipywidgets
walks = [sliders.explore_interpolation(load("cifar10_conv"), cifar, 12, b) for b in (37, 38)]
pictures = [walk.screen.value for walk in walks]
slider = ipywidgets.IntSlider(50, description="swap")
screen = ipywidgets.Image(format="jpeg")
slider.observe(lambda change: setattr(screen, "value", pictures[change["new"] % 2]), "value")
ipywidgets.VBox([slider, screen])""",
}


PAGES = {"jupyterlab": "lab/tree", "notebook": "notebooks"}  # module of the server → its address


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


@contextlib.contextmanager
def open_page() -> Iterator:
    """An empty page of Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()


def main() -> None:
    numbers = {"hardware": f"{hardware.hardware()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder)) as lab:
        lab.run_all(Path(folder) / "widgets.ipynb", [SETUP, *CELLS.values()])
        for name, explorer in zip(CELLS, lab.explorers(len(CELLS))):
            waits = lab.move_every_slider(explorer, times=10)
            median, worst = statistics.median(waits), max(waits)
            numbers[name] = {"moves": len(waits), "median_ms": median, "worst_ms": worst}
            print(name, numbers[name])
            if name != "floor":
                explorer.screenshot(path=ROOT / "figures" / f"widget_{name}.jpg", quality=85)
    vae.write_json(ROOT / "figures" / "widgets.json", numbers)


if __name__ == "__main__":
    runs.run_script(main)
