"""train.py and evaluate.py as a user types them, with tiny settings; what goes wrong ends in one line and exit code 2."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, paint, paint_noise
from PIL import Image

import evaluate
import train
import vae_helpers as vae

TINY = ["--epochs", "1", "--batch_size", "64", "--latent_dim", "8", "--width", "4", "--max_images", "128"]


def shell(script, *arguments, cwd=ROOT):
    """Run a script as a user does; the tests' environment (no download, folders in tmp_path) is inherited."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "VAE_FAST": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, env=env, capture_output=True,
                          text=True, encoding="utf-8", timeout=120, check=False)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setenv("VAE_FAST", "1")


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory):
    """A folder that `train.py --dataset shapes` wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_FAST", "1")
        folder = tmp_path_factory.mktemp("scripts") / "run"
        train.main([*TINY, "--dataset", "shapes", "--out", str(folder)])
        return folder


def copy_of(run, folder):
    model, record = vae.load_checkpoint(run)
    return vae.save_checkpoint(model, folder, record)


@pytest.mark.parametrize("name, value", [("VAE_EPOCHS", "many"), ("VAE_PRECISION", "half"), ("VAE_DEVICE", "abacus")])
def test_a_wrong_variable_is_told_before_any_image_is_loaded(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(vae, "load_dataset", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(vae.VAEError, match=f"{name}|epochs"):
        train.main(["--dataset", "shapes"])


# ── The two commands ────────────────────────────────────────────────────────────────────────────

def test_train_and_evaluate_from_the_shell(tmp_path):
    """The newest run is evaluated when none is named; works from any folder."""
    trained = shell("train.py", "--epochs", "1", "--batch_size", "64", "--latent_dim", "8", "--dataset", "shapes", "--max_images", "256",
                    cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert "256 training, 256 validation, 256 test images of 3x32x32" in trained.stdout and f"evaluate.py --run {run}" in trained.stdout
    evaluated = shell("evaluate.py", "--num_samples", "10", "--quick", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["run"] == str(run)
    assert "Traceback" not in trained.stderr + evaluated.stderr


def test_help_from_the_shell_names_every_field_of_config_with_its_help(tmp_path):
    shown = shell("train.py", "--help")
    assert shown.returncode == 0
    words = " ".join(shown.stdout.split())
    for f in dataclasses.fields(vae.Config):
        if f.name not in ("channels", "conditions"):   # follow from the data
            assert f"--{f.name} " in shown.stdout
            assert " ".join(f.metadata["help"].split()[:4]) in words


def test_a_mistake_in_the_shell_ends_in_one_line_and_exit_code_2(tmp_path):
    wrong = shell("train.py", *TINY, "--dataset", "folder", "--data_dir", tmp_path / "nowhere")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1 and "nowhere" in wrong.stderr


def test_train_returns_the_run_that_it_saved(shapes_run):
    _, record = vae.read_record(shapes_run)
    assert record["config"]["latent_dim"] == 8 and record["config"]["batch_size"] == 64 and record["config"]["dataset"] == "shapes"
    assert record["data"]["train"] == 128 and len(record["history"]) == 1


@pytest.fixture(scope="session")
def evaluated(shapes_run, tmp_path_factory):
    """metrics and folder of `evaluate.py --num_samples 10 --npz --quick`; the whole of it runs in test_evaluation.py."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_FAST", "1")
        arguments = ["--num_samples", "10", "--num_interpolations", "6", "--npz", "--quick", "--out", str(out)]
        return evaluate.main(["--run", str(shapes_run), *arguments]), out


def test_evaluate_writes_what_it_returns_with_units_in_the_names(evaluated, shapes_run):
    metrics, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {"reconstruction_nats", "kl_nats", "total_nats", "total_nats_se", "floor_nats", "excess_nats", "mse", "active_dims",
            "images"} == set(metrics["test"])
    assert metrics["test"]["images"] == 256   # the whole test split, not --num_samples of it


def test_evaluate_measures_what_train_measured(evaluated, shapes_run):
    _, record = vae.read_record(shapes_run)
    assert evaluated[0]["test"] == pytest.approx(record["test"], rel=1e-5)


