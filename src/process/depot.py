"""Files on their way between machines: in a folder that all of them see, or at any address that fsspec knows (ssh, s3, ...).

What tasks are given goes by the digest of its content, so that it is stored once and fetched once. What is to be found again,
a checkpoint or a result, goes by its place in the repository, and is replaced whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.ground.errors import UserError

CONTENT, PLACES = "content", "places"


@dataclass(frozen=True)
class Depot:
    """A folder's path, or an address such as sftp://host/folder or s3://bucket/folder."""

    address: str

    def put(self, path: Path) -> str:
        """Store a file's content; its digest, by which it is known."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with self._reached() as (system, top):
            if not system.exists(target := f"{top}/{CONTENT}/{digest}"):
                _upload(system, path, target)
        return digest

    def get(self, digest: str, path: Path) -> None:
        """The content of this digest as a file, which is written whole or not at all."""
        with self._reached() as (system, top), _written(path) as temporary:
            system.get_file(f"{top}/{CONTENT}/{digest}", str(temporary))
            with temporary.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise OSError(f"{CONTENT}/{digest} is damaged: delete it")

    def push(self, place: str, path: Path) -> None:
        """Store a file under its place, whatever was there."""
        with self._reached() as (system, top):
            _upload(system, path, f"{top}/{PLACES}/{place}")

    def pull(self, place: str, path: Path) -> bool:
        """Bring what is stored under this place; whether there was anything."""
        with self._reached() as (system, top):
            if not system.exists(source := f"{top}/{PLACES}/{place}"):
                return False
            with _written(path) as temporary:
                system.get_file(source, str(temporary))
        return True

    def drop(self, place: str) -> None:
        """Nothing is under this place from now on."""
        self._remove(f"{PLACES}/{place}")

    def forget(self, digest: str) -> None:
        """Delete content that nobody will ask for again."""
        self._remove(f"{CONTENT}/{digest}")

    def _remove(self, name: str) -> None:
        with self._reached() as (system, top):
            if system.exists(f"{top}/{name}"):
                system.rm_file(f"{top}/{name}")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system and the folder in it; what it refuses becomes a sentence."""
        import fsspec

        try:
            system, top = fsspec.url_to_fs(self.address)
            system.invalidate_cache()  # of listings: other machines write too
            yield system, top.rstrip("/")
        except UserError:
            raise
        except Exception as error:  # a file system's own kinds
            raise UserError(
                f"the depot {self.address} can't be used ({error}): set runtime.depot to a folder or address that all "
                "machines may read and write"
            ) from error


def _upload(system: Any, path: Path, target: str) -> None:
    """Under another name first: half a file is never seen under its own."""
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    system.makedirs(target.rpartition("/")[0], exist_ok=True)
    system.put_file(str(path), temporary)
    system.mv(temporary, target)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


@dataclass
class Mirror:
    """A folder that stands for the repository's top on a machine that does not see it."""

    top: Path
    root: Path  # the repository, where it lies
    depot: Depot


mirror: Mirror | None = None  # of this process; None where it works in the repository itself


def _place(path: Path, found: Mirror) -> str:
    return Path(os.path.relpath(path.absolute(), found.top)).as_posix()


def seen(path: Path) -> Path:
    """Where this process has a path of the repository."""
    return path if mirror is None else mirror.top / path.relative_to(mirror.root)


def share(path: Path) -> None:
    """Let other machines find the file, where this process works in a mirror."""
    if mirror is not None:
        mirror.depot.push(_place(path, mirror), path)


def bring(path: Path) -> None:
    """The file as a process elsewhere shared it last, where this one works in a mirror."""
    if mirror is not None:
        mirror.depot.pull(_place(path, mirror), path)
