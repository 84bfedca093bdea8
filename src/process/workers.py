"""Independent pieces of work side by side, each in a process with torch threads of its own: joblib's, or those of a cluster.

Pieces share nothing, so that no result depends on how many processes there are, where, or on which piece ends first.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.ground import host, runtime
from src.ground.errors import UserError
from src.process import cluster, stopping
from src.process.cluster import Cluster
from src.process.progress import Advance, progress
from src.settings.runtime import Runtime

SPREAD_FLOPS = 1e11  # some ten seconds of one thread; processes take about five to start
POLL_SECONDS = 0.5
STOP = "stop"

Work = Callable[[int, torch.device, Advance], Any]  # (piece, device, to be called after each unit of it)


@dataclass(frozen=True)
class Done:
    """One piece: what its work returned, or why it failed, and the largest memory of its process in MiB."""

    result: Any
    error: UserError | None
    peak_memory_mib: float


def processes(settings: Runtime, device: torch.device, pieces: int, flops: float) -> int:
    """Processes for so many pieces, of so many floating-point operations together. One trains within this process.

    A cluster, where there is one, takes all of them, whatever they cost.
    """
    if cluster.address(settings) is not None:
        return min(pieces, settings.workers or cluster.slots(settings) or pieces)
    if device.type != "cpu":
        return 1
    if settings.workers is None and flops < SPREAD_FLOPS:
        return 1
    return min(pieces, settings.workers or max(1, host.cores() // threads(settings)))


def threads(settings: Runtime) -> int:
    """torch's threads of each process."""
    return settings.threads or 1


def no_inputs(piece: int) -> Sequence[Path]:
    """Of a piece that is made from nothing but what its work holds."""
    return ()


def each(
    work: Work,
    pieces: int,
    settings: Runtime,
    count: int,
    title: str,
    units: int,
    before: int = 0,
    inputs: Callable[[int], Sequence[Path]] = no_inputs,
) -> tuple[list[Any], float]:
    """Results of work(0) .. work(pieces - 1) on `count` processes, in this order, and the largest memory of one in MiB.

    All pieces together have `units` of progress, of which they announce those that were not done `before`. A piece that fails
    stops no other: the first error is raised when all have ended. Asked to stop, all are. `inputs` are the files that a piece
    reads: a cluster whose machines share no folder brings them along.
    """
    settings = settings.model_copy(update={"threads": threads(settings)})
    if cluster.address(settings) is not None:
        done = _on_cluster(work, pieces, settings, title, (units, before), inputs)
    else:
        done = _here(work, pieces, settings, count, title, (units, before))
    stopping.check()
    for one in done:
        if one.error is not None:
            raise one.error
    return [one.result for one in done], max(one.peak_memory_mib for one in done)


def _here(work: Work, pieces: int, settings: Runtime, count: int, title: str, units: tuple[int, int]) -> Sequence[Done]:
    with _notes(title, *units) as notes, _own_threads():
        task = functools.partial(_one, work, settings=settings, home=Path.cwd(), notes=notes)
        try:
            return _side_by_side(task, pieces, count, title) if count > 1 else [task(piece) for piece in range(pieces)]
        except OSError as error:
            raise UserError(f"{title}: {error}: free space, or bring the file back") from error


def _on_cluster(
    work: Work,
    pieces: int,
    settings: Runtime,
    title: str,
    units: tuple[int, int],
    inputs: Callable[[int], Sequence[Path]],
) -> Sequence[Done]:
    """As many at once as the settings want, or all: the cluster has them wait for its slots."""
    with progress(title, *units) as advance, Cluster(settings, title, advance) as found:
        call = found.lodged(functools.partial(_remote, work, settings))
        waiting, ended = deque(range(pieces)), dict[int, Done]()
        running: dict[Future[Done], int] = {}
        while len(ended) < pieces:
            while waiting and len(running) < (settings.workers or pieces):
                piece = waiting.popleft()
                running[found.start(call, piece, inputs(piece))] = piece
            for one in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                ended[running.pop(one)] = _outcome(one)
            stopping.check()
    return [ended[piece] for piece in range(pieces)]


def _outcome(future: Future[Done]) -> Done:
    try:
        return future.result()
    except UserError as error:
        return Done(None, error, 0.0)


def _remote(work: Work, settings: Runtime, piece: int, advance: Advance) -> Done:
    device = runtime.start(settings)
    result = work(piece, device, advance)
    runtime.give_memory_back()
    return Done(result, None, runtime.peak_memory_mib(device))


def _side_by_side(task: Callable[[int], Done], pieces: int, count: int, title: str) -> Sequence[Done]:
    from joblib import Parallel, delayed  # type: ignore[import-untyped] # an import that one process does without
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # type: ignore[import-untyped]

    # arrays of a megabyte and more are mapped, not copied; "c" because torch warns of memory it may not write
    parallel = Parallel(n_jobs=count, mmap_mode="c", initializer=_born, initargs=(os.getpid(),))
    try:
        with stopping.spared():  # they stop when this process tells them, at a good moment; `_follow` blocks nothing
            found: Sequence[Done] = parallel(delayed(task)(piece) for piece in range(pieces))
    except TerminatedWorkerError:
        raise UserError(
            f"{title}: a process was killed, most often because memory ran out: set runtime.workers below {count}"
        ) from None
    return found


def _born(caller: int) -> None:
    """What a new process does first: one of joblib's own, which is a child of its caller, works for none that was killed."""
    if multiprocessing.current_process().name.startswith("LokyProcess"):
        stopping.end_with_parent(caller)


def _one(work: Work, piece: int, settings: Runtime, home: Path, notes: Path) -> Done:
    os.chdir(home)  # joblib's processes outlive a call, and another may come from elsewhere
    stopping.follow(notes / STOP)
    device = runtime.start(settings)
    result, problem = None, None
    with (notes / str(piece)).open("w", buffering=1, encoding="utf-8") as file:
        try:
            stopping.check()  # before a piece that waited begins
            result = work(piece, device, lambda note="": print(note, file=file))
        except UserError as error:  # raised here, it would end the other pieces
            problem = error
    runtime.give_memory_back()  # a process that grows from piece to piece looks to joblib as if it leaked, and is replaced
    return Done(result, problem, runtime.peak_memory_mib(device))


@contextmanager
def _own_threads() -> Iterator[None]:
    """Gives this process its threads back, where it did the work itself."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _notes(title: str, units: int, before: int) -> Iterator[Path]:
    """A folder with a file of each piece, to which it appends a line after each unit: the bar follows them.

    The file STOP in it asks all pieces to stop.
    """
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="progress-") as folder, progress(title, units, before) as advance:
        thread = threading.Thread(target=_follow, args=(Path(folder), advance, ended), daemon=True)
        thread.start()
        try:
            yield Path(folder)
        finally:
            ended.set()
            thread.join()


def _follow(folder: Path, advance: Advance, ended: threading.Event) -> None:
    """Pass each new line on, a last time when all has ended, and a request to stop to the pieces."""
    seen: dict[Path, int] = {}
    last = False
    while not last:
        last = ended.wait(POLL_SECONDS)
        if stopping.requested():
            (folder / STOP).touch()
        for path in sorted(folder.iterdir()):
            notes = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is being written
            for note in notes[seen.get(path, 0) :]:
                advance(note)
            seen[path] = len(notes)
