"""Data: torchvision's sets and their download, CelebA in all its forms, real images where they are."""
from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import struct
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    REAL_DATA,
    SPLITS,
    all_images,
    all_numbers,
    damaged,
    labels_follow,
    numbers,
    paint,
    same,
    sizes,
    tree,
    zip_folder,
)
from PIL import Image

import vae_helpers as vae

# ── torchvision's data sets ─────────────────────────────────────────────────────────────────────

CLASSES = {"cifar10": "CIFAR10", "mnist": "MNIST", "fashion_mnist": "FashionMNIST", "celeba": "CelebA"}


def check_pixels(data, pixels, classes):
    """Images 20 to 29 are for testing; each of the 30 carries its number in its first pixel and has the label number % classes."""
    for split in SPLITS:
        for image, label in zip(*getattr(data, split)):
            number = int(image[0, 0, 0])
            assert (number >= 20) == (split == "test") and label == number % classes
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[number])
    assert sorted(all_images(data)[:, 0, 0, 0].tolist()) == list(range(30)) and len(data.label_names) == classes


def numbered(*shape):
    pixels = np.random.default_rng(0).integers(0, 256, (30, *shape), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(30)
    return pixels


def idx_files():
    """MNIST's four files with the pixels of numbered(28, 28, 1), by name."""
    pixels, labels, files = numbered(28, 28, 1), np.arange(30, dtype=np.uint8) % 10, {}
    for prefix, part in ("train", slice(20)), ("t10k", slice(20, 30)):
        count = len(labels[part])
        files[f"{prefix}-images-idx3-ubyte"] = struct.pack(">IIII", 0x803, count, 28, 28) + pixels[part].tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, count) + labels[part].tobytes()
    return files


@pytest.mark.parametrize("name, folder, title", [("mnist", "MNIST", "MNIST"), ("fashion_mnist", "FashionMNIST", "Fashion-MNIST")])
def test_idx_files_are_read_pixel_by_pixel(tmp_path, name, folder, title):
    raw = tmp_path / "data" / folder / "raw"
    raw.mkdir(parents=True)
    for file, content in idx_files().items():
        (raw / file).write_bytes(content)
    data = vae.load_dataset(name, download=False)
    assert data.title == title and data.channels == 1
    check_pixels(data, numbered(28, 28, 1), 10)


class StandIn:
    """torchvision.datasets.CIFAR10 with 20 + 10 images, whose folder is there once download=True was asked."""

    classes, pixels = ("cat", "dog"), numbered(32, 32, 3)

    def __init__(self, root, train=True, download=False):
        if download:
            (Path(root) / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
        part = slice(20) if train else slice(20, 30)
        self.data, self.targets = self.pixels[part], [i % 2 for i in range(30)][part]


def replace_torchvision(monkeypatch, name, stand_in=StandIn):
    monkeypatch.setattr(vae.import_torchvision().datasets, CLASSES[name], stand_in)


def test_the_download_gives_nchw_images_pixel_by_pixel_past_a_damaged_zip(tmp_path, monkeypatch):
    """A download that was cut off left half a cifar10.zip. (H, W, C) is turned to (C, H, W) by axes, not by reading bytes anew."""
    damaged(tmp_path / "data" / "cifar10.zip")
    replace_torchvision(monkeypatch, "cifar10")
    data = vae.load_dataset("cifar10")
    assert data.title == "CIFAR-10" and sizes(data) == [18, 2, 10]
    check_pixels(data, StandIn.pixels, 2)


def test_another_image_size_is_resized(monkeypatch):
    replace_torchvision(monkeypatch, "cifar10")
    full, half = vae.load_dataset("cifar10"), vae.load_dataset("cifar10", image_size=16)
    assert half.image_size == 16
    averages = full.test.images.float().unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
    assert torch.corrcoef(torch.stack([averages.flatten(), half.test.images.float().flatten()]))[0, 1] > 0.9


# torchvision's own download and checksums, from a server on this machine

def cifar_files():
    """CIFAR-10's seven files with the pixels of numbered(32, 32, 3), by name."""
    pixels = numbered(32, 32, 3).transpose(0, 3, 1, 2).reshape(30, -1)
    parts = {**{f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)}, "test_batch": slice(20, 30)}
    files = {name: {"data": pixels[part], "labels": [i % 10 for i in range(30)][part]} for name, part in parts.items()}
    return {name: pickle.dumps(content) for name, content in {**files, "batches.meta": {"label_names": list("abcdefghij")}}.items()}


