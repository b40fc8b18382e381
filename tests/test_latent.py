"""The latent space: interpolation, path lengths, regions to sample from, traversals, attribute arithmetic, mixtures of codes."""
from __future__ import annotations

import math

import pytest
import torch
from conftest import SMALL
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import evaluate
import vae_helpers as vae


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images(shapes):
    return shapes.test.images


def reconstruct(model, images):
    """The decoder's picture of each image's mean code, computed without the functions under test."""
    with torch.no_grad():
        return torch.sigmoid(model.decoder(model.encoder(images / 255)[0]))


# ── Encode and decode ───────────────────────────────────────────────────────────────────────────

def test_uint8_and_float_images_have_the_same_code(model, images):
    for a, b in zip(vae.encode_images(model, images), vae.encode_images(model, images / 255)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 3, 2)])
def test_decode_keeps_the_leading_dimensions(model, leading):
    z = randn(*leading, 4)
    decoded = vae.decode_images(model, z)
    assert decoded.shape == (*leading, 3, 32, 32) and 0 <= decoded.min() and decoded.max() <= 1
    torch.testing.assert_close(decoded[-1].reshape(-1, 3, 32, 32), vae.decode_images(model, z[-1].reshape(-1, 4)))


def test_images_come_back_in_zero_to_one_from_a_model_on_minus_one_to_one(shapes):
    model = vae.build_model(vae.config_for(shapes, latent_dim=4, width=4, likelihood="squared_error"))
    z = randn(3, 4)
    with torch.no_grad():
        expected = (torch.tanh(model.decoder(z)) + 1) / 2
    torch.testing.assert_close(vae.decode_images(model, z), expected)


BAD_IMAGES = {"another size": torch.zeros(2, 3, 28, 28), "another number of channels": torch.zeros(2, 1, 32, 32),
              "channels last": torch.zeros(2, 32, 32, 3), "no batch": torch.zeros(3, 32, 32), "no tensor": [[0]],
              "integers": torch.zeros(2, 3, 32, 32, dtype=torch.int64), "0 to 255 as float": torch.full((2, 3, 32, 32), 255.0),
              "-1 to 1": torch.full((2, 3, 32, 32), -1.0), "not a number": torch.full((2, 3, 32, 32), math.nan)}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images_that_do_not_fit_are_refused_in_one_sentence(model, kind):
    with pytest.raises(vae.VAEError) as caught:
        vae.encode_images(model, BAD_IMAGES[kind])
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# ── Interpolation ───────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_the_ends_of_an_interpolation_are_the_reconstructions_of_the_two_images(model, images, method):
    path = vae.interpolate_images(model, images[0], images[1], 7, method)
    assert path.shape == (7, 3, 32, 32)
    torch.testing.assert_close(path[[0, -1]], reconstruct(model, images[:2]))


def test_interpolation_walks_between_means_and_is_never_noisy(model, images):
    assert torch.equal(vae.interpolate_images(model, images[0], images[1]), vae.interpolate_images(model, images[0], images[1]))


def test_the_middle_of_a_linear_interpolation_decodes_the_mean_of_the_two_codes(model, images):
    mu = vae.encode_images(model, images[:2])[0]
    middle = vae.interpolate_images(model, images[0], images[1], 3)[1]
    torch.testing.assert_close(middle, vae.decode_images(model, mu.mean(0)[None])[0])


def test_interpolation_there_and_back_is_the_same_path(model, images):
    there, back = (vae.interpolate_images(model, images[a], images[b], 5, "spherical") for a, b in ((0, 1), (1, 0)))
    torch.testing.assert_close(there, back.flip(0))


def test_linear_steps_are_even():
    a, b = randn(6), randn(6, seed=1)
    path = vae.interpolate_latents(a, b, 5)
    torch.testing.assert_close(path, torch.stack([a + (b - a) * t for t in (0, 0.25, 0.5, 0.75, 1)]))


