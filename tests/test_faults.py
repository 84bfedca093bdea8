"""Some rounds of the faults that tests/faults.py injects: none may be missed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.imports import ROOT

ROUNDS = 45  # about every second kind of artifact with every fault


@pytest.mark.slow
def test_no_fault_is_missed() -> None:
    words = (sys.executable, "-m", "tests.faults", "--rounds", str(ROUNDS))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
