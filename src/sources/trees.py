"""Files in folders, on disk or in an archive: which there are, and their bytes one after the other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from src.ground.errors import DataError

LITTER = frozenset({  # what file managers, servers, recycle bins and tools leave behind
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "@tmp", "@__thumb", "#recycle", "@recycle",
    "$recycle.bin", "#snapshot", "@recently-snapshot", "system volume information", "lost+found", "found.000",
    "network trash folder", "temporary items", "__pycache__", "node_modules",
})  # fmt: skip
HIDDEN, LITTERED = "hidden", "left behind by a file server or a tool"
NO_FILE = "a pipe, a socket or a device"


@dataclass(frozen=True)
class Listing:
    """Paths below the top, with slashes."""

    files: tuple[str, ...]
    folders: frozenset[str]
    left_out: Mapping[str, str]  # file that is in no way one of the data set -> why


class Tree(Protocol):
    """A folder or an archive."""

    @property
    def title(self) -> str:
        """What error sentences call it."""

    def listing(self) -> Listing:
        """All files and folders. Raises DataError."""

    def streams(self, files: Iterable[str], most: int = -1) -> Iterator[tuple[str, BinaryIO]]:
        """Each of the files, open until the next is asked for, in the order that takes least time. Raises DataError.

        Where no more than `most` bytes of each will be asked for, what lies behind them need not be read.
        """


@dataclass(frozen=True)
class Folder:
    """A folder on disk; links in it are followed. Where `tops` are named, only these folders in it count."""

    root: Path
    tops: tuple[str, ...] = ("",)

    @property
    def title(self) -> str:
        return str(self.root)

    def listing(self) -> Listing:
        files: list[str] = []
        folders: set[str] = set()
        left_out: dict[str, str] = {}
        for top in self.tops:
            self._scan(top, files, folders, left_out, ())
            folders |= {str(folder) for folder in (PurePosixPath(top), *PurePosixPath(top).parents)} - {"."}
        return Listing(tuple(files), frozenset(folders), left_out)

    def streams(self, files: Iterable[str], most: int = -1) -> Iterator[tuple[str, BinaryIO]]:
        for name in files:
            with _open(self.root / name) as file:
                yield name, file

    def _scan(
        self, below: str, files: list[str], folders: set[str], left_out: dict[str, str], above: tuple[tuple[int, int], ...]
    ) -> None:
        """Add what lies in the folder `below`; `above` identifies the folders on the way, to notice a link to one of them."""
        folder = self.root / below
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        if here in above:
            raise DataError(f"{folder} is a link to a folder that it lies in: remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}".removeprefix("/")
                why = why_hidden(entry.name)
                if why is not None:
                    left_out |= dict.fromkeys(_below(entry, path), why)
                elif entry.is_dir():
                    folders.add(path)
                    self._scan(path, files, folders, left_out, (*above, here))
                elif entry.is_file() or not Path(entry.path).exists():  # a link to nothing is said when it is opened
                    files.append(path)
                else:
                    left_out[path] = NO_FILE


def _below(entry: os.DirEntry[str], path: str) -> Iterator[str]:
    """The file, or all files in the folder; links are not followed. A folder that can't be read, as bins can't, is one."""
    if not entry.is_dir(follow_symlinks=False):
        yield path
        return
    try:
        with os.scandir(entry.path) as entries:
            inside = list(entries)
    except OSError:
        yield f"{path}/"
        return
    for one in inside:
        yield from _below(one, f"{path}/{one.name}")


def hidden(name: str) -> bool:
    return why_hidden(name) is not None


def why_hidden(name: str) -> str | None:
    """Why a file or folder of this name does not count, if so."""
    if name.startswith("."):
        return HIDDEN
    return LITTERED if name.casefold() in LITTER else None


def natural(path: str) -> tuple[Any, ...]:
    """Sort key that puts 2.png before 10.png: runs of digits by their value, the text between them by its characters."""
    return tuple(_natural(part) for part in path.split("/"))


def _natural(name: str) -> tuple[Any, ...]:
    """Texts and numbers alternate, so that like is compared with like; the name at the end tells 7 from 007."""
    parts = re.split("([0-9]+)", name)
    return tuple(_value(part) if place % 2 else part for place, part in enumerate(parts)), name


def _value(digits: str) -> tuple[int, str]:
    """Sorts as the number does, of whatever length."""
    figures = digits.lstrip("0")
    return len(figures), figures


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): permit reading it, or remove it") from None
