"""Who works on an artifact does so alone: locks, which the kernel takes off a process that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.ground.errors import ArtifactError, UserError

BUSY = "is being made by another process"


@contextmanager
def alone(stage: str, name: str) -> Iterator[None]:
    """Alone at these artifacts; raises UserError where another process is at them."""
    lock = FileLock(lock_file(f"{stage}-{name}"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{stage} {name} {BUSY}: wait for its end, or stop it") from None
    except OSError as error:
        raise _unwritable(Path(lock.lock_file), error) from None
    try:
        yield
    finally:
        lock.release()


def lock_file(name: str, top: Path = Path()) -> Path:
    path = top / ".cache" / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} can't be written ({error.strerror}): free space or permit writing there")
