"""The courier: a process of its own that tells the repository's store what stages write into their journals.

Importing MLflow and writing to its store takes a stage of the pipeline longer than its own work may take. So a stage only
writes its journal, and makes sure that a courier is there, which delivers while the stage works and after it has ended. It goes
when nothing has come for some seconds. Killed, it loses nothing: the next one begins a journal again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import Timeout

from src.ground.runtime import workspace
from src.io import delivery, journal, mlflow_store
from src.io.delivery import Delivery
from src.io.mlflow_store import DeletedExperimentError, NoParentError

POLL_SECONDS = 0.5
IDLE_SECONDS = 10.0  # stages of a pipeline follow each other faster
BEGIN_SECONDS = 2.0  # that a process which looks whether there is a courier may hold its lock
ROOT = Path(__file__).resolve().parents[2]  # of the code that runs


def ensure() -> None:
    """Start a courier for the repository's own store, unless there is one. That of a folder that was moved is none: it goes."""
    if journal.is_delivered(None) and _place().exists() and _place().read_text(encoding="utf-8") == str(workspace()):
        return
    variables = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")}
    subprocess.Popen(
        [sys.executable, "-c", "from src.io import courier; courier.main()"],
        cwd=ROOT, env={**variables, "DVC_ROOT": str(workspace())}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _place() -> Path:
    """A file with the repository that the courier is at, as it sees it."""
    return journal.folder() / ".courier"


def awaited() -> None:
    """Wait until the courier, if there is one, has delivered every session that has ended."""
    while any(_has_ended(path) for path in delivery.backlog(None)) and journal.is_delivered(None):
        time.sleep(POLL_SECONDS / 2)


def _has_ended(path: Path) -> bool:
    with journal.taken(path) as ended:
        return ended


def main() -> None:
    """Deliver until nothing comes any more; again, if something came while the lock was being given back."""
    mlflow_store.quieten()
    while True:
        try:
            with journal.delivery(None, BEGIN_SECONDS):
                _place().write_text(str(workspace()), encoding="utf-8")
                finished = _work()
        except Timeout:  # another one is at it
            return
        if not finished or not delivery.backlog(None):
            return


def _work() -> bool:
    """Whether all is delivered that can be; False where the store fails, which is noted for a stage to say."""
    known: dict[Path, Delivery] = {}
    busy = time.monotonic()
    while time.monotonic() - busy < IDLE_SECONDS and journal.folder().exists():
        for path in delivery.backlog(None):
            one = known[path] = known.get(path) or Delivery(path)
            try:
                told = one.go_on()
            except (NoParentError, FileNotFoundError):  # the latter: a checkout that was moved meanwhile
                continue
            except DeletedExperimentError as error:
                journal.note(path.name, f"Warning: {journal.name_of(path)} is not tracked yet, as {error}")
                continue
            except Exception as error:  # the store may fail in any way
                where = mlflow_store.title(None)
                journal.note(
                    path.name,
                    f"Warning: MLflow at {where} failed ({delivery.first(error)}); what {journal.name_of(path)} tracks waits "
                    "for `python -m src.cli track-sync`",
                )
                return False
            if told or one.new:
                busy = time.monotonic()
        time.sleep(POLL_SECONDS)
    return True
