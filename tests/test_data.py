"""Data: drawn shapes, folders and zips of images, torchvision's sets, CelebA, the cache, real images where they are."""
from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import shutil
import stat
import struct
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import REAL_DATA, colour_of, number_in, paint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vae_helpers as vae

SPLITS = ("train", "val", "test")


def numbers(data):
    """The numbers that paint() gave to the images of each split."""
    return {name: [number_in(image) for image in getattr(data, name).images] for name in SPLITS}


def all_numbers(data):
    return sorted(n for found in numbers(data).values() for n in found)


def all_images(data):
    return torch.cat([getattr(data, name).images for name in SPLITS])


def sizes(data):
    return [len(getattr(data, name).images) for name in SPLITS]


def labels_follow(data, label_of):
    """Whether every painted image has the label of its number."""
    return all(getattr(data, name).labels.tolist() == list(map(label_of, found)) for name, found in numbers(data).items())


def same(a, b):
    return all(torch.equal(x, y) for name in SPLITS for x, y in zip(getattr(a, name), getattr(b, name)))


def zip_folder(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for file in sorted(folder.rglob("*")):
            z.write(file, file.relative_to(folder))
    return path


def load_folder(path, size=8):
    return vae.load_dataset("folder", data_dir=path, image_size=size)


def save_copies(folder, pixels, **options):
    """Four files of one picture, and what is loaded of them, in the size of its height."""
    folder.mkdir()
    for i in range(4):
        Image.fromarray(pixels).save(folder / f"{i}.png", **options)
    return all_images(load_folder(folder, min(pixels.shape[:2])))


@pytest.fixture
def count_decoded(monkeypatch):
    """A list that grows by one with every image file that is decoded."""
    calls, decode = [], vae._decode
    monkeypatch.setattr(vae, "_decode", lambda *a: calls.append(1) or decode(*a))
    return calls


# ── Drawn shapes ────────────────────────────────────────────────────────────────────────────────

factors = st.tuples(*(st.integers(0, n - 1) for n in vae.SHAPE_FACTORS.values()))
CENTRED = {"shape": 0, "hue": 0, "background_hue": 5, "size": 2, "x": 3, "y": 3, "rotation": 0}


def draw(pixels=32, **changes):
    return vae.draw_shapes(torch.tensor([list((CENTRED | changes).values())]), pixels)[0]


def inside(pixels=64, **changes):
    """How much of each pixel the shape covers, from its colour between those of the corner and of the shape's centre."""
    image = draw(pixels, **changes).double()
    column, row = (int(((changes.get(axis, 3) / 7 - 0.5) * 0.9 + 1) / 2 * pixels) for axis in "xy")
    back, front = image[:, 0, 0, None, None], image[:, row, column, None, None]
    return ((image - back) * (front - back)).sum(0) / (front - back).square().sum()


@given(factors, st.integers(0, 6), st.integers(1, 9))
def test_every_factor_changes_the_image(values, column, step):
    other = list(values)
    levels = list(vae.SHAPE_FACTORS.values())[column]
    other[column] = (other[column] + 1 + step % (levels - 1)) % levels
    a, b = vae.draw_shapes(torch.tensor([values, other]))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("pixels", [16, 28, 33, 64])
def test_drawing_gives_uint8_of_any_size_and_the_same_each_time_alone_and_in_a_batch(pixels, all_shapes):
    some = all_shapes.test.labels[:5]
    images = vae.draw_shapes(some, pixels)
    assert images.shape == (5, 3, pixels, pixels) and images.dtype == torch.uint8
    assert torch.equal(vae.draw_shapes(some, pixels), images) and torch.equal(vae.draw_shapes(some[3:4], pixels)[0], images[3])


@pytest.mark.parametrize("shape, area", [(0, lambda a, b: math.pi * a * b), (1, lambda a, b: 1.8 * a * 1.6 * b),
                                         (2, lambda a, b: 2 * a * 1.6 * a / 2)], ids=["ellipse", "rectangle", "triangle"])
@pytest.mark.parametrize("size", [0, 3])
def test_a_shape_covers_the_area_of_its_formula_however_it_is_turned(shape, area, size):
    a = 0.22 + 0.09 * size
    covered = [inside(128, shape=shape, size=size, rotation=r).sum().item() for r in range(8)]
    assert covered[0] == pytest.approx(area(a, 0.6 * a) * (128 / 2) ** 2, rel=0.05)
    assert max(covered) / min(covered) < 1.03


def test_edges_are_anti_aliased():
    """Some pixels are partly covered, and a small drawing is the average of a large one."""
    edge = inside(32)
    assert ((edge > 0.05) & (edge < 0.95)).sum() > 10
    averaged = draw(128).float().unflatten(1, (32, 4)).unflatten(3, (32, 4)).mean((2, 4))
    assert (averaged - draw(32).float()).abs().mean() < 1


@pytest.mark.parametrize("factor, axis", [("x", 0), ("y", 1)])
def test_x_moves_the_shape_to_the_right_and_y_moves_it_down(factor, axis):
    covers = [inside(64, **{factor: value}).clamp(min=0) for value in (3, 4, 5)]
    left, middle, right = ((cover.sum(axis) * torch.arange(64)).sum() / cover.sum() for cover in covers)
    assert left < middle < right


def test_shapes_are_drawn_from_their_labels_and_the_same_on_every_call_and_in_one_split_only(all_shapes):
    """As many different factors and different images as there are images."""
    assert all_shapes.label_names == tuple(vae.SHAPE_FACTORS)
    assert torch.equal(vae.draw_shapes(all_shapes.test.labels[:50]), all_shapes.test.images[:50])
    assert same(vae.load_dataset("shapes"), all_shapes)
    rows = torch.cat([getattr(all_shapes, s).labels for s in SPLITS])
    assert len(rows.unique(dim=0)) == len({image.numpy().tobytes() for image in all_images(all_shapes)}) == len(rows)


# ── Range of the network's input ────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("dataset, low, high", [("cifar10", 0, 1), ("celeba", -1, 1)])
def test_to_input_spans_the_range_and_to_unit_is_its_inverse(dataset, low, high):
    config = vae.Config(dataset=dataset)
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = vae.to_input(values, config)
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (low, high)
    torch.testing.assert_close(vae.to_unit(x, config), values / 255)
    torch.testing.assert_close(vae.to_input(values / 255, config), x)   # floats in [0, 1] give the same


# ── load_dataset ────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("name, says", [("imagenet", "'imagenet'.*cifar10.*shapes"), ("folder", "--data_dir")])
def test_an_unknown_name_or_a_folder_without_its_place_is_refused(name, says):
    with pytest.raises(vae.VAEError, match=says):
        vae.load_dataset(name)


def test_fast_mode_takes_a_small_part_of_each_whole_split(monkeypatch, all_shapes):
    """Of the same split: else a model trained on all shapes is tested on its own training images under VAE_FAST=1."""
    monkeypatch.setenv("VAE_FAST", "1")
    fast = vae.load_dataset("shapes")
    assert tuple(sizes(fast)) == vae.FAST_SIZES
    for split in SPLITS:
        part, whole = ({tuple(row) for row in getattr(data, split).labels.tolist()} for data in (fast, all_shapes))
        assert part <= whole


def test_max_images_takes_the_first_training_images_and_the_title_says_so(all_shapes):
    data = vae.load_dataset("shapes", max_images=10)
    assert all(torch.equal(some, whole[:10]) for some, whole in zip(data.train, all_shapes.train))
    assert torch.equal(data.test.images, all_shapes.test.images)
    assert data.title == "shapes (synthetic), 10 training images"


def test_the_fingerprint_tells_data_sets_apart(all_shapes):
    assert vae.load_dataset("shapes").fingerprint == all_shapes.fingerprint
    others = [vae.load_dataset("shapes", max_images=len(all_shapes.train.images) - 1), vae.load_dataset("shapes", image_size=28)]
    assert len({d.fingerprint for d in (all_shapes, *others)}) == 3


# ── A folder or zip of images ───────────────────────────────────────────────────────────────────

LAYOUTS = {"flat": "{i:02}.png", "classes": "{c}/{i:02}.png", "splits": "{s}/{c}/{i:02}.png", "lone train": "train/{c}/{i:02}.png"}


def tree(folder: Path, layout: str, top: str = "") -> Path:
    """20 images of class even or odd, 15 of them named train and 5 named test where the layout names splits."""
    for i in range(20):
        paint(folder / top / LAYOUTS[layout].format(i=i, c=("even", "odd")[i % 2], s="train" if i < 15 else "test"), i)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("top", ["", "top", "a/b"])
def test_every_layout_gives_every_image_once_with_its_class_from_a_folder_and_a_zip(tmp_path, capsys, layout, top):
    folder = tree(tmp_path / "mine", layout, top)
    (folder / "notes.txt").write_text("ignored, and nothing said")
    data, from_zip = load_folder(folder), load_folder(zip_folder(folder, tmp_path / "mine.zip"))
    assert same(data, from_zip) and data.title == from_zip.title == "mine" and data.label_names == from_zip.label_names
    assert all_numbers(data) == list(range(20)) and data.channels == 3 and data.image_size == 8
    assert all(tuple(image[:, 3, 5].tolist()) == colour_of(number_in(image)) for image in all_images(data))   # nothing is resized
    assert data.label_names == (("",) if layout == "flat" else ("even", "odd"))
    assert labels_follow(data, lambda n: 0 if layout == "flat" else n % 2)
    if layout == "splits":
        assert sorted(numbers(data)["test"]) == list(range(15, 20))
    assert capsys.readouterr().out == ""


def test_images_without_named_splits_are_dealt_80_10_10_whatever_the_global_seed(tmp_path):
    folder = tree(tmp_path / "mine", "flat")
    torch.manual_seed(1)
    first = load_folder(folder)
    torch.manual_seed(2)
    assert same(load_folder(folder), first) and sizes(first) == [16, 2, 2]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("Train", "Testing")])
