"""Training, checkpoints, load or train, evaluation: reproducible, honest about splits, safe against damaged files."""
from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import SMALL, take
from torch import nn

import vae_helpers as vae

LOSSES = ("reconstruction_nats", "kl_nats", "total_nats")


@pytest.fixture
def config(shapes):
    return vae.config_for(shapes, **SMALL, epochs=2)


def fit(data, config):
    model = vae.build_model(config)
    return model, vae.fit(model, data, config)


def weights(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# ── The loop ────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("choices", [{}, {"arch": "fc", "width": 64}, {"model": "ae"}, {"likelihood": "squared_error"},
                                     {"downsample": "maxpool"},
                                     {"norm": "batch", "residual": 1, "ema": 0.9, "schedule": "one_cycle"}], ids=str)
def test_training_lowers_the_loss_on_training_and_validation_images(shapes, choices):
    _, history = fit(shapes, vae.config_for(shapes, **SMALL | {"lr": 3e-3, "epochs": 4} | choices))
    for split in ("train", "val"):
        assert history[-1][f"{split}_total_nats"] < 0.98 * history[0][f"{split}_total_nats"]


def test_the_history_has_every_loss_of_every_epoch(shapes, config):
    _, history = fit(shapes, config)
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(set(row) == {"epoch", "seconds", "compiled", "train_penalty", *(f"{s}_{loss}" for s in ("train", "val") for loss in LOSSES)} for row in history)
    assert 0 < history[0]["seconds"] < history[1]["seconds"]


@pytest.mark.parametrize("beta", [0, 0.5, 4])
def test_the_total_is_reconstruction_plus_beta_times_kl_for_both_splits(shapes, config, beta):
    """Training with one weight and validating with another would hide what beta does."""
    _, history = fit(shapes, dataclasses.replace(config, beta=beta))
    for row in history:
        for split in ("train", "val"):
            rec, kl, total = (row[f"{split}_{loss}"] for loss in LOSSES)
            assert kl > 0 and total == pytest.approx(rec + beta * kl, rel=1e-6)


def test_beta_is_the_weight_of_the_kl_in_the_gradient(shapes, config, monkeypatch):
    """With the KL made ten times larger, beta 0 gives the same weights, and beta 0.1 those of beta 1."""
    plain = {beta: weights(fit(shapes, dataclasses.replace(config, beta=beta))[0]) for beta in (0, 1)}
    kl_nats = vae.kl_nats
    monkeypatch.setattr(vae, "kl_nats", lambda mu, logvar: 10 * kl_nats(mu, logvar))
    scaled = {beta: weights(fit(shapes, dataclasses.replace(config, beta=beta))[0]) for beta in (0, 0.1)}
    assert torch.equal(scaled[0], plain[0])
    torch.testing.assert_close(scaled[0.1], plain[1], rtol=1e-2, atol=1e-3)
    assert not torch.allclose(plain[0], plain[1], rtol=1e-2, atol=1e-3)


def test_one_step_is_one_step_of_adam_on_the_mean_loss(shapes):
    """A whole epoch in one batch, for an autoencoder, which has no noise: the same step by hand."""
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


def test_an_autoencoder_pays_no_kl(shapes, config):
    _, history = fit(shapes, dataclasses.replace(config, model="ae"))
    assert all(row["train_kl_nats"] == row["val_kl_nats"] == 0 for row in history)


def test_the_same_seed_gives_the_same_run_to_the_last_bit(shapes, config):
    (a, first), (b, again) = fit(shapes, config), fit(shapes, config)
    assert torch.equal(weights(a), weights(b))
    assert without_seconds(first) == without_seconds(again)


def test_another_seed_gives_another_run(shapes, config):
    (_, first), (_, other) = fit(shapes, config), fit(shapes, dataclasses.replace(config, seed=1))
    assert first[-1]["val_total_nats"] != other[-1]["val_total_nats"]


