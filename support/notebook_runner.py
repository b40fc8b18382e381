"""Run notebooks and show the person who waits how far they are: what `make notebooks` calls.

    python -m support.notebook_runner NOTEBOOK …            executed copies go to runs/notebooks/
    python -m support.notebook_runner --inplace NOTEBOOK …  the notebooks themselves are replaced

Every cell that takes more than a second gets a line. While one runs, what it announces is shown
(base/options.py: announce), for example the epochs of a training; the notebook stores none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import zmq
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
SHORT = 1.0  # seconds: cells that take less get no line
SILENCE = 30.0  # seconds without news after which a log is told that a cell still runs


def titles(notebook: nbformat.NotebookNode) -> dict[int, str]:
    """Code cells by index → what they are: the nearest heading above, else the first line."""
    result, heading = {}, ""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code":
            first = cell.source.strip().partition("\n")[0]
            result[index] = shortened(re.sub(r"[*_`]", "", heading) or first, 50)
    return result


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


class Progress:
    """Tells how far a notebook is: in a terminal a bar that moves, and lines that stay.

    A watching thread shows each second what the running cell has announced, so that the bar's
    clock moves even while it announces nothing. In a log, which has no bar, a line tells then.
    """

    def __init__(self, name: str, notebook: nbformat.NotebookNode, announcements: Path):
        self.name = name
        self.titles = titles(notebook)
        self.announcements = announcements
        self.index = None  # of the cell that runs; None while the kernel starts
        self.started = self.told = time.monotonic()
        self.bar = tqdm(
            desc=shortened(name, 30),
            total=len(self.titles),
            bar_format="{desc}: {n_fmt}/{total_fmt} |{bar:12}| {elapsed}{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # in a log
            file=sys.stdout,
        )

    @property
    def title(self) -> str:
        return self.titles.get(self.index, "the kernel starts")

    @property
    def cell(self) -> str:
        number = sum(index <= self.index for index in self.titles) if self.index is not None else 0
        return f"{self.name}, cell {number} of {len(self.titles)}, {self.title}"

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        self.told = time.monotonic()

    def start_cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """nbclient calls this and the next for every cell that it runs."""
        self.index = cell_index
        self.started = self.told = time.monotonic()
        self.bar.set_postfix_str(self.title)

    def end_cell(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict) -> None:
        seconds = time.monotonic() - self.started
        if seconds > SHORT:
            self.say(f"{self.cell}: {duration(seconds)}")
        self.bar.update()

    def watch(self, finished: threading.Event) -> None:
        """Show the newest announcement each second until the notebook is finished."""
        with open(self.announcements, encoding="utf-8", errors="replace") as file:
            while not finished.wait(1.0):
                news = file.read().strip().rpartition("\n")[-1]
                if not self.bar.disable:
                    if news:
                        self.bar.set_postfix_str(f"{self.title}: {news}", refresh=False)
                    self.bar.refresh()
                elif news:
                    self.say(f"    {news}")
                elif time.monotonic() - self.told > SILENCE:
                    self.say(f"    {self.cell}: {duration(time.monotonic() - self.started)} so far")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        finished = threading.Event()
        watcher = threading.Thread(target=self.watch, args=[finished], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            self.bar.close()


def encrypted() -> Config:
    """Settings with which kernels are spoken to in private, where both sides can do that.

    A kernel that is not warns that everything it says goes over TCP in plain text.
    """
    settings = Config()
    if KernelManager.class_traits().get("transport_encryption") and zmq.has("curve"):
        settings.KernelManager.transport_encryption = "auto"
    return settings


def execute(path: Path, target: Path) -> None:
    """Run a notebook in its own folder and write it to `target`, unless a cell fails.

    Raises CellExecutionError, with the cell's traceback, and DeadKernelError.
    """
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        announcements = Path(folder) / "announcements.txt"
        announcements.touch()
        progress = Progress(path.stem, notebook, announcements)
        client = NotebookClient(
            notebook,
            config=encrypted(),
            timeout=None,
            record_timing=False,
            store_widget_state=False,
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_execute=progress.start_cell,
            on_cell_executed=progress.end_cell,
        )
        # A bar that tqdm draws in a cell would stay in the notebook as dead text.
        told = {"TQDM_DISABLE": "1", "VAE_PROGRESS": str(announcements)}
        with progress.shown():
            try:
                client.execute(env=os.environ | told)
            except (CellExecutionError, DeadKernelError):
                progress.say(f"{progress.cell}: failed")
                raise
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
    print(f"{path.stem}: done in {duration(time.monotonic() - started)}, {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--inplace", action="store_true", help="replace the notebooks themselves")
    args = parser.parse_args()
    for path in args.notebooks:
        if not path.is_file():
            parser.error(f"There is no notebook {path}.")
    for path in map(Path.resolve, args.notebooks):
        try:
            execute(path, path if args.inplace else ROOT / "runs" / "notebooks" / path.name)
        except CellExecutionError as error:
            sys.exit(readable(str(error)))
        except DeadKernelError:
            sys.exit(f"The kernel of {path.name} died: most often there was too little memory.")
        except KeyboardInterrupt:
            sys.exit("Stopped. Finished epochs are kept: the same command goes on after them.")


def readable(traceback: str) -> str:
    """A traceback without the codes that colour it in a notebook."""
    return re.sub(r"\x1b\[[\d;]*m", "", traceback)


if __name__ == "__main__":
    main()
