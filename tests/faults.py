"""Faults for real: kill -9, power cuts, cut and flipped files, full disks, no permission, no network. What is lost?

    python tests/faults.py            all of them, about half an hour on two busy cores; writes figures/faults.json, a table of README.md
    python tests/faults.py --short    fewer of each kind, in less than two minutes: what `make test` runs; writes nothing

A fault is survived when everything that was finished before it is there, and what comes after it is right: a training that goes on
ends with the weights, history and test numbers of one that nothing happened to, to the last bit; a damaged file is refused in one
sentence, or read as if it were whole; images are those of the files. Everything else is lost.

One process imports PyTorch and forks a child for each fault; with one thread, and no backward pass of its own, that is safe.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"MPLBACKEND": "Agg", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "VAE_DEVICE": "cpu"}
for name in ("VAE_FAST", "VAE_EPOCHS", "VAE_TRAIN"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402   (every optimiser imports it: here once, not in every child)
from PIL import Image  # noqa: E402

import train  # noqa: E402
import vae_helpers as vae  # noqa: E402

NOBODY = 65534   # the user that may write nothing
MODELS = {"vae": {}, "best": {**vae.PRESETS["best"], "ema": 0.9}, "cvae": {"model": "cvae"}, "vq_vae": {"model": "vq_vae", "codebook": 16}}


class Lost(Exception):
    """What went wrong after a fault."""


def in_child(work: Callable[[], object], seconds: float | None = None) -> tuple[int, str]:
    """Run work() in a forked process, killed after so many seconds → its exit status (-9 after a kill) and what went wrong, or ''."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 0
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
        except BaseException as err:   # the child ends here, whatever it is
            os.write(writer, f"{type(err).__name__}: {err}".encode()[:4000])
            status = 1
        finally:
            os._exit(status)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as said:
        message = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Lab:
    """A folder for everything, and for each of MODELS the run that nothing happened to."""

    def __init__(self, folder: Path):
        self.folder, self.random, self.count = folder, random.Random(0), itertools.count()
        shapes = vae.load_dataset("shapes", max_images=96)
        few = lambda split: vae.Split(*(t[:16] for t in split))   # noqa: E731
        self.data = dataclasses.replace(shapes, val=few(shapes.val), test=few(shapes.test))
        self.configs = {name: vae.config_for(self.data, latent_dim=4, width=8, batch_size=32, epochs=4, **choices) for name, choices in MODELS.items()}
        self.span = {}   # seconds
        for name in MODELS:
            for _ in range(2):   # the first also fills caches of the libraries
                began = time.perf_counter()
                if any(in_child(lambda name=name: self.train(name, self.whole(name), resume=False))):
                    raise Lost("a training does not even work without a fault")
                self.span[name] = time.perf_counter() - began
        self.images = folder / "images"
        for i in range(60):
            path = self.images / ("train" if i < 40 else "test") / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        os.environ["VAE_CACHE"] = str(folder / "cache")
        self.pictures = self.load_images()
        [self.cached] = (folder / "cache").iterdir()

    def new(self) -> Path:
        return self.folder / f"{next(self.count):04}"

    def whole(self, name: str) -> Path:
        return self.folder / f"whole-{name}"

    def train(self, name: str, folder: Path, **options) -> vae.Run:
        return vae.train_run(self.configs[name], self.data, folder, progress=False, **options)

    def load_images(self) -> vae.ImageData:
        return vae.load_dataset("folder", data_dir=self.images, image_size=32)

    def check_images(self) -> None:
        found = self.load_images()
        if not all(torch.equal(a, b) for s in ("train", "val", "test") for a, b in zip(getattr(found, s), getattr(self.pictures, s))):
            raise Lost("other images")

    def check_run(self, name: str, folder: Path, model: vae.VAE, record: dict) -> None:
        whole, known = vae.load_checkpoint(self.whole(name))
        weights = model.state_dict()
        history = lambda record: [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]   # noqa: E731
        if not all(torch.equal(v, weights[k]) for k, v in whole.state_dict().items()):
            raise Lost("other weights")
        if history(record) != history(known) or record["test"] != known["test"]:
            raise Lost("other numbers")

    def go_on(self, name: str, folder: Path, finished: int = 0) -> None:
        """What --resume does, in a new process: raises Lost unless it ends like the whole run. finished: epochs that must be there."""
        def work():
            epochs = 0
            if (folder / vae.TRAINING).is_file() or (folder / "model.json").is_file():
                epochs = len(vae.load_checkpoint(folder)[1]["history"])   # it can be used as it is
            if epochs < finished:
                raise Lost(f"epoch {epochs} where {finished} was finished")
            run = train.finished_run(folder, self.configs[name], self.data) or self.train(name, folder)
            self.check_run(name, folder, run.model, run.record)
            self.check_run(name, folder, *vae.load_checkpoint(folder))   # and so does the disk

        status, message = in_child(work)
        if status:
            raise Lost(f"{name}: {message or f'exit status {status}'}")
        shutil.rmtree(folder)