def test_named_splits_are_respected_in_any_case(tmp_path, names):
    for i in range(12):
        paint(tmp_path / "mine" / names[i * len(names) // 12] / ("even", "odd")[i % 2] / f"{i}.png", i)
    data = load_folder(tmp_path / "mine")
    found = {name: sorted(n) for name, n in numbers(data).items()}
    assert data.label_names == ("even", "odd") and labels_follow(data, lambda n: n % 2)
    if len(names) == 3:
        assert found == {"train": [0, 1, 2, 3], "val": [4, 5, 6, 7], "test": [8, 9, 10, 11]}
    else:
        assert sorted(found["train"] + found["val"]) == list(range(6)) and found["test"] == list(range(6, 12))


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("RGBA", 3), ("P", 3), ("L", 1), ("LA", 1), ("1", 1)])
def test_colour_modes_give_the_same_image_and_all_grey_ones_one_channel(tmp_path, mode, channels):
    for i in range(4):
        paint(tmp_path / "mine" / f"{i}.png", i, mode=mode)
    data = load_folder(tmp_path / "mine")
    assert data.channels == channels and (channels == 1 or all_numbers(data) == [0, 1, 2, 3])


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    """Medical and depth images come so: 32,768 of 65,535 is mid-grey."""
    images = save_copies(tmp_path / "mine", np.full((8, 8), 32768, np.uint16))
    assert (images.float() - 128).abs().max() <= 1


