"""`dvc repro` is killed at random moments, and run twice at once: it ends in the lock file and bytes of one in peace."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from src.store import files
from tests.children import check_gone
from tests.imports import ROOT
from tests.test_pipeline import call
from tests.test_resume import KILLS, begin, ended, tiny, write_params

pytestmark = pytest.mark.slow

SECONDS = 5.0  # at most between start and kill: DVC and a stage take about three to begin
CORRUPTED = "JSON structure is corrupted"  # DVC writes the file of its locks in place


def clone(folder: Path) -> Path:
    """A repository before its first `dvc repro`."""
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data/experts/None", folder / "data/experts/None")
    write_params(folder, tiny)
    for command in ("git init -q", "dvc init -q"):
        assert call(folder, *command.split()).returncode == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("undisturbed"))
    done = call(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def made(folder: Path) -> tuple[dict[str, str], Any]:
    """Digests of all that lies in data/, half-written files included, and the lock file; but for what shows seconds."""
    shown = {"data/report/report.html"}
    paths = [path for path in (folder / "data").rglob("*") if path.is_file() and path.name != ".gitignore"]
    names = {path.relative_to(folder).as_posix(): path for path in paths if path.parent.name != "cost"}
    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"]["report"]["outs"] = [out for out in lock["stages"]["report"]["outs"] if out["path"] not in shown]
    return {name: files.digest(path) for name, path in names.items() if name not in shown}, lock


def mended(folder: Path, errors: str) -> bool:
    """Whether DVC stumbled over the one file of its own that a kill can break, which is then deleted, as DVC's page says."""
    if CORRUPTED in errors:
        (folder / ".dvc/tmp/rwlock").unlink()
    return CORRUPTED in errors


def through(folder: Path) -> str:
    """Run `dvc repro` to its end; what it said."""
    code, errors = ended(begin(folder, "dvc", "repro"))
    if mended(folder, errors):
        code, errors = ended(begin(folder, "dvc", "repro"))
    assert code == 0, errors
    return errors


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the whole group, as a terminal and a scheduler do it; and wait for the stage as well."""
    members = [process, *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    check_gone(members[1:], seconds=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_again_and_again_it_ends_in_the_same_lock_file(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    folder, chance, killed = clone(tmp_path), random.Random(number), 0
    for _ in range(3 * KILLS):
        process = begin(folder, "dvc", "repro")
        try:
            process.wait(chance.uniform(0.5, SECONDS))
        except subprocess.TimeoutExpired:
            stop(process, number)
            killed += 1
        else:
            code, errors = ended(process)
            assert mended(folder, errors) or code == 0, errors
        if killed == KILLS:
            break
    assert killed == KILLS
    through(folder)
    assert made(folder) == made(undisturbed)
    assert "Running stage" not in call(folder, "dvc", "repro").stdout
    print(f"{number.name}: {killed} kills of dvc repro survived")


def test_two_at_once_do_no_harm(undisturbed: Path, tmp_path: Path) -> None:
    """The second ends at what the first is making, and says so; or finds it done, and goes on."""
    folder = clone(tmp_path)
    first = begin(folder, "dvc", "repro")
    time.sleep(SECONDS)
    second = begin(folder, "dvc", "repro")
    for process in (first, second):
        code, errors = ended(process)
        assert "Traceback" not in errors
        busy = ("is busy, it is being blocked by", "is being made by another process", "Unable to acquire lock")
        assert code == 0 or any(sentence in errors for sentence in busy), errors
    through(folder)
    assert made(folder) == made(undisturbed)


def test_a_signal_to_repro_alone_ends_its_stages_too(tmp_path: Path) -> None:
    """As a scheduler or `timeout` sends it, which know nothing of the stages."""
    folder, repro = clone(tmp_path), (sys.executable, "-m", "src.cli", "repro")
    process, deadline = begin(folder, *repro), time.monotonic() + 120
    members: list[psutil.Process] = []
    while True:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # some end while they are looked at
            members = psutil.Process(process.pid).children(recursive=True)
            if any("distill" in one.cmdline() for one in members):
                break
    os.kill(process.pid, signal.SIGTERM)
    code, errors = ended(process)
    assert code == 128 + signal.SIGTERM, errors
    assert "Stopped by SIGTERM: what is done is kept, and the same command goes on from there" in errors
    check_gone(members, seconds=20)
    done = call(folder, *repro)
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in call(folder, "dvc", "repro").stdout
