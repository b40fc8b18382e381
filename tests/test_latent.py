"""The latent space: walks between codes, regions to sample from, and what directions mean."""

import math

import pytest
import torch
from conftest import randn
from hypothesis import given
from hypothesis import strategies as st

import vae_helpers as vae


def untrained(**choices):
    return vae.build_model(vae.Config(**{"width": 4, "latent_dim": 4} | choices))


@pytest.fixture
def images(shapes):
    return shapes.test.images


@pytest.fixture
def reconstructions(model, images):
    """The decoder's pictures of the mean codes, without the functions under test."""
    return torch.sigmoid(model.decoder(model.encoder(images / 255)[0])).detach()


def test_images_are_encoded_and_decoded_in_parts_as_they_are_alone(model, shapes, reconstructions):
    """501 images are one more than a part; uint8 and float images have the same codes."""
    images = torch.cat([shapes.train.images.repeat(3, 1, 1, 1)[:453], shapes.test.images])
    mu, logvar = vae.encode_images(model, images)
    assert mu.shape == logvar.shape == (501, 4)
    torch.testing.assert_close(vae.encode_images(model, images[-1:] / 255), (mu[-1:], logvar[-1:]))
    torch.testing.assert_close(vae.decode_images(model, mu)[-48:], reconstructions)


def test_the_code_of_an_image_does_not_depend_on_the_others_in_any_mode(images):
    """Batch normalisation compares the images of a batch, but only while it trains."""
    model = untrained(norm="batch")
    for measure in (vae.encode_images, vae.image_losses):
        together = measure(model.train(), images)[1]
        alone = measure(model.train(), images[:1])[1]
        torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("leading, likelihood", list(zip([(), (5,), (2, 3, 2)], vae.LIKELIHOODS)))
def test_decode_keeps_leading_dimensions_and_gives_images_from_0_to_1(leading, likelihood):
    model = untrained(likelihood=likelihood)
    z = 20 * randn(*leading, 4)
    x_raw = model.decoder(z.reshape(-1, 4)).reshape(*leading, 3, 32, 32)
    factor = 2 if likelihood == "squared_error" else 1  # (tanh(x) + 1) / 2 = sigmoid(2 x)
    torch.testing.assert_close(vae.decode_images(model, z), torch.sigmoid(factor * x_raw))


def test_a_conditional_model_is_given_each_codes_label_and_half_of_two_half_way(images):
    model = untrained(model="cvae", conditions=3)
    labels = torch.tensor([0, 2])
    z = randn(5, 2, 4)
    each = [vae.decode_images(model, z[:, i], labels[i, None]) for i in range(2)]
    torch.testing.assert_close(vae.decode_images(model, z, labels), torch.stack(each, dim=1))
    alone = vae.decode_images(model, z[0, 1], labels[1:])
    torch.testing.assert_close(alone, each[1][0])
    path = vae.interpolate_images(model, images[0], images[1], 3, labels=labels)
    mu, _ = vae.encode_images(model, images[:2], labels)
    swapped, _ = vae.encode_images(model, images[:2], labels.flip(0))
    assert not torch.allclose(mu, swapped)  # the encoder reads them, too
    middle = vae.decode_images(model, mu.mean(0)[None], torch.tensor([[0.5, 0, 0.5]]))
    torch.testing.assert_close(path[1], middle[0])


@pytest.mark.parametrize("method", vae.INTERPOLATIONS)
def test_a_walk_starts_and_ends_at_the_reconstructions(model, images, reconstructions, method):
    path = vae.interpolate_images(model, images[0], images[1], 7, method)
    assert path.shape == (7, 3, 32, 32)
    torch.testing.assert_close(path[[0, -1]], reconstructions[:2])
    back = vae.interpolate_images(model, images[1], images[0], 7, method)
    torch.testing.assert_close(back.flip(0), path)


def test_linear_steps_are_even_in_codes_and_in_pixels(images):
    a, b = randn(2, 3, 6)
    steps = vae.interpolate_latents(a, b, 5).diff(dim=0)
    torch.testing.assert_close(steps, (b - a).expand(4, 3, 6) / 4)
    fade = vae.cross_fade(*images[:2], 3)
    torch.testing.assert_close(fade[1], images[:2].float().mean(0) / 255)


@given(st.floats(0.05, 3.0), st.floats(0.1, 20), st.integers(2, 64), st.integers(0, 99))
def test_slerp_turns_at_an_even_angle_and_keeps_the_norm(angle, radius, dims, seed):
    """In the plane of two orthonormal vectors u and v; linear interpolation passes inside."""
    u, v = torch.linalg.qr(randn(dims, 2, seed=seed)).Q.T

    def point(t):
        return radius * (math.cos(angle * t) * u + math.sin(angle * t) * v)

    path = vae.interpolate_latents(point(0), point(1), 5, "spherical")
    expected = torch.stack([point(t) for t in (0, 0.25, 0.5, 0.75, 1)])
    torch.testing.assert_close(path, expected, rtol=0, atol=2e-3 * radius)
    assert torch.equal(path[[0, -1]], expected[[0, -1]])  # free of rounding
    inside = vae.interpolate_latents(point(0), point(1), 5)[2].norm()
    assert inside.item() == pytest.approx(radius * math.cos(angle / 2), rel=1e-3, abs=1e-4)