@pytest.mark.parametrize("values", [np.float32([[0, 0.5], [0.5, 1]]), np.float32([[0, 127.5], [127.5, 255]]), np.float32([[0, 32768], [32768, 65535]]),
                                    np.int32([[0, 32768], [32768, 65535]]), np.int32([[0, 2 ** 30], [2 ** 30, 2 ** 31 - 1]])],
                         ids=["0 to 1", "0 to 255", "0 to 65535", "16 bits", "32 bits"])
def test_floats_and_wide_integers_are_scaled_and_not_clipped(tmp_path, values):
    """TIFF files of microscopes and satellites."""
    (tmp_path / "mine").mkdir()
    for i in range(4):
        Image.fromarray(values).save(tmp_path / "mine" / f"{i}.tif")
    images = all_images(load_folder(tmp_path / "mine", 2))
    assert images.shape == (4, 1, 2, 2) and (images.int() - torch.tensor([[0, 128], [128, 255]])).abs().max() <= 1


@pytest.mark.parametrize("values", [np.float32([[-1, 1]]), np.float32([[np.nan, 1]]), np.float32([[np.inf, 1]]), np.int32([[-5, 5]])], ids=repr)
def test_values_without_a_scale_are_skipped(tmp_path, capsys, values):
    folder = tree(tmp_path / "mine", "flat")
    Image.fromarray(values).save(folder / "odd.tif")
    assert all_numbers(load_folder(folder)) == list(range(20)) and "odd.tif" in capsys.readouterr().out