def in_one_sentence(message: str) -> None:
    if not message or "\n" in message.strip():
        raise Lost(f"no sentence: {message!r}")


# ── kill -9 and power cuts ──────────────────────────────────────────────────────────────────────

def kill_at_a_random_time(lab: Lab) -> None:
    """Also of the process that goes on, and of the one after it."""
    name, folder = lab.random.choice(list(MODELS)), lab.new()
    while True:
        in_child(lambda: lab.train(name, folder), lab.random.uniform(0, 1.1 * lab.span[name]))
        if lab.random.random() < 0.7:
            return lab.go_on(name, folder)


WRITING = ("train_run", "save", "save_checkpoint", "write_record", "write_json", "_save_tensors", "_write_atomically")


def trace(act: Callable[[int], object]) -> None:
    """Call act with the number of every line of the functions that write, before it runs."""
    count = itertools.count()

    def line(frame, event, arg):
        if event == "line":
            act(next(count))
        return line

    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_name in WRITING and frame.f_code.co_filename == vae.__file__ else None)


@functools.cache
def lines_that_write(lab: Lab, name: str) -> int:
    """How many of them run in a training."""
    file = lab.folder / f"lines-{name}"

    def work():
        seen = []
        trace(seen.append)
        lab.train(name, lab.folder / f"traced-{name}", resume=False)
        sys.settrace(None)
        file.write_text(str(len(seen)))

    in_child(work)
    return int(file.read_text())


def kill_at_a_random_line(lab: Lab) -> None:
    name, folder = lab.random.choice(list(MODELS)), lab.new()
    last = lab.random.randrange(lines_that_write(lab, name))

    def work():
        trace(lambda number: number == last and killed())
        lab.train(name, folder)

    if (status := in_child(work)[0]) != -signal.SIGKILL:
        raise Lost(f"the child was not killed but ended with {status}")
    lab.go_on(name, folder)


def power_cut(lab: Lab) -> None:
    """Right after a rename, and whatever no fsync has sent to the disk is gone from the file."""
    name, folder = lab.random.choice(list(MODELS)), lab.new()
    last = lab.random.randrange(lab.configs[name].epochs + 2)   # renames: a state for each epoch, weights, record

    def work():
        synced, count, fsync, replace = set(), itertools.count(), os.fsync, os.replace

        def note(file):
            fsync(file)
            synced.add(os.fstat(file).st_ino)

        def cut(source, target):
            if os.stat(source).st_ino not in synced:
                os.truncate(source, 0)
            replace(source, target)
            if next(count) == last:
                killed()

        os.fsync, os.replace = note, cut
        lab.train(name, folder)

    if (status := in_child(work)[0]) != -signal.SIGKILL:
        raise Lost(f"the child was not killed but ended with {status}")
    lab.go_on(name, folder, finished=min(last + 1, lab.configs[name].epochs))


