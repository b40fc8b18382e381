"""Sweeps: every point once, also after a stop or a kill; what is compared; what is refused."""

import json
import shlex
import sqlite3

import pytest
from conftest import take
from PIL import Image

import train
import vae_helpers as vae
from support import runs, sweep

optuna = pytest.importorskip("optuna")

TINY = {"width": 4, "batch_size": 32, "epochs": 1}
RANGE = {"lr": (1e-4, 1e-2)}


@pytest.fixture(scope="module")
def few(shapes):
    return take(shapes, 96, 16, 16)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.db"


def trials_of(file):
    return optuna.load_study(study_name=None, storage=f"sqlite:///{file}").trials


def column(results, name):
    return [row[name] for row in results["trials"]]


def stop_training(monkeypatch, error, after=0):
    """Training fails with this error, after so many runs that end well."""
    train_run, done = runs.train_run, []

    def stopped(config, *arguments, **options):
        if len(done) == after:
            raise error
        done.append(config)
        return train_run(config, *arguments, **options)

    monkeypatch.setattr(runs, "train_run", stopped)


def test_a_grid_trains_each_point_once_and_puts_the_best_first(few, file, capsys):
    space = {"latent_dim": [2, 4], "beta": [0.1, 4.0]}
    results = sweep.run(space, TINY, few, study_file=file)
    combinations = sorted(zip(column(results, "latent_dim"), column(results, "beta")))
    assert combinations == [(2, 0.1), (2, 4), (4, 0.1), (4, 4)]
    assert column(results, "total_nats") == sorted(column(results, "total_nats"))
    for row in results["trials"]:
        params = {name: row[name] for name in space}
        run = runs.own_run(vae.config_for(few, **TINY, **params), few)
        last = run.record["history"][-1]  # on the validation images, whatever beta is
        total = last["val_reconstruction_nats"] + last["val_kl_nats"]
        assert row["total_nats"] == pytest.approx(total, rel=1e-6)
    assert json.loads(file.with_suffix(".json").read_text()) == results
    assert Image.open(file.with_suffix(".png")).width > 500
    assert "| trial | latent_dim | beta |" in capsys.readouterr().out


def test_the_same_sweep_again_trains_nothing(few, monkeypatch):
    space = {"latent_dim": [2, 4]}
    results = sweep.run(space, TINY, few)
    stop_training(monkeypatch, AssertionError())
    assert sweep.run(space, TINY, few) == results


def test_finished_runs_are_taken_by_another_sweep(few, file, monkeypatch):
    sweep.run({"latent_dim": [2, 4]}, TINY, few)
    stop_training(monkeypatch, AssertionError())
    results = sweep.run({"latent_dim": [4, 2]}, TINY, few, study_file=file)
    assert sorted(column(results, "latent_dim")) == [2, 4]


def test_the_best_command_trains_the_best_model(monkeypatch):
    fixed = ["--dataset", "shapes", "--max_images", "96", "--width", "4"]
    monkeypatch.setenv("VAE_EPOCHS", "1")
    results = train.main([*fixed, "--sweep", "latent_dim=2,4", "--sweep", "norm=batch"])
    monkeypatch.delenv("VAE_EPOCHS")
    command = shlex.split(results["command"])
    assert command[:2] == ["python", "train.py"]
    run = train.main(command[2:])
    assert run.config.latent_dim == results["trials"][0]["latent_dim"]
    assert run.config.norm == "batch"
    assert len(list(runs.runs_root().glob("*/model.json"))) == 2  # it was one of them