def test_the_global_random_state_neither_matters_nor_changes(shapes, config):
    torch.manual_seed(1)
    a, _ = fit(shapes, config)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b, _ = fit(shapes, config)
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_never_looks_at_the_test_split(shapes, config):
    fit(dataclasses.replace(shapes, test=None), config)


def test_validation_images_are_measured_and_never_learned_from(shapes, config):
    other = dataclasses.replace(shapes, val=shapes.test)
    (a, first), (b, second) = fit(shapes, config), fit(other, config)
    assert torch.equal(weights(a), weights(b))
    assert first[-1]["val_total_nats"] != second[-1]["val_total_nats"]
    assert second[-1]["val_kl_nats"] == vae.image_losses(b, shapes.test.images)[1].mean().item()


def test_every_training_image_counts_once_even_when_the_last_batch_is_small(shapes, config):
    """70 images in batches of 32, 32 and 6, with a step so small that the weights stay where they are."""
    few = take(shapes, 70, 64, 48)
    model, history = fit(few, dataclasses.replace(config, epochs=1, model="ae", lr=1e-12))
    expected = vae.image_losses(model, few.train.images)[0].mean().item()
    assert history[0]["train_reconstruction_nats"] == pytest.approx(expected, rel=1e-6)


def test_on_epoch_gets_the_history_so_far(shapes, config):
    lengths = []
    vae.fit(vae.build_model(config), shapes, config, on_epoch=lambda history: lengths.append(len(history)))
    assert lengths == [1, 2]


