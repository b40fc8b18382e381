"""Data: drawn shapes, folders and zips of images, the cache."""
from __future__ import annotations

import math
import os
import stat
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import (
    LAYOUTS,
    SPLITS,
    all_images,
    all_numbers,
    colour_of,
    damaged,
    labels_follow,
    number_in,
    numbers,
    paint,
    same,
    sizes,
    tree,
    zip_folder,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vae_helpers as vae


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
