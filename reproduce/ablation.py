"""What each choice is worth, on CIFAR-10: changes to the plain VAE, networks, and grids of codes.

    python -m reproduce.ablation              what is missing is trained: hours on a CPU
    python -m reproduce.ablation --seeds 0 --only "calibrated σ" best

Finished runs in runs/ are used again, so it can be stopped and started at will. Writes
checkpoints/ablation.json, the source of three tables in docs/results.md. The grids of codes are
trained for three epochs, with one seed and without a prior, so they have no samples.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from torch import Tensor

import vae_helpers as vae
from base.options import env_flag
from reproduce.release import FC_WIDTHS
from support import metrics, runs

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
# The code of the preset "prior", 8x8 places with 16 numbers, and one change at a time.
CODE = {**vae.PRESETS["grid"], "epochs": 3, "prior_epochs": 0}
CODES = {
    "the preset's code": CODE,
    "β = 1": {**CODE, "beta": 1.0},
    "8 numbers": {**CODE, "latent_dim": 8},
    "16x16 places, 4 numbers": {**CODE, "depth": 1, "latent_dim": 4},
    "no mirrored images": {**CODE, "flip": "none"},
}
KINDS = {"changes": CHANGES, "networks": NETWORKS, "codes": CODES}
VARIANTS = CHANGES | NETWORKS | CODES


def measure(run: runs.Run, data: vae.ImageData, net: metrics.FeatureNet, real: Tensor) -> dict:
    """Test numbers of one run, units in the keys; ffd_* are Fréchet feature distances."""
    test = data.test.images
    if run.model.learned_prior:  # it is trained without its prior here
        mu, _ = vae.encode_images(run.model, test)
        sets = {"reconstructions": vae.decode_images(run.model, mu)}
    else:
        sets = metrics.picture_sets(run.model, data, len(test))
    bits = metrics.bits_per_dim(run.model, test, data.val.images[:1000])
    result = vae.evaluate(run.model, test)
    result |= metrics.picture_metrics(sets["reconstructions"], test)
    result["bits_per_dim"] = bits["bits_per_dim"]
    result["parameters"] = vae.count_parameters(run.model)
    for name, images in sets.items():
        features = metrics.image_features(images, net)
        result[f"ffd_{name}"] = metrics.frechet_distance(real, features)
    return result | {key: run.record[key] for key in ("seconds", "hardware")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2])
    rows = "which rows (default all): " + "; ".join(VARIANTS)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=list(VARIANTS), help=rows)
    args = parser.parse_args()
    for name in set(args.only) - set(VARIANTS):
        raise vae.VAEError(f"--only has no row {name}; the rows are: {'; '.join(VARIANTS)}.")
    if env_flag("VAE_FAST") or os.environ.get("VAE_EPOCHS"):
        raise vae.VAEError("The table is of full runs: unset VAE_FAST and VAE_EPOCHS.")
    return args


def earlier_results(path: Path, data: vae.ImageData) -> dict[str, dict]:
    """What was measured before; refused when it was measured on something else."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text())
    same_settings = all(before["variants"][n] == VARIANTS.get(n) for n in before["results"])
    if before["fingerprint"] != data.fingerprint or not same_settings:
        raise vae.VAEError(
            f"{path} was measured on other images or with other settings: move it away, and all "
            "is measured again."
        )
    return before["results"]


def main() -> None:
    args = arguments()
    data, net = vae.load_dataset("cifar10"), metrics.load_feature_net()
    path = runs.RELEASED / "ablation.json"
    results = earlier_results(path, data)
    real = metrics.image_features(data.test.images, net)
    for seed in args.seeds:  # all variants with one seed first: the picture is there early
        for name in args.only:
            if str(seed) in results.get(name, {}) or (seed and name in CODES):
                continue
            run = runs.load_or_train(vae.config_for(data, **VARIANTS[name], seed=seed), data)
            results.setdefault(name, {})[str(seed)] = measure(run, data, net, real)
            content = {
                "data": data.title,
                "fingerprint": data.fingerprint,
                "test_images": len(data.test.images),
                "command": "python -m reproduce.ablation",
                "kinds": {kind: list(rows) for kind, rows in KINDS.items()},
                "variants": VARIANTS,
                "results": results,
            }
            vae.write_json(path, content)


if __name__ == "__main__":
    runs.run_script(main)
