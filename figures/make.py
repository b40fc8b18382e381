"""Make the figures of README.md, theory_answers.md and docs/, and fill the tables of these texts.

    python figures/make.py            needs the real data; some five minutes on two CPU cores
    python figures/make.py --texts    only fills the tables, from what was measured before

All is made with the released weights. What is measured here for theory_answers.md goes to
figures/theory.json. The gallery of docs/models.md has a command of its own, figures/gallery.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import vae_helpers as vae
from figures import doc_tables
from support import metrics, runs

PAIR = (12, 37)  # the test images that are interpolated


def load(folders: dict[str, str]) -> dict[str, vae.VAE]:
    """Title → released model, from title → folder in checkpoints/."""
    return {t: vae.load_checkpoint(runs.RELEASED / name)[0] for t, name in folders.items()}


def save(figure: Figure, name: str) -> None:
    figure.savefig(HERE / name, dpi=110)
    plt.close(figure)


# ── README.md and docs/results.md ───────────────────────────────────────────────────────────────


def draw_tasks(cifar: vae.ImageData) -> None:
    """Pictures of Task 1 and Task 2, and one of the repair of the blur."""
    images = cifar.test.images[:12]
    names = {"convolutional": "cifar10_conv", "fc, same size": "cifar10_fc"}
    names["fc, 3x"] = "cifar10_fc3x"
    title = f"Task 1 · test images and reconstructions: {cifar.title}"
    save(vae.plot_reconstructions(load(names), images, title), "task1_reconstructions.png")

    names = {"BCE": "cifar10_conv", "calibrated σ": "cifar10_conv_sigma", "best": "cifar10_best"}
    title = f"Two losses, three models, one latent size: {cifar.title}"
    save(vae.plot_reconstructions(load(names), images, title), "quality_reconstructions.png")

    model = load({"conv": "cifar10_conv"})["conv"]
    a, b = cifar.test.images[list(PAIR)]
    strips = {m: vae.interpolate_images(model, a, b, 10, m) for m in vae.METHODS}
    strips["pixel cross-fade"] = vae.cross_fade(a, b, 10)
    title = f"Task 2 · between two test images: {cifar.title}"
    save(vae.display_interpolated_images(strips, (a, b), title), "task2_interpolation.png")


# ── theory_answers.md, questions 1 and 3: where the codes lie ───────────────────────────────────


def where_codes_lie(model: vae.VAE, images: Tensor) -> dict[str, float]:
    """The codes z ~ q(z|x) of images against N(0, I)."""
    _, logvar = vae.encode_images(model, images)
    q = vae.aggregate_posterior(model, images)
    variance = q.std.square()
    # A Gaussian fitted to each dimension by itself, against N(0, 1).
    by_dimension = 0.5 * (q.mean.square() + variance - 1 - variance.clamp(min=1e-12).log())
    gap = metrics.gaussian_gap(q.z)
    return gap | {
        "variance_ratio": gap["variance_max"] / gap["variance_min"],
        "sigma": (0.5 * logvar).exp().mean().item(),
        "code_norm": q.norms.mean().item(),
        "code_std": q.std.mean().item(),
        "by_dimension_kl_nats": by_dimension.sum().item(),
    }


def question_1(models: dict[str, vae.VAE], data: vae.ImageData) -> dict:
    pair = {name: models[name] for name in ("β = 0", "β = 1")}
    z = vae.sample_latents(12, pair["β = 1"].latent_size, seed=0)
    title = f"Q1 · the same 12 draws of N(0, I); trained on {data.title}"
    save(vae.plot_samples(pair, z, title), "theory_q1_samples.png")
    return {name: where_codes_lie(model, data.test.images) for name, model in pair.items()}


def question_3(models: dict[str, vae.VAE], data: vae.ImageData) -> dict:
    z = vae.sample_latents(12, models["VAE"].latent_size, seed=0)
    title = f"Q3 · the same 12 draws of N(0, I); trained on {data.title}"
    save(vae.plot_samples(models, z, title), "theory_q3_samples.png")
    numbers = {"real images": {"contrast": vae.contrast(data.test.images).mean().item()}}
    for name, model in models.items():
        codes = where_codes_lie(model, data.test.images)
        quoted = ("mean_norm", "code_std", "variance_max", "directions")
        numbers[name] = {key: codes[key] for key in quoted}
        samples = vae.sample_images(model, 1000, seed=0)
        numbers[name]["prior_contrast"] = vae.contrast(samples).mean().item()
    return numbers


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


def question_2(model: vae.VAE, images: Tensor, draws: int = 4000) -> dict:
    """Variances, summed over the components of mu; means over the images."""
    variances: dict[str, list[float]] = {}
    cosines = []
    for image in images:
        estimates = gradient_estimates(model, image, draws)
        for name, samples in estimates.items():
            variances.setdefault(name, []).append(samples.var(0).sum().item())
        pathwise, with_baseline, _ = (samples.mean(0) for samples in estimates.values())
        cosines.append(F.cosine_similarity(pathwise, with_baseline, dim=0).item())
    means = {name: sum(values) / len(values) for name, values in variances.items()}
    save(plot_variances(means), "theory_q2_gradient_variance.png")
    smallest = means["pathwise (reparameterised)"]
    estimators = {}
    for name, mean in means.items():
        estimators[name] = {"variance": mean, "times_pathwise": mean / smallest}
    cosine = sum(cosines) / len(cosines)
    return {"images": len(images), "draws": draws, "cosine": cosine, "estimators": estimators}


def plot_variances(variances: dict[str, float]) -> Figure:
    figure, ax = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    # Points, not bars, which have no length on a logarithmic axis.
    ax.plot(list(variances.values()), list(variances), "o")
    for name, variance in variances.items():
        label = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        ax.annotate(f"{variance:,.0f}", (variance, name), **label)
    ax.margins(0.15, 0.3)
    ax.grid(axis="x", alpha=0.3)
    ax.set(xscale="log", xlabel="variance of a one-sample estimate of the gradient")
    ax.set_title("Q2 · two unbiased estimators of one gradient")
    return figure


# ── Question 4: what lies between the codes ─────────────────────────────────────────────────────


def nearest_cloud(clouds: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> float:
    """From each N(mu, sigma^2) the Bhattacharyya distance to the nearest of the others, in nats.

    Both are mu, logvar (N, D); the median over the clouds.
    """
    means, logvars = others
    nearest = []
    for mu, logvar in zip(*clouds):
        variance = (logvars.exp() + logvar.exp()) / 2
        by_means = ((means - mu).square() / variance).sum(1) / 8
        by_variances = (variance.log() - (logvars + logvar) / 2).sum(1) / 2
        nearest.append((by_means + by_variances).min().item())
    return median(nearest)


def smoothness(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """What lies on the lines between 500 pairs of test images, and one step beside a code."""
    mu, logvar = vae.encode_images(model, data.test.images)
    path = vae.decode_images(model, vae.interpolate_latents(mu[:500], mu[500:1000], 21))
    step = vae.sample_latents(1000, model.latent_size, radius=1, seed=2)
    moved = vae.decode_images(model, mu[:1000] + step)
    change = moved - vae.decode_images(model, mu[:1000])
    training_clouds = vae.encode_images(model, data.train.images)
    distance = nearest_cloud((mu[:200], logvar[:200]), training_clouds)
    return {
        "sigma": (0.5 * logvar).exp().mean().item(),
        "unevenness": metrics.step_unevenness(path).mean().item(),
        "unit_step": change.square().flatten(1).mean(1).sqrt().mean().item(),
        "end_contrast": vae.contrast(path[[0, -1]]).mean().item(),
        "middle_contrast": vae.contrast(path[10]).mean().item(),
        "nearest_cloud": distance,
        "nearest_overlap": math.exp(-distance),
    }


def question_4(models: dict[str, vae.VAE], data: vae.ImageData) -> dict:
    a, b = data.test.images[list(PAIR)]
    strips = {name: vae.interpolate_images(model, a, b, 10) for name, model in models.items()}
    title = f"Q4 · linear interpolation over β: {data.title}"
    save(vae.display_interpolated_images(strips, (a, b), title), "theory_q4_interpolation.png")
    return {name: smoothness(model, data) for name, model in models.items()}


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", action="store_true", help="only fill the tables of the texts")
    if not parser.parse_args().texts:
        cifar = vae.load_dataset("cifar10")
        draw_tasks(cifar)
        by_beta = load(doc_tables.BETAS)
        theory = {
            "q1_kl_term": question_1(by_beta, cifar),
            "q2_gradient": question_2(by_beta["β = 1"], cifar.test.images[:16]),
            "q3_fixed_codes": question_3(load(doc_tables.AUTOENCODER_AND_VAE), cifar),
            "q4_smooth_space": question_4(by_beta, cifar),
        }
        vae.write_json(HERE / "theory.json", theory)
    doc_tables.fill_texts()


if __name__ == "__main__":
    runs.run_script(main)
