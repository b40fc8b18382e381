"""support/setup.py: where it can work, what it installs, and how the notebooks are run."""

import contextlib
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT, refused
from packaging.markers import default_environment
from packaging.requirements import Requirement

from base.options import announce
from support import notebook_runner, setup


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The installing commands that would run; uv is installed, and fails while uv_fails."""
    done = SimpleNamespace(commands=[], uv_fails=False)

    def run(command, **options):
        done.commands.append(command)
        return SimpleNamespace(returncode=int(done.uv_fails and command[0] == "uv"))

    for name in ("CONSTRAINTS", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "VENV", tmp_path)
    monkeypatch.setattr(setup.venv, "create", lambda folder, with_pip: None)
    monkeypatch.setattr(setup.shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    return done


def test_uv_picks_the_build_of_pytorch_and_pip_takes_over_when_it_cannot(commands, monkeypatch):
    setup.set_up()
    (command,) = commands.commands
    assert command[0] == "uv" and "--torch-backend=auto" in command
    commands.uv_fails = True
    setup.install(["torch"], "requirements.txt")
    assert commands.commands[-1][1:3] == ["-m", "pip"]
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)  # uv is not installed
    setup.install(["numpy"], "requirements.txt")
    assert commands.commands[-1][1:3] == ["-m", "pip"]
    assert commands.commands[-1][-3:] == ["numpy", "-c", "requirements.txt"]


@pytest.mark.parametrize("constraints", ["", "tests/colab.txt"])
def test_torch_index_and_constraints_decide(commands, monkeypatch, constraints):
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    monkeypatch.setenv("CONSTRAINTS", constraints)
    setup.set_up()
    torch, others = commands.commands
    assert torch[-2:] == ["--index-url", "file:///wheels"] and "--index-url" not in others
    pins = ["-c", constraints or "requirements.txt"]
    assert torch[-6:-2] == ["torch", "torchvision", *pins]
    assert others[-2:] == pins and {"torch", "numpy", "jupyter", "ruff"} < set(others)
    setup.set_up()
    assert len(commands.commands) == 2  # the environment is there
    monkeypatch.setenv("CONSTRAINTS", "" if constraints else "tests/colab.txt")
    setup.set_up()
    assert len(commands.commands) == 4


HERE = {"version": (3, 12), "system": "Linux", "machine": "x86_64"}


@pytest.mark.parametrize(
    "place, word",
    [
        ({}, ""),
        ({"version": (3, 10)}, ""),
        ({"version": (3, 15)}, ""),
        ({"machine": "aarch64"}, ""),
        ({"system": "Darwin", "machine": "arm64"}, ""),
        ({"system": "Windows", "machine": "AMD64"}, ""),
        ({"version": (3, 9)}, "this is 3.9"),
        ({"version": (3, 16)}, "this is 3.16"),
        ({"system": "Darwin"}, "Intel Mac"),
        ({"system": "Windows", "machine": "ARM64"}, "Windows for ARM"),
        ({"machine": "riscv64"}, "riscv64"),
        ({"largest": 2**31 - 1}, "32-bit"),
        ({"implementation": "PyPy"}, "CPython"),
        ({"soabi": "cpython-312-x86_64-linux-musl"}, "musl"),
        ({"packages": None}, "python3-venv"),
    ],
)
def test_what_cannot_work_ends_in_one_sentence_before_anything_is_installed(
    commands, monkeypatch, place, word
):
    place = HERE | place
    monkeypatch.setattr(sys, "version_info", (*place["version"], 0))
    monkeypatch.setattr(sys, "maxsize", place.get("largest", 2**63 - 1))
    monkeypatch.setattr(setup.platform, "system", lambda: place["system"])
    monkeypatch.setattr(setup.platform, "machine", lambda: place["machine"])
    implementation = place.get("implementation", "CPython")
    monkeypatch.setattr(setup.platform, "python_implementation", lambda: implementation)
    monkeypatch.setattr(setup.sysconfig, "get_config_var", lambda name: place.get("soabi"))
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: place.get("packages", 1))
    with refused(SystemExit, word) if word else contextlib.nullcontext():
        setup.set_up()
    assert bool(commands.commands) == (not word)


@pytest.mark.parametrize("minor", range(setup.OLDEST[1], setup.NEWEST[1] + 1))
def test_every_python_gets_one_version_of_each_package(minor):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    place = default_environment() | {"python_version": f"3.{minor}"}
    chosen = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate(place)]
    assert sorted(chosen) == sorted({pin.name for pin in pins})


@pytest.fixture
def run_notebook(tmp_path, monkeypatch, capfd):
    """Runs a notebook of these cells in place → its exit status, what was printed, the notebook."""

    def run(*sources):
        cells = [nbformat.v4.new_markdown_cell("# The *title*\ntext")]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        path = tmp_path / "some.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        monkeypatch.setattr(sys, "argv", ["notebook_runner", "--inplace", str(path)])
        monkeypatch.setattr(notebook_runner, "SHORT", 0.5)
        monkeypatch.delenv("TQDM_DISABLE")
        status = 0
        try:
            notebook_runner.main()
        except SystemExit as error:
            status = error.code
        printed = capfd.readouterr()
        return status, printed.out + printed.err, nbformat.read(path, 4)

    return run


def test_running_a_notebook_shows_slow_cells_and_what_they_announce_and_stores_neither(
    run_notebook,
):
    imports = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from base import options"
    training = "options.announce('epoch 1 of 2'); time.sleep(2.5)"
    bar = "print(sum(options.progress_bar(range(3))))"
    status, printed, notebook = run_notebook(imports, "", training, bar)
    assert status == 0
    epoch, cell, done = printed.splitlines()  # and no warning of the kernel
    assert epoch.strip() == "epoch 1 of 2"
    assert re.fullmatch(r"some, cell 3 of 4, The title: [23] s", cell)
    assert done.startswith("some: done in ")
    stored = [output.text for cell in notebook.cells[1:] for output in cell.outputs]
    assert stored == ["3\n"]
    assert "widgets" not in notebook.metadata and "execution" not in notebook.cells[1].metadata


def test_a_cell_that_fails_ends_in_its_traceback_and_leaves_the_notebook_as_it_was(run_notebook):
    message, printed, notebook = run_notebook("2", "1 / 0", "3")
    assert "ZeroDivisionError: division by zero" in message and "1 / 0" in message
    assert "\x1b" not in message
    assert printed == "some, cell 2 of 3, The title: failed\n"
    assert not notebook.cells[1].outputs


def test_announcing_never_fails(tmp_path, monkeypatch):
    monkeypatch.delenv("VAE_PROGRESS", raising=False)
    announce("nobody waits")
    monkeypatch.setenv("VAE_PROGRESS", str(tmp_path / "missing" / "file"))
    announce("nobody can read it")
    file = tmp_path / "file"
    monkeypatch.setenv("VAE_PROGRESS", str(file))
    announce("10 µs \ud800")
    announce("second")
    assert file.read_text(encoding="utf-8") == "10 µs ?\nsecond\n"


def test_ctrl_c_in_a_notebook_ends_in_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["notebook_runner", str(path)])
    monkeypatch.setattr(notebook_runner, "execute", interrupted)
    with pytest.raises(SystemExit, match="the same command goes on"):
        notebook_runner.main()
