"""Folders in which tasks of a cluster run on machines that do not see the caller's: what a killed process leaves goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from src.process import hand
from tests.imports import ROOT

WAITS = """
import sys, time
from pathlib import Path
from src.process import hand
with hand._mirror(Path(sys.argv[1])) as folder:
    Path(folder, "half.safetensors").write_text("made")
    print(folder, flush=True)
    time.sleep(600)
"""


def waiting(kept: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process at work in a mirror."""
    process = subprocess.Popen([sys.executable, "-c", WAITS, kept], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_next_task_deletes_the_mirrors_of_killed_ones_alone(tmp_path: Path) -> None:
    (tmp_path / "digest").write_text("an input")
    (killed, left), (alive, used) = waiting(tmp_path), waiting(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with hand._mirror(tmp_path) as own:
            assert not left.exists() and Path(used, "half.safetensors").exists() and Path(own).is_dir()
        assert not Path(own).exists() and (tmp_path / "digest").exists()
    finally:
        alive.kill()
        alive.wait()


def test_inputs_that_nobody_fetches_any_more_go(tmp_path: Path) -> None:
    old, young = tmp_path / ".old.x.tmp", tmp_path / ".young.x.tmp"
    for path in (old, young):
        path.touch()
    before = time.time() - hand.FETCH_SECONDS - 60
    os.utime(old, (before, before))
    with hand._mirror(tmp_path):
        assert not old.exists() and young.exists()
