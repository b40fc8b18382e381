"""Train a VAE: arguments → a data set, a model, vae_helpers.fit → a run folder that evaluate.py reads.

    python train.py --epochs 50 --batch_size 64 --latent_dim 64
    python train.py --dataset folder --data_dir data/NAME --image_size 64
    python train.py --dataset fashion_mnist --arch fc --latent_dim 20
    python train.py --preset best
    python train.py --sweep latent_dim=2,10,20,50,100 --sweep beta=0.1,1,4,10
    python train.py --sweep lr=1e-4..1e-2 --sweep batch_size=32,64,128 --trials 30
    torchrun --nproc_per_node=2 train.py --dataset celeba      on several GPUs, or several processors
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import shlex
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, NamedTuple, Sequence

import numpy as np
import torch

import vae_helpers as vae

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"int": int, "int | None": int, "float": float, "float | None": float}   # of Config's fields, by annotation; the others are text


def parser() -> argparse.ArgumentParser:
    """One flag per field of vae_helpers.Config, with the help text that stands there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                usage="python train.py [--FLAG VALUE …]")
    for f in dataclasses.fields(vae.Config):
        if f.name in ("channels", "conditions"):   # known once the images are loaded
            continue
        shown = f" (default {f.default})" if f.default is not None and f.name != "dataset" else ""
        if f.name == "dataset":
            shown = " (when not given: cifar10, or the drawn shapes where that cannot be had)"
        # every default is None here, so that only what was typed is handed on
        choices = f.metadata["choices"]   # Config checks them, in one sentence for scripts and notebooks alike
        p.add_argument(f"--{f.name}", type=KINDS.get(f.type, str), metavar="{%s}" % ",".join(choices) if choices else "N" if
                       f.type in KINDS else "DIR", help=f.metadata["help"] + shown)
    p.add_argument("--preset", metavar="{%s}" % ",".join(vae.PRESETS), help="a named set of choices, which other flags override: the "
                   "assignment's plain VAE, or the best of its size on CIFAR-10 (default assignment)")
    p.add_argument("--out", metavar="DIR", type=Path, help="the run folder to write (default runs/<a name made of the settings>)")
    p.add_argument("--resume", action="store_true", default=None, help="go on from the last finished epoch of the same command, "
                   "however it ended; without it the run starts anew")
    sweep = p.add_argument_group("many runs at once")
    sweep.add_argument("--sweep", metavar="FIELD=VALUES", action="append", help="train every combination of the values, like "
                       "latent_dim=2,10,20; give it once for each field, and start it again to go on after a stop, or beside it to help")
    sweep.add_argument("--trials", metavar="N", type=int, help="try N of the combinations instead, chosen by what was good so far; "
                       "VALUES can then be a range, too, like lr=1e-4..1e-2, and hopeless trials are stopped early")
    sweep.add_argument("--prune", action="store_true", default=None, help="stop hopeless trials early also where all combinations are trained")
    sweep.add_argument("--study", metavar="FILE.db", type=Path, help="where the sweep keeps its results (default runs/sweeps/<a name made of "
                       "the settings>.db)")
    return p


