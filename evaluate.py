"""Evaluate a run: a folder that train.py wrote → metrics.json, report.md, pictures and, if asked for, sample batches.

    python evaluate.py --num_samples 10                                       # the newest run
    python evaluate.py --run checkpoints/cifar10_best
    python evaluate.py --run checkpoints/cifar10_conv --num_samples 10000 --npz

Everything takes some minutes on two CPU cores; --quick leaves out what takes long (IWAE, Fréchet distances, neighbours,
disentanglement, which is measured on the drawn shapes alone: only their factors are known).
"""
from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.manifold import TSNE
from sklearn.metrics import mutual_info_score

import vae_helpers as vae

IWAE_K, IWAE_IMAGES = (1, 10, 100, 500), 200
LEAST_FRECHET = 1000   # with fewer images than about twice the 464 features, a distance measures their number
TSNE_IMAGES = 2000     # more take minutes and fill the picture
SAMPLES = ("samples_prior", "samples_mixture")
PAIRS = 1000           # ends of the ways whose path length is measured; also samples whose neighbours are sought
DRAWN, VOTES = 10_000, 800   # shapes drawn to measure disentanglement; votes to learn a classifier from, and as many to test it
TRAVERSED = np.linspace(-3, 3, 11).tolist()   # the prior puts 99.7 % of a latent dimension there


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                usage="python evaluate.py [--FLAG VALUE …]")
    p.add_argument("--run", metavar="DIR", type=Path, help="the run folder to evaluate (default: the newest in runs/)")
    p.add_argument("--out", metavar="DIR", type=Path, help="where the results go (default: DIR/evaluation, or runs/ for released weights)")
    p.add_argument("--num_samples", metavar="N", type=int, default=64,
                   help="how many samples, reconstructions and interpolation midpoints are drawn and written (default 64)")
    p.add_argument("--num_interpolations", metavar="N", type=int, default=10, help="images in one interpolation (default 10)")
    p.add_argument("--num_frechet", metavar="N", type=int, default=10_000,
                   help="images in each set that a Fréchet distance compares, as far as there are that many (default 10000)")
    p.add_argument("--components", metavar="N", type=int, default=10, help="of the Gaussian mixture fitted to the latents (default 10)")
    p.add_argument("--fid", metavar="WEIGHTS", nargs="?", const="", help="measure the real FID with Inception, too: needs the package "
                   "torch-fidelity, which downloads the weights (91 MB), or a file of them; hours on a CPU")
    p.add_argument("--data_dir", metavar="DIR", type=Path, help="where the images are now, for a run on a folder of images")
    p.add_argument("--seed", metavar="N", type=int, default=0, help="seeds the samples (default 0)")
    p.add_argument("--quick", action="store_true", help="only the test losses, the picture metrics, the latent space and the pictures")
    p.add_argument("--npz", action="store_true",
                   help="also write the samples, reconstructions and midpoints as .npz (arr_0, uint8, N x H x W x C), "
                        "as tools that measure FID read them")
    return p