def test_a_loss_that_is_not_finite_stops_in_one_sentence_and_saves_nothing(shapes, config, tmp_path):
    with pytest.raises(vae.TrainingDiverged, match="epoch 1 .*smaller lr") as caught:
        vae.train_run(dataclasses.replace(config, lr=1e20), shapes, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model.json").exists()


@pytest.mark.skipif(not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="needs CUDA or MPS")
def test_training_saving_and_evaluating_work_on_an_accelerator(shapes, config, monkeypatch, tmp_path):
    monkeypatch.delenv("VAE_DEVICE")
    run = vae.train_run(config, shapes, tmp_path / "run")
    assert run.model.device.type != "cpu"
    again, _ = vae.load_checkpoint(tmp_path / "run")
    assert vae.interpolate_images(again, *shapes.test.images[:2]).device.type == "cpu"
    monkeypatch.setenv("VAE_DEVICE", "cpu")
    on_cpu, _ = vae.load_checkpoint(tmp_path / "run")
    assert vae.evaluate(on_cpu, shapes.test.images)["mse"] == pytest.approx(run.record["test"]["mse"], rel=0.01)


# ── Step size, warm-up, moving average, sigma ───────────────────────────────────────────────────

@pytest.fixture
def steps(monkeypatch):
    """(step size, weights after it) of every step that Adam makes."""
    seen, step = [], torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        step(self, *args, **kwargs)
        [group] = self.param_groups
        seen.append((group["lr"], torch.cat([p.detach().flatten() for p in group["params"]])))

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    return seen


def test_one_cycle_rises_for_three_tenths_of_the_steps_and_falls_to_almost_nothing(shapes, config, steps):
    fit(shapes, dataclasses.replace(config, epochs=5, schedule="one_cycle"))
    sizes = [size for size, _ in steps]   # 5 epochs of 6 batches
    top = sizes.index(max(sizes))
    assert len(sizes) == 30 and top == 8 and sizes[top] == pytest.approx(config.lr)
    assert sizes == sorted(sizes[:top]) + sorted(sizes[top:], reverse=True)
    assert sizes[0] < 0.1 * config.lr and sizes[-1] < 1e-4 * config.lr


def test_a_constant_schedule_is_constant(shapes, config, steps):
    fit(shapes, config)
    assert {size for size, _ in steps} == {config.lr}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_ema_is_a_moving_average_of_the_weights_and_leaves_training_alone(shapes, config, steps, decay):
    """By hand; after n steps the decay is at most (1 + n) / (10 + n), so that the first weights are forgotten."""
    fit(shapes, config)
    without, steps[:] = [w for _, w in steps], []
    model, _ = fit(shapes, dataclasses.replace(config, ema=decay))
    raw = [w for _, w in steps]
    assert len(raw) == 12 and all(torch.equal(a, b) for a, b in zip(raw, without))
    average = raw[0]
    for n, w in enumerate(raw[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * w
    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, average, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, raw[-1], rtol=1e-3, atol=1e-5)


def test_validation_and_on_epoch_see_the_averaged_weights(shapes, config):
    def kl(model):
        return vae.image_losses(model, shapes.val.images)[1].mean().item()

    model, seen = vae.build_model(dataclasses.replace(config, ema=0.9)), []
    history = vae.fit(model, shapes, model.config, on_epoch=lambda _: seen.append(kl(model)))
    assert seen == [row["val_kl_nats"] for row in history]
    assert seen[0] == kl(fit(shapes, dataclasses.replace(config, epochs=1, ema=0.9))[0])


@pytest.mark.parametrize("warmup", [0, 2])
def test_beta_rises_from_zero_over_the_epochs_of_the_warm_up(shapes, config, monkeypatch, warmup):
    """The weight of the KL in every step is its gradient."""
    seen, code_nats = [], vae.code_nats

    def spy(model, out):
        kl = code_nats(model, out)
        if kl.requires_grad:
            kl.register_hook(lambda gradient: seen.append(gradient.sum().item()))
        return kl

    monkeypatch.setattr(vae, "code_nats", spy)
    _, history = fit(shapes, dataclasses.replace(config, beta=4, kl_warmup=warmup, epochs=3))
    assert seen == pytest.approx([4 * min(1, i / 12) if warmup else 4 for i in range(18)], rel=1e-5)
    assert history[0]["val_total_nats"] == pytest.approx(history[0]["val_reconstruction_nats"] + 4 * history[0]["val_kl_nats"])


@pytest.mark.parametrize("kind, n", [("vae", 40), ("ae", 600)])
def test_calibrate_gives_the_root_mean_squared_error_of_the_first_images(shapes, config, kind, n):
    """600 are more than one batch; an autoencoder, so that no noise differs."""
    model = vae.build_model(dataclasses.replace(config, model=kind, likelihood="gaussian"))
    images = shapes.train.images.repeat(4, 1, 1, 1)
    vae.calibrate(model, vae.Split(images, torch.zeros(len(images))), n)
    x = images[:n] / 255
    with torch.no_grad():
        x_hat = torch.sigmoid(model(x, torch.Generator().manual_seed(0)).x_raw)
    assert model.sigma.item() == pytest.approx(F.mse_loss(x_hat, x).sqrt().item(), rel=1e-4)


def test_a_gaussian_run_learns_and_keeps_its_sigma(shapes, config, tmp_path):
    config = dataclasses.replace(config, likelihood="gaussian", lr=3e-3)
    run = vae.train_run(config, shapes, tmp_path / "run")
    history = run.record["history"]
    assert history[1]["val_total_nats"] < history[0]["val_total_nats"] - 20
    again, record = vae.load_checkpoint(tmp_path / "run")
    assert again.sigma == run.model.sigma != 0.1
    assert vae.evaluate(again, shapes.test.images) == record["test"] and "floor_nats" not in record["test"]
    vae.calibrate(again, shapes.train)
    assert again.sigma == run.model.sigma   # it was calibrated on the training images, with the last weights


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error"])
def test_only_a_gaussian_has_a_sigma(shapes, config, likelihood):
    model = vae.build_model(dataclasses.replace(config, likelihood=likelihood))
    vae.calibrate(model, shapes.train)
    assert model.sigma is None and "sigma" not in model.state_dict()


def test_batch_normalisation_survives_a_checkpoint_in_half_precision(shapes, config, tmp_path):
    model, _ = fit(shapes, dataclasses.replace(config, norm="batch", residual=1, ema=0.9))
    again, _ = vae.load_checkpoint(vae.save_checkpoint(model, tmp_path / "run", half=True))
    a, b = (vae.evaluate(m, shapes.test.images)["total_nats"] for m in (model, again))
    assert math.isfinite(a) and a == pytest.approx(b, rel=2e-3)


def test_batch_normalisation_trains_when_one_image_is_left_for_the_last_batch(shapes, config):
    """Five halvings leave one position: its batch statistics need more than one image."""
    fit(take(shapes, 33, 8, 8), dataclasses.replace(config, norm="batch", depth=5, width=1, epochs=1))


def test_a_record_from_before_the_new_fields_is_read(trained, tmp_path):
    vae.save_checkpoint(trained.model, tmp_path)
    edit(tmp_path / "model.json", lambda r: [r["config"].pop(k) for k in ("norm", "residual", "kl_warmup", "schedule", "ema")])
    assert vae.load_checkpoint(tmp_path)[0].config == trained.config


# ── image_losses and evaluate ───────────────────────────────────────────────────────────────────

def test_image_losses_equal_a_computation_by_hand(model, shapes):
    images = shapes.test.images
    x = images / 255
    with torch.no_grad():
        out = model(x, torch.Generator().manual_seed(3))
    rec, kl = vae.image_losses(model, images, seed=3)
    assert rec.dtype == kl.dtype == torch.float64
    torch.testing.assert_close(rec.float(), F.binary_cross_entropy_with_logits(out.x_raw, x, reduction="none").sum((1, 2, 3)))
    torch.testing.assert_close(kl.float(), 0.5 * (out.mu ** 2 + out.logvar.exp() - 1 - out.logvar).sum(1))


def test_image_losses_do_not_depend_on_the_batch(shapes, config):
    """501 images, one more than a batch holds, and some of them alone; an autoencoder, so that no noise differs."""
    model = vae.build_model(dataclasses.replace(config, model="ae"))
    images = shapes.train.images.repeat(3, 1, 1, 1)[:501]
    rec, kl = vae.image_losses(model, images)
    assert rec.shape == (501,) and not kl.any()
    alone = torch.cat([vae.image_losses(model, images[i:i + 1])[0] for i in (0, 499, 500)])
    torch.testing.assert_close(rec[[0, 499, 500]], alone, rtol=1e-5, atol=0)


def test_evaluation_is_seeded(model, shapes):
    images = shapes.test.images
    assert vae.evaluate(model, images) == vae.evaluate(model, images)
    assert vae.evaluate(model, images, seed=1)["reconstruction_nats"] != vae.evaluate(model, images)["reconstruction_nats"]


def test_evaluate_adds_up(model, shapes):
    """total = reconstruction + KL = floor + excess, whatever beta the model was trained with."""
    e = vae.evaluate(model, shapes.test.images)
    assert e["total_nats"] == pytest.approx(e["reconstruction_nats"] + e["kl_nats"], rel=1e-12)
    assert e["floor_nats"] + e["excess_nats"] == pytest.approx(e["total_nats"])
    assert e["excess_nats"] > 0 and e["images"] == 48
    x = shapes.test.images / 255
    assert e["floor_nats"] == pytest.approx(F.binary_cross_entropy(x, x, reduction="sum").item() / 48, rel=1e-5)


def test_a_squared_error_has_no_floor(shapes):
    model = vae.build_model(vae.config_for(shapes, **SMALL, likelihood="squared_error"))
    assert not {"floor_nats", "excess_nats"} & set(vae.evaluate(model, shapes.test.images))


@pytest.mark.parametrize("likelihood", ["bernoulli", "squared_error"])
def test_mse_is_that_of_the_reconstruction_at_mu_on_zero_to_one(shapes, likelihood):
    model = vae.build_model(vae.config_for(shapes, **SMALL, likelihood=likelihood))
    unit = shapes.test.images / 255
    with torch.no_grad():
        if likelihood == "bernoulli":
            x_hat = torch.sigmoid(model.decoder(model.encoder(unit)[0]))
        else:
            x_hat = (torch.tanh(model.decoder(model.encoder(2 * unit - 1)[0])) + 1) / 2
    assert vae.evaluate(model, shapes.test.images)["mse"] == pytest.approx(F.mse_loss(x_hat, unit).item(), rel=1e-4)


class BrightnessEncoder(nn.Module):
    """mu = (0, brightness * 0.5, brightness * 5, 7): of the four, one varies enough to count as active."""

    def forward(self, x):
        brightness = x.mean((1, 2, 3))
        mu = brightness[:, None] * torch.tensor([0, 0.5, 5.0, 0]) + torch.tensor([0, 0, 0, 7.0])
        return mu, torch.zeros_like(mu)


def test_active_dims_are_those_whose_mu_varies_by_more_than_the_threshold(shapes, config):
    images = torch.linspace(100, 150, 50).byte()[:, None, None, None].expand(50, 3, 32, 32)   # brightness varies by 0.0034
    model = vae.build_model(config)
    model.encoder = BrightnessEncoder()
    assert vae.ACTIVE_THRESHOLD == 0.01
    assert vae.evaluate(model, images)["active_dims"] == 1


# ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────

def test_a_checkpoint_gives_back_the_same_model_and_record(model, tmp_path):
    vae.save_checkpoint(model, tmp_path / "run", {"note": [1, 2.5, "β"]})
    again, record = vae.load_checkpoint(tmp_path / "run")
    assert again.config == model.config and record["note"] == [1, 2.5, "β"]
    assert torch.equal(weights(again), weights(model)) and not again.training


def test_half_precision_halves_the_file_and_hardly_changes_the_model(model, shapes, tmp_path):
    full, half = (vae.save_checkpoint(model, tmp_path / str(h), half=h) / "model.safetensors" for h in (False, True))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    again, _ = vae.load_checkpoint(half.parent)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(weights(again), weights(model), rtol=1e-3, atol=1e-4)
    a, b = (vae.evaluate(m, shapes.test.images)["total_nats"] for m in (model, again))
    assert a == pytest.approx(b, rel=1e-3)


def cut(path, keep=0.5):
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])


