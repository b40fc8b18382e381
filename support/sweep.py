"""Many runs that differ in some settings, compared on the validation images: train.py --sweep.

Optuna chooses the settings, keeps the results in a database and stops hopeless trials. Every
trial is an ordinary run folder.

Most of the file reads what was typed, refuses what cannot be compared, and prints the results; the
search itself is Optuna's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt

import vae_helpers as vae
from support import runs
from support.basics import first_line

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError  # Optuna's way to the database

    FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
except ImportError:  # only a sweep needs it
    optuna = None

# The types of Config's fields, by annotation; the others are text.
KINDS = {"int": int, "int | None": int, "float": float, "float | None": float}
NOT_SWEPT = {
    ("likelihood", "dataset", "data_dir", "image_size"): "nats could not be compared",
    ("max_images", "channels", "conditions"): "all trials see the same images",
}
COLUMNS = ("reconstruction_nats", "kl_nats", "total_nats", "mse", "seconds")


def parse_space(sweeps: list[str], trials: int | None) -> dict[str, list | tuple]:
    """["FIELD=VALUES", …] → the values of each field, typed as in Config; a range is (low, high).

    Raises VAEError.
    """
    fields = {f.name: f for f in dataclasses.fields(vae.Config)}
    space: dict[str, list | tuple] = {}
    for text in sweeps:
        name, _, values = text.partition("=")
        if name not in fields:
            raise vae.VAEError(f"--sweep {text}: there is no setting {name!r}, see --help.")
        for names, reason in NOT_SWEPT.items():
            if name in names:
                raise vae.VAEError(f"{name} cannot be swept: {reason}.")
        if name in space:
            raise vae.VAEError(f"--sweep {name} is given twice: put all its values into one list.")
        space[name] = parse_values(text, values, KINDS.get(fields[name].type, str))
    has_range = any(isinstance(values, tuple) for values in space.values())
    if has_range and trials is None:
        raise vae.VAEError("A range has no end of values: say with --trials N how many to try.")
    most = math.inf if has_range else len(points(space)) - 1
    if space and trials is not None and not 1 <= trials <= most:
        raise vae.VAEError(
            f"--trials must be from 1 to {most}, not {trials}: leave it out for all."
        )
    return space


def parse_values(text: str, values: str, kind: type) -> list | tuple:
    """The values of one field: "1,2,4" → [1, 2, 4], "1..4" → (1, 4). Raises VAEError."""
    is_range = ".." in values and kind is not str
    try:
        typed = [kind(value) for value in values.split(".." if is_range else ",")]
    except ValueError:
        number = "whole number" if kind is int else "number"
        raise vae.VAEError(f"--sweep {text}: every value must be a {number}.") from None
    if not is_range:
        return list(dict.fromkeys(typed))
    if len(typed) != 2 or not typed[0] < typed[1]:
        raise vae.VAEError(f"--sweep {text}: a range is LOW..HIGH, the smaller number first.")
    return tuple(typed)


def points(space: dict[str, list | tuple]) -> list[dict]:
    """All combinations of the values; of a range, its two ends."""
    return [dict(zip(space, values)) for values in itertools.product(*space.values())]


def run(
    space: dict[str, list | tuple],
    choices: dict,
    data: vae.ImageData,
    *,
    trials: int | None = None,
    prune: bool = False,
    study_file: Path | None = None,
) -> dict:
    """Train all combinations, or `trials` draws of Optuna's TPE; print and return the results.

    space        what differs, see parse_space
    choices      what all trials have in common, as for vae.config_for
    prune        stop a trial that is worse than the median of the others, at the earliest after
                 five finished trials and three epochs
    study_file   Optuna's database FILE.db, with FILE.json and FILE.png beside it; when not given,
                 in runs_root()/sweeps/ with a name made of the settings

    What is minimised is reconstruction + rate of the validation images (beta = 1), or the
    reconstruction alone where the codes of a model have no price.

    The same call again goes on where it was stopped. Once the first trial is under way, a second
    process may share the study; Optuna does not rule out that both then train the same point, to
    the same result, or that there are a few more draws than `trials`.

    Raises VAEError.
    """
    if optuna is None:
        raise vae.VAEError("A sweep needs Optuna: pip install optuna.")
    make_config = functools.partial(vae.config_for, data, **choices)
    configs = [make_config(**point) for point in points(space)]
    goal = goal_of(configs)
    settings = f"{data.fingerprint} {space} {trials is None} {prune} {configs}"
    short_hash = hashlib.sha256(settings.encode()).hexdigest()[:8]
    name = "-".join([data.name, *space, short_hash])
    file = study_file or runs.runs_root() / "sweeps" / f"{name}.db"
    if file.suffix != ".db":
        raise vae.VAEError(f"--study {file}: the name must end in .db.")
    objective = functools.partial(train, space=space, make_config=make_config, data=data, goal=goal)
    try:
        study = open_study(file, name, prune)
        optimize(study, objective, space, trials, choices.get("seed", 0))
        fixed = {"dataset": data.name, "image_size": data.image_size} | choices
        return report(study, goal, fixed, data.title, file)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as err:
        reason = first_line(err.__cause__ or err)
        raise vae.VAEError(f"{file} is no usable database ({reason}): name another one.") from None


def goal_of(configs: list[vae.Config]) -> str:
    """What is minimised. Raises VAEError when the models cannot be compared."""
    if len(set(configs)) < len(configs):
        raise vae.VAEError("Two combinations give the same model: sweep only what changes it.")
    if len({config.likelihood for config in configs}) > 1:
        raise vae.VAEError("Nats of two likelihoods cannot be compared: give one --likelihood.")
    has_price = all(vae.MODELS[config.model].has_price for config in configs)
    return "total_nats" if has_price else "reconstruction_nats"


def open_study(file: Path, name: str, prune: bool) -> optuna.Study:
    """The study in a database, or a new one. Raises VAEError when the file holds another one."""
    # What a user should know of a trial is printed by train.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{file}",
        {"connect_args": {"timeout": 60}},  # seconds to wait for another process
        # A trial whose process has been silent for a minute was killed: train it again.
        heartbeat_interval=10,
        grace_period=60,
        heartbeat_stale_trial_callback=requeue,
    )
    if set(optuna.get_all_study_names(storage)) - {name}:
        raise vae.VAEError(f"{file} holds another sweep: name another --study, or leave it out.")
    pruner = optuna.pruners.NopPruner()
    if prune:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
    return optuna.create_study(storage=storage, study_name=name, pruner=pruner, load_if_exists=True)


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was cut off, with its values and what it has reported."""
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    retry(study, trial)


