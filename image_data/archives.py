"""Folders, zips and tars: which files are in them, read where they lie.

The files may come from anywhere. Nothing is unpacked to disk or run, nothing outside is touched,
and what an operating system or a program keeps for itself is passed over: see `is_housekeeping`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from base.errors import DatasetUnavailable, first_line
from base.files import is_web_page

LARGEST_FILE = 1 << 28  # bytes; an image at Pillow's limit of 89 million pixels has about as many
ARCHIVE_ENDINGS = (
    ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".tbz", ".txz", ".tar", ".zip"
)  # fmt: skip

# Besides whatever begins with a dot: what Windows, macOS, Android, NAS boxes and Python leave.
_HOUSEKEEPING = {
    "__macosx", "icon\r", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
    "system volume information", "autorun.inf", "zbthumbnail.info", "picasa.ini",
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@synoresource", "#recycle",
    "#snapshot", "lost+found", "lost.dir", "__pycache__",
}  # fmt: skip

_DEAD_OR_KNOWN = "links that lead nowhere or to what is read anyway"
_OTHER_ARCHIVES = {b"Rar!": "rar", b"7z\xbc\xaf": "7z", b"MSCF": "cab", b"(\xb5/\xfd": "zst"}


def is_housekeeping(path: str) -> bool:
    """Whether a file or a folder on its path is hidden, or not meant for people: `.DS_Store`,
    `._x.png`, `.ipynb_checkpoints`, `.thumbnails`, `__MACOSX`, `@eaDir`, `Thumbs.db` …"""
    parts = path.split("/")
    return any(part.startswith(".") or part.lower() in _HOUSEKEEPING for part in parts)


def printable(name: str | Path) -> str:
    r"""A file's name; bytes of it that are not UTF-8 become \udc…, else nothing could print it."""
    return str(name).encode(errors="backslashreplace").decode()


class Files:
    """The files below a folder, in a zip or in a tar.

    names        what tells the files apart, sorted
    paths        name → its path in the folder or archive, parts joined by /, without ./ and ../
    passed_over  what was not taken and why → how often
    in_sequence  whether reading is only quick from front to back, by one thread at a time
    """

    in_sequence = False

    def __init__(self, path: Path):
        self.path = path
        self.paths: dict[str, str] = {}
        self.passed_over: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        return sorted(self.paths)

    def add(self, name: str, path: str) -> bool:
        """Whether a file is one for people; it then gets its path."""
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        clean = "/".join(parts)
        if not parts or is_housekeeping(clean):
            return False
        self.paths[name] = clean
        return True

    def size(self, name: str) -> int:
        """In bytes, as if unpacked."""
        raise NotImplementedError

    def open(self, name: str):
        """The content, as a file to read from."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The content of a file. Raises ValueError where it is too large to be an image.

        An archive of a few kB can hold gigabytes, so the size is looked at before anything is read.
        """
        if self.size(name) > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
        with self.open(name) as file:
            return file.read()

    def start(self, name: str, count: int = 4096) -> bytes:
        """The first bytes of a file, none where it cannot be read."""
        try:
            with self.open(name) as file:
                return file.read(count)
        except Exception:  # archives raise errors of all kinds
            return b""

    def checksum(self, name: str) -> int:
        """The checksum that the archive has for a file, 0 where it has none."""
        return 0

    def reading_order(self, names: list[str]) -> list[int]:
        """The order in which some files are read most quickly, as indices."""
        return list(range(len(names)))

    def stamps(self, names: list[str]) -> list[tuple[int, int]]:
        """Sizes and times that change when one of the files does."""
        status = self.path.stat()
        return [(status.st_size, status.st_mtime_ns)]

    def check(self, names: Iterable[str]) -> None:
        """Raise DatasetUnavailable where files are packed so that nothing here can read them."""


