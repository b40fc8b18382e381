"""Train, measure and draw the whole family of models: figures/gallery.json and gallery*.png.

    python -m reproduce.gallery                   all of ENTRIES, hours on two CPU cores
    python -m reproduce.gallery --only vae wae    some of them; the others keep their numbers

Finished runs in runs/ are used again, so it can be stopped and started at will. A data set that
cannot be had is passed over. Without a GPU as many models are trained at a time as there are
cores: a core each is quicker than all for one. `python -m reproduce.make --texts` then fills the
tables of docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

import vae_helpers as vae
from base.files import ROOT
from support import conditional, disentanglement, metrics, report, runs

SHAPES = 30_000  # training images to be drawn
SAMPLES = 5000  # images in each Fréchet distance
SHOWN = 8  # images in each half of a row of the picture
ATTRIBUTES = ("Smiling", "Male", "Eyeglasses", "Blond_Hair")


class Entry(NamedTuple):
    """One model of the gallery."""

    dataset: str
    title: str
    settings: dict


SHARP = {"likelihood": "gaussian", "norm": "batch", "schedule": "one_cycle", "lr": 3e-3}
FACES = {"model": "cvae", "epochs": 15, **SHARP}
LONG_FC = {"arch": "fc", "epochs": 30}
FASHION = {
    "fc_vae": Entry("fashion_mnist", "VAE, fully connected", LONG_FC),
    "vae": Entry("fashion_mnist", "VAE", {}),
    "beta_vae": Entry("fashion_mnist", "β-VAE, β = 4", {"model": "beta_vae"}),
    "info_vae": Entry("fashion_mnist", "InfoVAE", {"model": "info_vae"}),
    "wae": Entry("fashion_mnist", "WAE-MMD", {"model": "wae"}),
    "ae": Entry("fashion_mnist", "autoencoder", {"model": "ae"}),
    "cvae": Entry("fashion_mnist", "conditional VAE", {"model": "cvae"}),
    "vq_vae": Entry("fashion_mnist", "VQ-VAE", {"model": "vq_vae", "epochs": 6, "prior_epochs": 3}),
}
VQ_ON_CIFAR = {"model": "vq_vae", "latent_dim": 64, "epochs": 5, "prior_epochs": 3}
OTHER_DATA = {
    "cifar10_vq_vae": Entry(
        "cifar10", "VQ-VAE on CIFAR-10, network of `best`", {**vae.PRESETS["best"], **VQ_ON_CIFAR}
    ),
    "mnist_fc_vae": Entry("mnist", "VAE on MNIST, fully connected", LONG_FC),
    "celeba_cvae": Entry(
        "celeba", "conditional VAE on CelebA, latent size 16", {"latent_dim": 16, **FACES}
    ),
    "celeba_cvae128": Entry(
        "celeba", "conditional VAE on CelebA, latent size 128", {"latent_dim": 128, **FACES}
    ),
}
OVER_LATENT_SIZE = {
    f"latent{size}": Entry(
        "fashion_mnist",
        f"VAE, fully connected, latent size {size}",
        {"arch": "fc", "latent_dim": size},
    )
    for size in (2, 5, 10, 20, 50, 100)
}
OVER_BETA = {
    f"shapes_beta{beta:g}": Entry(
        "shapes",
        f"β-VAE on shapes, β = {beta:g}",
        {"model": "beta_vae", "beta": beta, "latent_dim": 10, "width": 16},
    )
    for beta in (0.1, 1, 4, 10)
}
ENTRIES = FASHION | OTHER_DATA | OVER_LATENT_SIZE | OVER_BETA


def measured() -> dict[str, dict]:
    """What gallery.json holds: name → numbers, in the order of ENTRIES."""
    path = ROOT / "figures" / "gallery.json"
    return json.loads(path.read_text()) if path.is_file() else {}


# ── Training and measuring ──────────────────────────────────────────────────────────────────────


def load_images(name: str) -> vae.ImageData:
    """The data set of an entry. Raises DatasetUnavailable."""
    dataset = ENTRIES[name].dataset
    return vae.load_dataset(dataset, max_images=SHAPES if dataset == "shapes" else None)


def load_or_train(name: str, data: vae.ImageData) -> runs.Run:
    settings = {"latent_dim": 20} | ENTRIES[name].settings
    return runs.load_or_train(vae.config_for(data, **settings), data)


def train_and_measure(name: str) -> tuple[str, dict | None]:
    """The name and its numbers; None where its images cannot be had."""
    try:
        data = load_images(name)
    except vae.DatasetUnavailable as error:
        print(f"{name} is passed over: {error}")
        return name, None
    run = load_or_train(name, data)
    known = measured().get(name)
    if known and run.origin != "trained now":
        return name, known
    return name, measure(run, data)


def measure(run: runs.Run, data: vae.ImageData) -> dict:
    """Test numbers, units in the keys; ffd_* are Fréchet feature distances to test images."""
    model, net = run.model, metrics.load_feature_net(data.name)
    n = min(SAMPLES, len(data.test.images))
    images, labels = data.test.images[:n], data.test.labels[:n]
    mu, _ = vae.encode_images(model, images, labels)
    samples = vae.sample_images(model, n, labels, seed=0)
    sets = {
        "real_train": data.train.images[:n],
        "reconstructions": vae.decode_images(model, mu, labels),
        "samples": samples,
    }
    result = vae.evaluate(model, *data.test)
    result |= {"parameters": vae.count_parameters(model), "seconds": run.record["seconds"]}
    result |= {"hardware": run.record["hardware"], "data": data.title, "frechet_images": n}
    result |= metrics.distances(net, images, sets, "ffd")
    if data.name == "shapes":
        for key, value in disentanglement.disentanglement(model, seed=0).items():
            result[f"disentanglement_{key}"] = value
    if model.conditional and data.name == "celeba":
        result |= attribute_recognition(model, data)
    elif model.conditional:
        result |= class_recognition(data, samples, labels)
    return result


def class_recognition(data: vae.ImageData, samples: Tensor, labels: Tensor) -> dict[str, float]:
    """How often a random forest names the class of test images, and of samples of that class.

    It has seen the pixels of 10,000 training images.
    """
    forest = RandomForestClassifier(100, random_state=0)
    forest.fit(pixels(data.train.images[:10_000]), data.train.labels[:10_000])
    return {
        "recognised_test": forest.score(pixels(data.test.images), data.test.labels),
        "recognised_samples": forest.score(pixels(samples), labels),
    }


def attribute_recognition(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """How often a random forest finds ATTRIBUTES in faces: real ones, and the model's.

    It has seen the pixels of real faces at half size. recognised_test: how often it is right
    about test faces, mean over those with and without the attribute. recognised_on and _off: in
    how many of their reconstructions it finds the attribute when that is switched on and off.
    """
    images, labels = data.test
    columns = [data.label_names.index(name) for name in ATTRIBUTES]
    forest = RandomForestClassifier(  # one for all attributes: it takes minutes
        100, min_samples_leaf=5, class_weight="balanced", random_state=0
    )
    forest.fit(half_size_pixels(data.train.images), data.train.labels[:, columns].numpy())
    mu, _ = vae.encode_images(model, images, labels)
    predicted = forest.predict(half_size_pixels(images))
    result = {}
    for i, (name, column) in enumerate(zip(ATTRIBUTES, columns)):
        score = balanced_accuracy_score(labels[:, column].numpy(), predicted[:, i])
        result[f"recognised_test_{name}"] = float(score)
        for word, value in (("on", True), ("off", False)):
            switched = labels.clone()
            switched[:, column] = value
            decoded = half_size_pixels(vae.decode_images(model, mu, switched))
            result[f"recognised_{word}_{name}"] = float(forest.predict(decoded)[:, i].mean())
    return result


def pixels(images: Tensor):
    """Images (N, C, H, W) as the forests take them: an array (N, C * H * W) in [0, 1]."""
    return vae.as_unit(images).flatten(1).numpy()


def half_size_pixels(images: Tensor):
    return pixels(F.avg_pool2d(vae.as_unit(images), 2))


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────


def reconstructions_and_samples(model: vae.VAE, data: vae.ImageData) -> tuple[Tensor, Tensor]:
    """Both (SHOWN, C, H, W): of the first test images, and samples with their labels."""
    images, labels = data.test.images[:SHOWN], data.test.labels[:SHOWN]
    mu, _ = vae.encode_images(model, images, labels)
    return vae.decode_images(model, mu, labels), vae.sample_images(model, SHOWN, labels, seed=1)


def plot_family(models: dict[str, vae.VAE], data: vae.ImageData) -> Figure:
    """Reconstructions and samples of all models of Fashion-MNIST, a row each."""
    originals = vae.as_unit(data.test.images[:SHOWN])
    white = torch.ones_like(originals)
    rows = {"test images": torch.cat([originals, white[:1], white])}
    for name, entry in FASHION.items():
        copies, samples = reconstructions_and_samples(models[name], data)
        rows[entry.title] = torch.cat([copies, white[:1], samples])
    heads = [""] * (2 * SHOWN + 1)
    heads[SHOWN // 2] = "reconstructions"
    heads[SHOWN + 1 + SHOWN // 2] = "samples"
    return vae.plot_rows(rows, f"Eight models copy well, few draw well: {data.title}", heads)


def plot_attributes(model: vae.VAE, data: vae.ImageData) -> Figure:
    title = f"The smile obeys its label, hair colour hardly: conditional VAE, {data.title}"
    images, labels = data.test.images[:10], data.test.labels[:10]
    return conditional.plot_attributes(model, images, labels, data.label_names, ATTRIBUTES, title)


def plot_latent_sizes() -> Figure:
    """Reconstruction and KL against the latent size, from gallery.json."""
    sizes = [entry.settings["latent_dim"] for entry in OVER_LATENT_SIZE.values()]
    results = [measured()[name] for name in OVER_LATENT_SIZE]
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for ax, key, title in zip(axes, ("reconstruction_nats", "kl_nats"), ("reconstruction", "KL")):
        ax.plot(sizes, [result[key] for result in results], "o-")
        ax.set(xscale="log", xlabel="latent size", ylabel="nats per image", title=title)
        ax.set_xticks(sizes, map(str, sizes))
        ax.minorticks_off()
        ax.margins(0.1)
        ax.grid(alpha=0.3)
    fig.suptitle("Ten dimensions are enough: fully connected VAE, Fashion-MNIST", **vae.LEFT)
    return fig


def draw(models: dict[str, vae.VAE], sets: dict[str, vae.ImageData]) -> None:
    """Every picture for which the models are there."""
    if set(FASHION) <= set(models):
        save(plot_family(models, sets["fashion_mnist"]), "gallery.png")
    if "cvae" in models:
        data = sets["fashion_mnist"]
        title = f"The label decides what is drawn, the latent how: conditional VAE, {data.title}"
        save(
            conditional.plot_classes(models["cvae"], data.label_names, title), "gallery_classes.png"
        )
    if "celeba_cvae" in models:
        save(plot_attributes(models["celeba_cvae"], sets["celeba"]), "gallery_attributes.png")
    if set(OVER_LATENT_SIZE) <= set(measured()):
        save(plot_latent_sizes(), "gallery_latent_size.png")
    if "latent2" in models:
        title = f"Neighbours look alike: a two-dimensional code, {sets['fashion_mnist'].title}"
        save(report.plot_manifold(models["latent2"], title), "gallery_plane.png")
    for name in set(OVER_BETA) & set(models):
        rows = disentanglement.traversals(models[name], sets["shapes"], seed=0)
        title = f"One dimension in each row: {ENTRIES[name].title}"
        save(vae.plot_rows(rows, title), f"gallery_{name}.png")


def save(figure: Figure, name: str) -> None:
    report.save_figure(figure, ROOT / "figures" / name)
    print(f"figures/{name}")


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "which models (default all): " + ", ".join(ENTRIES)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=list(ENTRIES), help=names)
    on_cpu = vae.get_device().type == "cpu"
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=min(os.cpu_count() or 1, 8) if on_cpu else 1,
        help="how many models at a time (default one per core up to 8, with a GPU 1)",
    )
    args = parser.parse_args()
    for name in set(args.only) - set(ENTRIES):
        raise vae.VAEError(f"--only knows no {name}: choose from {', '.join(ENTRIES)}.")
    if args.jobs < 1:
        raise vae.VAEError(f"--jobs must be 1 or more, not {args.jobs}.")
    return args


def training_seconds(name: str) -> float:
    """What a model took last time; 0 where that is not known."""
    return measured().get(name, {}).get("seconds", 0.0)


def main() -> None:
    args = arguments()
    began = time.perf_counter()
    # The slowest first, so that no core is idle at the end.
    names = sorted(args.only, key=training_seconds, reverse=True)
    available = set()
    parallel = Parallel(args.jobs, return_as="generator_unordered")
    for name, numbers in parallel(delayed(train_and_measure)(name) for name in names):
        if numbers is None:
            continue
        available.add(name)
        results = measured() | {name: numbers}
        order = sorted(results, key=list(ENTRIES).index)
        vae.write_json(ROOT / "figures" / "gallery.json", {key: results[key] for key in order})
        print(f"{name}: {time.perf_counter() - began:,.0f} s", flush=True)
    os.environ.pop("VAE_TRAIN", None)  # what was to be trained is trained
    models, sets = {}, {}
    for name in sorted(available):
        dataset = ENTRIES[name].dataset
        if dataset not in sets:
            sets[dataset] = load_images(name)
        models[name] = load_or_train(name, sets[dataset]).model
    draw(models, sets)


if __name__ == "__main__":
    runs.run_script(main)