def optimize(
    study: optuna.Study, objective: Callable, space: dict, trials: int | None, seed: int
) -> None:
    """Train what is left of the grid, or of the draws."""
    if trials is None:
        study.sampler = optuna.samplers.GridSampler(space)
        waiting = study.get_trials(states=(TrialState.WAITING,))
        if waiting or not study.sampler.is_exhausted(study):
            study.optimize(objective)
    elif len(study.get_trials(states=FINISHED)) < trials:
        # A search that goes on must not draw its first values again.
        seed = (seed + len(study.trials)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        enough = optuna.study.MaxTrialsCallback(trials, FINISHED)
        study.optimize(objective, callbacks=[enough])


def suggest(trial: optuna.Trial, name: str, values: list | tuple) -> int | float | str:
    """A value of one field; of a range of floats above 0 log-uniform."""
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high = values
    if isinstance(low, int):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=low > 0)


def train(
    trial: optuna.Trial, space: dict, make_config: Callable, data: vae.ImageData, goal: str
) -> float:
    """Train one model, or find it finished; returns what is minimised."""
    params = {name: suggest(trial, name, values) for name, values in space.items()}
    config = make_config(**params)
    print(f"trial {trial.number}: {params}", flush=True)

    def after_epoch(history: list[dict]) -> None:
        loss = history[-1]["val_reconstruction_nats"]
        if goal == "total_nats":
            loss += history[-1]["val_kl_nats"]  # val_total_nats is weighted with beta
        trial.report(loss, len(history))
        if len(history) < config.epochs and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {len(history)}")

    try:
        run = runs.own_run(config, data)
        run = run or runs.train_run(config, data, on_epoch=after_epoch)
        metrics = vae.evaluate(run.model, *data.val) | {"seconds": run.record["seconds"]}
    except (optuna.TrialPruned, vae.TrainingDiverged) as err:
        print(f"  {err}")
        trial.set_user_attr("state", str(err).partition(":")[0])
        raise optuna.TrialPruned from None
    except (Exception, KeyboardInterrupt):
        requeue(trial.study, trial.study.trials[trial.number])
        raise
    trial.set_user_attr("metrics", metrics)
    print(f"  {goal} {metrics[goal]:,.1f}")
    return metrics[goal]


def report(study: optuna.Study, goal: str, fixed: dict, title: str, file: Path) -> dict:
    """Print the table and the best command; write FILE.json and FILE.png."""
    rows = result_rows(study, goal)
    print(f"\n{title}: validation images, smallest {goal} first\n")
    table = []
    for row in rows:
        table.append({name: shown(value) for name, value in row.items()})
    print(vae.markdown_table(table))
    if rows[0]["state"] != "finished":
        raise vae.VAEError("No trial was finished: see the table, and try other values.")
    command = ["python", "train.py"]
    for name, value in (fixed | study.best_params | vae.epochs_from_environment()).items():
        command += [f"--{name}", str(value)]
    results = {"goal": goal, "trials": rows, "command": shlex.join(command)}
    vae.write_json(file.with_suffix(".json"), results)
    # plot_slice changes the style for good, and warns of a field with one value.
    with plt.style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.visualization.matplotlib.plot_slice(study, target_name=goal)
        plt.suptitle(f"{title}, validation images")
        plt.savefig(file.with_suffix(".png"), dpi=130)
        plt.close()
    print(f"\nbest: {results['command']}\nwritten: {file.with_suffix('.json')} and .png")
    return results


def result_rows(study: optuna.Study, goal: str) -> list[dict]:
    """What came out at each point, the best first; a point that was trained twice stands once."""
    rows = {}
    for trial in sorted(study.get_trials(states=FINISHED), key=rank):
        metrics = trial.user_attrs.get("metrics", {goal: trial.value})
        row = {"trial": trial.number} | trial.params
        row |= {column: metrics.get(column) for column in COLUMNS}
        row["state"] = trial.user_attrs.get("state", "finished")
        rows.setdefault(str(sorted(trial.params.items())), row)
    return list(rows.values())


def rank(trial: FrozenTrial) -> tuple[str, float]:
    """Complete trials come before pruned ones, and those without a number last."""
    return trial.state.name, math.inf if trial.value is None else trial.value


def shown(value) -> str:
    """A cell of the table."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