def newest_run() -> Path:
    """The run folder written last. Raises CheckpointError when there is none."""
    runs = sorted((p for name in ("model.json", vae.TRAINING) for p in vae.runs_root().glob(f"*/{name}")), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise vae.CheckpointError(f"There is no run in {vae.runs_root()} yet: python train.py makes one.")
    return runs[-1].parent


def enlarged_grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Images (N, C, H, W) as one picture, each pixel enlarged so that small images can be seen."""
    picture = Image.fromarray(vae.image_grid(images, columns))
    scale = max(1, 96 // images.shape[-1])
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_grid(images: torch.Tensor, path: Path, columns: int) -> None:
    """The enlarged grid as one PNG."""
    enlarged_grid(images, columns).save(path)


def save_figure(fig, path: Path) -> None:
    fig.savefig(path, dpi=120)
    plt.close(fig)


def colours(data: vae.ImageData) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What the points of a scatter are coloured by, (N,) and names: the class; of attributes the one that halves the images best."""
    labels = data.test.labels
    if data.name == "shapes":
        return labels[:, 0], vae.condition_names(data)
    if labels.ndim == 1:
        return labels, data.label_names
    k = (labels.float().mean(0) - 0.5).abs().argmin().item()
    return labels[:, k].long(), (f"not {data.label_names[k]}", data.label_names[k])


def maps(model: vae.VAE, data: vae.ImageData, mu: torch.Tensor, out: Path, args: argparse.Namespace) -> None:
    """Pictures of the latent space: two-dimensional views of the test codes mu (N, D), the whole plane of a latent-2 model, conditions."""
    config, (images, labels), (classes, names) = model.config, data.test, colours(data)
    if config.latent_dim == 2 and config.model != "vq_vae":
        save_figure(vae.plot_scatter(mu, classes, names, f"Means of test images: {data.title}", ("first coordinate of mu", "second")), out / "latent_scatter.png")
        if config.model not in ("ae", "cvae"):   # the codes of the first are not around 0
            save_figure(vae.plot_manifold(model, f"Everything the model draws: trained on {data.title}"), out / "manifold.png")
    elif min(mu.shape) > 2 and mu.var() > 0:
        pca = PCA(2, random_state=0).fit(mu.numpy())
        share = [f"component {i + 1}, {100 * s:.0f} % of the variance" for i, s in enumerate(pca.explained_variance_ratio_)]
        save_figure(vae.plot_scatter(torch.from_numpy(pca.transform(mu.numpy())), classes, names, f"PCA of the means of {len(mu):,} test images: {data.title}",
                                     tuple(share)), out / "latent_pca.png")
        if not args.quick and len(mu) > 100:   # more than three times the perplexity, 30
            some = mu[:TSNE_IMAGES].numpy()
            print(f"t-SNE of {len(some):,} codes …")
            save_figure(vae.plot_scatter(torch.from_numpy(TSNE(init="pca", random_state=0).fit_transform(some)), classes[:len(some)], names,
                                         f"t-SNE of the means of {len(some):,} test images: {data.title}", ("", "")), out / "latent_tsne.png")
    if config.conditions and labels.ndim == 2 and data.name != "shapes":
        spread = labels.float().var(0).argsort(descending=True)[:4].tolist()   # the attributes that differ most often
        save_figure(vae.plot_attributes(model, images[:8], labels[:8], data.label_names, [data.label_names[k] for k in spread],
                                        f"One attribute off and on: {data.title}"), out / "attributes.png")
    elif config.conditions:
        save_figure(vae.plot_classes(model, vae.condition_names(data), f"One latent per row, one class per column: trained on {data.title}", seed=args.seed),
                    out / "classes.png")


def save_npz(images: torch.Tensor, path: Path) -> None:
    """uint8 or float [0, 1] (N, C, H, W) → arr_0, uint8 (N, H, W, C)."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    np.savez_compressed(path, pixels.permute(0, 2, 3, 1).numpy())


@vae.checked
def iwae_nats(model: vae.VAE, images: torch.Tensor, k: int = 500, labels: torch.Tensor | None = None, *, seed: int = 0,
              decoded_at_once: int = 1000) -> torch.Tensor:
    """The importance-weighted bound on -log p(x) of each image: (N,) nats; k = 1 is the negative ELBO.

    -log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x), z_i ~ q(z|x): in expectation it only falls with k, towards -log p(x) (Burda et
    al. 2016, equation 8 and theorem 1). Memory holds decoded_at_once images, whatever k is.
    """
    c, generator = model.config, torch.Generator(model.device).manual_seed(seed)
    if not c.objective.sampled:
        raise vae.VAEError(f"The bound averages over samples of z, and the code of model {c.model} is a point: measure a model that samples.")
    told = vae.conditions(c, labels)
    bounds = []
    with torch.no_grad():
        for i, image in enumerate(images):
            x = vae.to_input(image[None].to(model.device), c)
            given = None if told is None else told[i:i + 1].to(model.device)
            mu, logvar = model.eval().encode(x, given)
            log_weights = []
            for n in torch.arange(k).split(decoded_at_once):
                z = vae.reparameterize(mu.expand(len(n), -1), logvar.expand(len(n), -1), generator)
                log_q = -0.5 * (logvar + (z - mu).square() / logvar.exp()).sum(1)   # both without -D/2 log 2 pi
                log_prior = -0.5 * z.square().sum(1)
                x_raw = model.decode_raw(z, None if given is None else given.expand(len(n), -1))
                nats = vae.reconstruction_nats(x_raw, x.expand(len(n), -1, -1, -1), c.likelihood, model.sigma)
                log_weights.append((log_prior - log_q - nats).cpu().double())
            bounds.append(math.log(k) - torch.logsumexp(torch.cat(log_weights), 0))
    return torch.stack(bounds)


def likelihood(model: vae.VAE, data: vae.ImageData, seed: int) -> dict:
    """IWAE bounds on the first test images, beside the ELBO of the same images, and bits per dimension of all."""
    (images, labels), (tuning, tuning_labels) = data.test, data.val
    result = {**vae.bits_per_dim(model, images, tuning[:1000], labels, tuning_labels[:1000], seed=seed), "bits_per_dim_images": len(images)}
    if not model.config.objective.sampled:   # a vq_vae has a price, but nothing to average over
        return result
    bounds = {k: iwae_nats(model, images[:IWAE_IMAGES], k, labels, seed=seed) for k in vae.progress_bar(IWAE_K, desc="IWAE, k")}
    return {"iwae_images": len(bounds[1]), **{f"iwae_{k}_nats": b.mean().item() for k, b in bounds.items()},
            f"iwae_{IWAE_K[-1]}_nats_se": vae.standard_error(bounds[IWAE_K[-1]]),
            f"iwae_gain_{IWAE_K[-1]}_nats": (bounds[1] - bounds[IWAE_K[-1]]).mean().item(),
            f"iwae_gain_{IWAE_K[-1]}_nats_se": vae.standard_error(bounds[1] - bounds[IWAE_K[-1]]), **result}


@vae.checked
def gaussian_gap(z: torch.Tensor) -> dict[str, float]:
    """How far latents (N, D), N > D, are from N(0, I) as a whole: the Gaussian with their mean and covariance against it.

    mean_norm; variance_max, variance_min over all directions (eigenvalues of the covariance), directions with a variance
    above ACTIVE_THRESHOLD; fit_kl_nats = KL(N(mean, covariance) || N(0, I)).
    """
    if z.ndim != 2 or len(z) < 2:
        raise vae.VAEError(f"A covariance needs at least 2 latents (N, D), not {tuple(z.shape)}.")
    z = z.double()
    mean, covariance = z.mean(0), torch.cov(z.T).reshape(z.shape[1], -1)
    variances = torch.linalg.eigvalsh(covariance)
    kl = 0.5 * (variances.sum() + mean.square().sum() - len(variances) - variances.clamp(min=1e-12).log().sum())
    return {"mean_norm": mean.norm().item(), "variance_max": variances[-1].item(), "variance_min": variances[0].item(),
            "directions": int((variances > vae.ACTIVE_THRESHOLD).sum()), "fit_kl_nats": kl.item()}


def latent_space(model: vae.VAE, images: torch.Tensor, labels: torch.Tensor, seed: int) -> dict:
    """The aggregate posterior against N(0, I), dimension by dimension and as a whole, and the KL of every dimension."""
    q = vae.aggregate_posterior(model, images, labels, seed=seed)
    result = {"images": len(images), "mean_abs_max": q.mean.abs().max().item(), "std_min": q.std.min().item(), "std_max": q.std.max().item(),
              "norm_mean": q.norms.mean().item(), "kl_per_dim_nats": sorted((round(k, 4) for k in q.kl_nats.tolist()), reverse=True)}
    if len(images) > model.config.latent_dim:
        result |= gaussian_gap(q.z) | {"mmd": vae.mmd(q.z[:PAIRS], vae.sample_latents(PAIRS, q.z.shape[1], seed=seed + 1)).item()}
    return result


class Inception(torch.nn.Module):
    """The network of the real FID (Heusel et al. 2017), from torch-fidelity: used where the user has it and its weights.

    weights is a file; without one torch-fidelity downloads its own (91 MB). Raises VAEError when it cannot be had.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        try:
            self.net = vae._torchmetrics().image.fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], weights).to(vae.get_device())
        except Exception as err:   # no package, no network, a wrong file: whatever it is, this is the way out
            raise vae.VAEError(f"FID needs the package torch-fidelity (pip install torch-fidelity) and its Inception weights, downloaded or "
                           f"from your file ({vae._first_line(err)}): without them use the Fréchet feature distance.") from None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 1 or 3, H, W) in [0, 1] → (N, 2048)."""
        return self.net((x.expand(-1, 3, -1, -1) * 255).round().byte())


def distances(net, real: torch.Tensor, sets: dict[str, torch.Tensor], unit: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The Fréchet distance of every set to the real test images, and the features of all."""
    features = {name: vae.image_features(images, net) for name, images in vae.progress_bar({"real_test": real, **sets}.items(), desc=unit)}
    return {f"{unit}_{name}": vae.frechet_distance(features["real_test"], features[name]) for name in sets}, features


