"""Folders and archives as people have them: each kind of thing that is met there, with its members.

Pictures carry their numbers in their colours (painting.py): whatever else lies in a folder, the 20
of them have to arrive, once each, with their classes.
"""

import itertools
import shutil
import stat
import tarfile
import unicodedata
import zipfile

import painting
import pytest
from conftest import refused
from painting import all_numbers, is_whole, labels_follow, load, numbers, sizes, splits, tree
from PIL import Image

from base.errors import DatasetUnavailable
from image_data.load import load_dataset


def pictures_in_two_splits(data):
    sets = [{image.tobytes() for image in split.images.numpy()} for split in splits(data)]
    return sum(len(a & b) for a, b in itertools.combinations(sets, 2))


# ── What is no picture ───────────────────────────────────────────────────────────────────────────

HOUSEKEEPING = [
    ".ipynb_checkpoints/a.png", "even/.thumbnails/a.png", "even/._00.png", "._x/a.png",
    "__MACOSX/even/._00.png", "__MACOSX/even/a.png", "odd/@eaDir/01.png/SYNOPHOTO_THUMB_M.png",
    ".git/a.png", ".Trash-1000/a.png", "$RECYCLE.BIN/a.png", "#recycle/a.png", "lost+found/a.png",
    "System Volume Information/a.png", "even/.hidden.png", "@Recycle/a.png", "odd/.@__thumb/a.png",
    "Thumbs.db", "even/thumbs.db", "desktop.ini", ".DS_Store", "Icon\r", "ehthumbs.db",
]  # fmt: skip
TEXTS = ["notes.txt", "README", "labels.csv", "even/00.json", "odd/1.xml", "x.md", "a.xmp", "l.tsv"]


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
def test_what_is_no_picture_is_passed_over_silently(tmp_path, capsys, place):
    folder = tree(tmp_path / "mine", "classes")
    for name in HOUSEKEEPING:
        painting.paint(folder / name, 29)
    for name in TEXTS:
        (folder / name).write_text("Änderungen\n", encoding="utf-8")
    if place == "zip":
        folder = painting.zip_folder(folder, tmp_path / "mine.zip")
    elif place == "tar":
        folder = shutil.make_archive(tmp_path / "mine", "gztar", folder)
    assert is_whole(load(folder))
    said = "mine: images for training 16 (even 8, odd 8), validation 2 (even 2), test 2 (odd 2).\n"
    assert capsys.readouterr().out == said


# ── Links ────────────────────────────────────────────────────────────────────────────────────────


def linked_classes(store, folder):
    for name in ("even", "odd"):
        (folder / name).symlink_to(store / name)


def linked_splits_and_loops(store, folder):
    (folder / "all").symlink_to(store)
    (store / "even" / "loop").symlink_to(folder)
    (store / "odd" / "self").symlink_to(store / "odd" / "self")


def linked_files(store, folder):
    for file in store.rglob("*.png"):
        target = folder / file.relative_to(store)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(file)


def real_folder_and_two_links(store, folder):
    shutil.copytree(store, folder, dirs_exist_ok=True)
    for name in ("a link", "z link"):
        (folder / name).symlink_to(folder / "even")


def two_links_to_one_folder(store, folder):
    linked_classes(store, folder)
    (folder / "zebra").symlink_to(store / "odd")


def dead_links(store, folder):
    shutil.copytree(store, folder, dirs_exist_ok=True)
    (folder / "even" / "gone.png").symlink_to(store / "gone.png")
    (folder / "gone").symlink_to(store / "gone", target_is_directory=True)


LINKS = {
    linked_classes: 0, linked_splits_and_loops: 2, linked_files: 0, real_folder_and_two_links: 2,
    two_links_to_one_folder: 1, dead_links: 2,
}  # fmt: skip


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_links_are_followed_once_and_dead_ones_and_loops_passed_over(tmp_path, capsys, link):
    store = tree(tmp_path / "store", "classes")
    (tmp_path / "mine").mkdir()
    link(store, tmp_path / "mine")
    assert is_whole(load(tmp_path / "mine"))
    passed_over = f"links that lead nowhere or to what is read anyway ({LINKS[link]})"
    assert (passed_over in capsys.readouterr().out) == (LINKS[link] > 0)


# ── Archives ─────────────────────────────────────────────────────────────────────────────────────


def write_zip(folder, path, rename=str):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            name = rename(file.relative_to(folder).as_posix())
            archive.writestr(name, file.read_bytes())
    return path


