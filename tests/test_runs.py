"""Run folders: what is saved comes back to the last bit, or is refused in one sentence."""

import dataclasses
import io
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import SMALL, refused, same_weights, take

import vae_helpers as vae
from support import runs

KINDS = {
    "vae": {},
    "best": vae.PRESETS["best"] | {"ema": 0.9},
    "info_vae": {"model": "info_vae"},
    "cvae": {"model": "cvae"},
    # These are cut off in each stage, and between them.
    "grid_vae": {
        "model": "grid_vae",
        "epochs": 1,
        "prior_epochs": 2,
        "prior_width": 16,
        "prior_dropout": 0.2,
    },
    "two levels": {"model": "grid_vae", "global_dim": 8, "prior_epochs": 0, "prior_width": 16},
    "vq_vae": {"model": "vq_vae", "epochs": 1, "prior_epochs": 2, "prior_width": 16},
}


@pytest.fixture
def config(few):
    return vae.config_for(few, **SMALL, epochs=2)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "run"


def stop_after(epoch):
    """An on_epoch that ends the run after an epoch, which must be the first that it trains."""

    def on_epoch(history):
        assert len(history) == epoch
        raise KeyboardInterrupt

    return on_epoch


def stop_at(epoch):
    """An on_epoch that ends the run after this many epochs."""

    def on_epoch(history):
        if len(history) == epoch:
            raise KeyboardInterrupt

    return on_epoch


def train_until(epoch, config, data, folder):
    with pytest.raises(KeyboardInterrupt):
        runs.train_run(config, data, folder, on_epoch=stop_after(epoch))


def without_seconds(record):
    history = [row | {"seconds": None} for row in record["history"]]
    return record | {"history": history, "seconds": None}


def test_a_run_that_was_cut_off_as_it_ended_early_is_not_trained_further(few, folder):
    negatives = vae.Split(255 - few.val.images, few.val.labels)  # learning makes these worse
    other = dataclasses.replace(few, val=negatives)
    config = vae.config_for(other, **SMALL, epochs=9, patience=1, lr=1e-2)
    train_until(1, config, other, folder)
    ended = runs.train_run(config, other, folder)
    epochs = len(ended.record["history"])
    assert epochs < 9
    again = folder.with_name("again")
    with pytest.raises(KeyboardInterrupt):
        runs.train_run(config, other, again, on_epoch=stop_at(epochs))
    same = runs.train_run(config, other, again)
    assert without_seconds(same.record) == without_seconds(ended.record)


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_gives_back_the_model_and_the_record(few, folder, half):
    config = vae.config_for(few, **SMALL, norm="batch", likelihood="gaussian", epochs=1)
    model = vae.build_model(config)
    vae.fit(model, few, config)
    vae.save_checkpoint(model, folder, {"note": [1, 2.5, "β"]}, half=half)
    again, record = vae.load_checkpoint(folder)
    assert again.config == config
    assert record["note"] == [1, 2.5, "β"]
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert not again.training
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert record["weights_sha256"] == vae.digest(weights)
    assert same_weights(model, again) != half
    before, after = (vae.evaluate(m, few.test.images) for m in (model, again))
    assert after["total_nats"] == pytest.approx(before["total_nats"], abs=2 if half else 1e-9)


def cut(content):
    return content[:-20]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def change(path, to):
    path.write_bytes(to(path.read_bytes()))


@pytest.mark.parametrize(
    "file, damage",
    [
        ("model.json", None),
        ("model.safetensors", None),
        ("model.safetensors", cut),
        ("model.safetensors", flip),
        ("model.json", lambda _: b"[1, 2]"),
        ("model.json", lambda text: text.replace(b'"latent_dim": 4', b'"latent_dim": 5')),
    ],
)
def test_a_missing_damaged_or_foreign_file_is_refused_in_one_sentence(model, folder, file, damage):
    vae.save_checkpoint(model, folder)
    if damage:
        change(folder / file, damage)
    else:
        (folder / file).unlink()
    with refused(vae.CheckpointError, str(folder)):
        vae.load_checkpoint(folder)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_that_is_loaded_can_run_code(few, config, folder, tmp_path, capsys):
    mark = tmp_path / "mark"
    evil = saved({"record": {}, "state": Evil(mark)})
    for content in (evil, pickle.dumps(Evil(mark))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / runs.UNFINISHED).write_bytes(content)
        with pytest.raises(vae.CheckpointError):
            runs.load_run(folder)
        runs.train_run(config, few, folder)
        assert "Skipped" in capsys.readouterr().out
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(vae.CheckpointError):
            vae.load_checkpoint(folder)
    assert not mark.exists()
    torch.load(io.BytesIO(evil), weights_only=False)
    assert mark.exists()  # the attack itself works


