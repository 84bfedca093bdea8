"""Many workers that die, simulated: `python -m tests.simulated --workers 64 --tasks 512 --seconds 2 --failures 0.05 --seed 0`.

The caller's side is the product's own (src/process), and dask's scheduler and workers are real, all in this process. Played is
what a worker starts for a task, a process of its own: here it waits, so that many fit a core. A worker dies at random, as a
machine does that loses its power, and after a while another one takes its place; its task goes on elsewhere from its last
checkpoint.
Says how long all should take, by what formula, and how long they took.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dask
import torch
from distributed import Scheduler, Worker, get_worker

from src.process import cluster, errands, hand, workers
from src.process.errands import Ended, Errand
from src.process.progress import Advance
from src.settings.runtime import Runtime

LOCAL = "127.0.0.1"
QUIET = {  # what each of many workers would do again and again for nobody
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "60s",
    "distributed.admin.tick.interval": "1s",
}

FORMULA = """\
  work    W = tasks x seconds
  deaths  r = failures / seconds, of a worker per second of its life
  redone  half of what lies between two checkpoints for each death: W / (1 - r seconds / (2 checkpoints))
  workers 1 / (1 + r back) of them are there at a time
  plan    redone / (workers there) + (1 - exp(-deaths)) seconds / 2, as deaths leave workers to end at different times;
          without any, seconds x tasks / workers, rounded up"""


@dataclass(frozen=True)
class Asked:
    """What is simulated."""

    workers: int
    tasks: int
    seconds: float  # of a task
    failures: float  # of a worker in the time of a task
    checkpoints: int  # of a task
    back: float  # seconds until a dead worker's successor is there

    def planned(self) -> float:
        """Seconds of all tasks, by FORMULA."""
        if not self.failures:
            return self.seconds * math.ceil(self.tasks / self.workers)
        rate = self.failures / self.seconds
        work = self.tasks * self.seconds / (1 - rate * self.seconds / self.checkpoints / 2)
        uneven = (1 - math.exp(-rate * work)) * self.seconds / 2
        return work * (1 + rate * self.back) / self.workers + uneven


@dataclass
class Found:
    """What came of it: seconds, how often workers died, and what every task returned."""

    seconds: float
    deaths: int
    results: list[int]


class Machines:
    """The scheduler and its workers, on one event loop."""

    def __init__(self, asked: Asked, seed: int) -> None:
        self.deaths = 0
        self._asked, self._seed = asked, seed
        self._workers: dict[int, Worker] = {}
        self._lives: list[asyncio.Task[None]] = []

    async def begin(self) -> str:
        """The scheduler's address, once all workers are there."""
        self._scheduler = await Scheduler(host=LOCAL, port=0, dashboard_address=":0")
        await asyncio.gather(*(self._add(number) for number in range(self._asked.workers)))
        return str(self._scheduler.address)

    async def die_now_and_then(self) -> None:
        if self._asked.failures:
            self._lives = [asyncio.create_task(self._life(number)) for number in self._workers]

    async def end(self) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*(worker.close(executor_wait=False) for worker in self._workers.values()))
        await self._scheduler.close()

    async def _add(self, number: int) -> None:
        worker = await Worker(
            self._scheduler.address, nthreads=1, memory_limit=0, heartbeat_interval="5s", dashboard_address=":0"
        )
        worker.lost = threading.Event()
        self._workers[number] = worker

    async def _life(self, number: int) -> None:
        draws = random.Random(f"{self._seed} {number}")
        while True:
            await asyncio.sleep(draws.expovariate(self._asked.failures / self._asked.seconds))
            self._workers[number].batched_stream.comm.abort()
            self._workers[number].lost.set()
            await self._workers[number].close(executor_wait=False)
            self.deaths += 1
            await asyncio.sleep(self._asked.back)
            await self._add(number)


class Played:
    """A hand that waits: a note and a checkpoint after each part of a task, its result after the last; gone with its worker."""

    def __init__(self, asked: Asked, kept: Counter[int], number: int) -> None:
        self.process = SimpleNamespace(poll=lambda: None, wait=lambda: -signal.SIGKILL)
        self.connection = self
        self._lost = get_worker().lost
        self._kept, self._parts, self._part = kept, asked.checkpoints, asked.seconds / asked.checkpoints

    def send(self, errand: Errand) -> None:
        self._errand, self._next = errand, time.monotonic() + self._part

    def poll(self, seconds: float) -> bool:
        if self._lost.wait(max(0.0, min(seconds, self._next - time.monotonic()))):
            raise EOFError
        return time.monotonic() >= self._next

    def recv(self) -> str | Ended:
        self._next += self._part
        self._kept[self._errand.piece] += 1
        if self._kept[self._errand.piece] < self._parts:
            return ""
        return Ended(hand._call(self._errand.call, self._errand.depot)(self._errand.piece, lambda note="": None))


def numbered(piece: int, device: torch.device, advance: Advance) -> int:
    return piece


def simulate(asked: Asked, seed: int) -> Found:
    """Have all tasks done."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    kept: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(mock.patch.dict(os.environ))
        for name in (cluster.VARIABLE, "DVC_ROOT"):
            os.environ.pop(name, None)
        stack.enter_context(mock.patch.object(errands, "_Hand", lambda number: Played(asked, kept, number)))
        stack.enter_context(dask.config.set({**QUIET, "temporary-directory": "."}))
        there = stack.enter_context(_loop())
        machines = Machines(asked, seed)
        settings = Runtime(device="cpu", threads=1, executor="dask", address=there(machines.begin()))
        stack.callback(lambda: there(machines.end()))
        stack.callback(cluster.connected(settings.address, settings.patience_seconds).close)
        assert cluster.slots(settings) == asked.workers
        there(machines.die_now_and_then())
        start = time.monotonic()
        results, _ = workers.each(numbered, asked.tasks, settings, 1, "tasks", asked.tasks * (asked.checkpoints - 1))
        return Found(time.monotonic() - start, machines.deaths, results)


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Yields what has a coroutine done on an event loop of its own, and returns what it returned."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a task")
    parser.add_argument("--failures", type=float, default=0.05, help="of a worker in the time of a task")
    parser.add_argument("--checkpoints", type=int, default=4, help="of a task")
    parser.add_argument("--back", type=float, default=1.0, help="seconds until a dead worker's successor is there")
    parser.add_argument("--seed", type=int, default=0)
    words = vars(parser.parse_args())
    seed = words.pop("seed")
    asked = Asked(**words)
    found = simulate(asked, seed)
    print(FORMULA)
    assert found.results == list(range(asked.tasks))
    print(f"{asked}, seed {seed}: {found.deaths} deaths, all {asked.tasks} tasks done")
    print(
        f"planned {asked.planned():.1f} s, measured {found.seconds:.1f} s: {found.seconds / asked.planned():.2f} times the plan"
    )


if __name__ == "__main__":
    main()