def test_slerp_of_orthogonal_codes_has_its_closed_form_whatever_their_norms():
    a, b = torch.tensor([[2.0, 0, 0], [0, 0, 5]])
    weights = torch.linspace(0, math.pi / 2, 5)[:, None]
    expected = weights.cos() * a + weights.sin() * b
    torch.testing.assert_close(vae.interpolate_latents(a, b, 5, "spherical"), expected)


@pytest.mark.parametrize("factor", [1, 2.5, -1, -0.5])
def test_slerp_is_the_line_where_no_arc_is_defined(factor):
    a = randn(8)
    line = vae.interpolate_latents(a, factor * a, 6)
    torch.testing.assert_close(vae.interpolate_latents(a, factor * a, 6, "spherical"), line)


def test_a_square_has_the_walks_between_its_corners_along_its_edges(model, images):
    square = vae.interpolate_corners(model, images[:4], 5)
    edges = {(0, 1): square[0], (2, 3): square[-1], (0, 2): square[:, 0], (1, 3): square[:, -1]}
    for (a, b), edge in edges.items():
        torch.testing.assert_close(edge, vae.interpolate_images(model, images[a], images[b], 5))


def test_the_prior_is_standard_normal_and_temperature_scales_it():
    z = vae.sample_latents(20_000, 5)
    assert z.mean(0).abs().max() < 0.03
    assert (z.std(0) - 1).abs().max() < 0.03
    torch.testing.assert_close(vae.sample_latents(20_000, 5, temperature=0.3), 0.3 * z)


@given(st.floats(-9, 9), st.floats(0.1, 9))
def test_a_box_is_filled_evenly_and_never_left(low, width):
    z = vae.sample_latents(5000, 3, z_range=(low, low + width))
    assert low - 1e-5 <= z.min() <= z.max() <= low + width + 1e-5
    assert ((z.mean(0) - low) / width - 0.5).abs().max() < 0.02
    assert (z.std(0) / width - 1 / math.sqrt(12)).abs().max() < 0.01


@given(st.floats(0.1, 50), st.integers(2, 40))
def test_a_shell_has_its_radius_and_no_preferred_side(radius, dims):
    z = vae.sample_latents(5000, dims, radius=radius)
    torch.testing.assert_close(z.norm(dim=1), torch.full((5000,), radius))
    assert (z.mean(0) / radius).abs().max() < 0.06


@pytest.mark.parametrize("region", [{}, {"z_range": (-2, 2)}, {"radius": 3.0}], ids=str)
def test_the_seed_decides_the_latents_that_sample_images_decodes(model, region):
    z = vae.sample_latents(9, 4, seed=1, **region)
    assert not torch.equal(z, vae.sample_latents(9, 4, seed=2, **region))
    assert torch.equal(vae.sample_images(model, 9, seed=1, **region), vae.decode_images(model, z))


def test_the_aggregate_posterior_has_the_moments_of_many_samples_of_z(images):
    """By the law of total variance."""
    model = untrained()
    model.encoder[-1].mu.weight.data *= 300  # codes as far apart as after a long training
    posterior = vae.aggregate_posterior(model, images, seed=3)
    mu, logvar = vae.encode_images(model, images)
    z = (mu + torch.exp(0.5 * logvar) * randn(2000, 48, 4)).flatten(0, 1)
    torch.testing.assert_close(posterior.mean, z.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(posterior.std, z.std(0), rtol=0.02, atol=0)
    torch.testing.assert_close(posterior.kl_nats.sum(), vae.kl_nats(mu, logvar).mean())
    assert torch.equal(posterior.z, vae.sample_codes(model, images, seed=3))
    points = vae.aggregate_posterior(untrained(model="ae"), images)
    torch.testing.assert_close(points.std, points.z.std(0, correction=0))


def test_a_traversal_sets_one_coordinate_at_a_time(model):
    z = randn(4)
    strips = vae.traverse(model, z, dims=[2, 0], values=[-1.5, 0.0, 3.0])
    for strip, dim in zip(strips, (2, 0)):
        for image, value in zip(strip, (-1.5, 0.0, 3.0)):
            moved = torch.cat([z[:dim], torch.tensor([value]), z[dim + 1 :]])
            torch.testing.assert_close(image, vae.decode_images(model, moved))


def test_an_attribute_direction_is_the_difference_of_two_means():
    mu = torch.tensor([[1.0, 0.0], [3.0, 2.0], [10.0, 20.0]])
    assert vae.attribute_direction(mu, torch.tensor([1, 1, 0])).tolist() == [2 - 10, 1 - 20]
    for all_or_none in (torch.ones(3), torch.zeros(3)):
        with pytest.raises(vae.VAEError, match="with the attribute and images without"):
            vae.attribute_direction(mu, all_or_none)
