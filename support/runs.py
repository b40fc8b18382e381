"""Run folders: train, save after every epoch, resume, find again, load or train.

A run folder holds one file, training.pt, while it trains: the record and the whole state after
the last finished epoch. When the run is finished, model.safetensors and model.json take its place.
In a folder with both, training.pt counts: the run there was begun anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import vae_helpers as vae
from base.errors import run_script  # noqa: F401  scripts: runs.run_script
from base.files import ROOT, write_atomically
from base.hardware import hardware, precision_name
from base.options import announce, env_flag
from support import autoencoders, conditional, vq_vae  # noqa: F401  makes them known
from support.grid_vae import all_epochs, fit_stages

RELEASED = ROOT / "checkpoints"
UNFINISHED = "training.pt"


class Run(NamedTuple):
    """A trained model with where it came from."""

    config: vae.Config
    model: vae.VAE | None  # None where only the record of a released run is there
    record: dict  # data, history, test (see vae.evaluate), seconds, hardware
    origin: str  # "trained now", "your run …", "released weights …"


def runs_root() -> Path:
    """Where runs are kept: $VAE_RUNS, else runs/ in the project."""
    return Path(os.path.expanduser(os.environ.get("VAE_RUNS") or ROOT / "runs"))


# ── Training ──


def train_run(
    config: vae.Config,
    data: vae.ImageData,
    folder: str | os.PathLike | None = None,
    *,
    progress: bool = True,
    resume: bool = True,
    on_epoch: Callable[[list[dict]], None] | None = None,
) -> Run:
    """Build, fit, measure on the test split and save: what train.py and the notebooks call.

    folder     default run_folder(config, data); it holds the last finished epoch at any time
    resume     go on with a run of the same config and data that was cut off
    on_epoch   called as by fit, after the epoch was saved

    Raises TrainingDiverged, VAEError when the folder holds another unfinished run and is not to be
    begun anew (resume=False), and OSError when it cannot be written.
    """
    folder = Path(folder or run_folder(config, data))
    folder.mkdir(parents=True, exist_ok=True)
    before = read_any_record(folder) if resume else None
    if before and not same_run(before, config, data):
        raise another_run(folder)
    model = vae.build_model(config)
    record = first_record(model.config, data, model)
    start = unfinished_run(folder, config, data) if resume else None

    def save(history: list[dict], state: dict) -> None:
        after_epoch = record | {"history": history, "seconds": history[-1]["seconds"]}
        save_unfinished(folder, after_epoch, state)

    def after_epoch(history: list[dict]) -> None:
        announce(epoch_line(history[-1], model.config))
        if on_epoch:
            on_epoch(history)

    try:
        history = fit_stages(
            model, data, progress=progress, on_epoch=after_epoch, save=save, start=start
        )
        record |= {"history": history, "seconds": history[-1]["seconds"]}
        record["test"] = vae.evaluate(model, *data.test)
    except KeyboardInterrupt:
        print(f"\nStopped. {how_to_go_on(folder)}", file=sys.stderr)
        raise
    if vae.processes()[0] == 0:
        vae.save_checkpoint(model, folder, record)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return Run(model.config, model, record, "trained now")


def epoch_line(row: dict, config: vae.Config) -> str:
    """One epoch of a history as a line."""
    stage = f" ({row['stage']})" if row.get("stage") else ""
    penalty = f"   penalty {row['train_penalty']:.2f}" if row.get("train_penalty") else ""
    return (
        f"epoch {row['epoch']:3} of {all_epochs(config)}{stage}  validation: "
        f"reconstruction {row['val_reconstruction_nats']:9.1f}  KL {row['val_kl_nats']:7.1f}  "
        f"total {row['val_total_nats']:9.1f} nats   {row['seconds']:6.0f} s{penalty}"
    )


def first_record(config: vae.Config, data: vae.ImageData, model: vae.VAE) -> dict:
    """What is known of a run before it trains."""
    record = {
        "config": dataclasses.asdict(config),
        "data": {
            "name": data.name,
            "title": data.title,
            "fingerprint": data.fingerprint,
            "train": len(data.train.images),
            "val": len(data.val.images),
            "test": len(data.test.images),
        },
        "hardware": hardware(),
        "torch": str(torch.__version__),  # as plain text, which torch.load takes for safe
        "precision": precision_name(),
        "processes": vae.processes()[1],
        "parameters": vae.count_parameters(model),
    }
    if config.conditions:
        record["data"]["conditions"] = list(conditional.condition_names(data))
    return record


def how_to_go_on(folder: Path) -> str:
    """One sentence on what a run that was cut off has left."""
    if not (folder / UNFINISHED).is_file():
        return "No epoch was finished, so nothing is saved."
    return (
        f"{folder} holds every finished epoch: the same command, or this cell again, continues "
        "from there."
    )


# ── Runs that are under way ──


def save_unfinished(folder: Path, record: dict, state: dict) -> None:
    """Replace training.pt by the record and fit's state."""
    content = io.BytesIO()  # torch.save itself would not raise OSError where the disk is full
    torch.save({"record": record, "state": state}, content)
    write_atomically(folder / UNFINISHED, lambda path: path.write_bytes(content.getbuffer()))


