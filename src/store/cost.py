"""What an artifact cost to make, kept beside the pipeline under the artifact's own digest.

Seconds and memory differ from run to run, so they can't lie in an artifact whose bytes are to be reproduced. Made again with
the same bytes, an artifact keeps the cost of its first making, so that a report of unchanged results is unchanged too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from src.ground.errors import ArtifactError
from src.ground.host import workspace
from src.ground.runtime import peak_memory_mib
from src.store import files


@dataclass
class Cost:
    """Wall time, and the largest memory of the process (on CUDA: of the device)."""

    seconds: float = 0.0
    peak_memory_mib: float = 0.0

    def add(self, other: Cost) -> None:
        """Count what was spent before, or by a process beside this one."""
        self.seconds += other.seconds
        self.peak_memory_mib = max(self.peak_memory_mib, other.peak_memory_mib)


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measures what runs inside; the figures are there afterwards."""
    cost, start = Cost(), now(device)
    yield cost
    cost.seconds = now(device) - start
    cost.peak_memory_mib = peak_memory_mib(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, in seconds, the device's own work included."""
    start = now(device)
    call()
    return now(device) - start


def now(device: torch.device) -> float:
    """The clock in seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def keep(artifact: Path, cost: Cost) -> None:
    """Remember the cost of an artifact, unless these bytes already have one."""
    with contextlib.suppress(ArtifactError):  # a damaged one is replaced
        if lookup(artifact) is not None:
            return
    files.write_json(_file(artifact), files.sealed(vars(cost)))


def lookup(artifact: Path) -> Cost | None:
    """The cost of the artifact's first making; None where another machine made it, or it is gone."""
    if not artifact.exists() or not _file(artifact).exists():
        return None
    path, remedy = _file(artifact), "delete it: it only holds a cost"
    found = files.read_json(path, remedy)
    with files.understood(path, remedy):
        return Cost(**files.unsealed(found))


def _file(artifact: Path) -> Path:
    return workspace() / "data" / "cost" / f"{files.digest(artifact)}.json"
