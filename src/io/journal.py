"""What the tracking store could not be told: a folder a session in .cache/tracking, with a line an entry and copies of files.

A session is a stage's time with an MLflow run. Its first line says which run that is; a last line that a kill cut off counts as
not written. The folder appears and goes as a whole, and is locked as long as the session lasts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.ground.runtime import workspace

Entry = Mapping[str, Any]  # "do" names a method of the store's `Row`, the rest are its arguments; JSON but for "file", a path

LINES = "journal.jsonl"
LOCK = "lock"
GONE = ".done-"


@dataclass(frozen=True)
class Opening:
    """Which run of the store a session goes on in, or what a new one is to be."""

    store: str | None  # MLFLOW_TRACKING_URI of the session
    experiment: str
    name: str
    kind: str
    find: Mapping[str, str]  # tags that the run has
    add: Mapping[str, str]  # tags that it has or gets
    about: Mapping[str, str]  # tags that do not tell runs apart
    start: int  # milliseconds
    parent: Opening | None = None
    run_id: str | None = None  # where the store has told it

    @property
    def identity(self) -> dict[str, str]:
        return {"ast.name": self.name, "ast.kind": self.kind, **self.find}


def _opening(raw: dict[str, Any]) -> Opening:
    return Opening(**{**raw, "parent": _opening(raw["parent"]) if raw["parent"] else None})


class Journal:
    """The journal of one session, which this process writes."""

    def __init__(self, opening: Opening) -> None:
        name = f"{time.time_ns()}-{os.getpid()}-{re.sub(r'[^A-Za-z0-9.-]+', '-', opening.name)}"
        hidden = folder() / f".{name}"
        (hidden / "files").mkdir(parents=True)
        lock = FileLock(hidden / LOCK)
        lock.acquire()
        self.path, self._lock, self._files = folder() / name, lock, 0
        self._append(hidden / LINES, {"opening": asdict(opening)})
        hidden.rename(self.path)  # the lock goes with it

    def append(self, entry: Entry) -> None:
        """Write an entry to the disk. Its file is linked where the disk allows it: artifacts are replaced, never changed."""
        kept = dict(entry)
        if "file" in kept:
            source = Path(kept["file"])
            self._files += 1
            kept["file"] = f"files/{self._files}/{source.name}"
            target = self.path / kept["file"]
            target.parent.mkdir()
            try:
                os.link(source.resolve(), target)
            except OSError:  # another disk
                shutil.copyfile(source, target)
        self._append(self.path / LINES, kept)

    def _append(self, path: Path, value: Any) -> None:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(value, default=str) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def close(self) -> None:
        """Leave it to whoever delivers it."""
        self._lock.release()


def folder() -> Path:
    return workspace() / ".cache" / "tracking"


def waiting() -> list[Path]:
    """All journals, oldest first."""
    return sorted(path for path in folder().glob("[0-9]*"))


@contextmanager
def delivery() -> Iterator[None]:
    """One process delivers at a time; what earlier ones delivered and did not get to delete goes now."""
    with FileLock(folder() / ".lock"):
        for path in folder().glob(f"{GONE}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield


@contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Whether the session has ended, and its journal is this process's."""
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def opening_of(path: Path) -> Opening:
    return _opening(next(_lines(path))["opening"])


def entries_of(path: Path) -> Iterator[Entry]:
    """The entries, with the paths of their files."""
    for entry in list(_lines(path))[1:]:
        yield {**entry, "file": str(path / entry["file"])} if "file" in entry else entry


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with (path / LINES).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def remove(path: Path) -> None:
    """In one step, so that a kill leaves it whole or gone."""
    gone = path.rename(path.parent / f"{GONE}{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