def test_evaluate_draws_its_pictures(evaluated):
    cells = {"reconstructions.png": (2, 16), "samples.png": (2, 8), "interpolations.png": (10, 6)}   # rows and columns of 32 pixels
    for name, (rows, columns) in cells.items():
        width, height = Image.open(evaluated[1] / name).size
        assert (height, width) == (3 * (2 + rows * 34), 3 * (2 + columns * 34))
    for name in ("losses.png", "traversals.png", "traversals.gif"):
        assert (evaluated[1] / name).exists()


def test_reconstructions_stand_beside_their_originals(evaluated, shapes_run, fast):
    picture = np.asarray(Image.open(evaluated[1] / "reconstructions.png"))[::3, ::3]
    original = vae.load_dataset("shapes").test.images[1]
    assert np.array_equal(picture[2:34, 2 + 2 * 34:2 + 2 * 34 + 32], original.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", ["samples", "reconstructions", "midpoints"])
def test_npz_batches_are_uint8_nhwc_as_fid_tools_read_them(evaluated, name):
    with np.load(evaluated[1] / f"{name}.npz") as f:
        assert f.files == ["arr_0"]
        assert f["arr_0"].shape == (10, 32, 32, 3) and f["arr_0"].dtype == np.uint8


def test_npz_samples_are_the_decoded_prior(evaluated, shapes_run):
    model, _ = vae.load_checkpoint(shapes_run)
    expected = (vae.sample_images(model, 10) * 255).round().permute(0, 2, 3, 1).numpy()
    with np.load(evaluated[1] / "samples.npz") as f:
        assert np.abs(f["arr_0"].astype(float) - expected).max() <= 1


def test_npz_reconstructions_are_those_of_the_first_test_images(evaluated, shapes_run, fast):
    model, _ = vae.load_checkpoint(shapes_run)
    images = vae.load_dataset("shapes").test.images[:10]
    expected = (vae.decode_images(model, vae.encode_images(model, images)[0]) * 255).round().permute(0, 2, 3, 1).numpy()
    with np.load(evaluated[1] / "reconstructions.npz") as f:
        assert np.abs(f["arr_0"].astype(float) - expected).max() <= 1


def test_npz_midpoints_lie_halfway_between_the_codes_of_neighbours(evaluated, shapes_run, fast):
    model, _ = vae.load_checkpoint(shapes_run)
    mu, _ = vae.encode_images(model, vae.load_dataset("shapes").test.images[:10])
    expected = (vae.decode_images(model, (mu + mu.roll(-1, 0)) / 2) * 255).round().permute(0, 2, 3, 1).numpy()
    with np.load(evaluated[1] / "midpoints.npz") as f:
        assert np.abs(f["arr_0"].astype(float) - expected).max() <= 1


def test_more_reconstructions_than_test_images_are_said_to_be_fewer(shapes_run, tmp_path, fast, capsys):
    evaluate.main(["--run", str(shapes_run), "--num_samples", "300", "--npz", "--quick", "--out", str(tmp_path)])
    assert "256 test images: that many reconstructions instead of 300" in capsys.readouterr().out
    for name, count in (("samples", 300), ("midpoints", 300), ("reconstructions", 256)):
        with np.load(tmp_path / f"{name}.npz") as f:
            assert len(f["arr_0"]) == count


# ── A user's own images ─────────────────────────────────────────────────────────────────────────

@pytest.fixture
def mixed_images(tmp_path):
    """30 grey, RGB and RGBA images of odd sizes, and one broken file."""
    for i in range(30):
        paint(tmp_path / "mine" / f"{i:02}.png", i % 10, (11 + i, 40 - i), ("L", "RGB", "RGBA")[i % 3])
    (tmp_path / "mine" / "broken.png").write_bytes(b"no image")
    return tmp_path / "mine"


def test_a_folder_of_odd_images_is_trained_on_and_evaluated(mixed_images, tmp_path, capsys):
    run = train.main([*TINY, "--dataset", "folder", "--data_dir", str(mixed_images), "--out", str(tmp_path / "run")])
    assert run.config.image_size == 64 and run.config.channels == 3
    assert "1 of 31 files could not be read" in (said := capsys.readouterr().out) and "broken.png" in said
    assert evaluate.main(["--run", str(tmp_path / "run"), "--num_samples", "2"])["measured_on"] == "mine"


def test_a_folder_that_has_moved_is_named_to_evaluate(mixed_images, tmp_path):
    train.main([*TINY, "--dataset", "folder", "--data_dir", str(mixed_images), "--out", str(tmp_path / "run")])
    mixed_images.rename(tmp_path / "moved")
    with pytest.raises(vae.DatasetUnavailable, match="--data_dir"):
        evaluate.main(["--run", str(tmp_path / "run")])
    assert evaluate.main(["--run", str(tmp_path / "run"), "--data_dir", str(tmp_path / "moved"), "--quick"])["measured_on"] == "moved"


@pytest.mark.parametrize("count", [3, 10])
def test_a_handful_of_images_is_enough(tmp_path, count):
    """3 to 19 images leave one for the test split: no pair to interpolate between."""
    paint_noise(tmp_path / "mine", count)
    train.main([*TINY, "--dataset", "folder", "--data_dir", str(tmp_path / "mine"), "--image_size", "16", "--out", str(tmp_path / "run")])
    metrics = evaluate.main(["--run", str(tmp_path / "run"), "--num_samples", "4", "--npz"])
    assert metrics["test"]["images"] == 1 and "likelihood" in metrics and "smoothness" not in metrics


def test_grey_images_are_trained_on_with_one_channel(tmp_path):
    paint_noise(tmp_path / "mine", 30, mode="L")
    run = train.main([*TINY, "--dataset", "folder", "--data_dir", str(tmp_path / "mine"), "--image_size", "28", "--out", str(tmp_path / "run")])
    assert run.config.channels == 1
    evaluate.main(["--run", str(tmp_path / "run"), "--num_samples", "3", "--npz", "--quick"])
    with np.load(tmp_path / "run" / "evaluation" / "samples.npz") as f:
        assert f["arr_0"].shape == (3, 28, 28, 1)


def test_a_depth_that_fits_the_images_is_accepted(tmp_path):
    """A folder's images are 64 pixels when no size is given: six halvings leave 1x1. 32 pixels would not allow them."""
    paint_noise(tmp_path / "mine", 5)
    arguments = [*TINY, "--dataset", "folder", "--data_dir", str(tmp_path / "mine"), "--depth", "6", "--width", "1", "--out", str(tmp_path / "run")]
    assert train.main(arguments).config.depth == 6


def test_without_a_dataset_the_drawn_shapes_stand_in_for_a_missing_cifar10(tmp_path, fast, capsys):
    run = train.main([*TINY, "--out", str(tmp_path / "run")])
    assert run.config.dataset == "shapes" and "Going on with `shapes`" in capsys.readouterr().out


def test_images_that_were_named_are_never_silently_replaced(mixed_images, tmp_path, fast):
    """--data_dir without --dataset folder trains on that folder or is refused; it does not train on other images."""
    try:
        run = train.main([*TINY, "--data_dir", str(mixed_images), "--out", str(tmp_path / "run")])
    except vae.VAEError:
        return
    assert run.config.dataset == "folder"


def test_every_choice_of_config_has_a_flag_that_reaches_the_run(tmp_path):
    """Every flag set to something that is not its default."""
    paint_noise(tmp_path / "mine", 30)
    chosen = {"dataset": "folder", "data_dir": str(tmp_path / "mine"), "max_images": 7, "image_size": 16, "model": "info_vae", "arch": "conv",
              "latent_dim": 3, "width": 5, "depth": 1, "downsample": "maxpool", "likelihood": "squared_error", "beta": 0.25, "mmd": 3.0, "epochs": 2,
              "batch_size": 4, "lr": 0.002, "seed": 9, "norm": "batch", "residual": 1, "kl_warmup": 1, "schedule": "one_cycle", "ema": 0.5}
    assert set(chosen) == {f.name for f in dataclasses.fields(vae.Config)} - {"channels", "conditions", "codebook"}   # data; vq_vae alone
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    run = train.main([*flags, "--out", str(tmp_path / "run")])
    assert run.config == vae.Config(**chosen, channels=3)


def test_the_default_folder_of_a_run_is_found_by_load_or_train(tmp_path, fast):
    """What train.py wrote, a notebook with the same choices loads."""
    trained = train.main([*TINY, "--dataset", "shapes", "--beta", "4"])
    data = vae.load_dataset("shapes", max_images=128)
    again = vae.load_or_train(vae.config_for(data, batch_size=64, latent_dim=8, width=4, beta=4, max_images=128), data)
    assert again.origin.startswith("your run")
    assert again.record["test"] == trained.record["test"]


# ── Mistakes ────────────────────────────────────────────────────────────────────────────────────

def refused(main, argv, capsys):
    """Run a script's main as the script does; it must end in one error line and exit code 2, and claim no success."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        vae.run_script(lambda: main([str(a) for a in argv]))
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert len(re.findall(r"^(?:.*: )?error: ", err, re.MULTILINE)) == 1 and "Traceback" not in err
    assert "saved" not in out and "written" not in out and "test:" not in out
    return err


@pytest.mark.parametrize("arguments, says", [
    (["--dataset", "imagenet"], "imagenet"), (["--dataset", "folder"], "--data_dir"), (["--epochs", "-1"], "epochs"), (["--epochs", "0"], "epochs"),
    (["--epochs", "many"], "--epochs"), (["--latent_dim", "0"], "latent_dim"), (["--batch_size", "0"], "batch_size"), (["--lr", "nan"], "lr"),
    (["--lr", "-1"], "lr"), (["--beta", "-1"], "beta"), (["--arch", "resnet"], "resnet"), (["--seed", "9" * 30], "seed"),
    (["--dataset", "shapes", "--depth", "9"], "depth"), (["--dataset", "shapes", "--image_size", "-5"], "image_size"),
    (["--dataset", "celeba"], "CelebA is not here"), (["--dataset", "shapes", "--max_images", "0"], "max_images"),
    (["--dataset", "shapes", "--lr", "1e30"], "smaller lr"), (["--epoch"], "--epoch"), (["--nonsense", "1"], "nonsense"),
    (["--norm", "layer"], "layer"), (["--residual", "-1"], "residual"), (["--schedule", "cosine"], "cosine"), (["--ema", "1"], "ema"),
    (["--kl_warmup", "-1"], "kl_warmup"), (["--arch", "fc", "--norm", "batch"], "arch conv")],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_train_refuses_in_one_line(arguments, says, fast, tmp_path, capsys):
    assert says in refused(train.main, [*TINY, *arguments, "--out", tmp_path / "run"], capsys)
    assert not (tmp_path / "run" / "model.json").exists()


def test_train_refuses_a_folder_without_images(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert "no images" in refused(train.main, [*TINY, "--dataset", "folder", "--data_dir", tmp_path / "mine"], capsys)


@pytest.mark.parametrize("value", ["0", "-2", "ten"])
def test_train_refuses_a_bad_VAE_EPOCHS(value, monkeypatch, fast, capsys):
    monkeypatch.setenv("VAE_EPOCHS", value)
    assert "epochs" in refused(train.main, [*TINY, "--dataset", "shapes"], capsys)


def test_train_refuses_a_file_as_its_run_folder(tmp_path, fast, capsys):
    (tmp_path / "run").write_text("in the way")
    assert str(tmp_path / "run") in refused(train.main, [*TINY, "--dataset", "shapes", "--out", tmp_path / "run"], capsys)


@pytest.mark.parametrize("arguments, says", [(["--num_samples", "0"], "num_samples"), (["--num_samples", "-1"], "num_samples"),
                                             (["--num_samples", "some"], "num_samples"), (["--num_interpolations", "1"], "num_interpolations"),
                                             (["--seed", "9" * 30], "seed"), (["--run", "nowhere"], "nowhere"),
                                             (["--components", "0"], "components"), (["--num_frechet", "0"], "num_frechet"),
                                             (["--fid", "nowhere.pth"], "torch-fidelity")],
                         ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_evaluate_refuses_in_one_line(shapes_run, arguments, says, fast, tmp_path, capsys):
    assert says in refused(evaluate.main, ["--run", shapes_run, *arguments, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_evaluate_without_any_run_says_how_to_make_one(capsys):
    assert "train.py makes one" in refused(evaluate.main, [], capsys)


@pytest.mark.parametrize("damage, says", [
    (lambda run: (run / "model.safetensors").unlink(), "missing"),
    (lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:1000]), "damaged"),
    (lambda run: (run / "model.json").write_text((run / "model.json").read_text().replace('"arch": "conv"', '"arch": "fc"')), "changed after it was written"),
    (lambda run: (run / "model.json").write_text("{"), "damaged")], ids=["no weights", "weights cut short", "other architecture", "json cut short"])
def test_evaluate_refuses_a_damaged_run_in_one_line(shapes_run, damage, says, fast, tmp_path, capsys):
    run = copy_of(shapes_run, tmp_path / "run")
    damage(run)
    assert says in refused(evaluate.main, ["--run", run], capsys)


def test_evaluate_refuses_images_that_the_model_was_not_made_for(tmp_path, capsys):
    """A model of grey images, pointed at coloured ones."""
    for name, mode in (("grey", "L"), ("colour", "RGB")):
        paint_noise(tmp_path / name, 30, mode=mode)
    train.main([*TINY, "--dataset", "folder", "--data_dir", str(tmp_path / "grey"), "--image_size", "16", "--out", str(tmp_path / "run")])
    assert "takes images of shape (N, 1, 16, 16)" in refused(evaluate.main, ["--run", tmp_path / "run", "--data_dir", tmp_path / "colour"], capsys)


def test_the_newest_run_is_the_one_written_last(shapes_run, tmp_path):
    for age, name in enumerate(["c", "a", "b"]):
        run = copy_of(shapes_run, tmp_path / "runs" / name)
        os.utime(run / "model.json", (1000 - age, 1000 - age))
    assert evaluate.newest_run().name == "c"


@pytest.mark.parametrize("size, scale", [(32, 3), (64, 1), (128, 1)])
def test_a_saved_grid_enlarges_small_images_pixel_by_pixel(tmp_path, size, scale):
    images = torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    evaluate.save_grid(images, tmp_path / "grid.png", columns=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == ((2 + 2 * (size + 2)) * scale, (2 + 3 * (size + 2)) * scale, 3)
    assert np.array_equal(picture[::scale, ::scale], vae.image_grid(images, 3))


def test_evaluate_works_on_a_checkpoint_without_a_history(shapes_run, tmp_path, fast):
    """save_checkpoint(model, folder) without a record is a run folder, too."""
    model, _ = vae.load_checkpoint(shapes_run)
    metrics = evaluate.main(["--run", str(vae.save_checkpoint(model, tmp_path / "bare")), "--num_samples", "2", "--quick"])
    assert metrics["trained_on"] is None


def test_ctrl_c_ends_in_one_line_and_exit_code_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        vae.run_script(interrupted)
    assert end.value.code == 130 and capsys.readouterr().err.strip().count("\n") == 0


# ── Images that are not those of the training run ───────────────────────────────────────────────

def test_evaluate_says_when_the_images_have_changed_since_training(tmp_path, capsys):
    folder = paint_noise(tmp_path / "mine", 12)
    run = tmp_path / "run"
    train.main([*TINY, "--dataset", "folder", "--data_dir", str(folder), "--image_size", "16", "--out", str(run)])
    assert evaluate.main(["--run", str(run), "--num_samples", "2", "--quick"])["same_data"] is True
    assert "Note" not in capsys.readouterr().out
    paint_noise(folder, 14)   # two more files: every split is dealt anew
    assert evaluate.main(["--run", str(run), "--num_samples", "2", "--quick"])["same_data"] is False
    assert "may have been trained on" in capsys.readouterr().out


def test_results_of_released_weights_stay_out_of_checkpoints(shapes_run, tmp_path, fast, monkeypatch):
    monkeypatch.setattr(vae, "RELEASED", shapes_run.resolve().parent)
    evaluate.main(["--run", str(shapes_run), "--num_samples", "2", "--quick"])
    assert (vae.runs_root() / f"{shapes_run.name}-evaluation" / "metrics.json").is_file()


def test_a_place_that_cannot_be_written_ends_in_one_line(tmp_path, fast):
    (tmp_path / "file").write_text("")
    done = shell("train.py", *TINY, "--dataset", "shapes", "--out", tmp_path / "file" / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")


def test_too_large_a_model_ends_in_one_line():
    done = shell("train.py", "--dataset", "shapes", "--arch", "fc", "--width", 10 ** 9)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "memory" in done.stderr


def test_every_number_of_config_is_read_as_one():
    """A field whose kind the parser does not know would reach Config as text."""
    for f in dataclasses.fields(vae.Config):
        if f.name not in ("channels", "conditions", "data_dir") and not f.metadata["choices"]:
            value = vars(train.parser().parse_args([f"--{f.name}", "1"]))[f.name]
            assert type(value) is (float if "float" in f.type else int), f.name
