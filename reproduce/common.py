"""What the commands share: released models, saved figures, and the one measure of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from matplotlib.figure import Figure

import vae_helpers as vae
from base.files import ROOT
from support import metrics, report, runs
from support.disentanglement import disentanglement

FIGURES = ROOT / "figures"
CHECKPOINTS = ROOT / "checkpoints"


def read_json(path: str):
    """A file of the project, like "figures/theory.json"."""
    return json.loads((ROOT / path).read_text())


def load_models(folders: dict[str, str]) -> dict[str, vae.VAE]:
    """Title → released model, from title → folder in checkpoints/."""
    return {title: vae.load_checkpoint(CHECKPOINTS / name)[0] for title, name in folders.items()}


def save(figure: Figure, name: str) -> None:
    report.save_figure(figure, FIGURES / name)
    print(f"figures/{name}", flush=True)


def chosen(description: str, choices: Sequence[str]) -> list[str]:
    """What the command line names of the choices, in their order; all when it names none.

    --help prints the description.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if choices:
        parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(choices))
    names = vars(parser.parse_args()).get("names", [])
    for name in set(names) - set(choices):
        raise vae.VAEError(f"There is no {name} here: choose from {', '.join(choices)}.")
    return [choice for choice in choices if choice in names or not names]


def measure(run: runs.Run, data: vae.ImageData) -> dict:
    """Test numbers of one run, units in the keys."""
    model, test, val = run.model, data.test, data.val
    mu, _ = vae.encode_images(model, *test)
    x_hat = vae.decode_images(model, mu, test.labels)
    result = metrics.picture_metrics(x_hat, test.images) | vae.evaluate(model, *test)
    if model.has_rate:
        tuning, tuning_labels = val.images[:1000], val.labels[:1000]
        result |= metrics.bits_per_dim(model, test.images, tuning, test.labels, tuning_labels)
    if data.name == "shapes" and not (model.conditional or model.learned_prior):
        for key, value in disentanglement(model, seed=0).items():
            result[f"disentanglement_{key}"] = value
    result |= {"parameters": vae.count_parameters(model), "train_images": len(data.train.images)}
    return result | {key: run.record[key] for key in ("seconds", "hardware")}
