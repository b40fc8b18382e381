"""The explorers in JupyterLab and Chromium: move every slider, press every button, and see that the
picture changes. Skipped where Chromium or Playwright is missing, and with ipywidgets 7, which
JupyterLab 4 does not show (tests/front_ends.py tries it in nbclassic)."""

import ipywidgets
import pytest

from reproduce import latency

pytest.importorskip("playwright", reason="Playwright is missing: pip install playwright")
pytestmark = [
    pytest.mark.skipif(not latency.CHROMIUM, reason="no Chromium: apt-get install it"),
    pytest.mark.skipif(ipywidgets.__version__ < "8", reason="JupyterLab 4 needs ipywidgets 8"),
]

CELLS = [
    """import vae_helpers as vae
from support import sliders
data = vae.load_dataset("shapes")
model = vae.build_model(vae.config_for(data, latent_dim=4, width=8)).eval()""",
    "sliders.explore_interpolation(model, data)",
    "sliders.explore_models({'conv': model}, data, {'β = 1': model, 'β = 4': model})",
    "sliders.explore_region(model, data)",
    "sliders.explore_dimensions(model, data)",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with latency.open_lab(folder) as lab:
        lab.run_all(folder / "explorers.ipynb", CELLS)
        yield lab


@pytest.mark.parametrize("number", range(4))
def test_every_slider_and_button_changes_the_picture_and_no_label_is_cut(lab, number):
    explorer = lab.explorers(4)[number]
    for label in explorer.locator(".widget-label, .widget-button, .widget-toggle-button").all():
        assert label.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), label.inner_text()
    lab.move_every_slider(explorer, times=3)  # raises when the picture does not change
    for button in explorer.locator("button.jupyter-button:not(.mod-active)").all():
        if button.inner_text():  # the buttons of the play control have none
            lab.wait_for_picture(button.click)
    assert lab.errors() == []


def test_a_cell_that_runs_again_shows_one_explorer(lab):
    lab.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    assert len(lab.explorers(4)) == 4
    assert lab.errors() == []


def test_play_morphs_one_image_into_the_other(lab):
    explorer = lab.explorers(4)[0]
    lab.watch(explorer)
    lab.wait_for_picture(explorer.locator(".widget-play button").first.click)
    lab.page.wait_for_function("window.waits.length > 2")