class Folder(Files):
    """The files below a folder. Folders that are links are followed, each real folder once."""

    def __init__(self, path: Path):
        super().__init__(path)
        real, linked, seen = [("", path)], [], set()
        while real or linked:
            # Links come last: a folder that also lies here itself keeps its own name.
            prefix, folder = real.pop() if real else linked.pop(0)
            try:
                status = os.stat(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                self.passed_over["folders that could not be read"] += 1
                continue
            if (status.st_dev, status.st_ino) in seen:
                self.passed_over[_DEAD_OR_KNOWN] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if is_housekeeping(entry.name):
                    continue
                is_link = entry.is_symlink()
                if os.path.isdir(entry) if is_link else entry.is_dir():
                    (linked if is_link else real).append((f"{prefix}{entry.name}/", entry.path))
                elif os.path.isfile(entry) if is_link else entry.is_file():
                    self.add(prefix + entry.name, prefix + entry.name)
                elif is_link:
                    self.passed_over[_DEAD_OR_KNOWN] += 1

    def size(self, name):
        return os.stat(os.path.join(self.path, name)).st_size

    def open(self, name):
        return open(os.path.join(self.path, name), "rb")

    def stamps(self, names):
        stamps = []
        for name in names:
            status = os.stat(os.path.join(self.path, name))
            stamps.append((status.st_size, status.st_mtime_ns))
        return stamps


class Zip(Files):
    """The files in a zip. A member that is a link is passed over: what it names is there anyway."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.archive = zipfile.ZipFile(path)
        for member in self.archive.infolist():
            name = _zip_name(member).replace("\\", "/")
            if stat.S_ISLNK(member.external_attr >> 16):
                self.passed_over[_DEAD_OR_KNOWN] += 1
            elif not name.endswith("/"):
                self.add(member.filename, name)

    def size(self, name):
        return self.archive.getinfo(name).file_size

    def open(self, name):
        return self.archive.open(name)

    def checksum(self, name):
        return self.archive.getinfo(name).CRC

    def check(self, names):
        one_of_each = {}
        for name in names:
            member = self.archive.getinfo(name)
            one_of_each[member.compress_type, member.flag_bits & 1] = name
        for (method, _), name in one_of_each.items():
            try:
                self.archive.open(name).close()
            except NotImplementedError:
                raise DatasetUnavailable(
                    f"packed with a method that Python cannot read (number {method}), so unpack it "
                    "and pack it again as an ordinary zip"
                ) from None
            except RuntimeError:
                raise DatasetUnavailable(
                    "an encrypted zip, so unpack it with its password and name the folder"
                ) from None
            except zipfile.BadZipFile:  # one damaged file is skipped and named later
                continue


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Its name, also where it is UTF-8 and not marked as such, as in zips made on macOS."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name


class Tar(Files):
    """The files in a tar, compressed or not. Hard links are files; other links are passed over."""

    in_sequence = True

    def __init__(self, path: Path):
        super().__init__(path)
        self.archive = tarfile.open(path)  # noqa: SIM115, stays open as long as its files are read
        members = {member.name: member for member in self.archive}
        self.members = {}
        for name, member in members.items():
            if member.islnk():
                member = members.get(member.linkname, member)
            if member.issym() or member.islnk():
                self.passed_over[_DEAD_OR_KNOWN] += 1
            elif member.isfile() and self.add(name, name.replace("\\", "/")):
                self.members[name] = member

    def size(self, name):
        return self.members[name].size

    def open(self, name):
        return self.archive.extractfile(self.members[name])

    def reading_order(self, names):
        offsets = [self.members[name].offset_data for name in names]
        return sorted(range(len(names)), key=offsets.__getitem__)


def open_files(path: Path) -> Files:
    """The files below a folder or in an archive, which its content tells, not its ending.

    Raises DatasetUnavailable where there is no folder and no archive that can be read.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise DatasetUnavailable("not there")
    if not path.is_file():
        raise DatasetUnavailable("neither a folder nor a file")
    try:
        with path.open("rb") as file:
            start = file.read(2000)
    except OSError as error:
        raise DatasetUnavailable(f"not to be read ({first_line(error)})") from None
    if is_web_page(start):
        raise DatasetUnavailable("a web page in place of an archive, get it again")
    for signature, kind in _OTHER_ARCHIVES.items():
        if start.startswith(signature):
            raise DatasetUnavailable(f"a {kind} archive, so unpack it and name the folder")
    kinds = [Zip] if start.startswith(b"PK") else [Tar, Zip]
    for kind in kinds:
        try:
            return kind(path)
        except Exception as error:  # zipfile, tarfile and zlib raise errors of all kinds
            reason = first_line(error)
    raise DatasetUnavailable(f"not a readable zip or tar ({reason}), get it again")
