"""Train and measure every mend of the plain VAE, alone and together, on CIFAR-10: the ablation table of README.md.

    python checkpoints/ablation.py              what is missing is trained: hours on a CPU, minutes on a GPU
    python checkpoints/ablation.py --seeds 0 --only "calibrated σ" best

Finished runs in runs/ are found again, so it can be stopped and started at will. Writes checkpoints/ablation.json.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import vae_helpers as vae  # noqa: E402

ALONE = {
    "calibrated σ": {"likelihood": "gaussian"},
    "batch normalisation": {"norm": "batch"},
    "one-cycle schedule, peak 0.003": {"schedule": "one_cycle", "lr": 3e-3},
    "weight averaging (EMA)": {"ema": 0.999},
    "residual blocks": {"residual": 1},
    "KL warm-up, 3 epochs": {"kl_warmup": 3},
}
BEST = vae.PRESETS["best"]   # all of the above but the warm-up
VARIANTS = {"the assignment's VAE": {}, **ALONE, "best": BEST, "best without residual blocks": {**BEST, "residual": 0}}


def measure(model: vae.VAE, data: vae.ImageData, net: vae.FeatureNet, real) -> dict[str, float]:
    """Test numbers of one model, units in the keys; ffd_* are Fréchet feature distances of as many images as there are test images."""
    test = data.test.images
    sets = vae.picture_sets(model, data, len(test))
    tuned = vae.bits_per_dim(model, test, data.val.images[:1000])
    return {**vae.evaluate(model, test), **vae.picture_metrics(sets["reconstructions"], test), "bits_per_dim": tuned["bits_per_dim"],
            "parameters": vae.count_parameters(model),
            **{f"ffd_{name}": vae.frechet_distance(real, vae.image_features(images, net)) for name, images in sets.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2], help="which seeds (default 0 1 2)")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=list(VARIANTS), help="which rows (default all): " + "; ".join(VARIANTS))
    args = parser.parse_args()
    if unknown := set(args.only) - set(VARIANTS):
        raise vae.VAEError(f"--only knows no {', '.join(sorted(unknown))}; the rows are: {'; '.join(VARIANTS)}.")
    if vae.switched_on("VAE_FAST") or os.environ.get("VAE_EPOCHS"):
        raise vae.VAEError("The table is of full runs: unset VAE_FAST and VAE_EPOCHS.")
    data, net = vae.load_dataset("cifar10"), vae.load_feature_net()
    path = HERE / "ablation.json"
    before = json.loads(path.read_text()) if path.is_file() else {"results": {}}
    results = before["results"]
    if results and (before["fingerprint"] != data.fingerprint or any(before["variants"][name] != VARIANTS.get(name) for name in results)):
        raise vae.VAEError(f"{path} was measured on other images or with other settings: move it away, and all is measured again.")
    real = vae.image_features(data.test.images, net)
    for seed in args.seeds:   # all variants with one seed first: the picture is there early
        for name in args.only:
            if str(seed) in results.get(name, {}):
                continue
            run = vae.load_or_train(vae.config_for(data, **VARIANTS[name], seed=seed), data)
            results.setdefault(name, {})[str(seed)] = measure(run.model, data, net, real) | {
                "seconds": run.record["seconds"], "hardware": run.record["hardware"]}
            vae.write_json(path, {"data": data.title, "fingerprint": data.fingerprint, "test_images": len(data.test.images),
                                  "command": "python checkpoints/ablation.py",
                                  "variants": VARIANTS, "results": results})


if __name__ == "__main__":
    vae.run_script(main)