def neighbours(features: dict[str, torch.Tensor], train: torch.Tensor) -> tuple[dict, dict[str, torch.Tensor]]:
    """Distance to the nearest training image in feature space: of samples, and of reconstructions of unseen test images.

    Both are decoder outputs, equally smooth. Samples that lie much nearer would be training images learnt by heart: as near as
    reconstructions of training images do, which show what the measure can see of copies.
    """
    compared = ("training_reconstructions", *SAMPLES)
    found = {name: torch.cdist(features[name][:PAIRS], train).min(1) for name in ("reconstructions", *compared) if name in features}
    medians = {f"nearest_{name}": f.values.median().item() for name, f in found.items()}
    ratios = {f"nearest_ratio_{n}": medians[f"nearest_{n}"] / medians["nearest_reconstructions"] for n in compared if n in found}
    return {"samples": PAIRS, "training_images": len(train), **medians, **ratios}, {n: f.indices for n, f in found.items()}


def path_lengths(model: vae.VAE, images: torch.Tensor, labels: torch.Tensor, net, seed: int) -> dict:
    """Perceptual path length and evenness of steps between the means of test images, linear and spherical.

    A conditional model is told the label at the start of the way.
    """
    mu, _ = vae.encode_images(model, images, labels)
    half = len(mu) // 2
    result = {"pairs": half}
    for method in vae.METHODS:
        decode = lambda z: vae.decode_images(model, z, labels[:z.shape[-2]])   # noqa: E731
        lengths = vae.perceptual_path_length(decode, lambda x: vae.image_features(x, net), mu[:half], mu[half:2 * half], method, seed=seed)
        path = decode(vae.interpolate_latents(mu[:half][:200], mu[half:2 * half][:200], 11, method))
        result |= {f"ppl_{method}": lengths.mean().item(), f"ppl_{method}_se": vae.standard_error(lengths),
                   f"step_unevenness_{method}": vae.step_unevenness(path).mean().item()}
    return result


