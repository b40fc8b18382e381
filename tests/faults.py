"""Faults for real: kill -9, damaged files, full disks.

    python tests/faults.py              about ten minutes; writes figures/faults.json
    python tests/faults.py --times 1    each of them once

A fault is survived when all that was finished before it is still there, and what comes after it
is right: a training that goes on ends with the bits of one that nothing happened to; a damaged
file is refused in one sentence, or the damage makes no difference; images are those of the files.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo
from conftest import ROOT, SMALL, isolate, same_weights, take
from painting import paint_noise, same
from test_runs import KINDS, change, without_seconds

import vae_helpers as vae
from support import runs

# A forked child waits for ever for threads that only its parent has: there must be none.
torch.set_num_threads(1)


def in_child(work, seconds=None):
    """The exit code of work() in a process that is killed after so many seconds."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode


class Lab:
    """A folder for everything, and for each kind of model the run that nothing happened to."""

    def __init__(self, folder):
        self.folder, self.random, self.count = folder, random.Random(0), itertools.count()
        self.data = take(vae.load_dataset("shapes"), 96, 16, 16)
        self.images = paint_noise(folder / "images", 60)
        self.pictures = self.load_images()
        [self.cache] = (folder / "cache").iterdir()
        self.seconds = {}
        for kind in KINDS:
            began = time.perf_counter()
            assert in_child(lambda k=kind: self.train(k, folder / f"whole-{k}")) == 0
            self.seconds[kind] = time.perf_counter() - began

    def new_run(self):
        return self.random.choice(list(KINDS)), self.folder / f"{next(self.count):04}"

    def new_cache(self):
        cache = self.folder / f"{next(self.count):04}"
        cache.mkdir()
        os.environ["VAE_CACHE"] = str(cache)
        return cache

    def config(self, kind):
        return vae.config_for(self.data, **SMALL | {"epochs": 3} | KINDS[kind])

    def train(self, kind, folder, after_epoch=None):
        """Train, and leave a mark outside of the folder for each epoch that was finished."""

        def on_epoch(history):
            (self.folder / f"{folder.name}-epoch{len(history)}").touch()
            if after_epoch:
                after_epoch(len(history))

        runs.train_run(self.config(kind), self.data, folder, on_epoch=on_epoch)

    def check_end(self, kind, folder):
        """No marked epoch is lost, and what --resume does ends like the whole run."""

        def work():
            if (self.folder / f"{folder.name}-epoch1").exists():
                epochs = len(runs.load_run(folder)[1]["history"])
                assert not (self.folder / f"{folder.name}-epoch{epochs + 1}").exists()
            if not runs.finished_run(folder, self.config(kind), self.data):
                self.train(kind, folder)
            self.check_same(folder, self.folder / f"whole-{kind}")

        assert in_child(work) == 0

    def check_same(self, folder, other, numbers=True):
        model, record = runs.load_run(folder)
        expected, known = runs.load_run(other)
        assert same_weights(model, expected), "other weights"
        assert not numbers or without_seconds(record) == without_seconds(known), "other numbers"

    def load_images(self):
        return vae.load_dataset("folder", data_dir=self.images, image_size=32)


def killed_at_a_random_time(lab):
    """Now and then also the process that goes on, and the one after it."""
    kind, folder = lab.new_run()
    again = True
    while again:
        in_child(lambda: lab.train(kind, folder), lab.random.uniform(0, lab.seconds[kind]))
        again = lab.random.random() < 0.3
    lab.check_end(kind, folder)


def killed_at_a_random_write(lab):
    """Before a file that was written takes the place of the old one, or right after it."""
    kind, folder = lab.new_run()
    moments, replace = itertools.count(), os.replace
    last = lab.random.randrange(10)  # two for each of three epochs, the weights and the record

    def moment():
        if next(moments) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(source, target):
        moment()
        replace(source, target)
        moment()

    def work():
        os.replace = rename
        lab.train(kind, folder)

    assert in_child(work) == -signal.SIGKILL
    lab.check_end(kind, folder)


def cut_or_changed(lab, content):
    """Cut at a random length, or another value in a random place."""
    place = lab.random.randrange(len(content))
    if lab.random.random() < 0.5:
        return content[:place]
    changed = content[place] ^ lab.random.randrange(1, 256)
    return content[:place] + bytes([changed]) + content[place + 1 :]


def damaged_run(lab, file):
    """The numbers in model.json have no checksum, only the weights have one."""
    kind, folder = lab.new_run()
    source = lab.folder / f"whole-{kind}"
    if file == runs.UNFINISHED:
        source = lab.folder / f"unfinished-{kind}"
        if not source.exists():
            in_child(lambda: lab.train(kind, source, lambda epoch: os._exit(0)))
    shutil.copytree(source, folder)
    change(folder / file, partial(cut_or_changed, lab))
    try:
        lab.check_same(folder, source, numbers=file != "model.json")
    except vae.CheckpointError as error:
        assert "\n" not in str(error), error


def damaged_cache(lab):
    cache = lab.new_cache()
    damaged = cache / lab.cache.name
    damaged.write_bytes(cut_or_changed(lab, lab.cache.read_bytes()))
    assert same(lab.load_images(), lab.pictures), "other images"
    assert damaged.read_bytes() == lab.cache.read_bytes(), "not made again"


def disk_full(lab):
    """From a random epoch on, and for the cache: no file may grow longer than a random length."""
    kind, folder = lab.new_run()
    lab.new_cache()
    first = lab.random.randrange(3)
    length = lab.random.randrange(lab.cache.stat().st_size)  # smaller than the weights

    def forbid(epoch):
        if epoch == first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))

    def work():
        with pytest.raises(OSError, match="too large"):
            forbid(0)
            lab.train(kind, folder, forbid)
        assert same(lab.load_images(), lab.pictures), "other images"

    assert in_child(work) == 0
    lab.check_end(kind, folder)


FAULTS = {  # what the documentation calls it → the fault, and how often it is tried
    "`kill -9` at a random time of a training, then resumed": (killed_at_a_random_time, 100),
    "`kill -9` at a random write of a training, then resumed": (killed_at_a_random_write, 60),
    "file of the cache cut or changed": (damaged_cache, 200),
    "disk full, in a training and for the cache": (disk_full, 40),
}
for file in (runs.UNFINISHED, "model.safetensors", "model.json"):
    FAULTS[f"`{file}` cut or changed"] = (partial(damaged_run, file=file), 400)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", metavar="N", type=int, help="how often, each")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        isolate(patch, Path(folder))
        lab = Lab(Path(folder))
        for kind, (fault, times) in FAULTS.items():
            tried, lost = args.times or times, 0
            for _ in range(tried):
                try:
                    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                        fault(lab)
                except Exception:
                    traceback.print_exc()
                    lost += 1
            rows.append({"kind": kind, "tried": tried, "survived": tried - lost, "lost": lost})
    print(vae.markdown_table(rows))
    if not args.times:
        vae.write_json(ROOT / "figures" / "faults.json", rows)
    return any(row["lost"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
