"""Disentanglement scores of constructed codes whose score is known, and traversals of models."""

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import vae_helpers as vae
from support import disentanglement
from support.datasets import SHAPE_FACTORS

LEVELS = (3, 10, 4, 8)
N = 2000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FACTORS = disentanglement.random_factors(N, LEVELS, generator())


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
    return torch.randn(len(factors), 5, generator=generator(1))


def copied(factors):
    """The perfect code and the first factor once more."""
    return torch.cat([perfect(factors), 2 * factors[:, :1]], dim=1)


def with_constant(factors):
    """The perfect code and a dimension that tells nothing."""
    return torch.cat([perfect(factors), torch.ones(len(factors), 1)], dim=1)


def mig(mu):
    return disentanglement.mutual_information_gap(mu, FACTORS)


def dci(mu):
    half = N // 2
    return disentanglement.dci(mu[:half], FACTORS[:half], mu[half:], FACTORS[half:])


# ── Mutual information and its gap ──────────────────────────────────────────────────────────────


def test_a_copy_of_a_factor_tells_its_entropy_in_nats():
    information = disentanglement.mutual_information(perfect(FACTORS), FACTORS)
    expected = np.zeros((4, 4))
    expected[range(4), [2, 0, 3, 1]] = np.log(LEVELS)[[2, 0, 3, 1]]
    np.testing.assert_allclose(information, expected, atol=0.05)


def test_mutual_information_of_correlated_gaussians_is_the_closed_form():
    """A factor made of 10 quantiles of x, and z correlated with x by r: almost -ln(1 - r^2) / 2."""
    x, other = torch.randn(2, 20_000, generator=generator(2))
    levels = (x.argsort().argsort() // 2000)[:, None]
    r = 0.8
    z = r * x + (1 - r**2) ** 0.5 * other
    information = disentanglement.mutual_information(z[:, None], levels)
    assert information.item() == pytest.approx(-np.log(1 - r**2) / 2, abs=0.05)


@pytest.mark.parametrize(
    "code, low, high", [(perfect, 0.95, 1), (rotated, 0, 0.15), (noise, 0, 0.03)]
)
def test_mig_of_known_codes(code, low, high):
    assert low <= mig(code(FACTORS)) <= high + 1e-9


def test_a_copied_factor_has_no_gap_and_the_three_others_keep_theirs():
    assert mig(copied(FACTORS)) == pytest.approx(0.75 * mig(perfect(FACTORS)), abs=0.01)


def test_mig_does_not_change_with_the_order_of_dimensions_or_a_rising_function_of_them():
    mu = rotated(FACTORS) + 0.1 * torch.randn(N, 4, generator=generator(4))
    for other in (mu[:, [3, 1, 0, 2]], 100 * mu - 7, mu.double().exp(), mu.double() ** 3):
        assert mig(other) == pytest.approx(mig(mu), abs=1e-9)


# ── DCI ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [perfect, with_constant])
def test_dci_of_a_perfect_code_is_1(code):
    assert dci(code(FACTORS)) == pytest.approx((1, 1, 1), abs=0.02)


def test_dci_of_a_rotated_code_is_low_though_it_knows_the_factors():
    disentangled, complete, informative = dci(rotated(FACTORS))
    assert disentangled < 0.3
    assert complete < 0.3
    assert informative > 0.4


def test_dci_of_random_codes_is_near_0():
    assert max(dci(noise(FACTORS))) < 0.06


def test_a_copied_factor_costs_completeness_but_not_disentanglement():
    """Two of five dimensions share it: 1 - ln 2 / ln 5 in place of 1, for one factor of four."""
    disentangled, complete, informative = dci(copied(FACTORS))
    assert (disentangled, informative) == pytest.approx((1, 1), abs=0.02)
    assert complete == pytest.approx(1 - np.log(2) / np.log(5) / 4, abs=0.03)


def test_two_factors_in_one_dimension_cost_disentanglement_but_not_completeness():
    """One dimension counts through all combinations of the first factor and the third."""
    both = FACTORS[:, 0] * 4 + FACTORS[:, 2]
    disentangled, complete, _ = dci(torch.stack([both, FACTORS[:, 1], FACTORS[:, 3]], 1).float())
    assert complete == pytest.approx(1, abs=0.02)
    assert disentangled == pytest.approx(1 - 0.5 * np.log(2) / np.log(4), abs=0.02)


# ── FactorVAE ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code, expected", [(perfect, 1), (copied, 1), (noise, 1 / 4)])
def test_factor_vae_score_of_known_codes(code, expected):
    score = disentanglement.factor_vae_score(code, LEVELS, votes=300, images=32)
    assert score == pytest.approx(expected, abs=0 if expected == 1 else 0.1)


def test_dimensions_that_hardly_vary_have_no_vote():
    """Constant but for one image in a hundred: of least variance in most votes, were it let in."""

    def with_dead(factors):
        rare = torch.rand(len(factors), 1, generator=generator()) < 0.01
        return torch.cat([perfect(factors), 1e-3 * rare], dim=1)

    def constant(factors):
        return torch.zeros(len(factors), 3)

    assert disentanglement.factor_vae_score(with_dead, LEVELS, votes=300, images=32) == 1
    assert np.isnan(disentanglement.factor_vae_score(constant, LEVELS, votes=300, images=32))


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    dims=st.integers(1, 4),
    levels=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    mixed=st.floats(0, 3),
)
def test_every_score_lies_between_0_and_1_and_is_the_same_again(seed, dims, levels, mixed):
    weights = torch.randn(len(levels), dims, generator=generator(seed))

    def code(factors):
        return factors.float() @ weights + mixed * torch.randn(
            len(factors), dims, generator=generator(seed)
        )

    factors = disentanglement.random_factors(300, levels, generator(seed))
    mu = code(factors)
    assume(disentanglement.active_dims(mu).any())

    def scores():
        halves = (mu[:150], factors[:150], mu[150:], factors[150:])
        return (
            disentanglement.mutual_information_gap(mu, factors),
            *disentanglement.dci(*halves, seed),
            disentanglement.factor_vae_score(code, levels, 20, 8, seed),
        )

    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores())
    assert scores() == scores()