def test_printers_colours_become_rgb(tmp_path):
    """CMYK: full cyan and magenta are blue."""
    (tmp_path / "mine").mkdir()
    for i in range(4):
        Image.new("CMYK", (8, 8), (255, 255, 0, 0)).save(tmp_path / "mine" / f"{i}.tif")
    images = all_images(load_folder(tmp_path / "mine"))
    assert (images[:, 2] > 200).all() and (images[:, :2] < 60).all()


def test_a_large_photograph_is_read(tmp_path):
    folder = tree(tmp_path / "mine", "flat")
    paint(folder / "large.png", 25, (4000, 4000))
    assert 25 in all_numbers(load_folder(folder))


@pytest.mark.parametrize("size", [(10_000, 9_500), (20_000, 10_000)], ids=["Pillow warns", "Pillow refuses"])
def test_a_small_file_of_hundreds_of_megabytes_of_pixels_is_skipped(tmp_path, capsys, recwarn, size):
    """A decompression bomb."""
    folder = tree(tmp_path / "mine", "flat")
    Image.new("1", size).save(folder / "bomb.png")
    assert all_numbers(load_folder(folder)) == list(range(20))
    assert "1 of 21 files" in (said := capsys.readouterr().out) and "bomb.png" in said and not list(recwarn)


