"""Many runs that differ in some settings, compared on the validation images: train.py --sweep.

Optuna chooses the settings, keeps the results in a database and stops hopeless trials. Every
trial is an ordinary run folder. What is minimised is reconstruction + rate (beta = 1).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import shlex
import warnings
from collections.abc import Callable

import matplotlib.pyplot as plt
import optuna
from optuna.trial import TrialState

import vae_helpers as vae
from base.options import override
from support import runs

# Other images or another likelihood would give nats that cannot be compared.
FIXED = ("dataset", "data_dir", "image_size", "max_images", "channels", "conditions", "likelihood")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
SHOWN = ("val_reconstruction_nats", "val_kl_nats", "seconds")

Space = dict[str, list | tuple]  # field of Config → its values, or of a range (low, high)

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)  # train prints what a user should know
retry = optuna.storages.RetryHeartbeatStaleTrialCallback()  # queues a trial that was cut off


def parse_space(sweeps: list[str]) -> Space:
    """["beta=0.1,1,4", "latent_dim=2..50"] → {"beta": [0.1, 1, 4], "latent_dim": (2, 50)}."""
    types = {f.name: f.type for f in dataclasses.fields(vae.Config) if f.name not in FIXED}
    space = {}
    for text in sweeps:
        name, _, values = text.partition("=")
        if name not in types or name in space:
            raise vae.VAEError(
                f"--sweep {text}: give each setting once; it must be one of {', '.join(types)}."
            )
        kind = {"int": int, "float": float}.get(types[name].split()[0], str)
        is_range = ".." in values
        try:
            typed = [kind(value) for value in values.split(".." if is_range else ",")]
            if is_range and (kind is str or len(typed) != 2 or typed[0] >= typed[1]):
                raise ValueError
        except ValueError:
            raise vae.VAEError(
                f"--sweep {text}: give values like 1,2,4, or of numbers a range like 1..4."
            ) from None
        space[name] = tuple(typed) if is_range else list(dict.fromkeys(typed))
    return space


def points(space: Space) -> list[dict]:
    """All combinations of the values; of a range, its two ends."""
    return [dict(zip(space, values)) for values in itertools.product(*space.values())]


def run(
    space: Space,
    choices: dict,
    data: vae.ImageData,
    trials: int | None,
    prune: bool,
    preset: str = "plain",
) -> dict:
    """Train all combinations, or `trials` draws of Optuna's TPE; print and return the results.

    choices are what all trials have in common, as for vae.config_for; the preset gives the rest.
    The same call again goes on
    where it was stopped, and a second process may share the work. Raises VAEError when the models
    cannot be compared, or none was finished.
    """

    def make_config(**point) -> vae.Config:
        chosen = override(vae.PRESETS[preset], choices | point, vae.Config)
        return vae.config_for(data, typed=[*choices, *point], **chosen)

    configs = [make_config(**point) for point in points(space)]
    if len({(c.likelihood, vae.MODELS[c.model].has_rate) for c in configs}) > 1:
        raise vae.VAEError(
            "Nats of two likelihoods, or of codes with and without a rate, cannot be compared: "
            "sweep such models apart."
        )
    settings = f"{data.fingerprint} {space} {trials is None} {prune} {configs}"
    short_hash = hashlib.sha256(settings.encode()).hexdigest()[:8]
    study = open_study("-".join([data.name, *space, short_hash]), prune)
    objective = functools.partial(train, space=space, make_config=make_config, data=data)
    if trials is None:
        study.sampler = optuna.samplers.GridSampler(space)
        waiting = study.get_trials(states=(TrialState.WAITING,))
        if waiting or not study.sampler.is_exhausted(study):
            study.optimize(objective)
    elif len(study.get_trials(states=FINISHED)) < trials:
        # A search that goes on must not draw its first values again.
        seed = (choices.get("seed", 0) + len(study.trials)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        enough = optuna.study.MaxTrialsCallback(trials, FINISHED)
        study.optimize(objective, callbacks=[enough])
    fixed = {"preset": preset} if preset != "plain" else {}
    fixed |= {"dataset": data.name, "image_size": data.image_size} | choices
    epochs = vae.epochs_from_environment()
    if epochs is not None and "epochs" not in space:
        fixed.setdefault("epochs", epochs)
    return report(study, fixed, data)


def open_study(name: str, prune: bool) -> optuna.Study:
    """The study in runs_root()/sweeps/NAME.db, or a new one."""
    folder = runs.runs_root() / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / name}.db",
        # A trial whose process has been silent for a minute was killed: train it again.
        heartbeat_interval=10,
        grace_period=60,
        heartbeat_stale_trial_callback=retry,
    )
    # Never before five finished trials and three epochs.
    median = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
    pruner = median if prune else optuna.pruners.NopPruner()
    return optuna.create_study(storage=storage, study_name=name, pruner=pruner, load_if_exists=True)


def suggest(trial: optuna.Trial, name: str, values: list | tuple) -> int | float | str:
    """A value of one field; of a range of floats above 0 log-uniform."""
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high = values
    if isinstance(low, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=low > 0)


def train(trial: optuna.Trial, space: Space, make_config: Callable, data: vae.ImageData) -> float:
    """Train one model, or find it finished; returns what is minimised."""

    def total(history: list[dict]) -> float:  # val_total_nats is weighted with beta
        return history[-1]["val_reconstruction_nats"] + history[-1]["val_kl_nats"]

    def after_epoch(history: list[dict]) -> None:
        print(f"  {runs.epoch_line(history[-1], config)}", flush=True)
        trial.report(total(history), len(history))
        if len(history) < runs.all_epochs(config) and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {len(history)}")

    try:
        params = {name: suggest(trial, name, values) for name, values in space.items()}
        print(f"trial {trial.number}: {params}", flush=True)
        config = make_config(**params)
        run = runs.own_run(config, data) or runs.train_run(config, data, on_epoch=after_epoch)
    except (optuna.TrialPruned, vae.TrainingDiverged) as err:
        print(f"  {err}")
        raise optuna.TrialPruned from None
    except (Exception, KeyboardInterrupt):
        retry(trial.study, trial.study.trials[trial.number])
        raise
    history = run.record["history"]
    for name in SHOWN:
        trial.set_user_attr(name, round(history[-1][name], 1))
    print(f"  total {total(history):,.1f} nats")
    return total(history)


def report(study: optuna.Study, fixed: dict, data: vae.ImageData) -> dict:
    """Print the finished trials and the best command; write them to NAME.json, and NAME.png."""
    rows = []
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        numbers = {name: trial.user_attrs[name] for name in SHOWN}
        total = {"total_nats": round(trial.value, 1)}
        rows.append({"trial": trial.number} | trial.params | total | numbers)
    if not rows:
        raise vae.VAEError("No trial was finished: try other values.")
    rows.sort(key=lambda row: row["total_nats"])
    print(f"\n{data.title}, validation images:\n\n{vae.markdown_table(rows)}\n")
    command = ["python", "train.py"]
    for name, value in (fixed | study.best_params).items():
        command += [f"--{name}", str(value)]
    results = {"trials": rows, "command": shlex.join(command)}
    file = runs.runs_root() / "sweeps" / study.study_name
    vae.write_json(file.with_suffix(".json"), results)
    with plt.style.context("default"):  # plot_slice changes the style for good
        optuna.visualization.matplotlib.plot_slice(study, target_name="total (nats)")
        plt.suptitle(f"{data.title}, validation images")
        plt.savefig(file.with_suffix(".png"), dpi=130)
    print(f"best: {results['command']}\nwritten: {file}.db, .json and .png")
    return results
