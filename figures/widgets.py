"""The widgets in a real browser: JupyterLab on this machine, driven in Chromium by Playwright.

    python figures/widgets.py    needs the real data, and Chromium (on Debian: apt-get install chromium); about two minutes

shows the four explorers with the released weights, moves every slider by keyboard, and writes figures/widget_*.jpg and
figures/widgets.json: the milliseconds from a key to the new picture on the screen, which figures/make.py --texts fills into
README.md; "floor" is a slider that only swaps two ready pictures, which is what JupyterLab and the browser take by themselves.
tests/test_browser.py opens the notebooks themselves with what stands here.
"""
from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import vae_helpers as vae  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDGETS = ".jp-OutputArea-output:has(.widget-image)"   # where one explorer shows itself

CELLS = {"models": """names = {"conv": "conv", "fc": "fc, same size", "fc3x": "fc, 3x"}
betas = {"β = 0": "conv_beta0", "β = 0.1": "conv_beta0.1", "β = 1": "conv", "β = 4": "conv_beta4"}
load = lambda name: vae.load_checkpoint(vae.RELEASED / name)[0]
cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
vae.explore_models({title: load(f"cifar10_{name}") for name, title in names.items()}, cifar,
                   {title: load(f"cifar10_{name}") for title, name in betas.items()})""",
         "interpolation": """vae.explore_interpolation(load("cifar10_conv"), cifar, 12, 37)""",
         "region": """plain = load("celeba_conv")
vae.explore_region(plain, faces)""",
         "dimensions": """mu = vae.encode_images(plain, faces.train.images)[0]
has = lambda name: faces.train.labels[:, faces.label_names.index(name)]
vae.explore_dimensions(plain, faces, {name: vae.attribute_direction(mu, has(name)) for name in ("Smiling", "Eyeglasses", "Blond_Hair", "Male")})""",
         "floor": """import ipywidgets   # no model, nothing drawn: two ready pictures in turn
walk = vae.explore_interpolation(load("cifar10_conv"), cifar, 12, 37)
ready = [walk.screen.value, walk.set(position=100) or walk.screen.value]
slider, screen = ipywidgets.IntSlider(50, description="swap"), ipywidgets.Image(format="jpeg")
slider.observe(lambda change: setattr(screen, "value", ready[change["new"] % 2]), "value")
ipywidgets.VBox([slider, screen])"""}


