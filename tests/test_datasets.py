"""Data sets: drawn shapes, layouts of folders, the cache, max_images, CelebA, real images.

Folders and archives as people have them are in test_folders.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import painting
import pytest
import safetensors.torch
import torch
from conftest import REAL_DATA, ROOT
from painting import SPLITS, all_images, all_numbers, labels_follow, numbers, same, sizes, tree
from PIL import Image

from base.errors import DatasetUnavailable
from image_data import archives, cache, image_files
from image_data.load import load_dataset
from image_data.shapes import SHAPE_NAMES, draw_shapes


def load_folder(path, size=8):
    return load_dataset("folder", data_dir=path, image_size=size)


def load_copies(folder, image, suffix, size=8, **options):
    """Four files of one picture, and the images that are loaded from them."""
    folder.mkdir()
    for i in range(4):
        image.save(folder / f"{i}.{suffix}", **options)
    return all_images(load_folder(folder, size))


CENTRED = {"shape": 0, "hue": 0, "background_hue": 5, "size": 2, "x": 3, "y": 3, "rotation": 0}


def coverage(pixels, **changes):
    """How much of each pixel the shape covers; its red is 242 of 255, that of the background 63."""
    factors = torch.tensor([list((CENTRED | changes).values())])
    return (draw_shapes(factors, pixels)[0, 0].double() - 63) / (242 - 63)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_a_shape_covers_the_area_of_its_formula_however_it_is_turned(name, size):
    a = 0.22 + 0.09 * size
    b = 0.6 * a
    areas = {"ellipse": math.pi * a * b, "rectangle": 1.8 * a * 1.6 * b, "triangle": 1.6 * a * a}
    shape = SHAPE_NAMES.index(name)
    covered = [coverage(128, shape=shape, size=size, rotation=r).sum().item() for r in range(8)]
    assert covered == pytest.approx([areas[name] * (128 / 2) ** 2] * 8, rel=0.05)
    assert max(covered) / min(covered) < 1.03


def test_shapes_are_drawn_from_their_labels_each_in_one_split_only(all_shapes):
    """As many different factors, and as many different images, as there are images."""
    assert all_shapes.test.labels[0].tolist() == [0, 3, 4, 1, 5, 7, 3]  # the splits stay
    assert torch.equal(draw_shapes(all_shapes.test.labels[:50]), all_shapes.test.images[:50])
    rows = torch.cat([getattr(all_shapes, split).labels for split in SPLITS])
    assert len(rows.unique(dim=0)) == len(all_images(all_shapes).unique(dim=0)) == len(rows)


def test_fast_mode_takes_the_first_images_of_each_whole_split(monkeypatch, all_shapes):
    """Else a model trained on all shapes is tested on its own training images in fast mode."""
    monkeypatch.setenv("VAE_FAST", "1")
    fast = load_dataset("shapes")
    for split, count in zip(SPLITS, (1024, 256, 256)):
        assert torch.equal(getattr(fast, split).labels, getattr(all_shapes, split).labels[:count])


@pytest.mark.parametrize("count", [10, 3100])
def test_max_images_gives_so_many_training_images_and_the_title_says_so(all_shapes, count):
    data = load_dataset("shapes", max_images=count)
    assert torch.equal(data.train.images[:3000], all_shapes.train.images[:count])
    assert torch.equal(data.test.images, all_shapes.test.images) and sizes(data)[0] == count
    assert data.title == f"shapes (synthetic), {count:,} training images"


@pytest.mark.parametrize("layout, top", [*[(x, "") for x in painting.LAYOUTS], ("classes", "a/b")])
def test_every_layout_gives_every_image_once_with_its_class(tmp_path, capsys, layout, top):
    folder = tree(tmp_path / "mine", layout, top)
    (folder / "notes.txt").write_text("no image")
    data = load_folder(folder)
    from_zip = load_folder(painting.zip_folder(folder, tmp_path / "mine.zip"))
    assert same(data, from_zip) and data.title == from_zip.title == "mine"
    assert all_numbers(data) == list(range(20))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0] == said[1] and said[0].startswith("mine: images for training")
    assert labels_follow(data, lambda n: 0 if layout == "flat" else n % 2)
    assert data.class_names == (() if layout == "flat" else ("even", "odd"))
    if "splits" in layout:
        assert sorted(numbers(data.test)) == list(range(15, 20))
        assert layout == "splits" or sorted(numbers(data.val)) == list(range(10, 15))
    else:
        assert sizes(data) == [16, 2, 2]
    if layout == "flat":  # always the same, else a run that goes on trains on its test images
        assert (numbers(data.val), numbers(data.test)) == ([4, 5], [13, 19])


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_colour_modes_give_the_same_image_and_all_grey_ones_one_channel(tmp_path, mode):
    for i in range(4):
        painting.paint(tmp_path / "mine" / f"{i}.png", i, (7 + i, 31), mode)
    data = load_folder(tmp_path / "mine")
    assert data.channels == (3 if mode in ("RGBA", "P") else 1)
    assert data.channels == 1 or all_numbers(data) == [0, 1, 2, 3]


NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
BLACK_GREY_WHITE = np.array([[0, 0.5], [0.5, 1]])


@pytest.mark.parametrize("white, kind", [
    (None, np.uint8), (65535, np.uint16), (2**31 - 1, np.int32), (1, np.float32), (255, np.float32)
])  # fmt: skip
def test_pixels_stay_and_wide_integers_and_floats_are_scaled_and_not_clipped(tmp_path, white, kind):
    """In axes channel, row, column."""
    pixels = (BLACK_GREY_WHITE * white).astype(kind) if white else NOISE
    loaded = load_copies(tmp_path / "mine", Image.fromarray(pixels), "tif", len(pixels))
    expected = 255 * BLACK_GREY_WHITE[None] if white else NOISE.transpose(2, 0, 1)
    np.testing.assert_allclose(loaded[0], expected, rtol=0, atol=1 if white else 0)


def test_the_centre_square_is_taken_after_the_camera_orientation(tmp_path):
    """EXIF orientation 6, camera held upright: what is white on top of the file is on the right."""
    tall = np.full((24, 8), 100, np.uint8)
    tall[8:12] = 255
    tall[12:16] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_copies(tmp_path / "mine", Image.fromarray(tall), "png", exif=exif)
    assert (loaded[..., 4:] == 255).all() and (loaded[..., :4] == 0).all()


UNREADABLE = {
    "no image": lambda path: path.write_bytes(b"\x89PNG not really"),
    "negative values": lambda path: Image.fromarray(np.float32([[-1, 1]])).save(path, "TIFF"),
    "a bomb of pixels": lambda path: Image.new("1", (10_000, 9_500)).save(path),
    "larger than LARGEST_FILE": lambda path: Image.effect_noise((2000, 2000), 99).save(path),
    # Pillow would have Ghostscript run it.
    "PostScript": lambda path: Image.new("RGB", (8, 8)).save(path, "EPS"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_skipped_and_counted(
    tmp_path, capsys, monkeypatch, recwarn, kind
):
    """In a folder and in a zip, when it is decoded and when the others come from the cache."""
    monkeypatch.setattr(archives, "LARGEST_FILE", 1 << 20)
    ghostscript = Mock(return_value=Image.new("RGB", (8, 8)).im)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    folder = tree(tmp_path / "mine", "splits")
    UNREADABLE[kind](folder / "train" / "even" / "odd one.png")
    archive = painting.zip_folder(folder, tmp_path / "mine.zip")
    for place in (folder, folder, archive, archive):
        data = load_folder(place)
        assert all_numbers(data) == list(range(20)) and labels_follow(data, lambda n: n % 2)
        said = capsys.readouterr().out
        assert "1 of 21 files" in said and "train/even/odd one.png" in said
    assert not ghostscript.called and not list(recwarn)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda folder: None, "not there"),
        (lambda folder: painting.paint_noise(folder, 2), "2 images"),
        (lambda folder: shutil.rmtree(tree(folder, "three splits") / "Training"), "only one"),
        (lambda folder: folder.write_bytes(b"PK\x03\x04 cut short"), "not a readable zip"),
        (lambda folder: folder.write_bytes(b"\x1f\x8b\x08 cut short"), "not a readable zip or tar"),
        (lambda folder: folder.write_bytes(b"Rar!\x1a\x07"), "a rar archive"),
        (lambda folder: folder.write_text("<!doctype html><html>"), "a web page in place"),
        (lambda folder: (folder / "x").mkdir(parents=True), "no images"),
    ],
)
def test_a_place_without_enough_images_is_refused_in_one_sentence(tmp_path, make, says):
    make(tmp_path / "mine")
    with pytest.raises(DatasetUnavailable, match=says) as caught:
        load_folder(tmp_path / "mine")
    assert str(tmp_path / "mine") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [0, 4])
def test_max_images_decodes_only_what_it_uses_and_changes_no_split(tmp_path, monkeypatch, broken):
    """The first images of the whole training split that can be read; copies count as one."""
    folder = painting.paint_noise(tmp_path / "mine", 60)
    for i in range(10):
        shutil.copy(folder / f"{i:03}.png", folder / f"{i:03} (1).png")
    for i in range(20, 20 + broken):
        (folder / f"{i:03}.png").write_bytes(b"broken")
    whole = load_folder(folder)
    decode = Mock(side_effect=image_files.decode_file)
    monkeypatch.setattr(image_files, "decode_file", decode)
    part = load_dataset("folder", data_dir=folder, image_size=8, max_images=7)
    assert torch.equal(part.train.images, whole.train.images[:7])
    assert torch.equal(part.val.images, whole.val.images)
    assert torch.equal(part.test.images, whole.test.images)
    assert part.title == "mine, 7 training images" and whole.title == "mine"
    if not broken:
        assert decode.call_count == sum(sizes(part)) < sum(sizes(whole)) == 70


def test_max_images_keeps_the_splits_where_only_decoding_shows_what_is_a_copy(tmp_path):
    folder = tree(tmp_path / "mine", "flat")
    for file in list(folder.iterdir()):
        Image.open(file).save(file.with_suffix(".bmp"))
    whole = load_folder(folder)
    part = load_dataset("folder", data_dir=folder, image_size=8, max_images=9)
    assert numbers(part.train) == numbers(whole.train)[:9]
    assert numbers(part.val) + numbers(part.test) == numbers(whole.val) + numbers(whole.test)


def test_the_cache_prunes_what_was_used_longest_ago_and_says_so(tmp_path, monkeypatch, capsys):
    files = {}
    for name in "abc":
        load_folder(painting.paint_noise(tmp_path / name, 10))
        [files[name]] = {*(tmp_path / "cache").iterdir()} - {*files.values()}
        os.utime(files[name], (ord(name), ord(name)))
    load_folder(tmp_path / "a")  # used again
    monkeypatch.setattr(cache, "LARGEST_CACHE", 3 * files["a"].stat().st_size + 100)
    capsys.readouterr()
    foreign = tmp_path / "cache" / "llama.safetensors"  # larger and older, and not of this cache
    foreign.write_bytes(bytes(10 * files["a"].stat().st_size))
    os.utime(foreign, (1, 1))
    load_folder(painting.paint_noise(tmp_path / "d", 10))
    assert foreign.exists()
    kept = {*(tmp_path / "cache").iterdir()} - {foreign}
    assert files["a"] in kept and files["b"] not in kept and files["c"] in kept and len(kept) == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "cache" in line]
    assert len(said) == 1 and "longest ago" in said[0]


@pytest.fixture
def cached(tmp_path):
    """A folder that was loaded once, what was loaded, and its only file in the cache."""
    folder = tree(tmp_path / "mine", "splits")
    data = load_folder(folder)
    [file] = (tmp_path / "cache").iterdir()
    return folder, data, file


def test_images_come_from_the_cache_until_a_file_or_the_size_changes(cached):
    folder, data, file = cached
    image = folder / "test" / "odd" / "15.png"
    before = image.stat()
    assert file.stat().st_mode == before.st_mode  # safetensors makes files for their owner alone
    image.write_bytes(bytes(before.st_size))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert same(load_folder(folder), data)  # nobody looked into the file
    os.utime(painting.paint(image, 29), (1, 1))
    assert sorted(numbers(load_folder(folder).test)) == [16, 17, 18, 19, 29]
    assert load_folder(folder, 6).image_size == 6


def test_a_damaged_or_foreign_cache_is_rebuilt(cached):
    folder, data, file = cached
    content = file.read_bytes()
    foreign = safetensors.torch.save({"images": torch.zeros(2)})
    another_bit = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (content[:-100], another_bit, foreign):
        file.write_bytes(damaged)
        assert same(load_folder(folder), data) and file.read_bytes() == content


def test_a_cache_that_cannot_be_written_only_prints(tmp_path, monkeypatch, capsys):
    """safetensors reports a full disk with an error of its own."""
    full = safetensors.SafetensorError("no space left")
    monkeypatch.setattr(safetensors.torch, "save_file", Mock(side_effect=full))
    assert all_numbers(load_folder(tree(tmp_path / "mine", "flat"))) == list(range(20))
    assert "could not be cached" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "name, how", [("cifar10", "VAE_FAST"), ("mnist", "download=False"), ("celeba", "no network")]
)
def test_without_a_download_it_says_what_was_tried_and_three_ways_out(
    tmp_path, monkeypatch, capsys, name, how
):
    unreachable = Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr("requests.get", unreachable)
    monkeypatch.setitem(sys.modules, "gdown", Mock(download=unreachable))
    if how == "VAE_FAST":
        monkeypatch.setenv("VAE_FAST", "1")
    data = load_dataset(name, download=how != "download=False", or_shapes=True)
    assert data.name == "shapes" and data.image_size == 32 and "shapes" in data.title
    said = capsys.readouterr().out
    assert ("no route to host" if how == "no network" else "download: not allowed") in said
    for part in (f"{tmp_path / 'data'}", f"{name}.zip", "\n  1. put", "\n  2. set", "\n  3. use"):
        assert part in said


def test_a_jpeg_copy_is_called_so_and_nothing_is_written_beside_it(tmp_path):
    for file in list(tree(tmp_path / "mine", "splits").rglob("*.png")):
        file.rename(file.with_suffix(".jpg"))
    archive = painting.zip_folder(tmp_path / "mine", tmp_path / "data" / "cifar10.zip")
    data = load_dataset("cifar10", image_size=8, download=False)
    assert data.title == "CIFAR-10 (JPEG copy)" and data.name == "cifar10"
    assert sorted(numbers(data.test)) == list(range(15, 20))
    assert list(archive.parent.iterdir()) == [archive]


TABLE = "list_attr_celeba.txt"


@pytest.fixture
def celeba(tmp_path):
    return painting.write_celeba(tmp_path / "data" / "celeba")


def load_celeba(size=8):
    return load_dataset("celeba", image_size=size, download=False)


@pytest.mark.parametrize("layout", painting.CELEBA_LAYOUTS)
def test_celeba_is_read_in_every_layout(celeba, layout):
    layout(celeba)
    data = load_celeba()
    assert data.label_names == painting.ATTRIBUTES and data.title == "CelebA (20 images)"
    assert all_numbers(data) == list(range(20)) and data.class_names == ()
    assert labels_follow(data, painting.ATTRIBUTES_OF.__getitem__)
    assert sorted(numbers(data.val)) == [14, 15, 16]
    assert sorted(numbers(data.test)) == [17, 18, 19]


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / TABLE).write_text("1\nBald\n000001.jpg 7"), "line 3 of"),
        (lambda folder: painting.write_attributes(folder, range(30, 50)), "not the ones in"),
        (lambda folder: (folder / TABLE).unlink(), "is not beside it"),
        (lambda folder: painting.official(folder).write_bytes(b"PK"), "not a readable zip"),
    ],
)
def test_celeba_in_pieces_says_what_is_wrong_and_where_to_get_it(celeba, damage, says):
    damage(celeba)
    with pytest.raises(DatasetUnavailable, match=f"{says}(.|\n)*Kaggle's copy has none"):
        load_celeba()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_celebas_tables_are_read_in_any_encoding(celeba, encoding):
    table = celeba / TABLE
    bald = "Käl" if encoding == "cp1252" else "Bald"
    table.write_bytes(table.read_text().replace("Bald", bald).encode(encoding))
    data = load_celeba()
    assert data.label_names == (bald, "Male", "Smiling")
    assert labels_follow(data, painting.ATTRIBUTES_OF.__getitem__)


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".JPG", ".PNG", ".webp"])
def test_celebas_images_may_have_another_ending_than_in_the_tables(celeba, suffix):
    painting.unpacked(celeba)
    for file in (celeba / "img_align_celeba").iterdir():
        file.rename(file.with_suffix(suffix))
    assert all_numbers(load_celeba()) == list(range(20))


def test_celebas_tables_may_name_images_without_an_ending(celeba):
    for table in celeba.glob("*.txt"):
        table.write_text(table.read_text().replace(".jpg", ""))
    assert all_numbers(load_celeba()) == list(range(20))


@pytest.mark.parametrize("name", [TABLE, "list_eval_partition.txt", "img_align_celeba.zip"])
def test_a_web_page_in_place_of_celebas_files_is_called_that(celeba, name):
    (celeba / name).write_text("\n <!-- saved --><HTML><head><title>Quota exceeded</title></head>")
    with pytest.raises(DatasetUnavailable, match="a web page (was saved )?in place of"):
        load_celeba()


@pytest.mark.parametrize("width, height, side", [(178, 218, 148), (89, 109, 74)])
def test_celeba_is_cropped_to_the_centred_square_of_the_face(celeba, width, height, side):
    """White inside the usual square, black around it: nothing of the frame is left."""
    face = np.full((side, side), 255, np.uint8)
    face[0, 0] = face[-1, -1] = 128
    picture = Image.new("L", (width, height))
    picture.paste(Image.fromarray(face), ((width - side) // 2, (height - side) // 2))
    painting.unpacked(celeba)
    for file in (celeba / "img_align_celeba").iterdir():
        picture.save(file, "PNG")
    assert np.array_equal(load_celeba(side).test.images[0, 0].numpy(), face)


def load_real(monkeypatch, name, file):
    """A real data set, in the splits that the released models saw, and its files."""
    if not (REAL_DATA / file).exists():
        pytest.skip(f"needs {REAL_DATA / file}: set VAE_DATA")
    monkeypatch.setenv("VAE_DATA", str(REAL_DATA))
    data = load_dataset(name, download=False)
    record = json.loads((ROOT / "checkpoints" / f"{name}_conv" / "model.json").read_text())
    assert data.fingerprint == record["data"]["fingerprint"]
    return data, archives.open_files(REAL_DATA / file)


def labels_of_file(data, files, name, crop=1.0):
    """What the data set says of the image that a file holds."""
    image = image_files.decode_file(files, name, files.read(name), data.image_size, crop, {})
    pixels = torch.from_numpy(image.copy())
    [row] = (all_images(data) == pixels).flatten(1).all(1).nonzero().flatten().tolist()
    labels = torch.cat([data.train.labels, data.val.labels, data.test.labels])
    return labels[row]


def test_real_cifar10_has_its_sizes_and_labels_and_shares_no_image_between_splits(monkeypatch):
    data, files = load_real(monkeypatch, "cifar10", "cifar10.zip")
    assert sizes(data) == [45_000, 5_000, 10_000] and data.title == "CIFAR-10 (JPEG copy)"
    assert len({image.tobytes() for image in all_images(data).numpy()}) == 60_000
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    for name in files.names[1000::20_000]:
        assert data.label_names[labels_of_file(data, files, name)] == name.split("/")[-2]


def test_real_celeba_has_the_attributes_of_its_first_image(monkeypatch):
    """000001.jpg: a smiling young woman with brown hair and earrings (list_attr_celeba, row 1)."""
    data, files = load_real(monkeypatch, "celeba", "celeba/img_align_celeba.zip")
    [first] = [name for name in files.names if name.endswith("000001.jpg")]
    labels = labels_of_file(data, files, first, crop=148 / 178)
    attributes = {name for name, value in zip(data.label_names, labels) if value}
    assert attributes >= {"Brown_Hair", "Smiling", "Wearing_Earrings", "Young"}
    assert not attributes & {"Bald", "Blond_Hair", "Eyeglasses", "Male", "Mustache"}
    partition = (REAL_DATA / "celeba" / "list_eval_partition.txt").read_text().split()[1::2]
    assert sizes(data) == [partition.count(part) for part in ("0", "1", "2")]
