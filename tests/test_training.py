"""Training and evaluation: steps and averages by hand, honest splits, seeds, two processes."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, of_seed, refused, run_python, same_weights
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

import train
import vae_helpers as vae
from base.hardware import precision

BEST = {"norm": "batch", "residual": 1, "likelihood": "gaussian", "schedule": "one_cycle"}


@pytest.fixture
def config(shapes):
    return vae.config_for(shapes, **SMALL, epochs=2)


def fit(data, config):
    model = vae.build_model(config)
    return model, vae.fit(model, data, config)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def one_cycle(step, steps, top):
    """A cosine from top / 25 up for three tenths of the steps, and down to top / 250,000."""
    peak, last = 0.3 * steps - 1, steps - 1
    if step <= peak:
        return top + (top / 25 - top) * (1 + math.cos(math.pi * step / peak)) / 2
    fall = (1 + math.cos(math.pi * (step - peak) / (last - peak))) / 2
    return top / 250_000 + (top - top / 250_000) * fall


def bce_and_kl(out, x):
    """Both by PyTorch alone, in nats for each image."""
    bce = F.binary_cross_entropy_with_logits(out.x_raw, x, reduction="none").sum((1, 2, 3))
    q = Normal(out.mu, torch.exp(0.5 * out.logvar))
    return bce, kl_divergence(q, Normal(0, 1)).sum(1)


@pytest.mark.parametrize("choices", [
    {"kl_warmup": 2, "epochs": 3}, {"schedule": "one_cycle"}, {"ema": 0.3}, {"ema": 0.999},
    {"model": "info_vae", "mmd": 50},
], ids=str)  # fmt: skip
def test_training_is_what_a_loop_by_hand_does(shapes, config, choices):
    """Adam on the mean of BCE + beta KL, and the penalty, over batches of 50, 50, 50 and 42."""
    config = dataclasses.replace(config, seed=3, beta=4, batch_size=50, **choices)
    model, history = fit(shapes, config)
    by_hand = vae.build_model(config)
    optimiser = torch.optim.Adam(by_hand.parameters(), lr=config.lr)
    order, noise = (of_seed(config.seed) for _ in range(2))
    average = n = 0
    for row in history:
        total = 0
        for batch in torch.randperm(192, generator=order).split(50):
            if config.schedule == "one_cycle":
                optimiser.param_groups[0]["lr"] = one_cycle(n, 8, config.lr)
            x = shapes.train.images[batch] / 255
            out = by_hand(x, noise)
            bce, kl = bce_and_kl(out, x)
            warm = min(1, n / (4 * config.kl_warmup)) if config.kl_warmup else 1
            optimiser.zero_grad()
            ((bce + 4 * warm * kl).mean() + by_hand.penalty(out, noise)).backward()
            optimiser.step()
            decay = min(config.ema, (1 + n) / (10 + n)) if n else 0
            average = decay * average + (1 - decay) * weights(by_hand)
            total += (bce + 4 * kl).sum().item()
            n += 1
        assert row["train_total_nats"] == pytest.approx(total / 192, rel=1e-5)
    torch.testing.assert_close(weights(model), average, rtol=1e-3, atol=2e-5)
    # What is validated are the averaged weights.
    reconstruction, kl = (loss.mean().item() for loss in vae.image_losses(model, shapes.val.images))
    assert history[-1]["val_reconstruction_nats"] == reconstruction
    assert history[-1]["val_total_nats"] == pytest.approx(reconstruction + 4 * kl)


@given(st.integers(1, 200), st.integers(2, 50), st.sampled_from(["none", "batch"]))
def test_batches_hold_every_image_once_and_none_alone_where_they_are_compared(n, size, norm):
    config = vae.Config(dataset="shapes", batch_size=size, norm=norm).resolved()
    batches = vae.shuffled_batches(n, config, torch.Generator())
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert norm == "none" or len(batches[-1]) > 1 or n == 1


def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state(shapes, config):
    torch.manual_seed(1)
    first, _ = fit(shapes, config)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = fit(shapes, config)
    assert same_weights(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = fit(shapes, dataclasses.replace(config, seed=1))
    assert not same_weights(first, other)


def test_validation_images_change_no_weights_and_test_images_are_not_even_read(shapes, config):
    first, _ = fit(shapes, config)
    second, history = fit(dataclasses.replace(shapes, val=shapes.test, test=None), config)
    assert same_weights(first, second)
    kl = vae.image_losses(second, shapes.test.images)[1].mean().item()
    assert history[-1]["val_kl_nats"] == kl


def test_a_loss_that_is_not_finite_stops_in_one_sentence(shapes, config):
    with refused(vae.TrainingDiverged, "epoch 1, ", "try a smaller lr or norm batch or kl_warmup."):
        fit(shapes, dataclasses.replace(config, lr=1e9))
    only_lr = {"arch": "fc", "model": "ae", "lr": 1e9}
    with refused(vae.TrainingDiverged, "with lr 1e+09: try a smaller lr."):
        fit(shapes, vae.config_for(shapes, **SMALL, **only_lr))


def test_half_of_the_images_are_mirrored_and_no_two_times_the_same(shapes, config):
    model = vae.build_model(dataclasses.replace(config, flip="horizontal", batch_size=192))
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, x: seen.append((x[0] * 255).round()))
    vae.fit(model, dataclasses.replace(shapes, val=shapes.train), model.config)
    order = of_seed(0)
    shares = []
    for batch in seen[::2]:  # the validation images come between
        images = shapes.train.images[torch.randperm(192, generator=order)].float()
        same = (batch == images).flatten(1).all(1)
        mirrored = (batch == images.flip(3)).flatten(1).all(1)
        assert (same | mirrored).all()
        shares.append(mirrored.float().mean().item())
    assert all(0.35 < share < 0.65 for share in shares) and shares[0] != shares[1]


def test_training_ends_when_validation_has_not_fallen_for_so_many_epochs(shapes, config):
    negatives = vae.Split(255 - shapes.val.images, shapes.val.labels)  # learning makes these worse
    other = dataclasses.replace(shapes, val=negatives)
    patient = dataclasses.replace(config, epochs=9, patience=3)
    history = vae.fit(vae.build_model(patient), other, patient)
    losses = [row["val_total_nats"] for row in history]
    assert len(losses) < 9 and min(losses) == losses[-4]
    patient = dataclasses.replace(config, epochs=3, patience=3)
    assert len(vae.fit(vae.build_model(patient), shapes, patient)) == 3


def test_sigma_is_the_root_mean_squared_error_of_the_training_images(shapes, config):
    """With the weights that the run ends with; of an autoencoder, so that no noise differs."""
    choices = {"model": "ae", "likelihood": "gaussian", "ema": 0.9}
    model, _ = fit(shapes, vae.config_for(shapes, **SMALL, epochs=2, **choices))
    x = shapes.train.images / 255
    with torch.no_grad():
        x_hat = torch.sigmoid(model(x).x_raw)
    assert model.sigma.item() == pytest.approx(F.mse_loss(x_hat, x).sqrt().item(), rel=1e-5)


def test_image_losses_equal_a_computation_by_hand(model, shapes):
    """501 images are one more than a pass."""
    images = shapes.train.images.repeat(3, 1, 1, 1)[:501]
    generator = of_seed(3)
    with torch.no_grad():
        parts = [bce_and_kl(model(x, generator), x) for x in (images / 255).split(500)]
    expected = tuple(torch.cat(nats).double() for nats in zip(*parts))
    losses = vae.image_losses(model, images, seed=3)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_evaluate_adds_up_and_measures_the_reconstruction_at_mu(shapes, config, likelihood):
    model = vae.build_model(dataclasses.replace(config, likelihood=likelihood))
    images, unit = shapes.test.images, shapes.test.images / 255
    metrics = vae.evaluate(model, images)
    total = sum(vae.image_losses(model, images)).numpy()
    assert metrics["total_nats"] == pytest.approx(total.mean())
    assert metrics["total_nats_se"] == pytest.approx(total.std(ddof=1) / math.sqrt(48))
    x_hat = vae.decode_images(model, vae.encode_images(model, images)[0])
    assert metrics["mse"] == pytest.approx(F.mse_loss(x_hat, unit).item(), rel=1e-5)
    assert ("excess_nats" in metrics) == (likelihood == "bernoulli")
    if likelihood == "bernoulli":
        floor = F.binary_cross_entropy(unit, unit, reduction="sum").item() / 48
        assert metrics["excess_nats"] == pytest.approx(total.mean() - floor, rel=1e-4)


@pytest.mark.parametrize("choices", [{}, BEST], ids=["vae", "best"])
def test_the_loss_curve_in_bfloat16_is_that_in_float32(shapes, config, monkeypatch, choices):
    curves = {}
    for name in ("float32", "bfloat16"):
        monkeypatch.setenv("VAE_PRECISION", name)
        _, history = fit(shapes, dataclasses.replace(config, lr=3e-3, **choices))
        rows = [(row["train_total_nats"], row["val_total_nats"]) for row in history]
        curves[name] = torch.tensor(rows)
    largest_difference = (curves["float32"] - curves["bfloat16"]).abs().max()
    assert 0 < largest_difference < 0.02 * curves["float32"].abs().max()


def test_precision_is_what_VAE_PRECISION_names_else_what_the_processor_does_itself(monkeypatch):
    cpu = torch.device("cpu")
    for name, native in (("float32", True), ("bfloat16", False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n, False)
        monkeypatch.setenv("VAE_PRECISION", name)
        assert precision(cpu) == getattr(torch, name)
        monkeypatch.delenv("VAE_PRECISION")
        assert precision(cpu) == (torch.bfloat16 if native else torch.float32)


def two_processes(tmp_path, *arguments):
    """The record of a training by torchrun, and that of one process."""
    arguments = ["--dataset", "shapes", "--image_size", "16", *arguments, "--out"]
    one = train.main([*arguments, str(tmp_path / "one")])
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "train.py"]
    run_python(*torchrun, *arguments, tmp_path / "two")
    record = json.loads((tmp_path / "two" / "model.json").read_text())
    assert record["processes"] == 2
    return one.record, record


def test_two_processes_train_what_one_does(tmp_path):
    """An autoencoder, without noise, in shares of 50 and 50 images, at last of 50 and 49."""
    flags = "--model ae --max_images 299 --latent_dim 4 --width 8 --epochs 2 --batch_size 100"
    one, two = two_processes(tmp_path, *flags.split())
    for row, row_of_two in zip(one["history"], two["history"], strict=True):
        del row["seconds"], row_of_two["seconds"]
        assert row_of_two == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize(
    "choices", ["--model grid_vae --global_dim 4", "--model vq_vae --codebook 8"]
)
def test_two_processes_train_every_stage_of_a_grid_as_one_does_up_to_its_noise(tmp_path, choices):
    flags = "--max_images 299 --latent_dim 4 --width 8 --epochs 4 --batch_size 25 --lr 3e-3"
    flags += f" --likelihood gaussian --prior_epochs 2 --prior_width 16 {choices}"
    one, two = two_processes(tmp_path, *flags.split())
    curves = []
    for record in (one, two):
        curves.append([row["val_total_nats"] for row in record["history"]])
    falls = curves[0][0] - min(curves[0])
    assert falls > 100
    assert curves[1] == pytest.approx(curves[0], abs=0.2 * falls)
    assert [row["stage"] for row in one["history"]] == [row["stage"] for row in two["history"]]
