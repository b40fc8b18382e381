"""Disentanglement: does each dimension of the code hold one factor of the images?

It is measured on the drawn shapes alone, the only images whose factors are known: MIG, DCI and the
FactorVAE score. Traversals show the same on any images. Throughout, mu (N, D) are codes and
factors (N, F) whole numbers from 0 up.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score
from torch import Tensor

import vae_helpers as vae
from base.options import progress_bar
from image_data.shapes import SHAPE_FACTORS, draw_shapes
from image_data.splits import ImageData

DRAWN = 10_000  # shapes that are drawn to measure a model
VOTES = 800  # of the FactorVAE score: to learn its classifier, and as many to test it
TRAVERSED = np.linspace(-3, 3, 11).tolist()  # N(0, 1) has 99.7 % of its mass there


def random_factors(n: int, levels: Sequence[int], generator: torch.Generator) -> Tensor:
    """n independent, uniform draws of factors with so many levels each → (n, F)."""
    columns = [torch.randint(count, (n,), generator=generator) for count in levels]
    return torch.stack(columns, dim=1)


def codes_of_shapes(model: vae.VAE, factors: Tensor) -> Tensor:
    """Draw the shapes with these factors (N, 7) and encode them → mu (N, D)."""
    parts = []
    for some in progress_bar(factors.split(500), desc="drawn shapes"):
        mu, _ = vae.encode_images(model, draw_shapes(some, model.config.image_size))
        parts.append(mu)
    return torch.cat(parts)


def active_dims(mu: Tensor) -> Tensor:
    """Which dimensions vary over the images, (N, D) → (D,) bool.

    In the others mu is tiny but not noise: the decoder ignores it, yet it may tell a factor
    exactly and would pass for a second code of it.
    """
    return mu.var(0, unbiased=False) > vae.ACTIVE_THRESHOLD


def mutual_information(mu: Tensor, factors: Tensor, bins: int = 20) -> np.ndarray:
    """Nats that each dimension tells about each factor → (D, F).

    A dimension is cut into bins that hold equally many codes, so that no monotone rescaling
    changes the estimate. It is too high by about (bins - 1) (levels - 1) / 2N nats.
    """
    edges = np.quantile(mu, np.arange(1, bins) / bins, axis=0, method="lower")
    information = np.zeros((mu.shape[1], factors.shape[1]))
    for d, z in enumerate(mu.T.numpy()):
        binned = np.searchsorted(edges[:, d], z, side="right")
        for k, factor in enumerate(factors.T.numpy()):
            information[d, k] = mutual_info_score(factor, binned)
    return information


def mutual_information_gap(mu: Tensor, factors: Tensor, bins: int = 20) -> float:
    """MIG (Chen et al. 2018, section 4.1, equation 6), 0 to 1.

    How far the dimension that tells most about a factor leads the second, as a share of the
    factor's entropy; mean over the factors. Where the paper integrates over q(z|x), this bins the
    means, as Locatello et al. 2019 do (with bins of equal width).
    """
    # One more dimension without information, so that a single one has a second to lead.
    nothing = np.zeros(factors.shape[1])
    information = np.vstack([mutual_information(mu, factors, bins), nothing])
    second, first = np.sort(information, axis=0)[-2:]
    entropies = [entropy(np.bincount(factor)) for factor in factors.T]
    return float(np.mean((first - second) / entropies))


def dci(
    mu_train: Tensor, factors_train: Tensor, mu_test: Tensor, factors_test: Tensor, seed: int = 0
) -> tuple[float, float, float]:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2).

    Each is 0 to 1, larger is better. How important a dimension is for a factor is what a random
    forest, one of the paper's two regressors, gains by it. Its trees see all dimensions at every
    split: of a few chosen at random they would have to use some that tell nothing.

    Disentanglement: 1 - the entropy of a dimension's importances over the factors, weighted with
    their sum. Completeness: the same of a factor's importances over the dimensions.
    Informativeness: unlike the paper's error, the share of the test images that the forest gets
    right above that of always naming the most frequent level, so that 0 is chance.
    """
    importances = []
    informativeness = []
    for train, test in zip(factors_train.T.numpy(), factors_test.T.numpy()):
        forest = RandomForestClassifier(
            20, max_features=None, min_samples_leaf=5, max_samples=0.5, random_state=seed
        )
        forest.fit(mu_train.numpy(), train)
        importances.append(forest.feature_importances_)
        chance = np.bincount(test).max() / len(test)
        accuracy = forest.score(mu_test.numpy(), test)
        informativeness.append(max(0.0, (accuracy - chance) / (1 - chance)))
    # (D, F). A dimension that no tree uses has the same tiny importance for all factors.
    importance = np.array(importances).T + 1e-12
    # With a single dimension or factor the entropy is 0 in any base; base 1 has no logarithm.
    dims, factors = (max(count, 2) for count in importance.shape)
    disentanglement = np.average(
        1 - entropy(importance, axis=1, base=factors), weights=importance.sum(1)
    )
    completeness = np.mean(1 - entropy(importance, axis=0, base=dims))
    return float(disentanglement), float(completeness), float(np.mean(informativeness))


