"""Image files: transparency, endings, bit depth; each with the members of its kind."""

import io
import os
import struct
import zlib

import numpy as np
import painting
import pytest
from painting import all_images, is_whole, load, sizes, tree
from PIL import Image

from image_data import image_files
from image_data.image_files import FORMAT_OF

# ── Transparency ─────────────────────────────────────────────────────────────────────────────────


def png(depth, colour, rows, *chunks):
    """A PNG file of its parts: rows of bytes as they are stored, further chunks before them."""
    width = len(rows[0]) * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")):
        checksum = zlib.crc32(kind + body)
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return content


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def half_hidden(mode, seen, hidden, kind="PNG", **options):
    """8x8: the left half hides a colour, the right half shows one."""
    image = Image.new(mode, (8, 8), seen)
    image.paste(hidden, (0, 0, 4, 8))
    return encoded(image, kind, **options)


def palette(kind, transparency):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 90, 0])
    image.paste(0, (0, 0, 4, 8))
    return encoded(image, kind, transparency=transparency)


def deep_png(colour, seen, hidden, *chunks):
    row = np.array([hidden] * 4 + [seen] * 4, ">u2").tobytes()
    return png(16, colour, [row] * 8, *chunks)


GREEN, RED = (0, 90, 0), (255, 0, 0)
TRANSPARENT = {  # a file whose left half is to be white
    "RGBA": half_hidden("RGBA", (*GREEN, 255), (*RED, 0)),
    "LA": half_hidden("LA", (90, 255), (0, 0)),
    "P, bytes": palette("PNG", bytes([0, 255])),
    "P, one colour": palette("PNG", 0),
    "GIF": palette("GIF", 0),
    "RGB with tRNS": half_hidden("RGB", GREEN, RED, transparency=RED),
    "L with tRNS": half_hidden("L", 90, 7, transparency=7),
    "WebP": half_hidden("RGBA", (*GREEN, 255), (*RED, 0), "WEBP", lossless=True),
    "TIFF": half_hidden("RGBA", (*GREEN, 255), (*RED, 0), "TIFF"),
    "TGA": half_hidden("RGBA", (*GREEN, 255), (*RED, 0), "TGA"),
    "1 bit": png(1, 0, [b"\x0f"] * 8, (b"tRNS", b"\0\0")),
    "2 bits": png(2, 0, [b"\x55\xaa"] * 8, (b"tRNS", b"\0\1")),
    "4 bits": png(4, 0, [b"\x33\x33\x55\x55"] * 8, (b"tRNS", b"\0\3")),
    "16-bit grey": deep_png(0, [40_000], [300], (b"tRNS", struct.pack(">H", 300))),
    "16-bit grey and alpha": deep_png(4, [40_000, 65_535], [300, 0]),
    "16-bit RGB": deep_png(2, [0, 40_000, 0], [9, 9, 9], (b"tRNS", struct.pack(">HHH", 9, 9, 9))),
    "16-bit RGBA": deep_png(6, [0, 40_000, 0, 65_535], [65_535, 0, 0, 0]),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_lies_on_white_without_a_warning(tmp_path, recwarn, kind):
    (tmp_path / "mine").mkdir()
    for i in range(3):
        ending = kind.lower() if kind in ("GIF", "WebP", "TIFF", "TGA") else "png"
        (tmp_path / "mine" / f"{i}.{ending}").write_bytes(TRANSPARENT[kind])
    images = all_images(load(tmp_path / "mine"))
    assert (
        (images[..., :4] == 255).all()
        and not (images[..., 4:] == 255).all(1).any()
        or (kind == "1 bit" and (images == 255).all())
    )
    is_grey = kind in ("LA", "L with tRNS") or "bit" in kind and "RGB" not in kind
    assert images.shape[1] == (1 if is_grey else 3) and not list(recwarn)


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    for i, mode in enumerate(("RGBA", "LA", "RGBA")):
        colour = (0, 0, 0, 51) if mode == "RGBA" else (0, 51)
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new(mode, (8, 8), colour).save(tmp_path / "mine" / f"{i}.png")
    assert (all_images(load(tmp_path / "mine")) == 204).all()


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_every_mode_with_alpha_lies_on_white(recwarn, mode):
    """Modes that no file has directly, too: with colours multiplied by alpha, with a palette."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (9, 9, 9, 255))
    image = image.convert("LA" if mode == "La" else mode if mode != "PA" else "P")
    image = image.convert(mode)
    if mode == "PA":
        image.putalpha(Image.frombytes("L", (2, 1), b"\0\xff"))
    opaque = image_files._on_white(image)
    assert opaque.mode == ("L" if mode[0] == "L" else "RGB")
    assert np.asarray(opaque.convert("L")).tolist() == [[255, 9]] and not list(recwarn)


# ── Endings ──────────────────────────────────────────────────────────────────────────────────────

SAVED_AS = [
    ".jfif", ".jpe", ".JPG", ".Jpeg", ".PNG", ".apng", ".avif", ".webp", ".gif", ".tif", ".TIFF",
    ".bmp", ".dib", ".ico", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".jp2", ".j2k", ".pcx", ".sgi",
    ".qoi", ".icns",
]  # fmt: skip


@pytest.mark.parametrize("ending", SAVED_AS)
def test_whatever_pillow_opens_and_is_safe_is_read(tmp_path, ending):
    kind = FORMAT_OF[ending.lower()]
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    for i in range(4):
        image = Image.new("1" if ending == ".pbm" else "RGB", (16, 16), 255 * (i % 2))
        (tmp_path / "mine").mkdir(exist_ok=True)
        image.save(tmp_path / "mine" / f"{i}{ending}", kind)
    assert sum(sizes(load(tmp_path / "mine"))) == 4


@pytest.mark.parametrize("ending", ["", ".jpg_large", ".jpg!d", ".png~", ".download", ".5", ".dat"])
def test_a_file_of_unknown_ending_is_known_by_its_content(tmp_path, ending):
    for file in list(tree(tmp_path / "mine", "classes").rglob("*.png")):
        file.rename(file.with_name(file.stem + ending))
    assert is_whole(load(tmp_path / "mine"))


UNREAD = [
    "1.heic", "2.HEIC", "3.heif", "x.cr2", "x.CR3", "x.nef", "x.dng", "x.arw", "x.raw", "x.svg",
    "x.psd", "x.eps", "x.ps", "x.ai", "x.pdf", "x.mov", "x.mp4", "x.xcf", "x.zip", "binary",
]  # fmt: skip


@pytest.mark.parametrize("place", ["folder", "zip"])
def test_pictures_that_cannot_be_read_are_counted_by_their_ending(tmp_path, capsys, place):
    """Raw files of cameras begin like TIFF and hold a small preview, which is not the picture."""
    folder = tree(tmp_path / "mine", "classes")
    raw = encoded(Image.new("RGB", (8, 8)), "TIFF")
    for name in UNREAD:
        text = b"%!PS-Adobe <svg>" if name[2:] in ("svg", "eps", "ps", "ai") else b""
        (folder / "even" / name).write_bytes(text or b"\0\1" * (name == "binary") or raw)
    if place == "zip":
        folder = painting.zip_folder(folder, tmp_path / "mine.zip")
    assert is_whole(load(folder))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and ".heic (2)" in said[1] and "without an ending (1)" in said[1]
    for name in UNREAD[2:-1]:
        assert f"{os.path.splitext(name)[1].lower()} (1)" in said[1]


# ── Bit depth ────────────────────────────────────────────────────────────────────────────────────

SHARES = np.array([1, 0.5, 0.25, 1 / 16])  # of white, one of each image


def save_png(path, values):
    path.with_suffix(".png").write_bytes(
        png(16, 0, [row.astype(">u2").tobytes() for row in values])
    )


def save_colour_png(path, values):
    rows = [np.repeat(row.astype(">u2"), 3).tobytes() for row in values]
    path.with_suffix(".png").write_bytes(png(16, 2, rows))


def save_alpha_png(path, values):
    rows = [np.stack([row, row * 0 + 65_535], 1).astype(">u2").tobytes() for row in values]
    path.with_suffix(".png").write_bytes(png(16, 4, rows))


def save_pgm(path, values):
    path.with_suffix(".pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())


def save_tiff(path, values, kind="uint16"):
    Image.fromarray(values.astype(kind)).save(path.with_suffix(".tif"))


def save_compressed_tiff(path, values):
    Image.fromarray(values.astype(np.uint16)).save(path.with_suffix(".tif"), compression="tiff_lzw")


def save_int32(path, values):
    save_tiff(path, values, "int32")


def save_float(path, values):
    save_tiff(path, values, "float32")


SAVERS = (
    save_png, save_colour_png, save_alpha_png, save_pgm, save_tiff, save_compressed_tiff,
    save_int32, save_float,
)  # fmt: skip


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("save", SAVERS, ids=lambda save: save.__name__)
def test_a_set_has_one_white_so_that_dark_images_stay_dark(tmp_path, save, bits):
    white = 2**bits - 1
    (tmp_path / "mine").mkdir()
    for i, share in enumerate(SHARES):
        values = np.full((8, 8), np.floor(white * share))
        values[0] = 0
        save(tmp_path / "mine" / str(i), values)
    images = all_images(load(tmp_path / "mine"))
    levels = sorted({int(image[0, 4, 4]) for image in images}, reverse=True)
    np.testing.assert_allclose(levels, 255 * SHARES, atol=1.1 if bits == 8 else 0.6)
    assert (images[:, :, 0] == 0).all()


@pytest.mark.parametrize("white, kind", [(2**31 - 1, "int32"), (1, "float32"), (2**32 - 1, "u4")])
def test_whole_numbers_of_32_bits_and_floats_from_0_to_1_have_their_own_white(
    tmp_path, white, kind
):
    (tmp_path / "mine").mkdir()
    for i, share in enumerate(SHARES):
        values = np.full((8, 8), white * share).astype(kind)
        path = tmp_path / "mine" / f"{i}.tif"
        Image.fromarray(values.view("int32") if kind == "u4" else values).save(path)
        if kind == "u4":  # Pillow writes whole numbers as signed: the tag says unsigned
            content = path.read_bytes()
            signed = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
            assert signed in content
            path.write_bytes(content.replace(signed, struct.pack("<HHIHH", 339, 3, 1, 1, 0)))
    levels = sorted({int(image.max()) for image in all_images(load(tmp_path / "mine"))})
    np.testing.assert_allclose(levels[::-1], 255 * SHARES, atol=0.6)


def test_scans_in_which_0_is_white_and_pgm_files_that_say_their_white_are_right(tmp_path):
    (tmp_path / "mine").mkdir()
    for i, value in enumerate((0, 4095, 2048)):
        path = tmp_path / "mine" / f"{i}.tif"
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(path, tiffinfo={262: 0})
        content = bytearray(path.read_bytes())
        at = content.find(struct.pack("<HHI", 262, 3, 1))
        content[at + 8] = 0
        path.write_bytes(content)
    assert sorted({int(i.max()) for i in all_images(load(tmp_path / "mine"))}) == [0, 127, 255]
    (tmp_path / "pgm").mkdir()
    for i, value in enumerate((200, 100, 50)):
        values = np.full((8, 8), value, ">u2").tobytes()
        (tmp_path / "pgm" / f"{i}.pgm").write_bytes(b"P5 8 8 1000\n" + values)
    assert sorted({int(i.max()) for i in all_images(load(tmp_path / "pgm"))}) == [13, 26, 51]
