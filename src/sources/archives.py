"""Image folders in a .zip or .tar archive, read member by member in memory: nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from src.ground.errors import DataError
from src.sources.trees import Listing, Tree, why_hidden

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
    ValueError,  # names that are no text
    NotImplementedError,  # methods of compression
)  # fmt: skip
UTF8 = 0x800  # the flag of a member whose name is UTF-8
UNIX = (3, 19)  # what Unix and macOS call themselves in a member


def is_archive(path: Path) -> bool:
    return path.name.casefold().endswith(SUFFIXES)


def tree(path: Path) -> Tree:
    """The archive as a tree. Raises DataError where it is damaged or names files outside of itself."""
    return Zip(path) if path.name.casefold().endswith(".zip") else Tar(path)


@dataclass(frozen=True)
class Zip:
    """Members can be read in any order."""

    path: Path

    @property
    def title(self) -> str:
        return str(self.path)

    def listing(self) -> Listing:
        with damage(self.path), zipfile.ZipFile(self.path) as archive:
            # ZipInfo.is_dir() fails where a damaged member has no name
            members = [(_safe(self.path, _name(info)), info.filename.endswith("/")) for info in archive.infolist()]
        return _listing(members)

    def streams(self, files: Iterable[str], most: int = -1) -> Iterator[tuple[str, BinaryIO]]:
        with damage(self.path), zipfile.ZipFile(self.path) as archive:
            members = {_safe(self.path, _name(info)): info for info in archive.infolist()}
            for name in files:
                if members[name].flag_bits & 1:
                    raise DataError(f"{self.path} is encrypted: pack the images without a password")
                with archive.open(members[name]) as stream:
                    yield name, cast(BinaryIO, stream)


@dataclass(frozen=True)
class Tar:
    """Members are read in the archive's order: a compressed one has no other."""

    path: Path

    @property
    def title(self) -> str:
        return str(self.path)

    def listing(self) -> Listing:
        with damage(self.path), tarfile.open(self.path) as archive:
            members = [(self._name(member), member.isdir()) for member in archive]
            _check_end(archive)
        return _listing(members)

    def streams(self, files: Iterable[str], most: int = -1) -> Iterator[tuple[str, BinaryIO]]:
        wanted = set(files)
        with damage(self.path), tarfile.open(self.path) as archive:
            for member in archive:
                name = _safe(self.path, member.name)
                if name in wanted:
                    content = archive.extractfile(member)
                    # in memory, as going back in a compressed archive means reading it from its start
                    yield name, io.BytesIO(content.read(most) if content else b"")
                    wanted.remove(name)
                if not wanted:
                    break

    def _name(self, member: tarfile.TarInfo) -> str:
        name = _safe(self.path, member.name)
        if not (member.isfile() or member.isdir() or _why_hidden(name)):
            raise DataError(f"{self.path} holds '{name}', which is no file but a link or a device: pack the file itself")
        return name


def _safe(archive: Path, member: str) -> str:
    """A member's path below the archive's top. Raises DataError where it leads out of the archive."""
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise DataError(f"{archive} holds '{member}', a path that leads out of the archive: pack it again from its top folder")
    return str(path)


def _check_end(archive: tarfile.TarFile) -> None:
    """An archive cut off between two members looks whole, but for the zeros that end it."""
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        if not archive.fileobj.read(1):
            raise tarfile.ReadError("its end is missing")


def _name(member: zipfile.ZipInfo) -> str:
    """Where a name does not say what text it is, it is the file system's bytes if packed on Unix, else code page 437."""
    says = member.flag_bits & UTF8 or member.filename != member.orig_filename  # the latter: in a field of its own
    if says or member.create_system not in UNIX:
        return member.filename
    return member.filename.encode("cp437").decode("utf-8", "surrogateescape")


def _why_hidden(path: str) -> str | None:
    return next((why for part in path.split("/") if (why := why_hidden(part))), None)


def _listing(members: Iterable[tuple[str, bool]]) -> Listing:
    """A file implies the folders that it lies in; a name that stands twice counts once."""
    reasons = {path: (_why_hidden(path), folder) for path, folder in members if path != "."}
    kept = {path: folder for path, (why, folder) in reasons.items() if why is None}
    folders = {path for path, folder in kept.items() if folder}
    folders |= {str(parent) for path in kept for parent in PurePosixPath(path).parents} - {"."}
    left_out = {path: why for path, (why, folder) in reasons.items() if why is not None and not folder}
    return Listing(tuple(path for path, folder in kept.items() if not folder), frozenset(folders), left_out)


@contextmanager
def damage(archive: object) -> Iterator[None]:
    """Turns what the readers of an archive, or of a file in it, raise into DataError."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{archive} is damaged or no archive of its kind ({error}): pack or download it again") from None
