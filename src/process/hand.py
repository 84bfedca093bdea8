"""Tasks of a cluster, in the process that does them: one after the other, in the caller's folder or a mirror of it.

On a machine that does not see the caller's folder a task has a mirror of it: what it is made from is brought there, and the
files that it wrote go back the same way.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import platform
import queue
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock, Timeout

from src.ground.errors import UserError
from src.process import depot, stopping
from src.process.depot import Depot, Mirror
from src.process.errands import GPU, PASSED_ON, Call, Ended, Errand, made_of
from src.process.progress import Advance

AWAY = (".lock", ".tmp")  # files of a mirror that go nowhere
MIRROR, LOCK = "mirror-", "mirror.lock"  # how a mirror's name begins, and the file that says whether a process is in it
FETCH_SECONDS = 24 * 3600.0  # since anything came, after which nobody fetches an input any more


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
    with _mirror(kept) as folder:
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


@contextmanager
def _mirror(kept: Path) -> Iterator[str]:
    """A new folder, locked as long as it is used; what killed processes left goes first."""
    with FileLock(kept / "mirrors.lock"):  # none is seen between its making and its lock
        _clear(kept)
        folder = tempfile.mkdtemp(dir=kept, prefix=MIRROR)
        lock = FileLock(Path(folder, LOCK))
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _clear(kept: Path) -> None:
    """Delete mirrors that no process is in, and inputs that nobody fetches any more."""
    for left_over in kept.glob(f"{MIRROR}*"):
        with contextlib.suppress(Timeout, OSError), FileLock(left_over / LOCK, timeout=0):
            shutil.rmtree(left_over)
    for part in kept.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > FETCH_SECONDS:
                part.unlink()


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