def write_tar(folder, path, rename=str, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.add(file, rename(file.relative_to(folder).as_posix()))
    return path


RENAMED = {
    "as they are": str,
    "./": lambda name: f"./{name}",
    "/": lambda name: f"/{name}",
    "../../": lambda name: f"../../{name}",
    "backslashes": lambda name: "C:\\pictures\\" + name.replace("/", "\\"),
    "some with ../": lambda name: f"../{name}" if "even" in name else name,
    "top folders": lambda name: f"a/b.c/{name}",
}


@pytest.mark.parametrize("rename", RENAMED)
@pytest.mark.parametrize("write", [write_zip, write_tar], ids=["zip", "tar.gz"])
def test_an_archive_is_read_however_its_paths_are_written(tmp_path, write, rename):
    """Nothing is unpacked: beside the folders that the test makes there is only the cache."""
    folder = tree(tmp_path / "source", "classes")
    before = {*tmp_path.rglob("*")}
    archive = write(folder, tmp_path / "mine.zip", RENAMED[rename])
    assert is_whole(load(archive))
    new = {*tmp_path.rglob("*")} - before
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"mine.zip", "cache"}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["my.set.tar.gz", "my.set.TGZ", "my.set.zip", "my.set.tar.xz"])
def test_the_content_says_which_archive_it_is_and_the_title_has_no_ending(tmp_path, mode, name):
    data = load(write_tar(tree(tmp_path / "source", "splits"), tmp_path / name, mode=mode))
    assert is_whole(data) and data.title == "my.set"
    assert sorted(numbers(data.test)) == list(range(15, 20))


