"""Nothing that is opened can run code, released files fit their checksums, and numbers do not depend on how they were computed."""
from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, SMALL, paint_noise
from test_scripts import refused

import evaluate
import train
import vae_helpers as vae

OURS = [p for p in ROOT.rglob("*.py") if not {".venv", "tests", "runs", "data"} & set(p.relative_to(ROOT).parts)]
RELEASED = sorted(p.parent for p in (ROOT / "checkpoints").glob("*/model.json"))


# ── Nothing runs ────────────────────────────────────────────────────────────────────────────────

def code_of(path):
    return [path.read_text()] if path.suffix == ".py" else ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", [*OURS, *(ROOT / "notebooks").glob("*.ipynb")], ids=lambda p: p.name)
def test_no_file_of_the_project_unpickles_or_evaluates(path):
    """pickle and what is made of it, and Python's own eval and exec. np.load has allow_pickle off unless told."""
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib.load", "shelve", "marshal", "torch.load", "torch.jit.load", "torch.hub.load", "eval", "exec", "os.system"}
    for source in code_of(path):
        source = "\n".join(line for line in source.split("\n") if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)] if isinstance(node, ast.ImportFrom) else []
            names += [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            assert not {n for n in names if n in forbidden or n.split(".")[0] in forbidden}, f"{path.name}: {ast.unparse(node)}"
            assert not (isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell") and ast.unparse(node.value) != "False")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def evil_files(mark):
    """The same attack as .pkl, .pt and .npy."""
    folder = mark.parent / "evil"
    folder.mkdir()
    torch.save(Evil(mark), folder / "pt")
    np.save(folder / "npy", np.array([Evil(mark)], dtype=object), allow_pickle=True)
    (folder / "pkl").write_bytes(pickle.dumps(Evil(mark)))
    return [(folder / name).read_bytes() for name in ("pt", "npy.npy", "pkl")]


def test_the_attack_itself_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", vae.TRAINING])
def test_a_run_with_code_in_a_file_is_refused_and_not_run(model, tmp_path, capsys, file):
    for content in evil_files(tmp_path / "mark"):
        run = vae.save_checkpoint(model, tmp_path / "run")
        (run / file).write_bytes(content)
        with pytest.raises(vae.CheckpointError):
            vae.load_checkpoint(run)
        refused(evaluate.main, ["--run", run], capsys)
        assert not (tmp_path / "mark").exists()


def test_images_data_sets_and_caches_with_code_in_them_are_not_run(tmp_path, monkeypatch):
    """Also torchvision's CIFAR-10, which is a pickle: only one whose checksum is the published one is read."""
    attacks = evil_files(tmp_path / "mark")
    folder = paint_noise(tmp_path / "mine", 30)
    for i, content in enumerate(attacks):
        (folder / f"evil{i}.png").write_bytes(content)
    data = vae.load_dataset("folder", data_dir=folder, image_size=16)
    [cache] = (tmp_path / "cache").iterdir()
    batches = tmp_path / "data" / "cifar-10-batches-py"
    raw, processed = tmp_path / "data" / "MNIST" / "raw", tmp_path / "data" / "MNIST" / "processed"
    for place in (batches, raw, processed):
        place.mkdir(parents=True)
    for content in attacks:
        cache.write_bytes(content)
        assert torch.equal(vae.load_dataset("folder", data_dir=folder, image_size=16).train.images, data.train.images)
        for name in ("test_batch", "batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
            (batches / name).write_bytes(content)
        for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            (raw / name).write_bytes(content)
        for name in ("training.pt", "test.pt"):   # torchvision still reads these of long ago
            (processed / name).write_bytes(content)
        for name in ("cifar10", "mnist"):
            with pytest.raises(vae.DatasetUnavailable):
                vae.load_dataset(name, download=False)
    assert not (tmp_path / "mark").exists()


def test_a_study_with_code_in_it_is_not_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("VAE_FAST", "1")
    for i, content in enumerate(evil_files(tmp_path / "mark")):
        (tmp_path / f"{i}.db").write_bytes(content)
        refused(train.main, ["--dataset", "shapes", "--sweep", "beta=1,2", "--study", tmp_path / f"{i}.db"], capsys)
    assert not (tmp_path / "mark").exists()


# ── Released files ──────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("folder", RELEASED, ids=lambda p: p.name)
def test_released_files_carry_checksums_that_fit(folder):
    record = json.loads((folder / "model.json").read_text())
    assert record["format"] == vae.FORMAT and record["sha256"] == vae._seal(record)
    if (folder / "model.safetensors").exists():
        assert record["weights_sha256"] == vae._digest(safetensors.torch.load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("file", ["features.safetensors", "features.json"])
def test_a_changed_feature_network_is_refused(tmp_path, monkeypatch, file):
    vae.load_feature_net()
    shutil.copytree(ROOT / "checkpoints" / "features", tmp_path / "checkpoints" / "features")
    path = tmp_path / "checkpoints" / "features" / file
    content = path.read_bytes()
    monkeypatch.setattr(vae, "HERE", tmp_path)
    for damaged in (content[:-5], content[:-3] + bytes([content[-3] ^ 1]) + content[-2:] if file != "features.json" else content.replace(b'sha256": "', b'sha256": "0')):
        path.write_bytes(damaged)
        with pytest.raises(vae.CheckpointError):
            vae.load_feature_net()


# ── Numbers do not depend on how they are computed ──────────────────────────────────────────────

@pytest.fixture(params=[{}, {"norm": "batch", "likelihood": "gaussian"}, {"model": "cvae"}, {"model": "vq_vae", "codebook": 16}], ids=["vae", "batch norm", "cvae", "vq_vae"])
def some_model(request, shapes, tmp_path):
    return vae.train_run(vae.config_for(shapes, **SMALL, epochs=1, **request.param), shapes, tmp_path / "run").model


@pytest.mark.parametrize("part", [1, 7])
def test_codes_and_pictures_do_not_depend_on_how_many_are_computed_at_once(some_model, shapes, part):
    images, labels = shapes.test
    mu, logvar = vae.encode_images(some_model, images, labels)
    pieces = [vae.encode_images(some_model, i, c) for i, c in zip(images.split(part), labels.split(part))]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([m for m, _ in pieces]), mu, **close)
    torch.testing.assert_close(torch.cat([v for _, v in pieces]), logvar, **close)
    pictures = torch.cat([vae.decode_images(some_model, z, c) for z, c in zip(mu.split(part), labels.split(part))])
    torch.testing.assert_close(pictures, vae.decode_images(some_model, mu, labels), **close)


def test_what_evaluate_measures_does_not_depend_on_the_number_of_threads(some_model, shapes):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(vae.evaluate(some_model, *shapes.test))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_decoded_images_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    folder, found = paint_noise(tmp_path / "mine", 12), []
    (folder / "broken.png").write_bytes(b"no image")
    for workers in (1, 3, 16):
        monkeypatch.setenv("VAE_CACHE", str(tmp_path / f"cache{workers}"))
        monkeypatch.setattr(vae, "ThreadPool", lambda workers=workers: ThreadPool(workers))
        data = vae.load_dataset("folder", data_dir=folder, image_size=16)
        found.append([t for split in (data.train, data.val, data.test) for t in split])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_a_run_does_not_depend_on_the_hash_seed_or_the_environment_of_its_process(tmp_path):
    """The same command in two processes writes the same weights, to the last bit."""
    flags = ["--dataset", "shapes", "--max_images", "64", "--latent_dim", "4", "--width", "8", "--batch_size", "32"]
    for seed in ("1", "2"):
        subprocess.run([sys.executable, str(ROOT / "train.py"), *flags, "--out", str(tmp_path / seed)], check=True, capture_output=True,
                       env=os.environ | {"VAE_FAST": "1", "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    assert (tmp_path / "1" / "model.safetensors").read_bytes() == (tmp_path / "2" / "model.safetensors").read_bytes()