def read_unfinished(folder: Path) -> dict | None:
    """record and state of a run that is under way; None where there is none.

    Raises CheckpointError when the file is damaged.
    """
    path = folder / UNFINISHED
    if not path.is_file():
        return None
    with vae.refused_if_unreadable(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch itself does not compare the checksums
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {"record": content["record"], "state": content["state"]}


def unfinished_run(
    folder: Path, config: vae.Config, data: vae.ImageData
) -> tuple[list[dict], dict] | None:
    """History and state of a run of this config and data that was cut off, for fit's start.

    Raises VAEError when it is another run: nothing is overwritten.
    """
    try:
        unfinished = read_unfinished(folder)
    except vae.CheckpointError as err:
        print(f"Skipped: {err}")
        return None
    if unfinished is None:
        return None
    record = unfinished["record"]
    stage = record["history"][-1].get("stage")
    of_today = "result" in unfinished["state"]  # and not of an earlier version
    known = stage in vae.MODELS[config.model].stages(config.resolved())
    if not (same_run(record, config, data) and of_today and known):
        raise another_run(folder)
    epochs = len(record["history"])
    print(f"{folder}: going on after epoch {epochs} of {all_epochs(config.resolved())}", flush=True)
    if record["precision"] != precision_name():
        print(
            f"Note: it was begun in {record['precision']} and goes on in {precision_name()}; set "
            f"VAE_PRECISION={record['precision']} to go on as it was."
        )
    return record["history"], unfinished["state"]


def another_run(folder: Path) -> vae.VAEError:
    return vae.VAEError(
        f"{folder} holds a run of other settings or images: name another folder with --out, or "
        "begin anew there with --overwrite."
    )


def same_run(record: dict, config: vae.Config, data: vae.ImageData) -> bool:
    """Whether a record belongs to this config and these images."""
    if record.get("data", {}).get("fingerprint") != data.fingerprint:
        return False
    try:
        return vae.Config(**record["config"]).resolved() == config.resolved()
    except (TypeError, vae.VAEError):  # of another version, which knew other fields or values
        return False


def read_any_record(folder: Path) -> dict | None:
    """The record of the run in a folder, finished or not; None where there is none.

    A damaged one counts as none, and is named.
    """
    try:
        unfinished = read_unfinished(folder)
        if unfinished:
            return unfinished["record"]
        if (folder / "model.json").is_file():
            return vae.read_record(folder)[1]
    except vae.CheckpointError as err:
        print(f"Skipped: {err}")
    return None


def run_name(config: vae.Config) -> str:
    """A readable name with a short hash of all that is no default: one for each config."""
    c = config.resolved()
    own = {}
    for f in dataclasses.fields(c):
        if getattr(c, f.name) != f.default:
            own[f.name] = getattr(c, f.name)
    short_hash = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
    return (
        f"{c.dataset}-{c.arch}-{c.model}-z{c.latent_dim}-beta{c.beta:g}-seed{c.seed}-{short_hash}"
    )


def run_folder(config: vae.Config, data: vae.ImageData) -> Path:
    """Where a run of this config and these images belongs when no folder is named.

    A run of these settings on other images keeps its folder: this one gets a longer name.
    """
    folder = runs_root() / run_name(config)
    record = read_any_record(folder)
    if record is None or same_run(record, config, data):
        return folder
    return folder.with_name(f"{run_name(config)}-{data.fingerprint[:8]}")


def load_run(folder: str | os.PathLike) -> tuple[vae.VAE, dict]:
    """The model and the record of a run, finished or not (then as after its last epoch).

    Raises CheckpointError.
    """
    folder = Path(folder)
    unfinished = read_unfinished(folder)
    if unfinished is None:
        return vae.load_checkpoint(folder)
    with vae.refused_if_unreadable(folder / UNFINISHED):
        model = vae.build_model(vae.Config(**unfinished["record"]["config"]))
        model.load_state_dict(unfinished["state"]["result"])
    return model.eval(), unfinished["record"]


# ── Runs that are finished ──


def load_or_train(config: vae.Config, data: vae.ImageData, *, weights: bool = True) -> Run:
    """The reader's own finished run for this config and data, else the released one, else train.

    It prints which it was. VAE_TRAIN=1 always trains. With weights=False the record of a released
    run (its history and numbers) is enough.
    """
    config, run = config.resolved(), None
    if not env_flag("VAE_TRAIN"):
        run = own_run(config, data) or released_run(config, weights)
    run = run or train_run(config, data)
    if run.record["data"]["fingerprint"] != data.fingerprint:
        print(
            f"Note: trained on {run.record['data']['title']}, whose files are not exactly yours: "
            "its numbers are for its own test images, and some of your test images may have been "
            "among its training images."
        )
    print(
        f"{config.arch} {config.model}, width {config.width}, β = {config.beta:g}, seed "
        f"{config.seed}: {run.origin}, {config.epochs} epochs in {run.record['seconds']:.0f} s"
    )
    return run


def own_run(config: vae.Config, data: vae.ImageData) -> Run | None:
    """A finished run of this config on these images under runs_root(), if there is one."""
    for path in sorted(runs_root().glob("*/model.json")):
        try:
            run_config, record = vae.read_record(path.parent)
            same_images = record.get("data", {}).get("fingerprint") == data.fingerprint
            if run_config == config and same_images:
                model, record = vae.load_checkpoint(path.parent)
                return Run(config, model, record, f"your run {path.parent.name}")
        except vae.CheckpointError as err:
            print(f"Skipped: {err}")
    return None


def released_run(config: vae.Config, weights: bool = True) -> Run | None:
    """A released run of this config, whatever copy or subset of the data set it saw."""
    for path in sorted(RELEASED.glob("*/model.json")):
        try:
            released_config, record = vae.read_record(path.parent)
            if released_config != config:
                continue
            if (path.parent / "model.safetensors").is_file():
                model, record = vae.load_checkpoint(path.parent)
                return Run(config, model, record, f"released weights {path.parent.name}")
            if not weights:
                return Run(config, None, record, f"released record {path.parent.name}")
        except vae.CheckpointError as err:
            print(f"Skipped: {err}")
    return None


def finished_run(folder: Path, config: vae.Config, data: vae.ImageData) -> Run | None:
    """The run in a folder, if it is finished; None if it is not, or there is none.

    Raises VAEError when it is another run than the one asked for, or damaged: nothing is
    overwritten. Of a released run the record alone may be there.
    """
    try:
        unfinished = read_unfinished(folder)
        if not unfinished and not (folder / "model.json").is_file():
            return None
        record = unfinished["record"] if unfinished else vae.read_record(folder)[1]
        if not same_run(record, config, data):
            raise another_run(folder)
        if "test" not in record:
            return None
        alone = (
            not (folder / "model.safetensors").is_file() and RELEASED in folder.resolve().parents
        )
        model = None if alone else vae.load_checkpoint(folder)[0]
    except vae.CheckpointError as err:
        raise vae.VAEError(f"{err} Begin anew there with --overwrite.") from None
    return Run(config.resolved(), model, record, "finished before")


def newest_run() -> Path:
    """The run folder written last. Raises CheckpointError when there is none."""
    files = [*runs_root().glob("*/model.json"), *runs_root().glob(f"*/{UNFINISHED}")]
    if not files:
        raise vae.CheckpointError(f"There is no run in {runs_root()} yet: train.py makes one.")
    return max(files, key=lambda path: path.stat().st_mtime).parent
