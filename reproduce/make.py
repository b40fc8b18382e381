"""Make the figures of README.md, theory_answers.md and docs/, and fill the tables of these texts.

    python -m reproduce.make              needs the real data; some ten minutes on two CPU cores
    python -m reproduce.make --only q3    some of the parts: tasks, q1, q2, q3, plane, q4
    python -m reproduce.make --texts      only fills the tables, from what was measured before

All is made with the released weights, but for the two small models of `plane`, which are trained
here and kept in runs/. What is measured for theory_answers.md goes to figures/theory.json. The
gallery of docs/models.md has a command of its own, figures/gallery.py.
"""

from __future__ import annotations

import argparse
import json
import re

import torch.nn.functional as F
from matplotlib.figure import Figure

import vae_helpers as vae
from base.files import ROOT
from reproduce import doc_tables, theory, theory_tables
from support import report, runs


def load(folders: dict[str, str]) -> dict[str, vae.VAE]:
    """Title → released model, from title → folder in checkpoints/."""
    return {t: vae.load_checkpoint(runs.RELEASED / name)[0] for t, name in folders.items()}


def save(figure: Figure, name: str) -> None:
    report.save_figure(figure, ROOT / "figures" / name)


# ── README.md and docs/results.md ───────────────────────────────────────────────────────────────


def draw_tasks(cifar: vae.ImageData) -> None:
    """A picture of each task, and one of what makes copies sharper."""
    images = cifar.test.images[:12]
    names = {"convolutional": "cifar10_conv", "fc, same size": "cifar10_fc"}
    names["fc, 3x"] = "cifar10_fc3x"
    title = f"Task 1 · convolutions copy more than a blob: {cifar.title}"
    save(vae.plot_reconstructions(load(names), images, title), "task1_reconstructions.png")

    names = {"BCE": "cifar10_conv", "calibrated σ": "cifar10_conv_sigma", "best": "cifar10_best"}
    title = f"Two losses, three models, one latent size: {cifar.title}"
    save(vae.plot_reconstructions(load(names), images, title), "quality_reconstructions.png")

    model = load({"best": "cifar10_best"})["best"]
    a, b = cifar.test.images[list(theory.PAIR)]
    walk = vae.interpolate_images(model, a, b, 10)
    strips = {"straight walk": walk, "fade of the copies": vae.cross_fade(walk[0], walk[-1], 10)}
    strips["spherical walk"] = vae.interpolate_images(model, a, b, 10, "spherical")
    title = f"Task 2 · a straight walk through codes is nearly a fade: {cifar.title}"
    save(vae.display_interpolated_images(strips, (a, b), title), "task2_interpolation.png")

    model, faces = load({"faces": "celeba_conv"})["faces"], vae.load_dataset("celeba")
    codes = F.normalize(vae.sample_codes(model, faces.test.images[:12]), dim=1)
    random = vae.sample_latents(12, model.latent_size, seed=0, radius=1)
    rows = {}
    for name, directions in (("random", random), ("codes of faces", codes)):
        for radius in (3.3, 11.3, 40):
            rows[f"{name}, ‖z‖ = {radius}"] = vae.decode_images(model, radius * directions)
    title = f"Task 3 · the direction makes the face, the radius the contrast: {faces.title}"
    save(vae.plot_rows(rows, title), "task3_regions.png")


# ── The tables of all texts ─────────────────────────────────────────────────────────────────────

TEXTS = (ROOT / "README.md", ROOT / "theory_answers.md", *sorted((ROOT / "docs").glob("*.md")))
TABLES = doc_tables.TABLES | theory_tables.TABLES


def fill(text: str) -> str:
    """The text with every table between two markers written again. KeyError: no such table.

    The markers, <!--name--> and <!--/name-->, are shown by no renderer.
    """

    def table(match: re.Match) -> str:
        start, name, end = match.groups()
        return f"{start}\n{TABLES[name]()}\n{end}"

    return re.sub(r"(<!--(\w+)-->)\n.*?(<!--/\2-->)", table, text, flags=re.DOTALL)


def fill_texts() -> None:
    for path in TEXTS:
        path.write_text(fill(path.read_text()))


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def answer(part: str, cifar: vae.ImageData) -> None:
    """Draw and measure one question of theory_answers.md, and enter its numbers in theory.json."""
    if part == "q1":
        figures, numbers = theory.question_1(load(theory_tables.BETAS), cifar)
    elif part == "q2":
        model = load({"conv": "cifar10_conv"})["conv"]
        figures, numbers = theory.question_2(model, cifar.test.images[:16])
    elif part == "q3":
        figures, numbers = theory.question_3(load(theory_tables.AUTOENCODER_AND_VAE), cifar)
    elif part == "plane":
        figures, numbers = theory.two_dimensions(vae.load_dataset("fashion_mnist"))
    else:
        figures, numbers = theory.question_4(load(theory_tables.BETAS), cifar)
    for name, figure in figures.items():
        save(figure, name)
    path = ROOT / "figures" / "theory.json"
    vae.write_json(path, json.loads(path.read_text()) | {part: numbers})


PARTS = ("tasks", "q1", "q2", "q3", "plane", "q4")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts")
    parser.add_argument("--texts", action="store_true", help="only fill the tables of the texts")
    arguments = parser.parse_args()
    if not arguments.texts:
        cifar = vae.load_dataset("cifar10")
        for part in arguments.only:
            draw_tasks(cifar) if part == "tasks" else answer(part, cifar)
    fill_texts()


if __name__ == "__main__":
    runs.run_script(main)