def tar_of(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            (info := tarfile.TarInfo(f"cifar-10-batches-py/{name}")).size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """files: what a web server of this machine hands out; send: what it makes of a file; asked: the names that it was asked for."""
    site = SimpleNamespace(files={}, send=lambda content: content, asked=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = site.files[self.path[1:]]
            site.asked.append(self.path[1:])
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(site.send(content))

        do_HEAD, log_message = do_GET, lambda *args: None

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    datasets, url = vae.import_torchvision().datasets, f"http://127.0.0.1:{web.server_port}/"
    packed = {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()}
    site.files |= packed
    for kind in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [url])
        monkeypatch.setattr(kind, "resources", [(name, md5(content)) for name, content in packed.items()])
    batches = cifar_files()
    site.files["cifar-10-python.tar.gz"] = tar_of(batches)
    for name, value in {"url": f"{url}cifar-10-python.tar.gz", "tgz_md5": md5(site.files["cifar-10-python.tar.gz"]),
                        "train_list": [[name, md5(content)] for name, content in batches.items() if "data" in name],
                        "test_list": [["test_batch", md5(batches["test_batch"])]],
                        "meta": {"filename": "batches.meta", "key": "label_names", "md5": md5(batches["batches.meta"])}}.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    yield site
    web.shutdown()
    web.server_close()


DOWNLOADED = {"cifar10": ("cifar-10-batches-py", (32, 32, 3)), "mnist": ("MNIST/raw", (28, 28, 1)), "fashion_mnist": ("FashionMNIST/raw", (28, 28, 1))}


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.parametrize("send", [lambda content: content[:len(content) // 2], lambda content: b"<html>try again tomorrow</html>",
                                  lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:]],
                         ids=["hangs up half way", "an error page", "another bit"])
def test_a_download_that_went_wrong_is_refused_and_starts_over_the_next_time(server, monkeypatch, name, send):
    right, server.send = server.send, send
    with pytest.raises(vae.DatasetUnavailable, match="download: "):
        vae.load_dataset(name)
    server.send = right
    check_pixels(vae.load_dataset(name), numbered(*DOWNLOADED[name][1]), 10)


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.parametrize("cut", [lambda content: content[:len(content) // 2], lambda content: content[:2], lambda content: b"", None],
                         ids=["half", "two bytes", "empty", "missing"])
def test_files_that_were_half_unpacked_are_unpacked_again(server, tmp_path, name, cut):
    """torchvision takes MNIST's for whole by their names."""
    folder, shape = DOWNLOADED[name]
    vae.load_dataset(name)
    for file in [f for f in (tmp_path / "data" / folder).iterdir() if f.suffix != ".gz"]:
        file.write_bytes(cut(file.read_bytes())) if cut else file.unlink()
        check_pixels(vae.load_dataset(name), numbered(*shape), 10)
    shutil.rmtree(tmp_path / "data" / folder)
    check_pixels(vae.load_dataset(name), numbered(*shape), 10)


@pytest.mark.parametrize("killed", [False, True], ids=["refused", "killed in the middle, then refused"])
def test_what_could_not_be_read_is_still_there_when_the_download_fails(server, tmp_path, killed):
    """Three of the four files are whole."""
    vae.load_dataset("mnist")
    raw = tmp_path / "data" / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")
    before, server.send = {f.name: f.read_bytes() for f in raw.iterdir()}, lambda content: b""
    if killed:   # what stands there then
        raw.rename(raw.with_name("raw.unreadable"))
        raw.mkdir()
        (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(vae.DatasetUnavailable):
        vae.load_dataset("mnist")
    assert {f.name: f.read_bytes() for f in raw.iterdir()} == before and [f.name for f in raw.parent.iterdir()] == ["raw"]


@pytest.mark.parametrize("how", ["an error", "a page in place of the file"])
def test_the_used_up_quota_of_celeba_says_where_the_images_are_without_one(monkeypatch, how):
    """torchvision's own way to Google Drive, with what gdown does then."""
    def download(id, output, **options):
        if how == "an error":
            raise RuntimeError("Failed to retrieve file url:\n\n\tToo many users have viewed or downloaded this file recently.")
        Path(output).write_text("<html>Google Drive - Quota exceeded</html>")

    monkeypatch.setitem(sys.modules, "gdown", gdown := ModuleType("gdown"))
    gdown.download = download
    with pytest.raises(vae.DatasetUnavailable, match="Kaggle's copy has none") as caught:
        vae.load_dataset("celeba")
    assert ("download: Failed to retrieve" if how == "an error" else "download: File not found or corrupted") in str(caught.value)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert vae.load_dataset("celeba", or_shapes=True).name == "shapes"
    assert "Kaggle's copy has none" in said.getvalue()


def no_network(*args, download=False, **kwargs):
    raise OSError("<urlopen error: no route to host>" if download else "not found")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", ["VAE_FAST", "download=False", "no network"])
def test_without_a_download_it_says_what_was_tried_where_and_three_ways_out(tmp_path, monkeypatch, name, how):
    """Nothing is downloaded in fast mode or when it is not allowed."""
    replace_torchvision(monkeypatch, name, no_network)
    if how == "VAE_FAST":
        monkeypatch.setenv("VAE_FAST", "1")
    with pytest.raises(vae.DatasetUnavailable) as caught:
        vae.load_dataset(name, download=how != "download=False")
    message = str(caught.value)
    assert ("no route to host" in message) == (how == "no network") != ("download: not allowed" in message)
    assert str(tmp_path / "data") in message and f"{name}.zip" in message
    assert all(f"\n  {i}. " in message for i in (1, 2, 3)) and "VAE_DATA" in message and "shapes" in message


def test_or_shapes_says_so_and_goes_on(monkeypatch, capsys, all_shapes):
    replace_torchvision(monkeypatch, "cifar10", no_network)
    data = vae.load_dataset("cifar10", or_shapes=True)
    assert data.name == "shapes" and data.title == "shapes (synthetic)" and same(data, all_shapes)
    said = capsys.readouterr().out
    assert "Going on with `shapes`" in said and "no route to host" in said


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_jpeg_copy_in_the_data_root_is_found_and_called_so_and_nothing_is_written_there(tmp_path, zipped):
    folder = tree(tmp_path / "mine" / "cifar10", "splits")
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_suffix(".jpg"))
    root = zip_folder(folder, tmp_path / "data" / "cifar10.zip").parent if zipped else folder.parent.rename(tmp_path / "data")
    before = sorted(root.rglob("*"))
    data = vae.load_dataset("cifar10", image_size=8, download=False)
    assert data.title == "CIFAR-10 (JPEG copy)" and data.name == "cifar10"
    assert sorted(numbers(data)["test"]) == list(range(15, 20))
    assert sorted(root.rglob("*")) == before


# ── CelebA ──────────────────────────────────────────────────────────────────────────────────────

ATTRIBUTES = ("Bald", "Male", "Smiling")


ATTRIBUTES_OF = [[i % 2 == 0, i % 3 == 0, i < 10] for i in range(50)]
PARTS = ["train"] * 14 + ["val"] * 3 + ["test"] * 3
FILES = [f"{i + 1:06}.jpg" for i in range(50)]


def write_attributes(folder: Path, some=range(20), cut=0):
    lines = [str(len(some)), " ".join(ATTRIBUTES)]
    lines += [f"{FILES[i]}  " + "  ".join("1" if a else "-1" for a in ATTRIBUTES_OF[i]) for i in some]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines)[:-cut or None] + "\n")


def write_partition(folder: Path, parts=PARTS):
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {SPLITS.index(part)}\n" for n, part in zip(FILES, parts)))


@pytest.fixture
def celeba(tmp_path):
    """data/celeba as the official files: a zip of 20 images of 178x218, attributes, partition."""
    folder = tmp_path / "data" / "celeba"
    for i in range(20):
        paint(tmp_path / "source" / "img_align_celeba" / FILES[i], i, (178, 218))
    zip_folder(tmp_path / "source", folder / "img_align_celeba.zip")
    write_attributes(folder), write_partition(folder)
    return folder


def load_celeba(size=8):
    return vae.load_dataset("celeba", image_size=size, download=False)


def unpacked(folder, source, place="img_align_celeba"):
    (folder / "img_align_celeba.zip").unlink()
    shutil.copytree(source / "img_align_celeba", folder / place)


def kaggle(folder, source):
    """Kaggle nests the folder and gives .csv files with a header."""
    unpacked(folder, source, "img_align_celeba/img_align_celeba")
    for stem, header in (("list_attr_celeba", ["image_id", *ATTRIBUTES]), ("list_eval_partition", ["image_id", "partition"])):
        rows = [line.split() for line in (folder / f"{stem}.txt").read_text().splitlines() if ".jpg" in line]
        (folder / f"{stem}.txt").unlink()
        with (folder / f"{stem}.csv").open("w", newline="") as f:
            csv.writer(f).writerows([header, *rows])


def kaggle_zip(folder, source):
    kaggle(folder, source)
    zip_folder(folder, folder.with_suffix(".zip"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("layout", [lambda *a: None, unpacked, kaggle, kaggle_zip], ids=["official zip", "folder", "kaggle", "kaggle zip"])
def test_celeba_is_read_in_every_layout(celeba, tmp_path, layout):
    layout(celeba, tmp_path / "source")
    data = load_celeba()
    assert data.label_names == ATTRIBUTES and data.title == "CelebA (20 images)"
    assert all_numbers(data) == list(range(20))
    assert all(PARTS[n] == split for split, found in numbers(data).items() for n in found)   # the partition file
    assert labels_follow(data, ATTRIBUTES_OF.__getitem__)                                                  # matched by file name


def test_celeba_follows_corrected_tables(celeba):
    """The counts stay, the cache must not: two images swap their splits; a row of attributes fewer at the start, one more at the end."""
    load_celeba()
    write_partition(celeba, ["test", *PARTS[1:-1], "train"])
    assert sorted(numbers(load_celeba())["test"]) == [0, 17, 18]
    (celeba / "list_eval_partition.txt").unlink()
    write_attributes(celeba, range(19))
    load_celeba()
    write_attributes(celeba, range(1, 20))
    data = load_celeba()
    assert labels_follow(data, ATTRIBUTES_OF.__getitem__) and sizes(data) == [17, 1, 1]   # without a partition: 80/10/10


@pytest.mark.parametrize("write, missing, said", [
    (lambda folder: write_attributes(folder, [i for i in range(20) if i not in (3, 18)]), {3, 18}, "2 images without a row in list_attr_celeba"),
    (lambda folder: write_partition(folder, ["test", *PARTS[1:17]]), {17, 18, 19}, "3 images without a row in list_eval_partition")],
    ids=["attributes", "partition"])
def test_celeba_images_without_a_row_are_counted_and_left_out(celeba, capsys, write, missing, said):
    """An image must not vanish in silence."""
    write(celeba)
    assert set(all_numbers(load_celeba())) == set(range(20)) - missing and said in capsys.readouterr().out


@pytest.mark.parametrize("table, damage, line", [
    *(("list_attr_celeba", lambda text, cut=cut: text[:-cut], 22) for cut in (4, 7, 9)),
    ("list_attr_celeba", lambda text: text[:text.rindex("0020.jpg")], 22),   # must not become the names of the attributes
    *(("list_attr_celeba", lambda text, old=old, new=new: text.replace(old, new, 1), 3)
      for old, new in (("  1", "  7"), ("  1", "  no"), ("  1", "  1 -1"), ("  1", ""))),
    *(("list_eval_partition", lambda text, new=new: text.replace("jpg 1", new, 1), 15) for new in ("jpg 3", "jpg"))],
    ids=["last value cut", "last two", "last three", "last name cut", "7", "a word", "one value more", "one fewer", "split 3", "no split"])
def test_a_table_with_a_row_that_cannot_be_right_is_refused_with_its_line(celeba, table, damage, line):
    text = (celeba / f"{table}.txt").read_text()
    (celeba / f"{table}.txt").write_text(damage(text))
    with pytest.raises(vae.DatasetUnavailable, match=f"line {line} of {table} is not an image and"):
        load_celeba()


def test_a_half_unpacked_celeba_is_read_from_its_zip(celeba, tmp_path):
    (celeba / "img_align_celeba").mkdir()
    for file in FILES[:7]:
        shutil.copy(tmp_path / "source" / "img_align_celeba" / file, celeba / "img_align_celeba")
    assert all_numbers(load_celeba()) == list(range(20))


def test_celeba_is_read_after_its_download(celeba, tmp_path, monkeypatch):
    """torchvision's CelebA leaves the images unpacked, with the two tables beside them."""
    unpacked(celeba, tmp_path / "source")
    celeba.rename(tmp_path / "server")
    replace_torchvision(monkeypatch, "celeba", lambda root, download: shutil.copytree(tmp_path / "server", celeba))
    data = vae.load_dataset("celeba", image_size=8)
    assert sorted(numbers(data)["test"]) == [17, 18, 19]


@pytest.mark.parametrize("width, height, side", [(178, 218, 148), (89, 109, 74)])
def test_celeba_is_cropped_to_the_centred_face(celeba, tmp_path, width, height, side):
    """White inside the usual square, black around it: nothing of the frame is left, and nothing of the square lost."""
    picture = np.zeros((height, width, 3), np.uint8)
    left, top = (width - side) // 2, (height - side) // 2
    picture[top:top + side, left:left + side] = 255
    picture[top, left] = picture[top + side - 1, left + side - 1] = 128   # two corners of the square
    for i in range(20):
        Image.fromarray(picture).save(tmp_path / "source" / "img_align_celeba" / FILES[i], "PNG")
    zip_folder(tmp_path / "source", celeba / "img_align_celeba.zip")
    image = load_celeba(side).test.images[0].clone()
    assert image[0, 0, 0] == image[0, -1, -1] == 128
    image[:, 0, 0] = image[:, -1, -1] = 255
    assert (image == 255).all()


@pytest.mark.parametrize("damage, says", [
    (lambda folder: (folder / "list_attr_celeba.txt").unlink(), "list_attr_celeba"),
    (lambda folder: (folder / "img_align_celeba.zip").unlink(), "not there"),
    (lambda folder: damaged(folder / "img_align_celeba.zip"), "not a readable zip"),
    (lambda folder: write_attributes(folder, cut=6), "img_align_celeba.zip: "),
    (lambda folder: write_attributes(folder, range(30, 50)), "not the ones in list_attr_celeba"),
], ids=["no attributes", "no images", "damaged zip", "attributes cut short", "other images"])
def test_celeba_in_pieces_says_what_is_missing_and_three_ways_out(celeba, damage, says):
    damage(celeba)
    with pytest.raises(vae.DatasetUnavailable, match=says) as caught:
        load_celeba()
    assert all(f"\n  {i}. " in str(caught.value) for i in (1, 2, 3))


# ── Real images, where they are ─────────────────────────────────────────────────────────────────

@pytest.fixture(scope="module")
def real(real_cache):
    """Loads a set from the real images, once."""
    @functools.cache
    def load(name):
        needs = REAL_DATA / {"cifar10": "cifar10.zip", "celeba": "celeba/img_align_celeba.zip", "fashion_mnist": "FashionMNIST/raw"}[name]
        if not needs.exists():
            pytest.skip(f"needs real images: {needs} (set VAE_DATA)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VAE_DATA", str(REAL_DATA))
            patch.setenv("VAE_CACHE", str(real_cache))
            return vae.load_dataset(name, download=False)
    return load


@pytest.mark.parametrize("name, counts, title, label, shape", [
    ("cifar10", [45_000, 5_000, 10_000], "CIFAR-10 (JPEG copy)",
     "airplane automobile bird cat deer dog frog horse ship truck", (3, 32, 32)),
    ("fashion_mnist", [55_000, 5_000, 10_000], "Fashion-MNIST", "T-shirt/top", (1, 28, 28))])
def test_real_sets_have_their_official_sizes_and_classes(real, name, counts, title, label, shape):
    data = real(name)
    assert sizes(data) == counts and data.title == title and data.train.images.shape[1:] == shape
    assert " ".join(data.label_names).startswith(label) and len(data.label_names) == 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10


def test_real_cifar10_shares_no_image_between_splits_and_has_those_of_the_files_with_their_labels(real):
    data = real("cifar10")
    train, val, test = ({i.tobytes() for i in getattr(data, s).images.numpy()} for s in SPLITS)
    assert not (train & test) and not (val & test) and not (train & val)
    with zipfile.ZipFile(REAL_DATA / "cifar10.zip") as z:
        names = [n for n in z.namelist() if "/test/" in n and n.endswith(".jpg")][::997]
        for name in names:
            pixels = np.asarray(Image.open(z.open(name)).convert("RGB")).transpose(2, 0, 1)
            [row] = (data.test.images == torch.from_numpy(pixels.copy())).flatten(1).all(1).nonzero().flatten().tolist()
            assert data.label_names[data.test.labels[row]] == name.split("/")[-2]


def test_real_celeba_has_the_attributes_of_its_first_image_and_the_sizes_of_its_partition_file(real):
    """000001.jpg: a smiling young woman with high cheekbones, straight brown hair and earrings (list_attr_celeba.txt, row 1)."""
    data = real("celeba")
    assert len(data.label_names) == 40
    with zipfile.ZipFile(REAL_DATA / "celeba" / "img_align_celeba.zip") as z:
        name = next(n for n in z.namelist() if n.endswith("000001.jpg"))
        pixels = torch.from_numpy(vae._decode(lambda: z.read(name), 64, 148 / 178).copy())
    [(split, row)] = [(s, r) for s in SPLITS for r in (getattr(data, s).images == pixels).flatten(1).all(1).nonzero().flatten().tolist()]
    has = {n for n, v in zip(data.label_names, getattr(data, split).labels[row]) if v}
    assert has == {"Arched_Eyebrows", "Attractive", "Brown_Hair", "Heavy_Makeup", "High_Cheekbones", "Mouth_Slightly_Open",
                   "No_Beard", "Pointy_Nose", "Smiling", "Straight_Hair", "Wearing_Earrings", "Wearing_Lipstick", "Young"}
    parts = [line.split()[1] for line in (REAL_DATA / "celeba" / "list_eval_partition.txt").read_text().splitlines() if ".jpg" in line]
    assert sizes(data) == [parts.count(p) for p in "012"]
    assert data.title == f"CelebA ({len(parts):,} images)"
