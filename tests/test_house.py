"""The rule of the house: who imports whom."""

from conftest import run_python


def test_each_file_of_support_can_be_the_first_that_is_imported():
    """One below vae_helpers.py that imported it would meet itself half made."""
    code = """
import importlib, pathlib, sys
for path in pathlib.Path("support").glob("*.py"):
    for name in list(sys.modules):
        if name.split(".")[0] in ("support", "vae_helpers"):
            del sys.modules[name]
    importlib.import_module(f"support.{path.stem}")
"""
    run_python("-c", code)
