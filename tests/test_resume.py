"""A run that is cut off goes on from its last finished epoch, and ends as if nothing had happened: to the last bit on a CPU."""
from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, take
from test_scripts import refused

import evaluate
import train
import vae_helpers as vae

KINDS = {
    "vae": {}, "fc": {"arch": "fc", "width": 32}, "ae": {"model": "ae"}, "gaussian": {"likelihood": "gaussian"},
    "batch norm, residual": {"norm": "batch", "residual": 1}, "maxpool": {"downsample": "maxpool"},
    "one-cycle": {"schedule": "one_cycle"}, "EMA": {"ema": 0.9}, "kl_warmup": {"kl_warmup": 3},
    "best": {**vae.PRESETS["best"], "ema": 0.99}, "info_vae": {"model": "info_vae"}, "wae": {"model": "wae"},
    "cvae": {"model": "cvae"}, "vq_vae": {"model": "vq_vae", "codebook": 16}, "vq_vae fc, EMA": {"model": "vq_vae", "codebook": 16, "arch": "fc", "ema": 0.9},
}


class Cut(BaseException):
    """Stands for whatever ends a process."""


def cut_after(epoch):
    def on_epoch(history):
        if len(history) == epoch:
            raise Cut
    return on_epoch


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def alike(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def few(shapes):
    return take(shapes, 96, 16, 16)


@pytest.mark.parametrize("choices", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("after", [1, 3], ids=["in the middle", "after the last epoch"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(few, tmp_path, choices, after):
    config = vae.config_for(few, **SMALL | {"epochs": 3, "lr": 3e-3} | choices)
    whole = vae.train_run(config, few, tmp_path / "whole")
    with pytest.raises(Cut):
        vae.train_run(config, few, tmp_path / "cut", on_epoch=cut_after(after))
    torch.manual_seed(after)   # the global state has no part in it
    again = vae.train_run(config, few, tmp_path / "cut")
    assert alike(again.model.state_dict(), whole.model.state_dict())
    assert without_seconds(again.record["history"]) == without_seconds(whole.record["history"])
    assert again.record["test"] == whole.record["test"]
    assert alike(vae.load_checkpoint(tmp_path / "cut")[0].state_dict(), whole.model.state_dict())


def test_it_goes_on_after_every_epoch_in_turn_and_trains_none_twice(few, tmp_path, capsys):
    config, trained = vae.config_for(few, **SMALL, epochs=4), []
    for epoch in (1, 2, 3):
        with pytest.raises(Cut):
            vae.train_run(config, few, tmp_path / "run", on_epoch=lambda h, epoch=epoch: (trained.append(len(h)), cut_after(epoch)(h)))
    run = vae.train_run(config, few, tmp_path / "run", on_epoch=lambda h: trained.append(len(h)))
    assert trained == [1, 2, 3, 4] and "going on after epoch 3 of 4" in capsys.readouterr().out
    assert alike(run.model.state_dict(), vae.train_run(config, few, tmp_path / "whole").model.state_dict())
    seconds = [row["seconds"] for row in run.record["history"]]
    assert seconds == sorted(seconds)   # the clock goes on, too


def test_a_run_folder_is_one_file_while_it_is_trained_and_two_when_it_is_finished(few, tmp_path):
    config, seen = vae.config_for(few, **SMALL, epochs=2), []
    vae.train_run(config, few, tmp_path / "run", on_epoch=lambda _: seen.append(sorted(p.name for p in (tmp_path / "run").iterdir())))
    assert seen == [[vae.TRAINING]] * 2
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("step", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("before", ["nothing", "another run"])
def test_a_kill_while_the_result_is_written_leaves_the_last_epoch(few, tmp_path, monkeypatch, step, before):
    """The weights of one run never stand beside the record of another."""
    config, write = vae.config_for(few, **SMALL, epochs=1), vae._write_atomically
    whole = vae.train_run(config, few, tmp_path / "whole")
    if before == "another run":
        vae.train_run(dataclasses.replace(config, seed=1), few, tmp_path / "run")

    def killed(path, content):
        if path.name == step:
            raise Cut
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(vae, "_write_atomically", killed)
        vae.train_run(config, few, tmp_path / "run")
    model, record = vae.load_checkpoint(tmp_path / "run")
    assert record["config"]["seed"] == 0 and "test" not in record and alike(model.state_dict(), whole.model.state_dict())
    assert vae.train_run(config, few, tmp_path / "run").record["test"] == whole.record["test"]


def test_a_run_begun_on_another_kind_of_device_goes_on(few, tmp_path, monkeypatch):
    """A CUDA generator has 16 bytes of state, a CPU's 5,056: it cannot be handed on, the weights can."""
    config = vae.config_for(few, **SMALL, epochs=2)
    load = vae._read_training
    with pytest.raises(Cut):
        vae.train_run(config, few, tmp_path / "run", on_epoch=cut_after(1))
    monkeypatch.setattr(vae, "_read_training", lambda f: (lambda c, r, s: (c, r, s | {"noise_rng": torch.zeros(16, dtype=torch.uint8)}))(*load(f)))
    assert len(vae.train_run(config, few, tmp_path / "run").record["history"]) == 2


def test_another_precision_than_it_was_begun_in_is_told(few, unfinished, monkeypatch, capsys):
    config, folder = unfinished
    monkeypatch.setenv("VAE_PRECISION", "bfloat16")
    vae.train_run(config, few, folder)
    assert "begun in float32 and goes on in bfloat16" in (said := capsys.readouterr().out) and "VAE_PRECISION=float32" in said


# ── When it starts anew ─────────────────────────────────────────────────────────────────────────

@pytest.fixture
def unfinished(few, tmp_path):
    """The config and the folder of a run of three epochs that was cut off after the first."""
    config = vae.config_for(few, **SMALL, epochs=3)
    with pytest.raises(Cut):
        vae.train_run(config, few, tmp_path / "run", on_epoch=cut_after(1))
    return config, tmp_path / "run"


def test_resume_false_starts_anew_and_loses_the_old_epoch_only_for_a_new_one(few, unfinished):
    config, folder = unfinished
    before = (folder / vae.TRAINING).read_bytes()
    with pytest.raises(Cut):
        vae.train_run(config, few, folder, resume=False, on_epoch=lambda history: cut_after(1)(history))
    after = (folder / vae.TRAINING).read_bytes()
    assert before != after and len(vae.read_record(folder)[1]["history"]) == 1   # other seconds


@pytest.mark.parametrize("damage, says", [
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"), (lambda path: path.write_bytes(b""), "damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x99"), "checksum")], ids=["cut", "empty", "flipped"])
def test_a_damaged_state_is_named_passed_over_and_trained_anew(few, unfinished, capsys, damage, says):
    config, folder = unfinished
    damage(folder / vae.TRAINING)
    with pytest.raises(vae.CheckpointError, match=says):
        vae.load_checkpoint(folder)
    assert len(vae.train_run(config, few, folder).record["history"]) == 3
    assert "Passed over" in (said := capsys.readouterr().out) and says in said


def test_a_state_of_other_settings_or_images_is_passed_over(few, shapes, unfinished, capsys):
    config, folder = unfinished
    assert len(vae.train_run(dataclasses.replace(config, beta=2.0, epochs=1), few, folder).record["history"]) == 1
    assert "other settings or images" in capsys.readouterr().out
    with pytest.raises(Cut):
        vae.train_run(config, few, folder, on_epoch=cut_after(2))
    vae.train_run(config, take(shapes, 95, 16, 16), folder)
    assert "other settings or images" in capsys.readouterr().out


# ── train.py, evaluate.py, notebooks ────────────────────────────────────────────────────────────

COMMAND = ["--dataset", "shapes", "--epochs", "3", "--batch_size", "32", "--latent_dim", "4", "--width", "8", "--max_images", "96"]


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setenv("VAE_FAST", "1")
    monkeypatch.setenv("VAE_EPOCHS", "3")


def cut_off(monkeypatch, epoch, *arguments):
    """train.main that ends with Cut after an epoch."""
    save = vae._save_tensors
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(vae, "_save_tensors", lambda path, state, record: (save(path, state, record), cut_after(epoch)(record["history"])))
        train.main([*COMMAND, *arguments])


def test_resume_in_the_shell_goes_on_and_without_it_the_run_starts_anew(fast, monkeypatch, tmp_path, capsys):
    whole = train.main([*COMMAND, "--out", str(tmp_path / "whole")])
    cut_off(monkeypatch, 2)
    capsys.readouterr()
    again = train.main([*COMMAND, "--resume"])
    assert "going on after epoch 2 of 3" in capsys.readouterr().out
    assert alike(again.model.state_dict(), whole.model.state_dict())
    cut_off(monkeypatch, 2)   # over the finished run
    assert alike(train.main(COMMAND).model.state_dict(), whole.model.state_dict())
    assert "going on" not in capsys.readouterr().out


def test_resume_of_a_finished_run_trains_nothing_and_of_none_begins(fast, monkeypatch, capsys):
    first = train.main([*COMMAND, "--resume"])
    monkeypatch.setattr(vae, "train_run", None)
    again = train.main([*COMMAND, "--resume"])
    assert again.record["test"] == first.record["test"] and "saved in" in capsys.readouterr().out


def test_resume_never_overwrites_another_run(fast, tmp_path, capsys):
    folder = ["--out", str(tmp_path / "run")]
    train.main([*COMMAND, *folder])
    before = (tmp_path / "run" / "model.json").read_bytes()
    assert "another run (beta 1.0)" in refused(train.main, [*COMMAND, *folder, "--resume", "--beta", "2"], capsys)
    assert (tmp_path / "run" / "model.json").read_bytes() == before


def test_a_trial_of_a_sweep_goes_on_where_it_was_stopped(fast, monkeypatch, tmp_path, capsys):
    pytest.importorskip("optuna")
    points = ["--sweep", "beta=1,2", "--prune"]
    cut_off(monkeypatch, 2, *points)
    results = train.main([*COMMAND, *points])
    assert "going on after epoch 2 of 3" in capsys.readouterr().out
    assert [row["state"] for row in results["trials"]] == ["finished"] * 2
    monkeypatch.setenv("VAE_RUNS", str(tmp_path / "whole"))
    whole = train.main([*COMMAND, *points])
    assert [row["total_nats"] for row in whole["trials"]] == [row["total_nats"] for row in results["trials"]]


def test_an_unfinished_run_is_evaluated_as_it_is(fast, monkeypatch):
    cut_off(monkeypatch, 2)
    assert evaluate.main(["--num_samples", "2", "--quick"])["test"]["total_nats"] > 0


def test_the_cell_again_goes_on(few, monkeypatch, capsys):
    config = vae.config_for(few, **SMALL, epochs=3)
    with pytest.raises(Cut):
        vae.train_run(config, few, on_epoch=cut_after(2))
    run = vae.load_or_train(config, few)
    assert "going on after epoch 2 of 3" in capsys.readouterr().out and run.origin == "trained now"
    assert vae.load_or_train(config, few).origin.startswith("your run")


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────

def interrupt_after(epoch):
    def on_epoch(history):
        if len(history) == epoch:
            raise KeyboardInterrupt
    return on_epoch


def test_ctrl_c_says_what_was_saved_and_how_to_go_on(few, tmp_path):
    config = vae.config_for(few, **SMALL, epochs=3)
    with pytest.raises(vae.Stopped) as stopped:
        vae.train_run(config, few, tmp_path / "run", on_epoch=interrupt_after(2))
    message = str(stopped.value)
    assert "epoch 2 of 3" in message and "--resume" in message and "this cell again" in message and "\n" not in message
    call = message[message.index("vae.load_checkpoint"):message.index(" gives")]
    model, record = eval(call)   # what it says works as it stands there
    assert len(record["history"]) == 2 and vae.sample_images(model, 2).isfinite().all()


def test_ctrl_c_in_the_middle_of_a_validation_leaves_gradients_on(few, tmp_path, monkeypatch):
    """A generator that is left within no_grad is closed too late, and then turns gradients off for good."""
    config, nats = vae.config_for(few, **SMALL, epochs=2), vae.code_nats
    with monkeypatch.context() as patch, pytest.raises(vae.Stopped):
        patch.setattr(vae, "code_nats", lambda model, out: nats(model, out) if model.training else (_ for _ in ()).throw(KeyboardInterrupt))
        vae.train_run(config, few, tmp_path / "run")
    assert torch.is_grad_enabled()
    vae.train_run(config, few, tmp_path / "run")


def test_ctrl_c_in_a_second_training_says_how_to_go_back_to_the_finished_first(few, tmp_path, capsys):
    config = vae.config_for(few, **SMALL, epochs=2)
    first = vae.train_run(config, few, tmp_path / "run")
    assert capsys.readouterr().out == ""
    with pytest.raises(vae.Stopped, match=f"delete {vae.TRAINING} to go back"):
        vae.train_run(dataclasses.replace(config, seed=1), few, tmp_path / "run", on_epoch=interrupt_after(1))
    assert f"delete {vae.TRAINING} to go back" in capsys.readouterr().out
    (tmp_path / "run" / vae.TRAINING).unlink()
    assert alike(vae.load_checkpoint(tmp_path / "run")[0].state_dict(), first.model.state_dict())


def test_ctrl_c_right_after_an_epoch_was_written_says_that_it_is_saved(few, tmp_path, monkeypatch):
    """Between the writing and everything after it."""
    save = vae._save_tensors
    monkeypatch.setattr(vae, "_save_tensors", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(vae.Stopped, match="holds epoch 1 of 3"):
        vae.train_run(vae.config_for(few, **SMALL, epochs=3), few, tmp_path / "run", on_epoch=None)


def test_ctrl_c_in_the_first_epoch_says_that_nothing_is_saved(few, tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "image_losses", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(vae.Stopped, match="nothing to save yet"):
        vae.train_run(vae.config_for(few, **SMALL), few, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_notebook_shows_the_sentence_in_place_of_a_traceback(few, tmp_path):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.append("\n".join(lines))
    shell.push({"vae": vae, "few": few, "config": vae.config_for(few, **SMALL), "folder": tmp_path / "run", "stop": interrupt_after(1)})
    shell.run_cell("run = vae.train_run(config, few, folder, on_epoch=stop)")
    [text] = shown
    assert text.startswith("Stopped. ") and "\n" not in text
    shell.run_cell("model, record = vae.load_checkpoint(folder)\nn = len(record['history'])")
    assert shell.user_ns["n"] == 1


def test_ctrl_c_in_the_shell_ends_in_one_line_and_resume_goes_on(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "VAE_FAST": "1", "VAE_EPOCHS": "100000", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(ROOT / "train.py"), *COMMAND, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # shells let background jobs, like these tests, ignore it
    end = time.time() + 100
    while not (tmp_path / "run" / vae.TRAINING).exists() and process.poll() is None and time.time() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and said.strip().startswith("Stopped. ") and said.strip().count("\n") == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [vae.TRAINING]
    assert len(vae.load_checkpoint(tmp_path / "run")[1]["history"]) >= 1