def kill_train_py(lab: Lab) -> None:
    """The script itself from its start to its end, imports and all; then the same command with --resume."""
    folder = lab.folder / "train.py"
    env = os.environ | {"VAE_FAST": "1", "VAE_EPOCHS": "3", "VAE_RUNS": str(folder / "runs")}

    def start(out: Path, *more: str) -> subprocess.Popen:
        flags = ["--dataset", "shapes", "--max_images", "96", "--latent_dim", "4", "--width", "8", "--batch_size", "32", "--out", str(out)]
        return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags, *more], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole, cut = folder / "whole", lab.new()
    began = time.perf_counter()
    if not whole.exists():
        start(whole).wait()
        lab.span["train.py"] = time.perf_counter() - began
    process = start(cut)
    time.sleep(lab.random.uniform(0.3, 1.0) * lab.span["train.py"])   # before that it is Python that starts
    process.kill()
    process.communicate()
    again = start(cut, "--resume")
    said = again.communicate()[1]
    if again.returncode:
        raise Lost(said)
    if (whole / "model.safetensors").read_bytes() != (cut / "model.safetensors").read_bytes():
        raise Lost("other weights")


def kill_while_the_cache_is_filled(lab: Lab) -> None:
    os.environ["VAE_CACHE"] = str(lab.new())
    began = time.perf_counter()
    in_child(lab.load_images)
    span = time.perf_counter() - began
    os.environ["VAE_CACHE"] = str(lab.new())
    in_child(lab.load_images, lab.random.uniform(0, span))
    lab.check_images()


def fill_the_cache_together(lab: Lab) -> None:
    """Four processes at once."""
    cache = lab.new()
    os.environ["VAE_CACHE"] = str(cache)
    pids = []
    for _ in range(4):
        pids.append(os.fork())
        if not pids[-1]:
            os._exit(any(in_child(lab.check_images)))
    if any([os.waitpid(pid, 0)[1] for pid in pids]):
        raise Lost("other images")
    if len(list(cache.iterdir())) != 1:
        raise Lost(f"left in the cache: {list(cache.iterdir())}")
    lab.check_images()


# ── Damaged files ───────────────────────────────────────────────────────────────────────────────

def cut(lab: Lab, content: bytes) -> bytes:
    return content[:lab.random.randrange(len(content))]


def flip(lab: Lab, content: bytes) -> bytes:
    """Another value in one place."""
    place = lab.random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ lab.random.randrange(1, 256)]) + content[place + 1:]


def damage_run(lab: Lab, file: str, damage: Callable[[Lab, bytes], bytes]) -> None:
    """The run is refused in one sentence, or the damage is where it does not matter, as in a blank, and nothing has changed."""
    name, folder = lab.random.choice(list(MODELS)), lab.new()
    source = lab.whole(name)
    if file == vae.TRAINING:   # of a run that was cut off
        source = lab.folder / f"unfinished-{name}"
        if not source.exists():
            in_child(lambda: lab.train(name, source, on_epoch=lambda history: len(history) == 2 and killed()))
    shutil.copytree(source, folder)
    (folder / file).write_bytes(damage(lab, (folder / file).read_bytes()))
    try:
        model, record = vae.load_checkpoint(folder)
    except vae.CheckpointError as err:
        in_one_sentence(str(err))
    else:
        whole, known = vae.load_checkpoint(source)
        if record != known or not all(torch.equal(v, model.state_dict()[k]) for k, v in whole.state_dict().items()):
            raise Lost(f"a damaged {file} was read as something else")
    shutil.rmtree(folder)


def damage_cache(lab: Lab, damage: Callable[[Lab, bytes], bytes]) -> None:
    cache = lab.new()
    cache.mkdir()
    (cache / lab.cached.name).write_bytes(damage(lab, lab.cached.read_bytes()))
    os.environ["VAE_CACHE"] = str(cache)
    lab.check_images()
    if not all(torch.equal(a, b) for a, b in zip(*(vae._load_tensors(place / lab.cached.name)[0].values() for place in (cache, lab.cached.parent)))):
        raise Lost("the damaged cache was not rebuilt")
    shutil.rmtree(cache)


