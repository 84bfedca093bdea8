"""Archives that hold a split each, such as train.zip and test.zip, as one tree with a folder for each split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from src.io.sources.trees import Listing, Tree


@dataclass(frozen=True)
class Joined:
    """Trees of class folders, by split; where all of one lies in a folder of its own, the classes are below that."""

    folder: Path
    trees: Mapping[str, Tree]

    @property
    def title(self) -> str:
        return str(self.folder)

    def listing(self) -> Listing:
        files: list[str] = []
        folders: set[str] = set(self.trees)
        for split, tree in self.trees.items():
            listing = tree.listing()
            top = _top(listing)
            files += [f"{split}/{path.removeprefix(top)}" for path in listing.files if path.startswith(top)]
            folders |= {f"{split}/{path.removeprefix(top)}" for path in listing.folders if path.startswith(top)}
        return Listing(tuple(files), frozenset(folders))

    def streams(self, files: Iterable[str]) -> Iterator[tuple[str, BinaryIO]]:
        wanted = list(files)
        for split, tree in self.trees.items():
            top = _top(tree.listing())
            own = [top + path.removeprefix(f"{split}/") for path in wanted if path.startswith(f"{split}/")]
            for name, stream in tree.streams(own):
                yield f"{split}/{name.removeprefix(top)}", stream


def _top(listing: Listing) -> str:
    """The one folder that everything lies in, with a slash, where there are folders below it; else nothing."""
    tops = {path.split("/")[0] for path in (*listing.files, *listing.folders)}
    deep = bool(listing.files) and all(path.count("/") >= 2 for path in listing.files)
    return f"{tops.pop()}/" if len(tops) == 1 and deep else ""
