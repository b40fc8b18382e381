"""Train a VAE: arguments → a data set, a model, vae_helpers.fit → a run folder for evaluate.py.

python train.py --epochs 50 --batch_size 64 --latent_dim 64
python train.py --dataset folder --data_dir data/NAME --image_size 64
python train.py --dataset fashion_mnist --arch fc --latent_dim 20
python train.py --preset best
python train.py --sweep latent_dim=2,10,20,50,100 --sweep beta=0.1,1,4,10
python train.py --sweep lr=1e-4..1e-2 --sweep batch_size=32,64,128 --trials 30
torchrun --nproc_per_node=2 train.py --dataset celeba      on several GPUs, or processors
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed

import vae_helpers as vae
from base.hardware import get_device, hardware, precision, processes
from base.options import override
from support import runs

# The types of Config's fields, by annotation; the others are text.
KINDS = {"int": int, "int | None": int, "float": float, "float | None": float}
FOLLOWS_FROM_DATA = ("channels", "conditions")


def parser() -> argparse.ArgumentParser:
    """One flag per field of vae_helpers.Config, with the help text that stands there."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python train.py [--FLAG VALUE …]",
    )
    for f in dataclasses.fields(vae.Config):
        if f.name not in FOLLOWS_FROM_DATA:
            add_field(p, f)
    p.add_argument(
        "--preset",
        metavar=choices_shown(vae.PRESETS),
        default="plain",
        help="a named set of choices, which other flags override: the assignment's plain VAE, the "
        "best of its size, or a grid of codes with a learned prior (default plain)",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the run folder to write (default runs/<a name made of the settings>)",
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last finished epoch of the same command, however it ended; that is "
        "what happens without it, too",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="begin anew, whatever run the folder holds"
    )
    add_sweep_flags(p.add_argument_group("many runs at once"))
    return p


def add_field(p: argparse.ArgumentParser, f: dataclasses.Field) -> None:
    """The flag of one field; None when it is not given, so that only what was typed is used."""
    choices = f.metadata["choices"]
    metavar = "N" if f.type in KINDS else "DIR"
    if choices is not None:
        metavar = choices_shown(choices)
    default = f" (default {f.default})" if f.default is not None else ""
    if f.name == "dataset":
        default = " (default cifar10, or the drawn shapes where that cannot be had)"
    # Config checks the value, in one sentence for scripts and notebooks alike.
    kind = KINDS.get(f.type, str)
    p.add_argument(f"--{f.name}", type=kind, metavar=metavar, help=f.metadata["help"] + default)


def choices_shown(choices: Iterable) -> str:
    """What --help shows for a flag with these choices."""
    return "{" + ",".join(map(str, choices)) + "}"


def add_sweep_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sweep",
        metavar="FIELD=VALUES",
        action="append",
        default=[],
        help="train every combination of the values, like latent_dim=2,10,20; give it once for "
        "each field, and start the same command again to go on after a stop",
    )
    group.add_argument(
        "--trials",
        metavar="N",
        type=int,
        help="try N of the combinations instead, chosen by what was good so far; VALUES can then "
        "be a range, too, like lr=1e-4..1e-2",
    )
    group.add_argument("--prune", action="store_true", help="stop hopeless trials early")


