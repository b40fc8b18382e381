"""Grids of codes and the priors that learn them: against sums, integrals and a slow second way."""

import itertools

import pytest
import torch
from conftest import brightest, of_seed, rand, randn
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

import vae_helpers as vae
from support import conditional, runs
from support.code_priors import CodePrior, MixturePrior
from support.vq_vae import Codebook

SMALL_GRID = {"image_size": 16, "width": 4, "latent_dim": 3, "prior_width": 16}


def untrained(name, **choices):
    return vae.build_model(vae.Config(model=name, **SMALL_GRID | choices))


def with_random_weights(prior):
    generator = of_seed(0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return prior


def code_prior(places, codes, conditions=0):
    return with_random_weights(CodePrior(places, codes, 16, conditions))


def mixture_prior(places, channels, conditions=0):
    return with_random_weights(MixturePrior(places, channels, 16, conditions))


@pytest.fixture
def vq():
    """With codes that are outputs of its encoder."""
    model = untrained("vq_vae", codebook=7)
    model.begin_stage("places")
    model.train()(rand(16, 3, 16, 16), of_seed(0))
    return model.eval()


@given(st.integers(8, 70), st.sampled_from(["conv", "fc"]), st.sampled_from(["grid_vae", "vq_vae"]))
def test_the_grid_of_codes_fits_every_size(size, arch, name):
    model = untrained(name, image_size=size, arch=arch)
    out = model(rand(2, 3, size, size), of_seed(0))
    assert out.x_raw.shape == (2, 3, size, size)
    assert out.mu.shape == out.z.shape == (2, model.latent_size)
    assert 4 <= model.grid[0] == model.grid[1] <= 11
    assert model.rate_nats(out).shape == (2,)
    has_global_code = size >= 64 and arch == "conv" and name == "grid_vae"
    assert model.latent_size == 3 * model.grid[0] ** 2 + (126 if has_global_code else 0)


@given(st.integers(8, 40), st.integers(0, 3))
def test_tokens_are_another_order_of_the_same_numbers(size, multiple):
    model = untrained("grid_vae", image_size=size, global_dim=3 * multiple)
    z = randn(2, model.latent_size)
    tokens = model.tokens(z)
    assert torch.equal(model.flat(tokens), z)
    assert torch.equal(tokens[:, :multiple].flatten(1), z[:, : 3 * multiple])
    assert torch.equal(tokens[:, multiple:, 1], z[:, 3 * multiple :].chunk(3, dim=1)[1])


@pytest.mark.parametrize("global_dim", [0, 6])
def test_the_price_of_a_code_is_log_q_minus_log_prior(global_dim):
    model = untrained("grid_vae", global_dim=global_dim, epochs=3)
    out = model(rand(4, 3, 16, 16, seed=1), of_seed(2))
    q = Normal(out.mu, (0.5 * out.logvar).exp())
    log_prior = -model.prior.nats(model.tokens(out.z))
    entropy = q.entropy().sum(1)
    torch.testing.assert_close(model.rate_nats(out), -log_prior - entropy)
    kl = kl_divergence(q, Normal(0.0, 1.0))  # before that stage the prior is N(0, I)
    model.begin_stage("places")
    torch.testing.assert_close(model.rate_nats(out), kl.sum(1))
    if global_dim:
        model.begin_stage("global")
        torch.testing.assert_close(model.rate_nats(out), kl[:, :global_dim].sum(1))


def test_in_its_first_stage_the_decoder_sees_the_global_code_alone():
    model = untrained("grid_vae", global_dim=6, epochs=3)
    x = rand(2, 3, 16, 16)
    torch.nn.init.normal_(model.encoder[-1].weight, generator=of_seed(3))
    outs = []
    for name in ("global", "places"):
        model.begin_stage(name)
        outs.append(model(x, of_seed(1)))
    first, second = outs
    assert torch.equal(first.z[:, :6], second.z[:, :6]) and not first.z[:, 6:].any()
    assert second.z[:, 6:].all()
    torch.testing.assert_close(first.x_raw, model.decode_raw(first.z))


def test_codes_follow_the_moving_averages_of_what_they_stand_for():
    book = Codebook(3, 2)
    book.revive(randn(60, 2), of_seed(0))  # sets the first codes
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.clone()
    z = randn(60, 2, seed=1)
    book.move(z, book.nearest(z))
    for k in range(3):
        own = z[torch.cdist(z, codes).argmin(1) == k]
        count = 0.99 * counts[k] + 0.01 * len(own)
        total = 0.99 * sums[k] + 0.01 * own.sum(0)
        torch.testing.assert_close(book.codes[k], total / count)


def test_a_code_that_is_hardly_used_becomes_an_output_of_the_encoder():
    book = Codebook(2, 2)
    book.codes[1] = 1000.0
    book.counts[:] = torch.tensor([1.1, 0.9])  # a tenth of the average use is 1
    book.revive(torch.tensor([[3.0, 4.0]]).expand(20, 2), of_seed(0))
    torch.testing.assert_close(book.codes, torch.tensor([[0.0, 0.0], [3.0, 4.0]]))


def test_the_decoder_sees_the_nearest_code_and_gradients_pass_through(vq):
    out = vq(rand(4, 3, 16, 16, seed=1))
    vectors = out.mu.reshape(4, 3, -1).transpose(1, 2)
    nearest = torch.cdist(vectors, vq.codebook.codes).argmin(2)
    assert torch.equal(out.indices, nearest)
    torch.testing.assert_close(out.z, vq.codebook.codes[nearest].transpose(1, 2).flatten(1))
    torch.testing.assert_close(vq.codes_to_z(out.indices), out.z)
    torch.testing.assert_close(vq.decode_raw(out.mu), out.x_raw)
    to_mu, to_z = torch.autograd.grad(out.x_raw.square().sum(), (out.mu, out.z), retain_graph=True)
    assert torch.equal(to_mu, to_z)
    (commitment,) = torch.autograd.grad(vq.penalty(out), out.mu)
    torch.testing.assert_close(commitment, 2 * 0.25 * (out.mu - out.z) / 4)


def test_half_precision_leaves_the_codebook_as_it_is(vq, tmp_path):
    vq.codebook.sums[0] = 1e6  # too large for 16 bits
    again, _ = vae.load_checkpoint(vae.save_checkpoint(vq, tmp_path, half=True))
    for name, value in again.state_dict().items():
        original = vq.state_dict()[name]
        rounded = original if name.startswith("codebook.") else original.half().float()
        assert torch.equal(value, rounded), name


def test_the_prior_is_a_distribution_over_all_grids_under_every_condition():
    """Six places with one of three codes each."""
    grids = torch.tensor(list(itertools.product(range(3), repeat=6)))
    prior = code_prior(6, 3, conditions=4)
    assert torch.exp(-prior.nats(grids)).sum().item() == pytest.approx(1, abs=1e-5)
    given = torch.exp(-prior.nats(grids, torch.tensor([[0, 1, 0.5, 1]]).expand(729, -1)))
    assert given.sum().item() == pytest.approx(1, abs=1e-5)
    unknown = prior.nats(grids, torch.full((729, 4), 0.5))
    torch.testing.assert_close(unknown, prior.nats(grids))
    assert not torch.allclose(given, torch.exp(-unknown))


def test_samples_come_as_often_as_the_prior_says():
    """Samples read the keys of a cache, and nats the whole grid."""
    prior = code_prior(4, 2)
    grids = torch.tensor(list(itertools.product(range(2), repeat=4)))
    samples = prior.sample(20_000, of_seed(1))
    often = (samples[:, None] == grids).all(2).float().mean(0)
    torch.testing.assert_close(often, torch.exp(-prior.nats(grids)), rtol=0, atol=0.015)


def test_samples_of_a_mixture_come_as_often_as_its_density_says():
    """Over draws of the density p, the mean of q / p is 1 for every density q: here N(0, 4 I)."""
    prior = mixture_prior(2, 2)
    z = prior.sample(20_000, of_seed(1))
    log_q = Normal(0.0, 2.0).log_prob(z).sum((1, 2))
    ratio = torch.exp(log_q + prior.nats(z))
    assert ratio.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prior", [code_prior(6, 5, 2), mixture_prior(6, 3, 2)], ids=type)
def test_sampling_with_a_cache_equals_sampling_by_the_whole_grid(prior):
    condition = torch.tensor([[1.0, 0.5]]).expand(50, -1)
    samples = prior.sample(50, of_seed(1), condition)
    generator = of_seed(1)
    for place in range(6):
        grid = samples.clone()
        grid[:, place:] = 0  # what comes later must not matter
        h = prior(grid, condition)[:, place : place + 1]
        torch.testing.assert_close(prior.draw(h, generator)[:, 0], samples[:, place])


GUIDED = {"condition": torch.tensor([[1.0, 0.0]]), "without": torch.tensor([[0.5, 0.0]])}


def with_strong_conditions(prior):
    with torch.no_grad():
        prior.condition.weight.mul_(6)
    return prior


def guided(prior, n, guidance, seed=1):
    conditions = {name: value.expand(n, -1) for name, value in GUIDED.items()}
    return prior.sample(n, of_seed(seed), guidance=guidance, **conditions)


def test_guided_codes_come_as_often_as_the_product_of_powers_says():
    """Place by place p(c | condition) * (p(c | condition) / p(c | without))^w, made to sum to 1."""
    prior, w = with_strong_conditions(code_prior(3, 3, conditions=2)), 3.0
    grids = torch.tensor(list(itertools.product(range(3), repeat=3)))
    log_p = {}
    for name, value in GUIDED.items():
        h = prior(grids, value.expand(27, -1))
        log_p[name] = prior.head(h).log_softmax(2)
    logits = (1 + w) * log_p["condition"] - w * log_p["without"]
    at_places = logits.log_softmax(2).gather(2, grids[:, :, None])
    expected = at_places.sum((1, 2)).exp()
    often = (guided(prior, 20_000, w)[:, None] == grids).all(2).float().mean(0)
    torch.testing.assert_close(often, expected, rtol=0, atol=0.015)
    unguided = torch.exp(-prior.nats(grids, GUIDED["condition"].expand(27, -1)))
    assert (expected - unguided).abs().max() > 0.05


@pytest.mark.parametrize(("candidates", "error"), [(16, 0.03), (64, 0.015)])
def test_guided_mixtures_have_the_product_of_powers_as_their_density(
    monkeypatch, candidates, error
):
    monkeypatch.setattr(MixturePrior, "CANDIDATES", candidates)
    prior, w = with_strong_conditions(mixture_prior(1, 1, conditions=2)), 2.0
    z = torch.linspace(-12, 12, 4001)
    log_p = {}
    for name, value in GUIDED.items():
        log_p[name] = -prior.nats(z[:, None, None], value.expand(len(z), -1))
    density = ((1 + w) * log_p["condition"] - w * log_p["without"]).exp()
    expected = (density / density.sum()).cumsum(0)
    samples = guided(prior, 40_000, w).flatten().sort().values
    below = torch.searchsorted(samples, z) / len(samples)
    # The largest distance of two distribution functions; without guidance it is above 0.1.
    assert (below - expected).abs().max() < error
    unguided = log_p["condition"].exp()
    assert ((unguided / unguided.sum()).cumsum(0) - expected).abs().max() > 0.1


@pytest.mark.parametrize("prior", [code_prior(4, 5, 2), mixture_prior(4, 3, 2)], ids=type)
def test_no_guidance_is_the_prior_itself_to_the_bit(prior):
    condition = GUIDED["condition"].expand(30, -1)
    plain = prior.sample(30, of_seed(1), condition)
    assert torch.equal(guided(prior, 30, 0.0), plain)
    assert not torch.equal(guided(prior, 30, 2.0), plain)


def test_guidance_pushes_only_what_was_asked_for():
    """With nothing asked for, the two conditions are one, and all candidates are alike."""
    prior, condition = code_prior(4, 5, 2), GUIDED["condition"].expand(30, -1)
    same = prior.sample(30, of_seed(1), condition, guidance=3.0, without=condition)
    assert torch.equal(same, prior.sample(30, of_seed(1), condition))


def test_a_low_temperature_draws_what_is_likeliest(vq):
    prior = code_prior(5, 4)
    likeliest = prior.sample(20, of_seed(0), top_k=1)
    assert torch.equal(prior.sample(20, of_seed(1), temperature=1e-4), likeliest)
    assert not torch.equal(prior.sample(20, of_seed(1)), likeliest)
    images = [vae.sample_images(vq, 2, seed=seed, top_k=1) for seed in (0, 1)]
    assert torch.equal(*images)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e-3])
