"""The device, repeated timings, and the figures that every worker adds."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch

from src.bench.settings import Setting
from src.ground.host import cores
from src.ground.runtime import peak_memory_mib
from src.store import cost


def device_of(name: str) -> torch.device:
    """The device, without any of the runtime's settings."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def iterations(iterate: Callable[[], None], count: int, device: torch.device) -> dict[str, Any]:
    """Seconds of one of `count` iterations, their median, after one that isn't counted."""
    iterate()
    timed = [cost.seconds(iterate, device) for _ in range(count)]
    return {"seconds_per_iteration": statistics.median(timed), **surroundings(device)}


def machine(setting: Setting) -> dict[str, Any]:
    """The device and the versions of what runs on it."""
    device = device_of(setting.device)
    found = {"device": device.type, "torch": torch.__version__, "python": platform.python_version(), "cores": cores()}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "device": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """What this process used: peak memory in MiB, threads of one operation, the device's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"peak_memory_mib": peak_memory_mib(device), "threads": torch.get_num_threads(), "device": name}
