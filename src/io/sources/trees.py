"""Files in folders, on disk or in an archive: which there are, and their bytes one after the other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from src.ground.errors import DataError

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # what file managers leave behind


@dataclass(frozen=True)
class Listing:
    """Paths below the top, with slashes; what is hidden is left out."""

    files: tuple[str, ...]
    folders: frozenset[str]


class Tree(Protocol):
    """A folder or an archive."""

    @property
    def title(self) -> str:
        """What error sentences call it."""

    def listing(self) -> Listing:
        """All files and folders. Raises DataError."""

    def streams(self, files: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
        """Each of the files, open until the next is asked for, in the order that takes least time. Raises DataError."""


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
        for top in self.tops:
            self._scan(top, files, folders, ())
            folders |= {str(folder) for folder in (PurePosixPath(top), *PurePosixPath(top).parents)} - {"."}
        return Listing(tuple(files), frozenset(folders))

    def streams(self, files: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
        for name in files:
            with _open(self.root / name) as file:
                yield name, file

    def _scan(self, below: str, files: list[str], folders: set[str], above: tuple[tuple[int, int], ...]) -> None:
        """Add what lies in the folder `below`; `above` identifies the folders on the way, to notice a link to one of them."""
        folder = self.root / below
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        if here in above:
            raise DataError(f"{folder} is a link to a folder that it lies in: remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}".removeprefix("/")
                if hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.add(path)
                    self._scan(path, files, folders, (*above, here))
                elif entry.is_file() or entry.is_symlink():
                    files.append(path)


def hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


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
