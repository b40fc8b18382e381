"""Training and evaluation: steps and averages by hand, honest splits, seeds, two processes."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SMALL, take
from torch import nn

# import train
import vae_helpers as vae

LOSSES = ("reconstruction_nats", "kl_nats", "total_nats")
BEST = {"norm": "batch", "residual": 1, "likelihood": "gaussian", "schedule": "one_cycle"}


@pytest.fixture
def config(shapes):
    return vae.config_for(shapes, **SMALL, epochs=2)


def fit(data, config):
    model = vae.build_model(config)
    return model, vae.fit(model, data, config)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# ── The loop ──


def test_one_step_is_one_step_of_adam_on_the_mean_loss(shapes):
    """A whole epoch in one batch, for an autoencoder, which has no noise."""
    config = vae.config_for(shapes, **SMALL | {"batch_size": 192}, epochs=1, model="ae")
    model, history = fit(shapes, config)
    by_hand = vae.build_model(config)
    optimiser = torch.optim.Adam(by_hand.parameters(), lr=config.lr)
    x = shapes.train.images / 255
    loss = F.binary_cross_entropy(torch.sigmoid(by_hand(x).x_raw), x, reduction="sum") / len(x)
    loss.backward()
    optimiser.step()
    assert history[0]["train_reconstruction_nats"] == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(weights(model), weights(by_hand), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "choices", [{}, {"arch": "fc", "width": 64}, {"likelihood": "squared_error"}, BEST], ids=str
)
def test_losses_of_training_and_validation_images_fall(shapes, choices):
    _, history = fit(shapes, vae.config_for(shapes, **SMALL | {"lr": 3e-3, "epochs": 4} | choices))
    for split in ("train", "val"):
        first, last = (history[i][f"{split}_total_nats"] for i in (0, -1))
        assert last < first - 0.02 * abs(first)


@pytest.mark.parametrize("beta", [0, 0.5, 4])
def test_the_history_has_every_loss_and_one_beta_for_both_splits(shapes, config, beta):
    _, history = fit(shapes, dataclasses.replace(config, beta=beta))
    keys = {"epoch", "seconds", "train_penalty"}
    for loss in LOSSES:
        keys |= {f"train_{loss}", f"val_{loss}"}
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[0]["seconds"] < history[1]["seconds"]
    for row in history:
        assert row.keys() == keys
        for split in ("train", "val"):
            reconstruction, kl, total = (row[f"{split}_{loss}"] for loss in LOSSES)
            assert kl > 0
            assert total == pytest.approx(reconstruction + beta * kl)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state(shapes, config):
    torch.manual_seed(1)
    first, _ = fit(shapes, config)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = fit(shapes, config)
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = fit(shapes, dataclasses.replace(config, seed=1))
    assert not torch.equal(weights(first), weights(other))


def test_validation_images_are_measured_and_test_images_not_even_read(shapes, config):
    other = dataclasses.replace(shapes, val=shapes.test, test=None)
    first, _ = fit(shapes, config)
    second, history = fit(other, config)
    assert torch.equal(weights(first), weights(second))
    reconstruction, kl = vae.image_losses(second, shapes.test.images)
    assert history[-1]["val_reconstruction_nats"] == reconstruction.mean().item()
    assert history[-1]["val_kl_nats"] == kl.mean().item()


@pytest.mark.parametrize("n", [64, 70])
def test_every_image_counts_once_even_when_the_last_batch_is_small(shapes, config, n):
    """With a step so small that the weights stay where they are."""
    few = take(shapes, n, 8, 8)
    model, history = fit(few, dataclasses.replace(config, epochs=1, model="ae", lr=1e-12))
    expected = vae.image_losses(model, few.train.images)[0].mean().item()
    assert history[0]["train_reconstruction_nats"] == pytest.approx(expected, rel=1e-6)


def test_one_image_left_over_joins_the_last_batch_where_batches_are_compared(shapes, config):
    """Five halvings leave one position: its batch statistics need more than one image."""
    few = take(shapes, 33, 8, 8)
    fit(few, dataclasses.replace(config, norm="batch", depth=5, width=1, epochs=1))


def test_a_loss_that_is_not_finite_stops_in_one_sentence(shapes, config):
    with pytest.raises(vae.TrainingDiverged, match="epoch 1, .*smaller lr than 1e.20") as caught:
        fit(shapes, dataclasses.replace(config, lr=1e20))
    assert "\n" not in str(caught.value)


# ── Step size, warm-up, moving average, sigma ──


@pytest.fixture
def steps(monkeypatch):
    """(step size, weights after it) of every step that Adam makes."""
    recorded, step = [], torch.optim.Adam.step

    def recording(self, *args, **kwargs):
        step(self, *args, **kwargs)
        [group] = self.param_groups
        parameters = torch.cat([p.detach().flatten() for p in group["params"]])
        recorded.append((group["lr"], parameters))

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    return recorded


def test_one_cycle_is_a_cosine_up_for_three_tenths_of_the_steps_and_down(shapes, config, steps):
    """Smith & Topin 2018 in PyTorch's form: from lr / 25 to lr, then to lr / 250,000."""
    fit(shapes, dataclasses.replace(config, epochs=5, schedule="one_cycle"))
    low, top, end = config.lr / 25, config.lr, config.lr / 250_000
    expected = [top + (low - top) * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    expected += [end + (top - end) * (1 + math.cos(math.pi * i / 21)) / 2 for i in range(22)]
    assert [size for size, _ in steps] == pytest.approx(expected)  # 5 epochs of 6 batches


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_ema_averages_the_weights_and_leaves_training_alone(shapes, config, steps, decay):
    """After n steps the decay is at most (1 + n) / (10 + n): the first weights are forgotten."""
    fit(shapes, config)
    without = [parameters for _, parameters in steps]
    steps.clear()
    model, _ = fit(shapes, dataclasses.replace(config, ema=decay))
    average = without[0]
    for n, (size, parameters) in enumerate(steps):
        assert size == config.lr
        assert torch.equal(parameters, without[n])
        if n:
            d = min(decay, (1 + n) / (10 + n))
            average = d * average + (1 - d) * parameters
    result = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(result, average, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(result, without[-1], rtol=1e-3, atol=1e-5)


def test_validation_and_on_epoch_see_the_averaged_weights(shapes, config):
    model = vae.build_model(dataclasses.replace(config, ema=0.9))
    measured = []

    def measure(history):
        measured.append(vae.image_losses(model, shapes.val.images)[1].mean().item())

    history = vae.fit(model, shapes, model.config, on_epoch=measure)
    assert measured == [row["val_kl_nats"] for row in history]


@pytest.mark.parametrize("warmup", [0, 2])
def test_beta_rises_from_zero_over_the_epochs_of_the_warm_up(shapes, config, warmup):
    """The weight of the KL in a step is the gradient that reaches it."""
    config = dataclasses.replace(config, beta=4, kl_warmup=warmup, epochs=3)
    model, gradients = vae.build_model(config), []

    def code_nats(out):
        kl = vae.kl_nats(out.mu, out.logvar)
        if kl.requires_grad:
            kl.register_hook(lambda gradient: gradients.append(gradient.sum().item()))
        return kl

    model.code_nats = code_nats
    vae.fit(model, shapes, config)
    expected = [4 * min(1, i / 12) if warmup else 4 for i in range(18)]  # 3 epochs of 6 batches
    assert gradients == pytest.approx(expected, rel=1e-5)


def test_calibrate_gives_the_root_mean_squared_error_of_the_first_images(shapes, config):
    """600 images are more than one pass; an autoencoder, so that no noise differs."""
    model = vae.build_model(dataclasses.replace(config, model="ae", likelihood="gaussian"))
    images = shapes.train.images.repeat(4, 1, 1, 1)
    vae.calibrate(model, vae.Split(images, torch.zeros(len(images))), 600)
    x = images[:600] / 255
    with torch.no_grad():
        x_hat = torch.sigmoid(model(x).x_raw)
    assert model.sigma.item() == pytest.approx(F.mse_loss(x_hat, x).sqrt().item(), rel=1e-4)


def test_a_gaussian_run_ends_with_the_sigma_of_its_last_weights(shapes, config):
    model, _ = fit(shapes, dataclasses.replace(config, likelihood="gaussian", ema=0.9))
    sigma = model.sigma.item()
    vae.calibrate(model, shapes.train)
    assert model.sigma.item() == sigma != pytest.approx(0.1)


# ── Evaluation ──


def test_image_losses_equal_a_computation_by_hand(model, shapes):
    x = shapes.test.images / 255
    with torch.no_grad():
        out = model(x, torch.Generator().manual_seed(3))
    bce = F.binary_cross_entropy_with_logits(out.x_raw, x, reduction="none").sum((1, 2, 3))
    q = torch.distributions.Normal(out.mu, torch.exp(0.5 * out.logvar))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum(1)
    losses = vae.image_losses(model, shapes.test.images, seed=3)
    torch.testing.assert_close(losses, (bce.double(), kl.double()), rtol=1e-4, atol=1e-3)


def test_image_losses_do_not_depend_on_the_batch(shapes, config):
    """501 images are one more than a pass; an autoencoder, so that no noise differs."""
    model = vae.build_model(dataclasses.replace(config, model="ae"))
    images = shapes.train.images.repeat(3, 1, 1, 1)[:501]
    reconstruction, kl = vae.image_losses(model, images)
    assert not kl.any()
    alone = torch.cat([vae.image_losses(model, images[i : i + 1])[0] for i in (0, 499, 500)])
    torch.testing.assert_close(reconstruction[[0, 499, 500]], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", vae.LIKELIHOODS)
def test_evaluate_adds_up_and_measures_the_reconstruction_at_mu(shapes, config, likelihood):
    model = vae.build_model(dataclasses.replace(config, likelihood=likelihood))
    images = shapes.test.images
    metrics = vae.evaluate(model, images)
    reconstruction, kl = vae.image_losses(model, images)
    total = (reconstruction + kl).numpy()
    assert metrics["total_nats"] == pytest.approx(total.mean())
    assert metrics["total_nats_se"] == pytest.approx(total.std(ddof=1) / math.sqrt(48))
    x = images / 255
    with torch.no_grad():
        mu, _ = model.encoder(2 * x - 1 if likelihood == "squared_error" else x)
        x_raw = model.decoder(mu)
    x_hat = torch.sigmoid(x_raw)
    if likelihood == "squared_error":
        x_hat = (torch.tanh(x_raw) + 1) / 2
    assert metrics["mse"] == pytest.approx(F.mse_loss(x_hat, x).item(), rel=1e-4)
    assert ("floor_nats" in metrics) == (likelihood == "bernoulli")
    if likelihood == "bernoulli":
        floor = F.binary_cross_entropy(x, x, reduction="sum").item() / 48
        assert metrics["floor_nats"] == pytest.approx(floor, rel=1e-5)
        assert metrics["excess_nats"] == pytest.approx(metrics["total_nats"] - floor, rel=1e-4)


class BrightnessEncoder(nn.Module):
    """mu = (0, b / 2, 5 b, 7) of the brightness b: one of the four varies enough to be active."""

    def forward(self, x):
        mu = x.mean((1, 2, 3))[:, None] * torch.tensor([0, 0.5, 5, 0])
        mu = mu + torch.tensor([0, 0, 0, 7.0])
        return mu, torch.zeros_like(mu)


def test_active_dims_are_those_whose_mu_varies_by_more_than_the_threshold(config):
    model = vae.build_model(config)
    model.encoder = BrightnessEncoder()
    images = torch.linspace(100, 150, 50).byte()[:, None, None, None].expand(50, 3, 32, 32)
    assert vae.evaluate(model, images)["active_dims"] == 1  # the brightness varies by 0.0034


# ── 16 bits, and several processes ──


@pytest.mark.parametrize("choices", [{}, BEST], ids=["vae", "best"])
def test_the_loss_curve_in_bfloat16_is_that_in_float32(shapes, config, monkeypatch, choices):
    curves = []
    for name in ("float32", "bfloat16"):
        monkeypatch.setenv("VAE_PRECISION", name)
        _, history = fit(shapes, dataclasses.replace(config, lr=3e-3, **choices))
        curves.append([row[f"{s}_total_nats"] for row in history for s in ("train", "val")])
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], abs=0.02 * max(map(abs, curves[0])))


def test_precision_follows_the_hardware_unless_VAE_PRECISION_names_one(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("VAE_PRECISION")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        capability = (8 if native else 7, 0)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n, False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert vae.precision(cpu) == vae.precision(cuda) == dtype
    monkeypatch.setenv("VAE_PRECISION", "bfloat16")
    assert vae.precision(cpu) == torch.bfloat16
    monkeypatch.setenv("VAE_PRECISION", "int8")
    with pytest.raises(vae.VAEError, match="must be float32 or bfloat16, not 'int8'"):
        vae.precision(cpu)


FLAGS = "--dataset shapes --max_images 299 --image_size 16 --latent_dim 4 --width 8 --epochs 2"


def torchrun(folder, *flags):
    """Two processes of train.py; 299 images are shares of 50 and 50, at last 50 and 49."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "train.py"]
    command = [*start, *FLAGS.split(), "--batch_size", "100", "--out", str(folder), *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_train_what_one_does(tmp_path):
    """An autoencoder, because a vae draws other noise in each process."""
    one = train.main(
        [*FLAGS.split(), "--batch_size", "100", "--model", "ae", "--out", str(tmp_path / "one")]
    )
    done = torchrun(tmp_path / "two", "--model", "ae")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1
    record = json.loads((tmp_path / "two" / "model.json").read_text())
    assert record["processes"] == 2
    for row, row_of_two in zip(one.record["history"], record["history"]):
        del row["seconds"], row_of_two["seconds"]
        assert row_of_two == pytest.approx(row, rel=1e-4)
    assert record["test"] == pytest.approx(one.record["test"], rel=1e-4)


def test_a_vq_vae_is_refused_under_torchrun(shapes, config, monkeypatch):
    monkeypatch.setattr(vae, "processes", lambda: (0, 2))
    with pytest.raises(vae.VAEError, match="without torchrun"):
        vae.build_model(dataclasses.replace(config, model="vq_vae"))
