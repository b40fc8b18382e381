"""The rules of the house: who imports whom, and nothing that runs foreign code."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = {*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("notebooks/*.ipynb")}
CODE -= {*ROOT.glob("tests/*.py")}
UNSAFE = re.compile(
    r"\b(pickle|dill|marshal|shelve|joblib\.load|os\.system|torch\.hub\.load|allow_pickle=True)\b"
    r"|(?<![.\w])(eval|exec)\("
    r"|torch\.load\((?!.*weights_only=True)"
)


def test_each_file_of_support_can_be_the_first_that_is_imported():
    code = """
import importlib, pathlib, sys
for path in pathlib.Path("support").glob("*.py"):
    for name in list(sys.modules):
        if name.split(".")[0] in ("support", "vae_helpers"):
            del sys.modules[name]
    importlib.import_module(f"support.{path.stem}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_vae_helpers_is_built_on_does_not_import_it():
    text = (ROOT / "vae_helpers.py").read_text(encoding="utf-8")
    below = re.findall(r"^from (support\.\w+) import", text, re.MULTILINE)
    assert "support.datasets" in below
    code = f"import sys; sys.modules['vae_helpers'] = None; import {', '.join(below)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(CODE), ids=lambda path: path.name)
def test_no_file_can_run_what_it_reads(path):
    assert UNSAFE.search(path.read_text(encoding="utf-8")) is None
