"""Fast paths train what the plain one trains: batches from a thread or from the device, 16 bits, torch.compile, several processes."""
from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import vae_helpers as vae


@pytest.fixture(scope="module")
def shapes() -> vae.ImageData:
    data = vae.load_dataset("shapes", image_size=16, max_images=600)
    return dataclasses.replace(data, val=vae.Split(*(tensor[:101] for tensor in data.val)))


def curve(data: vae.ImageData, **choices) -> np.ndarray:
    """Training and validation totals of two epochs."""
    config = vae.config_for(data, **{"latent_dim": 8, "width": 8, "epochs": 2, "batch_size": 64, "lr": 3e-3} | choices)
    history = vae.fit(vae.build_model(config), data, config, progress=False)
    return np.array([[row["train_total_nats"], row["val_total_nats"]] for row in history])


MODELS = [{}, {"norm": "batch", "residual": 1, "likelihood": "gaussian"}, {"arch": "fc"}, {"model": "wae"}, {"model": "cvae"},
          {"model": "vq_vae", "codebook": 16}]


# ── Batches ─────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("sizes", [[3], [4, 4, 1], [1] * 5])
def test_a_thread_hands_out_every_batch_once_and_in_order(shapes, sizes):
    batches = torch.randperm(len(shapes.train.images))[:sum(sizes)].split(sizes)
    found = list(vae._on_device(shapes.train, batches, torch.device("cpu")))
    assert len(found) == len(sizes)
    for indices, (images, labels) in zip(batches, found):
        assert torch.equal(images, shapes.train.images[indices]) and torch.equal(labels, shapes.train.labels[indices])


def test_images_on_an_accelerator_are_gathered_there(shapes):
    """The meta device stands in for it: it knows shapes, and refuses to come back."""
    split = vae.Split(*(tensor.to("meta") for tensor in shapes.train))
    found = list(vae._on_device(split, [torch.arange(5), torch.arange(2)], torch.device("meta")))
    assert [images.shape[0] for images, _ in found] == [5, 2] and all(images.is_meta and labels.is_meta for images, labels in found)


def test_images_stay_on_a_gpu_that_has_room(shapes, monkeypatch):
    bytes_of = shapes.train.images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 ** 12))
    free = 3 * bytes_of
    assert vae.resident(shapes.train, torch.device("cuda"))
    free = bytes_of
    assert not vae.resident(shapes.train, torch.device("cuda"))
    assert not vae.resident(shapes.train, torch.device("cpu")), "in memory they are already"


def test_an_error_while_gathering_reaches_the_caller(shapes):
    with pytest.raises(IndexError):
        list(vae._on_device(shapes.train, [torch.tensor([10 ** 9])], torch.device("cpu")))


# ── 16 bits ─────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("choices", MODELS, ids=str)
def test_the_loss_curve_in_bfloat16_is_that_in_float32(shapes, monkeypatch, choices):
    curves = {}
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("VAE_PRECISION", dtype)
        curves[dtype] = curve(shapes, **choices)
    assert not np.array_equal(*curves.values()), "bfloat16 was not used"
    scale = np.abs(curves["float32"]).max()
    assert np.abs(curves["float32"] - curves["bfloat16"]).max() < 0.02 * scale


def test_what_must_be_exact_is_float32_in_bfloat16_too(shapes):
    for choices in MODELS:
        config = vae.config_for(shapes, latent_dim=8, width=8, **choices)
        model = vae.build_model(config)
        c = vae.conditions(config, shapes.train.labels[:4])
        with torch.autocast("cpu", torch.bfloat16):
            out = model(vae.to_input(shapes.train.images[:4], config), c=c)
        assert {tensor.dtype for tensor in (out.x_raw, out.mu, out.logvar, out.z)} == {torch.float32}


def test_precision_follows_the_hardware_unless_it_is_named(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 if has else 7, 0))
        assert vae.precision(cpu) == vae.precision(cuda) == expected
    monkeypatch.setenv("VAE_PRECISION", "bfloat16")
    assert vae.precision(cpu) == torch.bfloat16
    monkeypatch.setenv("VAE_PRECISION", "int8")
    with pytest.raises(vae.VAEError, match="VAE_PRECISION must be float32 or bfloat16, not 'int8'"):
        vae.precision(cpu)


# ── torch.compile ───────────────────────────────────────────────────────────────────────────────

@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler: apt-get install g++")
def test_the_compiled_loss_curve_is_the_eager_one(shapes, monkeypatch, capsys):
    curves = {}
    for compiled in "01":
        monkeypatch.setenv("VAE_COMPILE", compiled)
        curves[compiled] = curve(shapes)
    assert "does not work" not in capsys.readouterr().out
    assert np.allclose(curves["0"], curves["1"], rtol=1e-4)


