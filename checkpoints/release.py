"""Release the runs that the notebooks trained: runs/ → checkpoints/NAME/{model.safetensors, model.json, metrics.json}.

Run by `make release`, after the notebooks with VAE_TRAIN=1. One seed of each model is released with its weights, in half
precision; of the other seeds the record alone (config, history, test numbers), so that tables can show three seeds.
With names (python checkpoints/release.py cifar10_best) only those are released again.
metrics.json is what evaluate.py measures on the released weights, for the models that README.md compares.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import evaluate  # noqa: E402
import vae_helpers as vae  # noqa: E402

MEASURED = ("cifar10_conv", "cifar10_conv_sigma", "cifar10_best", "celeba_conv", "celeba_best")


def wanted(cifar: vae.ImageData, faces: vae.ImageData) -> dict[str, vae.Config]:
    """Name → config of everything that is released: what the notebooks train, and the autoencoder of theory_answers.md."""
    conv = vae.config_for(cifar)
    parameters = vae.count_parameters(vae.build_model(conv))
    widths = {"fc": vae.fc_width_for(conv, parameters), "fc3x": vae.fc_width_for(conv, 3 * parameters)}
    configs = {"cifar10_conv": {}, **{f"cifar10_{name}": {"arch": "fc", "width": w} for name, w in widths.items()}}
    configs |= {f"{name}_seed{seed}": {**choices, "seed": seed} for name, choices in configs.items() for seed in (1, 2)}
    configs |= {"cifar10_conv_sigma": {"likelihood": "gaussian"}, "cifar10_best": vae.PRESETS["best"]}
    configs |= {f"cifar10_conv_beta{beta:g}": {"beta": beta} for beta in (0.0, 0.1, 4.0)}
    configs["cifar10_fc_ae"] = {**configs["cifar10_fc"], "model": "ae"}
    return {name: vae.config_for(cifar, **choices) for name, choices in configs.items()} | {
        "celeba_conv": vae.config_for(faces, likelihood="squared_error", epochs=25),
        "celeba_best": vae.config_for(faces, **vae.PRESETS["best"], epochs=15)}


def main() -> None:
    os.chdir(HERE.parent)   # so that metrics.json quotes the command as README.md does
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    everything = wanted(cifar, faces)
    if unknown := set(sys.argv[1:]) - set(everything):
        raise vae.VAEError(f"There is no release named {', '.join(sorted(unknown))}: choose from {', '.join(everything)}.")
    for name in sys.argv[1:] or everything:
        config = everything[name]
        data = faces if config.dataset == "celeba" else cifar
        run = vae.load_or_train(config, data)
        folder = HERE / name
        if config.seed:
            folder.mkdir(exist_ok=True)
            vae.write_record(folder, config, run.record)
            continue
        vae.save_checkpoint(run.model, folder, run.record, half=True)
        released, record = vae.load_checkpoint(folder)   # what a reader will load, measured as it is
        record["test_half_precision"] = vae.evaluate(released, data.test.images)
        vae.write_record(folder, config, record)
        if name in MEASURED:
            vae.write_json(folder / "metrics.json", evaluate.main(["--run", f"checkpoints/{name}"]))
        change = record["test_half_precision"]["total_nats"] - record["test"]["total_nats"]
        print(f"{name}: {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB; half precision changes the total by {change:+.4f} nats")


if __name__ == "__main__":
    vae.run_script(main)
