"""Measures of pictures and of likelihood: how well a model reconstructs, how many bits its images
cost, how far its samples are from real images, and how smoothly they change along a path.

Sections: pictures, likelihood, codes, sets of pictures, paths, operations. The
networks that look at the pictures stand in support/features.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

import vae_helpers as vae
from image_data.splits import ImageData
from support.features import (  # noqa: F401  others write metrics.load_feature_net
    FeatureNet,
    Inception,
    distances,
    frechet_distance,
    image_features,
    load_feature_net,
    perceptual_path_length,
    torchmetrics_package,
)

# ── Pictures ────────────────────────────────────────────────────────────────────────────────────


def picture_metrics(x_hat: Tensor, images: Tensor) -> dict[str, float]:
    """mse, psnr_db and ssim of x_hat against images, means over the images.

    x_hat (N, C, H, W) is float in [0, 1]; images of the same shape are uint8 or float in [0, 1].
    SSIM (Wang et al. 2004) has a window of 11 pixels: images below 6 pixels have none.
    """
    measures = torchmetrics_package().functional.image
    x = vae.as_unit(images)
    psnr = measures.peak_signal_noise_ratio(
        x_hat, x, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean"
    )
    result = {"mse": (x_hat - x).square().mean().item(), "psnr_db": psnr.item()}
    if min(x.shape[2:]) < 6:
        return result
    ssim = [
        measures.structural_similarity_index_measure(
            some_hat, some, data_range=1.0, reduction="none"
        )
        for some_hat, some in zip(x_hat.split(500), x.split(500))
    ]
    # The result for a single image has no dimension.
    return result | {"ssim": torch.cat([part.reshape(-1) for part in ssim]).mean().item()}


def self_reconstruction_mse(model: vae.VAE, z: Tensor) -> Tensor:
    """How well a model recognises its own pictures: (N, D) → (N,) mean squared errors on [0, 1].

    The error is between x_hat(z) and its reconstruction. Read it beside vae.contrast: pictures
    that are nearly uniform are easy to reconstruct and say nothing.
    """
    images = vae.decode_images(model, z)
    mu, _ = vae.encode_images(model, images)
    return (vae.decode_images(model, mu) - images).square().flatten(1).mean(1)


# ── Likelihood ──────────────────────────────────────────────────────────────────────────────────


def discretised_logistic_nats(mean: Tensor, images: Tensor, scale: float) -> Tensor:
    """-log P(image) when each value is a logistic around mean, cut into the 256 grey levels.

    mean (N, C, H, W) in [0, 1], uint8 images of the same shape, scale in grey levels → (N,) nats.
    Levels 0 and 255 take the tails (Salimans et al. 2017, section 2.1), so that the probabilities
    of all images sum to 1.
    """
    x = images.to(mean.device).float()
    above = (x + 0.5 - 255 * mean) / scale
    below = (x - 0.5 - 255 * mean) / scale
    # log(sigmoid(above) - sigmoid(below)) without cancellation; above - below is 1 / scale.
    middle = F.logsigmoid(above) + F.logsigmoid(-below) + math.log(-math.expm1(-1 / scale))
    log_p = torch.where(x == 255, F.logsigmoid(-below), middle)
    log_p = torch.where(x == 0, F.logsigmoid(above), log_p)
    return -log_p.flatten(1).sum(1)


def _decoded(
    model: vae.VAE, images: Tensor, labels: Tensor | None, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield x_hat(z) in [0, 1], the rate in nats and the images, some at a time."""
    passes = vae.forward_passes(model, images, labels, seed=seed)
    for (_, out), some in zip(passes, images.split(vae.EVALUATION_BATCH)):
        x_hat = vae.to_unit(model.activate(out.x_raw), model.config)
        yield x_hat.cpu(), model.rate_nats(out).cpu(), some


