"""Draw and measure what theory_answers.md shows: one function for each of its questions.

    python -m reproduce.theory          needs the real data; some eight minutes on two CPU cores
    python -m reproduce.theory q3       some of the parts: q1, q2, q3, plane, q4

All is made with the released weights, but for the two small models of `plane` and two further seeds
of each model of q4, half an hour of training, which are kept in runs/. Writes figures/theory_*.png
and theory.json.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import vae_helpers as vae
from base.figure_style import LEFT
from reproduce.common import FIGURES, chosen, load_models, read_json, save
from support import metrics, runs
from support.network_drawing import plot_two_graphs

BETAS = {
    "β = 0": "cifar10_conv_beta0",
    "β = 0.1": "cifar10_conv_beta0.1",
    "β = 1": "cifar10_conv",
    "β = 4": "cifar10_conv_beta4",
}
AUTOENCODER_AND_VAE = {"autoencoder": "cifar10_conv_ae", "VAE": "cifar10_conv"}
SEEDS = (0, 1, 2)  # of question 4
USED = 0.2  # nats that a dimension must cost to count as used
PAIR = (12, 37)  # the test images that are interpolated
SHOWN = 8  # images in a row
HELD = 0.95  # a code is inside a posterior as near as this share of the posterior's own samples
NEIGHBOURS = 200  # test images whose nearest training image is looked for
Answer = tuple[dict[str, Figure], dict]  # file name → figure, and what was measured


# ── Questions 1 and 3: where the codes lie ──────────────────────────────────────────────────────


def squared_distances(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Sums of ((z - mu) / sigma)^2: of each z (n, D) to each mu, logvar (N, D), (n, N)."""
    precision = (-logvar).exp()
    # The square is multiplied out, so that matrix products do the work.
    products = z.square() @ precision.T - 2 * z @ (mu * precision).T
    return products + (mu.square() * precision).sum(1)


def index_information(mu: Tensor, logvar: Tensor, n: int = 1000) -> float:
    """Mutual information, in nats, of a code and the index of its image among N images.

    E[log q(z|x) - log q(z)], where q(z) is the mean of the posteriors (N, D) of all images
    (Hoffman & Johnson 2016): at most log N. The mean over one z for each of the first n images.
    """
    mu, logvar = mu.double(), logvar.double()
    noise = torch.randn(n, mu.shape[1], generator=torch.Generator().manual_seed(0)).double()
    z = vae.reparameterize(mu[:n], logvar[:n], noise)
    information = []
    for first in range(0, n, 100):
        # Of log N(z; mu, sigma^2) the constant is left out, which all of them share.
        distances = squared_distances(z[first : first + 100], mu, logvar)
        log_q = -0.5 * (distances + logvar.sum(1))
        own = log_q.diagonal(first)
        information.append(own - log_q.logsumexp(1) + math.log(len(mu)))
    return torch.cat(information).mean().item()


def share_in_posteriors(z: Tensor, mu: Tensor, logvar: Tensor) -> float:
    """Which share of z (n, D) lies inside one: as near as HELD of the samples of N(mu, sigma^2)."""
    limit = vae.sample_latents(10_000, z.shape[1]).square().sum(1).quantile(HELD)
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    nearest = [squared_distances(part, mu, logvar).amin(1) for part in z.split(100)]
    return (torch.cat(nearest) < limit).double().mean().item()


def where_codes_lie(model: vae.VAE, images: Tensor) -> dict[str, float]:
    """The codes z ~ q(z|x) of images against N(0, I)."""
    _, logvar = vae.encode_images(model, images)
    q = vae.aggregate_posterior(model, images)
    return metrics.gaussian_gap(q.z) | {
        "sigma": (0.5 * logvar).exp().mean().item(),
        "code_norm": q.norms.mean().item(),
        "code_std": q.std.mean().item(),
    }


def question_1() -> Answer:
    """What decodes from means, from samples of q(z|x), and from the prior."""
    data = vae.load_dataset("cifar10")
    images, numbers = data.test.images, {}
    rows = {"test images": images[:SHOWN]}
    for name, model in load_models({name: BETAS[name] for name in ("β = 0", "β = 1")}).items():
        mu, logvar = vae.encode_images(model, images)
        z = vae.sample_codes(model, images)
        rows[f"{name},  z = μ(x)"] = vae.decode_images(model, mu[:SHOWN])
        rows[f"{name},  z ~ q(z|x)"] = vae.decode_images(model, z[:SHOWN])
        rows[f"{name},  z ~ N(0, I)"] = vae.sample_images(model, SHOWN, seed=0)
        error = (vae.decode_images(model, z) - vae.as_unit(images)).square().mean().item()
        draws = vae.sample_latents(1000, model.latent_size, seed=0)
        posteriors = vae.encode_images(model, data.train.images)
        numbers[name] = where_codes_lie(model, images) | {
            "draws_in_posteriors": share_in_posteriors(draws, *posteriors),
            "test_codes_in_posteriors": share_in_posteriors(z[:1000], *posteriors),
            "index_nats": index_information(mu, logvar),
            "sample_mse": error,
        }
    title = f"Q1 · Without a KL term, draws of the prior decode to noise: {data.title}"
    return {"theory_q1_samples.png": vae.plot_rows(rows, title)}, numbers


