"""Sweeps: every point once, also after a stop or a kill; what is compared; what is refused."""

import json
import os
import shlex
import signal
import subprocess
import sys

import optuna
import pytest
from conftest import ROOT, refused
from PIL import Image

import train
import vae_helpers as vae
from support import runs, sweep

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)

TINY = {"width": 4, "batch_size": 32, "epochs": 1}
COMMAND = ["--dataset", "shapes", "--max_images", "96", "--width", "4"]


def run(data, trials=None, prune=False, choices=TINY, **space):
    return sweep.run(space, choices, data, trials, prune)


def column(results, name):
    return [row[name] for row in results["trials"]]


def all_trials():
    [file] = (runs.runs_root() / "sweeps").glob("*.db")
    return optuna.load_study(study_name=None, storage=f"sqlite:///{file}").trials


def test_a_grid_trains_each_point_once_and_puts_the_best_first(few):
    results = run(few, latent_dim=[2, 4], beta=[0.1, 4.0])
    combinations = sorted(zip(column(results, "latent_dim"), column(results, "beta")))
    assert combinations == [(2, 0.1), (2, 4), (4, 0.1), (4, 4)]
    totals = column(results, "total_nats")
    assert totals == sorted(totals)
    for trial in all_trials():
        run_of_trial = runs.own_run(vae.config_for(few, **TINY | trial.params), few)
        metrics = vae.evaluate(run_of_trial.model, *few.val)
        assert trial.value == pytest.approx(metrics["total_nats"], rel=1e-6)  # whatever beta is
    [written] = (runs.runs_root() / "sweeps").glob("*.json")
    assert json.loads(written.read_text()) == results
    assert Image.open(written.with_suffix(".png")).width > 500
    # The same sweep again, and another one, train no finished model again.
    files = [path.stat().st_mtime_ns for path in runs.runs_root().glob("*/model.json")]
    assert run(few, latent_dim=[2, 4], beta=[0.1, 4.0]) == results
    other = run(few, latent_dim=[4, 2], beta=[4.0])
    assert set(column(other, "total_nats")) <= set(totals)
    assert [path.stat().st_mtime_ns for path in runs.runs_root().glob("*/model.json")] == files


def test_the_best_command_trains_the_best_model(fast):
    results = train.main([*COMMAND, "--sweep", "latent_dim=2,4", "--sweep", "norm=batch"])
    command = shlex.split(results["command"])
    assert command[:2] == ["python", "train.py"]
    config = train.main(command[2:]).config
    assert (config.latent_dim, config.norm) == (column(results, "latent_dim")[0], "batch")
    assert len(list(runs.runs_root().glob("*/model.json"))) == 2  # it was one of them


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_or_killed_sweep_goes_on(signal_number):
    """As users run it; the signal comes while the second model trains."""
    flags = ["--dataset", "shapes", "--width", "8", "--sweep", "latent_dim=2,3,4"]
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    environment = os.environ | {"VAE_FAST": "1", "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as first:
        for line in first.stdout:
            if line.startswith("trial 1"):
                first.send_signal(signal_number)
    second = subprocess.run(command, stdout=subprocess.PIPE, **options)
    assert second.returncode == 0
    assert "trial 0" not in second.stdout
    [written] = (runs.runs_root() / "sweeps").glob("*.json")
    assert sorted(column(json.loads(written.read_text()), "latent_dim")) == [2, 3, 4]


def test_draws_are_seeded_in_their_ranges_and_more_of_them_continue_the_search(few):
    space = sweep.parse_space(["lr=1e-4..1e-2", "ema=0..0.5", "latent_dim=2..9"])
    run(few, 2, **space)
    first = [trial.params for trial in all_trials()]
    distributions = all_trials()[0].distributions
    assert distributions["lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert distributions["ema"] == optuna.distributions.FloatDistribution(0, 0.5)
    assert distributions["latent_dim"] == optuna.distributions.IntDistribution(2, 9)
    run(few, 3, **space)
    assert [trial.params for trial in all_trials()[:2]] == first
    assert all_trials()[2].params not in first
    sampler = optuna.samplers.TPESampler(seed=0)
    assert optuna.create_study(sampler=sampler).ask(distributions).params == first[0]


def test_hopeless_and_diverged_trials_are_stopped_and_the_sweep_goes_on(few, capsys):
    # Optuna shuffles a grid of seven always in the same way: 1e-9 comes last.
    lr = [1e9, 2e-3, 3e-3, 4e-3, 1e-9, 5e-3, 6e-3]
    results = run(few, prune=True, choices=TINY | {"epochs": 4}, lr=lr)
    assert sorted(column(results, "lr")) == [2e-3, 3e-3, 4e-3, 5e-3, 6e-3]
    out = capsys.readouterr().out
    assert "pruned after epoch 3" in out
    assert "stopped being a finite number" in out
    with refused(vae.VAEError, "No trial was finished"):
        run(few, lr=[1e9])
