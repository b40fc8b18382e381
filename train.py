"""Train a VAE: arguments → a data set, a model, vae_helpers.fit → a run folder that evaluate.py reads.

    python train.py --epochs 50 --batch_size 64 --latent_dim 64
    python train.py --dataset folder --data_dir data/NAME --image_size 64
    python train.py --dataset fashion_mnist --arch fc --latent_dim 20
    python train.py --preset best
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import vae_helpers as vae


def parser() -> argparse.ArgumentParser:
    """One flag per field of vae_helpers.Config, with the help text that stands there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                usage="python train.py [--FLAG VALUE …]")
    kinds = {"int": int, "int | None": int, "float": float}
    for f in dataclasses.fields(vae.Config):
        if f.name in ("channels", "conditions"):   # known once the images are loaded
            continue
        shown = f" (default {f.default})" if f.default is not None and f.name != "dataset" else ""
        if f.name == "dataset":
            shown = " (when not given: cifar10, or the drawn shapes where that cannot be had)"
        # every default is None here, so that only what was typed is handed on
        choices = f.metadata["choices"]   # Config checks them, in one sentence for scripts and notebooks alike
        p.add_argument(f"--{f.name}", type=kinds.get(f.type, str), metavar="{%s}" % ",".join(choices) if choices else "N" if
                       f.type in kinds else "DIR", help=f.metadata["help"] + shown)
    p.add_argument("--preset", metavar="{%s}" % ",".join(vae.PRESETS), help="a named set of choices, which other flags override: the "
                   "assignment's plain VAE, or the best of its size on CIFAR-10 (default assignment)")
    p.add_argument("--out", metavar="DIR", type=Path, help="the run folder to write (default runs/<a name made of the settings>)")
    return p


def main(argv: list[str] | None = None) -> vae.Run:
    """Parse, train, save; returns the run. Raises VAEError on what the user can mend."""
    given = {k: v for k, v in vars(parser().parse_args(argv)).items() if v is not None}
    out, preset = given.pop("out", None), given.pop("preset", "assignment")
    if preset not in vae.PRESETS:
        raise vae.VAEError(f"--preset must be one of {', '.join(vae.PRESETS)}, not {preset!r}.")
    given = vae.PRESETS[preset] | given
    if "data_dir" in given:
        given.setdefault("dataset", "folder")
    named = "dataset" in given
    vae.Config(**given)                  # a wrong value is told before any image is loaded
    if out and out.exists() and not out.is_dir():
        raise vae.VAEError(f"--out {out} is a file: name a folder.")
    data = vae.load_dataset(given.pop("dataset", "cifar10"), data_dir=given.get("data_dir"), or_shapes=not named,
                            image_size=given.pop("image_size", None), max_images=given.get("max_images"))
    config = vae.config_for(data, **given)
    out = out or vae.runs_root() / config.run_name
    print(f"{data.title}: {len(data.train.images):,} training, {len(data.val.images):,} validation, "
          f"{len(data.test.images):,} test images of {data.channels}x{data.image_size}x{data.image_size}, on {vae.hardware()}")
    run = vae.train_run(config, data, out)
    for row in run.record["history"]:
        print(f"epoch {row['epoch']:3}  validation: reconstruction {row['val_reconstruction_nats']:9.1f}  "
              f"KL {row['val_kl_nats']:7.1f}  total {row['val_total_nats']:9.1f} nats   {row['seconds']:6.0f} s")
    test = run.record["test"]
    print(f"test: reconstruction {test['reconstruction_nats']:.1f} + KL {test['kl_nats']:.1f} = {test['total_nats']:.1f} nats per image, "
          f"MSE {test['mse']:.4f}\nsaved in {out}; next: python evaluate.py --run {out}")
    return run


if __name__ == "__main__":
    vae.run_script(main)
