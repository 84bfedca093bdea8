"""Tasks of a cluster, at the worker's end: each is done by a process of its own beside dask's worker, a hand.

A hand has its main thread for the task, so that it can be stopped at a good moment; it has an environment and a working folder
of its own, so that torch's threads are what the task asks for whatever the scheduler exports; killed, it takes no worker along.
A worker has a hand for each of its threads, and a GPU for each hand.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from src.ground.errors import InterruptedWorkError
from src.process.progress import Advance

POLL_SECONDS = 0.2
SET_BY_SCHEDULERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "AST_CLUSTER")  # not for a hand
SOURCE = Path(__file__).resolve().parents[1]  # of the package
PASSED_ON = ("DVC_ROOT", "MLFLOW_TRACKING_URI")  # of the caller's environment
BEGIN, NOTE, END = "begin", "note", "end"  # what a caller hears of a task
GPU = "AST_GPU"  # the number of a hand, which is that of its GPU

Call = Callable[[int, Advance], Any]  # (piece, to be called after each unit of it)


@dataclass(frozen=True)
class Errand:
    """A task, and where it is done."""

    call: str  # digest of the pickled call in the depot
    piece: int
    depot: str
    home: Path  # the caller's folder
    root: Path  # its repository
    variables: Mapping[str, str]  # of its environment
    gpu: bool  # whether it takes one where there is one
    shared: bool  # whether all machines see this folder
    inputs: Mapping[str, str]  # where they do not: place in the repository -> digest
    made_of: str  # the caller's code and packages


@dataclass(frozen=True)
class Ended:
    """What became of an errand."""

    result: Any = None
    error: Exception | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)  # of a mirror: place -> digest


class LostHandError(Exception):
    """A hand was killed: dask has the task done again, from its last checkpoint."""


def is_hand() -> bool:
    """Whether this process does errands for another one."""
    return GPU in os.environ


@functools.cache
def made_of() -> str:
    """The code and the packages of this process: bytes rest on both, so that they are to be the same everywhere."""
    text = "".join(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCE.rglob("*")) if path.suffix in (".py", ".cpp")
    )
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"code {hashlib.sha256(text.encode()).hexdigest()[:12]}, Python {platform.python_version()}, {packages}"


class _Hand:
    """The process of this thread."""

    def __init__(self, number: int) -> None:
        self.connection, other = Pipe()
        kept = {name: value for name, value in os.environ.items() if name not in SET_BY_SCHEDULERS}
        words = [sys.executable, "-c", f"from src.process import hand; hand.main({other.fileno()})"]
        paths = os.pathsep.join([str(SOURCE.parent), *filter(None, [kept.get("PYTHONPATH")]), *sys.path])
        environment = {**kept, GPU: str(number), "PYTHONPATH": paths}
        self.process = subprocess.Popen(words, pass_fds=[other.fileno()], env=environment, start_new_session=True)
        other.close()

    def let_go(self) -> None:
        """It ends when nobody holds the other end."""
        self.connection.close()
        self.process.wait()


_own = threading.local()
_numbers = itertools.count()


def _hand() -> _Hand:
    if not hasattr(_own, "number"):
        _own.number = next(_numbers)
    if getattr(_own, "hand", None) is None or _own.hand.process.poll() is not None:
        _own.hand = _Hand(_own.number)
    found: _Hand = _own.hand
    return found


def carry(errand: Errand, topic: str) -> Ended:
    """Have it done by this thread's hand; notes of progress go to the topic, and to its listeners that all has ended.

    Raises LostHandError where the hand was killed.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    hand = _hand()
    try:
        worker.log_event(topic, [BEGIN, errand.piece, ""])
        hand.connection.send(errand)
        for note in _until_ended(hand, lambda: _unwanted(worker, key)):
            if isinstance(note, Ended):
                return note
            worker.log_event(topic, [NOTE, errand.piece, note])
        return Ended(error=InterruptedWorkError("stopped"))
    except (EOFError, OSError):
        _own.hand = None
        raise LostHandError(f"its process ended by itself (exit code {hand.process.wait()})") from None
    finally:
        worker.log_event(topic, [END, errand.piece, ""])


def _until_ended(hand: _Hand, unwanted: Callable[[], bool]) -> Iterator[str | Ended]:
    """Notes, then the end; nothing more of a task that nobody wants: its hand is told to stop, and gone."""
    while True:
        if unwanted():
            hand.connection.send(None)
            _drained(hand.connection)
            _own.hand = None
            return hand.let_go()
        if hand.connection.poll(POLL_SECONDS):
            yield (found := hand.connection.recv())
            if isinstance(found, Ended):
                return None


def _drained(connection: Connection) -> None:
    """Read on until the task has kept what it has."""
    try:
        while not isinstance(connection.recv(), Ended):
            pass
    except (EOFError, OSError):
        pass


def _unwanted(worker: Any, key: Any) -> bool:
    """Whether the caller has cancelled the task, or is gone."""
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"
