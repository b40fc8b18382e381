"""Train and measure what texts compare and notebooks load: runs/ → checkpoints/.

    python -m reproduce.release                          everything; days on two CPU cores
    python -m reproduce.release cifar10_best ablation    some of it
    python -m reproduce.release --measure                only metrics.json of the weights there

Finished runs in runs/ are used again, so it can be stopped and started at will; `make release`
trains most of them in the notebooks first.

Released are: of one seed of each model the weights, in half precision; of the other seeds the
record alone (config, history, test numbers). metrics.json is what evaluate.py measures on the
released weights, some five minutes for each model, half an hour for a grid. "ablation" is what
each choice is worth on CIFAR-10: its numbers go to checkpoints/ablation.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

import evaluate
import vae_helpers as vae
from base.files import ROOT
from base.options import env_flag
from reproduce.common import CHECKPOINTS, measure, read_json
from support import runs
from support.released import config_of

# ── What is released ────────────────────────────────────────────────────────────────────────────

MEASURED = (
    "cifar10_conv",
    "cifar10_fc",
    "cifar10_fc3x",
    "cifar10_conv_sigma",
    "cifar10_best",
    "cifar10_grid",
    "celeba_conv",
    "celeba_best",
    "celeba_grid",
)
# As many parameters as the convolutional model, and three times as many.
FC_WIDTHS = {"cifar10_fc": 172, "cifar10_fc3x": 491}
BETAS = (0.0, 0.1, 4.0)


def released_configs(sets: dict[str, vae.ImageData]) -> dict[str, vae.Config]:
    """Name → config of everything that is released."""
    cifar, faces, shapes = (sets[name] for name in ("cifar10", "celeba", "shapes"))
    configs = {"cifar10_conv": config_of(cifar, "plain")}
    for name, width in FC_WIDTHS.items():
        configs[name] = config_of(cifar, "plain", arch="fc", width=width)
    for name, config in list(configs.items()):
        for seed in (1, 2):
            configs[f"{name}_seed{seed}"] = dataclasses.replace(config, seed=seed)
    for beta in BETAS:
        configs[f"cifar10_conv_beta{beta:g}"] = config_of(cifar, "plain", beta=beta)
    configs["cifar10_conv_sigma"] = config_of(cifar, "plain", likelihood="gaussian")
    configs["cifar10_conv_ae"] = config_of(cifar, "plain", model="ae")
    configs["cifar10_best"] = config_of(cifar, "best")
    configs["cifar10_grid"] = config_of(cifar, "grid")

    configs["celeba_conv"] = config_of(faces, "plain")
    configs["celeba_best"] = config_of(faces, "best")
    configs["celeba_grid"] = config_of(faces, "grid")

    # These stand in where a notebook finds no data.
    configs["shapes_conv"] = config_of(shapes, "plain")
    configs["shapes_fc"] = config_of(shapes, "plain", arch="fc", width=28)
    configs["shapes_fc3x"] = config_of(shapes, "plain", arch="fc", width=84)
    for beta in BETAS:
        configs[f"shapes_conv_beta{beta:g}"] = config_of(shapes, "plain", beta=beta)
    configs["shapes_conv_sigma"] = config_of(shapes, "plain", likelihood="gaussian")
    configs["shapes_squared_error"] = config_of(shapes, "plain", likelihood="squared_error")
    configs["shapes_best"] = config_of(shapes, "best")
    configs["shapes_grid"] = config_of(shapes, "grid")
    return configs


def release(name: str, config: vae.Config, data: vae.ImageData) -> None:
    """Write one folder: the weights and the record; of a further seed the record alone."""
    run = runs.load_or_train(config, data)
    folder = CHECKPOINTS / name
    if config.seed:
        folder.mkdir(exist_ok=True)
        vae.write_json(folder / "model.json", run.record)
        return
    vae.save_checkpoint(run.model, folder, run.record, half=True)
    released, record = vae.load_checkpoint(folder)  # what a reader will load, measured as it is
    record["test_half_precision"] = vae.evaluate(released, *data.test)
    vae.write_json(folder / "model.json", record)
    change = record["test_half_precision"]["total_nats"] - record["test"]["total_nats"]
    print(f"{name}: half precision changes the total by {change:+.4f} nats")


def write_metrics(name: str) -> None:
    """metrics.json of released weights."""
    results = evaluate.main(["--run", f"checkpoints/{name}"])
    vae.write_json(CHECKPOINTS / name / "metrics.json", results)


# ── The ablation: what each choice is worth ─────────────────────────────────────────────────────

ALONE = {
    "calibrated σ": {"likelihood": "gaussian"},
    "batch normalisation": {"norm": "batch"},
    "one-cycle schedule, peak 0.003": {"schedule": "one_cycle", "lr": 3e-3},
    "weight averaging (EMA)": {"ema": 0.999},
    "residual blocks": {"residual": 1},
    "KL warm-up, 3 epochs": {"kl_warmup": 3},
}
BEST = vae.PRESETS["best"]  # all of the above but the warm-up
CHANGES = {
    "the assignment's VAE": {},
    **ALONE,
    "best": BEST,
    "best without residual blocks": {**BEST, "residual": 0},
}
NETWORKS = {
    "the assignment's VAE": {},
    "fully connected, same size": {"arch": "fc", "width": FC_WIDTHS["cifar10_fc"]},
    "fully connected, three times the size": {"arch": "fc", "width": FC_WIDTHS["cifar10_fc3x"]},
    # As many multiplications for one image as the convolutional one, with nine times the weights.
    "fully connected, same arithmetic": {"arch": "fc", "width": 1304},
}
# The code of the preset `grid`, 8x8 places with 16 numbers, and one change at a time: three epochs,
# one seed and no prior, so these have no samples.
CODE = {**vae.PRESETS["grid"], "epochs": 3, "prior_epochs": 0}
CODES = {
    "the preset's code": CODE,
    "β = 1": {**CODE, "beta": 1.0},
    "8 numbers": {**CODE, "latent_dim": 8},
    "16x16 places, 4 numbers": {**CODE, "depth": 1, "latent_dim": 4},
    "no mirrored images": {**CODE, "flip": "none"},
}
VARIANTS = CHANGES | NETWORKS | CODES
SEEDS = (0, 1, 2)


def earlier_results(data: vae.ImageData) -> dict[str, dict]:
    """What was measured before; refused when it was measured on something else."""
    if not (CHECKPOINTS / "ablation.json").is_file():
        return {}
    before = read_json("checkpoints/ablation.json")
    same_settings = all(before["variants"][n] == VARIANTS.get(n) for n in before["results"])
    if before["fingerprint"] != data.fingerprint or not same_settings:
        raise vae.VAEError(
            "checkpoints/ablation.json was measured on other images or with other settings: move "
            "it away, and all is measured again."
        )
    return before["results"]


def ablate(data: vae.ImageData) -> None:
    """Train and measure what is missing in checkpoints/ablation.json."""
    results = earlier_results(data)
    for seed in SEEDS:  # all variants with one seed first: the picture is there early
        for name, settings in VARIANTS.items():
            if str(seed) in results.get(name, {}) or (seed and name in CODES):
                continue
            run = runs.load_or_train(vae.config_for(data, **settings, seed=seed), data)
            numbers = measure(run, data)
            results.setdefault(name, {})[str(seed)] = numbers
            content = {
                "data": data.title,
                "fingerprint": data.fingerprint,
                "test_images": len(data.test.images),
                "command": "python -m reproduce.release ablation",
                "variants": VARIANTS,
                "results": results,
            }
            vae.write_json(CHECKPOINTS / "ablation.json", content)


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a released model, or ablation")
    parser.add_argument("--measure", action="store_true", help="only measure the weights there")
    arguments = parser.parse_args()
    if env_flag("VAE_FAST") or os.environ.get("VAE_EPOCHS"):
        raise vae.VAEError("Full runs are released: unset VAE_FAST and VAE_EPOCHS.")
    os.chdir(ROOT)  # so that metrics.json quotes the command as docs/results.md does
    sets = {name: vae.load_dataset(name) for name in ("cifar10", "celeba", "shapes")}
    configs = released_configs(sets)
    for name in set(arguments.names) - {"ablation", *configs}:
        choices = ", ".join(["ablation", *configs])
        raise vae.VAEError(f"Nothing is released as {name}: choose from {choices}.")
    for name in arguments.names or [*configs, "ablation"]:
        if name == "ablation":
            if not arguments.measure:
                ablate(sets["cifar10"])
            continue
        if not arguments.measure:
            release(name, configs[name], sets[configs[name].dataset])
        if name in MEASURED:
            write_metrics(name)


if __name__ == "__main__":
    runs.run_script(main)
