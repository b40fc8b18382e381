"""What evaluate.py says about one run: its numbers, part by part, and its pictures."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

import vae_helpers as vae
from base.options import progress_bar
from image_data.splits import ImageData
from support import autoencoders, conditional, disentanglement, metrics

IWAE_SAMPLES = (1, 10, 100, 500)
IWAE_IMAGES = 200
PAIRS = 1000  # of codes, between which paths are measured
# With fewer images than about twice its 480 features, a Fréchet distance measures their number.
LEAST_FRECHET = 1000
TSNE_IMAGES = 2000  # more take minutes and fill the picture
SHOWN = 64  # images in one picture at most

# How a learned prior is sampled, by the name that pictures and tables give it; guidance is for one
# that learned with labels.
DRAWS = {f"temperature {value}": {"temperature": value} for value in (0.9, 0.7, 0.5)}
GUIDED = {f"guidance {value}": {"guidance": float(value)} for value in (1, 2, 3, 4)}


# ── Numbers ─────────────────────────────────────────────────────────────────────────────────────


def latent_space(model: vae.VAE, data: ImageData, seed: int = 0) -> dict:
    """The codes of the test images against N(0, I), by dimension and as a whole."""
    q = vae.aggregate_posterior(model, *data.test, seed=seed)
    kl = sorted(q.kl_nats.tolist(), reverse=True)
    result = {
        "images": len(q.z),
        "mean_abs_max": q.mean.abs().max().item(),
        "std_min": q.std.min().item(),
        "std_max": q.std.max().item(),
        "norm_mean": q.norms.mean().item(),
        "kl_per_dim_nats": [round(nats, 4) for nats in kl],
    }
    # Fewer codes than dimensions have no covariance that could be inverted.
    if len(q.z) > model.latent_size:
        prior = vae.sample_latents(PAIRS, model.latent_size, seed=seed + 1)
        result |= metrics.gaussian_gap(q.z)
        result["mmd"] = autoencoders.mmd(q.z[:PAIRS], prior).item()
    return result


def likelihood(model: vae.VAE, data: ImageData, seed: int = 0) -> dict[str, float]:
    """IWAE bounds of the first test images in nats, and bits per dimension of all of them.

    The first are left out for a model that does not sample its code, or learned its prior.
    """
    test, val = data.test, data.val
    result = {}
    if model.sampled and not model.learned_prior:
        bounds = {}
        for k in progress_bar(IWAE_SAMPLES, desc="IWAE, k"):
            bounds[k] = metrics.iwae_nats(
                model, test.images[:IWAE_IMAGES], k, test.labels, seed=seed
            )
            result[f"iwae_{k}_nats"] = bounds[k].mean().item()
        most = max(bounds)
        gain = bounds[1] - bounds[most]
        result |= {
            "iwae_images": len(gain),
            f"iwae_{most}_nats_se": vae.standard_error(bounds[most]),
            f"iwae_gain_{most}_nats": gain.mean().item(),
            f"iwae_gain_{most}_nats_se": vae.standard_error(gain),
        }
    result |= metrics.bits_per_dim(
        model, test.images, val.images[:1000], test.labels, val.labels[:1000], seed=seed
    )
    return result | {"bits_per_dim_images": len(test.images)}


def smoothness(
    model: vae.VAE, data: ImageData, net: metrics.FeatureNet, seed: int = 0
) -> dict[str, float]:
    """Path length and unevenness of steps between the codes of the first test images.

    A conditional model gets the label at the start of the path.
    """
    images, labels = data.test.images[: 2 * PAIRS], data.test.labels[: 2 * PAIRS]
    mu, _ = vae.encode_images(model, images, labels)
    pairs = len(mu) // 2
    start, end = mu[:pairs], mu[pairs : 2 * pairs]

    def decode(z: Tensor) -> Tensor:
        return vae.decode_images(model, z, labels[: z.shape[-2]])

    def features(x_hat: Tensor) -> Tensor:
        return metrics.image_features(x_hat, net)

    result = {"pairs": pairs}
    for method in vae.INTERPOLATIONS:
        lengths = metrics.perceptual_path_length(decode, features, start, end, method, seed=seed)
        path = decode(vae.interpolate_latents(start[:200], end[:200], 11, method))
        result[f"ppl_{method}"] = lengths.mean().item()
        result[f"ppl_{method}_se"] = vae.standard_error(lengths)
        result[f"step_unevenness_{method}"] = metrics.step_unevenness(path).mean().item()
    return result


def collapse_warning(test: dict[str, float], config: vae.Config) -> str | None:
    """One sentence when what vae.evaluate gives says that the decoder ignores the code."""
    if test.get("perplexity", 2) < 2:
        return (
            f"The codebook has collapsed: with a perplexity of {test['perplexity']:.2f}, nearly "
            "every place of every image has the same code. Try more epochs, norm batch, or a "
            f"smaller lr than {config.lr:g}."
        )
    sampled = vae.MODELS[config.model].sampled
    if not sampled or "perplexity" in test or (test["kl_nats"] >= 1 and test["active_dims"] >= 1):
        return None
    weight = f"beta than {config.beta:g}" if config.beta else f"mmd than {config.mmd:g}"
    return (
        f"The posterior has collapsed: with {test['kl_nats']:.2f} nats of KL and "
        f"{test['active_dims']} active dimensions, every image gets the "
        f"same code. Try a smaller {weight}, kl_warmup, or more epochs."
    )


def as_markdown(results: dict) -> str:
    """What metrics.json holds: facts as a list, then a table for each part."""
    facts = []
    tables = []
    for name, part in results.items():
        if not isinstance(part, dict):
            facts.append(f"- {name}: {part}")
            continue
        rows = []
        for measure, value in part.items():
            if isinstance(value, (int, float)):
                text = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
                rows.append({"measure": measure, "value": text})
        tables += ["", f"## {name}", "", vae.markdown_table(rows)]
    return "\n".join(["# Evaluation", "", *facts, *tables]) + "\n"


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────


def enlarged_grid(images: Tensor, columns: int) -> Image.Image:
    """Images (N, C, H, W) as one picture, each pixel enlarged so that small images can be seen."""
    picture = Image.fromarray(vae.image_grid(images, columns))
    scale = max(1, 96 // images.shape[-1])
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def save_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)


def plot_manifold(model: vae.VAE, title: str, n: int = 20) -> Figure:
    """Everything a model with a prior N(0, I) of two dimensions draws, as n x n images.

    Their z are equally probable: evenly spaced quantiles of N(0, 1) (Kingma & Welling 2014,
    appendix A).
    """
    axis = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    # The first coordinate grows to the right and the second upwards, as on paper.
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    z = torch.stack([first, second], dim=-1).flatten(0, 1)
    figure = vae.plot_grid(vae.decode_images(model, z), title, columns=n, cell=0.36, edge=0.6)
    ax = figure.axes[0]
    ax.axis("on")
    step = model.config.image_size + 2
    ticks = range(0, n, max(1, n // 5))
    names = [f"{axis[i]:.1f}" for i in ticks]
    ax.set_xticks([step * (i + 0.5) for i in ticks], names)
    ax.set_yticks([step * (n - i - 0.5) for i in ticks], names)
    ax.set(xlabel="first coordinate of z", ylabel="second coordinate of z")
    ax.spines[:].set_visible(False)
    return figure


def plot_scatter(
    points: Tensor, classes: Tensor, names: Sequence[str], title: str, axes: tuple[str, str]
) -> Figure:
    """Points (N, 2) in the colours of their classes (N,); from 2 to 20 classes are named."""
    figure, ax = plt.subplots(figsize=(7.2, 5.4), layout="constrained")
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"]
    for k, name in enumerate(names):
        x, y = points[classes == k].T
        ax.scatter(x, y, s=4, alpha=0.6, linewidths=0, color=colours(k % 20), label=name)
    ax.set(xlabel=axes[0], ylabel=axes[1])
    ax.set_aspect("equal", adjustable="datalim")
    if 2 <= len(names) <= 20:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, frameon=False)
    figure.suptitle(title)
    return figure


def draw_images(
    model: vae.VAE, data: ImageData, x_hat: Tensor, samples: Tensor, strip: int, out: Path
) -> None:
    """reconstructions.png beside the originals, samples.png, and interpolations.png.

    x_hat (N, C, H, W) are the reconstructions of the test images to be shown; an interpolation has
    `strip` images, and is drawn once linear and once spherical.
    """
    images, labels = data.test
    x_hat, samples = x_hat[:SHOWN], samples[:SHOWN]
    pairs = torch.stack([vae.as_unit(images[: len(x_hat)]), x_hat], dim=1).flatten(0, 1)
    columns = 16 if len(x_hat) >= 8 else 2 * len(x_hat)
    enlarged_grid(pairs, columns).save(out / "reconstructions.png")
    enlarged_grid(samples, min(len(samples), 8)).save(out / "samples.png")
    strips = []
    for first in range(min(5, len(images) // 2)):
        ends = [first, len(images) - 1 - first]
        for method in vae.INTERPOLATIONS:
            strips.append(
                vae.interpolate_images(model, *images[ends], strip, method, labels=labels[ends])
            )
    if strips:
        enlarged_grid(torch.cat(strips), strip).save(out / "interpolations.png")


def draw_pictures(
    names: Sequence[str], images: Tensor, x_hat: Tensor, title: str, out: Path
) -> list[str]:
    """pictures.png, pictures_2.png, …: pictures over their reconstructions, eight in each file."""
    written = []
    for first in range(0, len(names), 8):
        part = slice(first, first + 8)
        rows = {"picture": vae.as_unit(images[part]), "reconstruction": x_hat[part]}
        figure = vae.plot_rows(rows, title, names[part], cell=1.28)
        written.append(f"pictures{f'_{first // 8 + 1}' if first else ''}.png")
        save_figure(figure, out / written[-1])
    return written


def draw_traversals(model: vae.VAE, data: ImageData, seed: int, out: Path) -> None:
    """traversals.png, a row for each dimension; in traversals.gif all move at once and back."""
    rows = disentanglement.traversals(model, data, seed)
    values = [f"{value:g}" for value in disentanglement.TRAVERSED]
    title = f"{data.title}: one latent dimension at a time"
    save_figure(vae.plot_rows(rows, title, values), out / "traversals.png")
    steps = torch.stack(list(rows.values()), dim=1)
    frames = [enlarged_grid(images, columns=5) for images in steps]
    frames += frames[-2:0:-1]
    frames[0].save(
        out / "traversals.gif", save_all=True, append_images=frames[1:], duration=120, loop=0
    )


def draw_maps(model: vae.VAE, data: ImageData, mu: Tensor, quick: bool, out: Path) -> None:
    """The codes mu (N, D) of the test images: as they are when D = 2, else by PCA and t-SNE."""
    classes, names = data.class_labels(data.test), data.class_names or data.label_names
    if classes.ndim == 2:  # of attributes, the one that halves the images best
        k = (classes.float().mean(0) - 0.5).abs().argmin().item()
        classes, names = classes[:, k].long(), (f"not {names[k]}", names[k])

    def scatter(points: Tensor, view: str, axes: tuple[str, str], name: str) -> None:
        title = f"{view} of {len(points):,} test images: {data.title}"
        figure = plot_scatter(points, classes[: len(points)], names, title, axes)
        save_figure(figure, out / f"latent_{name}.png")

    if model.latent_size == 2:
        axes = ("first coordinate of mu", "second coordinate of mu")
        scatter(mu, "Means", axes, "scatter")
        has_prior = model.sampled or model.config.mmd > 0
        if has_prior and not model.conditional:
            figure = plot_manifold(model, f"Everything the model draws: trained on {data.title}")
            save_figure(figure, out / "manifold.png")
    elif min(mu.shape) > 2 and mu.var() > 0:
        pca = PCA(2, random_state=0)
        points = pca.fit_transform(mu.numpy())
        first, second = 100 * pca.explained_variance_ratio_
        axes = (
            f"component 1, {first:.0f} % of the variance",
            f"component 2, {second:.0f} % of the variance",
        )
        scatter(torch.from_numpy(points), "PCA of the means", axes, "pca")
        if len(mu) > 100 and not quick:  # t-SNE needs more than three times its perplexity, 30
            some = mu[:TSNE_IMAGES].numpy()
            points = TSNE(init="pca", random_state=0).fit_transform(some)
            scatter(torch.from_numpy(points), "t-SNE of the means", ("", ""), "tsne")


def draws(model: vae.VAE, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Samples of a learned prior, one for each of the labels, in each of the ways above.

    Beside them what the same decoder makes of N(0, I), the prior that encoder and decoder had.
    """
    n, ways = len(labels), DRAWS | (GUIDED if model.config.conditions else {})
    sets = {}
    for name, choices in progress_bar(ways.items(), desc="samples"):
        sets[name] = vae.sample_images(model, n, labels, seed=seed, **choices)
    if not model.discrete:
        sets["normal prior"] = vae.decode_images(
            model, vae.sample_latents(n, model.latent_size, seed=seed)
        )
    return sets