def test_a_full_disk_leaves_the_old_files_and_no_others(few, config, folder, monkeypatch):
    write = Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    first = runs.train_run(config, few, folder)
    train_until(1, config, few, folder)  # over the finished run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        vae.save_checkpoint(first.model, folder)
    with pytest.raises(OSError, match="No space left"):
        runs.train_run(config, few, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS)
def test_a_run_cut_off_after_every_epoch_ends_with_the_same_bits(few, folder, tmp_path, choices):
    config = vae.config_for(few, **SMALL | {"epochs": 3, "lr": 3e-3} | choices)
    whole = runs.train_run(config, few, tmp_path / "whole")
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)  # the global random state has no part in it
        train_until(epoch, config, few, folder)
        assert [path.name for path in folder.iterdir()] == [runs.UNFINISHED]
    resumed = runs.train_run(config, few, folder, on_epoch=stop_after(4))
    assert same_weights(resumed.model, whole.model)
    assert without_seconds(resumed.record) == without_seconds(whole.record)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert same_weights(vae.load_checkpoint(folder)[0], whole.model)


def test_an_unfinished_run_is_as_after_its_last_epoch_and_counts_before_a_finished_one(
    few, config, folder
):
    runs.train_run(config, few, folder)
    anew = dataclasses.replace(config, seed=7, ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        runs.train_run(anew, few, folder, resume=False, on_epoch=stop_after(1))
    model, record = runs.load_run(folder)
    assert model.config == anew
    [row] = record["history"]
    losses = vae.image_losses(model, few.val.images)[0]
    assert row["val_reconstruction_nats"] == losses.mean().item()
    assert runs.finished_run(folder, anew, few) is None  # so that train.py --resume goes on
    runs.train_run(anew, few, folder)
    assert runs.finished_run(folder, anew, few).config == anew


def test_a_run_that_goes_on_in_another_precision_says_so(few, config, folder, monkeypatch, capsys):
    train_until(1, config, few, folder)
    monkeypatch.setenv("VAE_PRECISION", "bfloat16")
    assert len(runs.train_run(config, few, folder).record["history"]) == 2
    assert "set VAE_PRECISION=float32 to go on as it was" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [cut, flip, lambda _: saved({"other": 1})])
def test_a_damaged_or_foreign_state_is_named_and_trained_anew(few, config, folder, capsys, damage):
    train_until(1, config, few, folder)
    change(folder / runs.UNFINISHED, damage)
    with refused(vae.CheckpointError, "train again"):
        runs.load_run(folder)
    assert len(runs.train_run(config, few, folder).record["history"]) == 2
    assert f"Skipped: {folder / runs.UNFINISHED}" in capsys.readouterr().out


def test_a_state_of_other_settings_or_images_is_refused_and_kept(few, config, folder):
    train_until(1, config, few, folder)
    before = (folder / runs.UNFINISHED).read_bytes()
    others = ((few, dataclasses.replace(config, beta=2.0)), (take(few, 95, 16, 16), config))
    for data, other in others:
        with refused(vae.VAEError, str(folder), "--overwrite"):
            runs.train_run(other, data, folder)
    assert (folder / runs.UNFINISHED).read_bytes() == before
    runs.train_run(others[0][1], few, folder, resume=False)  # what --overwrite does


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_settings_on_other_images_have_a_folder_of_their_own(few, config, finished):
    if finished:
        first = runs.train_run(config, few)
    else:
        train_until(1, config, few, runs.run_folder(config, few))
    fewer = take(few, 95, 16, 16)
    folder, other = runs.run_folder(config, few), runs.run_folder(config, fewer)
    assert folder.name == runs.run_name(config) and other != folder
    runs.train_run(config, fewer)
    again = runs.train_run(config, few) if not finished else runs.own_run(config, few)
    assert len(again.record["history"]) == 2
    assert not finished or same_weights(again.model, first.model)
    assert runs.own_run(config, fewer).origin == f"your run {other.name}"


