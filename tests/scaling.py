"""What a second worker brings, and what dask costs: `python -m tests.scaling`, some 25 minutes on a machine left alone.

- experts: the command `experts` on digits-smooth of params.yaml, with one worker and with two, by this machine's own processes
  and by a dask cluster on it. Wanted: 1.8 times the experts an hour.
- minutes: tasks of `--seconds` of one core, two at once, by joblib's processes and by the cluster, alternately. Wanted: dask
  takes less than 5 % longer.
- tiny: `--tiny` tasks that do nothing, on the cluster. Wanted: less than 60 s.

The cluster's scheduler and its two workers are started before the clock; processes that tasks run in are not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from src.process import cluster, workers
from src.process.progress import Advance
from src.settings.runtime import Runtime
from tests import studying
from tests.clusters import machines, until
from tests.imports import ROOT

BUFFER = "digits-smooth"
SIDE = 512  # of the matrices whose product keeps a core busy
WAYS = ("local", "dask")


def busy(piece: int, device: torch.device, advance: Advance, products: int) -> None:
    matrix = torch.full((SIDE, SIDE), 1 / SIDE)
    for _ in range(products):
        matrix = matrix @ matrix


def idle(piece: int, device: torch.device, advance: Advance) -> None:
    """A task that does nothing."""


def products_in(seconds: float) -> int:
    """So many take so long on one core."""
    torch.set_num_threads(1)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < min(2.0, seconds):
        busy(0, torch.device("cpu"), print, 50)
        count += 50
    return round(count * seconds / spent)


def settings(way: str, address: str, count: int) -> Runtime:
    return Runtime(device="cpu", threads=1, executor=way, address=address, workers=count)


def seconds_of(work: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def experts(folder: Path, way: str, address: str, count: int, experts_wanted: int, epochs: int) -> float:
    """Experts an hour of the command, in a folder of its own."""
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["runtime"] |= {"workers": count, "executor": way, "address": address}
    raw["experts"][BUFFER] |= {"count": experts_wanted, "epochs": epochs}
    folder.mkdir()
    studying.folder_of(folder, raw)

    def train() -> None:
        done = studying.call(folder, f"experts --experts {BUFFER}")
        assert done.returncode == 0, done.stderr

    return 3600 * experts_wanted / seconds_of(train)


def of_experts(folder: Path, address: str, asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for way in WAYS:
        one, two = (experts(folder / f"{way}-{count}", way, address, count, asked.experts, asked.epochs) for count in (1, 2))
        yield (
            f"experts an hour, {way}",
            f"{one:.1f} with 1 worker",
            f"{two:.1f} with 2",
            f"{two / one:.2f} times",
            "at least 1.8",
        )


def of_minutes(folder: Path, address: str, asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    work = functools.partial(busy, products=products_in(asked.seconds))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(asked.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            times[way].append(seconds_of(workers.each, work, asked.tasks, settings(way, address, 2), 2, way, 0))
    local, dask = (statistics.median(times[way]) for way in WAYS)
    told = f"{asked.tasks} tasks of {asked.seconds:g} s"
    yield told, f"{local:.1f} s by joblib", f"{dask:.1f} s by dask", f"{dask / local - 1:+.1%}", "below 5 %"


def of_tiny(folder: Path, address: str, asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    spent = seconds_of(workers.each, idle, asked.tiny, settings("dask", address, 2), 2, "tiny", 0)
    yield f"{asked.tiny} tasks of nothing", "", f"{spent:.1f} s by dask", "", "below 60 s"


PARTS = {"experts": of_experts, "minutes": of_minutes, "tiny": of_tiny}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=40, help="of an expert")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a task")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", type=int, default=1000, help="tasks of nothing")
    asked = parser.parse_args()
    os.environ.pop(cluster.VARIABLE, None)
    table = Table("", "", "", "", "wanted")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), machines(Path(folder), (1, 1)) as found:
        until(lambda: cluster.slots(settings("dask", found.address, 2)) == 2)
        for what in asked.what:
            for row in PARTS[what](Path(folder), found.address, asked):
                table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
