"""The whole family side by side: train what is missing, measure it, and write gallery.json and gallery*.png.

    python figures/gallery.py                   every model on Fashion-MNIST, the basic one also on MNIST and over the latent size; a
                                                cvae on faces; a vq_vae on CIFAR-10; over β, how disentangled codes of drawn shapes are
    python figures/gallery.py --only vae wae    some of them; the others keep their numbers, and their pictures

Without a GPU, as many models are trained at a time as there are cores: a core each is quicker than all for one (--jobs 1).
Finished runs in runs/ and numbers in gallery.json are found again, so it can be stopped and started at will. A data set that
cannot be had is passed over.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.metrics import balanced_accuracy_score  # noqa: E402

import evaluate  # noqa: E402
import train  # noqa: E402
import vae_helpers as vae  # noqa: E402

SHAPES = 30_000            # training images to be drawn
SAMPLES, SHOWN = 5000, 8   # images in each Fréchet distance; in each half of a row of the picture
SHARP = {"likelihood": "gaussian", "norm": "batch", "schedule": "one_cycle", "lr": 3e-3}
ENTRIES = {   # name → data set, title, settings
    "fc_vae": ("fashion_mnist", "VAE, fully connected", {"arch": "fc", "epochs": 30}),
    "vae": ("fashion_mnist", "VAE", {}),
    "beta_vae": ("fashion_mnist", "β-VAE, β = 4", {"model": "beta_vae"}),
    "info_vae": ("fashion_mnist", "InfoVAE", {"model": "info_vae"}),
    "wae": ("fashion_mnist", "WAE-MMD", {"model": "wae"}),
    "ae": ("fashion_mnist", "autoencoder", {"model": "ae"}),
    "cvae": ("fashion_mnist", "conditional VAE", {"model": "cvae"}),
    "vq_vae": ("fashion_mnist", "VQ-VAE", {"model": "vq_vae", "epochs": 6}),   # an epoch costs three of the others'
    "mnist_fc_vae": ("mnist", "VAE on MNIST, fully connected", {"arch": "fc", "epochs": 30}),
    "celeba_cvae": ("celeba", "conditional VAE on CelebA, latent size 16", {"model": "cvae", "latent_dim": 16, "epochs": 15, **SHARP}),
    "celeba_cvae128": ("celeba", "conditional VAE on CelebA, latent size 128", {"model": "cvae", "latent_dim": 128, "epochs": 15, **SHARP}),
    "cifar10_vq_vae": ("cifar10", "VQ-VAE on CIFAR-10", {"model": "vq_vae", "latent_dim": 64, "residual": 1, **SHARP}),
} | {f"latent{size}": ("fashion_mnist", f"VAE, fully connected, latent size {size}", {"arch": "fc", "latent_dim": size})
     for size in (2, 5, 10, 20, 50, 100)
} | {f"shapes_beta{beta:g}": ("shapes", f"β-VAE on shapes, β = {beta:g}", {"model": "beta_vae", "beta": beta, "latent_dim": 10, "width": 16})
     for beta in (0.1, 1, 4, 10)}
OVER_BETA = [name for name in ENTRIES if name.startswith("shapes_beta")]
OVER_LATENT_SIZE = [name for name in ENTRIES if name.startswith("latent")]
ELSEWHERE = ["mnist_fc_vae", "celeba_cvae", "celeba_cvae128", "cifar10_vq_vae"]
ATTRIBUTES = ("Smiling", "Male", "Eyeglasses", "Blond_Hair")
FAMILY = [name for name, entry in ENTRIES.items() if entry[0] == "fashion_mnist" and name not in OVER_LATENT_SIZE]


def measure(run: vae.Run, data: vae.ImageData, net: vae.FeatureNet) -> dict:
    """Test numbers, units in the keys; ffd_* are Fréchet feature distances to the first SAMPLES test images."""
    model, (images, labels) = run.model, data.test
    n = min(SAMPLES, len(images))
    sets = {"reconstructions": vae.decode_images(model, vae.encode_images(model, images[:n], labels[:n])[0], labels[:n]),
            "samples": vae.sample_images(model, n, labels[:n], seed=0)}
    real = vae.image_features(images[:n], net)
    floor = {"ffd_real_train": vae.frechet_distance(real, vae.image_features(data.train.images[:n], net)), "frechet_images": n}
    result = {**vae.evaluate(model, images, labels), "parameters": vae.count_parameters(model), "seconds": run.record["seconds"],
              "hardware": run.record["hardware"], "data": data.title, **floor,
              **{f"ffd_{name}": vae.frechet_distance(real, vae.image_features(some, net)) for name, some in sets.items()}}
    if data.name == "shapes":
        result |= {f"disentanglement_{key}": value for key, value in evaluate.disentanglement(model, seed=0).items()}
    if data.name == "celeba" and model.config.conditions:
        result |= attribute_recognition(model, data)
    elif model.config.conditions:
        result |= recognition(data, sets["samples"], labels[:n])
    return result


def recognition(data: vae.ImageData, samples: torch.Tensor, told: torch.Tensor) -> dict[str, float]:
    """How often a random forest on the pixels of real images names the class of test images, and of samples of that class."""
    flat = lambda images: vae.as_unit(images).flatten(1).numpy()   # noqa: E731
    judge = RandomForestClassifier(100, random_state=0).fit(flat(data.train.images[:10_000]), data.train.labels[:10_000])
    return {"recognised_test": judge.score(flat(data.test.images), data.test.labels), "recognised_samples": judge.score(flat(samples), told)}


def attribute_recognition(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """For each of ATTRIBUTES, by a random forest on the pixels of real faces at half size: how often it is right about real test
    faces (mean over those with and without the attribute), and how often it finds the attribute in the same reconstructions with
    it switched on and off."""
    flat = lambda images: torch.nn.functional.avg_pool2d(vae.as_unit(images), 2).flatten(1).numpy()   # noqa: E731
    (images, labels), columns, result = data.test, [data.label_names.index(name) for name in ATTRIBUTES], {}
    judge = RandomForestClassifier(100, min_samples_leaf=5, class_weight="balanced", random_state=0)   # one for all, it takes minutes
    judge.fit(flat(data.train.images), data.train.labels[:, columns].numpy())
    mu, named = vae.encode_images(model, images, labels)[0], judge.predict(flat(images))
    for i, (name, k) in enumerate(zip(ATTRIBUTES, columns)):
        result[f"recognised_test_{name}"] = float(balanced_accuracy_score(labels[:, k].numpy(), named[:, i]))
        for word, value in (("on", True), ("off", False)):
            switched = labels.clone()
            switched[:, k] = value
            result[f"recognised_{word}_{name}"] = float(judge.predict(flat(vae.decode_images(model, mu, switched)))[:, i].mean())
    return result


def row(model: vae.VAE, data: vae.ImageData) -> torch.Tensor:
    """Reconstructions, a gap, samples: (2 * SHOWN + 1, C, H, W)."""
    images, labels = (tensor[:SHOWN] for tensor in data.test)
    copies = vae.decode_images(model, vae.encode_images(model, images, labels)[0], labels)
    return torch.cat([copies, torch.ones_like(copies[:1]), vae.sample_images(model, SHOWN, labels, seed=1)])


def images_for(name: str) -> vae.ImageData:
    return vae.load_dataset(ENTRIES[name][0], max_images=SHAPES if ENTRIES[name][0] == "shapes" else None)


def trained(name: str, data: vae.ImageData) -> vae.Run:
    return vae.load_or_train(vae.config_for(data, **{"latent_dim": 20} | ENTRIES[name][2]), data)


def train_and_measure(name: str) -> tuple[str, str | None, dict | None]:
    """The name, where the model is from (None: its images cannot be had), and its numbers if they are new."""
    try:
        data = images_for(name)
    except vae.DatasetUnavailable as err:
        print(f"{name} is passed over: {err}")
        return name, None, None
    run = trained(name, data)
    known = run.origin != "trained now" and name in measured()
    return name, run.origin, None if known else measure(run, data, vae.load_feature_net())


def draw(models: dict[str, vae.VAE], sets: dict[str, vae.ImageData]) -> None:
    """The pictures for which the models are there: gallery.png, classes, attributes, codes, the latent size and plane, traversals over β."""
    if set(FAMILY) <= set(models):
        fashion = sets["fashion_mnist"]
        originals = vae.as_unit(fashion.test.images[:SHOWN])
        rows = {"test images": torch.cat([originals, torch.ones(SHOWN + 1, *originals.shape[1:])])}
        rows |= {ENTRIES[name][1]: row(models[name], fashion) for name in FAMILY}
        heads = ["reconstructions" if i == SHOWN // 2 else "samples" if i == SHOWN + 1 + SHOWN // 2 else "" for i in range(2 * SHOWN + 1)]
        save(vae.plot_rows(rows, f"{fashion.title}: eight models", heads), "gallery.png")
    if "cvae" in models:
        fashion = sets["fashion_mnist"]
        save(vae.plot_classes(models["cvae"], fashion.label_names, f"Conditional VAE, one latent per row: {fashion.title}"), "gallery_classes.png")
    if "celeba_cvae" in models:
        images, labels = (tensor[:10] for tensor in sets["celeba"].test)
        save(vae.plot_attributes(models["celeba_cvae"], images, labels, sets["celeba"].label_names, ATTRIBUTES,
                                 f"Conditional VAE, one attribute off and on: {sets['celeba'].title}"), "gallery_attributes.png")
    if "cifar10_vq_vae" in models:
        images = row(models["cifar10_vq_vae"], sets["cifar10"])
        rows = {"test images": vae.as_unit(sets["cifar10"].test.images[:SHOWN]), "reconstructions": images[:SHOWN], "samples of the prior": images[SHOWN + 1:]}
        save(vae.plot_rows(rows, f"VQ-VAE: {sets['cifar10'].title}"), "gallery_codes.png")
    if set(OVER_LATENT_SIZE) <= set(measured()):
        results = {name: measured()[name] | {"latent_dim": ENTRIES[name][2]["latent_dim"]} for name in OVER_LATENT_SIZE}
        save(train.plot_sweep(results, ["latent_dim"], "Fully connected VAE, test images of Fashion-MNIST"), "gallery_latent_size.png")
    if "latent2" in models:
        save(vae.plot_manifold(models["latent2"], f"Everything that a model with two latent dimensions draws: trained on {sets['fashion_mnist'].title}"),
             "gallery_plane.png")
    for name in set(OVER_BETA) & set(models):
        rows = evaluate.traversals(models[name], sets["shapes"], seed=0)
        save(vae.plot_rows(rows, f"{ENTRIES[name][1]}: one latent dimension at a time"), f"gallery_{name}.png")


def save(fig, name: str) -> None:
    fig.savefig(HERE / name, dpi=110)
    plt.close(fig)
    print(f"figures/{name}")


def measured() -> dict[str, dict]:
    """What gallery.json holds: name → numbers, in the order of ENTRIES."""
    path = HERE / "gallery.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def model_table(names: list[str]) -> str:
    """One row for each of these models that was measured; – where a number does not exist."""
    cell = lambda n, key, spec: format(n[key], spec) if key in n else "–"   # noqa: E731
    return vae.markdown_table([{
        "model": ENTRIES[name][1], "parameters": f"{n['parameters']:,}", "reconstruction (nats)": cell(n, "reconstruction_nats", ",.1f"),
        "KL, or price of the codes (nats)": cell(n, "kl_nats", ",.1f") if n.get("kl_nats") else "–",   # 0: a code without a price
        "MSE": cell(n, "mse", ".4f"), "active dimensions, or codes used": f"{n.get('active_dims', n.get('codes_used'))}",
        "distance: reconstructions": cell(n, "ffd_reconstructions", ",.0f"), "distance: samples": cell(n, "ffd_samples", ",.0f"),
        "training (s)": cell(n, "seconds", ",.0f")} for name, n in measured().items() if name in names])


def attribute_table() -> str:
    """One row for each of ATTRIBUTES: what attribute_recognition found for the two latent sizes."""
    found = {ENTRIES[name][2]["latent_dim"]: n for name, n in measured().items() if ENTRIES[name][0] == "celeba"}
    return vae.markdown_table([{"attribute": name.replace("_", " "), **{
        f"{what}, latent size {size}" if key != "test" else "real test faces, right": f"{100 * n[f'recognised_{key}_{name}']:.0f} %"
        for size, n in found.items() for key, what in (("test", ""), ("off", "found when off"), ("on", "found when on"))}} for name in ATTRIBUTES])


def disentanglement_table() -> str:
    """One row for each beta on the drawn shapes."""
    scores = {"mig": "MIG", "dci_disentanglement": "DCI disentanglement", "dci_completeness": "DCI completeness",
              "dci_informativeness": "DCI informativeness", "factor_vae_score": "FactorVAE score"}
    over_beta = {name: n for name, n in measured().items() if name in OVER_BETA}
    return vae.markdown_table([{"β": f"{ENTRIES[name][2]['beta']:g}", "reconstruction (nats)": f"{n['reconstruction_nats']:,.1f}", "KL (nats)": f"{n['kl_nats']:.1f}",
                                "active dimensions": n["active_dims"],
                                **{title: f"{n[f'disentanglement_{key}']:.2f}" if f"disentanglement_{key}" in n else "–" for key, title in scores.items()}}
                               for name, n in over_beta.items()])


TABLES = {"gallery": lambda: model_table(FAMILY), "elsewhere": lambda: model_table(ELSEWHERE), "attributes": attribute_table,
          "disentanglement": disentanglement_table}   # what gallery.md calls them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=list(ENTRIES), help="which models (default all): " + ", ".join(ENTRIES))
    parser.add_argument("--jobs", metavar="N", type=int, default=1 if vae.get_device().type != "cpu" else min(os.cpu_count() or 1, 8),
                        help="how many models at a time (default one per core up to 8, with a GPU 1)")
    args = parser.parse_args()
    if unknown := set(args.only) - set(ENTRIES):
        raise vae.VAEError(f"--only knows no {', '.join(sorted(unknown))}; choose from {', '.join(ENTRIES)}.")
    if args.jobs < 1:
        raise vae.VAEError(f"--jobs must be 1 or more, not {args.jobs}.")
    began = time.perf_counter()
    slowest_first = sorted(args.only, key=lambda name: -measured().get(name, {}).get("seconds", 0))   # so that no core is idle at the end
    there, trained_now = set(), set()
    for name, origin, numbers in Parallel(args.jobs, return_as="generator_unordered")(map(delayed(train_and_measure), slowest_first)):
        there |= {name} if origin else set()
        trained_now |= {name} if origin == "trained now" else set()
        if numbers:
            every = measured() | {name: numbers}
            vae.write_json(HERE / "gallery.json", {key: every[key] for key in ENTRIES if key in every})
        print(f"{name}: {time.perf_counter() - began:,.0f} s", flush=True)
    if trained_now == set(FAMILY):
        vae.write_json(HERE / "gallery_time.json", {"minutes": (time.perf_counter() - began) / 60, "jobs": args.jobs, "cores": os.cpu_count()})
    os.environ.pop("VAE_TRAIN", None)   # what was to be trained is
    models, sets = {}, {}
    for name in (name for name in args.only if name in there):
        data = sets[ENTRIES[name][0]] = sets.get(ENTRIES[name][0]) or images_for(name)
        models[name] = trained(name, data).model
    draw(models, sets)
    for table in TABLES.values():
        print(table())


if __name__ == "__main__":
    vae.run_script(main)
