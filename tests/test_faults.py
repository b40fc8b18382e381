"""Each fault of tests/faults.py once; the documentation shows what all of them gave."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

MEASURED = json.loads((ROOT / "figures" / "faults.json").read_text())


@pytest.fixture(scope="module")
def table():
    """The rows that the script prints. It forks, and so needs a process of its own."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    command = [sys.executable, str(ROOT / "tests" / "faults.py"), "--times", "1"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", [row["kind"] for row in MEASURED])
def test_nothing_is_lost(table, kind):
    assert f"| {kind} | 1 | 1 | 0 |" in table


def test_nothing_was_lost_in_what_the_documentation_shows():
    for row in MEASURED:
        assert row["lost"] == 0
        assert row["survived"] == row["tried"] > 1