def test_temperature_sharpens_weights_and_gaussians_alike(temperature):
    prior = mixture_prior(1, 3)
    z = prior.sample(20_000, of_seed(0), temperature=temperature)[:, 0]
    mixture = prior.mixture(prior(z[:1, None]))
    logits = mixture.mixture_distribution.logits[0, 0].double()
    normal = mixture.component_distribution.base_dist
    mean, scale = normal.mean[0, 0].double(), normal.stddev[0, 0].double() * temperature
    weights = (logits / temperature**2).softmax(0)[:, None]
    expected = (weights * mean).sum(0)
    variance = (weights * (scale.square() + mean.square())).sum(0) - expected.square()
    torch.testing.assert_close(z.mean(0).double(), expected, atol=0.04, rtol=0)
    torch.testing.assert_close(z.var(0).double(), variance, atol=0.06, rtol=0.05)


all_models = pytest.mark.parametrize(
    "choices",
    [
        {"model": "grid_vae"},
        {"model": "grid_vae", "global_dim": 12},
        {"model": "vq_vae", "codebook": 16},
    ],
    ids=str,
)


@all_models
def test_in_the_last_stage_only_the_prior_learns(shapes, choices):
    sizes = {"latent_dim": 3, "width": 4, "prior_width": 16, "batch_size": 32, "norm": "batch"}
    config = vae.config_for(shapes, **choices, **sizes, epochs=2, prior_epochs=3)
    model = vae.build_model(config)
    states = []

    def keep(history):
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    history = runs.fit_stages(model, shapes, on_epoch=keep)
    changed = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in zip(states, states[1:])]
    assert not any(name.startswith("prior.") for name in changed[0])
    for names in changed[1:]:
        assert all(name.startswith("prior.") for name in names) and names
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["stage"] for row in history] == ["places"] * 2 + ["prior"] * 3
    assert [row["train_reconstruction_nats"] is None for row in history] == [False] * 2 + [True] * 3
    assert history[4]["val_kl_nats"] < history[2]["val_kl_nats"]
    assert history[4]["val_reconstruction_nats"] == history[1]["val_reconstruction_nats"]


@all_models
def test_samples_show_the_class_that_was_asked_for(quarters, choices):
    sizes = {"latent_dim": 4, "width": 8, "prior_width": 32, "batch_size": 16, "lr": 5e-3}
    config = vae.config_for(quarters, **choices, **sizes, epochs=8, prior_epochs=30)
    model = vae.build_model(config)
    runs.fit_stages(model, quarters)
    for number, label in enumerate("abcd"):
        chosen, _ = conditional.labels_of(quarters, label, 50)
        samples = vae.sample_images(model, 50, chosen, seed=1, guidance=2.0)
        assert (brightest(samples) == number).float().mean() > 0.7  # chance: 0.25
