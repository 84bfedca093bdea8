"""What tracking stores are still to be told: a folder a session in .cache/tracking, with a line an entry and copies of files.

A session is a stage's time with an MLflow run. Its first line says which run that is, and of which store, as it waits for that
one alone; a last line that a kill cut off counts as not written. The folder appears and goes as a whole, and is locked as long
as the session lasts.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from src.ground.errors import UserError
from src.ground.host import workspace
from src.tracking import stores

Entry = Mapping[str, Any]  # "do" names a method of the store's `Row`, the rest are its arguments; JSON but for "file", a path

LINES = "journal.jsonl"
LOCK = "lock"
GONE = ".done-"
PROBLEMS = "problems"  # folder of sentences about sessions whose stages may have ended


@dataclass(frozen=True)
class Opening:
    """Which run of the store a session goes on in, or what a new one is to be."""

    store: str  # its name
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

    @property
    def run(self) -> tuple[str, ...]:
        """Equal for sessions of the same run. By names: each stage finds it by other tags."""
        return (*(self.parent.run if self.parent else ()), self.experiment, self.name)


def _opening(raw: dict[str, Any]) -> Opening:
    parent = _opening(raw["parent"]) if raw["parent"] else None
    return Opening(**{**raw, "store": stores.named(raw["store"]), "parent": parent})  # earlier versions kept the variable


class DamagedError(UserError):
    """A journal that can't be read."""

    def __init__(self, path: Path):
        super().__init__(f"{path} can't be read: remove it")


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

    def close(self) -> None:
        """Leave it to whoever delivers it."""
        self._lock.release()


def folder() -> Path:
    return workspace() / ".cache" / "tracking"


def waiting() -> list[Path]:
    """All journals, oldest first."""
    return _numbered(folder())


def _numbered(place: Path) -> list[Path]:
    try:
        return sorted(place.glob("[0-9]*"))
    except OSError:  # another user's, which may not be looked into
        return []


def sessions(store: str | None = None) -> list[tuple[Path, Opening]]:
    """Those that can be read, of all stores or of one, oldest first."""
    found = [(path, opening) for path in waiting() if (opening := opening_of(path)) is not None]
    return [(path, opening) for path, opening in found if store in (None, opening.store)]


def damaged() -> list[DamagedError]:
    """Those that can't be read."""
    return [DamagedError(path) for path in waiting() if opening_of(path) is None and path.exists()]


@contextmanager
def delivery(store: str, seconds: float) -> Iterator[None]:
    """One process at a time delivers to a store; raises Timeout where another one still does after so many seconds.

    What earlier ones delivered and did not get to delete goes now.
    """
    with FileLock(_lock_of(store), timeout=seconds):
        for path in folder().glob(f"{GONE}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield


def is_delivered(store: str) -> bool:
    """Whether a process is at it. One that has just begun waits for this look at its lock."""
    try:
        with FileLock(_lock_of(store), timeout=0):
            return False
    except Timeout:
        return True


def _lock_of(store: str) -> Path:
    return folder() / f".lock-{hashlib.sha256(store.encode()).hexdigest()[:8]}"


def note(name: str, sentence: str) -> None:
    """Keep a problem with a session's delivery for the stage that is at work, or for the next one, to say."""
    with contextlib.suppress(OSError):  # of a disk that is full, which stages say themselves
        (folder() / PROBLEMS).mkdir(exist_ok=True)
        (folder() / PROBLEMS / name).write_text(sentence, encoding="utf-8")


def noted() -> Iterator[str]:
    """Problems that nobody has said yet; they count as said."""
    for path in _numbered(folder() / PROBLEMS):
        with contextlib.suppress(OSError):  # another process was first
            sentence = path.read_text(encoding="utf-8")
            path.unlink()
            yield sentence


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


def opening_of(path: Path) -> Opening | None:
    """None where another process has delivered it, or it is damaged."""
    try:
        with (path / LINES).open(encoding="utf-8") as lines:
            return _opening(json.loads(lines.readline())["opening"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def entries_from(path: Path, start: int) -> tuple[list[Entry], int]:
    """The whole entries from a place in the journal on, with the paths of their files, and the place behind them.

    Place 0 is that of the first entry, behind the opening. Raises DamagedError.
    """
    with (path / LINES).open("rb") as lines:
        place = start or len(lines.readline())
        lines.seek(place)
        found = []
        for line in lines:
            if line.endswith(b"\n"):
                place += len(line)
                found.append(_entry(path, line))
    return found, place


def _entry(path: Path, line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        raise DamagedError(path) from None
    return {**entry, "file": str(path / entry["file"])} if "file" in entry else entry


def remove(path: Path) -> None:
    """In one step, so that a kill leaves it whole or gone."""
    gone = path.rename(path.parent / f"{GONE}{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