def test_without_a_compiler_training_goes_on(shapes, monkeypatch, capsys):
    def broken(*_, **__):
        def fail(*_):
            raise RuntimeError("no C++ compiler")
        return fail
    expected = curve(shapes)
    monkeypatch.setenv("VAE_COMPILE", "1")
    monkeypatch.setattr(torch, "compile", broken)
    assert np.array_equal(curve(shapes), expected)
    assert "torch.compile does not work here (no C++ compiler): going on without it." in capsys.readouterr().out


def test_compiling_is_for_long_runs_in_16_bits(shapes, monkeypatch):
    monkeypatch.delenv("VAE_COMPILE", raising=False)
    monkeypatch.setenv("VAE_PRECISION", "bfloat16")
    config, cpu = vae.config_for(shapes, epochs=10, model="vae"), torch.device("cpu")
    assert vae.compile_pays(config, 45_000, cpu) and not vae.compile_pays(config, 1000, cpu)
    monkeypatch.setenv("VAE_COMPILE", "1")
    assert not vae.compile_pays(dataclasses.replace(config, model="vq_vae", codebook=8), 45_000, cpu)


# ── Several processes ───────────────────────────────────────────────────────────────────────────

def train(folder, processes: int, *flags: str) -> dict:
    """The record of a short run of train.py; with several processes through torchrun."""
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    done = subprocess.run([sys.executable, *start, "train.py", "--dataset", "shapes", "--max_images", "299", "--image_size", "16", "--latent_dim", "8",
                           "--width", "8", "--batch_size", "100", "--epochs", "2", "--out", str(folder), *flags],
                          cwd=ROOT, env=os.environ | {"VAE_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1, "one process writes"
    return json.loads((folder / "model.json").read_text())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("model, tolerance", [("ae", 1e-5), ("vae", 0.01)])
def test_two_processes_train_what_one_does(tmp_path, model, tolerance):
    """An autoencoder's curve is the same but for rounding, in shares of 50 and, of the last batch, 50 and 49; a vae draws other noise."""
    one, two = (train(tmp_path / str(n), n, "--model", model) for n in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for a, b in zip(one["history"], two["history"]):
        for key in ("train_reconstruction_nats", "val_reconstruction_nats", "train_total_nats", "val_total_nats"):
            assert b[key] == pytest.approx(a[key], rel=tolerance)
    assert two["test"]["total_nats"] == pytest.approx(one["test"]["total_nats"], rel=tolerance)


@pytest.mark.parametrize("flags, message", [(["--model", "vq_vae"], "A vq_vae trains in one process"), (["--batch_size", "1"], "2 processes are more than"),
                                            (["--sweep", "beta=1,2"], "without torchrun")])
def test_what_cannot_be_shared_is_refused(monkeypatch, tmp_path, flags, message):
    import train as script
    monkeypatch.setattr(vae, "workers", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    out = [] if "--sweep" in flags else ["--out", str(tmp_path)]
    with pytest.raises(vae.VAEError, match=message):
        script.main(["--dataset", "shapes", "--max_images", "300", *out, *flags])


# ── Start ───────────────────────────────────────────────────────────────────────────────────────

def test_a_start_imports_no_library_that_training_does_not_use():
    code = "import sys, train; print([m for m in ('matplotlib', 'sklearn', 'torchvision', 'torchmetrics', 'optuna', 'ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_memory_benchmark_measures_both_parts(tmp_path):
    done = subprocess.run([sys.executable, "benchmarks/memory.py", "--images", "200", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "memory.json").read_text())
    assert result["images"] == 200 and min(result[f"{part}_{key}"] for part in ("decode", "train") for key in ("seconds", "peak_gib")) > 0
    assert os.listdir(tmp_path) == ["memory.json"]


def test_the_benchmark_measures_both_loops(tmp_path):
    done = subprocess.run([sys.executable, "benchmarks/speed.py", "--rounds", "1", "--images", "256", "--no_growth", "--out", str(tmp_path)], cwd=ROOT,
                          env=os.environ | {"VAE_FAST": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert len(result["loops"]) == 4 and all(r["images_per_s"] > 0 and 0 < r["share_of_float32_peak"] for r in result["loops"].values())
    usual = max(r["images_per_s"] for name, r in result["loops"].items() if name.startswith("usual"))
    assert result["ratio"] == pytest.approx(result["loops"]["this project"]["images_per_s"] / usual)
    assert len({r["goal_nats"] for r in result["loops"].values()}) == 1 and result["peak_gib"] > 0.1 and result["start_s"] > result["import_s"]