def main(argv: list[str] | None = None) -> runs.Run | dict:
    """Parse, train, save; returns the run, or the results of a sweep. Raises VAEError."""
    args = parser().parse_args(argv)
    typed = {}
    for f in dataclasses.fields(vae.Config):
        value = getattr(args, f.name, None)
        if value is not None:
            typed[f.name] = value
    if args.preset not in vae.PRESETS:
        raise vae.VAEError(f"--preset must be one of {', '.join(vae.PRESETS)}, not {args.preset}.")
    if "data_dir" in typed:
        typed.setdefault("dataset", "folder")
    space, points = {}, [{}]
    if args.sweep:
        from support import sweep  # here, because only a sweep needs Optuna

        space = sweep.parse_space(args.sweep)
        points = sweep.points(space)
    check_before_loading(args, typed, space)
    epochs = vae.epochs_from_environment()
    for point in points:  # what cannot work is refused before any image is loaded
        choices = override(vae.PRESETS[args.preset], typed | point, vae.Config)
        vae.Config(**choices if epochs is None else {"epochs": epochs} | choices).resolved()
    data = load_data(typed)
    print(describe(data), flush=True)
    for name in ("dataset", "image_size"):
        typed.pop(name, None)
    if space:
        return sweep.run(space, typed, data, args.trials, args.prune, args.preset)
    choices = override(vae.PRESETS[args.preset], typed, vae.Config)
    config = vae.config_for(data, typed=typed, **choices)
    folder = args.out or runs.run_folder(config, data)
    run = None if args.overwrite else runs.finished_run(folder, config, data)

    def print_epoch(history: list[dict]) -> None:
        print(runs.epoch_line(history[-1], config), flush=True)

    if run is None:
        resume = not args.overwrite
        run = runs.train_run(config, data, folder, resume=resume, on_epoch=print_epoch)
    elif processes()[0] == 0:
        print(f"{folder}: this run is finished; --overwrite begins it anew.")
    if processes()[0] == 0:
        print_run(run, folder)
    return run


def check_before_loading(args: argparse.Namespace, typed: dict, space: dict) -> None:
    """Raise VAEError for what cannot work, before any image is loaded."""
    if not space and (args.trials is not None or args.prune):
        raise vae.VAEError("--trials and --prune are for --sweep FIELD=VALUES.")
    if args.trials is None and any(isinstance(values, tuple) for values in space.values()):
        raise vae.VAEError("A range has no end of values: say with --trials N how many to try.")
    if args.resume and args.overwrite:
        raise vae.VAEError("--resume goes on and --overwrite begins anew: give one of the two.")
    if space and (args.resume or args.overwrite or args.out):
        raise vae.VAEError(
            "--resume, --overwrite and --out are for one run; a sweep goes on by itself, and "
            "writes a folder for each trial: leave them out."
        )
    if space and processes()[1] > 1:
        raise vae.VAEError("A sweep runs in one process: start it without torchrun.")
    for name in set(space) & set(typed):
        raise vae.VAEError(f"--{name} and --sweep {name} contradict each other: leave one out.")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise vae.VAEError(f"--out {args.out} is a file: name a folder.")
    precision(get_device())


def load_data(choices: dict) -> vae.ImageData:
    """The data set that was asked for; under torchrun the first process downloads it for all."""
    rank, world = processes()
    options = {key: choices.get(key) for key in ("data_dir", "image_size", "max_images")}
    name = choices.get("dataset", "cifar10")
    or_shapes = "dataset" not in choices
    data = None
    if rank == 0:
        data = vae.load_dataset(name, or_shapes=or_shapes, **options)
    if world > 1:
        torch.distributed.barrier()
    return data or vae.load_dataset(name, or_shapes=or_shapes, download=False, **options)


def describe(data: vae.ImageData) -> str:
    train, val, test = (len(split.images) for split in (data.train, data.val, data.test))
    size = f"{data.channels}x{data.image_size}x{data.image_size}"
    return (
        f"{data.title}: {train:,} training, {val:,} validation, {test:,} test images of {size}, "
        f"on {hardware()}"
    )


def print_run(run: runs.Run, folder: Path) -> None:
    """The test numbers, and what to do next."""
    test = run.record["test"]
    print(
        f"test: reconstruction {test['reconstruction_nats']:.1f} + KL {test['kl_nats']:.1f} = "
        f"{test['total_nats']:.1f} nats per image, MSE {test['mse']:.4f}\n"
        f"saved in {folder}; next: python evaluate.py --run {folder}"
    )


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Join the other processes that torchrun started, a GPU each; alone, nothing happens."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    cuda = get_device().type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["VAE_DEVICE"] = "cpu"  # PyTorch adds up over CUDA devices and processors only
    # the others wait while the first one downloads and decodes
    patience = datetime.timedelta(hours=6)
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=patience)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def command() -> None:
    with joined_processes():
        main()


if __name__ == "__main__":
    runs.run_script(command)