@given(st.floats(0, 2 * math.pi), st.floats(0.05, 3.0), st.sampled_from([-1, 1]), st.floats(0.1, 20))
def test_slerp_in_the_plane_is_a_rotation(start, angle, turn, radius):
    def point(t):
        return radius * torch.tensor([math.cos(start + turn * angle * t), math.sin(start + turn * angle * t)])

    path = vae.interpolate_latents(point(0), point(1), 5, "spherical")
    expected = torch.stack([point(t) for t in (0, 0.25, 0.5, 0.75, 1)])
    torch.testing.assert_close(path, expected, rtol=1e-3, atol=1e-3 * radius)


@given(st.integers(0, 1000), st.integers(2, 64))
def test_slerp_between_equal_norms_keeps_the_norm_and_linear_goes_inside(seed, dims):
    a, b = nn.functional.normalize(randn(2, dims, seed=seed), dim=1) * 3
    assume(abs(float(a @ b)) < 8.9)
    torch.testing.assert_close(vae.interpolate_latents(a, b, 9, "spherical").norm(dim=1), torch.full((9,), 3.0), rtol=1e-3, atol=0)
    assert vae.interpolate_latents(a, b, 9)[4].norm() < 3


@pytest.mark.parametrize("other", [1.0, 2.5, -1.0, -0.5, 0.0], ids=lambda f: f"b = {f} a")
def test_slerp_is_finite_and_ends_right_where_no_arc_is_defined(other):
    a = randn(8)
    path = vae.interpolate_latents(a, other * a, 6, "spherical")
    assert path.isfinite().all()
    assert torch.equal(path[0], a) and torch.equal(path[-1], other * a)


def test_slerp_between_a_vector_and_its_multiple_is_the_line():
    a = randn(8)
    torch.testing.assert_close(vae.interpolate_latents(a, 3 * a, 5, "spherical"), vae.interpolate_latents(a, 3 * a, 5))


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_paths_of_a_batch_are_the_paths_of_its_members(method):
    a, b = randn(3, 6), randn(3, 6, seed=1)
    one_by_one = torch.stack([vae.interpolate_latents(a[i], b[i], 4, method) for i in range(3)], dim=1)
    torch.testing.assert_close(vae.interpolate_latents(a, b, 4, method), one_by_one)


@pytest.mark.parametrize("wrong", [{"num_interpolations": 1}, {"num_interpolations": 0}, {"num_interpolations": 2.5},
                                   {"method": "cubic"}, {"image_b": torch.zeros(3, 28, 28)}, {"image_a": torch.zeros(1, 3, 32, 32)},
                                   {"image_b": torch.full((3, 32, 32), 2.0)}, {"image_a": "cat.png"}],
                         ids=["one step", "no step", "half a step", "method", "size", "batch", "range", "path"])
def test_interpolate_images_refuses_what_cannot_work_in_one_sentence(model, images, wrong):
    arguments = {"image_a": images[0], "image_b": images[1], "num_interpolations": 5} | wrong
    with pytest.raises(vae.VAEError) as caught:
        vae.interpolate_images(model, **arguments)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_the_corners_of_a_square_are_the_reconstructions_in_their_places(model, images):
    square = vae.interpolate_corners(model, images[:4], 5)
    assert square.shape == (5, 5, 3, 32, 32)
    corners = torch.stack([square[0, 0], square[0, -1], square[-1, 0], square[-1, -1]])   # row by row
    torch.testing.assert_close(corners, reconstruct(model, images[:4]))


