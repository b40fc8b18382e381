"""Run folders: train, save after every epoch, resume, find again, load or train.

A run folder holds one file, training.pt, while it trains: the record and the whole state after
the last finished epoch. When the run is finished, model.safetensors and model.json take its place.
In a folder with both, training.pt counts: the run there was begun anew.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import vae_helpers as vae
from base.files import write_atomically
from base.hardware import hardware, precision_name
from base.options import env_flag
from support import autoencoders, conditional, grid_vae, vq_vae  # noqa: F401  so that all models are known

ROOT = Path(__file__).resolve().parent.parent
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
    return Path(os.environ.get("VAE_RUNS") or ROOT / "runs")


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main(): a mistake of the user ends in one sentence and exit code 2.

    Ctrl-C ends in exit code 130, after train_run has printed how to continue.
    """
    try:
        main()
    except (vae.VAEError, OSError) as err:  # OSError: a full disk, a folder without permission
        sys.exit(_error(str(err)))
    except (RuntimeError, MemoryError) as err:
        if isinstance(err, RuntimeError) and "memory" not in str(err):
            raise
        sys.exit(_error("not enough memory: try a smaller width, latent_dim or batch_size."))
    except KeyboardInterrupt:
        sys.exit(130)


def _error(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


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

    folder     default runs_root() / config.run_name; it holds the last finished epoch at any time
    resume     go on with a run of the same config and data that was cut off
    on_epoch   called as by fit, after the epoch was saved

    Raises TrainingDiverged, and OSError when the folder cannot be written.
    """
    folder = Path(folder or runs_root() / config.run_name)
    folder.mkdir(parents=True, exist_ok=True)
    model = vae.build_model(config)
    record = first_record(config, data, model)
    start = unfinished_run(folder, config, data) if resume else None

    def save(history: list[dict], state: dict) -> None:
        after_epoch = record | {"history": history, "seconds": history[-1]["seconds"]}
        save_unfinished(folder, after_epoch, state)

    try:
        history = vae.fit(
            model, data, config, progress=progress, on_epoch=on_epoch, save=save, start=start
        )
        record |= {"history": history, "seconds": history[-1]["seconds"]}
        record["test"] = vae.evaluate(model, *data.test)
    except KeyboardInterrupt:
        print(f"\nStopped. {how_to_go_on(folder)}", file=sys.stderr)
        raise
    except vae.TrainingDiverged as err:
        raise vae.TrainingDiverged(f"{err} {how_to_go_on(folder)}") from None
    if vae.processes()[0] == 0:
        vae.save_checkpoint(model, folder, record)
        (folder / UNFINISHED).unlink(missing_ok=True)
    return Run(config, model, record, "trained now")


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
        f"{folder} holds every finished epoch: the same command with --resume (a sweep without "
        "it), or this cell again, continues from there."
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
    """History and state of a run of this config and data that was cut off, for fit's start."""
    try:
        unfinished = read_unfinished(folder)
    except vae.CheckpointError as err:
        print(f"Skipped: {err}")
        return None
    if unfinished is None:
        return None
    record = unfinished["record"]
    if not same_run(record, config, data):
        print(f"Skipped: the unfinished run in {folder} has other settings or images.")
        return None
    epochs = len(record["history"])
    print(f"{folder}: going on after epoch {epochs} of {config.all_epochs}", flush=True)
    if record["precision"] != precision_name():
        print(
            f"Note: it was begun in {record['precision']} and goes on in {precision_name()}; set "
            f"VAE_PRECISION={record['precision']} to go on as it was."
        )
    return record["history"], unfinished["state"]


def same_run(record: dict, config: vae.Config, data: vae.ImageData) -> bool:
    """Whether a record belongs to this config and these images."""
    if record.get("data", {}).get("fingerprint") != data.fingerprint:
        return False
    try:
        return vae.Config.of_record(record["config"]) == config
    except (TypeError, vae.VAEError):  # of another version, which knew other fields or values
        return False


def load_run(folder: str | os.PathLike) -> tuple[vae.VAE, dict]:
    """The model and the record of a run, finished or not (then as after its last epoch).

    Raises CheckpointError.
    """
    folder = Path(folder)
    unfinished = read_unfinished(folder)
    if unfinished is None:
        return vae.load_checkpoint(folder)
    with vae.refused_if_unreadable(folder / UNFINISHED):
        model = vae.build_model(vae.Config.of_record(unfinished["record"]["config"]))
        model.load_state_dict(unfinished["state"]["model"])
    return model.eval(), unfinished["record"]


# ── Runs that are finished ──


def load_or_train(config: vae.Config, data: vae.ImageData, *, weights: bool = True) -> Run:
    """The reader's own finished run for this config and data, else the released one, else train.

    It prints which it was. VAE_TRAIN=1 always trains. With weights=False the record of a released
    run (its history and numbers) is enough.
    """
    run = None
    if not env_flag("VAE_TRAIN"):
        run = own_run(config, data) or released_run(config, data, weights)
    run = run or train_run(config, data)
    if run.record["data"]["fingerprint"] != data.fingerprint:
        print(
            f"Note: trained on {run.record['data']['title']}, whose files are not exactly yours: "
            "its numbers are for its own test images, and some of your test images may have been "
            "among its training images."
        )
    print(
        f"{config.arch} {config.model}, {config.likelihood}, width {config.width}, beta "
        f"{config.beta:g}, seed {config.seed}: {run.origin}; {config.epochs} epochs in "
        f"{run.record['seconds']:.0f} s, test total {run.record['test']['total_nats']:,.1f} nats"
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


def released_run(config: vae.Config, data: vae.ImageData, weights: bool = True) -> Run | None:
    """A released run of this config, whatever copy or subset of the data set it saw."""
    for path in sorted(RELEASED.glob("*/model.json")):
        released_config, record = vae.read_record(path.parent)
        if released_config != config:
            continue
        if (path.parent / "model.safetensors").is_file():
            model, record = vae.load_checkpoint(path.parent)
            return Run(config, model, record, f"released weights {path.parent.name}")
        if not weights:
            return Run(config, None, record, f"released record {path.parent.name}")
    return None


def finished_run(folder: Path, config: vae.Config, data: vae.ImageData) -> Run | None:
    """The run in a folder, if it is finished; None if it is not, or there is none.

    Raises VAEError when it is another run than the one asked for: nothing is overwritten.
    """
    try:
        unfinished = read_unfinished(folder)
        record = unfinished and unfinished["record"]
        if record is None and (folder / "model.json").is_file():
            _, record = vae.read_record(folder)
    except vae.CheckpointError as err:
        print(f"Skipped: {err}")
        return None
    if record is None:
        return None
    if not same_run(record, config, data):
        raise vae.VAEError(
            f"--resume: {folder} holds a run of other settings or images: give its settings, or "
            "another --out."
        )
    if "test" not in record:
        return None
    model, record = vae.load_checkpoint(folder)
    return Run(config, model, record, "finished before")


def newest_run() -> Path:
    """The run folder written last. Raises CheckpointError when there is none."""
    files = [*runs_root().glob("*/model.json"), *runs_root().glob(f"*/{UNFINISHED}")]
    if not files:
        raise vae.CheckpointError(f"There is no run in {runs_root()} yet: train.py makes one.")
    return max(files, key=lambda path: path.stat().st_mtime).parent
