"""What the learned prior draws, and how it learned: pictures of the two released models.

    python -m reproduce.prior           needs the real data; some five minutes on two CPU cores

Nothing is chosen: every sheet has the first 64 or more samples of seed 0, asked for with a strength
of 1.5 (see conditional.labels_of). The nearest training images show whether the
samples are copies; figures/grid.json has the numbers. What evaluate.py measures stands in
checkpoints/*_prior/metrics.json.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

import vae_helpers as vae
from base.figure_style import LEFT
from base.files import ROOT
from support import conditional, metrics, report, runs

MODELS = {"cifar10": "cifar10_grid", "celeba": "celeba_grid"}
ASKED = ("Smiling,-Male", "-Smiling,-Male", "Smiling,Male", "-Smiling,Male", "Blond_Hair",
         "Black_Hair,-Male", "Eyeglasses", "Wearing_Hat")  # fmt: skip
TEMPERATURES = {"cifar10": (1.0, 0.8), "celeba": (1.0, 0.5)}
PER_ROW = {"cifar10": 10, "celeba": 8}
SHOWN = 10  # samples beside their nearest training images
COMPARED = 200  # samples and test images whose nearest training image is measured


def plot_sheet(model: vae.VAE, data: vae.ImageData, temperature: float) -> Figure:
    """A class, or what attributes ask for, in each row."""
    n = PER_ROW[data.name]
    rows = {}
    for text in data.class_names or ASKED:
        labels = conditional.labels_of(data, text, n, strength=1.5)
        name = text.replace("-", "not ").replace(",", ", ").replace("_", " ")
        rows[name] = vae.sample_images(model, n, labels, seed=0, temperature=temperature)
    title = f"Samples of the learned prior at temperature {temperature:g}: {data.title}"
    return vae.plot_rows(rows, title)


def vectors(images: Tensor, space: str, net: metrics.FeatureNet) -> Tensor:
    """Images (N, C, H, W), uint8 or float → (N, D), their pixels or their features."""
    if space == "pixels":
        return vae.as_unit(images).flatten(1)
    return metrics.image_features(images, net)


def nearest(vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of vectors (N, D) the nearest of others (M, D): distances and indices, each (N,)."""
    parts = [torch.cdist(vectors, part).min(1) for part in others.split(5000)]
    distances = torch.stack([part.values for part in parts])
    indices = torch.stack([part.indices + 5000 * i for i, part in enumerate(parts)])
    best = distances.argmin(0, keepdim=True)
    return distances.gather(0, best)[0], indices.gather(0, best)[0]


def nearest_images(model: vae.VAE, data: vae.ImageData) -> tuple[Figure, dict[str, float]]:
    """Samples over the training images that are nearest in pixels and in features.

    Training images count mirrored, too. The numbers: the median distance of samples from their
    nearest training image, and that of reconstructed test images, which are no copies.
    """
    net = metrics.load_feature_net(data.name)
    train = torch.cat([data.train.images, data.train.images.flip(3)])
    test, labels = data.test.images[:COMPARED], data.test.labels[:COMPARED]
    mu, _ = vae.encode_images(model, test, labels)
    sets = {
        "samples": vae.sample_images(model, COMPARED, labels, seed=0),
        "test images": vae.decode_images(model, mu, labels),
    }
    rows = {"sample": sets["samples"][:SHOWN]}
    numbers = {}
    for space in ("pixels", "features"):
        known = vectors(train, space, net)
        for name, images in sets.items():
            distance, index = nearest(vectors(images, space, net), known)
            numbers[f"{space}, {name}"] = distance.median().item()
            if name == "samples":
                rows[f"nearest in {space}"] = train[index[:SHOWN]]
    title = f"Samples and their nearest training images: {data.title}"
    return vae.plot_rows(rows, title), numbers


def plot_learning(records: dict[str, dict]) -> Figure:
    """The price of the codes over the last stage, one panel for each model."""
    figure, axes = plt.subplots(
        1, len(records), figsize=(9, 3.2), layout="constrained", squeeze=False
    )
    for ax, record in zip(axes[0], records.values()):
        rows = record["history"][record["config"]["epochs"] :]
        epochs = range(1, len(rows) + 1)
        ax.plot(epochs, [row["val_kl_nats"] for row in rows], "o-", label="validation")
        ax.plot(epochs, [row["train_kl_nats"] for row in rows], "o--", label="training")
        ax.set(xlabel="epoch of the prior", title=record["data"]["title"])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("price of the codes, nats per image")
    axes[0, 0].legend()
    figure.suptitle("How the prior learns: fewer nats, likelier codes", **LEFT)
    return figure


def morph(model: vae.VAE, images: Tensor) -> bytes:
    """A film of images (2n, C, H, W): each of the first n becomes one of the others, and back."""
    mu, _ = vae.encode_images(model, images)
    start, end = mu.chunk(2)
    path = vae.interpolate_latents(start, end, 13, "spherical")
    return vae.animate(vae.decode_images(model, path), cell=1.2, seconds=0.12)


def main() -> None:
    records, numbers = {}, {}
    for dataset, folder in MODELS.items():
        data = vae.load_dataset(dataset)
        model, records[dataset] = vae.load_checkpoint(runs.RELEASED / folder)
        for temperature in TEMPERATURES[dataset]:
            figure = plot_sheet(model, data, temperature)
            report.save_figure(figure, ROOT / "figures" / f"grid_{dataset}_{temperature:g}.png")
        figure, numbers[dataset] = nearest_images(model, data)
        report.save_figure(figure, ROOT / "figures" / f"grid_{dataset}_nearest.png")
    attributes = data.test.labels[:24]
    faces = vae.sample_images(model, 24, attributes, seed=0, temperature=0.5)
    figure = vae.plot_grid(faces, "Nobody: drawn by a VAE", cell=0.9)
    report.save_figure(figure, ROOT / "figures" / "faces.png")
    (ROOT / "figures" / "morph.gif").write_bytes(morph(model, data.test.images[:10]))
    report.save_figure(plot_learning(records), ROOT / "figures" / "grid_learning.png")
    vae.write_json(ROOT / "figures" / "grid.json", numbers)


if __name__ == "__main__":
    runs.run_script(main)