def test_links_in_archives_are_passed_over_and_hard_links_are_copies(tmp_path, capsys):
    folder = tree(tmp_path / "source", "classes")
    (tmp_path / "secret.png").write_bytes((folder / "even" / "00.png").read_bytes())
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        archive.add(folder, ".")
        for name, target, kind in (
            ("even/out.png", str(tmp_path / "secret.png"), tarfile.SYMTYPE),
            ("odd/hard.png", "./odd/01.png", tarfile.LNKTYPE),
            ("odd/nowhere.png", "gone.png", tarfile.LNKTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    assert all_numbers(load(tmp_path / "mine.tar")) == sorted([*range(20), 1])
    said = capsys.readouterr().out
    assert "copies within a split: 1" in said and "read anyway (2)" in said
    archive = write_zip(folder, tmp_path / "mine.zip")
    with zipfile.ZipFile(archive, "a") as more:
        link = zipfile.ZipInfo("even/out.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        more.writestr(link, str(tmp_path / "secret.png"))
    assert is_whole(load(archive)) and "read anyway (1)" in capsys.readouterr().out


def patched(archive, offset, change):
    """Change a byte in both headers of each file of a zip."""
    content = bytearray(archive.read_bytes())
    for signature, more in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset + more] = change(content[at + offset + more])
            at = content.find(signature, at + 4)
    archive.write_bytes(content)
    return archive


@pytest.mark.parametrize(
    "offset, change, says",
    [
        (6, lambda flags: flags | 1, "an encrypted zip"),
        (8, lambda method: 9, "a method that Python cannot read (number 9)"),
        (8, lambda method: 98, "a method that Python cannot read (number 98)"),
    ],
)
def test_a_zip_that_python_cannot_unpack_is_refused_in_one_sentence(tmp_path, offset, change, says):
    archive = write_zip(tree(tmp_path / "source", "classes"), tmp_path / "mine.zip")
    with refused(DatasetUnavailable, str(archive), says, "unpack it"):
        load(patched(archive, offset, change))


# ── Names ────────────────────────────────────────────────────────────────────────────────────────


def test_the_title_is_the_folders_own_name(tmp_path, monkeypatch):
    for name in ("my.holiday.2024", "v1.0", "photos.zip", "Urlaub für alle"):
        assert load(tree(tmp_path / name, "flat")).title == name
    monkeypatch.chdir(tmp_path / "my.holiday.2024")
    assert load(".").title == "my.holiday.2024" and load("../v1.0/").title == "v1.0"
    (tmp_path / "my.holiday.2024" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "my.holiday.2024" / "sub")
    assert load("..").title == "my.holiday.2024"


@pytest.mark.parametrize("variable", ["data_dir", "VAE_DATA", "VAE_CACHE"])
def test_a_tilde_is_ones_home(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tree(tmp_path / "pics" / "cifar10", "splits")
    if variable != "data_dir":
        monkeypatch.setenv(variable, "~/pics")
    if variable == "VAE_DATA":
        assert is_whole(load_dataset("cifar10", image_size=8, download=False))
    else:
        assert is_whole(load("~/pics/cifar10" if variable == "data_dir" else folder))
    cache = tmp_path / ("pics" if variable == "VAE_CACHE" else "cache")
    assert len(list(cache.glob("*.safetensors"))) == 1


def deal(folder, *names, classes=("even", "odd")):
    """20 pictures in folders of these names, five and five, in classes if there are any."""
    for i in range(20):
        below = f"{classes[i % 2]}/" if classes else ""
        painting.paint(folder / names[i // 5 % len(names)] / f"{below}{i:02}.png", i)
    return folder


@pytest.mark.parametrize("loose", [False, True])
def test_what_lies_beside_train_and_test_is_named_and_counted(tmp_path, capsys, loose):
    folder = deal(tmp_path / "mine", "train", "Test", "train", "extra")
    if loose:
        painting.paint(folder / "cover.png", 29)
    data = load(folder)
    assert all_numbers(data) == list(range(15)) and sorted(numbers(data.test)) == [5, 6, 7, 8, 9]
    said = capsys.readouterr().out
    assert "images in extra, which is beside the splits (5)" in said
    assert ("images in the top folder, which is beside the splits (1)" in said) == loose


@pytest.mark.parametrize(
    "names, classes, sizes_of",
    [
        (("TRAIN", "Test"), 2, [9, 1, 10]),
        (("Training", "TESTING", "VALID", "val"), 2, [5, 10, 5]),
        (("training_set", "test_set"), 2, [9, 1, 10]),
        (("train", "VAL"), 2, [9, 10, 1]),
        (("train", "validation", "Train", "train"), 2, [14, 5, 1]),
        (("test", "control"), ("control", "test"), [16, 2, 2]),
        (("train", "bus", "car", "van"), ("bus", "car", "train", "van"), [16, 2, 2]),
        (("testing", "validity"), ("testing", "validity"), [16, 2, 2]),
    ],
)
def test_folders_are_splits_in_any_spelling_and_classes_may_be_called_like_one(
    tmp_path, names, classes, sizes_of
):
    """Images directly in `test` beside other folders: a class. train with test or val: splits."""
    if classes == 2:
        data = load(deal(tmp_path / "mine", *names))
        assert is_whole(data)
    else:
        data = load(deal(tmp_path / "mine", *names, classes=None))
        assert data.label_names == classes
        assert labels_follow(data, lambda n: classes.index(names[n // 5 % len(names)]))
    assert sizes(data) == sizes_of


@pytest.mark.parametrize("place", ["folder", "zip", "tar", "zip from a Mac"])
def test_one_class_has_one_name_whatever_form_its_accents_have(tmp_path, place):
    """In zips from a Mac names are UTF-8, decomposed, and nothing says so."""
    forms = [unicodedata.normalize(form, "für Élise") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    folder = tmp_path / "mine"
    for i in range(20):
        painting.paint(folder / (forms[i // 2 % 2] if i % 2 == 0 else "x") / f"{i:02}.png", i)
    if place == "tar":
        folder = write_tar(folder, tmp_path / "mine.tgz")
    elif place.startswith("zip"):
        folder = write_zip(folder, tmp_path / "mine.zip")
    if place == "zip from a Mac":
        folder = patched(folder, 7, lambda flags: flags & ~8)
    assert is_whole(load(folder), classes=(forms[0], "x"))


# ── Copies ───────────────────────────────────────────────────────────────────────────────────────


def same_bytes(file):
    shutil.copy(file, file.with_name(f"{file.stem} (1).png"))


def same_pixels(file):
    Image.open(file).save(file.with_suffix(".bmp"))


def same_grey(file):
    image = Image.open(file).convert("L")
    image.save(file)
    image.convert("RGBA").save(file.with_suffix(".webp"), lossless=True)


@pytest.mark.parametrize("copy", [same_bytes, same_pixels, same_grey], ids=lambda c: c.__name__)
@pytest.mark.parametrize("layout, count", [("flat", 20), ("classes", 3), ("splits", 4)])
def test_identical_pictures_stay_in_one_split_and_are_counted(
    tmp_path, capsys, copy, layout, count
):
    folder = tree(tmp_path / "mine", layout)
    for file in sorted(folder.rglob("*.png"))[-count:]:
        copy(file)
    data = load(folder)
    assert sum(sizes(data)) == 20 + count and not pictures_in_two_splits(data)
    assert all(sizes(data)) and f"copies within a split: {count} (" in capsys.readouterr().out


def test_copies_between_named_splits_are_counted_and_named_and_not_moved(tmp_path, capsys):
    folder = tree(tmp_path / "mine", "three splits")
    for number in (2, 3):
        name = f"{('even', 'odd')[number % 2]}/{number:02}.png"
        painting.paint(folder / "Testing" / name, number)
    data = load(folder)
    assert sizes(data) == [10, 5, 7] and pictures_in_two_splits(data) == 2
    said = capsys.readouterr().out
    assert "copies across splits: 2 (" in said and "Testing/even/02.png" in said


def test_a_set_without_copies_is_dealt_as_ever_and_too_few_pictures_are_dealt_as_files(tmp_path):
    data = load(tree(tmp_path / "mine", "flat"))
    assert (numbers(data.val), numbers(data.test)) == ([4, 5], [13, 19])
    for i in range(4):
        painting.paint(tmp_path / "one" / f"{i}.png", 7)
    assert sizes(load(tmp_path / "one")) == [2, 1, 1]
