"""How busy the machine is while a stage works: processor, memory and GPU, sampled beside it into its MLflow run.

Names and units are those of MLflow's own monitors, whose import takes seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pynvml

PREFIX = "system/"  # the UI shows such metrics on a page of their own
SHORTEST, LONGEST = 1.0, 30.0  # seconds between two samples
SHARE = 100  # of the time so far: a stage of a day has a few thousand samples, one of seconds a few
MB = 1e6


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
    cards, start = _cards(), time.monotonic()
    _figures(cards)  # use of the processor is measured from the sample before
    while not ended.wait(min(max(SHORTEST, (time.monotonic() - start) / SHARE), LONGEST)):
        tell(_figures(cards))
    tell(_figures(cards))


def _cards() -> list[Any]:
    """Handles of the GPUs; none where their driver is not there."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _figures(cards: list[Any]) -> dict[str, float]:
    memory = psutil.virtual_memory()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MB,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
    }
    for number, card in enumerate(cards):
        for read in (_memory, _utilization, _power):
            with suppress(pynvml.NVMLError):  # a part of a GPU (MIG), or an older one, has not all of them
                found |= {f"gpu_{number}_{name}": value for name, value in read(card).items()}
    return {f"{PREFIX}{name}": float(value) for name, value in found.items()}


def _memory(card: Any) -> dict[str, float]:
    own = pynvml.nvmlDeviceGetMemoryInfo(card)
    return {"memory_usage_percentage": round(own.used / own.total * 100, 1), "memory_usage_megabytes": own.used / MB}


def _utilization(card: Any) -> dict[str, float]:
    return {"utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(card).gpu}


def _power(card: Any) -> dict[str, float]:
    used, limit = pynvml.nvmlDeviceGetPowerUsage(card), pynvml.nvmlDeviceGetEnforcedPowerLimit(card)
    return {"power_usage_watts": used / 1000, "power_usage_percentage": used / limit * 100}
