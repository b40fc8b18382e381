"""train.py --sweep: every point once, also after a kill and with two processes; what is refused; the results."""
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from PIL import Image
from test_scripts import refused

import train
import vae_helpers as vae

optuna = pytest.importorskip("optuna")

TINY = ["--dataset", "shapes", "--batch_size", "64", "--width", "4", "--max_images", "128"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setenv("VAE_FAST", "1")


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """The configs that this process has trained."""
    configs, original = [], vae.train_run

    def train_run(config, *arguments, **options):
        configs.append(config)
        return original(config, *arguments, **options)

    monkeypatch.setattr(vae, "train_run", train_run)
    return configs


def sweep(*arguments):
    """What `train.py --sweep … --sweep …` returns; arguments with = are sweeps."""
    return train.main([*TINY, *(part for a in arguments for part in (["--sweep", a] if "=" in a else [a]))])


def values(results, *names):
    """Of the swept fields, in the order of the trials."""
    return [tuple(row[name] for name in names) for row in sorted(results["trials"], key=lambda row: row["trial"])]


# ── Full grid ───────────────────────────────────────────────────────────────────────────────────

@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """(results, output, folder) of a grid of 2 x 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as printing:
        folder, said = tmp_path_factory.mktemp("grid"), []
        patch.setenv("VAE_FAST", "1")
        patch.setenv("VAE_RUNS", str(folder))
        printing.setattr("builtins.print", lambda *a, **k: said.append(" ".join(map(str, a))))
        return sweep("latent_dim=2,4", "beta=0.1,4"), "\n".join(said), folder


def test_a_grid_trains_each_point_once_and_sorts_by_the_validation_total_at_beta_1(grid):
    results, said, folder = grid
    assert values(results, "latent_dim", "beta") == [(2, 0.1), (2, 4), (4, 0.1), (4, 4)]
    totals = [row["total_nats"] for row in results["trials"]]
    assert totals == sorted(totals)
    for row in results["trials"]:
        assert row["total_nats"] == pytest.approx(row["reconstruction_nats"] + row["kl_nats"]) and row["state"] == "finished"
        _, record = vae.read_record(folder / row["run"])
        last = record["history"][-1]
        assert (row["reconstruction_nats"], row["kl_nats"]) == pytest.approx((last["val_reconstruction_nats"], last["val_kl_nats"]), rel=1e-5)
        assert row["total_nats"] != pytest.approx(record["test"]["total_nats"])   # never the test images
    assert "| trial | latent_dim | beta |" in said and said.count("| finished |") == 4


def test_a_sweep_leaves_a_database_its_numbers_and_a_plot(grid):
    results, _, folder = grid
    [database] = (folder / "sweeps").glob("shapes-latent_dim-beta-*.db")
    assert json.loads(database.with_suffix(".json").read_text()) == results
    assert Image.open(database.with_suffix(".png")).width > 1000
    assert sorted(p.name for p in folder.iterdir()) == sorted([row["run"] for row in results["trials"]] + ["sweeps"])


def test_the_best_command_trains_the_best_model(grid, trained):
    results, said, folder = grid
    assert f"best: {results['command']}\n" in said
    assert f"evaluate.py --run {folder / results['trials'][0]['run']}" in said
    assert shlex.split(results["command"])[:2] == ["python", "train.py"]
    assert train.main(shlex.split(results["command"])[2:]).config.run_name == results["trials"][0]["run"]


def test_a_finished_sweep_only_prints_its_result(grid, trained, monkeypatch, capsys):
    monkeypatch.setenv("VAE_RUNS", str(grid[2]))
    assert sweep("latent_dim=2,4", "beta=0.1,4") == grid[0] and trained == []
    assert "trial 0:" not in capsys.readouterr().out


def test_finished_runs_of_the_same_config_are_taken(grid, trained, monkeypatch):
    """Also by another sweep, whose pruner sees their epochs."""
    monkeypatch.setenv("VAE_RUNS", str(grid[2]))
    results = sweep("latent_dim=2,3", "beta=4", "--study", str(grid[2] / "other.db"))
    assert [config.latent_dim for config in trained] == [3]
    assert (grid[2] / "other.png").exists() and len(results["trials"]) == 2


def test_preset_and_choices_are_swept_and_reach_the_command(trained):
    results = sweep("--preset", "best", "norm=none,batch", "lr=0.002")
    assert {(c.norm, c.lr, c.residual, c.likelihood) for c in trained} == {(n, 0.002, 1, "gaussian") for n in ("none", "batch")}
    assert "--preset best" in results["command"] and "--lr 0.002" in results["command"]


def test_autoencoder_and_vae_are_compared_by_reconstruction():
    results = sweep("model=vae,ae", "--lr", "0.01")
    assert results["minimised"] == "validation reconstruction_nats"
    assert {row["model"]: row["kl_nats"] == 0 for row in results["trials"]} == {"vae": False, "ae": True}
    assert results["trials"][0]["reconstruction_nats"] <= results["trials"][1]["reconstruction_nats"]


def test_a_diverged_trial_is_told_and_the_sweep_goes_on(capsys):
    results = sweep("lr=1e30,0.001")
    assert [row["state"] for row in results["trials"]] == ["finished", "diverged"]
    assert "stopped being a finite number" in results["trials"][1]["message"]
    assert "| diverged |" in capsys.readouterr().out and "--lr 0.001" in results["command"]


def test_a_sweep_without_a_finished_trial_is_an_error(capsys):
    assert "No trial was finished" in refused(train.main, [*TINY, "--sweep", "lr=1e30,1e31"], capsys)


# ── Stopped, killed, shared ─────────────────────────────────────────────────────────────────────

def start(*arguments):
    """`train.py --sweep …` in a process of its own, slow enough to be met in the middle: a second or more for each trial."""
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *SLOW, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


SLOW = ["--dataset", "shapes", "--batch_size", "32", "--width", "8", "--max_images", "768"]
POINTS = ["--sweep", "latent_dim=2,3,4,5"]


def wait_for_runs(process, count):
    """Until the process has begun its count-th training."""
    end = time.time() + 60
    while process.poll() is None and time.time() < end:
        if len([p for p in vae.runs_root().glob("shapes-*") if p.is_dir()]) >= count:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(process.communicate()[0])


def test_after_a_kill_the_rest_is_trained_and_nothing_twice(trained, monkeypatch, capsys):
    process = start(*POINTS)
    wait_for_runs(process, 2)
    process.kill()
    process.communicate()
    monkeypatch.setattr(train, "STALE", 1)
    results = train.main([*SLOW, *POINTS])
    assert [config.latent_dim for config in trained] in ([3, 4, 5], [4, 5, 3], [4, 3, 5])   # 3 once it is known to be dead
    assert sorted(values(results, "latent_dim")) == [(2,), (3,), (4,), (5,)]
    assert all(row["state"] == "finished" for row in results["trials"])


def test_two_processes_share_a_study_and_train_each_point_once(trained, tmp_path, capsys):
    study = ["--study", str(tmp_path / "shared.db")]
    process = start(*POINTS, *study)
    wait_for_runs(process, 1)
    mine = train.main([*SLOW, *POINTS, *study])
    said, _ = process.communicate(timeout=60)
    here = {config.latent_dim for config in trained}
    there = {d for d in (2, 3, 4, 5) if f": latent_dim {d}\n" in said}
    assert here and there and not here & there and here | there == {2, 3, 4, 5} and len(trained) == len(here)
    assert process.returncode == 0 and said.count("| finished |") == 4 and len(mine["trials"]) == 4


def stop_at(trained, monkeypatch, count, error):
    """The count-th training fails with this error."""
    original = vae.train_run

    def train_run(*arguments, **options):
        if len(trained) == count - 1:
            monkeypatch.setattr(vae, "train_run", original)
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(vae, "train_run", train_run)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")], ids=lambda e: type(e).__name__)
def test_a_stopped_trial_is_free_at_once(trained, monkeypatch, error):
    stop_at(trained, monkeypatch, 2, error)
    with pytest.raises(type(error)):
        sweep("latent_dim=2,3")
    assert values(sweep("latent_dim=2,3"), "latent_dim") == [(2,), (3,)]
    assert [config.latent_dim for config in trained] == [2, 3]


def test_a_training_process_shows_that_it_lives(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "BEAT", 0.02)
    sweep("latent_dim=2", "--study", str(tmp_path / "s.db"))
    [trial] = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 's.db'}").trials
    assert trial.datetime_start.timestamp() < trial.user_attrs["alive"] <= trial.datetime_complete.timestamp()


# ── Sampled search ──────────────────────────────────────────────────────────────────────────────

SAMPLED = ["lr=1e-4..1e-2", "latent_dim=2..9", "beta=0.5,1,2", "--trials"]


def test_a_sampled_search_is_seeded_and_goes_on_after_a_stop_as_it_would_have(trained, monkeypatch, tmp_path):
    names = ("lr", "latent_dim", "beta")
    first = values(sweep(*SAMPLED, "2"), *names)
    assert all(1e-4 <= lr <= 1e-2 and d in range(2, 10) and beta in (0.5, 1, 2) for lr, d, beta in first) and len(set(first)) == 2
    more = values(sweep(*SAMPLED, "3"), *names)   # the same study, one trial more
    assert more[:2] == first and len(more) == 3 and len(trained) == 3
    monkeypatch.setenv("VAE_RUNS", str(tmp_path / "again"))
    trained.clear()
    stop_at(trained, monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep(*SAMPLED, "3")
    assert values(sweep(*SAMPLED, "3"), *names) == more
    assert values(sweep(*SAMPLED, "1", "--seed", "1"), *names) != first[:1]


def test_ranges_are_log_uniform_for_floats_above_zero_and_whole_for_whole_numbers():
    results = sweep("lr=1e-6..1", "ema=0..0.5", "latent_dim=2..9", "--trials", "1")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{next((vae.runs_root() / 'sweeps').glob('*.db'))}")
    kinds = study.trials[0].distributions
    assert kinds["lr"].log and not kinds["ema"].log and isinstance(kinds["latent_dim"], optuna.distributions.IntDistribution)
    assert results["swept"]["lr"] == {"low": 1e-6, "high": 1.0} and isinstance(results["trials"][0]["latent_dim"], int)


def test_hopeless_trials_are_pruned_when_asked_and_a_full_grid_is_not(monkeypatch):
    monkeypatch.setenv("VAE_EPOCHS", "4")
    points = "lr=0.001,0.002,0.003,0.004,0.005,1e-9"
    pruned = sweep(points, "--prune")["trials"]
    assert [row["state"] for row in pruned] == ["finished"] * 5 + ["pruned after epoch 3"]
    assert pruned[-1]["lr"] == 1e-9 and pruned[-1]["total_nats"] > pruned[0]["total_nats"]
    assert {row["state"] for row in sweep(points)["trials"]} == {"finished"}


# ── Mistakes ────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("arguments, says", [
    (["likelihood=bernoulli,gaussian"], "likelihoods cannot be compared"), (["dataset=mnist,shapes"], "different images"),
    (["image_size=16,32"], "summed over the pixels"), (["max_images=10,20"], "same images"), (["data_dir=a,b"], "different images"),
    (["channels=1,3"], "follows from"), (["depht=1,2"], "no setting 'depht'"), (["latent_dim="], "names no values"), (["lr=1,,2"], "a number"),
    (["latent_dim=2,1.5"], "whole number"), (["beta=1,high"], "a number"), (["beta=1,-1"], "beta must be"), (["arch=conv,resnet"], "resnet"),
    (["beta=1", "beta=2"], "twice"), (["width=8,16"], "--width and --sweep width"), (["depth=2,9"], "9 halvings"),
    (["arch=conv,fc", "norm=none,batch"], "arch conv"), (["beta=0.5,4", "model=vae,ae"], "model ae has none: leave beta out"), (["epochs=1,2"], "the same model"),
    (["lr=1e-4..1e-2"], "--trials N"), (["lr=1e-2..1e-4", "--trials", "2"], "smaller one first"), (["arch=conv..fc", "--trials", "2"], "two numbers"),
    (["beta=-1..1", "--trials", "2"], "beta must be"), (["beta=1,2", "--trials", "2"], "only 2 combinations"), (["beta=1,2", "--trials", "0"],
    "at least 1"), (["--trials", "3"], "--sweep"), (["beta=1,2", "--out", "x"], "--out"), (["beta=1,2", "--study", "x.json"], ".db")],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_a_sweep_that_cannot_be_is_refused_in_one_line(arguments, says, trained, capsys):
    argv = [*TINY, *(part for a in arguments for part in (["--sweep", a] if "=" in a else [a]))]
    assert says in refused(train.main, argv, capsys)
    assert not trained and not vae.runs_root().exists()


def test_a_file_of_another_sweep_or_that_is_no_database_is_refused(tmp_path, capsys):
    study = ["--study", str(tmp_path / "s.db")]
    sweep("latent_dim=2", *study)
    assert "another --study" in refused(train.main, [*TINY, "--sweep", "latent_dim=2,3", *study], capsys)
    (tmp_path / "text.db").write_text("no database " * 1000)
    assert "as a database" in refused(train.main, [*TINY, "--sweep", "latent_dim=2", "--study", str(tmp_path / "text.db")], capsys)
    assert not (tmp_path / "text.db.lock").exists()


def test_without_optuna_a_sweep_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in refused(train.main, [*TINY, "--sweep", "beta=1,4"], capsys)


def test_a_conditional_model_can_be_swept(trained):
    """It is measured with the labels of the validation images."""
    results = sweep("beta=0.5,1", "--model", "cvae", "--latent_dim", "2")
    assert len(trained) == 2 and {row["state"] for row in results["trials"]} == {"finished"}


def test_models_of_different_likelihoods_are_not_compared():
    with pytest.raises(vae.VAEError, match="give one with --likelihood"):
        sweep("model=vae,wae")