def edit(path, change):
    """As a run of format 1, which had no checksums, would hold it."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("sha256", "weights_sha256")} | {"format": 1}))


@pytest.mark.parametrize("damage", [
    lambda run: os.rename(run, run.with_name("elsewhere")),
    lambda run: (run / "model.json").unlink(),
    lambda run: (run / "model.safetensors").unlink(),
    lambda run: cut(run / "model.safetensors"),
    lambda run: cut(run / "model.safetensors", 0),
    lambda run: (run / "model.safetensors").write_bytes(b"\xff" * 1000),
    lambda run: safetensors.torch.save_file({"other": torch.zeros(3)}, run / "model.safetensors"),
    lambda run: cut(run / "model.json"),
    lambda run: (run / "model.json").write_bytes(b"\xff\xfe\x00"),
    lambda run: (run / "model.json").write_text("[1, 2]"),
    lambda run: (run / "model.json").write_text("{}"),
    lambda run: edit(run / "model.json", lambda r: r["config"].update(arch="fc")),
    lambda run: edit(run / "model.json", lambda r: r["config"].update(latent_dim=5)),
    lambda run: edit(run / "model.json", lambda r: r["config"].update(latent_dim=-5)),
    lambda run: edit(run / "model.json", lambda r: r["config"].update(lr="high")),
    lambda run: edit(run / "model.json", lambda r: r["config"].update(from_the_future=1)),
    lambda run: edit(run / "model.json", lambda r: r.update(config=None)),
], ids=["no folder", "no json", "no weights", "weights cut short", "weights empty", "weights garbage", "other weights", "json cut short",
        "json garbage", "json a list", "json empty", "other arch", "other size", "bad value", "bad type", "unknown field", "no config"])
def test_a_damaged_or_foreign_checkpoint_is_refused_in_one_sentence(model, tmp_path, damage):
    run = vae.save_checkpoint(model, tmp_path / "run")
    damage(run)
    with pytest.raises(vae.CheckpointError) as caught:
        vae.load_checkpoint(run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("change, says", [
    (lambda run: (run / "model.json").write_text((run / "model.json").read_text().replace("2.5", "3.5")), "changed after it was written"),
    (lambda run: flip(run / "model.safetensors", -3), "checksum"),
    (lambda run: edit_sealed(run / "model.json", {"format": 99}), "newer version")], ids=["a number", "a weight", "from the future"])
def test_a_changed_or_newer_checkpoint_is_refused_and_no_wrong_number_appears(model, tmp_path, change, says):
    run = vae.save_checkpoint(model, tmp_path / "run", {"note": 2.5})
    change(run)
    with pytest.raises(vae.CheckpointError, match=says) as caught:
        vae.load_checkpoint(run)
    assert "\n" not in str(caught.value)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_sealed(path, values):
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps(record | {"sha256": vae._seal(record)}))


def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(model, tmp_path, monkeypatch):
    run = vae.save_checkpoint(model, tmp_path / "run", {"note": "old"})
    before = {p.name: p.read_bytes() for p in run.iterdir()}

    def half_written(tensors, path, *args):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half_written)
    with pytest.raises(OSError):
        vae.save_checkpoint(model, run, {"note": "new"})
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_finished_write_leaves_no_temporary_file(model, tmp_path):
    run = vae.save_checkpoint(model, tmp_path / "run")
    assert sorted(p.name for p in run.iterdir()) == ["model.json", "model.safetensors"]


def test_train_run_records_what_it_did(trained, shapes):
    assert trained.record["data"] == {"name": "shapes", "title": shapes.title, "fingerprint": shapes.fingerprint,
                                      "train": 192, "val": 64, "test": 48}
    assert trained.record["parameters"] == vae.count_parameters(trained.model)
    assert trained.record["test"] == vae.evaluate(trained.model, shapes.test.images)
    assert len(trained.record["history"]) == trained.config.epochs == 3


def test_an_interrupted_run_keeps_the_last_finished_epoch(shapes, config, tmp_path, monkeypatch):
    calls, image_losses = [], vae.image_losses

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return image_losses(*args, **kwargs)

    monkeypatch.setattr(vae, "image_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vae.train_run(config, shapes, tmp_path / "run")
    found, record = vae.load_checkpoint(tmp_path / "run")
    assert [row["epoch"] for row in record["history"]] == [1] and "test" not in record
    one_epoch, _ = fit(shapes, dataclasses.replace(config, epochs=1))
    assert torch.equal(weights(found), weights(one_epoch))


# ── Load or train ───────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def count_trained(monkeypatch):
    calls, train_run = [], vae.train_run
    monkeypatch.setattr(vae, "train_run", lambda *a, **k: calls.append(1) or train_run(*a, **k))
    return calls


@pytest.fixture
def quick(config):
    return dataclasses.replace(config, epochs=1)


def test_load_or_train_trains_first_and_loads_its_own_run_then(quick, shapes, count_trained, capsys):
    first, second = vae.load_or_train(quick, shapes), vae.load_or_train(quick, shapes)
    assert count_trained == [1]
    assert first.origin == "trained now" and second.origin.startswith("your run")
    assert torch.equal(weights(first.model), weights(second.model)) and first.record["test"] == second.record["test"]
    said = capsys.readouterr().out
    assert "trained now" in said and "your run" in said   # it says which


def test_VAE_TRAIN_trains_again(quick, shapes, count_trained, monkeypatch):
    vae.load_or_train(quick, shapes)
    monkeypatch.setenv("VAE_TRAIN", "1")
    vae.load_or_train(quick, shapes)
    assert count_trained == [1, 1]


def test_a_run_on_other_data_is_not_taken(quick, shapes, count_trained):
    vae.load_or_train(quick, shapes)
    vae.load_or_train(quick, take(shapes, 190, 64, 48))
    assert count_trained == [1, 1]


def test_a_run_of_another_config_is_not_taken(quick, shapes, count_trained):
    vae.load_or_train(quick, shapes)
    vae.load_or_train(dataclasses.replace(quick, beta=2.0), shapes)
    assert count_trained == [1, 1]


def test_an_unfinished_run_is_not_taken(quick, shapes, count_trained, tmp_path):
    vae.load_or_train(quick, shapes)
    [path] = (tmp_path / "runs").glob("*/model.json")
    edit(path, lambda record: record.pop("test"))
    vae.load_or_train(quick, shapes)
    assert count_trained == [1, 1]


def test_a_damaged_run_is_passed_over_and_named(quick, shapes, count_trained, tmp_path, capsys):
    vae.load_or_train(quick, shapes)
    [path] = (tmp_path / "runs").glob("*/model.safetensors")
    cut(path)
    assert vae.load_or_train(quick, shapes).origin == "trained now"
    assert f"Passed over: {path}" in capsys.readouterr().out


@pytest.fixture
def released(quick, shapes):
    """A released run of this config in the stand-in of checkpoints/."""
    return vae.train_run(quick, shapes, vae.RELEASED / "shapes_conv")


def test_released_weights_are_found(quick, shapes, released, count_trained):
    run = vae.load_or_train(quick, shapes)
    assert run.origin.startswith("released weights shapes_conv") and count_trained == []
    assert torch.equal(weights(run.model), weights(released.model))


def test_the_readers_own_run_goes_before_the_released_one(quick, shapes, released):
    vae.train_run(quick, shapes)
    assert vae.load_or_train(quick, shapes).origin.startswith("your run")


def test_released_weights_of_another_config_are_not_taken(quick, shapes, released, count_trained):
    vae.load_or_train(dataclasses.replace(quick, seed=1), shapes)
    assert count_trained == [1]


def test_a_released_record_without_weights_serves_where_no_weights_are_needed(quick, shapes, released, count_trained):
    (vae.RELEASED / "shapes_conv" / "model.safetensors").unlink()
    run = vae.load_or_train(quick, shapes, weights=False)
    assert run.model is None and run.record["test"] == released.record["test"] and count_trained == []
    assert vae.load_or_train(quick, shapes).model is not None
    assert count_trained == [1]


def test_no_number_becomes_float64_on_the_device(model, shapes, monkeypatch):
    """Apple's MPS knows no float64: sums are moved to the CPU before they are widened."""
    order, double, cpu = [], torch.Tensor.double, torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: order.append("cpu") or cpu(t))
    monkeypatch.setattr(torch.Tensor, "double", lambda t: order.append("double") or double(t))
    vae.image_losses(model, shapes.val.images[:8])
    assert order == ["cpu", "cpu", "double", "double"]   # reconstruction and KL


def test_a_run_on_other_files_is_loaded_with_a_note(shapes, trained, tmp_path, monkeypatch, capsys):
    """Released weights serve readers with another copy of the data, who are told so."""
    import dataclasses
    config = vae.Config(dataset="shapes", latent_dim=4, width=4, epochs=1)
    vae.train_run(config, shapes, tmp_path / "released" / "one", progress=False)
    monkeypatch.setattr(vae, "RELEASED", tmp_path / "released")
    vae.load_or_train(config, shapes)
    assert "Note" not in capsys.readouterr().out
    fewer = dataclasses.replace(shapes, train=vae.Split(shapes.train.images[1:], shapes.train.labels[1:]))
    vae.load_or_train(config, fewer)
    assert "not exactly yours" in capsys.readouterr().out