def main(argv: list[str] | None = None) -> vae.Run | dict:
    """Parse, train, save; returns the run, or the results of a sweep. Raises VAEError on what the user can mend."""
    given = {k: v for k, v in vars(parser().parse_args(argv)).items() if v is not None}
    out, preset, resume = given.pop("out", None), given.pop("preset", "assignment"), given.pop("resume", False)
    sweep, trials, prune, study = (given.pop(name, None) for name in ("sweep", "trials", "prune", "study"))
    if preset not in vae.PRESETS:
        raise vae.VAEError(f"--preset must be one of {', '.join(vae.PRESETS)}, not {preset!r}.")
    if not sweep and (trials is not None or prune or study):
        raise vae.VAEError("--trials, --prune and --study are for --sweep FIELD=VALUES.")
    typed, space = given, parse_sweep(sweep or [], given, trials)
    given = vae.PRESETS[preset] | given
    if "data_dir" in given:
        given.setdefault("dataset", "folder")
    named = "dataset" in given
    for point in points(space):          # a wrong value is told before any image is loaded; without a sweep there is one point: {}
        vae.Config(**given | point | vae.epochs_wanted())
    vae.precision_name()                 # likewise
    if sweep and resume:
        raise vae.VAEError("--resume is for one run; a sweep goes on where it was stopped by itself: leave it out.")
    if sweep and out:
        raise vae.VAEError("--out names one run folder, and a sweep writes one for each trial: leave it out.")
    if study and study.suffix != ".db":
        raise vae.VAEError(f"--study {study}: the name must end in .db.")
    if out and out.exists() and not out.is_dir():
        raise vae.VAEError(f"--out {out} is a file: name a folder.")
    rank, world = vae.workers()
    load = functools.partial(
        vae.load_dataset, given.pop("dataset", "cifar10"), data_dir=given.get("data_dir"), or_shapes=not named,
        image_size=given.pop("image_size", None), max_images=given.get("max_images"), download=rank == 0)
    if sweep and world > 1:
        raise vae.VAEError("A sweep shares its trials through its study: start train.py --sweep several times, without torchrun.")
    data = load() if rank == 0 else None     # the first process downloads and decodes, then the others find it done
    if world > 1:
        torch.distributed.barrier()
    data = data or load()
    print(f"{data.title}: {len(data.train.images):,} training, {len(data.val.images):,} validation, "
          f"{len(data.test.images):,} test images of {data.channels}x{data.image_size}x{data.image_size}, on {vae.hardware()}"
          + (f", in {world} processes" if world > 1 else ""))
    if sweep:
        typed = ({"preset": preset} if preset != "assignment" else {}) | typed
        return Sweep(space, given, typed, data, trials, bool(prune), study).run()
    config = vae.config_for(data, **given)
    out = out or vae.runs_root() / config.run_name
    run = finished_run(out, config, data) if resume else None
    if not run:
        run = vae.train_run(config, data, out, resume=resume)
    if rank:
        return run
    for row in run.record["history"]:
        print(f"epoch {row['epoch']:3}  validation: reconstruction {row['val_reconstruction_nats']:9.1f}  "
              f"KL {row['val_kl_nats']:7.1f}  total {row['val_total_nats']:9.1f} nats   {row['seconds']:6.0f} s" +
              (f"   penalty {row['train_penalty']:.2f}" if row["train_penalty"] else ""))
    test = run.record["test"]
    print(f"test: reconstruction {test['reconstruction_nats']:.1f} + KL {test['kl_nats']:.1f} = {test['total_nats']:.1f} nats per image, "
          f"MSE {test['mse']:.4f}\nsaved in {out}; next: python evaluate.py --run {out}")
    return run


def finished_run(folder: Path, config: vae.Config, data: vae.ImageData) -> vae.Run | None:
    """The run in a folder, if it is finished. Raises VAEError when it is another one than was asked for: nothing is overwritten."""
    if not (folder / "model.json").is_file() and not (folder / vae.TRAINING).is_file():
        return None
    try:
        found, record = vae.read_record(folder)
    except vae.CheckpointError as err:
        print(f"Passed over: {err}")
        return None
    if found != config or record["data"]["fingerprint"] != data.fingerprint:
        other = [f"{f.name} {getattr(found, f.name)}" for f in dataclasses.fields(found) if getattr(found, f.name) != getattr(config, f.name)]
        raise vae.VAEError(f"--resume: {folder} holds another run ({', '.join(other) or 'of other images'}): give its settings, or another --out.")
    return vae.Run(config, *vae.load_checkpoint(folder), "finished before") if "test" in record else None


# ── Sweeps ──────────────────────────────────────────────────────────────────────────────────────
#
# The database is Optuna's, so its dashboard and its Python interface read it, too. Who trains which trial is settled here, under
# a lock: Optuna's own GridSampler and queue can hand one point to two processes that share an SQLite file.

BEAT, STALE = 5, 30   # seconds: a process notes every BEAT that its trial is being trained; after STALE without, it was killed
NOT_SWEPT = {"likelihood": "nats of different likelihoods cannot be compared",
             "dataset": "nats of different images cannot be compared",
             "data_dir": "nats of different images cannot be compared",
             "image_size": "nats are summed over the pixels, so those of different sizes cannot be compared",
             "max_images": "all trials of a sweep see the same images",
             "channels": "it follows from the images",
             "conditions": "it follows from the images"}


