"""evaluate.py as a user types it, on a small run: numbers, pictures, batches, and wrong flags."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, refused, run_python
from painting import paint_noise
from PIL import Image

import evaluate
import vae_helpers as vae
from support import disentanglement, metrics, report, runs

TINY = {"dataset": "shapes", "latent_dim": 4, "width": 4, "epochs": 1, "lr": 3e-3}
pytestmark = pytest.mark.usefixtures("fast")


@pytest.fixture(scope="module", autouse=True)
def smaller_measures():
    """Fewer samples than evaluate.py takes by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_FAST", "1")
        patch.setattr(report, "IWAE_SAMPLES", (1, 3))
        patch.setattr(report, "IWAE_IMAGES", 4)
        patch.setattr(report, "LEAST_FRECHET", 200)
        patch.setattr(disentanglement, "DRAWN", 600)
        patch.setattr(disentanglement, "VOTES", 20)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    runs.train_run(vae.Config(**TINY), vae.load_dataset("shapes"), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def evaluated(run):
    """What evaluate.py returns for the run, and the folder that it wrote."""
    flags = ["--num_samples", "10", "--num_interpolations", "6", "--npz"]
    return evaluate.main(["--run", str(run), *flags]), run / "evaluation"


def parts_of(results):
    return {name for name, part in results.items() if isinstance(part, dict)}


def test_every_part_is_measured_and_written_as_json_report_and_pictures(evaluated):
    results, out = evaluated
    parts = {"test", "pictures", "latent_space", "likelihood", "smoothness", "disentanglement"}
    assert parts_of(results) == parts | {"frechet"}
    assert json.loads((out / "metrics.json").read_text()) == results
    for name in ("samples.png", "interpolations.png", "traversals.gif", "latent_tsne.png"):
        assert min(Image.open(out / name).size) > 100
    text = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"## {name}\n" in text for name in parts)
    assert f"| {results['frechet']['ffd_samples_prior']:,.4f} |" in text
    picture = np.asarray(Image.open(out / "reconstructions.png"))[::3, ::3]  # enlarged by 3
    for i, original in enumerate(vae.load_dataset("shapes").test.images[:8]):
        cell = picture[2:34, 2 + 68 * i : 34 + 68 * i]  # a reconstruction is beside each
        assert np.array_equal(cell, original.permute(1, 2, 0))


def test_the_numbers_are_those_that_training_recorded_and_that_the_measures_give(evaluated, run):
    results, _ = evaluated
    model, record = vae.load_checkpoint(run)
    data = vae.load_dataset("shapes")
    assert results["test"] == pytest.approx(record["test"], rel=1e-5)
    assert results["pictures"]["mse"] == pytest.approx(record["test"]["mse"], rel=1e-4)
    kl = sum(results["latent_space"]["kl_per_dim_nats"])
    assert kl == pytest.approx(record["test"]["kl_nats"], abs=1e-3)
    bound = metrics.iwae_nats(model, data.test.images[:4], 3).mean().item()
    assert results["likelihood"]["iwae_3_nats"] == pytest.approx(bound)
    net = metrics.load_feature_net()
    real = metrics.image_features(data.test.images, net)
    for name, images in metrics.picture_sets(model, data, 256).items():
        distance = metrics.frechet_distance(real, metrics.image_features(images, net))
        assert results["frechet"][f"ffd_{name}"] == pytest.approx(distance, rel=1e-3)
        assert results["frechet"]["ffd_real_train"] < distance


@pytest.mark.parametrize("test, words", [
    ({"kl_nats": 0.2, "active_dims": 3}, "posterior has collapsed"),
    ({"kl_nats": 7.0, "active_dims": 0}, "posterior has collapsed"),
    ({"kl_nats": 3.0, "perplexity": 1.2}, "codebook has collapsed"),
    ({"kl_nats": 1.0, "active_dims": 1}, "None"),
    ({"kl_nats": 0.0, "perplexity": 9.0}, "None"),
], ids=str)  # fmt: skip
def test_a_collapse_is_a_code_that_tells_nearly_nothing(test, words):
    assert words in str(report.collapse_warning(test, vae.Config().resolved()))


@pytest.mark.parametrize("choices, picture", [
    ({"model": "cvae", "conditions": 3}, "classes.png"),
    ({"model": "vq_vae", "prior_width": 16}, "draws.png"),
    ({"model": "grid_vae", "prior_width": 16, "conditions": 3}, "draws.png"),
    ({"model": "wae", "latent_dim": 2}, "manifold.png"),
], ids=str)  # fmt: skip
def test_other_models_have_pictures_of_their_own_and_quick_is_short(tmp_path, choices, picture):
    """These are checkpoints without a record of their training."""
    model = vae.build_model(vae.Config(**TINY | choices))
    folder = vae.save_checkpoint(model, tmp_path)
    results = evaluate.main(["--run", str(folder), "--num_samples", "2", "--quick"])
    parts = {"test", "pictures"}
    assert parts_of(results) == (parts if model.learned_prior else parts | {"latent_space"})
    assert (folder / "evaluation" / picture).is_file()
    assert (folder / "evaluation" / "traversals.png").is_file() != model.learned_prior


def test_samples_show_the_labels_that_were_named(tmp_path):
    model = vae.build_model(vae.Config(**TINY | {"model": "cvae", "conditions": 3}))
    folder = vae.save_checkpoint(model, tmp_path)
    flags = ["--run", str(folder), "--num_samples", "2", "--quick", "--npz"]
    evaluate.main([*flags, "--labels", "triangle"])
    condition = torch.tensor([[0.0, 0, 0]] * 2)
    condition[:, vae.load_dataset("shapes").class_names.index("triangle")] = 1
    expected = 255 * vae.sample_images(model, 2, condition).permute(0, 2, 3, 1)
    with np.load(folder / "evaluation" / "samples.npz") as batch:
        np.testing.assert_allclose(batch["arr_0"], expected, atol=1)
    with refused(vae.VAEError, "no class 'cat'"):
        evaluate.main([*flags, "--labels", "cat"])


