"""The notebooks in JupyterLab and Chromium: run, move every slider, press every button, and see that the picture changes.

VAE_FAST=1 and no real data: everything on drawn shapes. Screenshots are left in runs/browser/, to be looked at. Skipped
where Chromium or Playwright is missing. Latency is printed and not judged: it depends on what else the machine does.
"""
from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "figures"))
import widgets

pytest.importorskip("playwright", reason="the browser test needs Playwright: pip install -r requirements.txt")
pytestmark = pytest.mark.skipif(not widgets.CHROMIUM, reason="the browser test needs Chromium: apt-get install chromium")

SHOTS = ROOT / "runs" / "browser"
EXPLORERS = {"Task1_CIFAR10_ConvVAE_vs_FCVAE": 1, "Task2_Latent_Interpolation": 1, "Task3_CelebA_Latent_Sampling": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    places = {f"VAE_{name.upper()}": str(folder / name) for name in ("data", "runs", "cache")}
    with widgets.Lab(widgets.copy_notebooks(folder), VAE_FAST="1", TQDM_DISABLE="1", MPLBACKEND="module://matplotlib_inline.backend_inline", **places) as lab:
        yield lab


@pytest.mark.parametrize("name, count", EXPLORERS.items())
def test_a_notebook_runs_and_its_widgets_answer(lab, capsys, name, count):
    lab.run_all(f"notebooks/{name}.ipynb")
    assert lab.errors() == []
    explorers, waits = lab.explorers(), []
    assert len(explorers) == count
    for number, explorer in enumerate(explorers, 1):
        assert lab.cut_labels(explorer) == []
        for slider, found in lab.move_every_slider(explorer).items():   # raises when the picture does not change
            assert found, slider
            waits += found
        for button in explorer.locator("button.jupyter-button:not(.widget-toggle-button)").all():
            if button.inner_text() == "encode a test face":   # another one
                explorer.locator("input[type=number]").fill("5")
            if button.inner_text() not in ("", "save"):       # "" are those of the play control
                lab.waits_for(button.click)
        SHOTS.mkdir(parents=True, exist_ok=True)
        explorer.screenshot(path=SHOTS / f"{name[:5]}_{number}.png")
    with capsys.disabled():
        print(f"\n{name}: {len(waits)} moves, median {statistics.median(waits):.0f} ms, worst {max(waits):.0f} ms")
    lab.run_again(0)
    assert len(lab.explorers()) == count   # in place of the first, not below it
    assert lab.errors() == []


@pytest.fixture(scope="module")
def walk(lab):
    """The explorer of Task 2, in its fresh state."""
    lab.run_all("notebooks/Task2_Latent_Interpolation.ipynb")
    explorer, = lab.explorers()
    return explorer


def test_play_morphs_and_save_says_where(lab, walk):
    lab.watch(walk)
    shown = [walk.locator("img.widget-image").get_attribute("src")]
    walk.locator(".widget-play button").first.click()
    for _ in range(2):   # not each step of the 25: a busy machine shows some of them
        lab.page.wait_for_function("last => document.querySelector('img.widget-image').src !== last", arg=shown[-1])
        shown.append(walk.locator("img.widget-image").get_attribute("src"))
    walk.get_by_role("button", name="save").click()
    walk.get_by_text("Saved to").wait_for()
    assert Path(walk.get_by_text("Saved to").inner_text().removeprefix("Saved to ")).stat().st_size > 1000
    assert lab.errors() == []


def test_both_themes_are_readable(lab, walk):
    """The picture has its own white ground; the labels take the colour of the theme."""
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        lab.page.wait_for_timeout(1500)
        walk.screenshot(path=SHOTS / f"{theme.split()[1].lower()}.png")
        lightness = walk.locator(".widget-label").first.evaluate("label => getComputedStyle(label).color.match(/\\d+/g).slice(0, 3).map(Number)")
        assert (sum(lightness) / 3 > 128) is (theme == "JupyterLab Dark")