def factor_vae_score(
    encode: Callable[[Tensor], Tensor],
    levels: Sequence[int],
    votes: int = VOTES,
    images: int = 64,
    seed: int = 0,
) -> float:
    """Accuracy of naming the factor that some images share (Kim & Mnih 2018, section 4).

    encode draws images with given factors (N, F) and gives their codes mu (N, D). In each vote all
    `images` share one level of one factor. The vote goes to the active dimension whose variance
    within the vote is smallest, as a share of its variance over all images. A dimension then names
    the factor that most of the first votes for it had in common; the score is how often that name
    is right in as many new votes. Chance is 1 / F. NaN without an active dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = random_factors(2 * votes * images, levels, generator)
    factors = factors.unflatten(0, (2 * votes, images))
    shared = torch.randint(len(levels), (2 * votes,), generator=generator)
    is_shared = F.one_hot(shared, len(levels)).bool()[:, None]
    factors = torch.where(is_shared, factors[:, :1], factors)
    mu = encode(factors.flatten(0, 1))
    mu = mu[:, active_dims(mu)]
    if not mu.shape[1]:
        return float("nan")
    variances = mu.unflatten(0, (2 * votes, images)).var(1)
    winner = (variances / mu.var(0)).argmin(1)
    counts = torch.zeros(mu.shape[1], len(levels))
    counts.index_put_((winner[:votes], shared[:votes]), torch.ones(votes), accumulate=True)
    named = counts.argmax(1)[winner[votes:]]
    return (named == shared[votes:]).double().mean().item()


def disentanglement(model: vae.VAE, seed: int) -> dict[str, float]:
    """All scores of a model of the drawn shapes, on newly drawn ones.

    A model without an active dimension has no scores, only the counts.
    """
    levels = tuple(SHAPE_FACTORS.values())
    factors = random_factors(DRAWN, levels, torch.Generator().manual_seed(seed))
    mu = codes_of_shapes(model, factors)
    mu = mu[:, active_dims(mu)]
    counts = {
        "images": DRAWN,
        "active_dims": mu.shape[1],
        "factor_vae_votes": VOTES,
        "factor_vae_chance": 1 / len(levels),
    }
    if not mu.shape[1]:
        return counts

    def encode(some_factors: Tensor) -> Tensor:
        return codes_of_shapes(model, some_factors)

    half = DRAWN // 2
    scores = dci(mu[:half], factors[:half], mu[half:], factors[half:], seed)
    return {
        "mig": mutual_information_gap(mu, factors),
        "dci_disentanglement": scores[0],
        "dci_completeness": scores[1],
        "dci_informativeness": scores[2],
        "factor_vae_score": factor_vae_score(encode, levels, VOTES, seed=seed),
        **counts,
    }


def traversals(model: vae.VAE, data: ImageData, seed: int) -> dict[str, Tensor]:
    """What each dimension draws: label → images (11, C, H, W) with it set to each of TRAVERSED.

    All start from the code of the first test image. Up to ten dimensions are shown, the one of
    largest mean KL first. Where the code is a point, no prior sets the scale: the one of largest
    standard deviation comes first, and TRAVERSED counts standard deviations from the mean. On
    shapes, the label of an active dimension names the factor it tells most about.
    """
    images, labels = data.test
    q = vae.aggregate_posterior(model, images, labels, seed=seed)
    size, unit = (q.kl_nats, "nats") if model.sampled else (q.std, "std")
    dims = size.argsort(descending=True)[:10].tolist()
    names = factors_of(model, dims, seed) if data.name == "shapes" and not model.conditional else {}
    rows = {}
    for d in dims:
        values = torch.tensor(TRAVERSED)
        if not model.sampled:
            values = q.mean[d] + q.std[d] * values
        label = f"z{d} · {size[d]:.1f} {unit}" + (f"\n{names[d]}" if d in names else "")
        rows[label] = vae.traverse(model, q.mu[0], [d], values, labels[:1])[0]
    return rows


def factors_of(model: vae.VAE, dims: Sequence[int], seed: int) -> dict[int, str]:
    """Active dimension → the factor of the drawn shapes that it tells most about."""
    levels = tuple(SHAPE_FACTORS.values())
    factors = random_factors(DRAWN, levels, torch.Generator().manual_seed(seed))
    mu = codes_of_shapes(model, factors)[:, dims]
    most_told = mutual_information(mu, factors).argmax(1)
    names = {}
    for d, active, k in zip(dims, active_dims(mu), most_told):
        if active:
            names[d] = list(SHAPE_FACTORS)[k].replace("_", " ")
    return names