# ── Question 2: two estimators of one gradient ──────────────────────────────────────────────────


def gradient_estimates(model: vae.VAE, image: Tensor, draws: int) -> dict[str, Tensor]:
    """Single-sample estimates of d/dmu E_q[reconstruction] of one image, each (draws, D).

    Pathwise: differentiate through z = mu + sigma * eps (Kingma & Welling 2014, section 2.4).
    Score function: reconstruction * d log q(z|x) / dmu = reconstruction * (z - mu) / sigma^2
    (Williams 1992), also with the mean reconstruction subtracted as a baseline.
    """
    x = vae.to_input(image[None].to(model.device), model.config)
    with torch.no_grad():
        mu, logvar = model.encode(x)
    sigma = (0.5 * logvar).exp()
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(draws, mu.shape[1], generator=generator).to(model.device)
    values, slopes = [], []
    for part in eps.split(500):
        z = (mu + sigma * part).requires_grad_()
        copies = x.expand(len(part), -1, -1, -1)
        nats = vae.reconstruction_nats(model.decode_raw(z), copies, model.config.likelihood)
        slopes.append(torch.autograd.grad(nats.sum(), z)[0])  # dz/dmu = 1
        values.append(nats.detach())
    value = torch.cat(values)[:, None]
    score = eps / sigma
    return {
        "pathwise (reparameterised)": torch.cat(slopes),
        "score function with baseline": (value - value.mean()) * score,
        "score function": value * score,
    }


def question_2() -> Answer:
    """Variances, summed over the components of mu; means over some test images."""
    images, draws = vae.load_dataset("cifar10").test.images[:16], 4000
    model = load_models(BETAS)["β = 1"]
    variances: dict[str, list[float]] = {}
    cosines = []
    for image in images:
        estimates = gradient_estimates(model, image, draws)
        for name, samples in estimates.items():
            variances.setdefault(name, []).append(samples.var(0).sum().item())
        pathwise, with_baseline, _ = (samples.mean(0) for samples in estimates.values())
        cosines.append(F.cosine_similarity(pathwise, with_baseline, dim=0).item())
    means = {name: sum(values) / len(values) for name, values in variances.items()}
    smallest = means["pathwise (reparameterised)"]
    estimators = {}
    for name, mean in means.items():
        estimators[name] = {"variance": mean, "times_pathwise": mean / smallest}
    cosine = sum(cosines) / len(cosines)
    numbers = {"images": len(images), "draws": draws, "cosine": cosine, "estimators": estimators}
    return {"theory_q2_graphs.png": plot_two_graphs()}, numbers


# ── Question 3: an autoencoder and a VAE, in 128 dimensions and in two ──────────────────────────

KINDS = {
    "tops": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "trousers": ("Trouser",),
    "dresses": ("Dress",),
    "sandals, sneakers": ("Sandal", "Sneaker"),
    "boots": ("Ankle boot",),
    "bags": ("Bag",),
}
SQUARE = 3.0  # the square from -3 to 3 in both coordinates holds 99.5% of N(0, I)


def question_3() -> Answer:
    """Where the codes lie, and what draws of the prior and of a fitted Gaussian decode to."""
    data = vae.load_dataset("cifar10")
    images = data.test.images
    numbers, rows = {}, {}
    for name, model in load_models(AUTOENCODER_AND_VAE).items():
        codes = where_codes_lie(model, images)
        quoted = ("mean_norm", "code_std", "variance_max", "directions")
        numbers[name] = {key: codes[key] for key in quoted}
        gaussian = metrics.fit_gaussian(vae.sample_codes(model, data.train.images))
        rows[f"{name}, N(0, I)"] = vae.sample_images(model, SHOWN, seed=0)
        z = metrics.sample_gaussian(gaussian, SHOWN)
        rows[f"{name}, fitted Gaussian"] = vae.decode_images(model, z)
    title = f"Q3 · A fitted Gaussian helps the autoencoder most: {data.title}"
    return {"theory_q3_samples.png": vae.plot_rows(rows, title)}, numbers


