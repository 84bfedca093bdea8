"""Asked to stop (Ctrl-C, SIGTERM, a terminal that closes), long work ends within a fraction of a step, and can go on later.

A signal only leaves a mark. `check`, called by every derivative and forward pass of the work, turns the mark into an error;
what a step had before is unharmed, as steps write to none of their tensors.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeVar

from src.ground.errors import InterruptedWorkError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # Linux's prctl.h

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass
class _Mark:
    """What this process knows: the signal that it got, and the file by which another process asks it to stop."""

    signal: signal.Signals | None = None
    file: Path | None = None


_mark = _Mark()


@contextmanager
def heeded() -> Iterator[None]:
    """Within the block a signal leaves its mark; a second Ctrl-C ends the process at once.

    Signals that were ignored stay so, as `nohup` and background jobs want it. The end of a `dvc` that runs this is a signal
    too: it would otherwise leave its stage behind.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _note)
    if "DVC_STAGE" in os.environ:
        signal_when_parent_ends(signal.SIGTERM)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _mark.signal = None


def _note(number: int, frame: FrameType | None) -> None:
    if _mark.signal == number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _mark.signal = signal.Signals(number)


def follow(file: Path) -> None:
    """Take the file's existence for a request to stop as well."""
    _mark.file = file


def requested() -> bool:
    return _mark.signal is not None or (_mark.file is not None and _mark.file.exists())


def check() -> None:
    """Raises InterruptedWorkError where this process was asked to stop."""
    if requested():
        found = _mark.signal or signal.SIGTERM
        error = InterruptedWorkError(f"Stopped by {found.name}: what is done is kept, and the same command goes on from there")
        error.exit_code = 128 + found  # as shells count
        raise error


def interruptible(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, which first checks whether to stop."""

    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        check()
        return function(*args, **kwargs)

    return call


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when the process that started it is gone; Linux alone can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def end_with_parent(parent: int) -> None:
    """End this process when `parent`, which started it, is killed, and at once where that happened while this one started."""
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
