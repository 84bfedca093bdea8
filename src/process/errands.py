"""Tasks of a cluster, at the worker's end: each is done by a process of its own beside dask's worker, a hand.

A hand has its main thread for the task, so that it can be stopped at a good moment; it has an environment and a working folder
of its own, so that torch's threads are what the task asks for whatever the scheduler exports; killed, it takes no worker along.
A worker has a hand for each of its threads, and a GPU for each hand.

On a machine that does not see the caller's folder a task has a mirror of it: what it is made from is brought there, and the
files that it wrote go back the same way.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from src.ground.errors import InterruptedWorkError, UserError
from src.process import depot, stopping
from src.process.depot import Depot, Mirror
from src.process.progress import Advance

POLL_SECONDS = 0.2
SET_BY_SCHEDULERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "AST_CLUSTER")  # not for a hand
AWAY = (".lock", ".tmp")  # files of a mirror that go nowhere
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
    text = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(SOURCE.rglob("*.py")))
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"code {hashlib.sha256(text.encode()).hexdigest()[:12]}, Python {platform.python_version()}, {packages}"


# -- in a thread of dask's worker


class _Hand:
    """The process of this thread."""

    def __init__(self, number: int) -> None:
        self.connection, other = Pipe()
        kept = {name: value for name, value in os.environ.items() if name not in SET_BY_SCHEDULERS}
        words = [sys.executable, "-c", f"from src.process import errands; errands.main({other.fileno()})"]
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


# -- in the hand


def main(descriptor: int) -> None:
    """Do one errand after the other until the other end is closed."""
    connection = Connection(descriptor)
    waiting: queue.SimpleQueue[Errand] = queue.SimpleQueue()
    stopping.answer()
    threading.Thread(target=_listen, args=(connection, waiting), daemon=True).start()
    while True:
        connection.send(_plain(_ended(waiting.get(), lambda note="": connection.send(note))))


def _listen(connection: Connection, waiting: queue.SimpleQueue[Errand]) -> None:
    """Errands, a word to stop, or the end of the worker: what is half done then is gone on with elsewhere."""
    try:
        while True:
            found = connection.recv()
            if found is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                waiting.put(found)
    except (EOFError, OSError):
        os._exit(1)


def _plain(ended: Ended) -> Ended:
    """An error that can travel: one that pickles badly keeps its sentence."""
    import pickle

    try:
        pickle.loads(pickle.dumps(ended.error))
    except Exception:
        kind = type(ended.error) if isinstance(ended.error, UserError) else RuntimeError
        return Ended(error=(UserError if issubclass(kind, UserError) else kind)(str(ended.error)))
    return ended


def _ended(errand: Errand, advance: Advance) -> Ended:
    try:
        if errand.made_of != made_of():
            raise UserError(
                f"the worker on {platform.node()} has {made_of()}, and the caller {errand.made_of}: give both the same, as "
                "bytes rest on them"
            )
        if errand.gpu:
            _choose_gpu()
        with _shared(errand) if errand.shared else _mirrored(errand) as wrote, stopping.heeded():
            return Ended(_call(errand.call, errand.depot)(errand.piece, advance), outputs=wrote())
    except Exception as error:  # of any kind: it is the caller's
        if not isinstance(error, UserError):
            error = RuntimeError(f"on {platform.node()}: {error!r}\n{traceback.format_exc()}")
        return Ended(error=error)


def _choose_gpu() -> None:
    import torch

    count, number = torch.cuda.device_count(), int(os.environ[GPU])
    if count and number >= count:
        raise UserError(
            f"a worker on {platform.node()} has more threads than its {count} GPUs: start it with --nthreads {count}, or a "
            "worker for each GPU with CUDA_VISIBLE_DEVICES"
        )
    if count:
        torch.cuda.set_device(number)


def _told(errand: Errand) -> None:
    """The environment as the caller has it."""
    for name in PASSED_ON:
        os.environ.pop(name, None)
    os.environ |= errand.variables


@contextmanager
def _shared(errand: Errand) -> Iterator[Callable[[], Mapping[str, str]]]:
    """In the caller's folder."""
    if not Path(errand.depot, depot.CONTENT, errand.call).exists():
        raise UserError(
            f"{platform.node()} does not see {errand.home}: set runtime.depot to a folder or address that all machines reach"
        )
    _told(errand)
    os.chdir(errand.home)
    yield dict


@contextmanager
def _mirrored(errand: Errand) -> Iterator[Callable[[], Mapping[str, str]]]:
    """In a folder with what the task is made from; yields what puts all that it wrote into the depot, by its place."""
    kept = Path(tempfile.gettempdir(), f"ast-{os.getuid()}")  # of all tasks on this machine
    kept.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept / "torchinductor"))
    with tempfile.TemporaryDirectory(dir=kept, prefix="mirror-") as folder:
        _told(errand)
        os.chdir(folder)
        os.environ["DVC_ROOT"] = folder
        depot.mirror = Mirror(Path(folder).resolve(), errand.root, Depot(errand.depot))
        try:
            for place, digest in errand.inputs.items():
                _fetch(kept / digest, Path(place), digest, depot.mirror.depot)
            before = _files()
            yield lambda: _wrote(before, Depot(errand.depot))
        finally:
            depot.mirror = None
            os.chdir(kept)


def _fetch(kept: Path, place: Path, digest: str, source: Depot) -> None:
    """An input in its place; its content is fetched once for all tasks of this machine."""
    if not kept.exists():
        source.get(digest, kept)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(kept, place)


def _files() -> dict[str, int]:
    """Files of the mirror by their place, with what a write changes: files are replaced."""
    found = {}
    for folder, _, names in os.walk("."):
        for path in (Path(folder, name) for name in names if not name.endswith(AWAY)):
            found[path.as_posix()] = path.stat().st_ino
    return found


def _wrote(before: Mapping[str, int], target: Depot) -> Mapping[str, str]:
    return {place: target.put(Path(place)) for place, file in _files().items() if before.get(place) != file}


@functools.lru_cache(maxsize=2)
def _call(digest: str, address: str) -> Call:
    """What the tasks of a kind do, with all that they share: fetched once for each process."""
    import cloudpickle

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "call")
        Depot(address).get(digest, path)
        call: Call = cloudpickle.loads(path.read_bytes())
    return call