def two_dimensions() -> Answer:
    """An autoencoder and a VAE with two latent dimensions: their codes beside what they decode.

    Each learns for a minute or two.
    """
    fashion = vae.load_dataset("fashion_mnist")
    models, numbers = {}, {}
    for name, model in (("autoencoder", "ae"), ("VAE", "vae")):
        config = vae.config_for(fashion, model=model, latent_dim=2, epochs=4)
        run = runs.load_or_train(config, fashion)
        models[name] = run.model
        z = vae.sample_codes(run.model, fashion.test.images)
        numbers[name] = {
            "mse": run.record["test"]["mse"],
            "mean_norm": z.mean(0).norm().item(),
            "farthest": z.norm(dim=1).max().item(),
            "in_square": (z.abs() < SQUARE).all(1).float().mean().item(),
        }
    return {"theory_q3_plane.png": plot_planes(models, fashion)}, numbers


def plot_planes(models: dict[str, vae.VAE], data: vae.ImageData) -> Figure:
    """A row for each model: codes of the test images on their own scale, and the decoded square."""
    steps = torch.linspace(-SQUARE, SQUARE, 9)
    edge = SQUARE * 9 / 8  # the outer images have their centres at 3
    z = torch.cartesian_prod(steps.flip(0), steps).flip(1)  # row by row, from the top left
    figure, axes = plt.subplots(2, 2, figsize=(12.3, 12.6), layout="constrained")
    for (left, right), (name, model) in zip(axes, models.items()):
        scatter_codes(left, vae.sample_codes(model, data.test.images), data)
        left.set_title(f"{name}: codes of the test images")
        picture = vae.image_grid(vae.decode_images(model, z), 9)
        right.imshow(picture, extent=2 * (-edge, edge))
        right.set(xticks=[-3, 0, 3], yticks=[-3, 0, 3], title=f"{name}: the black square, decoded")
        right.grid(False)
    axes[0, 0].legend(markerscale=4, loc="upper left")
    title = "Q3 · N(0, I) covers the codes of the VAE, not those of the autoencoder"
    figure.suptitle(f"{title}: {data.title}", **LEFT)
    return figure


def scatter_codes(ax: Axes, z: Tensor, data: vae.ImageData) -> None:
    """Codes (N, 2) in the colours of their kinds, and the square that is decoded beside them."""
    names = [data.class_names[label] for label in data.test.labels]
    for number, (kind, classes) in enumerate(KINDS.items()):
        codes = z[torch.tensor([name in classes for name in names])]
        ax.scatter(*codes.T, s=2, color=f"C{number}", label=kind, rasterized=True)
    square = {"fill": False, "edgecolor": "black", "linewidth": 2, "zorder": 3}
    ax.add_patch(plt.Rectangle((-SQUARE, -SQUARE), 2 * SQUARE, 2 * SQUARE, **square))
    low, high = z.min().item(), z.max().item()
    limits = (min(low, -SQUARE) - 0.5, max(high, SQUARE) + 0.5)
    ax.set(xlim=limits, ylim=limits, aspect="equal")


# ── Question 4: what lies beside and between the codes ──────────────────────────────────────────