# ── Disentanglement: does each dimension of the code hold one factor of the images? mu (N, D), factors (N, F) from 0 up ──

def random_factors(n: int, levels: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """n independent, uniform draws of factors with so many levels each → (n, F). Of shapes, few were ever trained on."""
    return torch.stack([torch.randint(k, (n,), generator=generator) for k in levels], dim=1)


def codes_of_shapes(model: vae.VAE, factors: torch.Tensor) -> torch.Tensor:
    """Draw the shapes with these factors (N, 7) and encode them → mu (N, D)."""
    parts = [vae.encode_images(model, vae.draw_shapes(some, model.config.image_size))[0]
             for some in vae.progress_bar(factors.split(500), desc="drawn shapes")]
    return torch.cat(parts)


def active_dims(mu: torch.Tensor) -> torch.Tensor:
    """Which dimensions vary over the images, (N, D) → (D,) bool. In the others mu is tiny, but not noise: the decoder ignores
    it, yet it may tell a factor exactly and would pass for a second code of it."""
    return mu.var(0, unbiased=False) > vae.ACTIVE_THRESHOLD


def mutual_information(mu: torch.Tensor, factors: torch.Tensor, bins: int = 20) -> np.ndarray:
    """Nats that each dimension tells about each factor → (D, F).

    A dimension is cut into bins that hold equally many codes, so that no monotone rescaling changes the estimate, as none
    changes mutual information. It is too high by about (bins - 1) (levels - 1) / 2N nats.
    """
    edges = np.quantile(mu, np.arange(1, bins) / bins, axis=0, method="lower")
    binned = [np.searchsorted(e, z, side="right") for e, z in zip(edges.T, mu.T.numpy())]
    return np.array([[mutual_info_score(factor, z) for factor in factors.T.numpy()] for z in binned])


def mutual_information_gap(mu: torch.Tensor, factors: torch.Tensor, bins: int = 20) -> float:
    """MIG (Chen et al. 2018, section 4.1, eq. 6): how far the dimension that tells most about a factor leads the second, as a
    share of the factor's entropy; mean over the factors, each of which must vary. 0 to 1.

    Where the paper integrates over q(z|x), this bins the means, as Locatello et al. 2019 do (with bins of equal width).
    """
    information = np.vstack([mutual_information(mu, factors, bins), np.zeros(factors.shape[1])])   # a lone dimension leads nothing
    second, first = np.sort(information, axis=0)[-2:]
    return float(np.mean((first - second) / [entropy(np.bincount(factor)) for factor in factors.T]))   # both in nats


def dci(mu_train: torch.Tensor, factors_train: torch.Tensor, mu_test: torch.Tensor, factors_test: torch.Tensor,
        seed: int = 0) -> tuple[float, float, float]:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2), each 0 to 1, larger is better.

    How important a dimension is for a factor is what a random forest, one of the paper's two regressors, gains by it. Its trees
    see all dimensions at every split: of a few chosen at random, they would have to use some that tell nothing. (Gradient
    boosting, also common, needs a tree for each level and step: many times as long.) Disentanglement: 1 - the entropy of a
    dimension's importances over the factors, weighted with their sum. Completeness: the same of a factor's over the dimensions.
    Informativeness is, unlike the paper's error, the share of the test images that the forest gets right, above that of always
    naming the most frequent level: 0 is chance, 1 is never wrong.
    """
    importances, informed = [], []
    for train, test in zip(factors_train.T.numpy(), factors_test.T.numpy()):
        forest = RandomForestClassifier(20, max_features=None, min_samples_leaf=5, max_samples=0.5, random_state=seed % 2 ** 32)
        forest.fit(mu_train.numpy(), train)
        importances.append(forest.feature_importances_)
        chance = np.bincount(test).max() / len(test)
        informed.append(max(0.0, (forest.score(mu_test.numpy(), test) - chance) / (1 - chance)))
    importance = np.array(importances).T + 1e-12   # (D, F); of a dimension that no tree uses, all alike and weightless
    dims, factors = (max(n, 2) for n in importance.shape)   # what is shared among one alone has entropy 0 in any base
    disentangled = np.average(1 - entropy(importance, axis=1, base=factors), weights=importance.sum(1))
    return float(disentangled), float(np.mean(1 - entropy(importance, axis=0, base=dims))), float(np.mean(informed))


def factor_vae_score(encode: Callable[[torch.Tensor], torch.Tensor], levels: Sequence[int], votes: int = VOTES, images: int = 64,
                     seed: int = 0) -> float:
    """Kim & Mnih 2018, section 4: can the factor that some images share be named from the dimension that varies least?

    encode draws images with given factors (N, F) and gives their codes mu (N, D). A vote is the active dimension of least
    variance in `images` codes of one level of one factor, relative to its variance over all (every image, taken alone, is a
    uniform draw). Each dimension names the factor that most of the first votes had there → accuracy on as many new votes.
    Chance is 1 / F. NaN without an active dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = random_factors(2 * votes * images, levels, generator).unflatten(0, (2 * votes, images))
    fixed = torch.randint(len(levels), (2 * votes,), generator=generator)
    factors = torch.where(F.one_hot(fixed, len(levels)).bool()[:, None], factors[:, :1], factors)
    mu = encode(factors.flatten(0, 1))
    mu = mu[:, active_dims(mu)]
    if not mu.shape[1]:
        return float("nan")
    winner = (mu.unflatten(0, (2 * votes, images)).var(1) / mu.var(0)).argmin(1)
    counts = torch.zeros(mu.shape[1], len(levels))
    counts.index_put_((winner[:votes], fixed[:votes]), torch.ones(votes), accumulate=True)
    return (counts.argmax(1)[winner[votes:]] == fixed[votes:]).double().mean().item()