def draw_draws(model: vae.VAE, data: ImageData, labels: Tensor, seed: int, out: Path) -> None:
    """draws.png: the same labels, one way of sampling the learned prior in each row."""
    shown = labels[:10]
    rows = {"temperature 1": vae.sample_images(model, len(shown), shown, seed=seed)}
    rows |= draws(model, shown, seed)
    title = f"Samples of the learned prior: {data.title}"
    save_figure(vae.plot_rows(rows, title), out / "draws.png")


def draw_conditions(model: vae.VAE, data: ImageData, seed: int, out: Path) -> None:
    """What a conditional model draws: classes.png, or attributes.png of the most varied four."""
    images, labels = data.test
    if data.class_names:
        title = f"One latent per row, one class per column: trained on {data.title}"
        # Wrapped, because three classes make a narrow figure.
        title = textwrap.fill(title, 36)
        figure = conditional.plot_classes(model, data.class_names, title, seed=seed)
        save_figure(figure, out / "classes.png")
    else:
        most_varied = labels.float().var(0).argsort(descending=True)[:4].tolist()
        attributes = [data.label_names[k] for k in most_varied]
        title = f"One attribute off and on: {data.title}"
        figure = conditional.plot_attributes(
            model, images[:8], labels[:8], data.label_names, attributes, title
        )
        save_figure(figure, out / "attributes.png")


def without_nan(value):
    """Numbers that JSON does not know, like the PSNR of a perfect copy, become None."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
