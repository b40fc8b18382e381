"""Task 2 in the front ends that people open it in, as a user opens it: python tests/front_ends.py

    python tests/front_ends.py --screenshots FOLDER      all that are installed beside this Python
    python tests/front_ends.py nbclassic colab           these only

The whole notebook is run. In a browser its explorer has to appear, and each slider has to change
the picture. Nothing may print an error or a warning. It runs under VAE_FAST=1 on drawn shapes.
Prints the rows of docs/front-ends.md, and ends with 1 when one that is installed does not work.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import nbformat
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from reproduce import latency  # noqa: E402

NOTEBOOK = "notebooks/Task2_Latent_Interpolation.ipynb"
DONE = "notebooks/done.ipynb"
# Errors, and what is printed to stderr; the second pair is of the classic notebook.
ERRORS = "[data-mime-type$='.error'], [data-mime-type$='.stderr'], .output_error, .output_stderr"
WAIT = 600_000  # ms for the cells above the explorer
COLAB = """import sys, types
output = types.SimpleNamespace(enable_custom_widget_manager=lambda: print("widget manager on"))
sys.modules["google.colab"] = types.SimpleNamespace(output=output)
sys.modules.setdefault("google", types.ModuleType("google")).colab = sys.modules["google.colab"]
"""


def move_sliders(page, front_end: str, screenshots: Path | None) -> str:
    """Move each slider of the explorer by an arrow key and by mouse, and say what was seen."""
    picture = page.locator("img.widget-image")
    picture.wait_for(timeout=WAIT)
    handles = page.locator(".widget-slider .noUi-handle, .widget-slider .ui-slider-handle").all()

    def changes(handle, move) -> bool:
        before = picture.get_attribute("src")
        move(handle)
        try:
            expect(picture).not_to_have_attribute("src", before, timeout=30_000)
        except AssertionError:
            return False
        page.wait_for_timeout(3_000)  # a drag draws several pictures
        return True

    def press(handle) -> None:
        handle.focus()
        page.keyboard.press("ArrowRight")

    def drag(handle) -> None:
        handle.hover()
        page.mouse.down()
        place = handle.bounding_box()
        page.mouse.move(place["x"] + 40, place["y"] + place["height"] / 2, steps=4)
        page.mouse.up()

    keys = sum(changes(handle, press) for handle in handles)
    drags = sum(changes(handle, drag) for handle in handles)
    picture.scroll_into_view_if_needed()
    if screenshots:
        page.screenshot(path=screenshots / f"{front_end}.png")
    errors = page.locator(ERRORS).all_text_contents()
    seen = f"of {len(handles)} sliders the mouse moved {drags}, arrow keys {keys}"
    # Notebook 7 keeps arrow keys for itself (jupyter/notebook, issue 7716).
    working = drags if front_end == "notebook" else min(drags, keys)
    if errors or not handles or working < len(handles):
        raise RuntimeError(f"{seen}; errors: {errors}")
    return f"{seen}; no error"


@contextlib.contextmanager
def lab(folder: Path, module: str = "jupyterlab") -> Iterator:
    """Like those below a page on which the notebook runs."""
    with latency.open_lab(folder, module) as opened:
        opened.open_and_run(NOTEBOOK)
        yield opened.page


@contextlib.contextmanager
def nbclassic(folder: Path) -> Iterator:
    options = ["--ServerApp.token=", f"--ServerApp.root_dir={folder}", "--allow-root"]
    with serve("nbclassic", "--no-browser", *options) as url, latency.open_page() as page:
        page.goto(f"{url}nbclassic/notebooks/{NOTEBOOK}")
        page.wait_for_function("window.Jupyter?.notebook?.kernel?.is_connected()", timeout=WAIT)
        page.wait_for_timeout(10_000)  # its widgets first ask the kernel what is there
        page.evaluate("Jupyter.notebook.execute_all_cells()")
        yield page


@contextlib.contextmanager
def serve(module: str, *options: str) -> Iterator[str]:
    """The address of a server, which ends afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, f"--port={port}", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def nbconvert(folder: Path, **variables: str) -> str:
    options = ["--to=notebook", "--execute", "--output=done", NOTEBOOK]
    return execute(folder, "nbconvert", *options, **variables)


def papermill(folder: Path) -> str:
    return execute(folder, "papermill", "--cwd=notebooks", NOTEBOOK, DONE)


def colab(folder: Path) -> str:
    """Colab's versions, and its module google.colab as a stand-in."""
    (folder / "sitecustomize.py").write_text(COLAB)
    seen = nbconvert(folder, PYTHONPATH=str(folder))
    if "widget manager on" not in (folder / DONE).read_text():
        raise RuntimeError("the set-up cell did not turn on Colab's widget manager")
    return f"set-up cell turned on the widget manager (stand-in); {seen}"


def execute(folder: Path, *command: str, **variables: str) -> str:
    options = {"cwd": folder, "env": os.environ | variables, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-m", *command], **options)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    pictures = 0
    for cell in nbformat.read(folder / DONE, 4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                raise RuntimeError(output.get("text") or output.evalue)
            pictures += not {"image/png", "image/jpeg"}.isdisjoint(output.get("data", {}))
    return f"{pictures} pictures, no error"


NOTEBOOK_7 = partial(lab, module="notebook")
IN_A_BROWSER = {"jupyterlab": lab, "notebook": NOTEBOOK_7, "nbclassic": nbclassic}
WITHOUT = {"nbconvert": nbconvert, "papermill": papermill, "colab": colab}
FRONT_ENDS = [*IN_A_BROWSER, *WITHOUT]
VERSIONS = {"colab": ["torch", "numpy", "matplotlib", "ipywidgets"]}  # of the others their own


def try_out(name: str, screenshots: Path | None) -> str:
    """What was seen in one front end. Raises what its driver raises."""
    os.environ |= {"VAE_FAST": "1", "TQDM_DISABLE": "1", "VAE_DEVICE": "cpu"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for place in ("data", "runs", "cache"):
            os.environ[f"VAE_{place.upper()}"] = str(folder / f".{place}")
        os.environ["JUPYTER_CONFIG_DIR"] = str(folder / ".config")
        for part in ("base", "image_data", "vae_helpers.py", "support", "checkpoints"):
            (folder / part).symlink_to(ROOT / part)
        (folder / "notebooks").mkdir()
        shutil.copy(ROOT / NOTEBOOK, folder / NOTEBOOK)
        if name in WITHOUT:
            return WITHOUT[name](folder)
        with IN_A_BROWSER[name](folder) as page:
            return move_sliders(page, name, screenshots)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="FRONT_END", help=", ".join(FRONT_ENDS))
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    broken = False
    print("| front end | versions | seen |\n| :-- | :-- | :-- |")
    for name in options.names or FRONT_ENDS:
        packages = VERSIONS.get(name) or [name, *["ipywidgets"] * (name in IN_A_BROWSER)]
        if not importlib.util.find_spec(packages[0]):
            print(f"| {name} | | skipped: not installed |", flush=True)
            continue
        try:
            seen = try_out(name, options.screenshots)
        except Exception as error:  # drivers raise errors of all kinds
            broken = True
            seen = f"**broken**: {error}"
        versions = ", ".join(f"{package} {version(package)}" for package in packages)
        print(f"| {name} | {versions} | {seen} |", flush=True)
    sys.exit(broken)


if __name__ == "__main__":
    main()
