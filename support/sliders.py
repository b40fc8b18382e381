"""Sliders over models: the ipywidgets explorers that stand in the last cells of the notebooks.

Each function makes a draw function (values of its controls → rows of images and a sentence with
what was measured) and its controls, and gives both to an `Explorer`, see support/explorer.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import ipywidgets
import torch
from torch import Tensor

import vae_helpers as vae
from support import conditional
from support.explorer import Explorer, button, set_controls
from vae_helpers import VAE, ImageData, VAEError

# Descriptions of controls are as wide as their text, so that none is cut.
STYLE = {"style": {"description_width": "initial"}, "layout": {"width": "340px"}}
number_box = partial(ipywidgets.BoundedIntText, **STYLE)
whole_slider = partial(ipywidgets.IntSlider, **STYLE)
slider = partial(ipywidgets.FloatSlider, step=0.1, readout_format=".1f", **STYLE)
range_slider = partial(ipywidgets.FloatRangeSlider, step=0.1, readout_format=".1f", **STYLE)
choice = partial(ipywidgets.ToggleButtons, style={"button_width": "auto"}, layout={"width": "auto"})


def explore_interpolation(
    model: VAE,
    data: ImageData,
    first: int = 0,
    second: int = 1,
    *,
    steps: int = 10,
    method: str = "linear",
) -> Explorer:
    """Task 2: one test image turns into another, through latent space and as a pixel cross-fade.

    `first` and `second` are numbers of test images, `steps` is the length of the strips, and
    `method` the way that is shown first. Raises VAEError for a conditional model.
    """
    _need_codes_alone(model)
    images = data.test.images
    labels = data.class_labels(data.test)

    def name(number):
        class_name = f" ({data.class_names[labels[number]]})" if data.class_names else ""
        return f"test image {number}{class_name}"

    def draw(a, b, steps, position, method):
        t = torch.tensor(position / 100)
        x = vae.as_unit(images[[a, b]])
        mu, _ = vae.encode_images(model, x)
        z = vae.INTERPOLATIONS[method](mu[:1], mu[1:], t)
        decoded = vae.decode_images(model, z)
        fade = torch.lerp(x[:1], x[1:], t)
        four = torch.cat([x[:1], decoded, fade, x[1:]])
        rows = {
            f"A · decoded at t = {t:.2f} · pixel cross-fade · B": four,
            f"through the latent space, {method}": vae.interpolate_images(model, *x, steps, method),
            "pixel cross-fade": vae.cross_fade(*x, steps),
        }
        contrast, fade_contrast = vae.contrast(torch.cat([decoded, fade])).tolist()
        return rows, (
            f"A is {name(a)}, B is {name(b)}. At t = {t:.2f}: ‖z‖ = {z.norm():.2f}, "
            f"contrast {contrast:.3f}, of the cross-fade {fade_contrast:.3f}."
        )

    controls = {
        "a": number_box(first, max=len(images) - 1, description="test image A"),
        "b": number_box(second, max=len(images) - 1, description="test image B"),
        "steps": whole_slider(steps, 2, 20, description="steps"),
        "position": whole_slider(50, 0, 100, description="position t (%)"),
        "method": choice(options=list(vae.INTERPOLATIONS), value=method),
    }
    play = ipywidgets.Play(value=50, min=0, max=100, step=2, interval=80)  # ms
    # One way: linked both ways, the slider would send two messages at each move.
    ipywidgets.jsdlink((play, "value"), (controls["position"], "value"))
    generator = torch.Generator().manual_seed(0)

    def random_pair():
        a, b = torch.randint(len(images), (2,), generator=generator).tolist()
        set_controls(controls, a=a, b=b)

    title = f"From one test image to another: {data.title}"
    return Explorer(title, draw, controls, [play, button("random pair", random_pair)])


def explore_models(
    models: dict[str, VAE],
    data: ImageData,
    by_beta: dict[str, VAE] | None = None,
    *,
    source: str = "test images",
    page: int = 0,
    n: int = 8,
) -> Explorer:
    """Task 1: the same n test images through several models, or n draws of the prior of each.

    With `by_beta`, like {"β = 0.1": model}, the last row is of the one that a slider chooses.
    `source`, or "draws of the prior", and `page` are what is shown first. Raises VAEError for a
    conditional model.
    """
    by_beta = by_beta or {}
    _need_codes_alone(*models.values(), *by_beta.values())

    def draw(source, page, beta=None):
        chosen = models | ({f"{beta} (slider)": by_beta[beta]} if beta else {})
        if source == "test images":
            first = page * n
            x = vae.as_unit(data.test.images[first : first + n])
            rows = {name: _reconstruct(model, x) for name, model in chosen.items()}
            errors = [f"{name} {_mse(x_hat, x):.4f}" for name, x_hat in rows.items()]
            rows = {f"test images {first} to {first + len(x) - 1}": x} | rows
            return rows, f"MSE of these: {', '.join(errors)}."
        rows = {name: vae.sample_images(model, n, seed=page) for name, model in chosen.items()}
        contrasts = [f"{name} {vae.contrast(x_hat).mean():.3f}" for name, x_hat in rows.items()]
        return rows, f"Seed {page}. Contrast: {', '.join(contrasts)}."

    last_page = (len(data.test.images) - 1) // n
    betas = list(by_beta)
    controls = {
        "source": choice(options=["test images", "draws of the prior"], value=source),
        "page": whole_slider(min(page, last_page), 0, last_page, description="page, or seed"),
    }
    if betas:
        controls["beta"] = ipywidgets.SelectionSlider(
            options=betas, value=betas[-1], description="β of the last row", **STYLE
        )
    return Explorer(f"The same through several models: {data.title}", draw, controls)


def explore_region(
    model: VAE, data: ImageData, n: int = 6, z_range: tuple[float, float] = (-2.0, 2.0)
) -> Explorer:
    """Task 3: n pictures from a box, a shell or a tempered prior (see `vae.sample_latents`).

    Their mean ‖z‖ and contrast are shown beside those of 100 test images. Raises VAEError for a
    conditional model.
    """
    _need_codes_alone(model)

    def describe(z, images):
        return f"‖z‖ {z.norm(dim=1).mean():.1f}, contrast {vae.contrast(images).mean():.3f}"

    test_images = data.test.images[:100]
    reconstructed = _reconstruct(model, test_images)
    reference = describe(vae.sample_codes(model, test_images), reconstructed)

    def draw(region, seed, **values):
        z = vae.sample_latents(n, model.latent_size, seed=seed, **{region: values[region]})
        images = vae.decode_images(model, z)
        rows = {
            f"{region} = {values[region]}, seed {seed}": images,
            "for comparison: test images, reconstructed": reconstructed[:n],
        }
        sentence = f"These {n}: {describe(z, images)}. 100 test images, reconstructed: {reference}."
        return rows, sentence

    regions = [("box", "z_range"), ("shell", "radius"), ("tempered prior", "temperature")]
    region = choice(options=regions)
    shell = round(math.sqrt(model.latent_size), 1)  # ‖z‖ of most draws of N(0, I)
    places = {
        "z_range": range_slider(value=z_range, min=-6, max=6, description="z_range"),
        "radius": slider(shell, min=0, max=max(40, 2 * shell), description="radius"),
        "temperature": slider(1.0, min=0, max=3, description="temperature"),
    }
    seed = number_box(0, max=2**31 - 1, description="seed")

    def choose_region(name, change):
        region.value = name

    for name, place in places.items():  # moving a slider chooses its region
        place.observe(partial(choose_region, name), "value")

    def draw_again():
        seed.value += 1

    controls = {"region": region} | places | {"seed": seed}
    title = f"Decoded from a region of the latent space: {data.title}"
    return Explorer(title, draw, controls, [button("draw again", draw_again)])


def explore_dimensions(
    model: VAE,
    data: ImageData,
    directions: dict[str, Tensor] | None = None,
    *,
    image: int = 0,
    moved: dict[str, float] | None = None,
) -> Explorer:
    """Task 3: one code, moved along the ten dimensions with the largest KL and along directions.

    `directions` are name → (D,), as `vae.attribute_direction` gives them; `image` is the number of
    the test image whose code is the start, and `moved`, like {"Smiling": 2}, how far it is moved
    at first. Raises VAEError for a conditional model.
    """
    _need_codes_alone(model)
    posterior = vae.aggregate_posterior(model, data.test.images[:1000])
    norms = posterior.mu.norm(dim=1)
    kl = posterior.kl_nats
    importance = kl if kl.any() else posterior.std  # codes of an autoencoder have no KL
    dims = importance.argsort(descending=True)[:10].tolist()
    axes = torch.eye(model.latent_size)
    moves = {f"dimension {dim} ({kl[dim]:.1f} nats)": axes[dim] for dim in dims}
    moves |= {name.replace("_", " "): move for name, move in (directions or {}).items()}
    first = {name.replace("_", " "): amount for name, amount in (moved or {}).items()}

    @lru_cache(maxsize=1)  # the start stays while the sliders move
    def begin(start, number):
        if start == "test face":
            x = data.test.images[number : number + 1]
            z, _ = vae.encode_images(model, x)
            caption = f"test image {number} · reconstruction · now"
        else:
            x = data.test.images[:0]
            z = vae.sample_latents(1, model.latent_size, seed=number)
            caption = f"draw {number} of N(0, I) · now"
        ends = {}
        for by in (-3, 3):
            name = f"one dimension moved by {by:+d}: {', '.join(map(str, dims))}"
            ends[name] = vae.decode_images(model, z + by * axes[dims])
        return z, caption, [vae.as_unit(x), vae.decode_images(model, z)], ends

    def draw(start, number, **amounts):
        z_start, caption, images, ends = begin(start, number)
        z = z_start + sum(amounts[name] * move for name, move in moves.items())
        now = vae.decode_images(model, z)
        rows = {caption: torch.cat([*images, now])} | ends
        moved = [f"{name} {amount:+.1f}" for name, amount in amounts.items() if amount]
        return rows, (
            f"Moved: {', '.join(moved) or 'nothing'}. Now ‖z‖ = {z.norm():.2f}, "
            f"{(z - z_start).norm():.2f} from the start, contrast {vae.contrast(now).item():.3f}. "
            f"Means of test images: ‖μ‖ = {norms.mean():.2f} ± {norms.std():.2f}."
        )

    last = len(data.test.images) - 1
    controls = {
        "start": choice(options=["test face", "random face"]),
        "number": number_box(image, max=last, description="its number"),
    }
    for name in moves:
        controls[name] = slider(first.get(name, 0), min=-6, max=6, description=name)

    def reset():
        set_controls(controls, **dict.fromkeys(moves, 0.0))

    title = f"One code, dimension by dimension: {data.title}"
    return Explorer(title, draw, controls, [button("reset", reset)])


def explore_samples(
    model: VAE,
    data: ImageData,
    attributes: Sequence[str] = (),
    *,
    temperature: float = 1.0,
    n: int = 8,
) -> Explorer:
    """Task 3: n new images from a learned prior, of a class, or with and without attributes.

    `attributes` get a switch each: yes (the first one, to begin with), no, or left open, as in
    training images that have what is asked for. Raises VAEError for a model whose prior did not
    learn with labels.
    """
    if not (model.learned_prior and model.config.conditions):
        raise VAEError("Images are asked for from a grid_vae or vq_vae that learned with labels.")

    def draw(temperature, guidance, seed, **asked):
        if data.class_names:
            text = asked["class_name"]
        else:
            text = ",".join(sign + name for name, sign in asked.items() if sign is not None)
        labels, without = conditional.labels_of(data, text, n, seed=seed)
        images = vae.sample_images(
            model, n, labels, seed=seed, temperature=temperature, guidance=guidance, without=without
        )
        wanted = text.replace("-", "not ").replace(",", ", ").replace("_", " ")
        rows = {f"asked for: {wanted or 'nothing'}": images}
        return rows, (
            f"Drawn place by place at temperature {temperature:.1f} with guidance {guidance:.1f}, "
            f"seed {seed}. Contrast {vae.contrast(images).mean():.3f}."
        )

    switches = {}
    if data.class_names:
        switches["class_name"] = ipywidgets.Dropdown(
            options=data.class_names, description="class", **STYLE
        )
    for number, name in enumerate(attributes):
        options = [("left open", None), ("yes", ""), ("no", "-")]
        value = None if number else ""
        switches[name] = ipywidgets.Dropdown(
            options=options, value=value, description=name.replace("_", " "), **STYLE
        )
    seed = number_box(0, max=2**31 - 1, description="seed")
    controls = switches | {
        "temperature": slider(temperature, min=0.3, max=1.2, description="temperature"),
        "guidance": slider(1.0, min=0, max=4, description="guidance"),
        "seed": seed,
    }

    def draw_again():
        seed.value += 1

    title = f"New images of the learned prior: {data.title}"
    return Explorer(title, draw, controls, [button("draw again", draw_again)])


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error on [0, 1], over images and pixels."""
    return (a - b).square().mean()


def _reconstruct(model: VAE, images: Tensor) -> Tensor:
    """The decoded means of some images, (n, C, H, W) in [0, 1]."""
    mu, _ = vae.encode_images(model, images)
    return vae.decode_images(model, mu)


def _need_codes_alone(*models: VAE) -> None:
    """Raise VAEError for models whose codes do not decode without a label."""
    for model in models:
        if model.conditional:
            raise VAEError(
                f"Codes of model {model.config.model} do not decode without a label, so that it "
                "has no sliders: take another model."
            )