class Lab:
    """JupyterLab on a folder, in a browser. Use it in a with statement; problems collects what the browser complains about."""

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.environment, self.problems = folder, environment, []

    def __enter__(self) -> Lab:
        from playwright.sync_api import sync_playwright
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.token = secrets.token_hex()   # other users of this machine have no business in there
        self.address, self.home = f"http://127.0.0.1:{port}", Path(tempfile.mkdtemp())   # the user's own settings stay out of it
        wanted = {"notebook-extension/tracker": {"windowingMode": "none"},               # all cells are in the page
                  "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}
        for name, settings in wanted.items():
            path = self.home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        places = {f"JUPYTER_{name}_DIR": str(self.home / name) for name in ("CONFIG", "DATA", "RUNTIME")} | {
            "JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces")}
        self.log = (self.home / "log").open("w")
        self.server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}", "--ip=127.0.0.1",
             f"--ServerApp.root_dir={self.folder}"],
            env={**os.environ, **places, "JUPYTER_TOKEN": self.token, **self.environment}, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self._wait_for_server()
            self.playwright = sync_playwright().start()
            self.browser = self.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            self.page = self.browser.new_page(viewport={"width": 1280, "height": 1000})
        except BaseException:
            self.__exit__()
            raise
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        return self

    def _wait_for_server(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.address}/api/status?token={self.token}", timeout=5).close()
                return
            except OSError:
                if self.server.poll() is not None:
                    break
                time.sleep(0.5)
        raise RuntimeError(f"JupyterLab did not start:\n{Path(self.log.name).read_text()[-2000:]}")

    def __exit__(self, *_) -> None:
        with contextlib.ExitStack() as last_first:   # whatever fails, nothing is left running
            last_first.callback(shutil.rmtree, self.home, ignore_errors=True)
            last_first.callback(self.log.close)
            last_first.callback(self._stop_server)
            for name, method in (("playwright", "stop"), ("browser", "close")):
                if hasattr(self, name):
                    last_first.callback(getattr(getattr(self, name), method))

    def _stop_server(self) -> None:
        self.server.terminate()
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            self.server.kill()

    def run_all(self, name: str, timeout: float = 300) -> None:
        """Open a notebook and run all its cells; returns when the last one is done."""
        self.page.goto(f"{self.address}/lab/tree/{name}?reset&token={self.token}", wait_until="domcontentloaded", timeout=300_000)
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=300_000)
        self.page.set_default_timeout(timeout * 1000)
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")   # waits for the last cell
        self.page.set_default_timeout(30_000)

    def run_again(self, explorer: int) -> None:
        """Run the cell of an explorer a second time."""
        self.page.evaluate("""async n => {
            const notebook = window.jupyterapp.shell.currentWidget.content
            const cells = notebook.widgets.filter(cell => cell.node.querySelector('.widget-image'))
            notebook.activeCellIndex = notebook.widgets.indexOf(cells[n])
            await window.jupyterapp.commands.execute('notebook:run-cell')
        }""", explorer)
        self.page.wait_for_timeout(1000)

    def errors(self) -> list[str]:
        """What cells wrote as errors or warnings, and what the browser complained about."""
        return self.page.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']").all_text_contents() + self.problems

    def explorers(self) -> list:
        return self.page.locator(WIDGETS).all()

    def watch(self, explorer) -> None:
        """From now on the page notes the milliseconds from a key or click to the new picture, in window.waits."""
        explorer.locator("img.widget-image").evaluate("""img => {
            window.waits = []
            window.since = null
            for (const event of ['keydown', 'click']) document.addEventListener(event, () => { window.since ??= performance.now() }, true)
            img.onload = () => requestAnimationFrame(() => { window.waits.push(performance.now() - window.since); window.since = null })
        }""")

    def waits_for(self, act) -> float:
        """Milliseconds until the picture changed after act(), a key or a click. Raises TimeoutError of Playwright when it does not."""
        before = self.page.evaluate("window.since = null, window.waits.length")
        act()
        self.page.wait_for_function("n => window.waits.length > n", arg=before)
        return self.page.evaluate("n => window.waits[n]", before)

    def move_every_slider(self, explorer, times: int = 3) -> dict[str, list[float]]:
        """Move each handle of each slider to and fro with the arrow keys → milliseconds until the picture had changed."""
        found = {}
        self.watch(explorer)
        for slider in explorer.locator(".widget-slider, .widget-hslider").all():
            name = slider.locator(".widget-label").inner_text()
            for handle in slider.locator(".noUi-handle").all():
                handle.focus()
                first = "ArrowRight" if float(handle.get_attribute("aria-valuenow")) < float(handle.get_attribute("aria-valuemax")) else "ArrowLeft"
                back = {"ArrowRight": "ArrowLeft", "ArrowLeft": "ArrowRight"}[first]
                found.setdefault(name, []).extend(self.waits_for(lambda: self.page.keyboard.press(key)) for key in ([first, back] * times)[:times])   # noqa: B023
        return found

    def cut_labels(self, explorer) -> list[str]:
        """Labels and buttons that do not fit where they stand."""
        return explorer.locator(".widget-label, .widget-button, .widget-toggle-button").evaluate_all(
            "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)")


def copy_notebooks(folder: Path) -> Path:
    """A folder in which notebooks can be run and saved without touching the repository's: copies, beside a link to the module."""
    (folder / "notebooks").mkdir()
    (folder / "vae_helpers.py").symlink_to(HERE.parent / "vae_helpers.py")
    for path in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    return folder


def main() -> None:
    setup = nbformat.read(next((HERE.parent / "notebooks").glob("Task1*")), 4).cells
    setup = next(cell.source for cell in setup if cell.cell_type == "code")
    latency = {}
    with tempfile.TemporaryDirectory() as folder:
        copy_notebooks(Path(folder))
        cells = [nbformat.v4.new_code_cell(source) for source in (setup, *CELLS.values())]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}),
                       Path(folder) / "notebooks" / "widgets.ipynb")
        with Lab(Path(folder)) as lab:
            lab.run_all("notebooks/widgets.ipynb")
            for name, explorer in zip(CELLS, lab.explorers(), strict=True):
                latency[name] = lab.move_every_slider(explorer, times=10)
                every = [ms for found in latency[name].values() for ms in found]
                print(f"{name:14} {len(every):4} moves, median {statistics.median(every):5.1f} ms, worst {max(every):5.1f} ms")
                if name != "floor":
                    explorer.screenshot(path=HERE / f"widget_{name}.jpg", quality=85)
            if errors := lab.errors():
                raise RuntimeError("\n".join(errors))
    numbers = {"hardware": f"{vae.hardware()}, {os.cpu_count()} cores"}
    for name, found in latency.items():
        every = [ms for some in found.values() for ms in some]
        numbers[name] = {"moves": len(every), "median_ms": statistics.median(every), "worst_ms": max(every)}
    vae.write_json(HERE / "widgets.json", numbers)


if __name__ == "__main__":
    vae.run_script(main)
