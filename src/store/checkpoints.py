"""Checkpoints: partial work, kept outside of DVC's artifacts, from which the same command goes on to the same bytes.

One safetensors file for each piece of work, replaced whole. Its name holds the digest of all that the result's bytes depend on,
so that changed settings, inputs or code never pick it up; its metadata hold that definition and the plain part of the state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from src.ground.errors import ArtifactError, InterruptedWorkError
from src.ground.host import workspace
from src.loops.stored import Stored
from src.process import depot, stopping
from src.process.progress import say
from src.store import busy, files

METADATA_KEY = "checkpoint"  # one entry, as artifacts have it
DAMAGE = (OSError, SafetensorError, KeyError, TypeError, ValueError)  # what reading a damaged one raises
WAIT_SECONDS = 0.5  # for another process, between two looks at whether this one is to stop
KEPT_SECONDS = 30 * 24 * 3600.0  # since the last save of work whose definition is another one
PAUSES = 50  # times that writing took must pass before the next: at most 2 % of the time

Facts = dict[str, Any]  # numbers, text, lists: all that is no tensor


@dataclass(frozen=True)
class Work:
    """Work that can be continued. The definition names everything that its bytes depend on."""

    stage: str
    name: str
    definition: Mapping[str, Any]
    seconds: float  # between checkpoints

    def checkpoint(self, piece: int = 0) -> Checkpoint:
        return Checkpoint(self._folder / f"{self._digest}-{piece:03d}.safetensors", self)

    def seconds_spent(self, pieces: int) -> float:
        """What earlier processes spent on so many pieces, as far as checkpoints hold it."""
        return sum(float(read(self.checkpoint(piece).path).get("seconds", 0)) for piece in range(pieces))

    def predecessor(self) -> Mapping[str, Any] | None:
        """The definition of the latest work of this name, where it is another one, so that this one begins anew."""
        paths = sorted(self._folder.glob("*.safetensors"), key=_written)
        if not paths or any(path.name.startswith(self._digest) for path in paths):
            return None
        found: Mapping[str, Any] | None = read(paths[-1]).get("definition")
        return found

    def forget(self) -> None:
        """Delete the checkpoints of this work, which has ended."""
        for path in self._folder.glob(f"{self._digest}-*"):
            path.unlink(missing_ok=True)

    def forget_others(self) -> None:
        """Delete what work of this name left behind under other definitions, and nobody has gone on with for long.

        What is younger may be that of an experiment beside this one, or of settings that come back.
        """
        for path in self._folder.glob("*"):
            old = time.time() - _written(path) > KEPT_SECONDS and not path.name.startswith(self._digest)
            if old and files.is_abandoned(path) and _is_free(path):
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return folder() / self.stage / self.name

    @property
    def _digest(self) -> str:
        text = json.dumps([self.stage, self.name, self.definition], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoint:
    """The file of one piece of work."""

    def __init__(self, path: Path, work: Work):
        self.path = path
        self._work = work
        self._pause = work.seconds
        self._begun = self._saved = time.monotonic()
        self.seconds_before = 0.0  # that earlier processes spent on what was loaded

    def load(self) -> Stored | None:
        """What was saved last; None where nothing was, or where it is damaged: it is deleted then.

        Raises ArtifactError where it is there and can't be opened, as beginning anew would replace it.
        """
        self._begun = time.monotonic()
        depot.bring(self.path)  # another machine's, whose worker is lost
        try:
            with files.opened(self.path) as file:
                about = _about(file, self.path)
                tensors = files.held(file)
            if about["tensors"] != files.checksum(None, tensors):
                raise ValueError("the checksum of its tensors does not fit")
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            say(f"Warning: the checkpoint {self.path} is damaged ({error}): it is deleted, and this part starts again")
            self.remove()
            return None
        self.seconds_before = about["seconds"]
        return tensors, about["facts"]

    def facts(self) -> Facts:
        """The plain part of what was saved last, read without the tensors; empty where there is none."""
        found = read(self.path)
        return found["facts"] if found else {}

    def save(self, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Replace the file; raises ArtifactError where it can't be written, and the old one stays."""
        start = time.monotonic()
        seconds = self.seconds_before + start - self._begun
        apart = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}  # of the same memory none is taken
        about = {"file": self.path.name, **vars(self._work), "facts": facts, "seconds": seconds}
        sealed = files.sealed({**about, "tensors": files.checksum(None, apart)})
        files.write_tensors(self.path, apart, {METADATA_KEY: json.dumps(sealed)})
        depot.share(self.path)
        self._saved = time.monotonic()
        self._pause = max(self._work.seconds, PAUSES * (self._saved - start)) if self._work.seconds else 0.0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is at this piece of work; that of a killed process is free."""
        lock = FileLock(_piece_lock(self.path))
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=WAIT_SECONDS)
                break
            stopping.check()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def kept(self) -> Iterator[Callable[[Callable[[], Stored]], None]]:
        """Yields keep(state): to be called after each step with a function that gives what to store.

        It is stored when the time has come, and when the block is asked to stop.
        """
        latest: Callable[[], Stored] | None = None

        def keep(state: Callable[[], Stored]) -> None:
            nonlocal latest
            latest = state
            if time.monotonic() - self._saved >= self._pause:
                self.save(*state())

        try:
            yield keep
        except InterruptedWorkError:
            if latest is not None:
                self.save(*latest())
            raise


def forget(stage: str, name: str) -> None:
    """Delete the checkpoints of work that has ended."""
    for path in (folder() / stage / name).glob("*"):
        path.unlink(missing_ok=True)


def folder() -> Path:
    return workspace() / ".cache" / "checkpoints"


@contextmanager
def at_work(stage: str, name: str) -> Iterator[None]:
    """Alone at these artifacts, and ready to be stopped; raises UserError where another process is at them."""
    with busy.alone(stage, name), stopping.heeded():
        yield


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its work has just ended
        return 0.0


def _piece_lock(checkpoint: Path) -> Path:
    """Beside the checkpoints, which a temporary copy of the repository, as DVC's experiments have, shares with it."""
    return busy.lock_file(f"{checkpoint.parent.parent.name}-{checkpoint.parent.name}-{checkpoint.stem}", workspace())


def _is_free(checkpoint: Path) -> bool:
    """Whether no process is at this piece of work."""
    try:
        with FileLock(_piece_lock(checkpoint), timeout=0):
            return True
    except Timeout:
        return False


def read(path: Path) -> dict[str, Any]:
    """Stage, name, definition and facts of a checkpoint's file; empty where there is none, or it can't be read."""
    try:
        with files.opened(path) as file:
            return _about(file, path)
    except (ArtifactError, *DAMAGE):
        return {}


def _about(file: Any, path: Path) -> dict[str, Any]:
    """What is said beside the tensors; raises ValueError where it is damaged, or another file's."""
    found = files.unsealed(json.loads(file.metadata()[METADATA_KEY]))
    if found["file"] != path.name:
        raise ValueError(f"it is {found['file']}")
    return found


def stored(path: Path) -> Stored | None:
    """What a checkpoint's file holds, whoever's it is; None where there is none, or it can't be read."""
    try:
        with files.opened(path) as file:
            about = _about(file, path)
            return files.held(file), about["facts"]
    except (ArtifactError, *DAMAGE):
        return None


def found() -> list[Path]:
    """Every file of partial work, half-written ones included."""
    return sorted(path for path in folder().rglob("*") if path.is_file())