def disentanglement(model: vae.VAE, seed: int) -> dict:
    """All of the above for a model of the drawn shapes, on newly drawn ones. Scores are missing if no dimension is active."""
    levels = tuple(vae.SHAPE_FACTORS.values())
    factors = random_factors(DRAWN, levels, torch.Generator().manual_seed(seed))
    mu = codes_of_shapes(model, factors)
    mu = mu[:, active_dims(mu)]
    result = {"images": DRAWN, "active_dims": mu.shape[1], "factor_vae_votes": VOTES, "factor_vae_chance": 1 / len(levels)}
    if not mu.shape[1]:
        return result
    half = DRAWN // 2
    disentangled, complete, informative = dci(mu[:half], factors[:half], mu[half:], factors[half:], seed)
    return {"mig": mutual_information_gap(mu, factors), "dci_disentanglement": disentangled, "dci_completeness": complete,
            "dci_informativeness": informative,
            "factor_vae_score": factor_vae_score(lambda some: codes_of_shapes(model, some), levels, VOTES, seed=seed), **result}


def traversals(model: vae.VAE, data: vae.ImageData, seed: int) -> dict[str, torch.Tensor]:
    """What each dimension draws: from the code of the first test image, one dimension at a time set to each of TRAVERSED.

    Up to ten dimensions, the one of largest mean KL first (where the code is a point, of largest standard deviation, and ±3 are as many of these). Label →
    (11, C, H, W); on shapes, the label of an active dimension says which factor it tells most about.
    """
    images, labels = data.test
    q = vae.aggregate_posterior(model, images, labels, seed=seed)
    size, unit = (q.kl_nats, "nats") if model.config.objective.sampled else (q.std, "std")
    dims = size.argsort(descending=True)[:10].tolist()
    names = [""] * len(dims)
    if data.name == "shapes" and not model.config.conditions:
        factors = random_factors(DRAWN, tuple(vae.SHAPE_FACTORS.values()), torch.Generator().manual_seed(seed))
        mu = codes_of_shapes(model, factors)[:, dims]
        best = mutual_information(mu, factors).argmax(1)
        names = [f"\n{list(vae.SHAPE_FACTORS)[k]}" if active else "" for k, active in zip(best, active_dims(mu))]
    if model.config.objective.sampled:
        rows = vae.traverse(model, q.mu[0], dims, TRAVERSED, labels[:1])
    else:   # codes that no prior holds together have a scale of their own
        rows = [vae.traverse(model, q.mu[0], [d], (q.mean[d] + q.std[d] * torch.tensor(TRAVERSED)).tolist(), labels[:1])[0] for d in dims]
    return {f"z{d} · {size[d]:.1f} {unit}{name}": row for d, name, row in zip(dims, names, rows)}