def nearest_posterior(posteriors: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> float:
    """From each N(mu, sigma^2) the Bhattacharyya distance to the nearest of the others, in nats.

    Both are mu, logvar (N, D); the median over the first.
    """
    means, logvars = others
    nearest = []
    for mu, logvar in zip(*posteriors):
        variance = (logvars.exp() + logvar.exp()) / 2
        by_means = ((means - mu).square() / variance).sum(1) / 8
        by_variances = (variance.log() - (logvars + logvar) / 2).sum(1) / 2
        nearest.append((by_means + by_variances).min().item())
    return median(nearest)


def change(model: vae.VAE, z: Tensor, step: Tensor) -> float:
    """RMS change of the picture when each code (N, D) moves by its step (N, D); the mean."""
    moved = vae.decode_images(model, z + step) - vae.decode_images(model, z)
    return moved.square().flatten(1).mean(1).sqrt().mean().item()


def slope_along_codes(model: vae.VAE, mu: Tensor) -> float:
    """The change for a tenth of the difference of two other codes, over a tenth of its whole.

    1 for a linear decoder, and free of the scale of the codes (3 N, D), whose thirds are taken
    together: every third code moves along the difference of the other two.
    """
    start, one, other = mu.chunk(3)
    whole = change(model, one, other - one)
    return change(model, start, 0.1 * (other - one)) / (0.1 * whole)


def saturated(model: vae.VAE, z: Tensor) -> float:
    """Share of values below 0.02 or above 0.98 in what codes (N, D) decode to."""
    x_hat = vae.decode_images(model, z)
    return ((x_hat < 0.02) | (x_hat > 0.98)).double().mean().item()


def steps(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """What lies on the lines between 500 pairs of test images, and one step beside a code.

    A step goes in a random direction, of all dimensions or of the used ones, and is as long as two
    means are apart in the same dimensions.
    """
    mu, logvar = vae.encode_images(model, data.test.images)
    path = vae.decode_images(model, vae.interpolate_latents(mu[:500], mu[500:1000], 21))
    used = vae.kl_nats_per_dim(mu, logvar).mean(0) > USED
    one, other = mu[:1000].chunk(2)
    whole = change(model, one, other - one)
    length = (one - other).norm(dim=1).mean().item()
    random = vae.sample_latents(1000, model.latent_size, radius=length, seed=2)
    length_used = (one - other)[:, used].norm(dim=1).mean().item()
    random_used = torch.zeros_like(random)
    random_used[:, used] = vae.sample_latents(1000, int(used.sum()), radius=length_used, seed=3)
    return {
        "sigma": (0.5 * logvar).exp().mean().item(),
        "radius": logvar.exp().sum(1).sqrt().mean().item(),
        "distance": length,
        "used": int(used.sum()),
        "relative_change": change(model, mu[:1000], random) / whole,
        "relative_change_used": change(model, mu[:1000], random_used) / whole,
        "slope_along_codes": slope_along_codes(model, mu[:3000]),
        "saturated_reconstructions": saturated(model, mu[:1000]),
        "saturated_after": saturated(model, mu[:1000] + random),
        "unevenness": metrics.step_unevenness(path).mean().item(),
        "end_contrast": vae.contrast(path[[0, -1]]).mean().item(),
    }


def overlaps(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """How far the posteriors of training images are from each other, and what a code tells."""
    mu, logvar = vae.encode_images(model, data.test.images[:NEIGHBOURS])
    posteriors = vae.encode_images(model, data.train.images)
    return {
        "nearest_posterior": nearest_posterior((mu, logvar), posteriors),
        "index_nats": index_information(*posteriors),
    }


def question_4() -> Answer:
    data, models = vae.load_dataset("cifar10"), load_models(BETAS)
    a, b = data.test.images[list(PAIR)]
    strips = {name: vae.interpolate_images(model, a, b, 7) for name, model in models.items()}
    title = f"Q4 · Straight lines between two codes have no jumps at any β: {data.title}"
    figures = {
        "theory_q4_steps.png": plot_steps(models, data),
        "theory_q4_interpolation.png": vae.display_interpolated_images(strips, (a, b), title),
    }
    numbers = {}
    for name, model in models.items():
        config = model.config
        seeds = [
            runs.load_or_train(dataclasses.replace(config, seed=seed), data).model for seed in SEEDS
        ]
        numbers[name] = {
            "steps": [steps(model, data) for model in seeds],
            "overlaps": overlaps(model, data),
        }
    return figures, numbers


def plot_steps(models: dict[str, vae.VAE], data: vae.ImageData) -> Figure:
    """decode(mu + delta) of the first test image, where delta grows in one random direction."""
    image = data.test.images[:1]
    lengths = (0, 2, 4, 8, 12, 16, 20)
    rows = {}
    for name, model in models.items():
        mu, _ = vae.encode_images(model, image)
        direction = vae.sample_latents(1, model.latent_size, radius=1, seed=0)
        z = mu + torch.tensor(lengths)[:, None] * direction
        rows[name] = torch.cat([vae.as_unit(image), vae.decode_images(model, z)])
    labels = ["original", *(f"|δ| = {length}" for length in lengths)]
    title = f"Q4 · decode(μ + δ): long steps saturate, most of all at β = 0: {data.title}"
    return vae.plot_rows(rows, title, labels, cell=0.9)


# ── The command ─────────────────────────────────────────────────────────────────────────────────


PARTS = {
    "q1": question_1,
    "q2": question_2,
    "q3": question_3,
    "plane": two_dimensions,
    "q4": question_4,
}


def main() -> None:
    for part in chosen(__doc__, list(PARTS)):
        figures, numbers = PARTS[part]()
        for name, figure in figures.items():
            save(figure, name)
        vae.write_json(FIGURES / "theory.json", read_json("figures/theory.json") | {part: numbers})


if __name__ == "__main__":
    runs.run_script(main)
