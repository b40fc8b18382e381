"""Release the runs that the notebooks trained: runs/ → checkpoints/NAME/.

    python -m reproduce.release                  everything
    python -m reproduce.release cifar10_best     only what is named
    python -m reproduce.release --measure        only metrics.json of the weights that are there

Run by `make release`, after the notebooks with VAE_TRAIN=1. One seed of each model is released
with its weights, in half precision; of the other seeds the record alone (config, history, test
numbers), so that tables can show three seeds. Of a grid of codes alone for faces, which is trained
here, the record and the numbers are kept. metrics.json is what evaluate.py measures on the released
weights, for the models that docs/results.md compares.
"""

from __future__ import annotations

import os
import sys

import evaluate
import vae_helpers as vae
from base.files import ROOT
from support import runs

# The record alone is kept, for docs/results.md to show what the code of the whole image is worth.
WITHOUT_WEIGHTS = "celeba_grid_alone"
MEASURED = (
    "cifar10_conv",
    "cifar10_conv_sigma",
    "cifar10_best",
    "cifar10_grid",
    "celeba_conv",
    "celeba_best",
    "celeba_grid",
    WITHOUT_WEIGHTS,
)
# As many parameters as the convolutional model, and three times as many.
FC_WIDTHS = {"cifar10_fc": 172, "cifar10_fc3x": 491}


def cifar_choices() -> dict[str, dict]:
    """Name → settings of what Task 1 and Task 2 train, and of theory_answers.md's autoencoder."""
    choices = {"cifar10_conv": {}}
    for name, width in FC_WIDTHS.items():
        choices[name] = {"arch": "fc", "width": width}
    for name, settings in list(choices.items()):
        for seed in (1, 2):
            choices[f"{name}_seed{seed}"] = {**settings, "seed": seed}
    for beta in (0.0, 0.1, 4.0):
        choices[f"cifar10_conv_beta{beta:g}"] = {"beta": beta}
    choices["cifar10_conv_sigma"] = {"likelihood": "gaussian"}
    choices["cifar10_best"] = vae.PRESETS["best"]
    choices["cifar10_fc_ae"] = {**choices["cifar10_fc"], "model": "ae"}
    return choices


def released_configs(cifar: vae.ImageData, faces: vae.ImageData) -> dict[str, vae.Config]:
    """Name → config of everything that is released."""
    configs = {n: vae.config_for(cifar, **settings) for n, settings in cifar_choices().items()}
    configs["celeba_conv"] = vae.config_for(faces, likelihood="squared_error", epochs=25)
    configs["celeba_best"] = vae.config_for(faces, **vae.PRESETS["best"], epochs=15)
    prior = vae.PRESETS["grid"]
    configs["cifar10_grid"] = vae.config_for(cifar, **prior, epochs=5, prior_epochs=5)
    configs["celeba_grid"] = vae.config_for(faces, **prior, epochs=21, prior_epochs=25)
    configs[WITHOUT_WEIGHTS] = vae.config_for(
        faces, **prior, global_dim=0, epochs=15, prior_epochs=25
    )
    return configs


def release(name: str, config: vae.Config, data: vae.ImageData) -> None:
    """Write one folder: the weights and the record, or the record alone."""
    run = runs.load_or_train(config, data)
    folder = runs.RELEASED / name
    if config.seed or name == WITHOUT_WEIGHTS:
        folder.mkdir(exist_ok=True)
        vae.write_json(folder / "model.json", run.record)
        return
    vae.save_checkpoint(run.model, folder, run.record, half=True)
    released, record = vae.load_checkpoint(folder)  # what a reader will load, measured as it is
    record["test_half_precision"] = vae.evaluate(released, *data.test)
    vae.write_json(folder / "model.json", record)
    change = record["test_half_precision"]["total_nats"] - record["test"]["total_nats"]
    print(f"{name}: half precision changes the total by {change:+.4f} nats")


def measure(name: str, config: vae.Config) -> None:
    """Write metrics.json of released weights, or of the run whose record alone is kept."""
    own = runs.runs_root() / config.run_name
    run = str(own) if name == WITHOUT_WEIGHTS else f"checkpoints/{name}"
    vae.write_json(runs.RELEASED / name / "metrics.json", evaluate.main(["--run", run]))


def main() -> None:
    os.chdir(ROOT)  # so that metrics.json quotes the command as docs/results.md does
    only_measure = "--measure" in sys.argv
    names = [name for name in sys.argv[1:] if name != "--measure"]
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    configs = released_configs(cifar, faces)
    for name in set(names) - set(configs):
        raise vae.VAEError(f"Nothing is released as {name}: choose from {', '.join(configs)}.")
    for name in names or configs:
        if not only_measure:
            release(name, configs[name], faces if name.startswith("celeba") else cifar)
        if name in MEASURED and not (only_measure and name == WITHOUT_WEIGHTS):  # it has no weights
            measure(name, configs[name])


if __name__ == "__main__":
    runs.run_script(main)
