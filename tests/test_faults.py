"""Each fault of tests/faults.py once; the documentation shows what all of them gave."""

import json
import os

import pytest
from conftest import ROOT, run_python


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_lost_here_and_nothing_was_in_what_the_documentation_shows():
    """The script forks, and so needs a process of its own."""
    said = run_python(ROOT / "tests" / "faults.py", "--times", "1", OMP_NUM_THREADS="2")
    for row in json.loads((ROOT / "figures" / "faults.json").read_text()):
        assert f"| {row['kind']} | 1 | 1 | 0 |" in said
        assert row["lost"] == 0 < row["tried"] == row["survived"]
