"""Disentanglement scores of constructed codes whose score is known, and traversals of models."""

import numpy as np
import pytest
import torch
from conftest import SMALL, of_seed, rand, randn

import vae_helpers as vae
from image_data.shapes import SHAPE_FACTORS
from support import disentanglement

LEVELS = (3, 10, 4, 8)
N = 2000
FACTORS = disentanglement.random_factors(N, LEVELS, of_seed(0))


def perfect(factors):
    """One dimension for each factor, in another order, of other sizes and signs."""
    return (factors.float() * torch.tensor([3.0, -0.5, 1.0, 0.7]))[:, [2, 0, 3, 1]] - 1


def rotated(factors):
    """Every dimension is a mixture of all factors, each of variance 1."""
    levels = torch.tensor(LEVELS)
    z = (factors - (levels - 1) / 2) / ((levels**2 - 1) / 12) ** 0.5
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    return z @ hadamard


def noise(factors):
    return randn(len(factors), 5, seed=1)


def copied(factors):
    """The perfect code and the first factor once more."""
    return torch.cat([perfect(factors), 2 * factors[:, :1]], dim=1)


def mig(mu):
    return disentanglement.mutual_information_gap(mu, FACTORS)


def dci(mu):
    half = N // 2
    return disentanglement.dci(mu[:half], FACTORS[:half], mu[half:], FACTORS[half:])


def test_mig_of_known_codes_does_not_change_with_a_rising_function_of_them():
    assert 1 + 1e-9 > mig(perfect(FACTORS)) > 0.95
    assert mig(rotated(FACTORS)) < 0.15
    assert mig(noise(FACTORS)) < 0.03
    mu = rotated(FACTORS) + 0.1 * randn(N, 4, seed=4)
    for other in (mu[:, [3, 1, 0, 2]], 100 * mu - 7, mu.double() ** 3):
        assert mig(other) == pytest.approx(mig(mu), abs=1e-9)


def test_dci_of_known_codes():
    assert dci(perfect(FACTORS)) == pytest.approx((1, 1, 1), abs=0.02)
    assert max(dci(noise(FACTORS))) < 0.06
    disentangled, complete, informative = dci(rotated(FACTORS))
    assert max(disentangled, complete) < 0.3 < 0.4 < informative  # it knows all, but mixed


def test_a_copied_factor_costs_completeness_but_not_disentanglement():
    """Two of five dimensions share it: 1 - ln 2 / ln 5 in place of 1, for one factor of four."""
    disentangled, complete, informative = dci(copied(FACTORS))
    assert (disentangled, informative) == pytest.approx((1, 1), abs=0.02)
    assert complete == pytest.approx(1 - np.log(2) / np.log(5) / 4, abs=0.03)


@pytest.mark.parametrize("code, expected", [(perfect, 1), (copied, 1), (noise, 1 / 4)])
def test_factor_vae_score_of_known_codes(code, expected):
    score = disentanglement.factor_vae_score(code, LEVELS, votes=300, images=32)
    assert score == pytest.approx(expected, abs=0 if expected == 1 else 0.1)


def test_dimensions_that_hardly_vary_have_no_vote():
    """Constant but for one image in a hundred: of least variance in most votes, were it let in."""

    def with_dead(factors):
        rare = rand(len(factors), 1) < 0.01
        return torch.cat([perfect(factors), 1e-3 * rare], dim=1)

    assert disentanglement.factor_vae_score(with_dead, LEVELS, votes=300, images=32) == 1


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(disentanglement, "DRAWN", 600)
    monkeypatch.setattr(disentanglement, "VOTES", 20)


def scaled(shapes, factor):
    """A model whose means are so many times as large as when it is built."""
    model = vae.build_model(vae.config_for(shapes, **SMALL))
    model.encoder[-1].mu.weight.data *= factor
    return model


def test_a_models_scores_are_seeded_and_a_collapsed_one_has_none(shapes):
    model = scaled(shapes, 1000)
    first, again, other = (disentanglement.disentanglement(model, seed) for seed in (0, 0, 1))
    assert first == again != other
    collapsed = disentanglement.disentanglement(scaled(shapes, 0), 0)
    assert len(set(first) - set(collapsed)) == 5


def test_traversals_move_the_first_test_image_and_name_the_factor(model, shapes, monkeypatch):
    """Codes of drawn shapes are replaced by factors: dimension d holds factor 6 - d."""

    def codes(model, factors):
        return factors.flip(1)[:, :4].float()

    monkeypatch.setattr(disentanglement, "codes_of_shapes", codes)
    rows = disentanglement.traversals(model, shapes, 0)
    kl = vae.aggregate_posterior(model, shapes.test.images).kl_nats
    for d, (label, images) in zip(kl.argsort(descending=True).tolist(), rows.items()):
        assert label == f"z{d} · {kl[d]:.1f} nats\n{list(SHAPE_FACTORS)[6 - d]}"
        z, _ = vae.encode_images(model, shapes.test.images[:1])
        z[0, d] = -3  # where the row begins
        torch.testing.assert_close(images[:1], vae.decode_images(model, z))
