"""train.py as users run it: flags, own images, going on after a stop, mistakes."""

import pytest
from conftest import ROOT, run_python, same_weights
from painting import paint_noise

import train
import vae_helpers as vae
from support import runs

TINY = ["--max_images", "96", "--latent_dim", "4", "--width", "8", "--batch_size", "32"]
SHAPES = [*TINY, "--dataset", "shapes"]
pytestmark = pytest.mark.usefixtures("fast")


def run_as_script(argv):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        runs.run_script(lambda: train.main(list(map(str, argv))))
    return end.value.code


def test_a_command_trains_from_any_folder_and_load_or_train_finds_its_run(tmp_path):
    said = run_python(ROOT / "train.py", *SHAPES, "--epochs", "1", "--beta", "4", cwd=tmp_path)
    [folder] = runs.runs_root().iterdir()
    assert f"next: python evaluate.py --run {folder}" in said
    data = vae.load_dataset("shapes", max_images=96)
    config = vae.config_for(data, latent_dim=4, width=8, batch_size=32, beta=4)
    run = runs.load_or_train(config, data)
    assert run.origin == f"your run {folder.name}"
    assert f"{run.record['test']['total_nats']:.1f} nats per image" in said


def test_every_flag_reaches_the_run_and_the_preset_gives_the_rest(tmp_path, monkeypatch):
    """On a folder of own images; best has a norm and a schedule."""
    monkeypatch.delenv("VAE_FAST")
    chosen = {
        "data_dir": str(paint_noise(tmp_path / "mine", 30, mode="L")),
        "max_images": 7, "image_size": 16, "model": "info_vae", "arch": "conv", "latent_dim": 3,
        "width": 5, "depth": 1, "downsample": "maxpool", "residual": 2,
        "likelihood": "squared_error", "beta": 0.25, "mmd": 3.0, "kl_warmup": 1, "epochs": 2,
        "batch_size": 4, "lr": 0.002, "ema": 0.5, "seed": 9,
        "flip": "horizontal",
    }  # fmt: skip
    flags = ["--preset", "best"]
    for name, value in chosen.items():
        flags += [f"--{name}", str(value)]
    run = train.main([*flags, "--out", str(tmp_path / "run")])
    expected = vae.Config(dataset="folder", channels=1, **vae.PRESETS["best"] | chosen)
    assert run.config == expected.resolved()
    assert run.record["data"]["title"] == "mine, 7 training images"


def test_shapes_stand_in_for_cifar10_only_where_no_data_set_was_named(capsys):
    run = train.main(TINY)
    assert run.config.dataset == "shapes"
    assert "Going on with `shapes`" in capsys.readouterr().out
    with pytest.raises(vae.DatasetUnavailable, match="CIFAR-10 is not here"):
        train.main([*TINY, "--dataset", "cifar10"])


@pytest.mark.parametrize("resume", [True, False])
def test_ctrl_c_says_how_to_go_on_and_resume_goes_on_after_it(
    tmp_path, monkeypatch, capsys, resume
):
    monkeypatch.setenv("VAE_EPOCHS", "3")
    whole = train.main(SHAPES)
    out = [*SHAPES, "--out", str(tmp_path / runs.run_name(whole.config))]
    save = runs.save_unfinished

    def save_and_stop(folder, record, state):
        save(folder, record, state)
        if len(record["history"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_unfinished", save_and_stop)
        assert run_as_script(out) == 130
    [line] = capsys.readouterr().err.strip().splitlines()
    assert (
        line.startswith("Stopped.")
        and runs.run_name(whole.config) in line
        and "same command" in line
    )
    again = train.main([*out, *["--resume"] * resume])
    assert "going on after epoch 2 of 3" in capsys.readouterr().out
    assert same_weights(whole.model, again.model)


@pytest.mark.parametrize("folder", ["run", "checkpoints/released"])
def test_the_same_command_again_shows_its_run_and_no_other_command_overwrites_it(
    tmp_path, capsys, folder
):
    command = [*SHAPES, "--out", str(tmp_path / folder)]
    first = train.main(command)
    shown = capsys.readouterr().out.splitlines()[-2:]
    again = train.main(command)
    assert (first.origin, again.origin) == ("trained now", "finished before")
    assert again.record == first.record | {"weights_sha256": again.record["weights_sha256"]}
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == shown and "--overwrite begins it anew" in said[-3]
    assert run_as_script([*command, "--beta", "2"]) == 2
    assert "run of other settings" in capsys.readouterr().err
    assert vae.load_checkpoint(tmp_path / folder)[1] == again.record
    assert train.main([*command, "--beta", "2", "--overwrite"]).origin == "trained now"
    assert vae.load_checkpoint(tmp_path / folder)[0].config.beta == 2


def test_each_epoch_has_its_line_when_it_is_over(monkeypatch, capsys):
    """Nobody under nohup sees a progress bar."""
    lines = []
    monkeypatch.setenv("VAE_EPOCHS", "2")
    fit = vae.train_epoch

    def spy(*arguments):
        lines.append(capsys.readouterr().out)
        return fit(*arguments)

    monkeypatch.setattr(vae, "train_epoch", spy)
    train.main(SHAPES)
    assert "epoch   1 of 2  validation" in lines[1] and "test:" not in lines[1]


def test_a_typed_number_of_epochs_counts_more_than_the_environments(monkeypatch):
    monkeypatch.delenv("VAE_FAST")
    monkeypatch.setenv("VAE_EPOCHS", "3")
    assert train.main([*SHAPES, "--epochs", "1"]).config.epochs == 1


def test_two_presets_whose_values_a_flag_replaces(tmp_path):
    grid = ["--prior_width", "16", "--codebook", "8"]
    run = train.main([*SHAPES, "--preset", "grid", "--model", "vq_vae", *grid])
    assert run.config.model == "vq_vae" and run.config.norm == "batch"
    run = train.main([*SHAPES, "--preset", "best", "--arch", "fc"])
    assert run.config.arch == "fc" and run.config.likelihood == "gaussian"
