"""How busy the machine is while a stage works: processor, memory and GPU, sampled beside it into its MLflow run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from src.io import mlflow_store

SHORTEST, LONGEST = 1.0, 30.0  # seconds between two samples
SHARE = 100  # of the time so far: a stage of a day has a few thousand samples, one of seconds a few


@contextmanager
def sampled(tell: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Samples while the block runs, at longer and longer intervals, and once at its end."""
    ended = threading.Event()
    thread = threading.Thread(target=_sample, args=(tell, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(tell: Callable[[Mapping[str, float]], None], ended: threading.Event) -> None:
    monitors, start = mlflow_store.monitors(), time.monotonic()
    _figures(monitors)  # use of the processor is measured from the sample before
    while not ended.wait(min(max(SHORTEST, (time.monotonic() - start) / SHARE), LONGEST)):
        tell(_figures(monitors))
    tell(_figures(monitors))


def _figures(monitors: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= {f"{mlflow_store.SYSTEM}{name}": value for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return found