class Range(NamedTuple):
    """The ends of what is drawn from: log-uniform for floats above 0, else uniform."""

    low: float
    high: float


def parse_sweep(sweeps: list[str], typed: dict, trials: int | None) -> dict[str, list | Range]:
    """FIELD=VALUES, FIELD=VALUES, … → the values of each field, of the types that Config has. Raises VAEError."""
    fields = {f.name: f for f in dataclasses.fields(vae.Config)}
    space: dict[str, list | Range] = {}
    for text in sweeps:
        name, _, listed = text.partition("=")
        if name not in fields:
            raise vae.VAEError(f"--sweep {text}: there is no setting {name!r}; choose from {', '.join(n for n in fields if n not in NOT_SWEPT)}.")
        if name in NOT_SWEPT:
            raise vae.VAEError(f"{name} cannot be swept: {NOT_SWEPT[name]}.")
        if name in space:
            raise vae.VAEError(f"--sweep {name} is given twice: put all its values into one list.")
        if name in typed:
            raise vae.VAEError(f"--{name} and --sweep {name} contradict each other: leave one out.")
        if not listed:
            raise vae.VAEError(f"--sweep {text} names no values: write {name}=VALUE,VALUE.")
        kind, ends = KINDS.get(fields[name].type, str), listed.split("..")
        try:
            values = [kind(value) for value in (ends if len(ends) == 2 else listed.split(","))]
        except ValueError:
            raise vae.VAEError(f"--sweep {text}: every value must be a {'whole ' if kind is int else ''}number.") from None
        if len(ends) == 2:
            if kind is str or not values[0] < values[1]:
                raise vae.VAEError(f"--sweep {text}: a range needs two numbers, the smaller one first.")
            if trials is None:
                raise vae.VAEError(f"--sweep {text}: a range has no end of values, say with --trials N how many to try.")
        space[name] = Range(*values) if len(ends) == 2 else list(dict.fromkeys(values))
    combinations = len(points(space))
    if trials is not None and trials < 1:
        raise vae.VAEError(f"--trials must be at least 1, not {trials}.")
    if trials is not None and trials >= combinations and not any(isinstance(values, Range) for values in space.values()):
        raise vae.VAEError(f"There are only {combinations} combinations: leave out --trials {trials} to train them all.")
    return space


def points(space: dict[str, list | Range]) -> list[dict]:
    """Every combination of the values; of a range, its two ends."""
    return [dict(zip(space, values)) for values in itertools.product(*space.values())]


def in_words(point: dict) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items())


