"""What an explorer is: controls above a picture that is redrawn in place, in any front end.

support/sliders.py makes the four explorers that stand in the notebooks.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import ipywidgets
from IPython import get_ipython
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

import vae_helpers as vae

Rows = dict[str, Tensor]  # caption → images (n, C, H, W)
Controls = dict[str, ipywidgets.Widget]  # argument of a draw function → what sets it


# ── The picture ───────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=100)  # most lines stay while a slider moves, and writing one is slow
def draw_text(text: str, width: int) -> Image.Image:
    """A text in black on white; its lines are at most `width` pixels long and 18 pixels high."""
    # Unlike Pillow's own font, this one has β, ‖ and →.
    font = ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 13)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width - 4 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    picture = Image.new("RGB", (width, 18 * len(lines)), "white")
    for number, line in enumerate(lines, 1):
        ImageDraw.Draw(picture).text((2, 18 * number), line, "black", font, anchor="lb")
    return picture


def draw_sheet(title: str, rows: Rows, sentence: str, width: int = 720) -> Image.Image:
    """A title, rows of images under their captions, and a sentence; black on white in any theme.

    Pillow draws it in milliseconds, Matplotlib would take a tenth of a second. Pixels are enlarged
    by whole numbers, so that every row comes close to `width`.
    """
    pictures = []
    for images in rows.values():
        picture = Image.fromarray(vae.image_grid(images))
        factor = max(1, round(width / picture.width))
        pictures.append(ImageOps.scale(picture, factor, Image.Resampling.NEAREST))
    width = max(width, *(picture.width for picture in pictures))

    parts = [draw_text(title, width)]
    for caption, picture in zip(rows, pictures):
        parts += [draw_text(caption, width), picture]
    parts.append(draw_text(sentence, width))

    sheet = Image.new("RGB", (width, sum(part.height for part in parts) + 8), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


# ── The explorer ──────────────────────────────────────────────────────────────────────────────


def has_widgets() -> bool:
    """Whether somebody can move a slider.

    Nobody can in a script, nor where nbconvert, papermill or nbval sent the cell: their requests
    say that input() has nobody to ask, and a widget would be dead text in what they store. Voila
    and Colab show widgets whatever a request says; Voila names itself to the kernels it starts.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    if "VOILA_BASE_URL" in os.environ or "google.colab" in sys.modules:
        return True
    return kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


def set_controls(controls: Controls, **values) -> None:
    """Set several controls and draw once: observers are called when all are set."""
    with contextlib.ExitStack() as held:
        for name, value in values.items():
            held.enter_context(controls[name].hold_trait_notifications())
            controls[name].value = value


def button(text: str, action: Callable[[], None]) -> ipywidgets.Button:
    """A button that calls `action` without arguments."""
    result = ipywidgets.Button(description=text, layout={"width": "auto"})
    result.on_click(lambda _: action())
    return result


class Explorer:
    """Controls above one picture, which is redrawn in place. As a cell's last line it shows itself.

    title     ends with the name of the data that is shown
    draw      one argument per control → rows of images as `draw_sheet` takes them, and a sentence
    controls  a slider has to start on one of its steps, since a browser would move it to one
    buttons   and other widgets that set controls

    Where nobody can move a slider (see `has_widgets`; also on GitHub and in a PDF) only the first
    picture and its sentence are shown. It runs on ipywidgets 8 and on 7.7, which is Colab's.
    """

    def __init__(self, title: str, draw: Callable, controls: Controls, buttons: Sequence = ()):
        self.title = title
        self.draw = draw
        self.controls = controls
        self.values = None
        fit = {"max_width": "100%", "align_self": "flex-start"}
        self.screen = ipywidgets.Image(format="jpeg", layout=fit)
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        grid = {"display": "grid", "grid_template_columns": "repeat(auto-fill, 350px)"}
        controls_box = ipywidgets.Box(list(controls.values()), layout=grid)
        buttons_box = ipywidgets.Box(list(buttons), layout={"flex_flow": "row wrap"})
        # No Output widget: for ipywidgets 7 the newest widgetsnbextension, 3.6.10, cannot make one.
        self.box = ipywidgets.VBox([controls_box, buttons_box, self.screen])

    def redraw(self, change: dict | None = None) -> None:
        """Draw for the values of the controls. The error of a first picture is the caller's.

        Nobody would see a later one, which a front end hides: it stands below the last picture.
        """
        values = {name: control.value for name, control in self.controls.items()}
        if values == self.values:  # already drawn, when one control has set another
            return
        try:
            self.rows, self.sentence = self.draw(**values)
        except Exception as error:
            if self.values is None:
                raise
            self.sentence = str(error) if isinstance(error, vae.VAEError) else repr(error)
        self.values = values
        self.image = draw_sheet(self.title, self.rows, self.sentence)
        # JPEG takes a fifth of the time of PNG, and this one shows no difference.
        self.screen.value = self._encode("JPEG", quality=95, subsampling=0)

    def _encode(self, kind: str, **options) -> bytes:
        file = io.BytesIO()
        self.image.save(file, kind, **options)
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        png, jpeg = self._encode("PNG"), self._encode("JPEG", quality=90, subsampling=0)
        kind, picture = min(("image/png", png), ("image/jpeg", jpeg), key=lambda one: len(one[1]))
        bundle = {
            kind: base64.b64encode(picture).decode(),
            "text/plain": f"{self.title}\n{self.sentence}",
        }
        if has_widgets():
            view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = view
        return bundle