def test_VAE_TRAIN_trains_and_the_readers_own_run_goes_before_the_released_one(
    few, config, monkeypatch, capsys
):
    runs.train_run(config, few, runs.RELEASED / "one")
    monkeypatch.setenv("VAE_TRAIN", "1")
    first = runs.load_or_train(config, few)
    monkeypatch.delenv("VAE_TRAIN")
    again = runs.load_or_train(config, few)
    assert first.origin == "trained now"
    assert again.origin == f"your run {runs.run_name(config)}"
    assert again.origin in capsys.readouterr().out
    assert same_weights(again.model, first.model)
    assert again.record["test"] == first.record["test"] == vae.evaluate(first.model, *few.test)


def test_only_a_whole_finished_run_of_the_same_config_and_images_is_taken(few, config, capsys):
    root = runs.runs_root()
    train_until(1, config, few, root / "unfinished")
    runs.train_run(dataclasses.replace(config, beta=2.0), few)
    runs.train_run(config, take(few, 95, 16, 16), root / "fewer images")
    vae.save_checkpoint(vae.build_model(config), root / "no record")
    runs.train_run(config, few, root / "damaged")
    change(root / "damaged" / "model.safetensors", cut)
    assert runs.load_or_train(config, few).origin == "trained now"
    assert f"Skipped: {root / 'damaged' / 'model.safetensors'}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda _: b"[1, 2]", cut])
def test_a_damaged_released_record_is_named_and_passed_over(few, config, capsys, damage):
    runs.train_run(config, few, runs.RELEASED / "b")
    runs.train_run(dataclasses.replace(config, seed=1), few, runs.RELEASED / "a")
    change(runs.RELEASED / "a" / "model.json", damage)
    assert runs.load_or_train(config, few).origin == "released weights b"
    assert f"Skipped: {runs.RELEASED / 'a' / 'model.json'}" in capsys.readouterr().out


def test_released_weights_serve_where_the_reader_has_none(few, config, capsys):
    released = runs.train_run(config, few, runs.RELEASED / "one")
    run = runs.load_or_train(config, few)
    assert run.origin == "released weights one"
    assert same_weights(run.model, released.model)
    assert "Note" not in capsys.readouterr().out
    runs.load_or_train(config, take(few, 95, 16, 16))
    assert "not exactly yours" in capsys.readouterr().out
    assert runs.load_or_train(dataclasses.replace(config, seed=1), few).origin == "trained now"
    (runs.RELEASED / "one" / "model.safetensors").unlink()
    run = runs.load_or_train(config, few, weights=False)
    assert run.model is None
    assert run.record["test"] == released.record["test"]
    assert runs.load_or_train(config, few).origin == "trained now"


@pytest.mark.parametrize(
    "file, damage", [("model.json", cut), ("model.safetensors", cut), ("model.safetensors", None)]
)
def test_a_finished_run_that_is_damaged_is_refused_and_kept(few, config, folder, file, damage):
    runs.train_run(config, few, folder)
    if damage:
        change(folder / file, damage)
    else:
        (folder / file).unlink()
    with refused(vae.VAEError, "--overwrite"):
        runs.finished_run(folder, config, few)


def test_a_finished_run_of_other_settings_is_not_trained_over(few, config, folder):
    first = runs.train_run(config, few, folder)
    with refused(vae.VAEError, "--overwrite"):
        runs.train_run(dataclasses.replace(config, beta=2.0), few, folder)
    assert same_weights(vae.load_checkpoint(folder)[0], first.model)