def test_a_sweep_goes_on_after_ctrl_c(few, file, monkeypatch):
    space = {"latent_dim": [2, 3, 4]}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_training(patch, KeyboardInterrupt(), after=1)
        sweep.run(space, TINY, few, study_file=file)
    results = sweep.run(space, TINY, few, study_file=file)
    assert sorted(column(results, "latent_dim")) == [2, 3, 4]
    assert [t.state.name for t in trials_of(file)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_killed_trial_is_trained_again_with_its_values(few, file, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_training(patch, SystemExit())  # nobody records how the trial ended
        sweep.run(RANGE, TINY, few, trials=2, study_file=file)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    sweep.run(RANGE, TINY, few, trials=2, study_file=file)
    killed, again, other = trials_of(file)
    assert [trial.state.name for trial in (killed, again, other)] == [
        "FAIL",
        "COMPLETE",
        "COMPLETE",
    ]
    assert killed.params == again.params != other.params


def test_draws_are_seeded_and_more_of_them_continue_the_search(few, tmp_path):
    def draws(name, trials, seed=0):
        file = tmp_path / f"{name}.db"
        sweep.run(RANGE, TINY | {"seed": seed}, few, trials=trials, study_file=file)
        return [trial.params["lr"] for trial in trials_of(file)]

    first = draws("first", 2)
    assert draws("second", 2) == first
    assert draws("third", 2, seed=1) != first
    more = draws("first", 3)
    assert more[:2] == first
    assert len(set(more)) == 3


def test_ranges_are_log_uniform_above_zero_and_whole_for_whole_numbers(few, file):
    space = sweep.parse_space(["lr=1e-4..1e-2", "ema=0..0.5", "latent_dim=2..9"], trials=1)
    sweep.run(space, TINY, few, trials=1, study_file=file)
    distributions = trials_of(file)[0].distributions
    assert distributions["lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert distributions["ema"] == optuna.distributions.FloatDistribution(0, 0.5)
    assert distributions["latent_dim"] == optuna.distributions.IntDistribution(2, 9)


def test_a_hopeless_trial_is_pruned_when_asked(few, file):
    # Optuna shuffles a grid of six always in the same way: 1e-9 comes last.
    space = {"lr": [1e-3, 2e-3, 3e-3, 4e-3, 1e-9, 5e-3]}
    results = sweep.run(space, TINY | {"epochs": 4}, few, prune=True, study_file=file)
    assert column(results, "state") == ["finished"] * 5 + ["pruned after epoch 3"]
    assert results["trials"][-1]["lr"] == 1e-9


def test_after_a_diverged_trial_the_sweep_goes_on(few, file):
    results = sweep.run({"lr": [1e9, 1e-3]}, TINY, few, study_file=file)
    assert column(results, "lr") == [1e-3, 1e9]
    assert "stopped being a finite number" in results["trials"][1]["state"]
    with pytest.raises(vae.VAEError, match="No trial was finished"):
        sweep.run({"lr": [1e9]}, TINY, few)


def test_an_autoencoder_is_compared_by_its_reconstruction(few):
    results = sweep.run({"model": ["vae", "ae"]}, TINY, few)
    assert results["goal"] == "reconstruction_nats"


@pytest.mark.parametrize(
    "sweeps, trials, message",
    [
        (["depht=1,2"], None, "no setting 'depht'"),
        (["likelihood=bernoulli,gaussian"], None, "could not be compared"),
        (["max_images=10,20"], None, "same images"),
        (["beta=1", "beta=2"], None, "twice"),
        (["latent_dim="], None, "whole number"),
        (["beta=1,high"], None, "must be a number"),
        (["lr=1e-4..1e-2"], None, "--trials N"),
        (["lr=1e-2..1e-4"], 2, "smaller number first"),
        (["beta=1,2"], 2, "from 1 to 1"),
    ],
)
def test_settings_that_cannot_be_swept_are_refused(sweeps, trials, message):
    with pytest.raises(vae.VAEError, match=message):
        sweep.parse_space(sweeps, trials)


def test_models_that_cannot_be_compared_are_refused(few, monkeypatch):
    with pytest.raises(vae.VAEError, match="two likelihoods"):
        sweep.run({"model": ["vae", "wae"]}, TINY, few)
    monkeypatch.setenv("VAE_EPOCHS", "1")
    with pytest.raises(vae.VAEError, match="the same model"):
        sweep.run({"epochs": [1, 2]}, {"width": 4}, few)


def test_a_file_that_is_not_the_database_of_this_sweep_is_refused(few, file):
    sweep.run({"latent_dim": [2]}, TINY, few, study_file=file)
    with pytest.raises(vae.VAEError, match="another sweep"):
        sweep.run({"latent_dim": [4]}, TINY, few, study_file=file)
    file.write_text("no database " * 1000)
    with pytest.raises(vae.VAEError, match="no usable database"):
        sweep.run({"latent_dim": [2]}, TINY, few, study_file=file)
    with pytest.raises(vae.VAEError, match="must end in .db"):
        sweep.run({"latent_dim": [2]}, TINY, few, study_file=file.with_suffix(".json"))


def test_without_optuna_it_is_said_what_to_install(few, monkeypatch):
    monkeypatch.setattr(sweep, "optuna", None)
    with pytest.raises(vae.VAEError, match="pip install optuna"):
        sweep.run({"latent_dim": [2, 4]}, TINY, few)