# ── Disks ───────────────────────────────────────────────────────────────────────────────────────

@contextlib.contextmanager
def small_disk(lab: Lab, kib: int) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder where so many KiB fit, what must be called in the child, and what makes room. Who may not mount one limits its files instead."""
    disk = lab.new()
    disk.mkdir()
    mount = lambda size, *options: subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k{''.join(options)}", "tmpfs", str(disk)],   # noqa: E731
                                                  capture_output=True).returncode == 0
    if sys.platform == "linux" and os.geteuid() == 0 and mount(kib):
        try:
            yield disk, lambda: None, lambda: mount(1 << 20, ",remount")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    else:
        yield disk, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10)), lambda: None


def full_disk(lab: Lab) -> None:
    """The training stops in one sentence, keeps what was finished, and goes on when there is room."""
    name = lab.random.choice(list(MODELS))
    need = sum(p.stat().st_size for p in lab.whole(name).iterdir()) * 4   # weights, two moments of each, some more: KiB of room at random
    with small_disk(lab, max(1, lab.random.randrange(2 * need) >> 10)) as (disk, limit, make_room):
        epochs = lab.folder / "epochs"
        epochs.write_text("0")

        def work():
            limit()
            vae.run_script(lambda: lab.train(name, disk / "run", on_epoch=lambda history: epochs.write_text(str(len(history)))))

        status, message = in_child(lambda: (os.dup2(os.open(lab.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2), work()))
        if status not in (0, 1) or status and message != "SystemExit: 2":
            raise Lost(f"exit status {status}, {message}")
        if status:
            in_one_sentence((lab.folder / "said").read_text())
        make_room()
        lab.go_on(name, disk / "run", finished=int(epochs.read_text()))


def full_disk_for_the_cache(lab: Lab) -> None:
    with small_disk(lab, lab.random.randrange(1, lab.cached.stat().st_size >> 10)) as (disk, limit, _):
        os.environ["VAE_CACHE"] = str(disk / "cache")
        if any(said := in_child(lambda: (limit(), lab.check_images()))):
            raise Lost(str(said))


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[Callable[[], None]]:
    """Nothing can be written into the folders; what must be called in the child, since root may write everywhere."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for folder in folders:
            folder.chmod(0o555)
        yield lambda: os.setuid(NOBODY) if os.geteuid() == 0 else None
    finally:
        for folder in folders:
            folder.chmod(0o755)


def refused(lab: Lab, name: str, folder: Path, **options) -> None:
    """Raises Lost unless a training there ends in a sentence that names the folder."""
    try:
        lab.train(name, folder, **options)
    except OSError as err:
        in_one_sentence(str(err))
        if str(folder) not in str(err):
            raise Lost(f"where? {err}") from None
    else:
        raise Lost("nothing was refused")


def no_permission(lab: Lab) -> None:
    """One after the other: for the run folder from the start; in the middle of a training; of a finished run; for the cache; for the images."""
    name, place, case = lab.random.choice(list(MODELS)), lab.new(), next(lab.permissions) % 5
    run = place / "run"
    if case == 0:
        with read_only(place) as become_nobody:
            said = in_child(lambda: (become_nobody(), refused(lab, name, run)))
    elif case == 1:
        run.mkdir(parents=True)
        with read_only() as become_nobody:
            run.chmod(0o777)

            def forbid(history):
                if len(history) == 2:
                    run.chmod(0o555)

            def work():
                if os.geteuid() == 0:
                    os.chown(run, NOBODY, NOBODY)
                become_nobody()
                refused(lab, name, run, on_epoch=forbid)

            said = in_child(work)
        run.chmod(0o755)
        if not any(said):
            lab.go_on(name, run, finished=2)
    elif case == 2:
        shutil.copytree(lab.whole(name), run)
        with read_only(run) as become_nobody:
            said = in_child(lambda: (become_nobody(), lab.check_run(name, run, *vae.load_checkpoint(run))))
    elif case == 3:
        os.environ["VAE_CACHE"] = str(place / "cache")
        with read_only(place) as become_nobody:
            said = in_child(lambda: (become_nobody(), lab.check_images()))
    else:
        os.environ["VAE_CACHE"] = str(lab.folder / f"cache-{place.name}")
        Path(os.environ["VAE_CACHE"]).mkdir()
        Path(os.environ["VAE_CACHE"]).chmod(0o777)
        with read_only(lab.images, *lab.images.iterdir()) as become_nobody:
            said = in_child(lambda: (become_nobody(), lab.check_images(), lab.check_images()))
    if any(said):
        raise Lost(f"case {case}: {said}")


