"""Each fault of tests/faults.py once; the documentation shows what all of them gave."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

MEASURED = json.loads((ROOT / "figures" / "faults.json").read_text())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_lost():
    """The script forks, and so needs a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "faults.py"), "--times", "1"]
    several_threads = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=several_threads, timeout=300
    )
    for row in MEASURED:
        assert f"| {row['kind']} | 1 | 1 | 0 |" in done.stdout, done.stderr


def test_nothing_was_lost_in_what_the_documentation_shows():
    assert all(row["lost"] == 0 < row["tried"] == row["survived"] for row in MEASURED)
