"""Train, measure and draw the whole family of models; draw what the released models can do.

    python -m reproduce.gallery               everything; three hours of training on a CPU
    python -m reproduce.gallery vae wae       some models; the others keep their numbers
    python -m reproduce.gallery tasks grid    only pictures of released models, for README.md and
                                              docs/results.md; four minutes on two CPU cores

Finished runs in runs/ are used again, so it can be stopped and started at will. A data set that
cannot be had is passed over. Writes figures/gallery.json and grid.json, gallery*.png, grid_*.png,
task*.png, quality_reconstructions.png and new_images.png. They show the first test images,
or the first samples of a seed; only the pairs of the walks were chosen.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import vae_helpers as vae
from base.figure_style import LEFT
from reproduce.common import CHECKPOINTS, FIGURES, chosen, load_models, measure, read_json, save
from reproduce.theory import PAIR
from support import conditional, disentanglement, metrics, network_drawing, report, runs

# ── The family ──────────────────────────────────────────────────────────────────────────────────

SHAPES = 30_000  # training images to be drawn
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
    return read_json("figures/gallery.json") if (FIGURES / "gallery.json").is_file() else {}


def train_and_measure(names: list[str]) -> tuple[dict[str, vae.VAE], dict[str, vae.ImageData]]:
    """The models by name and their data by name; new numbers go to gallery.json."""
    models, sets = {}, {}
    for name in names:
        dataset, _, settings = ENTRIES[name]
        try:
            if dataset not in sets:
                number = SHAPES if dataset == "shapes" else None
                sets[dataset] = vae.load_dataset(dataset, max_images=number)
        except vae.DatasetUnavailable as error:
            print(f"{name} is passed over: {error}")
            continue
        data = sets[dataset]
        run = runs.load_or_train(vae.config_for(data, **{"latent_dim": 20} | settings), data)
        models[name] = run.model
        results = measured()
        if name not in results or run.origin == "trained now":
            results[name] = measure(run, data)
            order = sorted(results, key=list(ENTRIES).index)
            vae.write_json(FIGURES / "gallery.json", {key: results[key] for key in order})
    return models, sets


def plot_family(models: dict[str, vae.VAE], data: vae.ImageData) -> Figure:
    """Reconstructions and samples of all models of Fashion-MNIST, a row each."""
    images, labels = data.test.images[:SHOWN], data.test.labels[:SHOWN]
    white = torch.ones_like(vae.as_unit(images))
    rows = {"test images": torch.cat([vae.as_unit(images), white[:1], white])}
    for name, entry in FASHION.items():
        mu, _ = vae.encode_images(models[name], images, labels)
        x_hat = vae.decode_images(models[name], mu, labels)
        samples = vae.sample_images(models[name], SHOWN, labels, seed=1)
        rows[entry.title] = torch.cat([x_hat, white[:1], samples])
    heads = [""] * (2 * SHOWN + 1)
    heads[SHOWN // 2] = "reconstructions"
    heads[SHOWN + 1 + SHOWN // 2] = "samples"
    return vae.plot_rows(rows, f"Eight models copy well, few draw well: {data.title}", heads)


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
    fig.suptitle("Ten dimensions are enough: fully connected VAE, Fashion-MNIST", **LEFT)
    return fig


def draw_family(models: dict[str, vae.VAE], sets: dict[str, vae.ImageData]) -> None:
    """Every picture for which the models are there."""
    if set(FASHION) <= set(models):
        save(plot_family(models, sets["fashion_mnist"]), "gallery.png")
    if "cvae" in models:
        data = sets["fashion_mnist"]
        title = f"The label decides what is drawn, the latent how: conditional VAE, {data.title}"
        figure = conditional.plot_classes(models["cvae"], data.label_names, title)
        save(figure, "gallery_classes.png")
    if "celeba_cvae" in models:
        data = sets["celeba"]
        title = f"The smile obeys its label, hair colour hardly: conditional VAE, {data.title}"
        ten = (data.test.images[:10], data.test.labels[:10], data.label_names)
        figure = conditional.plot_attributes(models["celeba_cvae"], *ten, ATTRIBUTES, title)
        save(figure, "gallery_attributes.png")
    if set(OVER_LATENT_SIZE) & set(models) and set(OVER_LATENT_SIZE) <= set(measured()):
        save(plot_latent_sizes(), "gallery_latent_size.png")
    if "latent2" in models:
        title = f"Neighbours look alike: a two-dimensional code, {sets['fashion_mnist'].title}"
        save(report.plot_manifold(models["latent2"], title), "gallery_plane.png")
    if "shapes_beta1" in models:
        rows = disentanglement.traversals(models["shapes_beta1"], sets["shapes"], seed=0)
        title = f"One dimension in each row: {ENTRIES['shapes_beta1'].title}"
        save(vae.plot_rows(rows, title), "gallery_shapes_beta1.png")


# ── The tasks: pictures of released models ──────────────────────────────────────────────────────


def draw_tasks() -> None:
    """What a VAE is, a picture of each task, and one of what makes reconstructions sharper."""
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    images, people = cifar.test.images, faces.test.images
    names = {"plain": "cifar10_conv", "fully connected": "cifar10_fc"}
    names["… three times the size"] = "cifar10_fc3x"
    models = load_models(names)
    drawn = {"Task 1's convolutional network": models["plain"]}
    title = "A variational autoencoder, from image to image"
    save(network_drawing.plot_networks(drawn, images[4], title), "vae.png")
    title = f"Task 1 · convolutions keep more than a blob: {cifar.title}"
    save(vae.plot_reconstructions(models, images[:12], title), "task1_reconstructions.png")

    names = {"plain": "cifar10_conv", "calibrated σ": "cifar10_conv_sigma", "best": "cifar10_best"}
    models = load_models(names | {"grid of faces": "celeba_grid", "plain faces": "celeba_conv"})
    sharper = {name: models[name] for name in names}
    title = f"Two losses, three models, one latent size: {cifar.title}"
    save(vae.plot_reconstructions(sharper, images[:12], title), "quality_reconstructions.png")

    first, last = PAIR
    walks = {
        "bird to car, best": vae.interpolate_images(models["best"], images[first], images[last], 9),
        "face to face, grid": vae.interpolate_images(
            models["grid of faces"], people[7], people[16], 9
        ),
    }
    rows = {}
    for name, walk in walks.items():
        pictures = enlarged(walk) if walk.shape[-1] == 32 else walk
        rows[name] = pictures
        rows[f"fade of row {len(rows)}"] = vae.cross_fade(pictures[0], pictures[-1], 9)
    title = f"Task 2 · straight walks, and fades: {cifar.title}, {faces.title}"
    save(vae.plot_rows(rows, title, cell=1.28), "task2_interpolation.png")

    model = models["plain faces"]
    codes = F.normalize(vae.sample_codes(model, people[:12]), dim=1)
    random = vae.sample_latents(12, model.latent_size, seed=0, radius=1)
    rows = {}
    for name, directions in (("random", random), ("codes of faces", codes)):
        for radius in (6.5, 11.3, 40):
            rows[f"{name}, ‖z‖ = {radius}"] = vae.decode_images(model, radius * directions)
    title = f"Task 3 · further out, random directions lose the face: {faces.title}"
    save(vae.plot_rows(rows, title), "task3_regions.png")


# ── The grid of codes: what its learned prior draws, and how it learned ─────────────────────────

GRIDS = {"cifar10": "cifar10_grid", "celeba": "celeba_grid"}
ASKED = ("Smiling,-Male", "-Smiling,-Male", "Smiling,Male", "-Smiling,Male", "Blond_Hair",
         "Black_Hair,-Male", "Eyeglasses", "Wearing_Hat")  # fmt: skip
# File → how its samples are drawn.
SHEETS = {
    "cifar10": {"grid_cifar10.png": {}, "grid_cifar10_guided.png": {"guidance": 2.0}},
    "celeba": {
        "grid_celeba.png": {},
        "grid_celeba_guided.png": {"guidance": 1.0, "temperature": 0.7},
    },
}
PER_ROW = {"cifar10": 10, "celeba": 8}
SAMPLES = 200  # samples, and test images, whose nearest training image is looked for


def draw_grids() -> None:
    records, numbers, drawn = {}, {}, {}
    for dataset, folder in GRIDS.items():
        data = vae.load_dataset(dataset)
        model, records[dataset] = vae.load_checkpoint(CHECKPOINTS / folder)
        for name, way in SHEETS[dataset].items():
            save(plot_sheet(model, data, way), name)
        figure, numbers[dataset] = nearest_images(model, data)
        save(figure, f"grid_{dataset}_nearest.png")
        drawn |= new_images(model, data)
    vae.write_json(FIGURES / "grid.json", numbers)
    save(plot_learning(records), "grid_learning.png")
    save(vae.plot_sheets(drawn, "New images of the model grid", columns=10), "new_images.png")


def new_images(model: vae.VAE, data: vae.ImageData, n: int = 40) -> dict[str, Tensor]:
    """Title → n new images of 64x64 pixels, ten in a row."""
    if data.name == "celeba":
        title = f"{data.title}: attributes of test faces, temperature 0.7"
        return {title: vae.sample_images(model, n, data.test.labels[:n], seed=0, temperature=0.7)}
    images = vae.sample_images(model, n, torch.arange(n) % 10, seed=0, guidance=2.0)
    return {f"{data.title}: a class in each column, guidance 2": enlarged(images)}


def enlarged(images: Tensor) -> Tensor:
    """Each pixel becomes four, as large as those beside images of twice the size."""
    return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def plot_sheet(model: vae.VAE, data: vae.ImageData, way: dict[str, float]) -> Figure:
    """A class, or what attributes ask for, in each row."""
    n = PER_ROW[data.name]
    rows = {}
    for text in data.class_names or ASKED:
        labels, without = conditional.labels_of(data, text, n)
        name = text.replace("-", "not ").replace(",", ", ").replace("_", " ")
        rows[name] = vae.sample_images(model, n, labels, seed=0, without=without, **way)
    how = ", ".join(f"{name} {value:g}" for name, value in ({"temperature": 1.0} | way).items())
    return vae.plot_rows(rows, f"Samples of the learned prior, {how}: {data.title}")


def pixels(images: Tensor) -> Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1] → (N, C * H * W)."""
    return vae.as_unit(images).flatten(1)


