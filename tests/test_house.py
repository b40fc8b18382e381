"""The rule of the house: who imports whom."""

import re
import subprocess
import sys

from conftest import ROOT


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
