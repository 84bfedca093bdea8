"""A dask cluster on this machine for tests: a scheduler, and workers in processes of their own, which may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.imports import ROOT

START_SECONDS = 60.0
EXPORTED = {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "7", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s"}


@dataclass
class Machines:
    """The cluster's processes; `elsewhere` is a folder in which workers are that see no other."""

    folder: Path
    address: str = ""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scheduler: subprocess.Popen[bytes] | None = None

    def begin(self, host: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        """`within` is what a command is to be started by: another network, say."""
        file = self.folder / "scheduler.json"
        self.scheduler = self._dask(within, "scheduler", "--host", host, "--port", "0", "--scheduler-file", str(file))
        until(lambda: file.exists() and file.stat().st_size > 0)
        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]

    def add(self, count: int = 1, threads: int = 1, within: Sequence[str] = ()) -> None:
        for _ in range(count):
            words = ("--nthreads", str(threads), "--no-nanny", "--local-directory", str(self.folder))
            self.workers.append(self._dask(within, "worker", self.address, *words))

    def kill(self, worker: int) -> None:
        """As a machine that loses its power: the worker and its hands at once."""
        process = psutil.Process(self.workers[worker].pid)
        for one in (process, *process.children(recursive=True)):
            one.kill()
        self.workers[worker].wait()

    def end(self) -> None:
        for one in (*self.workers, *filter(None, [self.scheduler])):
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
        for one in (*self.workers, *filter(None, [self.scheduler])):
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()

    def _dask(self, within: Sequence[str], *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **EXPORTED, "PYTHONPATH": str(ROOT)}
        log = (self.folder / f"{words[0]}.log").open("ab")
        command = [*within, sys.executable, "-m", "dask", *words, "--no-dashboard"]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)


def until(true: object, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def machines(folder: Path, workers: Sequence[int]) -> Iterator[Machines]:
    """A scheduler and a worker for each number, which is that of its threads."""
    found = Machines(folder)
    try:
        found.begin()
        for threads in workers:
            found.add(threads=threads)
        yield found
    finally:
        found.end()