def nearest_images(model: vae.VAE, data: vae.ImageData) -> tuple[Figure, dict[str, float]]:
    """Ten samples over the training images that are nearest in pixels and in features.

    Training images count mirrored, too. The numbers: the median distance of samples from their
    nearest training image, and that of reconstructed test images, which are no copies.
    """
    net = metrics.load_feature_net(data.name)
    train = torch.cat([data.train.images, data.train.images.flip(3)])
    test, labels = data.test.images[:SAMPLES], data.test.labels[:SAMPLES]
    mu, _ = vae.encode_images(model, test, labels)
    sets = {
        "samples": vae.sample_images(model, SAMPLES, labels, seed=0),
        "test images": vae.decode_images(model, mu, labels),
    }
    rows = {"sample": sets["samples"][:10]}
    numbers = {}
    spaces = {"pixels": pixels, "features": partial(metrics.image_features, net=net)}
    for space, vectors in spaces.items():
        known = vectors(train)
        for name, images in sets.items():
            distance, index = torch.cdist(vectors(images), known).min(1)
            numbers[f"{space}, {name}"] = distance.median().item()
            if name == "samples":
                rows[f"nearest in {space}"] = train[index[:10]]
    title = f"Samples and their nearest training images: {data.title}"
    return vae.plot_rows(rows, title), numbers


def plot_learning(records: dict[str, dict]) -> Figure:
    """The rate of the codes while the prior learns, one panel for each model."""
    figure, axes = plt.subplots(1, len(records), figsize=(9, 3.2), layout="constrained")
    for ax, record in zip(axes, records.values()):
        rows = [row for row in record["history"] if row["stage"] == "prior"]
        epochs = range(1, len(rows) + 1)
        ax.plot(epochs, [row["val_kl_nats"] for row in rows], "o-", label="validation")
        ax.plot(epochs, [row["train_kl_nats"] for row in rows], "o--", label="training")
        ax.set(xlabel="epoch of the prior", title=record["data"]["title"])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("rate of the codes, nats per image")
    axes[0].legend()
    figure.suptitle("How the prior learns: fewer nats, likelier codes", **LEFT)
    return figure


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    names = chosen(__doc__, ["tasks", "grid", *ENTRIES])
    if "tasks" in names:
        draw_tasks()
    if "grid" in names:
        draw_grids()
    draw_family(*train_and_measure([name for name in names if name in ENTRIES]))


if __name__ == "__main__":
    runs.run_script(main)
