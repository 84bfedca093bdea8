"""Worker processes of studies: how many, each one's share of the machine, where its words go."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

from src.ground import runtime
from src.ground.params import Params


def count(params: Params, asked: int | None) -> int:
    """As many as fill the cores, one where there is a GPU; or as many as are asked for."""
    if asked is not None:
        return asked
    device = runtime.start(params.runtime)
    return 1 if device.type != "cpu" else max(1, runtime.cores() // (params.runtime.threads or 1))


def share(params: Params, workers: int) -> Params:
    """The parameters with one worker's threads; it starts no further processes."""
    threads = params.runtime.threads or (max(1, runtime.cores() // workers) if workers > 1 else None)
    return replace(params, runtime=params.runtime.model_copy(update={"threads": threads, "workers": 1}))


def begin(log: Path | None = None) -> None:
    """Make this process a worker: it speaks to a file, if any, and ends with the process that started it."""
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
