"""The explorers in a real browser: JupyterLab on this machine, driven in Chromium by Playwright.

    python figures/widgets.py    needs the real data, and Chromium (apt-get install chromium)

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
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
import vae_helpers as vae  # noqa: E402
from support import hardware, runs  # noqa: E402

BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, BROWSERS), None)

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
    "interpolation": """sliders.explore_interpolation(load("cifar10_conv"), cifar, 12, 37)""",
    "region": """sliders.explore_region(load("celeba_conv"), faces)""",
    "dimensions": """model = load("celeba_conv")
mu, _ = vae.encode_images(model, faces.train.images)
directions = {}
for name in ("Smiling", "Eyeglasses", "Blond_Hair", "Male"):
    has_attribute = faces.train.labels[:, faces.label_names.index(name)]
    directions[name] = vae.attribute_direction(mu, has_attribute)
sliders.explore_dimensions(model, faces, directions)""",
    "floor": """import ipywidgets
explorer = sliders.explore_interpolation(load("cifar10_conv"), cifar, 12, 37)
pictures = [explorer.screen.value]
explorer.controls["position"].value = 100
pictures.append(explorer.screen.value)
slider = ipywidgets.IntSlider(50, description="swap")
screen = ipywidgets.Image(format="jpeg")
slider.observe(lambda change: setattr(screen, "value", pictures[change["new"] % 2]), "value")
ipywidgets.VBox([slider, screen])""",
}


class Lab:
    """A page of JupyterLab. `problems` collects what the browser complains about."""

    def __init__(self, page, url: str, token: str):
        self.page, self.url, self.token = page, url, token
        self.problems = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._listen)

    def _listen(self, message) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def run_all(self, path: Path, cells: list[str]) -> None:
        """Write a notebook of these cells, open it, and run it to its end."""
        code = [nbformat.v4.new_code_cell(source) for source in cells]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)
        self.page.set_default_timeout(300_000)  # ms
        self.page.goto(f"{self.url}lab/tree/{path.name}?reset&token={self.token}")
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
            " === 'idle'"
        )
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.set_default_timeout(30_000)
        if errors := self.errors():
            raise RuntimeError("\n".join(errors))

    def errors(self) -> list[str]:
        """Errors and warnings of cells, and complaints of the browser."""
        kinds = [f"[data-mime-type='application/vnd.jupyter.{k}']" for k in ("error", "stderr")]
        return self.page.locator(", ".join(kinds)).all_text_contents() + self.problems

    def explorers(self, count: int) -> list:
        """The outputs with a picture, when there are `count` of them."""
        outputs = self.page.locator(".jp-OutputArea-output:has(.widget-image)")
        outputs.nth(count - 1).wait_for()
        return outputs.all()

    def watch(self, explorer) -> None:
        """Note in window.waits the milliseconds from a key or click to the new picture."""
        explorer.locator("img.widget-image").evaluate("""img => {
            window.waits = []
            window.since = null
            const start = () => { window.since ??= performance.now() }
            for (const event of ['keydown', 'click']) document.addEventListener(event, start, true)
            img.onload = () => requestAnimationFrame(() => {
                window.waits.push(performance.now() - window.since)
                window.since = null
            })
        }""")

    def wait_for_picture(self, act: Callable[[], None]) -> float:
        """Milliseconds from act(), a key or a click, until the picture has changed.

        Raises Playwright's TimeoutError when it does not change.
        """
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
            value, end = (float(handle.get_attribute(f"aria-value{k}")) for k in ("now", "max"))
            keys = ["ArrowLeft", "ArrowRight"] if value == end else ["ArrowRight", "ArrowLeft"]
            for move in range(times):
                key = keys[move % 2]
                waits.append(self.wait_for_picture(lambda key=key: self.page.keyboard.press(key)))
        return waits


@contextlib.contextmanager
def open_lab(folder: Path, **environment: str) -> Iterator[Lab]:
    """JupyterLab on a folder, in a browser, with its own settings. The kernel finds our modules."""
    from playwright.sync_api import sync_playwright

    home = folder / ".home"
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, content in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    for name in ("settings", "workspaces"):
        places[f"JUPYTERLAB_{name.upper()}_DIR"] = str(home / name)
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1"]
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
            env={**os.environ, **places, "PYTHONPATH": str(ROOT), **environment},
            stderr=subprocess.DEVNULL,
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        while not (files := list((home / "RUNTIME").glob("jpserver-*.json"))):
            if server.poll() is not None:
                raise RuntimeError("JupyterLab did not start: python -m jupyterlab says why.")
            time.sleep(0.2)
        info = json.loads(files[0].read_text())
        chromium = stack.enter_context(sync_playwright()).chromium
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = chromium.launch(executable_path=CHROMIUM, args=arguments)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        yield Lab(page, info["url"], info["token"])


def main() -> None:
    numbers = {"hardware": f"{hardware.hardware()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder)) as lab:
        lab.run_all(Path(folder) / "widgets.ipynb", [SETUP, *CELLS.values()])
        for name, explorer in zip(CELLS, lab.explorers(len(CELLS))):
            waits = lab.move_every_slider(explorer, times=10)
            median, worst = statistics.median(waits), max(waits)
            numbers[name] = {"moves": len(waits), "median_ms": median, "worst_ms": worst}
            print(f"{name:14} {len(waits):4} moves, median {median:5.1f}, worst {worst:5.1f} ms")
            if name != "floor":
                explorer.screenshot(path=HERE / f"widget_{name}.jpg", quality=85)
    vae.write_json(HERE / "widgets.json", numbers)


if __name__ == "__main__":
    runs.run_script(main)