def test_a_postscript_file_is_never_run(tmp_path, capsys, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called: PostScript is a programming language."""
    folder = tree(tmp_path / "mine", "flat")
    Image.new("RGB", (8, 8)).save(folder / "picture.png", "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ran := Mock(return_value=Image.new("RGB", (8, 8)).im))
    load_folder(folder)
    assert not ran.called and "picture.png" in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_file_that_is_too_large_is_not_even_read(tmp_path, capsys, monkeypatch, zipped):
    """Of a zip of 2 kB that holds gigabytes, nothing is unpacked but what fits."""
    monkeypatch.setattr(vae, "LARGEST_FILE", 1 << 20)
    folder = tree(tmp_path / "mine", "flat")
    (folder / "bomb.png").write_bytes(bytes(2 << 20))
    read = Mock(side_effect=Path.read_bytes, autospec=True)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path))
    place = folder
    if zipped:
        with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        place = tmp_path / "mine.zip"
    assert all_numbers(load_folder(place)) == list(range(20))
    assert "1 of 21 files" in (said := capsys.readouterr().out) and "bomb.png" in said
    assert folder / "bomb.png" not in [call.args[0] for call in read.call_args_list]


def test_a_zip_that_lies_about_its_sizes_gives_no_more_than_it_says(tmp_path, capsys):
    folder = tree(tmp_path / "mine", "flat")
    (folder / "lie.png").write_bytes(bytes(1 << 20))
    place = zip_folder(folder, tmp_path / "mine.zip")
    content = bytearray(place.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"lie.png"))
    content[entry + 24:entry + 28] = struct.pack("<I", 100)   # the size in the list of contents
    place.write_bytes(content)
    with zipfile.ZipFile(place) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("lie.png")
    assert all_numbers(load_folder(place)) == list(range(20)) and "lie.png" in capsys.readouterr().out


def test_a_zip_whose_names_climb_out_of_it_writes_nothing(tmp_path):
    """It is read where it is."""
    paint(tmp_path / "one.png", 3)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "deep" / "er" / "mine.zip", "w") as archive:
        for i, name in enumerate(["../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png", "in.png"]):
            archive.write(paint(tmp_path / "one.png", i), name)
    before = sorted(tmp_path.rglob("*"))
    assert all_numbers(load_folder(tmp_path / "deep" / "er" / "mine.zip")) == list(range(5))
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before and not Path("/tmp/out.png").exists()


@pytest.mark.parametrize("where", ["a member", "the list of contents"])
def test_a_zip_with_a_damaged_place_never_gives_other_images(tmp_path, capsys, where):
    place = zip_folder(tree(tmp_path / "mine", "flat"), tmp_path / "mine.zip")
    content = bytearray(place.read_bytes())
    content[content.index(b"IDAT") + 8 if where == "a member" else content.rindex(b"PK\x01\x02") + 16] ^= 255   # in the second, its checksum
    place.write_bytes(content)
    assert len(all_numbers(load_folder(place))) == 19 and "1 of 20 files" in capsys.readouterr().out


def test_names_that_are_not_utf8_are_read_named_and_printed(tmp_path, capsys):
    """Files from an old Windows or a Mac: Übung in Latin-1."""
    folder = tmp_path / os.fsdecode(b"\xdcbungen")
    try:
        tree(folder, "splits")
        (folder / "train" / "even").rename(folder / "train" / os.fsdecode(b"\xdcbung"))
        (folder / "test" / "even").rename(folder / "test" / os.fsdecode(b"\xdcbung"))
        (folder / "train" / os.fsdecode(b"br\xfcchig.png")).write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system knows no such names")
    data = load_folder(folder)
    said = capsys.readouterr().out
    for text in (data.title, *data.label_names, said):
        text.encode()
    assert all_numbers(data) == list(range(20)) and "br\\udcfcchig.png" in said


def test_odd_sizes_and_mixed_modes_become_rgb_squares(tmp_path):
    for i, (size, mode) in enumerate([((7, 31), "L"), ((50, 13), "RGB"), ((33, 33), "RGBA"), ((9, 8), "P"), ((1, 1), "RGB")]):
        paint(tmp_path / "mine" / f"{i}.png", i, size, mode)
    assert all_images(load_folder(tmp_path / "mine", 16)).shape == (5, 3, 16, 16)


@pytest.mark.parametrize("upright", [False, True])
def test_the_centre_square_is_taken(tmp_path, upright):
    """Of 30x10 pixels the middle 10x10 remains: red, green, blue → green."""
    strip = np.zeros((10, 30, 3), np.uint8)
    strip[:, :10, 0] = strip[:, 10:20, 1] = strip[:, 20:, 2] = 200
    images = save_copies(tmp_path / "mine", strip.transpose(1, 0, 2) if upright else strip)
    assert (images[:, 1] == 200).all() and (images[:, [0, 2]] == 0).all()


def test_the_camera_orientation_is_applied(tmp_path):
    """EXIF orientation 6: the camera was held upright, rows of the file are columns of the picture."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4] = 255                                   # white top in the file → white right in the picture
    exif = Image.Exif()
    exif[0x0112] = 6
    images = save_copies(tmp_path / "mine", picture, exif=exif)
    assert (images[..., 4:] == 255).all() and (images[..., :4] == 0).all()


def test_a_broken_file_is_named_skipped_and_counted(tmp_path, capsys):
    folder = tree(tmp_path / "mine", "splits")
    (folder / "train" / "even" / "broken.png").write_bytes(b"\x89PNG not really")
    data = load_folder(folder)
    assert all_numbers(data) == list(range(20)) and labels_follow(data, lambda n: n % 2)
    assert "1 of 21 files" in (said := capsys.readouterr().out) and "train/even/broken.png" in said
    load_folder(folder)
    assert "broken.png" in capsys.readouterr().out   # it is said again when the rest comes from the cache


def damaged(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK\x03\x04 cut short")


@pytest.mark.parametrize("make, says", [
    (lambda folder: None, "not there"), (Path.mkdir, "no images"),
    (lambda folder: [paint(folder / f"{i}.png", i) for i in range(2)], "2 image"),
    (lambda folder: [paint(folder / s / f"{i}.png", i) for i in range(5) for s in ("test", "val")], "only one is there"),
    (lambda folder: [damaged(folder / f"{i}.png") for i in range(5)], "too few readable images"),
    (damaged, "not a readable zip")], ids=["nothing", "empty", "two images", "no train", "all broken", "damaged zip"])
def test_a_place_without_enough_images_or_a_train_folder_is_refused_in_one_sentence_that_names_it(tmp_path, make, says):
    make(tmp_path / "mine")
    with pytest.raises(vae.DatasetUnavailable, match=says) as caught:
        load_folder(tmp_path / "mine")
    assert str(tmp_path / "mine") in str(caught.value) and "\n" not in str(caught.value)


# ── The cache ───────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def cached(tmp_path):
    """A folder that was loaded once, what was loaded, and its file in the cache."""
    folder = tree(tmp_path / "mine", "splits")
    data = load_folder(folder)
    [file] = (tmp_path / "cache").iterdir()   # one file, and no temporary one beside it
    return SimpleNamespace(folder=folder, data=data, file=file)


def test_only_another_size_or_a_changed_image_is_decoded_anew(cached, count_decoded):
    assert same(load_folder(cached.folder), cached.data) and count_decoded == []
    assert load_folder(cached.folder, 6).image_size == 6 and len(count_decoded) == 20
    file = paint(cached.folder / "test" / "odd" / "15.png", 29)
    os.utime(file, (1, 1))
    assert sorted(numbers(load_folder(cached.folder))["test"]) == [16, 17, 18, 19, 29]


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-100]), lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"\xff" * 4000),
    lambda file: safetensors.torch.save_file({"images": torch.zeros(2)}, file)],
    ids=["cut short", "empty", "garbage", "another program's"])