def test_npz_batches_are_uint8_nhwc_as_tools_for_fid_read_them(evaluated, run):
    model, _ = vae.load_checkpoint(run)
    mu, _ = vae.encode_images(model, vae.load_dataset("shapes").test.images[:10])
    expected = {
        "samples": vae.sample_images(model, 10),
        "reconstructions": vae.decode_images(model, mu),
        "midpoints": vae.decode_images(model, (mu + mu.roll(-1, 0)) / 2),
    }
    for name, images in expected.items():
        with np.load(evaluated[1] / f"{name}.npz") as batch:
            assert batch.files == ["arr_0"]
            assert batch["arr_0"].dtype == np.uint8
            np.testing.assert_allclose(batch["arr_0"], 255 * images.permute(0, 2, 3, 1), atol=1)


def test_the_command_as_typed_evaluates_the_newest_run_from_any_folder(run, tmp_path):
    model, record = vae.load_checkpoint(run)
    newest = vae.save_checkpoint(model, tmp_path / "runs" / "newest", record)
    run_python(ROOT / "evaluate.py", "--num_samples", "10", "--quick", cwd=tmp_path)
    assert json.loads((newest / "evaluation" / "metrics.json").read_text())["run"] == str(newest)


def test_results_of_released_weights_stay_out_of_checkpoints(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RELEASED", run.parent)
    evaluate.main(["--run", str(run), "--num_samples", "2", "--quick"])
    assert (tmp_path / "runs" / "run-evaluation" / "metrics.json").is_file()


def test_a_single_test_image_is_enough_and_other_images_than_before_are_noted(tmp_path, capsys):
    """Three images leave one for the test split."""
    mine = paint_noise(tmp_path / "mine", 3)
    data = vae.load_dataset("folder", data_dir=mine, image_size=16)
    config = vae.config_for(data, **SMALL, model="ae", data_dir=str(mine))
    folder = vae.save_checkpoint(vae.build_model(config), tmp_path / "run")
    results = evaluate.main(["--run", str(folder), "--num_samples", "3", "--npz"])
    assert results["test"]["images"] == 1
    assert parts_of(results) == {"test", "pictures", "latent_space"}
    assert "may have been trained on" in capsys.readouterr().out


def test_what_json_does_not_know_becomes_none_in_lists_too():
    measured = {"psnr": math.inf, "kl": [math.nan, 1.0]}
    assert report.without_nan(measured) == {"psnr": None, "kl": [None, 1.0]}


@pytest.mark.parametrize("text", ["-Male", "-Male,-Young", "Smiling,-Male", "salt, pepper", "--x"])
def test_labels_may_begin_with_a_minus(text):
    assert evaluate.parsed(["--num_samples", "3", "--labels", text, "--quick"]).labels == text
    assert evaluate.parsed([f"--labels={text}"]).labels == text


@pytest.fixture
def own_picture(tmp_path):
    """Around (60, 10) a black picture of 120x80 is white for 40 pixels; its EXIF turns it."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[5:55, 55:105] = 255  # five more on each side, because resizing looks beyond the square
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # "turn it by 90 degrees to the right"
    turned.save(tmp_path / "me.png", exif=exif)
    return tmp_path / "me.png"


@pytest.mark.parametrize("choices", [{}, {"channels": 1}, {"model": "cvae", "conditions": 3}])
def test_own_pictures_stand_beside_their_reconstructions_without_any_data_set(
    tmp_path, monkeypatch, own_picture, choices
):
    model = vae.build_model(vae.Config(**TINY | choices))
    record = {"data": {"conditions": ["ellipse", "rectangle", "a, b"]}, "test": {"mse": 0.01}}
    folder = vae.save_checkpoint(model, tmp_path / "run", record)
    monkeypatch.setattr(vae, "load_dataset", None)
    flags = ["--run", str(folder), "--labels", "a, b", "--crop", "60,10,40"]
    results = evaluate.main([*flags, "--pictures", str(own_picture), str(own_picture)])
    white = torch.ones(1, model.config.channels, 32, 32)
    labels = torch.tensor([[0.0, 0, 1]]) if model.conditional else None
    x_hat = vae.decode_images(model, vae.encode_images(model, white, labels)[0], labels)
    expected = (x_hat - 1).square().mean().item()
    assert [row["mse"] for row in results["pictures"]] == pytest.approx([expected] * 2, rel=1e-4)
    assert json.loads((folder / "evaluation" / "pictures.json").read_text()) == results
    assert Image.open(folder / "evaluation" / "pictures.png").width > 200


def test_a_square_or_a_file_that_cannot_be_used_is_refused(tmp_path, own_picture):
    folder = vae.save_checkpoint(vae.build_model(vae.Config(**TINY)), tmp_path / "run")
    command = ["--run", str(folder), "--pictures", str(own_picture)]
    for square, words in {
        "61,10,60": "120 x 80 pixels: name one inside",
        "1,2": "X,Y,SIDE",
        "1,2,0": "X,Y,SIDE",
        "a,b,c": "X,Y,SIDE",
    }.items():
        with refused(vae.VAEError, words):
            evaluate.main([*command, "--crop", square])
    own_picture.write_text("no picture")
    with refused(vae.VAEError, "me.png cannot be read as a picture", "name another file"):
        evaluate.main(command)
    with refused(vae.VAEError, "--crop is for --pictures"):
        evaluate.main(["--run", str(folder), "--crop", "1,2,3"])
