"""Bring the released files to the names of today, once: python -m reproduce.migrate

The transformer's parameters start and places are bos and position_embedding; an autoencoder has no
logvar; rows of a history say their stage; configs name every field. The numbers stay.
"""

from __future__ import annotations

import json

import safetensors.torch

import vae_helpers as vae
from base.files import ROOT, digest, write_json
from support import runs

RENAMED = {"prior.start": "prior.bos", "prior.places": "prior.position_embedding"}


def main() -> None:
    for path in sorted(runs.RELEASED.glob("*/model.json")):
        record = json.loads(path.read_text())
        config = vae.Config(**{"global_dim": 0} | record["config"])
        if config.model != "grid_vae":
            config = vae.Config(**record["config"])
        config = config.resolved()
        record["config"] = {name: getattr(config, name) for name in record["config"]} | {
            name: value for name, value in vars(config).items() if name not in record["config"]
        }
        if config.model == "grid_vae":
            stages = vae.MODELS["grid_vae"].stages(config)
            names = [name for name, stage in stages.items() for _ in range(stage.epochs)]
            record["history"] = [
                {"epoch": row["epoch"], "stage": name} | row
                for name, row in zip(names, record["history"])
            ]
        weights_path = path.with_name("model.safetensors")
        if weights_path.is_file():
            weights = safetensors.torch.load_file(weights_path)
            renamed = {RENAMED.get(name, name): value for name, value in weights.items()}
            if config.model == "ae":
                renamed = {
                    name.replace(".mu.", "."): value
                    for name, value in renamed.items()
                    if ".logvar." not in name
                }
                record["parameters"] = vae.count_parameters(vae.build_model(config))
            if list(renamed) != list(weights):
                safetensors.torch.save_file(renamed, weights_path)
                record["weights_sha256"] = digest(renamed)
        write_json(path, record)
    path = ROOT / "figures/gallery.json"
    gallery = json.loads(path.read_text())
    for name in ("ae", "wae"):
        config = vae.Config(dataset="fashion_mnist", channels=1, latent_dim=20, model=name)
        gallery[name]["parameters"] = vae.count_parameters(vae.build_model(config))
    write_json(path, gallery)


if __name__ == "__main__":
    runs.run_script(main)
