"""Tasks on a dask cluster that someone runs: futures of our own on `distributed.Client`.

joblib's own backend for dask does all work in the caller where a cluster has one slot, and may wait for ever for a worker that
is gone. Here every task goes to a worker, whatever is lost is done again, from its last checkpoint, and a cluster that stays
without a worker, or away, ends the command with a sentence.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.ground.errors import CLUSTER, UserError, installing
from src.ground.host import workspace
from src.process.depot import Depot
from src.process.errands import BEGIN, END, PASSED_ON, Call, Ended, Errand, LostHandError, carry, made_of
from src.process.progress import Advance, say
from src.settings.runtime import Runtime

VARIABLE = "AST_CLUSTER"
CONNECT_SECONDS = 30.0
POLL_SECONDS = 1.0
GRACE_SECONDS = 10.0  # for tasks that are stopped to keep what they have
ATTEMPTS = 4  # of a task that kills its process or its worker, most often because memory runs out
TOLD_SECONDS = 15.0  # without a worker, before it is said


def address(asked: Runtime) -> str | None:
    """Of the cluster that takes the tasks; None where this machine's own processes do. Raises UserError where none is told."""
    found = os.environ.get(VARIABLE) or asked.address
    if asked.executor == "dask" and not found:
        raise UserError(
            f"runtime.executor is 'dask', which has no address: set runtime.address, or {VARIABLE}, to the scheduler's, "
            "such as tcp://10.0.0.1:8786"
        )
    return found if asked.executor == "dask" or os.environ.get(VARIABLE) else None


@functools.cache
def connected(asked_address: str, patience: float) -> Any:
    """The client of this process; raises UserError where no scheduler answers, or dask is not installed.

    A link that is cut for less than `patience` seconds is waited for.
    """
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as error:
        raise UserError(
            f"runtime.executor is 'dask', but {sys.executable} has no package {error.name}: {installing(CLUSTER)}"
        ) from None
    try:
        for name in (
            "distributed",
            "distributed.client",
            "tornado",
        ):  # what they have to say of a lost link is said here, in words
            logging.getLogger(name).setLevel(logging.CRITICAL)
        dask.config.set({"distributed.comm.timeouts.tcp": f"{max(patience, CONNECT_SECONDS)}s"})
        client = Client(asked_address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no dask scheduler answers at {asked_address} ({error}): start one with `dask scheduler`, or set "
            "runtime.executor to local"
        ) from None
    client._timeout = patience  # of its reconnecting, which it knows no argument for
    atexit.register(client.close)
    return client


def slots(asked: Runtime) -> int:
    """Tasks that the cluster does at once as it is now."""
    found = address(asked)
    return 0 if found is None else sum(connected(found, asked.patience_seconds).nthreads().values())


@dataclass
class _Job:
    """A task that was handed out."""

    errand: Errand
    name: str
    future: Future[Any] = field(default_factory=Future)
    remote: Any = None