def save_traversals(rows: dict[str, torch.Tensor], title: str, out: Path) -> None:
    """traversals.png, a row for each dimension, and traversals.gif: all of them move at once, there and back."""
    save_figure(vae.plot_rows(rows, title, [f"{v:g}" for v in TRAVERSED]), out / "traversals.png")
    frames = [enlarged_grid(images, columns=5) for images in torch.stack(list(rows.values()), dim=1)]
    frames += frames[-2:0:-1]
    frames[0].save(out / "traversals.gif", save_all=True, append_images=frames[1:], duration=120, loop=0)   # ms; for ever


def collapse_warning(test: dict[str, float], config: vae.Config) -> str | None:
    """One sentence when the numbers of evaluate say that the decoder does not use the code; else None."""
    if config.model == "vq_vae" and test["perplexity"] < 2:
        return (f"The codebook has collapsed: a perplexity of {test['perplexity']:.2f}, so nearly every place of every image has the same code. Try "
                f"more epochs, norm batch, or a smaller lr than {config.lr:g}.")
    if not config.objective.sampled or (test["kl_nats"] >= 1 and test["active_dims"] >= 1):
        return None
    return (f"The posterior has collapsed: KL {test['kl_nats']:.2f} nats, {test['active_dims']} of {config.latent_dim} dimensions active, so every "
            f"image gets the same code. Try a smaller {f'beta than {config.beta:g}' if config.beta else f'mmd than {config.mmd:g}'}, kl_warmup, or "
            "more epochs.")