def test_a_damaged_or_foreign_cache_is_rebuilt(cached, count_decoded, damage):
    damage(cached.file)
    assert same(load_folder(cached.folder), cached.data) and len(count_decoded) == 20
    load_folder(cached.folder)
    assert len(count_decoded) == 20   # rebuilt: the next load decodes nothing


@pytest.mark.parametrize("error", [OSError("No space left on device"), safetensors.SafetensorError("I/O error: Permission denied"), None],
                         ids=["OSError", "SafetensorError", "no folder"])
def test_a_cache_that_cannot_be_written_only_prints(tmp_path, monkeypatch, capsys, error):
    """safetensors reports a full disk or a read-only folder with its own error, which is no OSError."""
    if error:
        monkeypatch.setattr(safetensors.torch, "save_file", Mock(side_effect=error))
    else:
        (tmp_path / "cache").write_text("in the way")
    assert len(all_images(load_folder(tree(tmp_path / "mine", "flat")))) == 20
    assert "could not be cached" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_what_is_written_can_be_read_by_whom_the_user_lets_read(cached, model, tmp_path):
    """safetensors makes files for their owner alone: a cache or a run that others share would be missing to them."""
    before = os.umask(0o027)
    try:
        cached.file.unlink()
        load_folder(cached.folder)
        vae.save_checkpoint(model, tmp_path / "run")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(f.stat().st_mode) for f in (cached.file, *(tmp_path / "run").iterdir())} == {0o640}


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


def test_celeba_images_without_attributes_are_counted_and_left_out(celeba, capsys):
    write_attributes(celeba, [i for i in range(20) if i != 3])
    assert 3 not in numbers(load_celeba())["train"]
    assert "1 images without a row in list_attr_celeba" in capsys.readouterr().out


def test_celeba_images_without_a_partition_are_counted_and_left_out(celeba, capsys):
    """They are of no split; an image must not vanish in silence."""
    write_partition(celeba, PARTS[:18])
    assert sorted(numbers(load_celeba())["test"]) == [17]
    assert "2 images without a row in list_eval_partition" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [3, 6, 8], ids=["last value", "last two values", "last three values"])
def test_a_table_cut_inside_its_last_row_is_refused(celeba, cut):
    write_attributes(celeba, cut=cut)
    with pytest.raises(vae.DatasetUnavailable, match="line 22 of list_attr_celeba is not an image and 3 of the numbers -1, 0, 1"):
        load_celeba()


def test_a_table_cut_inside_its_last_name_does_not_make_it_the_names_of_the_attributes(celeba):
    text = (celeba / "list_attr_celeba.txt").read_text()
    (celeba / "list_attr_celeba.txt").write_text(text[:text.rindex("0020.jpg")])
    with pytest.raises(vae.DatasetUnavailable, match="line 22 of list_attr_celeba"):
        load_celeba()


@pytest.mark.parametrize("table, old, new", [("list_attr_celeba", "  1", "  7"), ("list_attr_celeba", "-1", ""), ("list_attr_celeba", "-1", "-1 -1"),
                                             ("list_attr_celeba", "-1", "no"), ("list_eval_partition", "jpg 1", "jpg 3"), ("list_eval_partition", "jpg 1", "jpg")])
def test_rows_that_cannot_be_right_are_refused(celeba, table, old, new):
    path = celeba / f"{table}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(vae.DatasetUnavailable, match=f"line \\d+ of {table}"):
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