# ── Models ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(disentanglement, "DRAWN", 600)
    monkeypatch.setattr(disentanglement, "VOTES", 20)


def test_a_models_scores_are_seeded_and_a_collapsed_one_has_none(model, shapes, few):
    model.eval()
    first, again, other = (disentanglement.disentanglement(model, seed) for seed in (0, 0, 1))
    assert first == again != other
    collapsed = vae.build_model(vae.config_for(shapes, **SMALL))
    for parameter in collapsed.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    counts = disentanglement.disentanglement(collapsed, 0)
    scores = {
        "mig",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "factor_vae_score",
    }
    assert set(first) - set(counts) == scores
    # No factor to name, either.
    labels = list(disentanglement.traversals(collapsed, shapes, 0))
    assert labels == [f"z{d} · 0.0 nats" for d in range(4)]


def test_traversals_start_from_the_first_test_image_and_are_sorted_by_kl(model, shapes, few):
    rows = disentanglement.traversals(model, shapes, 0)
    kl = vae.aggregate_posterior(model, shapes.test.images).kl_nats
    for d, (label, images) in zip(kl.argsort(descending=True).tolist(), rows.items()):
        assert label.startswith(f"z{d} · {kl[d]:.1f} nats")
        z, _ = vae.encode_images(model, shapes.test.images[:1])
        z[0, d] = -3
        torch.testing.assert_close(images[:1], vae.decode_images(model, z))
        assert images.shape == (11, 3, 32, 32)


def test_traversals_name_the_factor_that_a_dimension_holds(model, shapes, few, monkeypatch):
    """Its codes replaced by factors: dimension d holds factor 6 - d."""

    def codes(model, factors):
        return factors.flip(1)[:, :4].float()

    monkeypatch.setattr(disentanglement, "codes_of_shapes", codes)
    for label in disentanglement.traversals(model, shapes, 0):
        assert label.split("\n")[1] == list(SHAPE_FACTORS)[6 - int(label[1])]


@pytest.mark.parametrize(
    "choices", [{"latent_dim": 12}, {"model": "ae"}, {"latent_dim": 1}], ids=str
)
def test_traversals_show_ten_dimensions_at_most_and_count_spreads_of_a_point(shapes, few, choices):
    model = vae.build_model(vae.config_for(shapes, **SMALL | choices))
    rows = disentanglement.traversals(model, shapes, 0)
    assert len(rows) == min(10, model.latent_size)
    assert all(("std" in label) != model.sampled for label in rows)