class Cluster:
    """Tasks of one title on the cluster of the settings; a context, which leaves no task behind."""

    def __init__(self, asked: Runtime, title: str, advance: Advance | None = None) -> None:
        found = address(asked)
        assert found is not None
        self._address, self._patience = found, asked.patience_seconds
        self._client = connected(found, self._patience)
        self._title, self._advance = title, advance
        self._topic = f"ast-{uuid.uuid4().hex}"
        self._depot = Depot(asked.depot or str(workspace() / ".cache" / "depot"))
        self._gpu, self._shared = asked.device != "cpu", asked.depot is None
        self._jobs: list[_Job] = []
        self._lodged: list[str] = []
        self._running: set[int] = set()  # pieces that were heard of
        self._begun: Counter[int] = Counter()  # how often a piece was
        self._closing = threading.Event()
        self._lost: UserError | None = None  # why the cluster was given up

    def __enter__(self) -> Cluster:
        self._listen()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._closing.set()
        left = [job for job in self._jobs if job.remote is not None and not job.remote.done()]
        if left and self._client.status == "running":
            self._client.cancel([job.remote for job in left], force=True)
            deadline = time.monotonic() + GRACE_SECONDS
            while self._running and time.monotonic() < deadline:
                time.sleep(0.05)
        for job in self._jobs:
            job.future.cancel()
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._topic)
        for digest in self._lodged:
            self._depot.forget(digest)

    def lodged(self, call: Call) -> str:
        """The digest of a call, which is in the depot then."""
        import cloudpickle

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "call")
            path.write_bytes(cloudpickle.dumps(call))
            self._lodged.append(self._depot.put(path))
        return self._lodged[-1]

    def start(self, call: str, piece: int, inputs: Sequence[Path] = (), name: str = "") -> Future[Any]:
        """Hand out a piece of a call that is lodged; where machines share no folder, with the files that it is made from.

        dask's dashboard has it under the name.
        """
        brought: Mapping[str, str] = {}
        if not self._shared:
            brought = {_place(path): self._depot.put(path) for path in inputs if path.exists()}
        told = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        errand = Errand(
            call, piece, self._depot.address, Path.cwd(), workspace(), told, self._gpu, self._shared, brought, made_of()
        )
        job = _Job(errand, name or self._title)
        self._jobs.append(job)
        if self._lost is None:
            self._hand_out(job)
        else:
            job.future.set_exception(self._lost)
        return job.future

    def submit(self, name: str, function: Callable[..., Any], *args: Any, inputs: Sequence[Path] = ()) -> Future[Any]:
        """A task of its own."""
        return self.start(self.lodged(functools.partial(_plainly, function, args)), len(self._jobs), inputs, name)

    def _hand_out(self, job: _Job) -> None:
        name = job.name.replace("-", "_")  # dask's dashboard takes what is before the first number behind a hyphen
        job.remote = self._client.submit(
            carry, job.errand, self._topic, key=f"{name}-{uuid.uuid4().hex}", pure=False, retries=ATTEMPTS - 1
        )
        job.remote.add_done_callback(lambda remote: self._done(job, remote))

    def _done(self, job: _Job, remote: Any) -> None:
        """In a thread of the client: the result, or another attempt where the scheduler was lost with it, or gave it up."""
        if job.future.done():
            return
        if remote.status == "finished":
            try:
                ended = remote.result()
                remote.release()  # it lies on its worker: with one that is lost later it would be done again
                self._take(job, ended)
            except Exception as error:  # else nobody would hear of it, and the caller wait for ever
                job.future.set_exception(error)
        elif remote.status == "error" and not self._is_innocent(job, remote.exception()):
            job.future.set_exception(self._sentence(remote.exception()))
        elif not self._closing.is_set():
            threading.Thread(target=self._again, args=(job,), daemon=True).start()

    def _take(self, job: _Job, ended: Ended) -> None:
        try:
            for place, digest in ended.outputs.items():
                self._depot.get(digest, workspace() / place)
                self._depot.drop(place)
        except UserError as error:
            return job.future.set_exception(error)
        if ended.error is not None:
            return job.future.set_exception(ended.error)
        return job.future.set_result(ended.result)

    def _is_innocent(self, job: _Job, error: Exception) -> bool:
        """Whether it was given up for workers that died while it waited there: dask blames all that a worker had."""
        from distributed import KilledWorker

        return isinstance(error, KilledWorker) and self._begun[job.errand.piece] < ATTEMPTS

    def _sentence(self, error: Exception) -> Exception:
        from distributed import KilledWorker

        if isinstance(error, LostHandError | KilledWorker):
            return UserError(
                f"{self._title}: a task lost its process again and again ({error}), most often because memory ran out: give "
                "each worker more of it; what is finished is kept"
            )
        return error

    def _again(self, job: _Job) -> None:
        """Hand the job out again once the scheduler is back; `_watch` ends the wait for it."""
        while not job.future.done() and not self._closing.is_set():
            if self._client.status == "running":
                self._listen()
                return self._hand_out(job)
            time.sleep(POLL_SECONDS)
        return None

    def _listen(self) -> None:
        self._client.subscribe_topic(self._topic, self._heard)

    def _heard(self, event: tuple[float, Any]) -> None:
        what, piece, note = event[1]
        if what == END:
            self._running.discard(piece)
        elif what == BEGIN:
            self._running.add(piece)
            self._begun[piece] += 1
        elif self._advance is not None:
            self._advance(note)

    def _watch(self) -> None:
        """End all waits where the cluster stays away, or without a worker, for longer than the settings' patience."""
        since, told = time.monotonic(), False
        while not self._closing.wait(POLL_SECONDS):
            if all(job.future.done() for job in [*self._jobs]) or not (problem := self._problem()):
                since, told = time.monotonic(), False
                continue
            waited = time.monotonic() - since
            if waited > TOLD_SECONDS and not told:
                told = True
                say(f"{self._title}: {problem}; waiting for up to {self._patience:.0f} s (runtime.patience_seconds)")
            if waited > self._patience:
                return self._give_up(problem)
        return None

    def _problem(self) -> str:
        """What keeps the cluster from any work; empty where nothing does."""
        if self._client.status != "running":
            return f"the scheduler at {self._address} does not answer"
        try:
            return "" if self._client.nthreads() else f"the cluster at {self._address} has no worker"
        except Exception:  # the link may break just now, in any way
            return f"the scheduler at {self._address} does not answer"

    def _give_up(self, problem: str) -> None:
        sentence = (
            f"{self._title}: {problem}, for {self._patience:.0f} s: what is finished is kept; start workers, and the same "
            "command goes on"
        )
        self._lost = UserError(sentence)
        for job in [*self._jobs]:
            if not job.future.done():
                job.future.set_exception(self._lost)


def _plainly(function: Callable[..., Any], args: tuple[Any, ...], piece: int, advance: Advance) -> Any:
    return function(*args)


def _place(path: Path) -> str:
    """In the repository, wherever that lies."""
    return Path(os.path.relpath(path.absolute(), workspace())).as_posix()
