"""support/setup.py: which build of PyTorch is installed, and when the environment is made anew."""

import subprocess
from types import SimpleNamespace

import pytest

from support import setup


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
    setup.install(["torch"])
    assert commands.commands[-1][1:3] == ["-m", "pip"]
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)  # uv is not installed
    setup.install(["numpy"])
    assert commands.commands[-1][1:3] == ["-m", "pip"] and commands.commands[-1][-1] == "numpy"


@pytest.mark.parametrize("constraints", ["", "tests/colab.txt"])
def test_torch_index_and_constraints_decide(commands, monkeypatch, constraints):
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    monkeypatch.setenv("CONSTRAINTS", constraints)
    setup.set_up()
    torch, others = commands.commands
    assert torch[-2:] == ["--index-url", "file:///wheels"] and "--index-url" not in others
    names = [word.split("==")[0] for word in torch if word.startswith("torch")]
    assert names == ["torch", "torchvision"]
    assert (constraints in torch) == (constraints in others) == bool(constraints)
    setup.set_up()
    assert len(commands.commands) == 2  # the environment is there
    monkeypatch.setenv("CONSTRAINTS", "" if constraints else "tests/colab.txt")
    setup.set_up()
    assert len(commands.commands) == 4