class Sweep:
    """Many runs that differ in some fields of Config, compared by the validation images; see README.md, "From a shell".

    What is minimised is the validation total at beta = 1, the negative ELBO, so that runs of every beta have one scale. Where ae
    or wae is among them it is the reconstruction, because their codes have no price.
    """

    def __init__(self, space: dict[str, list | Range], given: dict, typed: dict, data: vae.ImageData, trials: int | None, prune: bool,
                 file: Path | None):
        try:
            import optuna
        except ImportError:
            raise vae.VAEError("A sweep needs Optuna: pip install optuna.") from None
        from optuna.storages.journal import JournalFileOpenLock
        optuna.logging.set_verbosity(optuna.logging.ERROR)   # what a user should know is printed here
        self.optuna, self.State, self.space, self.given, self.typed, self.data, self.trials = (
            optuna, optuna.trial.TrialState, space, given, typed, data, trials)
        configs: dict[vae.Config, dict] = {}
        for point in points(space):
            config = self.config(point)
            if config in configs:
                raise vae.VAEError(f"{in_words(configs[config])} and {in_words(point)} are the same model here: sweep only what changes it.")
            configs[config] = point
        if len({config.likelihood for config in configs}) > 1:
            raise vae.VAEError(f"These models have different likelihoods of their own, and {NOT_SWEPT['likelihood']}: give one with --likelihood.")
        self.goal = "reconstruction_nats" if any(not config.has_price for config in configs) else "total_nats"
        self.swept = {name: values._asdict() if isinstance(values, Range) else values for name, values in space.items()}   # as JSON
        prune = prune or trials is not None
        content = [data.fingerprint, trials is not None, prune, self.swept, [dataclasses.asdict(config) for config in configs]]
        name = "-".join([data.name, *space, hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]])
        self.file = file or vae.runs_root() / "sweeps" / f"{name}.db"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.lock = JournalFileOpenLock(str(self.file))
        patience = 2 + max(config.kl_warmup for config in configs)   # epochs in which nothing is judged
        pruner = optuna.pruners.MedianPruner(5, patience + 1) if prune else optuna.pruners.NopPruner()
        with self.database(), self.locked():
            storage = optuna.storages.RDBStorage(f"sqlite:///{self.file}", {"connect_args": {"timeout": 60}})
            if set(optuna.get_all_study_names(storage)) - {name}:
                raise vae.VAEError(f"{self.file} holds a sweep of other settings, values or images: name another --study, or leave it out.")
            self.study = optuna.create_study(storage=storage, study_name=name, pruner=pruner, load_if_exists=True)

    def config(self, point: dict) -> vae.Config:
        return vae.config_for(self.data, **self.given | point)

    @contextlib.contextmanager
    def database(self) -> Iterator[None]:
        """What goes wrong with the file in here is told in one sentence."""
        from sqlalchemy.exc import SQLAlchemyError   # Optuna's way to the file
        try:
            yield
        except (SQLAlchemyError, self.optuna.exceptions.StorageInternalError) as err:
            reason = str(err.__cause__ or err).splitlines()[0]
            raise vae.VAEError(f"{self.file} cannot be used as a database ({reason}): mend that, or name another --study.") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time."""
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def run(self) -> dict:
        """Train until no trial is left; write and print the results, and return them as they stand in the JSON file."""
        waited = False
        with self.database():
            while True:
                if trial := self.claim():
                    self.train(trial)
                elif running := self.study.get_trials(states=(self.State.RUNNING,)):
                    if not waited:
                        print(f"{len(running)} left in other processes: waiting until they are done, or silent for {STALE} s", flush=True)
                    waited = True
                    time.sleep(1)
                else:
                    return self.results()

    def claim(self):
        """The next trial, from now on this process's own; None when every trial has been given out.

        A trial whose process was killed or stopped is given out again, with the same values.
        """
        study, State = self.study, self.State
        with self.locked():
            for trial in study.get_trials(states=(State.RUNNING,)):
                if time.time() - trial.user_attrs.get("alive", trial.datetime_start.timestamp()) > STALE:
                    study.tell(trial.number, state=State.FAIL)
            states = {State.FAIL: [], State.RUNNING: [], State.COMPLETE: [], State.PRUNED: [], State.WAITING: []}
            for trial in study.get_trials():
                states[trial.state].append(trial.params)
            taken = states[State.RUNNING] + states[State.COMPLETE] + states[State.PRUNED]
            wanted = points(self.space) if self.trials is None else [params for params in states[State.FAIL] if params]
            left = [point for point in wanted if point not in taken]
            if left and not states[State.WAITING]:   # one waits only when its process was killed between the next two lines
                study.enqueue_trial(left[0])
            elif not left and (self.trials is None or len(taken) >= self.trials):
                return None
            # each draw has its own seed, so that a search that was stopped goes on as it would have
            seed = (1_000_003 * self.given.get("seed", 0) + len(taken)) % 2 ** 32
            study.sampler = self.optuna.samplers.TPESampler(seed=seed)
            return study.ask({name: self.distribution(values) for name, values in self.space.items()})

    def distribution(self, values: list | Range):
        kinds = self.optuna.distributions
        if isinstance(values, list):
            return kinds.CategoricalDistribution(values)
        if isinstance(values.low, int):
            return kinds.IntDistribution(*values)
        return kinds.FloatDistribution(*values, log=values.low > 0)

    def train(self, trial) -> None:
        """Train one trial into its run folder, or take the finished run of the same config and data, and store its numbers."""
        config = self.config(trial.params)
        print(f"trial {trial.number}: {in_words(trial.params)}", flush=True)

        reported = 0

        def report(history: list[dict]) -> None:
            nonlocal reported
            for row in history[reported:]:   # the last one, and those before a trial that goes on was stopped
                numbers = {key: row[f"val_{key}"] for key in ("reconstruction_nats", "kl_nats")}
                numbers["total_nats"] = sum(numbers.values())   # val_total_nats is weighted with beta
                trial.report(numbers[self.goal], row["epoch"])
            reported = len(history)
            if not found and row["epoch"] < config.epochs and trial.should_prune():
                trial.set_user_attr("numbers", numbers | {"seconds": row["seconds"]})
                raise self.optuna.TrialPruned(f"pruned after epoch {row['epoch']}")

        found = None if vae.switched_on("VAE_TRAIN") else vae.own_run(config, self.data)
        try:
            for epoch in range(len(found.record["history"]) if found else 0):   # the pruner compares others with them
                report(found.record["history"][:epoch + 1])
            with self.heartbeat(trial):
                run = found or vae.train_run(config, self.data, on_epoch=report)
                numbers = vae.evaluate(run.model, *self.data.val) | {"seconds": run.record["seconds"]}
            trial.set_user_attr("numbers", numbers)
            trial.set_user_attr("run", found.origin.removeprefix("your run ") if found else config.run_name)
            self.study.tell(trial, numbers[self.goal])
            print(f"  validation: reconstruction {numbers['reconstruction_nats']:.1f} + KL {numbers['kl_nats']:.1f} = "
                  f"{numbers['total_nats']:.1f} nats   {numbers['seconds']:.0f} s{', ' + run.origin if found else ''}")
        except (self.optuna.TrialPruned, vae.TrainingDiverged) as err:
            trial.set_user_attr("message", str(err))
            self.study.tell(trial, state=self.State.PRUNED)
            print(f"  {err}")
        except self.optuna.exceptions.UpdateFinishedTrialError:   # after STALE seconds of standing still, as in a laptop that slept
            print("  another process has taken this trial over")
        except BaseException:   # whatever stops the sweep: the trial is free again
            with contextlib.suppress(self.optuna.exceptions.StorageInternalError):   # a full disk: then it is after STALE
                self.study.tell(trial, state=self.State.FAIL, skip_if_finished=True)
            raise

    @contextlib.contextmanager
    def heartbeat(self, trial) -> Iterator[None]:
        """While this lasts, other processes see that somebody trains the trial."""
        stopped = threading.Event()

        def beat() -> None:
            with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):
                while not stopped.wait(BEAT):
                    trial.set_user_attr("alive", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def results(self) -> dict:
        """Print the table and the best command; write FILE.json and FILE.png beside the database."""
        rows = []
        for trial in self.study.get_trials(states=(self.State.COMPLETE, self.State.PRUNED)):
            numbers, message = trial.user_attrs.get("numbers", {}), trial.user_attrs.get("message")
            state = "finished" if message is None else message if numbers else "diverged"
            rows.append({"trial": trial.number, **trial.params, **numbers, "state": state, "message": message,
                         "run": trial.user_attrs.get("run")})
        rows.sort(key=lambda row: (row["state"] != "finished", row.get(self.goal, float("inf"))))
        columns = {"reconstruction (nats)": ("reconstruction_nats", ",.1f"), "KL (nats)": ("kl_nats", ",.1f"),
                   "total (nats)": ("total_nats", ",.1f"), "MSE": ("mse", ".4f"), "active dimensions": ("active_dims", "d"),
                   "training (s)": ("seconds", ",.0f")}
        kind = "total at beta 1" if self.goal == "total_nats" else "reconstruction"
        print(f"\n{self.data.title}: validation images, best {kind} first\n")
        print(vae.markdown_table([{"trial": row["trial"], **{n: in_words({n: row[n]}).split()[1] for n in self.space},
                                   **{name: format(row[key], spec) if key in row else "–" for name, (key, spec) in columns.items()},
                                   "state": row["state"]} for row in rows]))
        content = {"data": self.data.title, "minimised": f"validation {self.goal}", "swept": self.swept, "trials": rows}
        finished = {str(row["trial"]): row for row in rows if row["state"] == "finished"}
        if not finished:
            raise vae.VAEError("No trial was finished: see the table, and try other values.")
        content["command"] = self.command(rows[0])
        vae.write_json(self.file.with_suffix(".json"), content)
        plot_sweep(finished, list(self.space), f"{self.data.title}\n{len(finished)} models, validation images").savefig(
            self.file.with_suffix(".png"), dpi=130)
        print(f"\nwritten: {self.file.with_suffix('.json')}, and .png\nbest: {content['command']}\n"
              f"next: python evaluate.py --run {vae.runs_root() / rows[0]['run']}")
        return content

    def command(self, best: dict) -> str:
        """What trains the best model again, in a shell."""
        config = self.config({name: best[name] for name in self.space})
        flags = {"dataset": self.data.name} | self.typed | {name: getattr(config, name) for name in (*self.space, "epochs")}
        return shlex.join(["python", "train.py", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))])


def plot_sweep(results: dict[str, dict], swept: Sequence[str], title: str) -> Figure:
    """Rate (KL) against distortion of named runs, and both against latent_dim where that was swept.

    Each result holds the swept fields, kl_nats and reconstruction_nats. A colour joins the runs that differ in one field only
    (latent_dim where it was swept), whose values stand at the points; with more colours than can be told apart, the names do.
    """
    text = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)   # noqa: E731
    along = "latent_dim" if "latent_dim" in swept else swept[0]
    groups: dict[str, dict[str, dict]] = {}
    for name, r in sorted(results.items(), key=lambda item: item[1][along]):
        groups.setdefault(", ".join(f"{field} {text(r[field])}" for field in swept if field != along), {})[name] = r
    named = len(groups) > 10
    panels = ("rate", "reconstruction_nats", "kl_nats") if along == "latent_dim" else ("rate",)
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels) + 1.2, 4), layout="constrained", squeeze=False)
    for colour, (label, group) in enumerate(groups.items()):
        style = {"marker": "o", "ms": 5, "ls": "" if named else "-", "color": "C0" if named else f"C{colour}", "label": label}
        at = {key: [r[key] for r in group.values()] for key in ("kl_nats", "reconstruction_nats", along)}
        axes[0, 0].plot(at["kl_nats"], at["reconstruction_nats"], **style)
        for ax, key in zip(axes[0, 1:], panels[1:]):
            ax.plot(at[along], at[key], **style)
    labels: dict[tuple[float, float], list[str]] = {}   # points that lie on each other share one label
    near = 0.06 * np.ptp([(r["kl_nats"], r["reconstruction_nats"]) for r in results.values()], axis=0)
    for group in groups.values():
        for name, r in group.items():
            point, label = (r["kl_nats"], r["reconstruction_nats"]), name if named else text(r[along])
            point = next((other for other in labels if (np.abs(np.subtract(point, other)) <= near).all()), point)
            if label not in labels.setdefault(point, []):
                labels[point].append(label)
    for point, names in labels.items():
        axes[0, 0].annotate(", ".join(names[:5]) + (" …" if len(names) > 5 else ""), point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes[0, 0].set(xlabel="rate: KL (nats per image)", ylabel="distortion: reconstruction (nats per image)",
                   title=f"at the points: {'the trial' if named else along}")
    for ax, key in zip(axes[0, 1:], ("reconstruction", "KL")):
        ax.set(xscale="log", xlabel="latent_dim", ylabel=f"{key} (nats per image)", title=f"{key} against latent_dim")
        ax.set_xticks(sizes := sorted({r["latent_dim"] for r in results.values()}), map(str, sizes))
        ax.minorticks_off()
    for ax in axes[0]:
        ax.margins(0.1)
        ax.grid(alpha=0.3)
    if len(groups) > 1 and not named:
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    fig.suptitle(title)
    return fig


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes of `torchrun --nproc_per_node=N`, a GPU each; the first one speaks for all. Alone, nothing happens.

    Raises VAEError where there are fewer GPUs than processes.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        yield
        return
    device, here = vae.get_device(), int(os.environ["LOCAL_RANK"])
    with contextlib.ExitStack() as silence:
        if int(os.environ["RANK"]):
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        if device.type == "cuda" and (device.index is not None or here >= torch.cuda.device_count()):
            raise vae.VAEError(f"Each process needs a GPU of its own, and there are {torch.cuda.device_count()}: name a smaller --nproc_per_node, and "
                               "VAE_DEVICE without a number.")
        if device.type == "cuda":
            torch.cuda.set_device(here)
        elif device.type != "cpu":
            os.environ["VAE_DEVICE"] = "cpu"   # PyTorch adds up over processes on CUDA and on processors only
        # the others wait while the first one downloads and decodes
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=6))
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def command() -> None:
    with together():
        main()


if __name__ == "__main__":
    vae.run_script(command)
