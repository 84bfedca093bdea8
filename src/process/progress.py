"""Progress of long loops: a live bar with rate and time left on a terminal, sparse plain lines elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from src.ground.durations import duration

LINE_SECONDS = 15.0  # between plain lines

console = Console(stderr=True, highlight=False)
Advance = Callable[..., None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(pace(speed) if speed else "")


def say(line: str) -> None:
    """One plain line for the person watching."""
    console.print(line, soft_wrap=True, markup=False)


def pace(rate: float) -> str:
    """Words for units a second, or for the time of one where that is longer: '12.5/s', '3 min 20 s each'."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{duration(1 / rate)} each"


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yields advance(note=''), to be called after each of `total` units of work; the note shows current figures.

    Work that is resumed has units `done` before.
    """
    if console.is_terminal:
        with _live(title, total, done) as advance:
            yield advance
    else:
        yield _plain(title, total, done)


@contextmanager
def _live(title: str, total: int, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda note="": bar.update(task, advance=1, note=note)


def _plain(title: str, total: int, done: int) -> Advance:
    start = last = time.monotonic()
    before = done

    def advance(note: str = "") -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= LINE_SECONDS or done == total:
            last = now
            rate = (done - before) / max(now - start, 1e-9)
            left = f"{duration((total - done) / rate)} left" if done < total else f"done in {duration(now - start)}"
            say(f"{title}: {done}/{total}, {pace(rate)}, {left}{', ' + note if note else ''}")

    return advance
