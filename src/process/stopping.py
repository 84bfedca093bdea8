"""Asked to stop (Ctrl-C, SIGTERM, a terminal that closes), every command ends in a sentence that says what is kept.

A command ends wherever it is. Inside `heeded` a signal only leaves a mark: `check`, called by every derivative and forward pass
of long work, turns the mark into an error, so that the work ends within a fraction of a step and can go on later; what a step
had before is unharmed, as steps write to none of their tensors.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

from src.ground.errors import InterruptedWorkError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # Linux's prctl.h
AGAIN_SECONDS = 0.01

BEGINS = "nothing is left half written, and the same command begins again"
GOES_ON = "what is done is kept, and the same command goes on from there"

Handler = Callable[[int, FrameType | None], None] | signal.Handlers
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Stopped(KeyboardInterrupt):
    """A signal ends a command wherever it is; libraries that know its parent clean up and let it pass."""


@dataclass
class _Mark:
    """What this process knows: the signal that it got, and the file by which another process asks it to stop."""

    signal: signal.Signals | None = None
    ends: bool = False  # whether it ends the process wherever it is
    heard: bool = False  # whether a check has raised for it
    file: Path | None = None
    together: bool = False  # whether several processes agree on when to end
    kept: str = BEGINS
    last_words: InterruptedWorkError | None = None  # of a command that was ended


_mark = _Mark()


def answer() -> None:
    """From now on a signal leaves a mark, and in a block of `said` ends it by `Stopped`; a second Ctrl-C ends the process.

    Signals that were ignored stay so, as `nohup` and background jobs want it. The end of a `dvc` that runs this is a signal
    too: it would otherwise leave its stage behind.
    """
    _handle(SIGNALS, _stop)
    sys.unraisablehook = _unraisable
    atexit.register(_handle, SIGNALS, signal.SIG_IGN)  # the last of all: Python's own end forgets its handlers
    if "DVC_STAGE" in os.environ:
        signal_when_parent_ends(signal.SIGTERM)


def _handle(numbers: Iterable[signal.Signals], handler: Handler) -> None:
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if not _mark.ends:  # before the work began, or on the way out
        return _note(number, frame)
    _mark.signal, _mark.ends = signal.Signals(number), False
    _mark.last_words = _interrupted(_mark.signal)
    raise Stopped(str(_mark.last_words))


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Python drops an error of a destructor or callback, and says so: where a signal came just then, it comes again.

    What else such a callback meets while a stopped process goes to pieces is nobody's concern.
    """
    if isinstance(found.exc_value, Stopped):
        signal.signal(signal.SIGALRM, _stop_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    elif _mark.last_words is None:
        sys.__unraisablehook__(found)


def _stop_again(number: int, frame: FrameType | None) -> None:
    raise Stopped(str(_mark.last_words))


def _note(number: int, frame: FrameType | None) -> None:
    """Leave a mark; for whoever does not want to wait for its effect, end the process."""
    if _mark.signal == number == signal.SIGINT:
        end(signal.SIGINT)
    _mark.signal = signal.Signals(number)


def end(number: signal.Signals) -> None:
    """End this process by the signal, at once."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def said() -> Iterator[None]:
    """Raises InterruptedWorkError where a signal ended the block, whatever that has become on the way out of libraries.

    A signal that came before ends it too; one that comes after it is too late to change anything.
    """
    _mark.ends = True
    try:
        if _mark.signal is not None:
            _stop(_mark.signal, None)
        yield
    except InterruptedWorkError:
        raise
    except BaseException as error:
        if _mark.last_words is None or (isinstance(error, SystemExit) and not error.code):
            raise
        raise _mark.last_words from None
    finally:
        _mark.ends = False


@contextmanager
def keeping(words: str) -> Iterator[None]:
    """A signal in the block has it said that this is kept, and how the same command goes on."""
    before, _mark.kept = _mark.kept, words
    try:
        yield
    finally:
        _mark.kept = before


@contextmanager
def heeded() -> Iterator[None]:
    """Within the block a signal leaves its mark, and a second Ctrl-C ends the process at once.

    A signal that came too late for the block to end by it goes to whoever handled signals before.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handle(SIGNALS, _note)
    try:
        with keeping(GOES_ON):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        late = None if _mark.heard else _mark.signal
        _mark.signal, _mark.heard = None, False
    if late is not None:
        signal.raise_signal(late)


def follow(file: Path) -> None:
    """Take the file's existence for a request to stop as well."""
    _mark.file = file


def requested() -> bool:
    return _mark.signal is not None or (_mark.file is not None and _mark.file.exists())


def check() -> None:
    """Raises InterruptedWorkError where this process was asked to stop, and need not agree with others."""
    if requested() and not _mark.together:
        agree()


def agree() -> NoReturn:
    """Raises InterruptedWorkError: this process or one of those that work together was asked to stop."""
    overhear()
    raise _interrupted(_mark.signal or signal.SIGTERM)


def overhear() -> None:
    """The signal that came, if any, is answered by what ends the work now."""
    _mark.heard = True


def speak_last() -> None:
    """This process ends by itself, with words of its own: no signal changes them any more."""
    _handle(SIGNALS, signal.SIG_IGN)


@contextmanager
def together() -> Iterator[None]:
    """Within the block a signal is heeded when those that work together `agree`."""
    before, _mark.together = _mark.together, True
    try:
        yield
    finally:
        _mark.together = before  # a run that makes its initial one first is inside a block already


def _interrupted(number: signal.Signals) -> InterruptedWorkError:
    error = InterruptedWorkError(f"Stopped by {number.name}: {_mark.kept}")
    error.exit_code = 128 + number  # as shells count
    return error


def interruptible(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, which first checks whether to stop."""

    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        check()
        return function(*args, **kwargs)

    return call


@contextmanager
def spared(numbers: Iterable[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Processes that are started in the block never see these signals: they inherit what its thread blocks.

    Another thread that blocks nothing has them arrive here all the same.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Let the kernel send this process a signal when the process that started it is gone; Linux alone can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def end_with_parent(parent: int) -> None:
    """End this process when `parent`, which started it, is killed, and at once where that happened while this one started."""
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