def storable(value):
    """Numbers that JSON does not know (the PSNR of a perfect copy, the unevenness of no steps at all) become null."""
    if isinstance(value, dict):
        return {k: storable(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def report(metrics: dict) -> str:
    """metrics.json as Markdown tables, one for each part."""
    facts = [f"{k}: {v}" for k, v in metrics.items() if not isinstance(v, dict)]
    lines = ["# Evaluation", "", *(f"- {f}" for f in facts)]
    for part, values in metrics.items():
        if isinstance(values, dict):
            shown = {k: f"{v:,.4f}" if isinstance(v, float) else f"{v:,}" for k, v in values.items() if isinstance(v, (int, float))}
            lines += ["", f"## {part}", "", vae.markdown_table([{"measure": k, "value": v} for k, v in shown.items()])]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> dict:
    """Parse, measure, write; returns what metrics.json holds. Raises VAEError on what the user can mend."""
    args = parser().parse_args(argv)
    for name, least in (("num_samples", 1), ("num_interpolations", 2), ("num_frechet", 1), ("components", 1)):
        if not vae.whole_number(getattr(args, name), least):
            raise vae.VAEError(f"--{name} must be a whole number from {least} to {vae.LARGEST:,}, not {vae.shown(getattr(args, name))}.")
    if abs(args.seed) >= 2 ** 63:
        raise vae.VAEError(f"--seed must be a whole number of at most 63 bits, not {vae.shown(args.seed)}.")
    if args.fid is not None and args.quick:
        raise vae.VAEError("--fid is one of the long measures that --quick leaves out: give one of the two.")
    inception = None if args.fid is None else Inception(args.fid or None)   # fails before the long part
    start = time.perf_counter()
    folder = args.run or newest_run()
    model, record = vae.load_checkpoint(folder)
    config = model.config
    data = vae.load_dataset(config.dataset, image_size=config.image_size, data_dir=args.data_dir or config.data_dir,
                            max_images=config.max_images)
    same_data = record.get("data", {}).get("fingerprint") == data.fingerprint
    if config.conditions and record["data"]["conditions"] != list(vae.condition_names(data)):
        raise vae.VAEError(f"The model was told {', '.join(record['data']['conditions'])}, and the labels found now are "
                           f"{', '.join(vae.condition_names(data))}: give the folder that it was trained on with --data_dir.")
    if not same_data:
        print("Note: the images found now are not exactly those of the training run: some of these test images may have been trained on.")
    released = vae.RELEASED in folder.resolve().parents   # results do not belong among the released weights
    out = args.out or (vae.runs_root() / f"{folder.name}-evaluation" if released else folder / "evaluation")
    out.mkdir(parents=True, exist_ok=True)

    n, (test, labels) = args.num_samples, data.test
    pictures = 3 * n + 100 * args.num_interpolations   # samples and midpoints; enlarged, those on the way
    vae.need_memory(8 * pictures * test[0].numel(), f"{n:,} samples and {args.num_interpolations:,} images on the way")   # float32, twice
    mu, _ = vae.encode_images(model, test, labels)
    copies = vae.decode_images(model, mu, labels)
    originals, reconstructions = test[:n], copies[:n]
    if len(originals) < n:
        print(f"{data.title} has {len(test):,} test images: that many reconstructions instead of {n:,}")
    asked = labels[torch.arange(n) % len(labels)]   # what a conditional model is told for its samples
    samples = vae.sample_images(model, n, asked, seed=args.seed)
    middle = vae.decode_images(model, vae.midpoints(mu[:max(n, 2)], n=n), asked)
    shown = min(n, 64)
    pairs = torch.stack([vae.as_unit(originals[:shown]), reconstructions[:shown]], dim=1).flatten(0, 1)
    save_grid(pairs, out / "reconstructions.png", columns=16 if shown >= 8 else 2 * shown)
    save_grid(samples[:shown], out / "samples.png", columns=min(shown, 8))
    ends = [[i, len(test) - 1 - i] for i in range(min(5, len(test) // 2))]
    if ends:   # one test image has nothing to be interpolated with
        strips = [vae.interpolate_images(model, *test[two], args.num_interpolations, method, labels[two]) for two in ends for method in vae.METHODS]
        save_grid(torch.cat(strips), out / "interpolations.png", columns=args.num_interpolations)
    if config.model != "vq_vae":   # whose codes have no dimensions to move along
        save_traversals(traversals(model, data, args.seed), f"{data.title}: one latent dimension at a time", out)
    if "history" in record:
        save_figure(vae.plot_history({f"{config.arch} {config.model}": record["history"]}, data.title), out / "losses.png")
    if args.npz:
        for name, images in (("samples", samples), ("reconstructions", reconstructions), ("midpoints", middle)):
            save_npz(images, out / f"{name}.npz")
    maps(model, data, mu, out, args)

    metrics = {"command": " ".join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)]), "run": str(folder),
               "trained_on": record.get("data", {}).get("title"), "measured_on": data.title, "same_data": same_data,
               "seed": args.seed, "hardware": vae.hardware(), "test": vae.evaluate(model, test, labels, seed=args.seed)}
    if warning := collapse_warning(metrics["test"], config):
        metrics["warning"] = warning
        print(warning)
    metrics["pictures"] = {"images": len(test), **vae.picture_metrics(copies, test)}
    if config.model != "vq_vae":   # whose codes are no points in a space with a prior N(0, I)
        metrics["latent_space"] = latent_space(model, test, labels, args.seed)
    if not args.quick:
        if config.has_price:
            metrics["likelihood"] = likelihood(model, data, args.seed)
        net = vae.load_feature_net()
        if len(test) >= 2 and config.model != "vq_vae":   # which jumps from code to code
            metrics["smoothness"] = path_lengths(model, test[:2 * PAIRS], labels[:2 * PAIRS], net, args.seed)
        if data.name == "shapes" and config.model != "vq_vae" and not config.conditions:
            metrics["disentanglement"] = disentanglement(model, args.seed)
        compared = min(args.num_frechet, len(test), len(data.train.images))
        if compared < LEAST_FRECHET:
            print(f"Fréchet distances and neighbours are left out: they need {LEAST_FRECHET:,} training and test images, here are {compared:,}.")
        else:
            sets = {"real_train": data.train.images[:compared],
                    **vae.picture_sets(model, data, compared, components=args.components, seed=args.seed)}
            found, features = distances(net, test[:compared], sets, "ffd")
            metrics["frechet"] = {"images": compared, "components": args.components, **found}
            if inception:
                metrics["frechet"] |= distances(inception, test[:compared], sets, "fid")[0]
            train = vae.image_features(data.train.images, net)
            learnt, told = (tensor[:PAIRS] for tensor in data.train)
            features["training_reconstructions"] = vae.image_features(vae.decode_images(model, vae.encode_images(model, learnt, told)[0], told), net)
            metrics["memorisation"], nearest = neighbours(features, train)
            for name in SAMPLES:
                if name not in nearest:   # no mixture for a vq_vae
                    continue
                rows = torch.cat([sets[name][:10], vae.as_unit(data.train.images[nearest[name][:10]])])
                save_grid(rows, out / f"nearest_{name}.png", columns=10)
                if name == "samples_mixture":   # those of the prior are samples.png
                    save_grid(sets[name][:shown], out / f"{name}.png", columns=min(shown, 8))
    metrics = storable(metrics | {"seconds": round(time.perf_counter() - start, 1)})
    vae.write_json(out / "metrics.json", metrics)
    (out / "report.md").write_text(report(metrics))
    for part, values in metrics.items():
        if isinstance(values, dict):
            print(part)
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    print(f"  {key:28} {value:,.4f}" if isinstance(value, float) else f"  {key:28} {value:,}")
    print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return metrics


if __name__ == "__main__":
    vae.run_script(main)