def test_the_edges_of_a_square_are_interpolations(model, images):
    square = vae.interpolate_corners(model, images[:4], 5)
    torch.testing.assert_close(square[0], vae.interpolate_images(model, images[0], images[1], 5))      # top row: 0 → 1
    torch.testing.assert_close(square[:, 0], vae.interpolate_images(model, images[0], images[2], 5))   # left column: 0 → 2


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_midpoints_lie_halfway_to_the_next_code_then_to_the_one_after(n):
    mu = randn(4, 5)
    expected = torch.stack([(mu[i % 4] + mu[(i + 1 + i // 4) % 4]) / 2 for i in range(n)])
    torch.testing.assert_close(vae.midpoints(mu, n=n), expected)
    torch.testing.assert_close(vae.midpoints(mu), vae.midpoints(mu, n=4))


def test_spherical_midpoints_keep_the_norm():
    mu = nn.functional.normalize(randn(6, 5), dim=1) * 3
    torch.testing.assert_close(vae.midpoints(mu, "spherical").norm(dim=1), torch.full((6,), 3.0))


# ── Even and uneven paths ───────────────────────────────────────────────────────────────────────

def test_a_cross_fade_mixes_pixels(images):
    fade = vae.cross_fade(images[0], images[1], 3)
    torch.testing.assert_close(fade[1], images[:2].float().mean(0) / 255)


def test_a_cross_fade_is_even(images):
    assert vae.step_unevenness(vae.cross_fade(images[0], images[1], 9)) < 1e-3


def test_step_lengths_are_euclidean_distances():
    path = torch.tensor([0.0, 3.0, 4.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    torch.testing.assert_close(vae.step_lengths(path), torch.tensor([12.0, 4.0]))   # 3 and 1 in each of 16 pixels


def test_unevenness_is_the_relative_spread_of_the_steps():
    path = torch.tensor([0.0, 3.0, 4.0]).reshape(3, 1, 1, 1)   # steps 3 and 1: spread 1 around 2
    assert vae.step_unevenness(path).item() == pytest.approx(0.5)


def test_unevenness_of_several_paths_at_once():
    paths = torch.stack([torch.tensor([0.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 2.0])], dim=1).reshape(3, 2, 1, 1, 1)
    torch.testing.assert_close(vae.step_unevenness(paths), torch.tensor([0.5, 0.0]))


def test_the_path_length_of_a_linear_decoder_is_the_squared_distance_of_its_ends():
    weight, a, b = randn(12, 3), randn(7, 3, seed=1), randn(7, 3, seed=2)
    found = vae.perceptual_path_length(lambda z: (z @ weight.T).reshape(-1, 3, 2, 2), lambda x: x, a, b)
    torch.testing.assert_close(found, ((b - a) @ weight.T).square().sum(1), rtol=1e-2, atol=0)


def test_the_path_length_along_an_arc_is_that_of_its_chords():
    """From (r, 0) to r (cos w, sin w), a step of epsilon turns by epsilon w."""
    r, w, eps = 3.0, torch.linspace(0.2, 3, 5), 1e-2
    a, b = torch.tensor([[r, 0.0]]).expand(5, 2), r * torch.stack([w.cos(), w.sin()], 1)
    found = vae.perceptual_path_length(lambda z: z, lambda x: x, a, b, "spherical", epsilon=eps)
    torch.testing.assert_close(found, (2 * r * torch.sin(eps * w / 2) / eps) ** 2, rtol=1e-2, atol=0)


def test_path_lengths_are_taken_at_uniform_points_that_the_seed_decides():
    """Features t^2 on the way from 0 to 1: the length is (2 t + epsilon)^2, so that it tells t."""
    def points(seed):
        lengths = vae.perceptual_path_length(lambda z: z, torch.square, torch.zeros(2000, 1), torch.ones(2000, 1), seed=seed)
        return (lengths.sqrt() - 1e-2) / 2

    t = points(1)
    assert -1e-4 <= t.min() and t.max() <= 0.99 + 1e-4
    assert t.mean().item() == pytest.approx(0.495, abs=0.02) and t.std().item() == pytest.approx(0.286, abs=0.02)
    assert torch.equal(t, points(1)) and not torch.equal(t, points(2))


# ── Regions ─────────────────────────────────────────────────────────────────────────────────────

def test_the_prior_is_standard_normal_and_temperature_scales_it():
    z = vae.sample_latents(20_000, 5)
    assert z.mean(0).abs().max() < 0.03 and (z.std(0) - 1).abs().max() < 0.03
    torch.testing.assert_close(vae.sample_latents(20_000, 5, temperature=0.3), 0.3 * z)


@pytest.mark.parametrize("low, high", [(-2, 2), (1, 1.5), (-7, -3)])
def test_a_box_is_filled_evenly_and_never_left(low, high):
    z = vae.sample_latents(20_000, 5, z_range=(low, high))
    assert low <= z.min() and z.max() <= high
    share = ((z - low) / (high - low)).quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
    assert (share - torch.tensor([[0.25], [0.5], [0.75]])).abs().max() < 0.02


@pytest.mark.parametrize("radius", [0.5, 11.3])
def test_a_shell_has_its_radius_exactly_and_no_preferred_side(radius):
    z = vae.sample_latents(20_000, 5, radius=radius)
    torch.testing.assert_close(z.norm(dim=1), torch.full((20_000,), radius))
    assert (z.mean(0) / radius).abs().max() < 0.02


@pytest.mark.parametrize("region", [{}, {"z_range": (-2, 2)}, {"radius": 3.0}], ids=str)
def test_the_seed_decides_the_latents(region):
    first, again, other = (vae.sample_latents(9, 4, seed=s, **region) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("region", [{"z_range": (-2, 2), "radius": 1.0}, {"z_range": (2, -2)}, {"z_range": (1, 1)}, {"z_range": (1,)},
                                    {"z_range": (0, 1, 2)}, {"z_range": (math.nan, 1)}, {"z_range": 2}], ids=str)
def test_a_region_that_is_none_is_refused(region):
    with pytest.raises(vae.VAEError):
        vae.sample_latents(3, 4, **region)


def test_sample_images_decodes_the_latents_of_the_region(model):
    z = vae.sample_latents(5, 4, z_range=(-2, 2), seed=3)
    assert torch.equal(vae.sample_images(model, 5, z_range=(-2, 2), seed=3), vae.decode_images(model, z))


# ── Where codes lie ─────────────────────────────────────────────────────────────────────────────

def test_the_aggregate_posterior_equals_brute_force_sampling(model, images):
    """Mean and standard deviation of 2,000 samples of z for each image."""
    found = vae.aggregate_posterior(model, images)
    mu, logvar = vae.encode_images(model, images)
    z = (mu + (0.5 * logvar).exp() * randn(2000, *mu.shape)).flatten(0, 1)
    torch.testing.assert_close(found.mean, z.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(found.std, z.std(0), rtol=0.02, atol=0)
    torch.testing.assert_close(found.kl_nats.sum(), vae.kl_nats(mu, logvar).mean())
    assert torch.equal(found.mu, mu) and found.norms.shape == (len(images),)
    assert found.norms.mean() == pytest.approx(z.norm(dim=1).mean().item(), rel=0.2)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_gaussian_gap_equals_torch_distributions(dims, seed):
    z = randn(200, dims, seed=seed) @ randn(dims, dims, seed=seed + 1) + randn(dims, seed=seed + 2)
    found, mean = evaluate.gaussian_gap(z), z.double().mean(0)
    covariance = (z.double() - mean).T @ (z.double() - mean) / 199
    spread = torch.linalg.svdvals(covariance)
    prior = MultivariateNormal(torch.zeros(dims).double(), torch.eye(dims).double())
    expected = {"mean_norm": mean.norm(), "variance_max": spread.max(), "variance_min": spread.min(), "directions": (spread > 0.01).sum(),
                "fit_kl_nats": kl_divergence(MultivariateNormal(mean, covariance), prior)}
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4, abs=1e-8)


class LogitEncoder(nn.Module):
    """mu is the logit of every pixel, plus a shift."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x):
        mu = torch.logit(x.flatten(1)) + self.shift
        return mu, torch.zeros_like(mu)


def perfect_pair(shift=0.0):
    """A model whose encoder is the inverse of its decoder, x_hat = sigmoid(z), up to a shift of the code."""
    model = vae.build_model(vae.Config(image_size=4, channels=1, latent_dim=16, width=2, depth=1))
    model.encoder, model.decoder = LogitEncoder(shift), nn.Unflatten(1, (1, 4, 4))
    return model


def test_a_model_that_inverts_itself_recognises_its_own_pictures():
    assert vae.self_reconstruction_mse(perfect_pair(), randn(5, 16)).max() < 1e-10


def test_self_reconstruction_error_is_a_mean_over_pixels_for_each_latent():
    z = randn(5, 16)
    expected = (torch.sigmoid(z + 0.5) - torch.sigmoid(z)).square().mean(1)
    torch.testing.assert_close(vae.self_reconstruction_mse(perfect_pair(0.5), z), expected)


def test_contrast_is_the_spread_of_the_pixels_of_each_image():
    half_black = torch.zeros(2, 3, 4, 4)
    half_black[1, :, :2] = 1
    torch.testing.assert_close(vae.contrast(half_black), torch.tensor([0.0, 0.5]))


def test_a_traversal_changes_one_dimension_at_a_time(model, monkeypatch):
    monkeypatch.setattr(vae, "decode_images", lambda model, z, *_: z)   # look at the latents instead of the images
    z = randn(4)
    grid = vae.traverse(model, z, dims=[2, 0], values=[-1.5, 0.0, 3.0])
    assert grid.shape == (2, 3, 4)
    for row, dim in enumerate([2, 0]):
        assert grid[row, :, dim].tolist() == [-1.5, 0.0, 3.0]
        others = [d for d in range(4) if d != dim]
        assert torch.equal(grid[row][:, others], z[others].expand(3, 3))


def test_a_traversal_leaves_its_start_alone(model):
    z = randn(4)
    before = z.clone()
    assert vae.traverse(model, z, [0, 1], [-2, 2]).shape == (2, 2, 3, 32, 32)
    assert torch.equal(z, before)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_an_attribute_direction_is_the_difference_of_two_means(kind):
    mu = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 20.0]])
    direction = vae.attribute_direction(mu, torch.tensor([1, 1, 0]).to(kind))
    assert direction.tolist() == [2 - 10, 1 - 20]


@pytest.mark.parametrize("value", [True, False])
def test_an_attribute_that_all_or_no_images_have_gives_no_direction(value):
    with pytest.raises(vae.VAEError, match="with the attribute and images without"):
        vae.attribute_direction(randn(3, 2), torch.full((3,), value))


# ── The mixture of codes ────────────────────────────────────────────────────────────────────────

def two_clusters(n=2000):
    """A fifth around (-5, -5), the rest around (5, 5) and stretched along one diagonal; sorted by cluster."""
    few = n // 5
    return torch.cat([randn(few, 2) - 5, randn(n - few, 2, seed=1) @ torch.tensor([[1.0, 1.0], [0.3, -0.3]]) + 5])


def test_the_mixture_finds_two_clusters_and_draws_from_them():
    density = vae.fit_density(two_clusters(), 2)
    order = density.means[:, 0].argsort()
    torch.testing.assert_close(density.means[order], torch.tensor([[-5.0, -5.0], [5.0, 5.0]]).double(), rtol=0, atol=0.15)
    assert density.weights[order].tolist() == pytest.approx([0.2, 0.8], abs=0.01)
    z = vae.sample_density(density, 4000)
    assert z.shape == (4000, 2) and z.dtype == torch.float32
    left = z[:, 0] < 0
    assert [h.float().mean().item() for h in left.split(1000)] == pytest.approx([0.2] * 4, abs=0.05)   # in random order
    torch.testing.assert_close(torch.cov(z[~left].T), torch.tensor([[1.09, 0.91], [0.91, 1.09]]), rtol=0, atol=0.1)   # full covariance


def test_the_mixture_and_its_samples_are_seeded():
    density, again = (vae.fit_density(two_clusters(200), 3, seed=4) for _ in range(2))
    first, same, other = (vae.sample_density(d, 50, seed=s) for d, s in ((density, 1), (again, 1), (density, 2)))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("components", [0, -1, 21])
def test_a_number_of_components_that_cannot_be_is_refused_in_one_sentence(components):
    with pytest.raises(vae.VAEError, match=f"components.*not {components}( for 20 latents)?[.]$"):
        vae.fit_density(randn(20, 2), components)


@pytest.mark.parametrize("seed", [-1, 2 ** 40])
def test_every_seed_that_evaluate_takes_serves_the_mixture(seed):
    vae.sample_density(vae.fit_density(two_clusters(100), 2, seed=seed), 5, seed=seed)


@pytest.mark.parametrize("kind", ["vae", "ae"])
def test_codes_are_samples_of_q_or_the_code_of_an_autoencoder(shapes, kind):
    model = vae.build_model(vae.config_for(shapes, **SMALL, model=kind))
    mu, logvar = vae.encode_images(model, shapes.test.images)
    z = vae.sample_codes(model, shapes.test.images, seed=3)
    assert torch.equal(z, mu if kind == "ae" else vae.reparameterize(mu, logvar, torch.Generator().manual_seed(3)))