@torch.no_grad()
def bits_per_dim(
    model: vae.VAE,
    images: Tensor,
    tuning: Tensor,
    labels: Tensor | None = None,
    tuning_labels: Tensor | None = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """A bound on the bits that each value of uint8 images (N, C, H, W) costs.

    This is the unit of the literature on image likelihoods. x_hat(z) becomes the mean of a
    discretised logistic with one scale, the best for the images `tuning` (validation images, never
    the test images). The negative ELBO with it, with one sample of z per image, is divided by the
    number of values and by log 2. Raises VAEError for a model whose code has no rate.

    Returns bits_per_dim, bits_per_dim_se and logistic_scale_grey_levels.
    """
    from scipy.optimize import minimize_scalar

    if not model.has_rate:
        raise vae.VAEError(
            f"The code of model {model.config.model} is a point, which has no rate in bits: "
            "measure another model."
        )
    decoded = list(_decoded(model, tuning, tuning_labels, seed))

    def tuning_nats(log_scale: float) -> float:
        scale = math.exp(log_scale)
        return sum(
            discretised_logistic_nats(x_hat, some, scale).sum().item() for x_hat, _, some in decoded
        )

    bounds = (math.log(0.1), math.log(100))
    best = minimize_scalar(tuning_nats, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    scale = math.exp(best.x)
    nats = [
        (discretised_logistic_nats(x_hat, some, scale) + rate).double()
        for x_hat, rate, some in _decoded(model, images, labels, seed)
    ]
    bits = torch.cat(nats) / (images[0].numel() * math.log(2))
    return {
        "bits_per_dim": bits.mean().item(),
        "bits_per_dim_se": vae.standard_error(bits),
        "logistic_scale_grey_levels": scale,
    }


@torch.no_grad()
def iwae_nats(
    model: vae.VAE,
    images: Tensor,
    k: int = 500,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int = 1000,
) -> Tensor:
    """The importance-weighted bound on -log p(x) of images (N, C, H, W) → (N,) nats, float64.

    -log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) with z_i ~ q(z|x). With k = 1 it is the negative
    ELBO; in expectation it only falls with k, towards -log p(x) (Burda et al. 2016, equation 8 and
    theorem 1). batch_size samples are decoded at once. p(z) is model.log_prior. Raises VAEError
    for a model that does not sample its code.
    """
    if not model.sampled:
        raise vae.VAEError(
            "The bound averages over samples of z, which a model "
            f"{model.config.model} does not have: measure a vae."
        )
    model.eval()
    generator = torch.Generator(model.device).manual_seed(seed)
    conditions = model.condition(labels)
    bounds = []
    for i, image in enumerate(images):
        x = vae.to_input(image[None].to(model.device), model.config)
        condition = None if conditions is None else conditions[i : i + 1].to(model.device)
        parts = [
            _log_weights(model, x, condition, len(part), generator)
            for part in torch.arange(k).split(batch_size)
        ]
        bounds.append(math.log(k) - torch.logsumexp(torch.cat(parts), 0))
    return torch.stack(bounds)


def _log_weights(
    model: vae.VAE, x: Tensor, condition: Tensor | None, k: int, generator: torch.Generator
) -> Tensor:
    """log p(x|z) p(z) / q(z|x) for k samples z ~ q(z|x) of one image x (1, C, H, W) → (k,)."""
    mu, logvar = model.encode(x, condition)
    z = vae.reparameterize(mu.expand(k, -1), logvar.expand(k, -1), generator)
    constant = math.log(2 * math.pi)
    log_q = -0.5 * (logvar + (z - mu).square() / logvar.exp() + constant).sum(1)
    x_raw = model.decode_raw(z, None if condition is None else condition.expand(k, -1))
    x = x.expand(k, -1, -1, -1)
    nats = vae.reconstruction_nats(x_raw, x, model.config.likelihood, model.sigma)
    return (model.log_prior(z) - log_q - nats).cpu().double()


# ── Codes ───────────────────────────────────────────────────────────────────────────────────────


def fit_gaussian(z: Tensor) -> MultivariateNormal:
    """The Gaussian with full covariance of latents (N, D).

    This is ex-post density estimation (Ghosh et al. 2020, section 4): fitted to z ~ q(z|x) of
    training images, its samples lie where the codes do, and not where the prior wants them.
    """
    z = z.double()
    covariance = torch.cov(z.T, correction=0).reshape(z.shape[1], -1)
    # A little more variance in every direction, for codes that leave some of them out.
    return MultivariateNormal(z.mean(0), covariance + 1e-4 * torch.eye(z.shape[1]).double())


def sample_gaussian(gaussian: MultivariateNormal, n: int, *, seed: int = 0) -> Tensor:
    """n latents (n, D) from a Gaussian: mean + root · eps, with eps a draw of N(0, I)."""
    eps = vae.sample_latents(n, len(gaussian.loc), seed=seed).double()
    return (gaussian.loc + eps @ gaussian.scale_tril.T).float()


def correlate(z: Tensor, labels: Tensor) -> Tensor:
    """Pearson's r of latents (N, D) with labels (N, A): (D, A), 0 where one of them is constant."""
    both = torch.cat([z, labels.float()], dim=1).T.corrcoef().nan_to_num()
    return both[: z.shape[1], z.shape[1] :]


def gaussian_gap(z: Tensor) -> dict[str, float]:
    """How far latents (N, D), N > D, are from N(0, I): the Gaussian of their moments against it.

    mean_norm                    length of their mean
    variance_max, variance_min   over all directions: eigenvalues of their covariance
    directions                   how many hold 99% of the whole variance
    fit_kl_nats                  KL(N(mean, covariance) || N(0, I))
    """
    z = z.double()
    mean = z.mean(0)
    variances = torch.linalg.eigvalsh(torch.cov(z.T).reshape(z.shape[1], -1))
    held = variances.flip(0).cumsum(0) / variances.sum()
    log_determinant = variances.clamp(min=1e-12).log().sum()
    kl = 0.5 * (variances.sum() + mean.square().sum() - len(variances) - log_determinant)
    return {
        "mean_norm": mean.norm().item(),
        "variance_max": variances[-1].item(),
        "variance_min": variances[0].item(),
        "directions": int((held < 0.99).sum()) + 1,
        "fit_kl_nats": kl.item(),
    }


# ── Sets of pictures ────────────────────────────────────────────────────────────────────────────


def midpoints(mu: Tensor, method: str = "linear", n: int | None = None) -> Tensor:
    """Latents halfway between neighbouring codes: (N, D) → (n, D).

    Code i is paired with code i + 1; when n is larger than N, then with code i + 2, and so on.

    n is N when not given.
    """
    n = len(mu) if n is None else n
    half = torch.tensor(0.5)
    shifts = range(1, n // len(mu) + 2)
    rounds = [vae.INTERPOLATIONS[method](mu, mu.roll(-shift, 0), half) for shift in shifts]
    return torch.cat(rounds)[:n]


def picture_sets(model: vae.VAE, data: ImageData, n: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Sets of n decoded images (n, C, H, W) in [0, 1], to compare with the first n test images.

    samples_prior from the model's prior; reconstructions of those test images; midpoints_linear
    and midpoints_spherical between neighbouring test images; samples_gaussian from a Gaussian
    fitted to the codes of at most 20,000 training images (not beside a learned prior). All are
    means of p(x|z). A conditional model gets the labels of the test images.
    """
    images, labels = data.test.images[:n], data.test.labels[:n]
    mu, _ = vae.encode_images(model, images, labels)
    latents = {"reconstructions": mu}
    for method in vae.INTERPOLATIONS:
        latents[f"midpoints_{method}"] = midpoints(mu, method)
    if not model.learned_prior:
        train = data.train
        codes = vae.sample_codes(model, train.images[:20_000], train.labels[:20_000], seed=seed)
        latents["samples_gaussian"] = sample_gaussian(fit_gaussian(codes), n, seed=seed)
    sets = {"samples_prior": vae.sample_images(model, n, labels, seed=seed)}
    for name, z in latents.items():
        sets[name] = vae.decode_images(model, z, labels)
    return sets


# ── Paths ───────────────────────────────────────────────────────────────────────────────────────


def step_lengths(path: Tensor) -> Tensor:
    """Euclidean distances of neighbouring images of paths: (num, ..., C, H, W) → (num - 1, ...)."""
    return (path[1:] - path[:-1]).flatten(-3).norm(dim=-1)


def step_unevenness(path: Tensor) -> Tensor:
    """Standard deviation / mean of the step lengths of image paths: (num, ..., C, H, W) → (...).

    It is 0 when every step changes the picture by the same amount, as a pixel cross-fade does.
    """
    steps = step_lengths(path)
    return steps.std(0, unbiased=False) / steps.mean(0)


# ── Operations ──────────────────────────────────────────────────────────────────────────────────


def count_flops(model: vae.VAE) -> int:
    """Floating-point operations of one forward pass of one image; a multiply-add counts two."""
    from torch.utils.flop_counter import FlopCounterMode

    c = model.config
    model.eval()
    x = torch.zeros(1, c.channels, c.image_size, c.image_size, device=model.device)
    condition = torch.zeros(1, c.conditions, device=model.device) if model.conditional else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, condition=condition)
    return counter.get_total_flops()
