"""The courier: a process of its own that tells the repository's store what stages write into their journals.

Importing MLflow and writing to its store takes a stage of the pipeline longer than its own work may take. So a stage only
writes its journal, and makes sure that a courier is there, which delivers while the stage works and after it has ended. It goes
when for some seconds no stage was at work. Killed, it loses nothing: the next one begins a journal again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import Timeout

from src.ground.host import workspace
from src.tracking import journal, mlflow_store, store_trouble, stores
from src.tracking.delivery import Deliveries, Held

POLL_SECONDS = 0.5
IDLE_SECONDS = 10.0  # stages of a pipeline follow each other faster
BEGIN_SECONDS = 2.0  # that a process which looks whether there is a courier may hold its lock
NICE = 10  # the stages go before
ROOT = Path(__file__).resolve().parents[2]  # of the code that runs


def ensure() -> None:
    """Start a courier for the repository's own store, unless there is one. That of a folder that was moved is none: it goes."""
    if journal.is_delivered(stores.OWN) and _place().exists() and _place().read_text(encoding="utf-8") == str(workspace()):
        return
    variables = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")}
    subprocess.Popen(
        [sys.executable, "-c", "from src.tracking import courier; courier.main()"],
        cwd=ROOT, env={**variables, "DVC_ROOT": str(workspace())}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _place() -> Path:
    """A file with the repository that the courier is at, as it sees it."""
    return journal.folder() / ".courier"


def awaited() -> None:
    """Wait until the courier, if there is one, has delivered every session that has ended, or for some seconds none."""
    since, before = time.monotonic(), list[Path]()
    while (ended := [path for path, _ in journal.sessions(stores.OWN) if _has_ended(path)]) and journal.is_delivered(
        stores.OWN
    ):
        if ended != before:
            since, before = time.monotonic(), ended
        if time.monotonic() - since > IDLE_SECONDS:
            return
        time.sleep(POLL_SECONDS / 2)


def _has_ended(path: Path) -> bool:
    with journal.taken(path) as ended:
        return ended


def main() -> None:
    """Deliver until nothing comes any more; again, if something came while the lock was being given back."""
    os.nice(NICE)
    mlflow_store.quieten()
    left: set[Path] = set()
    while True:
        try:
            with journal.delivery(stores.OWN, BEGIN_SECONDS):
                _place().write_text(str(workspace()), encoding="utf-8")
                left = _work()
        except Timeout:  # another one is at it
            return
        if {path for path, _ in journal.sessions(stores.OWN)} <= left:
            return


def _work() -> set[Path]:
    """The sessions that the store can't take, which is noted for a stage to say."""
    deliveries, busy, left = Deliveries(stores.OWN), time.monotonic(), dict[Path, str]()
    while time.monotonic() - busy < IDLE_SECONDS and journal.folder().exists():
        try:
            for path, opening, outcome in deliveries.go_on():
                if not isinstance(outcome, Held) or not outcome.trouble:
                    left.pop(path, None)
                    busy = time.monotonic()
                elif left.get(path) != outcome.reason:
                    left[path] = outcome.reason
                    journal.note(path.name, f"Warning: {opening.name} is not tracked yet: {outcome.reason}")
        except Exception as error:  # the store may fail in any way
            paths = [path for path, _ in journal.sessions(stores.OWN)]
            for path in paths[:1]:
                sentence = store_trouble.sentence(error, stores.OWN)
                journal.note(path.name, f"Warning: {sentence}; what stages track waits for `python -m src.cli track-sync`")
            return set(paths)
        time.sleep(POLL_SECONDS)
    return set(left)
