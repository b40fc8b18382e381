"""Disentanglement scores of constructed codes whose score is known, then evaluate.py on a run of the drawn shapes."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, take
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import evaluate
import vae_helpers as vae

LEVELS = (3, 10, 4, 8)
N = 2000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FACTORS = evaluate.random_factors(N, LEVELS, generator())


def as_factors(factors):
    """The perfect code: one dimension for each factor, in another order, of other sizes and signs."""
    return (factors.float() * torch.tensor([3.0, -0.5, 1.0, 0.7]))[:, [2, 0, 3, 1]] - 1


def rotated(factors):
    """Every dimension is a mixture of all factors, each of variance 1."""
    z = (factors - (torch.tensor(LEVELS) - 1) / 2) / ((torch.tensor(LEVELS) ** 2 - 1) / 12) ** 0.5
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    return z @ hadamard


def noise(factors):
    return torch.randn(len(factors), 5, generator=generator(1))


def copied(factors):
    """The perfect code and the first factor once more."""
    return torch.cat([as_factors(factors), 2 * factors[:, :1]], dim=1)


def dci(code, seed=0):
    mu, half = code(FACTORS), N // 2
    return evaluate.dci(mu[:half], FACTORS[:half], mu[half:], FACTORS[half:], seed)


def score(code, votes=300, seed=0):
    return evaluate.factor_vae_score(code, LEVELS, votes, images=32, seed=seed)


# ── Mutual information and its gap ──────────────────────────────────────────────────────────────

def test_drawn_factors_are_uniform_and_independent():
    factors = evaluate.random_factors(20_000, LEVELS, generator())
    for column, k in zip(factors.T, LEVELS):
        share = torch.bincount(column).double() / len(column)
        assert len(share) == k and (share - 1 / k).abs().max() < 0.02
    assert (torch.corrcoef(factors.T) - torch.eye(4)).abs().max() < 0.03


def test_a_copy_of_a_factor_tells_its_entropy_in_nats():
    information = evaluate.mutual_information(as_factors(FACTORS), FACTORS)
    expected = np.zeros((4, 4))
    expected[range(4), [2, 0, 3, 1]] = np.log(LEVELS)[[2, 0, 3, 1]]
    np.testing.assert_allclose(information, expected, atol=0.05)


def test_mutual_information_of_correlated_gaussians_is_the_closed_form():
    """A factor made of 10 quantiles of x, and z correlated with x by r: almost -ln(1 - r^2) / 2 nats."""
    x, other, r = torch.randn(20_000, generator=generator(2)), torch.randn(20_000, generator=generator(3)), 0.8
    levels = (x.argsort().argsort() // 2000)[:, None]
    information = evaluate.mutual_information((r * x + (1 - r ** 2) ** 0.5 * other)[:, None], levels)
    assert information.item() == pytest.approx(-np.log(1 - r ** 2) / 2, abs=0.05)


def test_independent_codes_tell_only_the_bias_of_the_estimate():
    information = evaluate.mutual_information(noise(FACTORS), FACTORS)
    expected = 19 * (np.array(LEVELS) - 1) / (2 * N)
    np.testing.assert_allclose(information.mean(0), expected, rtol=0.3)


@pytest.mark.parametrize("code, low, high", [(as_factors, 0.95, 1), (rotated, 0, 0.15), (noise, 0, 0.03)])
def test_mig_of_known_codes(code, low, high):
    assert low <= evaluate.mutual_information_gap(code(FACTORS), FACTORS) <= high + 1e-9


def test_a_copied_factor_has_no_gap():
    """The others keep theirs: three of the four factors count."""
    whole, with_copy = (evaluate.mutual_information_gap(c(FACTORS), FACTORS) for c in (as_factors, copied))
    assert with_copy == pytest.approx(0.75 * whole, abs=0.01)


def test_a_lone_dimension_leads_by_all_that_it_knows():
    assert evaluate.mutual_information_gap(FACTORS[:, :1].float(), FACTORS[:, :1]) == pytest.approx(1)


def test_mig_does_not_change_with_the_order_of_dimensions_or_a_rising_function_of_them():
    mu = rotated(FACTORS) + 0.1 * torch.randn(N, 4, generator=generator(4))
    mig = evaluate.mutual_information_gap(mu, FACTORS)
    for other in (mu[:, [3, 1, 0, 2]], 100 * mu - 7, mu.double().exp(), mu.double() ** 3):
        assert evaluate.mutual_information_gap(other, FACTORS) == pytest.approx(mig, abs=1e-9)
    assert evaluate.mutual_information_gap(-mu, FACTORS) == pytest.approx(mig, abs=0.01)   # bins are cut from the other side


# ── DCI ─────────────────────────────────────────────────────────────────────────────────────────

def test_dci_of_a_perfect_code_is_1():
    assert dci(as_factors) == pytest.approx((1, 1, 1), abs=0.02)


def test_dci_of_a_rotated_code_is_low_though_it_knows_the_factors():
    disentangled, complete, informative = dci(rotated)
    assert disentangled < 0.3 and complete < 0.3 and informative > 0.4


def test_dci_of_random_codes_is_near_0():
    assert max(dci(noise)) < 0.06


def test_a_copied_factor_costs_completeness_but_not_disentanglement():
    """Its importance is shared by two of five dimensions: 1 - ln 2 / ln 5 in place of 1, for one factor of four."""
    disentangled, complete, informative = dci(copied)
    assert (disentangled, informative) == pytest.approx((1, 1), abs=0.02)
    assert complete == pytest.approx(1 - np.log(2) / np.log(5) / 4, abs=0.03)


def test_two_factors_in_one_dimension_cost_disentanglement_but_not_completeness():
    """One dimension counts through all combinations of the first and the third, unevenly enough to be read from it."""
    mu = torch.stack([FACTORS[:, 0] * 4 + FACTORS[:, 2], FACTORS[:, 1], FACTORS[:, 3]], dim=1).float()
    disentangled, complete, _ = dci(lambda factors: mu)
    assert complete == pytest.approx(1, abs=0.02) and disentangled == pytest.approx(1 - 0.5 * np.log(2) / np.log(4), abs=0.02)


def test_a_dimension_that_tells_nothing_weighs_nothing():
    assert dci(lambda f: torch.cat([as_factors(f), torch.ones(len(f), 1)], dim=1)) == pytest.approx((1, 1, 1), abs=0.02)


# ── FactorVAE ───────────────────────────────────────────────────────────────────────────────────

def test_factor_vae_score_of_known_codes():
    assert score(as_factors) == 1
    assert score(copied) == 1
    assert abs(score(noise) - 1 / 4) < 0.1


def test_dimensions_that_hardly_vary_have_no_vote():
    """Constant but for one image in a hundred: of least variance in most votes, were it let in."""
    def with_dead(factors):
        return torch.cat([as_factors(factors), 1e-3 * (torch.rand(len(factors), 1, generator=generator()) < 0.01)], dim=1)

    assert score(with_dead) == 1
    assert np.isnan(score(lambda factors: torch.zeros(len(factors), 3)))


def test_each_vote_draws_images_that_share_one_level_of_one_factor():
    seen = []
    evaluate.factor_vae_score(lambda factors: seen.append(factors) or as_factors(factors), LEVELS, votes=20, images=16)
    [factors] = seen
    groups = factors.unflatten(0, (40, 16))
    shared = (groups == groups[:, :1]).all(1)
    assert (shared.sum(1) >= 1).all() and shared.sum() < 45   # by chance, 16 images hardly agree in another factor
    assert shared.any(0).all()


# ── Properties ──────────────────────────────────────────────────────────────────────────────────

@settings(max_examples=6)
@given(seed=st.integers(0, 2 ** 31), dims=st.integers(1, 4), levels=st.lists(st.integers(2, 5), min_size=1, max_size=3),
       mixed=st.floats(0, 3))
def test_every_score_lies_between_0_and_1_and_is_the_same_again(seed, dims, levels, mixed):
    weights = torch.randn(len(levels), dims, generator=generator(seed))

    def code(factors):
        return factors.float() @ weights + mixed * torch.randn(len(factors), dims, generator=generator(seed))

    factors = evaluate.random_factors(300, levels, generator(seed))
    mu = code(factors)
    assume(evaluate.active_dims(mu).any())

    def scores():
        return (evaluate.mutual_information_gap(mu, factors), *evaluate.dci(mu[:150], factors[:150], mu[150:], factors[150:], seed),
                evaluate.factor_vae_score(code, levels, 20, 8, seed))

    assert all(-1e-9 <= s <= 1 + 1e-9 for s in scores())
    assert scores() == scores()


# ── Models, and evaluate.py ─────────────────────────────────────────────────────────────────────

SCORES = {"mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae_score"}
COUNTS = {"images", "active_dims", "factor_vae_votes", "factor_vae_chance"}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(evaluate, "DRAWN", 600)
    monkeypatch.setattr(evaluate, "VOTES", 20)


@pytest.fixture(scope="module")
def run(all_shapes, tmp_path_factory):
    """The folder of a run of one epoch in small steps, after which every dimension is active."""
    folder = tmp_path_factory.mktemp("disentanglement") / "run"
    config = vae.Config(dataset="shapes", latent_dim=4, width=4, norm="batch", likelihood="gaussian", epochs=1, batch_size=32, lr=3e-3,
                        max_images=1000)
    vae.train_run(config, take(all_shapes, 1000, 500, 1000), folder, progress=False)
    return folder


@pytest.fixture
def model(run):
    return vae.load_checkpoint(run)[0]


def test_a_models_scores_are_seeded(model, few):
    first, again, other = (evaluate.disentanglement(model, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == SCORES | COUNTS and all(0 <= first[s] <= 1 for s in SCORES)
    assert first["images"] == 600 and first["factor_vae_votes"] == 20 and first["factor_vae_chance"] == 1 / len(vae.SHAPE_FACTORS)


def test_a_collapsed_model_has_no_scores(shapes, few):
    model = vae.build_model(vae.config_for(shapes, **SMALL))
    for p in model.encoder.parameters():
        torch.nn.init.zeros_(p)
    assert set(evaluate.disentanglement(model, 0)) == COUNTS
    assert list(evaluate.traversals(model, shapes, 0)) == [f"z{d} · 0.0 nats" for d in range(4)]   # no factor to name


def test_the_codes_are_those_of_the_drawn_shapes(model, all_shapes):
    split = all_shapes.test
    torch.testing.assert_close(evaluate.codes_of_shapes(model, split.labels), vae.encode_images(model, split.images)[0])


def test_traversals_start_from_the_first_test_image_and_are_sorted_by_kl(model, shapes, few):
    rows = evaluate.traversals(model, shapes, 0)
    kl = vae.aggregate_posterior(model, shapes.test.images).kl_nats
    dims = [int(label.split()[0][1:]) for label in rows]
    assert dims == kl.argsort(descending=True).tolist()
    for d, (label, images) in zip(dims, rows.items()):
        assert label.startswith(f"z{d} · {kl[d]:.1f} nats\n") and label.split("\n")[1] in vae.SHAPE_FACTORS
        z = vae.encode_images(model, shapes.test.images[:1])[0]
        z[0, d] = -3
        torch.testing.assert_close(images[:1], vae.decode_images(model, z))
        assert images.shape == (11, 3, 32, 32)


def test_traversals_name_the_factor_that_a_dimension_holds(model, shapes, few, monkeypatch):
    """Its codes replaced by factors: dimension d holds factor 6 - d."""
    monkeypatch.setattr(evaluate, "codes_of_shapes", lambda model, factors: factors.flip(1)[:, :4].float())
    for label in evaluate.traversals(model, shapes, 0):
        assert label.split("\n")[1] == list(vae.SHAPE_FACTORS)[6 - int(label[1])]


@pytest.mark.parametrize("choices", [{"latent_dim": 12}, {"model": "ae"}, {"latent_dim": 1}], ids=str)
def test_traversals_of_other_models(shapes, few, choices):
    rows = evaluate.traversals(vae.build_model(vae.config_for(shapes, **SMALL | choices)), shapes, 0)
    assert len(rows) == min(10, (SMALL | choices)["latent_dim"])
    assert all(("std" in label) == (choices.get("model") == "ae") for label in rows)


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """metrics and folder of evaluate.py, with fewer samples than it takes by itself."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IWAE_K": (1, 2), "IWAE_IMAGES": 4, "PAIRS": 20, "DRAWN": 600, "VOTES": 20}.items():
            patch.setattr(evaluate, name, value)
        return evaluate.main(["--run", str(run), "--out", str(out), "--num_samples", "4", "--num_frechet", "10"]), out


def test_evaluate_writes_the_scores(evaluated):
    metrics, out = evaluated
    assert SCORES | COUNTS == set(metrics["disentanglement"])
    assert json.loads((out / "metrics.json").read_text())["disentanglement"] == metrics["disentanglement"]
    assert "## disentanglement\n" in (out / "report.md").read_text()


def test_evaluate_draws_the_traversals(evaluated):
    _, out = evaluated
    assert min(Image.open(out / "traversals.png").size) > 300
    with Image.open(out / "traversals.gif") as moving:
        assert moving.size == (3 * (2 + 4 * 34), 3 * (2 + 34)) and moving.info["loop"] == 0
        assert 2 <= moving.n_frames <= 20   # equal frames in a row are stored as one