Lab.permissions = itertools.count()
Lab.datasets = itertools.cycle(("cifar10", "mnist", "fashion_mnist", "celeba"))


def no_network(lab: Lab) -> None:
    """No connection can be made: it is said what was tried and what helps, or drawn shapes stand in where that was asked for."""
    name = next(lab.datasets)
    os.environ["VAE_DATA"] = str(lab.new())

    def work():
        for kind in ("http", "https", "all"):
            os.environ[f"{kind}_proxy"] = os.environ[f"{kind.upper()}_PROXY"] = "http://127.0.0.1:9"   # where nobody listens
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
        try:
            vae.load_dataset(name)
        except vae.DatasetUnavailable as err:
            if "Three ways out" not in str(err) or "download: " not in str(err):
                raise Lost(f"no way out: {err}") from None
        else:
            raise Lost("images from nowhere")
        if vae.load_dataset(name, or_shapes=True).name != "shapes":
            raise Lost("no shapes")

    if any(said := in_child(work)):
        raise Lost(f"{name}: {said}")


# What README.md calls it: the fault, how often in full, how often in short.
KINDS = {
    "`kill -9` at a random time of a training, then resumed": (kill_at_a_random_time, 200, 16),
    "`kill -9` at a random line of the code that writes": (kill_at_a_random_line, 100, 8),
    "power cut after a rename: what no fsync sent to the disk is gone": (power_cut, 40, 4),
    "`kill -9` of `train.py`, then `--resume`": (kill_train_py, 10, 1),
    "`kill -9` while the cache of decoded images is filled": (kill_while_the_cache_is_filled, 40, 4),
    "four processes fill the cache at once": (fill_the_cache_together, 20, 2),
    **{f"`{file}` {word}": (functools.partial(damage_run, file=file, damage=damage), 200, 20)
       for file in (vae.TRAINING, "model.safetensors", "model.json")
       for word, damage in (("cut at a random length", cut), ("with a random byte changed", flip))},
    "file of the cache cut at a random length": (functools.partial(damage_cache, damage=cut), 100, 10),
    "file of the cache with a random byte changed": (functools.partial(damage_cache, damage=flip), 100, 10),
    "disk full at a random place of a training": (full_disk, 40, 4),
    "disk full while the cache is filled": (full_disk_for_the_cache, 20, 2),
    "no permission to write (run folder, cache, images)": (no_permission, 20, 5),
    "no network": (no_network, 4, 4),
}


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer of each kind, and figures/faults.json stays as it is")
    parser.add_argument("--only", metavar="WORD", default="", help="only the kinds with this word in their name; writes nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lab = Lab(Path(folder))
        for kind, (fault, full, short) in KINDS.items():
            if args.only not in kind:
                continue
            began, tried, lost = time.perf_counter(), short if args.short else full, []
            for _ in range(tried):
                try:
                    fault(lab)
                except Exception as err:   # whatever else it is, something is lost
                    lost.append(f"{type(err).__name__}: {err}")
            rows.append({"kind": kind, "tried": tried, "survived": tried - len(lost), "lost": len(lost)})
            print(json.dumps(rows[-1] | {"seconds": round(time.perf_counter() - began, 1)}, ensure_ascii=False), *lost[:5], sep="\n  ", flush=True)
    if not args.short and not args.only:
        vae.write_json(ROOT / "figures" / "faults.json", rows)
    return rows


if __name__ == "__main__":
    sys.exit(any(row["lost"] for row in main()))
