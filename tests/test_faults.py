"""The faults of tests/faults.py, fewer of each kind; the table that README.md shows was measured by all of them."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

MEASURED = json.loads((ROOT / "figures" / "faults.json").read_text())


@pytest.fixture(scope="module")
def short():
    """What tests/faults.py --short prints, by kind; in a process of its own, which forks a child for each fault."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "faults.py"), "--short"], capture_output=True, text=True, encoding="utf-8",
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    print(done.stdout, done.stderr)
    return {row["kind"]: row for row in map(json.loads, (line for line in done.stdout.splitlines() if line.startswith("{")))}


@pytest.mark.parametrize("kind", [row["kind"] for row in MEASURED])
def test_nothing_is_lost(short, kind):
    assert short[kind]["tried"] > 0 and short[kind]["survived"] == short[kind]["tried"] and short[kind]["lost"] == 0


def test_every_kind_is_in_the_table(short):
    assert list(short) == [row["kind"] for row in MEASURED]


def test_the_table_is_of_all_faults_and_none_lost_anything():
    assert all(row["lost"] == 0 and row["survived"] == row["tried"] for row in MEASURED)
    assert sum(row["tried"] for row in MEASURED if "kill -9" in row["kind"]) >= 200
