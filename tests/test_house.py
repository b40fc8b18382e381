"""The rules of the house: who imports whom, and nothing that runs foreign code."""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = sorted({*ROOT.glob("*.py"), *ROOT.glob("*/*.py")} - {*ROOT.glob("tests/*.py")})
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
# What vae_helpers.py is built on, which must not import it in turn.
BELOW = {
    "basics",
    "layout",
    "options",
    "shapes",
    "sources",
    "images",
    "datasets",
    "hardware",
    "training_state",
}


def tree(path):
    """The syntax of a file, or of the code cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.parse(text)
    lines = []
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            lines += "".join(cell["source"]).splitlines()
    return ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))


def imported(path):
    """Full names of all that a file imports."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


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


def test_imports_point_one_way():
    ours = [name for name in imported(ROOT / "vae_helpers.py") if name.startswith("support.")]
    assert {name.split(".")[1] for name in ours} <= BELOW
    for name in BELOW:
        assert "vae_helpers" not in imported(ROOT / "support" / f"{name}.py")


@pytest.mark.parametrize("path", CODE + NOTEBOOKS, ids=lambda path: path.name)
def test_no_file_can_run_what_it_reads(path):
    modules = {name.split(".")[0] for name in imported(path)}
    assert not modules & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            assert function not in ("eval", "exec", "os.system", "joblib.load", "torch.hub.load")
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert keywords.get("allow_pickle", "False") == "False"
            assert function != "torch.load" or keywords.get("weights_only") == "True"
