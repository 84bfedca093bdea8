"""Worker processes of studies: how many, each one's share of the machine, where its words go, how they are told to stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

from src.ground import host, runtime
from src.ground.errors import InterruptedWorkError, UserError
from src.process import cluster, stopping
from src.process.cluster import Cluster
from src.settings.runtime import Runtime

GRACE_SECONDS = 10.0  # for a worker that is told to stop, to keep what it has


class _Worker(SpawnProcess):
    """A process that no Ctrl-C reaches, not even while it starts: it stops when this one tells it by SIGTERM."""

    def start(self) -> None:
        with stopping.spared():  # nor a SIGTERM, which would cut off what this process tells the new one
            super().start()


class _Context(SpawnContext):
    Process = _Worker


CONTEXT = _Context()


def count(settings: Runtime, asked: int | None) -> int:
    """As many as fill the cores, one where there is a GPU, those of a cluster; or as many as are asked for."""
    if asked is not None:
        return asked
    if cluster.address(settings) is not None:
        return max(1, cluster.slots(settings))
    device = runtime.start(settings)
    return 1 if device.type != "cpu" else max(1, host.cores() // (settings.threads or 1))


def share(settings: Runtime, workers: int) -> Runtime:
    """The settings with one worker's threads; it starts no further processes."""
    whole = max(1, host.cores() // workers) if workers > 1 else None
    threads = settings.threads or (whole if cluster.address(settings) is None else 1)
    return settings.model_copy(update={"threads": threads, "workers": 1, "executor": "local"})


class Pool(Protocol):
    """Processes that tasks are given to, by a name that says what they do, and with the files that they are made from."""

    def submit(self, name: str, function: Callable[..., Any], *args: Any, inputs: Sequence[Path] = ()) -> Future[Any]:
        """Have it done."""
        ...


@dataclass(frozen=True)
class _Here:
    """Of this machine."""

    executor: ProcessPoolExecutor

    def submit(self, name: str, function: Callable[..., Any], *args: Any, inputs: Sequence[Path] = ()) -> Future[Any]:
        return self.executor.submit(function, *args)


@contextmanager
def side_by_side(asked: Runtime, count: int, log: Path, title: str) -> Iterator[Pool]:
    """So many workers of this machine, or those of a cluster; they stop where the block ends in an error."""
    if cluster.address(asked) is None:
        with pool(count, log) as made:
            yield made
    else:
        with Cluster(asked, title) as found:
            yield found


@contextmanager
def pool(count: int, log: Path | None = None) -> Iterator[Pool]:
    """So many workers, which stop where the block ends in an error. Raises UserError where one was killed."""
    with ProcessPoolExecutor(count, CONTEXT, begin, (log,)) as made:
        try:
            yield _Here(made)
        except BaseException as error:
            made.shutdown(wait=False, cancel_futures=True)
            end()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker was killed, most often because memory ran out: the same command goes on; give it fewer --workers"
                ) from None
            raise


def end() -> None:
    """Tell all workers to stop, and kill those that take too long: their work is gone on with from its last checkpoint."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        if not connection.wait([worker.sentinel], max(0.0, deadline - time.monotonic())):
            worker.kill()


@contextmanager
def told_to_stop() -> Iterator[None]:
    """Around what a worker does: it ends by the signal that stopped it, once all is kept, whatever it was to do next."""
    stopping.answer()
    try:
        with stopping.said():
            yield
    except InterruptedWorkError:
        stopping.end(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begin(log: Path | None = None) -> None:
    """Make this process a worker: it speaks to a file, if any, and ends with the process that started it, or by its SIGTERM."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if log is not None:
        _write_to(log)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def let_go() -> None:
    """End joblib's idle processes: they wait five minutes for more work, and a worker that started them waits for their end."""
    get_reusable_executor().shutdown(kill_workers=True)


def _end_with(parent: BaseProcess) -> None:
    """At once: what is half done is gone on with later, as after any kill."""
    parent.join()
    os._exit(1)


def _write_to(log: Path) -> None:
    """Send all that this process says to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
